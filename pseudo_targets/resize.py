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

Border = Literal["mirror", "fold"]


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
    the factor, so that it also removes what the shorter line cannot hold. Each row sums to 1. Beyond the outer edges
    the line is mirrored; "mirror" weighs a mirrored sample by where it is taken to lie, "fold" (the rule of the
    library that resizes photos in the published pipeline) by where it really lies.
    """
    factor = source / target
    reach = 2 * max(factor, 1.0)
    centres = (np.arange(target) + 0.5) * factor - 0.5
    first = np.ceil(centres - reach - 1e-9).astype(int)
    taps = first[:, None] + np.arange(math.ceil(2 * reach - 1e-9))  # [target, taps]
    inside = taps % (2 * source)
    inside = np.where(inside < source, inside, 2 * source - 1 - inside)
    position = taps if border == "mirror" else inside
    weights = keys_cubic((position - centres[:, None]) * (2 / reach))
    weights /= weights.sum(axis=1, keepdims=True)
    matrix = np.zeros((target, source))
    np.add.at(matrix, (np.arange(target)[:, None], inside), weights)
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
