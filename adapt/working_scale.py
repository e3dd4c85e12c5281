"""Photos that were enlarged far beyond their detail: the scale at which the restorer works on them.

Digital zoom, old scans and screenshots often have more pixels than detail. Restorers have learned to restore what was
enlarged up to about four times, and do it best at the photo's own pixels. What was enlarged further is worked on at a
smaller scale, such that four times are left, when a restorer learns from it and when it is served.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

FACTORS = (4, 3, 2)
"""How many times smaller a photo may be worked on, the smallest scale first."""
UNSEEN = 1.5 / 255
"""Root mean square of what a photo shows beyond the highest frequency of a smaller scale, in the part where it shows
most, up to which nothing is seen to lack there: of clean photos that fill their pixels nearly all show more."""
KNOWN_ENLARGEMENT = 4
"""Enlargement up to which restorers do best at the photo's own pixels: of faces enlarged 4 times, 0.8 to 0.9 dB better
than at a quarter; of those enlarged 8 times, 0.1 to 0.9 dB worse than at half (RESULTS)."""
DROP = 0.03
"""Power beyond the highest frequency of a smaller scale, as a share of what there is just below it, where a spectrum
has ended. Of photos that fill their pixels it is above 0.1, and 1 where noise does."""
LOSS = 1.5 / 255
"""Root mean square beyond that frequency, of which no smaller scale may lose more."""
ROUNDING = 1 / (12 * 255**2)
"""Mean square of what rounding to 8 bits adds, alike at all frequencies."""
PART = 256
"""Side in px of the parts of a photo that are looked at."""
SMALLEST = 128
"""Shorter side in px below which no photo is brought."""


def shrink_factor(image: Tensor) -> int:
    """How many times smaller than `[1, 3, H, W]` to work on an image: 1 for nearly all photos.

    More than that where an image smaller by `KNOWN_ENLARGEMENT` times as much again holds all that this one shows.
    """
    factors = [factor for factor in FACTORS if min(image.shape[-2:]) // factor >= SMALLEST]
    if not factors:
        return 1
    power, frequency = _spectrum(image)
    for factor in factors:
        limit = 0.5 / (KNOWN_ENLARGEMENT * factor)
        beyond, below = frequency > limit, (frequency > 0.7 * limit) & (frequency <= limit)
        mean = power.mean(0)
        ends = float(mean[beyond].mean()) < DROP * float(mean[below].mean())
        if ends and float(mean[beyond].sum()) < LOSS**2:
            return factor
    return 1


def enlargement(image: Tensor) -> int:
    """How many times smaller `[1, 3, H, W]` could be and nothing would be seen to lack: 1, or one of `FACTORS`.

    Photos were that small when they were coded, or are that soft: defects show at that scale as they do at the photo's.
    """
    if min(image.shape[-2:]) < PART:
        return 1
    power, frequency = _spectrum(image)
    for factor in FACTORS:
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
