"""The networks of stage 1, loaded strictly from the published layouts, on images of several sizes."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pseudo_targets.checkpoints import load_strictly
from pseudo_targets.diffbir.cleaner_nets import (
    ReplicatePadded,
    SCUNetSizes,
    SwinIRSizes,
    build_scunet,
    build_swinir,
    sizes_from,
)
from pseudo_targets.diffbir.rrdb import RrdbNet, RrdbSizes
from restorers.zoo import load_restorer
from tests.parity.parity_files import absolute, config, names, needs_fixtures, relative, tensors, weights

pytestmark = needs_fixtures
INPUTS = [key for key in (tensors("stage1_io") if names("stage1_io") else ()) if "_in" in key]


def network(name: str) -> nn.Module:
    """A stage 1 network at the sizes of this set of fixtures."""
    sizes = config("stage1")[name]
    if name == "bsrnet":
        return filled(RrdbNet(sizes_from(RrdbSizes, sizes)), name)
    pytest.importorskip("spandrel")
    if name == "swinir":
        return filled(build_swinir(sizes_from(SwinIRSizes, sizes)), name)
    return ReplicatePadded(filled(build_scunet(sizes_from(SCUNetSizes, sizes)), name), 64)


def filled(net: nn.Module, name: str) -> nn.Module:
    return load_strictly(net, weights(name), Path(name))


@torch.no_grad()
@pytest.mark.parametrize("key", INPUTS)
def test_output(key: str) -> None:
    io: dict[str, Tensor] = tensors("stage1_io")
    name = key.split("_")[0]
    assert relative(network(name)(io[key]), io[key.replace("_in", "_out")]) < 1e-5


def test_the_masks_of_swinir_are_for_one_of_the_sizes_only() -> None:
    sizes = sizes_from(SwinIRSizes, config("stage1")["swinir"])
    side = sizes.img_size * sizes.unshuffle_scale
    shapes = {tuple(tensors("stage1_io")[key].shape[-2:]) for key in INPUTS if key.startswith("swinir")}
    assert (side, side) in shapes and len(shapes) > 1


@torch.no_grad()
@pytest.mark.parametrize("key", [key for key in INPUTS if key.startswith("swinir")])
def test_swinir_as_the_restorer_to_adapt(key: str, tmp_path: Path) -> None:
    pytest.importorskip("spandrel")
    torch.save({"state_dict": {f"module.{name}": t for name, t in weights("swinir").items()}}, tmp_path / "face.ckpt")
    restorer, io = load_restorer(tmp_path / "face.ckpt"), tensors("stage1_io")
    assert restorer.spec.scale == 1
    assert relative(restorer.module(io[key]), io[key.replace("_in", "_out")]) < 1e-5


@torch.no_grad()
def test_swinir_gives_the_reference_of_a_pseudo_target_run() -> None:
    run = tensors("pseudo_target_swinir")
    image = run["input_uint8_bgr"].flip(-1).permute(2, 0, 1)[None] / 255
    assert absolute(network("swinir")(image).clamp(0, 1), run["restored01"]) < 1e-4
