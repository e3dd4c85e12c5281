"""Image resizing as small matrices, so that results, gradients and borders are exactly known.

`torch.nn.functional.interpolate` is not used for the cubic filter of the published low-pass constraint: it takes
another cubic coefficient on the way up and clamps, not mirrors, at the borders on the way down.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

Border = Literal["mirror", "zero"]


def keys_cubic(distance: np.ndarray) -> np.ndarray:
    """Cubic convolution kernel with a = -0.5 (Keys 1981, eq. 15), zero from distance 2 on."""
    x = np.abs(distance)
    near = 1.5 * x**3 - 2.5 * x**2 + 1
    far = -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


@lru_cache(maxsize=64)
def resample_matrix(source: int, target: int, border: Border = "mirror") -> Tensor:
    """Weights float64 `[target, source]` that resample a line of `source` samples to `target` samples.

    Sample centres are aligned as if both lines spanned the same length. On the way down the kernel is stretched by
    the factor, so that it also removes what the shorter line cannot hold. Weights of a sample sum to 1 before the
    border rule is applied: "mirror" reflects about the outer edges, "zero" drops what lies outside.
    """
    factor = source / target
    stretch = max(factor, 1.0)
    centres = (np.arange(target) + 0.5) * factor - 0.5
    reach = math.ceil(2 * stretch) + 1
    taps = np.floor(centres).astype(int)[:, None] + np.arange(-reach, reach + 1)  # [target, 2 reach + 1]
    weights = keys_cubic((taps - centres[:, None]) / stretch)
    weights /= weights.sum(axis=1, keepdims=True)
    if border == "mirror":
        folded = taps % (2 * source)
        taps = np.where(folded < source, folded, 2 * source - 1 - folded)
    else:
        weights = np.where((taps >= 0) & (taps < source), weights, 0.0)
        taps = taps.clip(0, source - 1)
    matrix = np.zeros((target, source))
    np.add.at(matrix, (np.arange(target)[:, None], taps), weights)
    return torch.from_numpy(matrix)


def resize_cubic(image: Tensor, height: int, width: int, border: Border = "mirror") -> Tensor:
    """`[B, C, H, W]`, any range, resized to `height` x `width` by the antialiased cubic; may overshoot the range."""
    down = resample_matrix(image.shape[-2], height, border).to(image)
    across = resample_matrix(image.shape[-1], width, border).to(image)
    return down @ image @ across.T


def resize_short_edge(image: Tensor, size: int) -> Tensor:
    """`[B, C, H, W]` resized so that its shorter side is `size` (torch's antialiased bicubic, not clamped)."""
    height, width = image.shape[-2:]
    short = min(height, width)
    return F.interpolate(image, (height * size // short, width * size // short), mode="bicubic", antialias=True)


def pad_to_multiple(image: Tensor, multiple: int) -> Tensor:
    """`[B, C, H, W]` padded with zeros at the bottom and right until both sides are multiples of `multiple`."""
    height, width = image.shape[-2:]
    return F.pad(image, (0, -width % multiple, 0, -height % multiple))
