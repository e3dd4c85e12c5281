"""The camera found by looking: settings whose photos look like the photos."""

from types import SimpleNamespace

import pytest
import torch

from adapt import camera_stage
from adapt.camera_match import PipelineCamera, Search, match_camera, unlikeness, with_contrast_of
from adapt.photo_statistics import (
    COARSE,
    CONTENT_STATISTICS,
    DIRECTED,
    content_power,
    photo_statistics,
    transfer_and_noise,
)
from adapt.records import read_camera, write_camera
from pseudo_targets.camera import LearnedCamera
from restorers.photo_pipeline import RANGES, PhotoPipeline, table_of
from tests.tiny import blobs

NOTHING = {name: span.absent for name, span in RANGES.items()}
SMALL = Search(settings=160, generations=3)


def textured(count: int, seed: int) -> torch.Tensor:
    """Clean windows with detail at all frequencies, weaker the finer, as natural images have."""
    noise = torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(seed))
    frequency = (torch.fft.fftfreq(64)[:, None] ** 2 + torch.fft.rfftfreq(64)[None] ** 2).sqrt().clamp(min=1 / 64)
    fine = torch.fft.irfft2(torch.fft.rfft2(noise.mean(1, keepdim=True)) / frequency**1.2, s=(64, 64))
    return (0.2 + 0.6 * blobs(count, 64, seed) + 0.004 * fine).clamp(0, 1)


def photographed(clean: torch.Tensor, **values: float) -> torch.Tensor:
    return PhotoPipeline(**{**NOTHING, **values})(clean, torch.Generator().manual_seed(5))


@pytest.mark.parametrize("steps", [{"noise": 0.05}, {"blur": 1.6}], ids=["noisy", "soft"])
def test_found_photos_are_nearer_than_clean_ones(steps):
    photos = photographed(textured(24, 1), **steps)
    bank = textured(24, 2)
    tried: list[int] = []
    camera = match_camera(photos, [str(n // 2) for n in range(24)], bank, SMALL, 3, tried.append)
    seen = camera(bank, torch.Generator().manual_seed(4))
    assert unlikeness(photos, seen) < 0.6 * unlikeness(photos, bank)
    assert tried[-1] == SMALL.total
    truth = transfer_and_noise(textured(24, 1), photos).mean(0)
    found, nothing = (transfer_and_noise(bank, images).mean(0) for images in (seen, bank))
    bands, left = len(COARSE) - 1, len(COARSE) - 1 + 6 * (len(DIRECTED) - 1)
    told = [*range(bands), *range(left, left + bands)]  # transfer by frequency, and what it leaves
    assert (found - truth)[told].abs().mean() < 0.5 * (nothing - truth)[told].abs().mean()


def test_the_same_seed_finds_the_same_camera_and_it_is_read_back(tmp_path):
    photos, bank = photographed(textured(8, 1), noise=0.05), textured(8, 2)
    search = Search(settings=16, generations=2)
    first, second = (match_camera(photos, list("aabbccdd"), bank, search, 3) for _ in range(2))
    torch.testing.assert_close(first.state_dict(), second.state_dict(), rtol=0, atol=0)
    write_camera(tmp_path / "camera.safetensors", first)
    known = read_camera(tmp_path / "camera.safetensors")
    assert isinstance(known, PipelineCamera)
    images = [camera(bank, torch.Generator().manual_seed(1)) for camera in (first, known)]
    torch.testing.assert_close(*images, rtol=0, atol=0)
    write_camera(tmp_path / "pairs.safetensors", LearnedCamera(32))
    assert isinstance(read_camera(tmp_path / "pairs.safetensors"), LearnedCamera)


def test_a_camera_draws_a_setting_for_each_image_by_its_weight():
    camera = PipelineCamera(32, 2)
    dark, noisy = PhotoPipeline(**NOTHING), PhotoPipeline(**{**NOTHING, "noise": 0.05})
    camera.table.copy_(table_of([dark, noisy]))
    camera.weights.copy_(torch.tensor([0.75, 0.25]))
    camera.tone_gain.fill_(0.5)
    clean = torch.full((200, 3, 8, 8), 0.8)
    seen = camera(clean, torch.Generator().manual_seed(0))
    noisy_share = float((seen.std((1, 2, 3)) > 0.02).float().mean())
    assert noisy_share == pytest.approx(0.25, abs=0.08)
    assert float(seen.mean()) == pytest.approx(0.4, abs=0.01)


def test_clean_windows_get_the_contrast_of_the_photos_and_never_more():
    bank = textured(12, 3)
    photos = 0.5 + 0.3 * (textured(20, 4) - 0.5)
    like = with_contrast_of(photos, bank)
    torch.testing.assert_close(like.mean((2, 3)), bank.mean((2, 3)), atol=0.01, rtol=0)
    gap = float(content_power(bank).mean() - content_power(photos).mean())
    assert abs(float(content_power(like).mean() - content_power(photos).mean())) < 0.15 * gap
    torch.testing.assert_close(with_contrast_of((bank * 2 - 0.5).clamp(0, 1), bank), bank)


def test_statistics_tell_blocks_and_noise_and_are_finite_for_flat_windows():
    clean = textured(6, 1)
    coded, noisy = photographed(clean, quality=15.0), photographed(clean, noise=0.05)
    before, blocks, grain = (
        photo_statistics(images)[:, :-CONTENT_STATISTICS].mean(0) for images in (clean, coded, noisy)
    )
    assert float((blocks - before).abs().max()) > 0.5 and float((grain - before).abs().max()) > 0.5
    assert torch.isfinite(photo_statistics(torch.full((2, 3, 64, 64), 0.5))).all()
    assert unlikeness(clean, clean) == 0


@pytest.mark.parametrize(
    ("form", "known", "unlike", "taken"),
    [
        ("auto", False, (0.6, 1.0), "pipeline"),
        ("auto", False, (0.6, 0.5), "pairs"),
        ("auto", False, (1.3, 1.5), "pairs"),  # nearer than pairs, but not near
        ("auto", True, (), "pairs"),
        ("pairs", False, (), "pairs"),
        ("pipeline", True, (), "pipeline"),
    ],
)
def test_auto_takes_the_form_whose_photos_look_like_the_photos(monkeypatch, form, known, unlike, taken):
    cameras = {"pairs": LearnedCamera(32), "pipeline": PipelineCamera(32, 1)}
    cameras["pipeline"].table.copy_(table_of([PhotoPipeline(**NOTHING)]))
    found, said = iter(unlike), []
    monkeypatch.setattr(camera_stage, "_fit_on_pairs", lambda *_: cameras["pairs"])
    monkeypatch.setattr(camera_stage, "_look_for", lambda *_: cameras["pipeline"])
    monkeypatch.setattr(camera_stage, "unlikeness", lambda photos, seen: next(found))
    recipe = SimpleNamespace(camera=SimpleNamespace(form=form), seed=0)
    job = SimpleNamespace(recipe=recipe, device=torch.device("cpu"), narrator=SimpleNamespace(say=said.append))
    images = (textured(4, 1)[..., :32, :32],) * 3
    assert camera_stage._learned(job, 1, list("aabb"), images, None, known) is cameras[taken]
    assert bool(said) == bool(unlike) and all(taken in line.split(";")[0] for line in said)
