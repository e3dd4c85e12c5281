"""Large latents in overlapping tiles whose network outputs are blended (mixture of diffusers, as DiffBIR does it)."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from pseudo_targets.diffbir.denoiser import Denoiser
from pseudo_targets.priors import Condition

Window = tuple[int, int, int, int]
"""First row, row after the last, first column, column after the last."""


class TilesError(ValueError):
    """Tiles that do not fit; the message says what was got and what is expected."""


def windows(height: int, width: int, tile: int, stride: int) -> Iterator[Window]:
    """Square windows row by row, `stride` apart; the last of a row and of a column ends at the border.

    Raises:
        TilesError: a side is smaller than a tile, or the stride leaves gaps.
    """
    if not 1 <= stride <= tile <= min(height, width):
        raise TilesError(f"got tile {tile}, stride {stride} on {height}x{width}, expected 1 <= stride <= tile <= sides")
    for top in _starts(height, tile, stride):
        for left in _starts(width, tile, stride):
            yield top, top + tile, left, left + tile


def gaussian_weights(height: int, width: int) -> Tensor:
    """Weights of a tile, float64 `[height, width]`: a Gaussian of variance 0.01 in units of the tile's sides.

    Its centre lies in the middle of the columns and half a row below the middle of the rows, as published.
    """
    return torch.outer(_gaussian(height, height / 2), _gaussian(width, (width - 1) / 2))


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

    def output(self, x_t: Tensor, timestep: int) -> Tensor:
        """The guided network output for `x_t` `[B, C, h, w]`: the mean over tiles, weighted by `gaussian_weights`."""
        height, width = x_t.shape[-2:]
        if min(height, width) < self.tile:
            return self.denoiser.output(x_t, timestep)
        weights = gaussian_weights(self.tile, self.tile).to(x_t)
        total, weight = torch.zeros_like(x_t), torch.zeros_like(x_t[:1, :1])
        condition = self.denoiser.condition
        for top, bottom, left, right in windows(height, width, self.tile, self.stride):
            place = (..., slice(top, bottom), slice(left, right))
            part = replace(self.denoiser, condition=Condition(condition.latent[place], condition.strength))
            total[place] += weights * part.output(x_t[place], timestep)
            weight[place] += weights
        return total / weight


def _starts(length: int, tile: int, stride: int) -> list[int]:
    starts = list(range(0, length - tile + 1, stride))
    return starts if starts[-1] == length - tile else [*starts, length - tile]


def _gaussian(length: int, centre: float, variance: float = 0.01) -> Tensor:
    distance = (torch.arange(length, dtype=torch.float64) - centre) / length
    return torch.exp(-(distance**2) / (2 * variance)) / math.sqrt(2 * math.pi * variance)
