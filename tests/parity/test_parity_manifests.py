"""The published networks at full size: every name and shape goes to exactly one tensor of ours, without values."""

import gzip
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pseudo_targets import layouts
from pseudo_targets.diffbir.cleaners import NETWORKS
from pseudo_targets.diffbir.convert import (
    CONTROL,
    ConversionError,
    convert_autoencoder,
    convert_control,
    convert_text_tower,
    convert_unet,
    shapes,
    split_checkpoint,
)
from pseudo_targets.diffbir.networks import PUBLISHED
from pseudo_targets.downloads import BSRNET, SCUNET_PSNR, SWINIR_FACE, PublishedWeights, WeightsError
from tests.parity.parity_files import DEFAULT, FOLDER

# Another set of fixtures may come without them: they do not depend on its sizes.
MANIFESTS = (FOLDER if (FOLDER.parent / "manifests").is_dir() else DEFAULT).parent / "manifests"
pytestmark = pytest.mark.skipif(not MANIFESTS.is_dir(), reason=f"manifests not found at {MANIFESTS}")


def manifest(name: str) -> dict[str, Tensor]:
    """Names and shapes of a published file, as tensors without values."""
    path = MANIFESTS / f"{name}.json.gz"
    if not path.is_file():
        pytest.skip(f"{path.name} is not in {MANIFESTS}")
    tensors = json.loads(gzip.decompress(path.read_bytes()))["tensors"]
    return {key: torch.empty(facts["shape"], device="meta") for key, facts in tensors.items()}


def elements(state: dict[str, Tensor]) -> int:
    return sum(tensor.numel() for tensor in state.values())


def test_unet() -> None:
    published = manifest("sd21_unet")
    converted = convert_unet(split_checkpoint(published, "manifest").unet, PUBLISHED)
    assert (len(converted), elements(converted)) == (686, 865_910_724)
    assert elements(published) == elements(converted)


def test_control() -> None:
    published = manifest("diffbir_controlnet")
    converted = convert_control(published, PUBLISHED)
    # One tensor more: the first convolution is split in two.
    assert (len(published), len(converted)) == (324, 325)
    assert elements(published) == elements(converted) == 363_153_280
    with pytest.raises(ConversionError, match=r"missing tensors: zero_convs\.11\.0\.bias$"):
        convert_control({key: value for key, value in published.items() if key != "zero_convs.11.0.bias"}, PUBLISHED)


def test_autoencoder() -> None:
    published = manifest("sd_vae")
    converted = convert_autoencoder(split_checkpoint(published, "manifest").autoencoder, PUBLISHED)
    assert len(converted) == len(published) == 248
    assert elements(published) == elements(converted)


def test_text_tower() -> None:
    pytest.importorskip("transformers")
    published = split_checkpoint(manifest("openclip_vith14_text"), "manifest").text
    converted = convert_text_tower(published, PUBLISHED)
    last = elements({key: value for key, value in published.items() if "resblocks.23." in key})
    projection = published["text_projection"].numel() + published["logit_scale"].numel()
    assert elements(converted) == elements(published) - last - projection


def test_version_1_in_one_file() -> None:
    """Each network under its prefix, with stage 1 and the second encoder left out."""
    control = manifest("diffbir_controlnet")
    autoencoder = manifest("sd_vae")
    encoder = {key.replace("first_stage_model.", "cond_encoder."): value for key, value in autoencoder.items()}
    stage1 = {f"preprocess_model.{key}": value for key, value in manifest("swinir_diffbir_difface").items()}
    whole = {f"{CONTROL}{key}": value for key, value in control.items()} | autoencoder | encoder | stage1
    checkpoint = split_checkpoint(whole | manifest("openclip_vith14_text") | manifest("sd21_unet"), "manifests")
    assert checkpoint.control.keys() == control.keys()
    assert (len(checkpoint.unet), len(checkpoint.autoencoder)) == (686, 248)
    assert len(checkpoint.text) == 294


@pytest.mark.parametrize(
    ("name", "weights", "tensors", "total"),
    [
        ("swinir_diffbir_difface", SWINIR_FACE, 732, 22_280_651),
        ("bsrnet", BSRNET, 702, 16_697_987),
        ("scunet_psnr", SCUNET_PSNR, 540, 17_946_072),
    ],
)
def test_stage1(name: str, weights: PublishedWeights, tensors: int, total: int) -> None:
    """Buffers included; nothing is converted."""
    published = manifest(name)
    if weights != BSRNET:
        pytest.importorskip("spandrel")
    ours = shapes(NETWORKS[weights][0]().to("meta"))
    assert ours == {key: tensor.shape for key, tensor in published.items()}
    assert (len(published), elements(published)) == (tensors, total)


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("sd21-base", ("sd21_unet", "sd_vae", "openclip_vith14_text")),
        ("diffbir-v2-control", ("diffbir_controlnet",)),
        ("swinir-face", ("swinir_diffbir_difface",)),
    ],
)
def test_a_published_file_passes_the_check_of_its_layout(name, parts, monkeypatch) -> None:
    pytest.importorskip("spandrel")
    pytest.importorskip("transformers")
    published = {key: value for part in parts for key, value in manifest(part).items()}
    monkeypatch.setattr(layouts, "read_layout", lambda *_: published)
    assert layouts.check_layout(name, Path("published.ckpt")) == layouts.FITS
    del published[next(iter(published))]
    with pytest.raises(WeightsError, match="missing"):
        layouts.check_layout(name, Path("published.ckpt"))
