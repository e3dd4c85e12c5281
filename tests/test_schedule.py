"""Properties of noise schedules, grids and steps that hold for every prior."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

from pseudo_targets.schedule import (
    NoiseSchedule,
    PredictionType,
    ScheduleError,
    ddim_timesteps,
    descending_timesteps,
    edm_sigmas,
    linear_betas,
    rescale_cfg,
    respace,
    respacing,
    scaled_linear_betas,
    spaced_timesteps,
    zero_terminal_snr,
)

PREDICTIONS: tuple[PredictionType, ...] = ("epsilon", "v_prediction", "sample")


def schedule(prediction: PredictionType = "epsilon") -> NoiseSchedule:
    return NoiseSchedule.from_betas(scaled_linear_betas(), prediction)


def draw(seed: int, batch: int = 3) -> Tensor:
    return torch.randn(batch, 4, 6, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_a_perfect_network_is_read_as_x0_and_noise(prediction: PredictionType) -> None:
    levels, x0, noise = schedule(prediction), draw(0), draw(1)
    timestep = torch.tensor([0, 417, 999])
    x_t = levels.q_sample(x0, timestep, noise)
    output = levels.target(x0, noise, timestep)
    torch.testing.assert_close(levels.to_x0(output, x_t, timestep), x0)
    torch.testing.assert_close(levels.to_eps(output, x_t, timestep), noise)
    torch.testing.assert_close(levels.eps_of(x0, x_t, timestep), noise)


def test_one_timestep_for_each_image_equals_one_call_each() -> None:
    levels, x0, noise = schedule(), draw(0).float(), draw(1).float()
    timesteps, following = torch.tensor([900, 500, 20]), torch.tensor([700, 499, -1])
    batched = levels.ddim_step(x0, noise, timesteps, following, eta=0.5, noise=noise)
    for k in range(3):
        one = slice(k, k + 1)
        single = levels.ddim_step(x0[one], noise[one], int(timesteps[k]), int(following[k]), eta=0.5, noise=noise[one])
        assert torch.equal(batched[one], single)


def test_zero_terminal_snr() -> None:
    before = torch.cumprod(1 - scaled_linear_betas(), dim=0)
    after = torch.cumprod(1 - zero_terminal_snr(scaled_linear_betas()), dim=0)
    assert after[-1] == 0
    assert float(after[0]) == pytest.approx(float(before[0]), rel=1e-12)
    with pytest.raises(ScheduleError, match="v_prediction"):
        NoiseSchedule(after, "epsilon")
    x0, noise = draw(0), draw(1)
    velocity = NoiseSchedule(after, "v_prediction")
    assert torch.equal(velocity.q_sample(x0, 999, noise), noise)
    torch.testing.assert_close(velocity.to_x0(velocity.target(x0, noise, 999), noise, 999), x0)


def test_minus_one_is_the_clean_image() -> None:
    levels, x0, x_t, noise = schedule(), draw(0), draw(1), draw(2)
    assert torch.equal(levels.q_sample(x0, -1, noise), x0)
    torch.testing.assert_close(levels.posterior_step(x0, x_t, 300, -1, noise), x0)
    torch.testing.assert_close(levels.ddim_step(x0, x_t, 300, -1), x0)


def test_ddim_with_eta_one_is_the_ancestral_step() -> None:
    levels, x0, x_t, noise = schedule(), draw(0), draw(1), draw(2)
    torch.testing.assert_close(
        levels.ddim_step(x0, x_t, 800, 350, eta=1.0, noise=noise), levels.posterior_step(x0, x_t, 800, 350, noise)
    )


def test_deterministic_ddim_keeps_x0_and_noise() -> None:
    levels, x0, noise = schedule(), draw(0), draw(1)
    moved = levels.ddim_step(x0, levels.q_sample(x0, 800, noise), 800, 350)
    torch.testing.assert_close(moved, levels.q_sample(x0, 350, noise))


def test_ancestral_steps_keep_the_marginal_variance() -> None:
    levels = schedule()
    weight_x0, weight_x_t, variance = levels.posterior(torch.tensor([999, 300]), torch.tensor([600, 299]))
    abar, below = levels.level(torch.tensor([999, 300])), levels.level(torch.tensor([600, 299]))
    torch.testing.assert_close(weight_x0 + weight_x_t * abar.sqrt(), below.sqrt())
    torch.testing.assert_close(weight_x_t**2 * (1 - abar) + variance, 1 - below)


def test_chain() -> None:
    levels = schedule()
    chain = respace(levels, [900, 0, 450])
    assert chain.timesteps == (0, 450, 900)
    assert [chain.previous(i) for i in range(3)] == [-1, 0, 450]
    assert chain.index(450) == 1
    torch.testing.assert_close(torch.cumprod(1 - chain.betas, dim=0), chain.alphas_cumprod)
    assert chain.posterior_variance[0] == 0
    assert chain.posterior_log_variance[0] == chain.posterior_log_variance[1]
    x0, x_t, noise = draw(0), draw(1), draw(2)
    assert torch.equal(chain.posterior_step(x0, x_t, 2, noise), levels.posterior_step(x0, x_t, 900, 450, noise))
    assert torch.equal(chain.ddim_step(x0, x_t, 2), levels.ddim_step(x0, x_t, 900, 450))
    with pytest.raises(ScheduleError, match="not in the chain"):
        chain.index(1)
    with pytest.raises(ScheduleError, match="distinct"):
        respace(levels, [3, 3])


def test_learned_variance_spans_posterior_and_beta() -> None:
    chain = respace(schedule(), (0, 450, 900))
    x0, x_t, noise = draw(0), draw(1), draw(2)
    low = chain.learned_log_variance(torch.full_like(x0, -1.0), 2)
    high = chain.learned_log_variance(torch.full_like(x0, 1.0), 2)
    torch.testing.assert_close(low.exp()[0, 0, 0, 0], chain.posterior_variance[2])
    torch.testing.assert_close(high.exp()[0, 0, 0, 0], chain.betas[2])
    torch.testing.assert_close(chain.posterior_step(x0, x_t, 2, noise, low), chain.posterior_step(x0, x_t, 2, noise))
    torch.testing.assert_close(chain.posterior_step(x0, x_t, 0, noise, high), x0)


def test_single_step_chain() -> None:
    chain = respace(schedule(), [500])
    assert torch.isfinite(chain.posterior_log_variance).all()
    torch.testing.assert_close(chain.posterior_step(draw(0), draw(1), 0, draw(2)), draw(0))


@pytest.mark.parametrize("count", [1, 2, 7, 250, 1000])
def test_spaced_timesteps_reach_both_ends(count: int) -> None:
    grid = spaced_timesteps(1000, [count])
    assert len(set(grid)) == count
    assert list(grid) == sorted(grid)
    assert grid[0] == 0
    assert count == 1 or grid[-1] == 999


def test_respacing_strings() -> None:
    assert respacing(100, "5") == spaced_timesteps(100, [5])
    assert respacing(100, "ddim25") == tuple(range(0, 100, 4))
    assert respacing(10, "2,3") == (0, 4, 5, 7, 9)
    assert respacing(11, "2,3") == (0, 5, 6, 8, 10)  # the odd timestep belongs to the first section
    for wrong in ("", "x", "ddim", "ddim3,4", "0", "101", "ddim11", "-4", "60,60"):
        with pytest.raises(ScheduleError):
            respacing(100, wrong)


@pytest.mark.parametrize("start", [0, 1, 9, 361, 602, 999])
def test_descending_timesteps(start: int) -> None:
    for calls in range(1, min(start + 1, 60) + 1):
        grid = descending_timesteps(start, calls)
        assert len(grid) == len(set(grid)) == calls
        assert grid[0] == start
        assert list(grid) == sorted(grid, reverse=True)
        assert calls == 1 or grid[-1] == 0
        assert max((a - b for a, b in pairwise(grid)), default=0) <= start / max(calls - 1, 1) + 1
    with pytest.raises(ScheduleError):
        descending_timesteps(start, start + 2)


def test_ddim_grid() -> None:
    assert ddim_timesteps(1000, 5) == (1, 201, 401, 601, 801)
    assert len(ddim_timesteps(1000, 30)) == 31
    with pytest.raises(ScheduleError, match="another count"):
        ddim_timesteps(1000, 3)


def test_edm_sigmas_fall_to_zero_from_a_finite_level() -> None:
    zero_snr = NoiseSchedule.from_betas(zero_terminal_snr(scaled_linear_betas()), "v_prediction")
    timesteps, sigmas = edm_sigmas(zero_snr, 10)
    assert timesteps == (999, 899, 799, 699, 599, 499, 399, 299, 199, 99, 0)
    assert bool((sigmas.diff() < 0).all())
    assert float(sigmas[0]) == pytest.approx(1e4, rel=1e-6)
    assert sigmas[-1] == 0


def test_rescale_cfg() -> None:
    assert rescale_cfg(1.0, 300) == 1.0
    assert rescale_cfg(6.0, 0) == pytest.approx(7.0)
    values = [rescale_cfg(6.0, t) for t in range(1000)]
    assert values == sorted(values, reverse=True)
    assert values[-1] == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("abar", "prediction"),
    [
        (torch.tensor([0.5, 0.4]), "epsilon"),
        (torch.tensor([0.5, 0.5], dtype=torch.float64), "epsilon"),
        (torch.tensor([1.0, 0.5], dtype=torch.float64), "epsilon"),
        (torch.tensor([], dtype=torch.float64), "epsilon"),
        (torch.tensor([0.9, 0.5], dtype=torch.float64), "noise"),
    ],
)
def test_unusable_schedules_are_refused(abar: Tensor, prediction: PredictionType) -> None:
    with pytest.raises(ScheduleError):
        NoiseSchedule(abar, prediction)


def test_unusable_steps_are_refused() -> None:
    levels = NoiseSchedule.from_betas(linear_betas(10, 0.01, 0.2), "epsilon")
    with pytest.raises(ScheduleError, match="timestep"):
        levels.level(10)
    with pytest.raises(ScheduleError, match="less noise"):
        levels.posterior_step(draw(0), draw(1), 3, 3, draw(2))
    with pytest.raises(ScheduleError, match="needs the noise"):
        levels.ddim_step(draw(0), draw(1), 3, 1, eta=0.5)


def test_coefficients_take_the_dtype_of_the_image() -> None:
    levels = schedule()
    for dtype in (torch.float32, torch.bfloat16):
        assert levels.q_sample(draw(0).to(dtype), 10, draw(1).to(dtype)).dtype == dtype
