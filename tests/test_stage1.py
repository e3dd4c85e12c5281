"""DiffBIR's stage 1 from files in the cache, with tiny random networks in the published layouts."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapt import generate
from adapt.console import Narrator
from adapt.errors import UsageError
from adapt.generate import TargetTask, WorkerFactory
from adapt.options import JobOptions, cleaner_of
from pseudo_targets.diffbir import cleaners
from pseudo_targets.diffbir.cleaner_nets import ReplicatePadded, SCUNetSizes, SwinIRSizes, build_scunet, build_swinir
from pseudo_targets.diffbir.cleaners import CLEANERS, Cleaner, load_diffbir_cleaner
from pseudo_targets.diffbir.rrdb import RrdbNet, RrdbSizes
from pseudo_targets.downloads import (
    BSRNET,
    SCUNET_PSNR,
    SWINIR_FACE,
    SWINIR_GENERAL,
    SWINIR_REALESRGAN,
    PublishedWeights,
    WeightsError,
    WeightsMissingError,
)
from pseudo_targets.zoo import load_cleaner
from recipes.load import load_recipe
from restorers.zoo import load_file, save_restorer
from tests.tiny import blobs, tiny_pixel_prior

SWINIR = SwinIRSizes(img_size=16, embed_dim=8, depths=(2,), num_heads=(2,))
SCUNET = SCUNetSizes(config=(2, 1, 1, 1, 1, 1, 2), dim=16, head_dim=8)
RRDB = RrdbSizes(nf=8, nb=1, gc=4)


def tiny_swinir() -> nn.Module:
    pytest.importorskip("spandrel")
    torch.manual_seed(0)
    return build_swinir(SWINIR)


def tiny_bsrnet() -> nn.Module:
    torch.manual_seed(0)
    return RrdbNet(RRDB)


def tiny_scunet() -> nn.Module:
    pytest.importorskip("spandrel")
    torch.manual_seed(0)
    return build_scunet(SCUNET)


TINY = {
    SWINIR_FACE: tiny_swinir,
    SWINIR_GENERAL: tiny_swinir,
    SWINIR_REALESRGAN: tiny_swinir,
    BSRNET: tiny_bsrnet,
    SCUNET_PSNR: tiny_scunet,
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and tiny networks in place of those of published size."""
    monkeypatch.setenv("ADAPT_CACHE", str(tmp_path))
    networks = {weights: (TINY[weights], *rest) for weights, (_, *rest) in cleaners.NETWORKS.items()}
    monkeypatch.setattr(cleaners, "NETWORKS", networks)
    return tmp_path


def put(weights: PublishedWeights, cache: Path, folder: str = "weights") -> dict[str, Tensor]:
    state = TINY[weights]().state_dict()
    (cache / folder).mkdir(exist_ok=True)
    torch.save(
        {"state_dict": {f"module.{name}": tensor for name, tensor in state.items()}}, cache / folder / weights.file
    )
    return state


@torch.no_grad()
@pytest.mark.parametrize(
    ("prior", "content"), [(prior, content) for prior, contents in CLEANERS.items() for content in contents]
)
def test_every_cleaner_keeps_or_takes_the_size_asked_for(prior, content, cache):
    weights = CLEANERS[prior][content]
    put(weights, cache)
    cleaner = load_diffbir_cleaner(prior, content)
    assert (cleaner.name, cleaner.licence, len(cleaner.weights_sha256)) == (weights.name, weights.licence, 64)
    assert not cleaner.training and not any(parameter.requires_grad for parameter in cleaner.parameters())
    image = blobs(2, 64)[..., :50, :40]
    assert cleaner(image).shape == image.shape
    assert cleaner(image, (70, 33)).shape == (2, 3, 70, 33)
    assert torch.allclose(cleaner(image)[1:], cleaner(image[1:]), atol=1e-6)


@torch.no_grad()
def test_swinir_sees_black_below_and_on_the_right(cache):
    put(SWINIR_FACE, cache)
    cleaner, image = load_cleaner("diffbir-v2"), blobs(1, 128)[..., :70, :64]
    padded = F.pad(image, (0, 0, 0, 58))
    assert torch.equal(cleaner(image), cleaner.net(padded)[..., :70, :])
    assert torch.equal(cleaner(padded), cleaner.net(padded))


@torch.no_grad()
def test_scunet_sees_the_last_row_and_column_repeated(cache):
    put(SCUNET_PSNR, cache)
    image = blobs(1, 64)[..., :60, :64]
    net = load_diffbir_cleaner("diffbir-v2", "noise").net
    assert isinstance(net, ReplicatePadded)
    repeated = torch.cat([image, image[..., -1:, :].expand(-1, -1, 4, -1)], dim=-2)
    assert torch.equal(net(image), net.net(repeated)[..., :60, :])


@torch.no_grad()
def test_bsrnet_sees_the_photo_as_it_is_and_is_resized_after(cache):
    put(BSRNET, cache)
    cleaner, image = load_diffbir_cleaner("diffbir-v2", "photos"), blobs(1, 16)
    large = cleaner.net(image)
    assert large.shape == (1, 3, 64, 64)
    assert torch.equal(cleaner(image, (64, 64)), large)
    assert torch.equal(cleaner(image, (30, 20)), F.interpolate(large, (30, 20), mode="bicubic", antialias=True))


def test_bsrnet_enlarges_twice_or_four_times():
    assert RrdbNet(dataclasses.replace(RRDB, sf=2))(blobs(1, 8)).shape == (1, 3, 16, 16)
    with pytest.raises(ValueError, match="got sf 3, expected 2 or 4"):
        RrdbNet(dataclasses.replace(RRDB, sf=3))


