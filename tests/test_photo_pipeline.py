"""The steps of a camera: each does its part, nothing else changes, and the same seed gives the same photo."""

import math

import pytest
import torch

from restorers.photo_pipeline import (
    RANGES,
    VALUES,
    PhotoPipeline,
    changed_pipeline,
    draw_pipeline,
    pipelines_of,
    table_of,
)
from tests.tiny import blobs

NOTHING = {name: span.absent for name, span in RANGES.items()}


def pipeline(**values: float) -> PhotoPipeline:
    return PhotoPipeline(**{**NOTHING, **values})


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_without_any_step_the_photo_is_the_image():
    image = blobs(2, 48)
    torch.testing.assert_close(pipeline()(image, generator()), image)


def test_every_value_has_a_range_and_the_table_keeps_it():
    settings = [draw_pipeline(generator(seed)) for seed in range(40)]
    table = table_of(settings)
    assert table.shape == (40, VALUES) and list(RANGES) == list(vars(settings[0]))
    assert pipelines_of(table) == settings
    for name, span in RANGES.items():
        values = [getattr(setting, name) for setting in settings]
        assert all(value == span.absent or span.low <= value <= span.high for value in values)
        assert len(set(values)) > 3


def test_changed_values_stay_near_and_within_limits():
    setting = pipeline(noise=0.02, zoom=2.0, quality=60.0)
    changed = [changed_pipeline(setting, generator(seed)) for seed in range(60)]
    noise = torch.tensor([one.noise for one in changed])
    assert (noise > 0.01).float().mean() > 0.8 and noise.std() > 1e-3
    for name, span in RANGES.items():
        values = [getattr(one, name) for one in changed]
        assert all(value == span.absent or span.limits[0] <= value <= span.limits[1] for value in values)
    assert sum(one.smear == 0 for one in changed) > 45  # a step that is left out comes back now and then only


@pytest.mark.parametrize("sides", [(33, 50), (64, 64)])
def test_photos_have_the_shape_of_the_image_and_repeat(sides):
    image = blobs(3, 64)[..., : sides[0], : sides[1]]
    for seed in range(12):
        steps = draw_pipeline(generator(seed))
        first, second = steps(image, generator(1)), steps(image, generator(1))
        assert first.shape == image.shape and first.min() >= 0 and first.max() <= 1
        torch.testing.assert_close(first, second, rtol=0, atol=0)


def test_noise_has_its_strength_and_colour_noise_leaves_brightness():
    gray = torch.full((4, 3, 64, 64), 0.5)
    noisy = pipeline(noise=0.02)(gray, generator())
    assert float(noisy.std()) == pytest.approx(0.02, rel=0.05)
    weights = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    colored = pipeline(color_noise=0.05, blotch=2.0)(gray, generator())
    assert float((colored * weights).sum(1).std()) < 1e-4 < 0.02 < float(colored.std())
    rows = pipeline(rows=0.01)(gray, generator())
    assert float(rows.std(3).max()) < 1e-6 and float(rows.mean((1, 3)).std()) == pytest.approx(0.01, rel=0.2)


def test_smear_removes_weak_contrast_and_keeps_edges():
    image = torch.full((1, 3, 32, 32), 0.2)
    image[..., 16:] = 0.8
    noisy = image + 0.02 * torch.randn(image.shape, generator=generator())
    smeared = pipeline(smear=0.1)(noisy.clamp(0, 1), generator())
    assert float((smeared - image).std()) < 0.5 * 0.02
    assert float(smeared[..., 16].mean() - smeared[..., 15].mean()) > 0.55


def test_blur_and_zoom_lose_detail_and_sharpening_adds_contrast():
    image = torch.rand(1, 3, 64, 64, generator=generator())
    detail = float(image.diff(dim=-1).abs().mean())
    for steps in (pipeline(blur=1.0), pipeline(zoom=2.0), pipeline(enlarged=2.0)):
        assert float(steps(image, generator()).diff(dim=-1).abs().mean()) < 0.7 * detail
    soft = 0.4 + 0.2 * image
    sharp = pipeline(sharpening=1.0, radius=1.0)(soft, generator())
    assert float(sharp.std()) > 1.3 * float(soft.std())


def test_motion_blurs_along_its_line_alone():
    image = torch.rand(1, 3, 64, 64, generator=generator())
    across = float(image.diff(dim=-1).abs().mean())
    moved = pipeline(motion=7.0, angle=0.0)(image, generator())
    assert float(moved.diff(dim=-1).abs().mean()) < 0.3 * across
    turned = pipeline(motion=7.0, angle=math.pi / 2)(image, generator())
    torch.testing.assert_close(turned, pipeline(motion=7.0)(image.mT, generator()).mT, atol=1e-5, rtol=0)
    bars = image[..., :1, :].expand_as(image)  # alike in all rows
    torch.testing.assert_close(pipeline(motion=7.0, angle=math.pi / 2)(bars, generator()), bars, atol=1e-5, rtol=0)


def test_noise_that_arises_in_light_is_strong_in_the_dark():
    dark, bright = (torch.full((2, 3, 64, 64), value) for value in (0.2, 0.8))
    deviations = [float(pipeline(noise=0.01, gamma=2.2)(image, generator()).std()) for image in (dark, bright)]
    assert deviations[0] > 2 * deviations[1]
    even = [float(pipeline(noise=0.01)(image, generator()).std()) for image in (dark, bright)]
    assert even[0] == pytest.approx(even[1], rel=0.05)
