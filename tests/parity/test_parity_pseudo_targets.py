"""Pseudo-target runs as far as they are determined without the networks: noising, low-band swap, ends."""

import numpy as np
import pytest
import torch
from torch import Tensor

from pseudo_targets.consistency import NoisyLowPassReplacement, Reference
from pseudo_targets.filters import CubicLowPass
from pseudo_targets.resize import resample_matrix, resize_cubic
from pseudo_targets.schedule import Chain, respace, respacing
from tests.parity.parity_files import absolute, arrays, names, needs_fixtures, tensors
from tests.parity.reference_schedules import iddpm_schedule

pytestmark = needs_fixtures
RUNS = names("pseudo_target_*")
STEPWISE = [name for name in RUNS if "x_before_step" in arrays(name)]


def run_chain(name: str) -> Chain:
    """The respaced chain of a run."""
    schedule = iddpm_schedule()
    return respace(schedule, respacing(len(schedule), str(arrays(name)["timestep_respacing"])))


def reference_latent(run: dict[str, Tensor]) -> Tensor:
    """The reference in the prior's range [-1, 1] at the prior's size."""
    size = int(run["im_size"])
    image = run["restored01"]
    if image.shape[-2:] != (size, size):
        image = resize_cubic(image, size, size, border="fold")
    return 2 * image - 1


@pytest.mark.parametrize("name", RUNS)
def test_start_and_timesteps(name: str) -> None:
    run, chain = tensors(name), run_chain(name)
    assert [chain.timesteps[i] for i in run["index"].tolist()] == run["timestep"].tolist()
    start = chain.timesteps[int(run["start_timesteps"])]
    noised = chain.schedule.q_sample(reference_latent(run), start, run["noises"][0])
    assert absolute(noised, run["x_start_noised"]) < 1e-4


@pytest.mark.parametrize("name", RUNS)
def test_noises_are_drawn_while_the_swap_is_active(name: str) -> None:
    run, chain = tensors(name), run_chain(name)
    swaps = 0
    if int(run["down_N"]) > 0:
        swap = published_swap(run, chain)
        swaps = sum(swap.active(t) for t in run["timestep"].tolist())
    assert len(run["noises"]) == 1 + len(run["index"]) + swaps


def published_swap(run: dict[str, Tensor], chain: Chain) -> NoisyLowPassReplacement:
    """The low-band swap of a run."""
    start, end = (chain.timesteps[int(run[key])] for key in ("start_timesteps", "reg_end_timesteps"))
    return NoisyLowPassReplacement(CubicLowPass(int(run["down_N"])), chain.schedule, start, end)


def conserved_weights(size: int, factor: int) -> Tensor:
    """w `[size]` with w P = w for the one-dimensional low pass P: the part of a line that P hands on unchanged."""
    low_pass = resample_matrix(size // factor, size) @ resample_matrix(size, size // factor)
    values, vectors = torch.linalg.eig(low_pass.T)
    nearest = int((values - 1).abs().argmin())
    assert float((values[nearest] - 1).abs()) < 1e-9
    weights = vectors[:, nearest].real
    return weights / weights.sum()


@pytest.mark.parametrize("name", STEPWISE)
def test_swap_hands_the_conserved_band_to_the_noised_reference(name: str) -> None:
    """w(x - P(x) + P(q)) = w q whatever the network returned: pins noise order, noise level and window."""
    run, chain = tensors(name), run_chain(name)
    swap, latent = published_swap(run, chain), reference_latent(run).double()
    reference = Reference(latent, latent)
    weights = conserved_weights(int(run["im_size"]), swap.filter.factor)

    def conserved(x: Tensor) -> Tensor:
        return torch.einsum("h,bchw,w->bc", weights, x.double(), weights)

    draw, checked = 1, 0
    for step, i in enumerate(run["index"].tolist()):
        draw += 1
        if not swap.active(chain.timesteps[i]):
            continue
        noise = run["noises"][draw].double()
        draw += 1
        if step + 1 < len(run["x_before_step"]):
            after = run["x_before_step"][step + 1]
            ours = swap(after.double(), reference, chain.previous(i), noise)
            assert absolute(conserved(after), conserved(ours)) < 1e-5
            assert absolute(conserved(run["x_before_step"][step]), conserved(ours)) > 1e-3
            checked += 1
    assert checked > 0


@pytest.mark.parametrize("name", STEPWISE)
def test_first_step_lies_within_the_learned_range(name: str) -> None:
    """Undo nothing: at the first step x' = (1 - P)(mean + s * noise) + P(q) with s between the two fixed deviations."""
    run, chain = tensors(name), run_chain(name)
    i = int(run["index"][0])
    swap, latent = published_swap(run, chain), reference_latent(run)
    ancestral, fresh = run["noises"][1], run["noises"][2]

    def candidate(fraction: float) -> Tensor:
        log_variance = chain.learned_log_variance(torch.full_like(latent, fraction), i)
        stepped = chain.posterior_step(
            run["pred_xstart_first"], run["x_before_step"][0], i, ancestral, log_variance=log_variance
        )
        return swap(stepped, Reference(latent, latent), chain.previous(i), fresh)

    low, high = candidate(-1.0), candidate(1.0)
    actual = run["x_before_step"][1]
    # The learned deviation differs by less than the range from pixel to pixel, so does the sample from either end.
    spread = float((high - low).square().mean().sqrt())
    assert float((actual - (low + high) / 2).square().mean().sqrt()) < spread


@pytest.mark.parametrize("name", RUNS)
def test_last_step_and_written_image(name: str) -> None:
    run, chain = tensors(name), run_chain(name)
    if "last_sample" in run:
        i = int(run["index"][-1])
        noise = torch.ones_like(run["last_sample"])
        ours = chain.posterior_step(run["pred_xstart_last"], run["x_before_step"][-1], i, noise, log_variance=noise)
        assert absolute(ours, run["last_sample"]) < 1e-6
        assert absolute(((ours + 1) / 2).clamp(0, 1), run["final01_rgb"]) < 1e-6
    written = (run["final01_rgb"][0].permute(1, 2, 0).flip(-1) * 255).round()
    assert int((written - run["final_uint8_bgr"]).abs().max()) <= 1
    assert np.isfinite(run["final01_rgb"].numpy()).all()
