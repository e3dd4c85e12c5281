"""DT-BFR's released sampler: its path, its window, its noise, and what the pixel prior's network refuses."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from pseudo_targets.checkpoints import CheckpointError
from pseudo_targets.consistency import NoisyLowPassReplacement
from pseudo_targets.downloads import FFHQ512, WeightsError, WeightsMissingError, weights_path
from pseudo_targets.dt_bfr import ReleasedPath, noise_from, released_path, released_pseudo_target
from pseudo_targets.filters import BlockMean, CubicLowPass
from pseudo_targets.iddpm import IddpmShape, IddpmUNet, timestep_features
from pseudo_targets.pixel_prior import ffhq512_schedule, load_ffhq512
from pseudo_targets.schedule import ScheduleError, respace, respacing
from pseudo_targets.zoo import load_prior
from tests.tiny import blobs, tiny_patch_prior, tiny_pixel_prior


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def test_released_settings_are_position_150_and_90_of_250() -> None:
    schedule = ffhq512_schedule()
    path = released_path(schedule, 602, 150, CubicLowPass(16), 361)
    assert path.chain.timesteps == respacing(1000, "250")
    assert (path.start, path.stop) == (150, 0)
    assert path.swap is not None
    assert (path.chain.index(path.swap.start), path.chain.index(path.swap.end)) == (150, 90)


@pytest.mark.parametrize(("start", "calls"), [(602, 12), (999, 999), (100, 100), (300, 1)])
def test_the_path_has_as_many_calls_as_asked_for_and_starts_near_where_asked(start: int, calls: int) -> None:
    path = released_path(ffhq512_schedule(), start, calls, None, 0)
    assert path.start == calls and path.swap is None
    assert abs(path.chain.timesteps[path.start] - start) <= max(1, start / calls / 2)


@pytest.mark.parametrize(("start", "calls"), [(10, 11), (1000, 5), (0, 1)])
def test_paths_that_cannot_be_are_refused(start: int, calls: int) -> None:
    with pytest.raises(ScheduleError):
        released_path(ffhq512_schedule(), start, calls, None, 0)
    with pytest.raises(ScheduleError):
        ReleasedPath(respace(ffhq512_schedule(), (0, 5)), 2, None)


def test_pseudo_targets_do_not_depend_on_the_batch() -> None:
    prior, image = tiny_pixel_prior(), blobs(3)
    path = released_path(prior.schedule, 400, 5, BlockMean(4), 100)
    together = released_pseudo_target(prior, image, path, noise_from(generators(1, 2, 3)))
    alone = released_pseudo_target(prior, image[1:2], path, noise_from(generators(2)))
    assert together.shape == image.shape and together.min() >= 0 and together.max() <= 1
    torch.testing.assert_close(together[1:2], alone, atol=1e-4, rtol=0)


def test_swap_to_the_last_step_hands_over_the_low_band() -> None:
    """With a noise-free reference at the level just reached, the band of the last input is known exactly."""
    prior, image, seen = tiny_pixel_prior(), blobs(1), []
    chain = respace(prior.schedule, (0, 100, 200, 300))
    path = ReleasedPath(chain, 3, NoisyLowPassReplacement(BlockMean(4), prior.schedule, 300, 0))

    def recorded(x: Tensor, timestep: Tensor) -> Tensor:
        seen.append(x)
        return torch.zeros(1, 6, 32, 32)

    prior.unet.forward = recorded
    released_pseudo_target(prior, image, path, torch.zeros_like)
    low = BlockMean(4)
    for x, timestep in zip(seen[1:], (100, 0), strict=True):
        expected = prior.schedule.level(timestep).sqrt().float() * prior.encode(image)
        torch.testing.assert_close(low(x), low(expected), atol=1e-5, rtol=0)


def test_other_sizes_are_brought_to_the_prior_and_back() -> None:
    prior = tiny_pixel_prior()
    path = released_path(prior.schedule, 300, 3, CubicLowPass(8), 100)
    assert released_pseudo_target(prior, blobs(1, 40), path, noise_from(generators(1))).shape == (1, 3, 40, 40)


def test_a_latent_prior_takes_the_same_path_with_its_own_variance() -> None:
    prior, image = tiny_patch_prior(), blobs(2)
    path = released_path(prior.schedule, 400, 4, BlockMean(2), 200)
    free = released_pseudo_target(prior, image, path, noise_from(generators(1, 2)))
    steered = released_pseudo_target(prior, image, path, noise_from(generators(1, 2)), strength=1.0)
    assert free.shape == image.shape
    assert (free - steered).abs().max() > 1e-4


def test_timestep_features_are_cosines_then_sines() -> None:
    features = timestep_features(torch.tensor([0, 7]), 8)
    angles = 7 * torch.tensor([1.0, 0.1, 0.01, 0.001])
    torch.testing.assert_close(features[1], torch.cat([angles.cos(), angles.sin()]))
    assert features[0].tolist() == [1.0] * 4 + [0.0] * 4


def test_shapes_that_cannot_be_are_refused() -> None:
    for wrong in ({"blocks": (1, 2)}, {"width": 30}, {"head_channels": 60}):
        with pytest.raises(ValueError, match=r"expected|divide"):
            IddpmShape(**wrong)
    with pytest.raises(ValueError, match="multiples of 2"):
        tiny_pixel_prior().unet(torch.zeros(1, 3, 31, 32), torch.tensor([1]))


def test_missing_weights_say_where_they_come_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPT_CACHE", str(tmp_path))
    with pytest.raises(WeightsMissingError, match="adapt weights fetch ffhq512"):
        weights_path(FFHQ512)
    with pytest.raises(WeightsError, match=f"adapt weights import {FFHQ512.file}"):
        load_prior("ffhq512")


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(IddpmUNet(IddpmShape(32, 32, (1, 1), (1, 2), (16,), 16)).state_dict(), path)
    with pytest.raises(CheckpointError, match=r"missing input_blocks\.5\.0\.op\.weight"):
        load_ffhq512(path)
