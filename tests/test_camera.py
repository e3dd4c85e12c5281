"""The learned camera recovers a known camera, and its parts do what their formulas say."""

import pytest
import torch

from pseudo_targets.bank import has_color
from pseudo_targets.camera import CameraFit, LearnedCamera, fit_camera
from pseudo_targets.spectrum import power_spectrum
from tests.tiny import blobs


def gen(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def detailed(count: int, seed: int) -> torch.Tensor:
    texture = torch.randn(count, 3, 32, 32, generator=gen(seed + 100)) * 0.1
    return (blobs(count, 32, seed) + texture).clamp(0, 1)


def true_camera(clean: torch.Tensor, seed: int) -> torch.Tensor:
    blurred = torch.nn.functional.avg_pool2d(torch.nn.functional.pad(clean, (1,) * 4, mode="reflect"), 3, 1)
    return (0.8 * blurred + 0.05 + 0.03 * torch.randn(clean.shape, generator=gen(seed))).clamp(0, 1)


@pytest.fixture(scope="module")
def fitted() -> LearnedCamera:
    clean = detailed(24, 1)
    return fit_camera(clean, true_camera(clean, 2), detailed(24, 3), CameraFit(steps=150), seed=0)


def test_mean_response_approaches_the_true_one(fitted: LearnedCamera) -> None:
    clean = detailed(8, 7)
    noiseless = torch.stack([true_camera(clean, seed) for seed in range(40)]).mean(0)
    error = (fitted.mean(clean) - noiseless).square().mean().sqrt()
    identity = (clean - noiseless).square().mean().sqrt()
    assert error < 0.4 * identity


def test_noise_strength_is_recovered(fitted: LearnedCamera) -> None:
    clean = detailed(8, 9)
    mean = fitted.mean(clean)
    assert float(fitted.noise(mean, gen(1)).std()) == pytest.approx(0.03, rel=0.35)


def test_samples_repeat_by_seed_and_stay_in_range(fitted: LearnedCamera) -> None:
    clean = detailed(2, 5)
    first = fitted(clean, gen(3))
    assert torch.equal(first, fitted(clean, gen(3)))
    assert not torch.equal(first, fitted(clean, gen(4)))
    assert first.min() >= 0 and first.max() <= 1


def test_spectrum_match_finds_blur_that_the_pairs_do_not_show() -> None:
    clean = detailed(24, 1)
    blurred = torch.nn.functional.avg_pool2d(torch.nn.functional.pad(clean, (1,) * 4, mode="reflect"), 3, 1)
    bank = detailed(24, 3)
    # The "restored" clean side still has the blur, so pairs alone say that the camera does nothing.
    blind = fit_camera(blurred, blurred, bank, CameraFit(steps=30, spectrum_match=False), seed=0)
    matched = fit_camera(blurred, blurred, bank, CameraFit(steps=30), seed=0)
    wanted = power_spectrum(blurred)[8:24, 8:].mean()
    distance = {
        name: abs(float(power_spectrum(camera(bank, gen(0)))[8:24, 8:].mean() / wanted) - 1)
        for name, camera in (("blind", blind), ("matched", matched))
    }
    assert distance["matched"] < 0.35 * distance["blind"]


def test_a_difference_between_two_sets_of_faces_is_taken_for_neither_blur_nor_noise() -> None:
    clean = detailed(24, 1)
    photos = (clean + 0.005 * torch.randn(clean.shape, generator=gen(0))).clamp(0, 1)
    camera = fit_camera(clean, photos, detailed(24, 3), CameraFit(steps=5), seed=0)
    assert float((camera.noise_gain > 1.5).float().mean()) < 0.05
    assert float((camera.blur_gain < 0.95).float().mean()) < 0.05


def test_untoned_undoes_the_expected_tone() -> None:
    camera = LearnedCamera(32)
    camera.tone_gain.fill_(0.6)
    camera.tone_offset.copy_(torch.tensor([0.2, 0.15, 0.1]))
    clean = detailed(2, 3)
    torch.testing.assert_close(camera.untoned(camera.toned(clean)), clean)
    assert camera.untoned(torch.full((1, 3, 32, 32), 0.95)).max() == 1


def test_strength_is_linear_between_brightness_levels() -> None:
    camera = LearnedCamera(32)
    camera.sigma.copy_(torch.linspace(0.0, 0.7, 8)[:, None].expand(3, -1, 6))
    middle = torch.full((1, 3, 32, 32), 0.5)  # halfway between the centres of levels 3 and 4
    assert float(camera.strength(middle).mean()) == pytest.approx(0.35, abs=1e-3)


def test_what_smooths_flat_areas_is_calm_there_and_not_at_detail() -> None:
    generator = gen(3)
    flat = torch.full((24, 3, 64, 64), 0.5)
    busy = (flat + 0.2 * torch.randn(flat.shape, generator=generator)).clamp(0, 1)
    clean = torch.cat([flat, busy])
    noise = torch.randn(clean.shape, generator=generator)
    photos = clean + noise * torch.tensor([0.01] * 24 + [0.06] * 24).view(-1, 1, 1, 1)
    camera = fit_camera(clean, photos, clean, CameraFit(steps=60, spectrum_match=False), seed=0)
    calm, wild = (float(camera.noise(part, gen(4)).std()) for part in (flat, busy))
    assert calm == pytest.approx(0.01, rel=0.1) and wild == pytest.approx(0.06, rel=0.15)


def test_gray_photos_have_a_singular_spectrum_and_give_gray_noise() -> None:
    clean = detailed(16, 1).mean(1, keepdim=True).expand(-1, 3, -1, -1).contiguous()
    grain = 0.05 * torch.randn(16, 1, 32, 32, generator=gen(0))
    camera = fit_camera(clean, (clean + grain).clamp(0, 1), clean, CameraFit(steps=60), seed=0)
    white = torch.fft.rfft2(torch.randn(1, 3, 32, 32))
    unit = torch.einsum("hwij,bjhw->bihw", torch.view_as_complex(camera.noise_root), white)
    red, green = torch.fft.irfft2(unit)[0, :2]
    assert torch.corrcoef(torch.stack([red.flatten(), green.flatten()]))[0, 1] > 0.98


def test_colour_is_told_from_a_tint_and_from_colour_noise() -> None:
    colour = blobs(6, 64, 2)
    gray = colour.mean(1, keepdim=True).expand(-1, 3, -1, -1)
    sepia = gray ** torch.tensor([0.8, 1.0, 1.3]).view(1, 3, 1, 1)
    noisy = gray + 0.1 * torch.randn(colour.shape, generator=gen(0))
    assert has_color(torch.cat([colour, gray, sepia, noisy])).tolist() == [True] * 6 + [False] * 18


@pytest.mark.parametrize("size", [(32, 32), (64, 48), (24, 40), (33, 31)])
def test_a_camera_photographs_images_of_any_size_alike(size: tuple[int, int]) -> None:
    grain = torch.randn(300, 3, 34, 34, generator=gen(0))
    grain = 0.1 * torch.nn.functional.avg_pool2d(grain, 3, 1)  # neighbours agree
    clean = torch.full((300, 3, 32, 32), 0.5)
    camera = fit_camera(clean, clean + grain, clean, CameraFit(steps=1, spectrum_match=False), seed=0)
    noise = camera.noise(torch.full((64, 3, *size), 0.5), gen(1))
    assert float(noise.std()) == pytest.approx(float(grain.std()), rel=0.05)
    beside = float((noise[..., 1:] * noise[..., :-1]).mean() / noise.var())
    assert beside == pytest.approx(2 / 3, abs=0.05)


def test_a_blur_is_the_same_for_images_of_any_size() -> None:
    camera = LearnedCamera(32)
    rows, columns = torch.fft.fftfreq(32)[:, None], torch.fft.rfftfreq(32)
    camera.blur_gain.copy_(torch.exp(-20 * (rows**2 + columns**2)))
    small = detailed(1, 4)
    large = torch.nn.functional.pad(small, (16, 16, 24, 24), mode="reflect")
    inner = camera.mean(large)[..., 24:56, 16:48]
    torch.testing.assert_close(inner[..., 8:24, 8:24], camera.mean(small)[..., 8:24, 8:24], atol=2e-3, rtol=0)


def test_content_that_is_coarser_is_not_taken_for_blur() -> None:
    def clouds(count: int, seed: int, exponent: float) -> torch.Tensor:
        white = torch.randn(count, 3, 128, 128, generator=gen(seed))
        rows, columns = torch.fft.fftfreq(128)[:, None], torch.fft.rfftfreq(128)
        distance = (rows**2 + columns**2).sqrt()
        # Both fall alike beyond the coarse band; below it one has much more power.
        fall = (distance + 0.02) ** -1.5 * torch.where(distance < 0.03, exponent, 1.0)
        image = torch.fft.irfft2(torch.fft.rfft2(white) * fall, s=(128, 128))
        return 0.5 + 0.12 * image / image.std((1, 2, 3), keepdim=True)

    coarse, fine = clouds(24, 0, 3.0), clouds(24, 1, 1.0)
    camera = fit_camera(coarse, coarse, fine, CameraFit(steps=1), seed=0)
    assert float(camera.blur_gain.mean()) > 0.93
