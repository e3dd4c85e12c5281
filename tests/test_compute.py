"""Precision, memory order, compilation and offload of a prior, as far as a CPU shows them."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from diffusers.models.attention_processor import AttnProcessor2_0
from torch import Tensor, nn

from adapt.prior_setup import compute_of, placed
from pseudo_targets.compute import Compute, autoencoder_of, denoisers, prepare
from pseudo_targets.latents import TiledLatents
from pseudo_targets.offload import OneAtATime, groups_of
from pseudo_targets.priors import Condition, LatentPrior
from pseudo_targets.sampling import Trajectory, refine
from recipes.schema import Compute as ComputeSettings
from recipes.schema import Generation, Tiles
from tests.diffbir_files import TINY, tiny_diffbir
from tests.tiny import blobs, tiny_patch_prior, tiny_pixel_prior

CPU = torch.device("cpu")


def refined(prior: LatentPrior) -> Tensor:
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    return refine(prior, blobs(2, TINY.resolution), Trajectory(400, 3), (), generators)


def test_attention_is_torch_own() -> None:
    prior = tiny_diffbir()
    for network in denoisers(prior):
        assert {type(processor) for processor in network.attn_processors.values()} == {AttnProcessor2_0}


def test_the_defaults_change_nothing() -> None:
    before, prior = refined(tiny_diffbir()), tiny_diffbir()
    assert compute_of(ComputeSettings(), CPU) == Compute()
    found, cleaner = placed(prior, None, Generation(), CPU)
    assert found is prior and cleaner is None
    assert torch.equal(refined(prior), before)


def test_bf16_is_near_and_what_enters_and_leaves_is_float32() -> None:
    expected = refined(tiny_diffbir())
    prior = prepare(tiny_diffbir(), Compute(torch.bfloat16, torch.bfloat16))
    for network in denoisers(prior):
        assert {parameter.dtype for parameter in network.parameters()} == {torch.bfloat16}
    latent = prior.encode(blobs(1, 16))
    x0 = prior.denoise(latent, torch.tensor([500]), Condition(latent))
    assert latent.dtype == x0.dtype == prior.decode(x0).dtype == torch.float32
    found = refined(prior)
    assert 0 < float((found - expected).abs().max()) < 0.05


def test_the_ends_of_the_autoencoder_keep_full_precision() -> None:
    prior = prepare(tiny_diffbir(), Compute(decoder=torch.bfloat16))
    autoencoder = autoencoder_of(prior)
    decoder = {name: p.dtype for name, p in autoencoder.decoder.named_parameters()}
    full = {name for name, dtype in decoder.items() if dtype == torch.float32}
    assert full == {f"{part}.{name}" for part in ("conv_norm_out", "conv_out") for name in ("weight", "bias")}
    assert {p.dtype for p in autoencoder.encoder.parameters()} == {torch.float32}
    latent = prior.encode(blobs(1, 16)).requires_grad_()
    picture = prior.decode(latent)
    torch.testing.assert_close(picture, tiny_diffbir().decode(latent), rtol=0, atol=0.02)
    # More values than bf16 has between 0.25 and 0.5, so the last layer was not rounded.
    assert len(picture.unique()) > 256
    assert torch.autograd.grad(picture.sum(), latent)[0].dtype == torch.float32


def test_channels_last_gives_the_same() -> None:
    expected = refined(tiny_diffbir())
    prior = prepare(tiny_diffbir(), Compute(channels_last=True))
    weight = prior.unet.down_blocks[0].resnets[0].conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert autoencoder_of(prior).decoder.conv_in.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(refined(prior), expected, rtol=1e-3, atol=1e-4)


def test_compiled_denoisers_are_called_in_place_of_the_plain_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[str] = []

    def pretend(function, **_):
        def compiled(*args, **kwargs):
            called.append(type(function.__self__).__name__)
            return function(*args, **kwargs)

        return compiled

    monkeypatch.setattr(torch, "compile", pretend)
    expected, prior = refined(tiny_diffbir()), prepare(tiny_diffbir(), Compute(compiled=True))
    assert torch.equal(refined(prior), expected)
    assert called == ["ControlNetModel", "UNet2DConditionModel"] * 3


@pytest.mark.parametrize(("gpu", "bf16"), [(False, True), (True, True), (True, False)])
def test_auto_is_fast_on_a_gpu_and_exact_on_a_cpu(gpu: bool, bf16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16)
    found = compute_of(ComputeSettings(), SimpleNamespace(type="cuda" if gpu else "cpu"))
    expected = torch.bfloat16 if gpu and bf16 else torch.float32
    assert found == Compute(expected, expected, channels_last=gpu)
    asked = ComputeSettings(precision="bf16", decoder="fp32", channels_last="yes", compile=True)
    assert compute_of(asked, CPU) == Compute(torch.bfloat16, torch.float32, True, True)


class Record:
    """Stands for two devices and knows what is on which."""

    def __init__(self) -> None:
        self.there: set[int] = set()
        self.most = 0

    def __call__(self, network: nn.Module, device: torch.device) -> None:
        (self.there.discard if device.type == "cpu" else self.there.add)(id(network))
        self.most = max(self.most, len(self.there))


def test_only_the_group_in_use_is_on_the_device() -> None:
    prior, record = tiny_diffbir(), Record()
    groups = groups_of(prior)
    cleaner = nn.Identity()
    shelf = OneAtATime({**groups, "stage1": [cleaner]}, torch.device("meta"), record)
    held = {id(p) for networks in groups.values() for network in networks for p in network.parameters()}
    assert held == {id(p) for p in prior.parameters()}
    visited = []

    def at(name: str) -> None:
        visited.append(shelf.here)
        assert record.there == {id(network) for network in (*groups.get(name, ()), *([cleaner] * (name == "stage1")))}

    image = cleaner(blobs(1, 16))
    at("stage1")
    latent = prior.encode(image)
    at("codec")
    prior.denoise(latent, torch.tensor([9]), Condition(latent))
    at("denoiser")
    prior.decode(latent)
    at("codec")
    shelf.bring(None)
    assert visited == ["stage1", "codec", "denoiser", "codec"] and not record.there
    assert record.most == max(len(networks) for networks in groups.values())


def test_offload_changes_no_result_and_leaves_the_job_its_cleaner() -> None:
    expected, prior = refined(tiny_diffbir()), tiny_diffbir()
    cleaner = nn.Conv2d(3, 3, 1)
    found, own = placed(prior, cleaner, Generation(compute=ComputeSettings(offload=True)), CPU)
    assert torch.equal(refined(found), expected)
    assert own is not cleaner and not cleaner._forward_pre_hooks
    assert torch.equal(own(blobs(1)), cleaner(blobs(1)))


def test_tiles_of_the_recipe_reach_the_autoencoder_and_other_priors_have_none() -> None:
    settings = Generation(tiles=Tiles(encode=128, decode=256))
    prior, _ = placed(tiny_diffbir(), None, settings, CPU)
    assert isinstance(prior.codec, TiledLatents)
    assert (prior.codec.tiles.encode, prior.codec.tiles.decode) == (128, 256)
    assert autoencoder_of(prior) is prior.codec.codec.autoencoder
    for other in (tiny_patch_prior(), tiny_pixel_prior()):
        assert placed(other, None, settings, CPU)[0] is other
    assert autoencoder_of(tiny_patch_prior()) is None
    assert set(groups_of(tiny_patch_prior())) == {"denoiser"}
