"""Noise levels, grids and posteriors against `schedules.npz`, `iddpm_schedule.npz` and two model files."""

import re

import pytest
import torch

from pseudo_targets.schedule import (
    NoiseSchedule,
    ddim_timesteps,
    edm_sigmas,
    rescale_cfg,
    respace,
    respacing,
    scaled_linear_betas,
    spaced_timesteps,
    zero_terminal_snr,
)
from tests.parity.parity_files import absolute, arrays, needs_fixtures, relative, tensors
from tests.parity.reference_schedules import diffbir_schedule, iddpm_schedule

pytestmark = needs_fixtures
VERSIONS = ("v1v2", "v21")


def numbers(pattern: str, keys: list[str]) -> list[str]:
    """The distinct first groups of a pattern over array names."""
    return sorted({match[1] for match in (re.fullmatch(pattern, key) for key in keys) if match})


@pytest.mark.parametrize("version", VERSIONS)
def test_betas_and_levels(version: str) -> None:
    expected = tensors("schedules")
    betas = scaled_linear_betas(len(expected["v1v2_betas"]))
    betas = zero_terminal_snr(betas) if version == "v21" else betas
    schedule = diffbir_schedule(version)

    assert absolute(betas, expected[f"{version}_betas"]) < 1e-12
    assert absolute(schedule.alphas_cumprod, expected[f"{version}_abar"]) < 1e-12
    abar = schedule.alphas_cumprod
    assert absolute(abar.sqrt().float(), expected[f"{version}_sqrt_abar_f32"]) < 1e-6
    assert absolute((1 - abar).sqrt().float(), expected[f"{version}_sqrt_one_minus_abar_f32"]) < 1e-6
    if version == "v21":
        assert abar[-1] == 0


def test_spaced_timesteps() -> None:
    expected = arrays("schedules")
    counts = numbers(r"spaced(\d+)_timesteps", list(expected))
    assert counts
    for count in counts:
        ours = spaced_timesteps(len(expected["v1v2_abar"]), [int(count)])
        assert ours == tuple(expected[f"spaced{count}_timesteps"]), count


@pytest.mark.parametrize("version", VERSIONS)
def test_spaced_chains(version: str) -> None:
    expected = tensors("schedules")
    schedule = diffbir_schedule(version)
    counts = numbers(rf"{version}_spaced(\d+)_posterior_variance", list(expected))
    assert counts
    for count in counts:
        chain = respace(schedule, spaced_timesteps(len(schedule), [int(count)]))
        abar = chain.alphas_cumprod
        ours = {
            "sqrt_alphas_cumprod": abar.sqrt(),
            "sqrt_one_minus_alphas_cumprod": (1 - abar).sqrt(),
            "posterior_variance": chain.posterior_variance,
            "posterior_mean_coef1": chain.posterior_mean_coef1,
            "posterior_mean_coef2": chain.posterior_mean_coef2,
            "sqrt_recip_alphas_cumprod": abar.rsqrt(),
            "sqrt_recipm1_alphas_cumprod": (1 / abar - 1).sqrt(),
        }
        for name, value in ours.items():
            key = f"{version}_spaced{count}_{name}"
            if key in expected:
                assert relative(value.float(), expected[key]) < 1e-6, key


@pytest.mark.parametrize("version", VERSIONS)
def test_ddim_grids(version: str) -> None:
    expected = tensors("schedules")
    schedule = diffbir_schedule(version)
    for count in numbers(r"ddim(\d+)_timesteps", list(expected)):
        grid = ddim_timesteps(len(schedule), int(count))
        assert grid == tuple(expected[f"ddim{count}_timesteps"].tolist())
        previous = torch.tensor((0, *grid[:-1]))
        assert absolute(schedule.level(torch.tensor(grid)).float(), expected[f"{version}_ddim{count}_alphas"]) < 1e-6
        assert absolute(schedule.level(previous).float(), expected[f"{version}_ddim{count}_alphas_prev"]) < 1e-6


