"""Fusion against what it stands for: the linear estimate of a latent from two noisy looks at it."""

import pytest
import torch

from pseudo_targets.embedded import mini_schedule
from pseudo_targets.priors import Fusion

SCHEDULE, VARIANCE = mini_schedule(), torch.tensor([0.4, 0.05])


def looks(timestep: int, count: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A clean latent `[count, 2, 64, 64]`, its noisy sample, and a reference with an error of `VARIANCE`."""
    generator = torch.Generator().manual_seed(timestep)
    clean, noise, error = (torch.randn(count, 2, 64, 64, generator=generator) for _ in range(3))
    return clean, SCHEDULE.q_sample(clean, timestep, noise), clean + error * VARIANCE.sqrt().view(1, 2, 1, 1)


@pytest.mark.parametrize("timestep", [10, 100, 400, 900])
def test_the_fused_sample_has_the_error_it_says_and_less_than_either(timestep: int) -> None:
    clean, x_t, reference = looks(timestep)
    fused, level, left = Fusion(VARIANCE)(x_t, torch.full((4,), timestep), reference, SCHEDULE)
    estimate = fused / SCHEDULE.level(level).sqrt().view(-1, 1, 1, 1).float()
    found = (estimate - clean).square().mean((0, 2, 3))
    torch.testing.assert_close(found, left[0].flatten(), rtol=0.05, atol=1e-4)
    abar = float(SCHEDULE.level(timestep))
    assert (left[0].flatten() < torch.minimum(VARIANCE, torch.tensor((1 - abar) / abar))).all()


def test_its_timestep_has_as_much_noise_as_is_left() -> None:
    _, x_t, reference = looks(300)
    _, level, left = Fusion(torch.tensor([0.1, 0.1]))(x_t, torch.full((4,), 300), reference, SCHEDULE)
    abar = SCHEDULE.level(level)
    torch.testing.assert_close((1 - abar) / abar, left[:, 0].flatten().double(), rtol=0.05, atol=0)


def test_at_the_last_timestep_the_reference_is_all_there_is() -> None:
    _, x_t, reference = looks(999)
    fused, level, left = Fusion(VARIANCE)(x_t, torch.full((4,), 999), reference, SCHEDULE)
    torch.testing.assert_close(fused, SCHEDULE.level(level).sqrt().view(-1, 1, 1, 1).float() * reference)
    torch.testing.assert_close(left[0].flatten(), VARIANCE)


def test_at_timestep_0_the_sample_is_nearly_all_there_is() -> None:
    clean, x_t, reference = looks(0)
    fused, level, _ = Fusion(VARIANCE)(x_t, torch.zeros(4, dtype=torch.long), reference, SCHEDULE)
    assert int(level.max()) == 0
    assert float((fused - x_t).abs().mean()) < 0.1 * float((reference - clean).abs().mean())


def test_each_image_has_a_timestep_of_its_own() -> None:
    _, x_t, reference = looks(100)
    timestep = torch.tensor([5, 100, 300, 999])
    fused, level, _ = Fusion(VARIANCE)(x_t, timestep, reference, SCHEDULE)
    assert (level.diff() >= 0).all() and int(level[0]) == 5 and int(level[-1]) < 999
    alone, _, _ = Fusion(VARIANCE)(x_t[1:2], timestep[1:2], reference[1:2], SCHEDULE)
    torch.testing.assert_close(alone, fused[1:2])
