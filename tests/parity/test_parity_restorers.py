"""CodeFormer and GFPGAN at full size: the published names and shapes are those of the networks that are built here."""

import pytest
import torch
from torch import Tensor, nn

from restorers import codes, published
from tests.parity.test_parity_manifests import MANIFESTS, elements, manifest

pytestmark = pytest.mark.skipif(not MANIFESTS.is_dir(), reason=f"manifests not found at {MANIFESTS}")
pytest.importorskip("spandrel", reason="spandrel is not installed")


def gfpgan() -> nn.Module:
    from spandrel.architectures.GFPGAN import GFPGAN

    net: nn.Module = GFPGAN(out_size=512, num_style_feat=512, channel_multiplier=2, num_mlp=8, input_is_latent=True,
                            different_w=True, narrow=1, sft_half=True)  # fmt: skip
    return net


def codeformer() -> nn.Module:
    net: nn.Module = pytest.importorskip("spandrel_extra_arches.architectures.CodeFormer").CodeFormer()
    return net


@pytest.mark.parametrize(
    ("architecture", "name", "build"),
    [("GFPGAN", "gfpgan_v1.4_clean", gfpgan), ("CodeFormer", "codeformer", codeformer)],
)
def test_the_manifest_is_recognised_and_fits(architecture: str, name: str, build) -> None:
    state = manifest(name)
    with torch.device("meta"):
        ours = build().state_dict()
    assert {key: tensor.shape for key, tensor in ours.items()} == {key: tensor.shape for key, tensor in state.items()}
    assert elements(ours) == elements(state)
    known = [support.architecture for support in published._loader().registry.architectures("detection")]
    assert next(kind.id for kind in known if kind.detect(state)) == architecture
    for parts in (published.TRAINS[architecture], published.DECODERS[architecture]):
        assert missing(parts, state) == []
    if architecture == "CodeFormer":
        assert missing(codes.LEARNS, state) == []


def missing(parts: tuple[str, ...], state: dict[str, Tensor]) -> list[str]:
    """The parts that no tensor belongs to."""
    return [part for part in parts if not any(name.split(".")[0] == part for name in state)]
