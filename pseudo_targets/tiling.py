"""Large images in overlapping square tiles: where they lie, how they weigh, and functions applied tile by tile."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

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

    Its centre lies in the middle of the columns and half a row below the middle of the rows, as DiffBIR publishes it.
    """
    return torch.outer(_gaussian(height, height / 2), _gaussian(width, (width - 1) / 2))


def blended(
    function: Callable[[Tensor], Tensor], image: Tensor, tile: int, stride: int, up: int = 1, down: int = 1
) -> Tensor:
    """`function` of an image `[B, C, H, W]`, one tile at a time, averaged under `gaussian_weights` where tiles overlap.

    An image with a side smaller than a tile is seen whole. At the rim of a tile, where its function lacks what lies
    outside, a tile that overlaps by half weighs no more than 4e-6 of the neighbour whose middle is there.

    Args:
        function: `[B, C, h, w]` -> `[B, D, h * up / down, w * up / down]`.
        tile: side in pixels of `image`, a multiple of `down`, as are `stride` and the sides of the image.

    Raises:
        TilesError: the stride leaves gaps, or something is no multiple of `down`.
    """
    height, width = image.shape[-2:]
    if min(height, width) < tile:
        return function(image)
    if any(length % down for length in (height, width, tile, stride)):
        raise TilesError(f"got tile {tile}, stride {stride} on {height}x{width}, expected multiples of {down}")
    side = tile * up // down
    weights = gaussian_weights(side, side).to(image.device, torch.float32)
    total = weight = image.new_zeros(())
    for top, bottom, left, right in windows(height, width, tile, stride):
        part = function(image[..., top:bottom, left:right])
        if total.ndim == 0:
            size = (height * up // down, width * up // down)
            total = torch.zeros(*part.shape[:2], *size, device=part.device)
            weight = torch.zeros(size, device=part.device)
        rows = slice(top * up // down, bottom * up // down)
        columns = slice(left * up // down, right * up // down)
        total[..., rows, columns] += weights * part
        weight[rows, columns] += weights
    return total / weight


def _starts(length: int, tile: int, stride: int) -> list[int]:
    starts = list(range(0, length - tile + 1, stride))
    return starts if starts[-1] == length - tile else [*starts, length - tile]


def _gaussian(length: int, centre: float, variance: float = 0.01) -> Tensor:
    distance = (torch.arange(length, dtype=torch.float64) - centre) / length
    return torch.exp(-(distance**2) / (2 * variance)) / math.sqrt(2 * math.pi * variance)
