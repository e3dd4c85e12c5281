"""What each consistency promises: exact bands, windows, gradients, colours."""

import pytest
import torch
from torch import Tensor

from pseudo_targets.color_fix import adain_color_fix, binomial_blur, wavelet_color_fix, wavelet_split
from pseudo_targets.consistency import (
    ConsistencyError,
    LowPassReplacement,
    NoisyLowPassReplacement,
    Reference,
    RestorationGuidance,
    detail_weight,
    guidance_loss,
)
from pseudo_targets.filters import BlockMean, CubicLowPass, FilterError
from pseudo_targets.latents import fit_patch_latents
from pseudo_targets.resize import pad_to_multiple, resample_matrix, resize_cubic, resize_short_edge
from pseudo_targets.schedule import NoiseSchedule, respace, scaled_linear_betas


def picture(seed: int, batch: int = 2, side: int = 32, channels: int = 3) -> Tensor:
    """Values k / 256, so that sums over power-of-two blocks are exact in float32."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 257, (batch, channels, side, side), generator=generator) / 256


def reference_of(image: Tensor) -> Reference:
    return Reference(latent=image, image=image)


def schedule() -> NoiseSchedule:
    return NoiseSchedule.from_betas(scaled_linear_betas(), "epsilon")


@pytest.mark.parametrize("factor", [1, 2, 4, 8, 16])
def test_block_mean_is_idempotent(factor: int) -> None:
    low_pass, x = BlockMean(factor), picture(0)
    assert torch.equal(low_pass(low_pass(x)), low_pass(x))


@pytest.mark.parametrize("factor", [1, 2, 4, 8, 16])
def test_replacement_gives_exactly_the_low_band_of_the_reference(factor: int) -> None:
    low_pass, x, reference = BlockMean(factor), picture(0), picture(1)
    result = LowPassReplacement(low_pass, start=999, end=0)(x, reference_of(reference), 500)
    assert torch.equal(low_pass(result), low_pass(reference))
    assert torch.equal(result - low_pass(result), x - low_pass(x))


def test_block_mean_of_any_size() -> None:
    x = torch.rand(1, 2, 13, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    low = BlockMean(4)(x)
    assert low.shape == x.shape
    torch.testing.assert_close(BlockMean(4)(low), low)
    torch.testing.assert_close(low[..., 12:, 8:], x[..., 12:, 8:].mean(dim=(-2, -1), keepdim=True).expand(1, 2, 1, 2))


def test_replacement_in_a_patch_latent_holds_the_band_of_the_image() -> None:
    """A block mean commutes with a full patch transform, so the decoded patches agree on average."""
    latents = fit_patch_latents(picture(2, batch=8), patch=4, channels=48)
    x, reference = picture(0), picture(1)
    replace = LowPassReplacement(BlockMean(2), start=999, end=0)
    corrected = latents.decode(replace(latents.encode(x), Reference(latents.encode(reference), reference), 10))
    by_patch = torch.nn.functional.pixel_unshuffle
    torch.testing.assert_close(
        BlockMean(2)(by_patch(corrected, 4)), BlockMean(2)(by_patch(reference, 4)), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(BlockMean(8)(corrected), BlockMean(8)(reference), atol=1e-5, rtol=0)


@pytest.mark.parametrize("factor", [2, 3, 8])
def test_cubic_low_pass_keeps_constants_and_is_no_projection(factor: int) -> None:
    low_pass, x = CubicLowPass(factor), picture(0, side=24)
    flat = torch.full((1, 3, 24, 24), 0.37)
    torch.testing.assert_close(low_pass(flat), flat)
    assert float((low_pass(low_pass(x)) - low_pass(x)).abs().max()) > 1e-3


def test_cubic_resizing_is_exact_on_lines_inside() -> None:
    ramp = torch.arange(32, dtype=torch.float64).expand(1, 1, 8, 32)
    up = resize_cubic(ramp, 8, 64)
    expected = (torch.arange(64, dtype=torch.float64) + 0.5) / 2 - 0.5
    torch.testing.assert_close(up[0, 0, 4, 8:-8], expected[8:-8])


def test_resizing_keeps_constants_at_any_size() -> None:
    for source, target in ((7, 3), (3, 7), (32, 4), (5, 5), (1, 4), (4, 1)):
        for border in ("mirror", "fold"):
            matrix = resample_matrix(source, target, border)
            torch.testing.assert_close(matrix.sum(dim=1), torch.ones(target, dtype=torch.float64))
    torch.testing.assert_close(resample_matrix(6, 6), torch.eye(6, dtype=torch.float64))


def test_short_edge_and_padding() -> None:
    image = picture(0)[..., :20, :]
    assert resize_short_edge(image, 40).shape == (2, 3, 40, 64)
    padded = pad_to_multiple(image, 16)
    assert padded.shape == (2, 3, 32, 32)
    assert torch.equal(padded[..., :20, :], image)
    assert float(padded[..., 20:, :].abs().max()) == 0


def test_noisy_replacement_holds_the_noised_reference() -> None:
    levels, low_pass = schedule(), BlockMean(4)
    x, reference = picture(0), picture(1)
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(3))
    replace = NoisyLowPassReplacement(low_pass, levels, start=600, end=300)
    result = replace(x, reference_of(reference), 420, noise)
    torch.testing.assert_close(low_pass(result), low_pass(levels.q_sample(reference, 420, noise)), atol=1e-6, rtol=0)
    clean = replace(x, reference_of(reference), -1, noise)
    torch.testing.assert_close(low_pass(clean), low_pass(reference), atol=1e-6, rtol=0)


@pytest.mark.parametrize("noisy", [False, True])
def test_replacement_window(noisy: bool) -> None:
    arguments = (BlockMean(2), schedule()) if noisy else (BlockMean(2),)
    kind = NoisyLowPassReplacement if noisy else LowPassReplacement
    replace = kind(*arguments, start=602, end=361)
    assert [t for t in (0, 360, 361, 500, 602, 603) if replace.active(t)] == [361, 500, 602]
    with pytest.raises(ConsistencyError, match="counts down"):
        kind(*arguments, start=100, end=200)


def test_weight_is_one_where_flat_and_small_at_edges() -> None:
    image = torch.zeros(1, 3, 16, 16)
    image[..., 8:] = 1
    weight = detail_weight(image)
    assert weight.shape == (1, 1, 16, 16)
    torch.testing.assert_close(weight[..., :6], torch.ones(1, 1, 16, 6))
    assert float(weight[..., 7:9].max()) < 1e-3
    blocks = weight.reshape(1, 1, 8, 2, 8, 2)
    assert torch.equal(blocks.amax(dim=(3, 5)), blocks.amin(dim=(3, 5)))
    assert detail_weight(picture(0)[..., :13, :11]).shape == (2, 1, 13, 11)


@pytest.mark.parametrize("space", ["rgb", "latent"])
@pytest.mark.parametrize("loss", ["mse", "wmse"])
def test_guidance_matches_the_closed_form(space: str, loss: str) -> None:
    """For a linear decoder D the shift is -6000 s D^T(w (2 D(z) - 2 y)) 2 / n, and in latent space without D."""
    latents = fit_patch_latents(picture(2, batch=8), patch=4, channels=12)
    image = picture(1) / 4 + 0.3  # mild edges, so that the weights differ
    z, reference = latents.encode(picture(0)), Reference(latents.encode(image), image)
    guidance = RestorationGuidance(latents.decode, 0.5, space, loss)
    weight = detail_weight(image) if loss == "wmse" else torch.ones(2, 1, 32, 32)
    if space == "latent":
        weight = torch.nn.functional.avg_pool2d(weight, 4)
        expected = -1500 * 2 * weight * (z - reference.latent) / z[0].numel()
    else:
        error = weight * (2 * latents.decode(z) - 2 * image)
        back = torch.nn.functional.pixel_unshuffle(error, 4)
        expected = -1500 * 2 * torch.einsum("ck,bkhw->bchw", latents.basis, back) / latents.scaling / image[0].numel()
    shift = guidance.shift(z, reference)
    torch.testing.assert_close(shift, expected, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(guidance(z, reference, 500), z + shift)
    assert not shift.requires_grad


def test_guidance_lowers_its_loss_and_repeats() -> None:
    latents = fit_patch_latents(picture(2, batch=8), patch=4, channels=12)
    image = picture(1)
    z, reference = latents.encode(picture(0)), Reference(latents.encode(image), image)

    def loss(x0: Tensor) -> float:
        return float(guidance_loss(latents.decode(x0), image))

    once = RestorationGuidance(latents.decode, 0.2, "rgb", "mse")
    twice = RestorationGuidance(latents.decode, 0.2, "rgb", "mse", repeat=2)
    after = once(z, reference, 10)
    assert loss(after) < loss(z)
    torch.testing.assert_close(twice(z, reference, 10), once(after, reference, 10))


def test_guidance_does_not_depend_on_how_many_are_decoded_at_once() -> None:
    latents = fit_patch_latents(picture(2, batch=8), patch=4, channels=12)
    image = picture(1, batch=5)
    z, reference = latents.encode(picture(0, batch=5)), Reference(latents.encode(image), image)
    one = RestorationGuidance(latents.decode, 0.5).shift(z, reference)
    for at_once in (2, 5, 9):
        several = RestorationGuidance(latents.decode, 0.5, at_once=at_once).shift(z, reference)
        torch.testing.assert_close(several, one)


def test_guidance_moves_the_posterior_mean_by_the_shift() -> None:
    chain = respace(schedule(), (0, 300, 600))
    x0, reference, x_t = picture(0), reference_of(picture(1)), picture(2)
    guidance = RestorationGuidance(lambda x: x, 0.5, "latent", "mse", chain=chain)
    zero = torch.zeros_like(x0)
    before = chain.posterior_step(x0, x_t, 1, zero)
    after = chain.posterior_step(guidance(x0, reference, 300), x_t, 1, zero)
    torch.testing.assert_close(after - before, guidance.shift(x0, reference), atol=1e-6, rtol=1e-4)


def test_guidance_works_under_no_grad_and_refuses_inference_mode() -> None:
    x0, reference = picture(0), reference_of(picture(1))
    guidance = RestorationGuidance(lambda x: x, 0.5)
    with torch.no_grad():
        assert not torch.equal(guidance(x0, reference, 5), x0)
    with torch.inference_mode(), pytest.raises(ConsistencyError, match="inference_mode"):
        guidance(x0, reference, 5)


def test_guidance_window_and_settings() -> None:
    guidance = RestorationGuidance(lambda x: x, 0.5, start=800, stop=200)
    assert [t for t in (0, 199, 200, 500, 798, 799) if guidance.active(t)] == [200, 500, 798]
    assert not RestorationGuidance(lambda x: x, 0.0).active(500)
    for wrong in ({"space": "pixels"}, {"loss": "l1"}, {"repeat": 0}, {"at_once": 0}):
        with pytest.raises(ConsistencyError):
            RestorationGuidance(lambda x: x, 0.5, **wrong)
    with pytest.raises(ConsistencyError):
        RestorationGuidance(lambda x: x, -1.0)
    for kind in (BlockMean, CubicLowPass):
        with pytest.raises(FilterError):
            kind(0)


def test_wavelet_bands_add_up() -> None:
    image = picture(0)
    high, low = wavelet_split(image)
    torch.testing.assert_close(high + low, image)
    torch.testing.assert_close(binomial_blur(torch.full((1, 3, 5, 5), 0.25), 4), torch.full((1, 3, 5, 5), 0.25))
    torch.testing.assert_close(wavelet_color_fix(image, image), image)


def test_wavelet_fix_takes_the_cast_of_the_style() -> None:
    image = picture(0)
    torch.testing.assert_close(wavelet_color_fix(image + 0.2, image), image)


def test_adain_takes_mean_and_deviation_of_the_style() -> None:
    content, style = picture(0), picture(1) * 0.3 + 0.1
    fixed = adain_color_fix(content, style)
    torch.testing.assert_close(fixed.mean(dim=(-2, -1)), style.mean(dim=(-2, -1)))
    torch.testing.assert_close(fixed.std(dim=(-2, -1)), style.std(dim=(-2, -1)), atol=1e-3, rtol=0)
