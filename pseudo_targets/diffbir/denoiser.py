"""The networks of a prior under one condition, guided over the text."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pseudo_targets.consistency import Consistency, Reference
from pseudo_targets.priors import Condition, LatentPrior, denoiser_output
from pseudo_targets.schedule import NoiseSchedule, rescale_cfg


@dataclass(frozen=True, eq=False)
class Denoiser:
    """A prior's networks under one condition, with classifier-free guidance over the text (Ho and Salimans 2022).

    The image condition is in both branches; they differ in the text alone.

    Attributes:
        prior: networks and schedule.
        condition: latent of the cleaned image `[B, C, h, w]` and strength.
        positive: context `[1 or B, tokens, width]`.
        negative: context of the branch that guidance leads away from, or None for no guidance.
        scale: guidance scale.
        rescale: whether the scale follows `rescale_cfg`.
    """

    prior: LatentPrior
    condition: Condition
    positive: Tensor
    negative: Tensor | None = None
    scale: float = 1.0
    rescale: bool = False

    def output(self, x_t: Tensor, timestep: float) -> Tensor:
        """The guided network output for `x_t` `[B, C, h, w]`, in the network's own parameterisation."""
        steps = len(self.prior.schedule)
        scale = rescale_cfg(self.scale, timestep, steps) if self.rescale else self.scale
        positive = self._evaluate(x_t, timestep, self.positive)
        if self.negative is None or scale == 1:
            return positive
        negative = self._evaluate(x_t, timestep, self.negative)
        return negative + scale * (positive - negative)

    def _evaluate(self, x_t: Tensor, timestep: float, context: Tensor) -> Tensor:
        prior = self.prior
        times = torch.full((len(x_t),), timestep)
        context = context.expand(len(x_t), -1, -1)
        return denoiser_output(prior.unet, prior.control, x_t, times, context, self.condition).to(x_t.dtype)


@dataclass(frozen=True, eq=False)
class Corrected:
    """A network output whose clean latent passes through corrections, in the network's parameterisation again.

    So every solver takes every correction: restoration guidance, or a constraint on the low band.

    Attributes:
        output: (noisy latent `[B, C, h, w]`, timestep) -> network output.
        consistency: applied in order at the timesteps where they are active.
        reference: what the sample is held to.
    """

    output: Callable[[Tensor, float], Tensor]
    schedule: NoiseSchedule
    consistency: Sequence[Consistency]
    reference: Reference

    def __call__(self, x_t: Tensor, timestep: float) -> Tensor:
        output, nearest = self.output(x_t, timestep), round(timestep)
        active = [correct for correct in self.consistency if correct.active(nearest)]
        if not active:
            return output
        x0 = self.schedule.to_x0(output, x_t, nearest)
        for correct in active:
            x0 = correct(x0, self.reference, nearest)
        return self.schedule.target(x0, self.schedule.eps_of(x0, x_t, nearest), nearest)
