"""The networks of a prior under one condition, guided over the text."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pseudo_targets.priors import Condition, LatentPrior, denoiser_output
from pseudo_targets.schedule import rescale_cfg


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

    def output(self, x_t: Tensor, timestep: int) -> Tensor:
        """The guided network output for `x_t` `[B, C, h, w]`, in the network's own parameterisation."""
        steps = len(self.prior.schedule)
        scale = rescale_cfg(self.scale, timestep, steps) if self.rescale else self.scale
        positive = self._evaluate(x_t, timestep, self.positive)
        if self.negative is None or scale == 1:
            return positive
        negative = self._evaluate(x_t, timestep, self.negative)
        return negative + scale * (positive - negative)

    def _evaluate(self, x_t: Tensor, timestep: int, context: Tensor) -> Tensor:
        prior = self.prior
        times = torch.full((len(x_t),), timestep)
        context = context.expand(len(x_t), -1, -1)
        return denoiser_output(prior.unet, prior.control, x_t, times, context, self.condition).float()