def test_each_missing_unexpected_and_misshapen_tensor_is_named(cache):
    state = dict(put(SWINIR_FACE, cache))
    del state["conv_first.1.bias"], state["layers.0.residual_group.blocks.1.attn_mask"]
    state["conv_last.bias"] = torch.zeros(4)
    torch.save(state | {"conv_up4.weight": torch.zeros(1)}, cache / "weights" / SWINIR_FACE.file)
    with pytest.raises(WeightsError) as error:
        load_cleaner("diffbir-v2.1")
    text = str(error.value)
    assert "\n" not in text and str(cache) in text
    for fault in (
        "missing conv_first.1.bias",
        "missing layers.0.residual_group.blocks.1.attn_mask",
        "unexpected conv_up4.weight",
        "conv_last.bias has shape (4,), expected (3,)",
    ):
        assert fault in text


def test_the_file_may_lie_beside_the_prior_and_mini_has_none(cache):
    assert load_cleaner("mini") is None
    with pytest.raises(WeightsMissingError, match="adapt weights fetch swinir-face"):
        load_cleaner("diffbir-v1")
    put(SWINIR_FACE, cache, "diffbir")
    assert isinstance(load_cleaner("diffbir-v1"), Cleaner)


def test_without_spandrel_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "spandrel.architectures.SwinIR", None)
    with pytest.raises(WeightsError, match=r"pip install 'adapt-restorer\[diffbir\]'"):
        build_swinir(SWINIR)


class Quality(nn.Module):
    """Says that nothing is good; its removal makes everything gray."""

    class Gray(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return torch.full_like(image, 0.5)

    removal = Gray()

    def __init__(self, folder: Path) -> None:
        super().__init__()

    def forward(self, image: Tensor) -> Tensor:
        return torch.full((len(image),), -1e6)


@pytest.mark.parametrize(("stage1", "published"), [("restorer", True), ("removal", True), ("removal", False)])
def test_removal_is_the_published_cleaner_where_there_is_one(stage1, published, monkeypatch):
    monkeypatch.setattr(generate, "load_prior", lambda _: tiny_pixel_prior())
    monkeypatch.setattr(generate, "load_quality", Quality)
    monkeypatch.setattr(generate, "load_identity", lambda _: None)
    seen: list[Tensor] = []
    monkeypatch.setattr(generate, "gate", lambda photos, reference, *_: seen.append(reference) or [])
    recipe = load_recipe("dt_bfr", ("generation.calls=2", f"generation.stage1={stage1}"))
    cleaner = nn.Hardtanh(0, 0.25) if published else None
    plan = WorkerFactory(nn.Identity(), "ffhq512", recipe.generation, recipe.gate, "cpu", cleaner)
    photos = blobs(1)
    plan.target_worker()(TargetTask(("a",), photos, recipe.generation.start_timesteps[0], (1,)))
    expected = {"restorer": photos, "removal": photos.clamp(0, 0.25) if published else torch.full_like(photos, 0.5)}
    assert torch.equal(seen[0], expected[stage1])


def test_a_job_takes_it_says_so_where_it_is_missing_and_refuses_a_damaged_one(cache, capsys):
    options = JobOptions(cache, "adapt", prior="diffbir-v2.1")
    asked = load_recipe("default", ("generation.stage1=removal",))

    def chosen(recipe=asked) -> Cleaner | None:
        return cleaner_of(options, recipe, Narrator())

    assert chosen(load_recipe("default")) is None
    assert capsys.readouterr() == ("", "")
    assert chosen() is None
    output = capsys.readouterr()
    assert "embedded degradation removal" in "".join((output.out + output.err).split("\n")).replace("  ", " ")
    put(SWINIR_FACE, cache)
    assert chosen().name == "swinir-face"
    (cache / "weights" / SWINIR_FACE.file).write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(UsageError, match=r"generation\.stage1 removal: .*face_swinir_v1\.ckpt"):
        chosen()


@torch.no_grad()
def test_the_same_file_is_a_restorer_to_adapt_and_survives_saving(cache):
    put(SWINIR_GENERAL, cache)
    expected = load_diffbir_cleaner("diffbir-v1", "photos").net
    restorer = load_file(cache / "weights" / SWINIR_GENERAL.file)
    image = blobs(1, 128)[..., :64]
    assert (restorer.spec.scale, restorer.spec.multiple_of, restorer.spec.minimum) == (1, 64, 64)
    assert torch.equal(restorer.module(image), expected(image))
    save_restorer(restorer, cache / "saved.safetensors")
    assert torch.equal(load_file(cache / "saved.safetensors").module(image), expected(image))


def test_tiles_see_no_black_border() -> None:
    darkest: list[float] = []
    net = torch.nn.Identity()
    net.register_forward_pre_hook(lambda _, inputs: darkest.append(float(inputs[0].min())))
    cleaner = Cleaner(net, 1, 64, "identity", "MIT", "0" * 64)
    cleaner.tile = 128
    image = torch.full((1, 3, 150, 170), 0.5)
    torch.testing.assert_close(cleaner(image), image)
    assert len(darkest) > 1 and min(darkest) == 0.5


def test_one_for_noise_sees_the_photo_as_it_is(cache):
    put(SCUNET_PSNR, cache)
    cleaner, seen = load_diffbir_cleaner("diffbir-v2", "noise"), []
    cleaner.net.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape[-2:])))
    assert cleaner(blobs(1, 64)[..., :40, :48], (64, 76)).shape[-2:] == (64, 76)
    assert seen == [(40, 48)]
