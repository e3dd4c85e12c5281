"""Enlarged photos: the scale at which a photo still holds all that it shows.

Digital zoom, old scans and screenshots often have more pixels than detail. A restorer that works at the photo's own
pixels then sees a few of its details at a time and none of the rest. Such a photo is worked on at the largest of a few
smaller scales that loses nothing, when a restorer learns from it and when it is served.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

FACTORS = (4, 3, 2)
"""How many times smaller a photo may be worked on, the smallest scale first."""
UNSEEN = 1.5 / 255
"""Root mean square of what a photo shows beyond the highest frequency of a smaller scale, in the part where it shows
most, from which on that scale is too small: of clean photos that fill their pixels nearly all show more."""
ROUNDING = 1 / (12 * 255**2)
"""Mean square of what rounding to 8 bits adds, alike at all frequencies."""
PART = 256
"""Side in px of the parts of a photo that are looked at."""
SMALLEST = 128
"""Shorter side in px below which no photo is brought."""


def shrink_factor(image: Tensor) -> int:
    """How many times smaller than `[1, 3, H, W]` an image can be that still holds all it shows: 1 for most photos."""
    factors = [factor for factor in FACTORS if min(image.shape[-2:]) // factor >= SMALLEST]
    if not factors:
        return 1
    power, frequency = _spectrum(image)
    for factor in factors:
        if float(power[:, frequency > 0.5 / factor].sum(1).max()) < UNSEEN**2:
            return factor
    return 1


def shrunk(image: Tensor, factor: int) -> Tensor:
    """`[1, 3, H, W]` brought down `factor` times, in `[0, 1]`; the photo itself where that is 1."""
    if factor == 1:
        return image
    height, width = image.shape[-2:]
    size = (round(height / factor), round(width / factor))
    return F.interpolate(image, size, mode="bicubic", antialias=True).clamp(0, 1)


def enlarged(image: Tensor, size: tuple[int, int]) -> Tensor:
    """`[1, 3, h, w]` brought to `size`, not clamped, so that differences survive."""
    return F.interpolate(image, size, mode="bicubic")


def _spectrum(image: Tensor) -> tuple[Tensor, Tensor]:
    """Power of nine parts of the photo at each frequency, so that each sums up to its mean square, and the frequency in
    cycles a pixel of the faster direction; of brightness, without the parts' mean."""
    luma = image.mean(1)
    side = min(PART, *luma.shape[-2:])
    tops, lefts = ([0, (n - side) // 2, n - side] for n in luma.shape[-2:])
    parts = torch.stack([luma[0, top : top + side, left : left + side] for top in tops for left in lefts])
    window = torch.hann_window(side, periodic=False, device=image.device)
    window = window[:, None] * window
    centred = (parts - parts.mean((1, 2), keepdim=True)) * window
    power = torch.fft.fft2(centred).abs().square() / (side**2 * window.square().sum())
    power = (power - ROUNDING / side**2).clamp(min=0)
    axis = torch.fft.fftfreq(side, device=image.device).abs()
    return power, torch.maximum(axis[:, None], axis)
