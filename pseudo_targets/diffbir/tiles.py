"""Large latents in overlapping tiles whose network outputs are blended (mixture of diffusers, as DiffBIR does it)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pseudo_targets.diffbir.denoiser import Denoiser
from pseudo_targets.tiling import gaussian_weights, windows


@dataclass(frozen=True, eq=False)
class TiledDenoiser:
    """A denoiser that sees one tile at a time; a latent no larger than a tile is seen whole.

    Attributes:
        denoiser: networks, texts and the condition of the whole latent.
        tile: side of a tile in latents, a multiple of what the UNet halves.
        stride: distance between tiles in latents.
    """

    denoiser: Denoiser
    tile: int = 64
    stride: int = 32

    def output(self, x_t: Tensor, timestep: float) -> Tensor:
        """The guided network output for `x_t` `[B, C, h, w]`: the mean over tiles, weighted by `gaussian_weights`."""
        height, width = x_t.shape[-2:]
        if min(height, width) < self.tile:
            return self.denoiser.output(x_t, timestep)
        weights = gaussian_weights(self.tile, self.tile).to(x_t)
        total, weight = torch.zeros_like(x_t), torch.zeros_like(x_t[:1, :1])
        condition = self.denoiser.condition
        reference = condition.latent
        if reference is None:
            raise ValueError("tiles restore photos: expected a condition with the latent of a cleaned one")
        for top, bottom, left, right in windows(height, width, self.tile, self.stride):
            place = (..., slice(top, bottom), slice(left, right))
            part = replace(self.denoiser, condition=replace(condition, latent=reference[place]))
            total[place] += weights * part.output(x_t[place], timestep)
            weight[place] += weights
        return total / weight