@pytest.mark.parametrize("version", VERSIONS)
def test_edm_sigmas(version: str) -> None:
    expected = tensors("schedules")
    for count in numbers(r"edm(\d+)_timesteps", list(expected)):
        timesteps, sigmas = edm_sigmas(diffbir_schedule(version), int(count))
        assert timesteps == tuple(expected[f"edm{count}_timesteps"].tolist())
        assert relative(sigmas.float()[1:], expected[f"{version}_edm{count}_sigmas"][1:]) < 1e-5
        assert relative(sigmas.float()[:1], expected[f"{version}_edm{count}_sigmas"][:1]) < 1e-5


def test_edm_sigmas_of_the_sde_run() -> None:
    expected = tensors("sampler_edm_dpmpp_3m_sde")
    timesteps, sigmas = edm_sigmas(diffbir_schedule("v21"), len(expected["sigmas"]) - 1)
    assert timesteps == tuple(expected["timesteps"].tolist())
    assert relative(sigmas.float()[1:], expected["sigmas"][1:]) < 1e-5


def test_rescaled_guidance() -> None:
    expected = arrays("schedules")
    scales = numbers(r"rescale_cfg_(\d+)_for_t_0_to_999", list(expected))
    assert scales
    for scale in scales:
        values = expected[f"rescale_cfg_{scale}_for_t_0_to_999"]
        ours = [rescale_cfg(float(scale), t) for t in range(len(values))]
        assert max(abs(a - b) for a, b in zip(ours, values, strict=True)) < 1e-9


def test_iddpm_chains() -> None:
    expected = tensors("iddpm_schedule")
    specs = numbers(r"r(.+)_timestep_map", list(expected))
    assert specs
    schedule = iddpm_schedule()
    for spec in specs:
        chain = respace(schedule, respacing(len(schedule), spec))
        assert chain.timesteps == tuple(expected[f"r{spec}_timestep_map"].tolist())
        assert absolute(chain.betas, expected[f"r{spec}_betas"]) < 1e-10
        assert absolute(chain.alphas_cumprod, expected[f"r{spec}_alphas_cumprod"]) < 1e-10
        log_variance = expected[f"r{spec}_posterior_log_variance_clipped"]
        assert absolute(chain.posterior_log_variance, log_variance) < 1e-10
        assert absolute(chain.posterior_mean_coef1, expected[f"r{spec}_posterior_mean_coef1"]) < 1e-10
        assert absolute(chain.posterior_mean_coef2, expected[f"r{spec}_posterior_mean_coef2"]) < 1e-10


def test_noising_and_readings_of_the_model_output() -> None:
    """Batch of two with its own timestep for each image."""
    io = tensors("diffbir_model_io")
    eps, velocity = diffbir_schedule("v1v2"), diffbir_schedule("v21")
    x, t, output, noise = io["x"], io["t"], io["model_output"], io["q_noise"]
    assert relative(eps.to_x0(output, x, t), io["x0_if_eps"]) < 1e-5
    assert relative(velocity.to_x0(output, x, t), io["x0_if_v_zero_snr"]) < 1e-5
    assert relative(eps.q_sample(io["hint"], t, noise), io["q_sample_v1v2"]) < 1e-5
    assert relative(velocity.q_sample(io["hint"], t, noise), io["q_sample_v21"]) < 1e-5
    assert relative(velocity.velocity(io["hint"], noise, t), io["v_target_v21"]) < 1e-5
    assert relative(velocity.target(io["hint"], noise, t), io["v_target_v21"]) < 1e-5


def test_schedule_is_a_value() -> None:
    """A chain of all timesteps is the schedule itself."""
    schedule: NoiseSchedule = iddpm_schedule()
    chain = respace(schedule, range(len(schedule)))
    assert torch.equal(chain.alphas_cumprod, schedule.alphas_cumprod)
