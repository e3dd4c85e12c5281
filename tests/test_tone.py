"""What a camera adds to the tone is found where photos show it, and nowhere else."""

import pytest
import torch

from pseudo_targets.camera import CameraFit, fit_camera
from pseudo_targets.embedded import load_tone
from pseudo_targets.tone import ToneChange, ToneStatistics, find_tone, tone_of, tone_statistics, with_tone
from tests.tiny import blobs

KNOWN = ToneStatistics(
    mean=torch.tensor([0.5, 0.08, -0.02, -0.36]),
    between=torch.tensor([0.1, 0.03, 0.05, 0.1]),
    cast=torch.tensor([0.03, 0.01]),
)


def gen(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def usual(count: int, seed: int) -> torch.Tensor:
    """Tones of photos whose camera adds nothing."""
    red = 0.03 * torch.randn(count, generator=gen(seed))
    noise = torch.randn(count, 3, generator=gen(seed + 1)) * torch.tensor([0.08, 0.025, 0.13])
    return KNOWN.mean + torch.stack([noise[:, 0], red, noise[:, 1] - 0.5 * red, noise[:, 2]], 1)


def test_images_take_the_tone_they_are_given() -> None:
    images, wanted = blobs(6, 32, 1), usual(6, 2)
    assert torch.allclose(tone_of(with_tone(images, wanted)), wanted, atol=1e-4)
    assert torch.allclose(with_tone(images, tone_of(images)), images, atol=1e-5)


def test_usual_photos_show_no_change() -> None:
    change = find_tone(usual(100, 3), KNOWN, gray=False)
    assert float(change.gain) == 1
    assert not change.offset.any() and not change.root.any()


def test_a_lasting_loss_of_contrast_is_found() -> None:
    clean = usual(100, 4)
    photos = clean.clone()
    photos[:, 0] = 0.6 * clean[:, 0] + 0.2  # 0.6 x + 0.2 leaves a level of 0.5 where it is
    photos[:, 1:3] = 0.6 * clean[:, 1:3]
    photos[:, 3] = clean[:, 3] + torch.tensor(0.6).log()
    change = find_tone(photos, KNOWN, gray=False)
    assert float(change.gain) == pytest.approx(0.6, abs=0.06)  # a little less than seen, as sets differ too
    assert change.offset.tolist() == pytest.approx([0.2] * 3, abs=0.04)


def test_white_balance_that_errs_from_photo_to_photo_is_found() -> None:
    errors = 0.03 * torch.randn(200, 3, generator=gen(5))
    red, green, blue = errors.unbind(1)
    photos = usual(200, 6) + torch.stack([errors.mean(1), red - green, blue - green, torch.zeros(200)], 1)
    change = find_tone(photos, KNOWN, gray=False)
    spread = (change.root @ change.root.T).diagonal().sqrt()
    assert spread.tolist() == pytest.approx([0.03] * 3, rel=0.25)
    assert float(change.gain) == 1 and not change.offset.any()


def test_all_colour_of_gray_photos_is_the_cameras() -> None:
    tint = torch.tensor([0.04, -0.06]) + 0.02 * torch.randn(300, 2, generator=gen(7))
    photos = usual(300, 8)
    photos[:, 1:3] = tint
    change = find_tone(photos, KNOWN, gray=True)
    differences = torch.tensor([[1.0, -1.0, 0.0], [0.0, -1.0, 1.0]])  # red - green, blue - green
    assert torch.allclose(differences @ change.offset, tint.mean(0), atol=1e-6)
    assert float(change.offset.sum()) == pytest.approx(0, abs=1e-6)
    found = differences @ change.root @ change.root.T @ differences.T
    assert torch.allclose(found, torch.cov(tint.T), atol=1e-6)


def test_the_learned_camera_gives_clean_images_its_tone_and_explains_it_once() -> None:
    clean = blobs(24, 32, 1)
    faded = 0.6 * clean + 0.2
    change = ToneChange(torch.tensor(0.6), torch.full((3,), 0.2), 0.02 * torch.eye(3))
    camera = fit_camera(clean, faded, clean, CameraFit(steps=40), seed=0, tone=change)
    seen = camera(clean, gen(0))
    lost = (tone_of(seen) - tone_of(clean))[:, 3].exp().mean()
    assert float(lost) == pytest.approx(0.6, abs=0.03)
    casts = (seen - faded).mean((2, 3))
    assert float(casts.std()) == pytest.approx(0.02, rel=0.4)


def test_statistics_come_from_sets_and_do_without_them() -> None:
    tones = torch.cat([usual(50, seed) + 0.1 * seed for seed in range(4)])
    sets = torch.arange(4).repeat_interleave(50)
    several, single = tone_statistics(tones, sets), tone_statistics(tones, torch.zeros(200))
    assert torch.allclose(several.between, torch.full((4,), 0.129), atol=0.03)
    assert torch.allclose(single.between, tones.std(0))
    assert all(bool(torch.isfinite(value).all()) for value in vars(single).values())


def test_embedded_statistics_are_those_of_faces() -> None:
    known = load_tone()
    assert 0.3 < float(known.mean[0]) < 0.7
    assert 0 < float(known.mean[1]) < 0.2  # skin is redder than green
    assert bool((known.between > 0).all())
