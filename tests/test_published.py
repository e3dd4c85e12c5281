"""Networks of other authors that spandrel knows: calls that keep the caller's image, shapes, and what they forbid."""

from __future__ import annotations

import inspect
import sys

import pytest
import torch
from torch import Tensor, nn

from restorers import published
from restorers.published import CALLS, UNSUPPORTED_CALLS, PublishedRestorer
from restorers.zoo import ZooError, load_restorer

spandrel = pytest.importorskip("spandrel")


def test_every_call_of_spandrels_own_is_known() -> None:
    supports = [*spandrel.MAIN_REGISTRY]
    if published.has_extra():
        from spandrel_extra_arches import EXTRA_REGISTRY

        supports += [*EXTRA_REGISTRY]
    own = {s.architecture.id for s in supports if "call_fn" in inspect.getsource(_module(s.architecture))}
    assert {"GFPGAN", "DRUNet"} <= own
    assert own <= {*CALLS, *UNSUPPORTED_CALLS}


def _module(architecture: object) -> object:
    return sys.modules[type(architecture).__module__]


def test_rcan_leaves_the_callers_image_alone(tmp_path) -> None:
    from spandrel.architectures.RCAN.__arch.rcan_arch import RCAN

    torch.manual_seed(0)
    torch.save(RCAN(n_resgroups=1, n_resblocks=1, n_feats=8, reduction=4).state_dict(), tmp_path / "rcan.pth")
    restorer = load_restorer(tmp_path / "rcan.pth")
    image = torch.rand(1, 3, 32, 32)
    before = image.clone()
    with torch.no_grad():
        restorer.module(image)
    assert torch.equal(image, before)


class Square(nn.Module):
    """Takes square images alone, and doubles them."""

    def forward(self, image: Tensor) -> Tensor:
        assert image.shape[-1] == image.shape[-2]
        return doubled(image)


@pytest.mark.parametrize("shape", [(1, 3, 32, 48), (2, 3, 40, 32), (1, 3, 32, 32)])
def test_a_network_of_squares_gets_squares(shape) -> None:
    image = torch.rand(shape)
    net = PublishedRestorer(Square(), published._call_plain, None, square=True)
    assert torch.equal(net(image), doubled(image))
    assert not net.plain
    assert torch.equal(PublishedRestorer(Square(), published._call_plain, None, 2, square=True)(image), image)


def doubled(image: Tensor) -> Tensor:
    return image.repeat_interleave(2, -1).repeat_interleave(2, -2)


@pytest.mark.skipif(not published.has_extra(), reason="needs the extra `non-commercial`")
def test_every_architecture_of_the_extra_package_forbids_commercial_use(tmp_path) -> None:
    from spandrel_extra_arches.architectures.MPRNet.__arch.MPRNet import MPRNet

    torch.manual_seed(0)
    net = MPRNet(n_feat=8, scale_unetfeats=4, scale_orsnetfeats=4, num_cab=1)
    torch.save(net.state_dict(), tmp_path / "mprnet.pth")
    with pytest.raises(ZooError, match="forbids commercial use"):
        load_restorer(tmp_path / "mprnet.pth")
    restorer = load_restorer(tmp_path / "mprnet.pth", non_commercial=True)
    image = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert restorer.module(image).shape == image.shape
