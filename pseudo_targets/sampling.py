"""Two-stage trajectory: a cleaned reference, partly re-noised, denoised by a prior under consistency corrections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from pseudo_targets.consistency import Consistency, Reference
from pseudo_targets.priors import Condition, Prior
from pseudo_targets.schedule import descending_timesteps


@dataclass(frozen=True)
class Trajectory:
    """The way from noise to image.

    Attributes:
        start_timestep: noise level the reference is raised to; higher is freer and less faithful.
        calls: network calls on the way down.
        eta: 1 is ancestral sampling, 0 is deterministic DDIM.
        strength: factor on the IRControlNet's residuals; 0 leaves the prior unconditional.
    """

    start_timestep: int
    calls: int = 12
    eta: float = 1.0
    strength: float = 1.0


@torch.no_grad()
def refine(
    prior: Prior,
    reference: Tensor,
    trajectory: Trajectory,
    consistency: Sequence[Consistency],
    generators: Sequence[Generator],
    context: Tensor | None = None,
) -> Tensor:
    """Regenerates the detail of cleaned images, one draw each (SDEdit from the restored image, DT-BFR, DiffBIR).

    What the latent space cannot hold is carried over from the reference, so a refinement that changes nothing in the
    latent space changes nothing in the image.

    Args:
        reference: `[B, 3, H, W]` in `[0, 1]`, the output of stage 1.
        consistency: corrections of the predicted x0, applied in order at the timesteps where they are active.
        generators: one CPU generator an image, so that the batch an image is in does not change its draw.
        context: embeddings of texts `[B, tokens, width]`, or None for the prior's own.

    Returns:
        `[B, 3, H, W]` in `[0, 1]`.
    """
    latent = prior.encode(reference)
    target = Reference(latent, reference)
    condition = Condition(latent, trajectory.strength, context) if trajectory.strength > 0 else None
    x = prior.schedule.q_sample(latent, trajectory.start_timestep, _noise(latent, generators))
    x = denoise_with_consistency(prior, x, trajectory, condition, consistency, target, generators)
    carried = reference - prior.decode(latent)
    return (prior.decode(x) + carried).clamp(0, 1)


def conditional_mean(
    prior: Prior,
    reference: Tensor,
    strength: float = 1.0,
    consistency: Sequence[Consistency] = (),
    context: Tensor | None = None,
) -> Tensor:
    """What the prior expects behind cleaned images, `[B, 3, H, W]` in `[0, 1]`: one call from the last timestep.

    No draw: the detail that cannot be known is left out, and what a call makes of noise is not in it either, as the
    last timestep of a schedule with zero terminal signal says nothing of the sample.
    """
    trajectory = Trajectory(len(prior.schedule) - 1, 1, 0.0, strength)
    generators = [torch.Generator().manual_seed(0) for _ in reference]
    return refine(prior, reference, trajectory, consistency, generators, context)


@torch.no_grad()
def draw(
    prior: Prior,
    trajectory: Trajectory,
    generators: Sequence[Generator],
    device: torch.device | None = None,
    context: Tensor | None = None,
) -> Tensor:
    """One image for each generator, `[B, 3, S, S]` in `[0, 1]`, from the prior without a control, on `device`.

    Args:
        context: embeddings of texts or places `[B, tokens, width]`, or None for the prior's own.
    """
    blank = torch.zeros(1, 3, prior.resolution, prior.resolution, device=device)
    shape = prior.encode(blank).expand(len(generators), -1, -1, -1)
    x = _noise(shape, generators)
    condition = None if context is None else Condition(None, context=context)
    return prior.decode(denoise_with_consistency(prior, x, trajectory, condition, (), None, generators)).clamp(0, 1)


def denoise_with_consistency(
    prior: Prior,
    x: Tensor,
    trajectory: Trajectory,
    condition: Condition | None,
    consistency: Sequence[Consistency],
    reference: Reference | None,
    generators: Sequence[Generator],
) -> Tensor:
    """Denoises `x` `[B, C, h, w]` from `trajectory.start_timestep` to a clean latent, correcting each predicted x0."""
    timesteps = descending_timesteps(trajectory.start_timestep, trajectory.calls)
    for timestep, following in zip(timesteps, (*timesteps[1:], -1), strict=True):
        x0 = prior.denoise(x, torch.full((len(x),), timestep), condition)
        if reference is not None:
            for correct in consistency:
                if correct.active(timestep):
                    x0 = correct(x0, reference, timestep)
        noise = _noise(x, generators) if trajectory.eta and following >= 0 else None
        eta = trajectory.eta if following >= 0 else 0.0
        x = prior.schedule.ddim_step(x0, x, timestep, following, eta, noise)
    return x


def _noise(like: Tensor, generators: Sequence[Generator]) -> Tensor:
    return torch.stack([torch.randn(like.shape[1:], generator=generator) for generator in generators]).to(like)
