"""Statistics of windows that tell what a camera did: spectra, noise of flat places, blocks, tails.

They are summary statistics in the sense of approximate Bayesian computation: windows that the same steps have been
applied to have alike statistics, whatever they show, once brightness and contrast are allowed for.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from restorers.degradations import luma

FINE = (0.02, *(round(0.05 + 0.03 * step, 2) for step in range(16)))
"""Limits of the frequency bands that are looked at, in cycles a pixel."""
COARSE = (0.03, 0.08, 0.13, 0.18, 0.23, 0.29, 0.35, 0.42, 0.5)
"""Of those in which transfer and noise are known of simulated photos."""
DIRECTED = (0.06, 0.14, 0.26, 0.42)
"""Of those in which directions are told apart."""
CONTENT = slice(1, 3)
"""The fine bands that content decides, 0.05 to 0.11: a camera hardly changes them."""
CONTENT_STATISTICS = 4
"""The last statistics, which are the content's."""
LEAST = 1e-9


def photo_statistics(image: Tensor) -> Tensor:
    """`[B, 3, S, S]` -> `[B, D]`: what the camera did, then brightness and contrast, which are the content's."""
    gray = luma(image)
    blue, red = image[:, 2:] - gray, image[:, :1] - gray
    power = _log_bands(gray)
    content = power[:, CONTENT].mean(1, keepdim=True)
    color = _log_bands(torch.cat([blue, red], 1))[:, ::2]
    parts = [
        power - content,
        color - content,
        _local_deviations(gray, (0.05, 0.2, 0.5, 0.8, 0.97)),
        _local_deviations(blue, (0.1, 0.5, 0.9)),
        _local_deviations(F.avg_pool2d(gray, 2), (0.1, 0.5, 0.9)),
        _blocks(gray),
        _tails(gray),
        _directions(gray),
        _by_brightness(gray),
        content,
        content**2 / 10,
        gray.mean((2, 3)),
        gray.mean((2, 3)) ** 2,
    ]
    return torch.cat(parts, 1)


def content_power(image: Tensor) -> Tensor:
    """Logarithm of the power that content decides, `[B, 3, S, S]` -> `[B]`."""
    return _log_bands(luma(image))[:, CONTENT].mean(1)


def transfer_and_noise(clean: Tensor, photo: Tensor) -> Tensor:
    """What was done to simulated photos, `[B, 3, S, S]` twice -> `[B, D]`: logarithms, by frequency, of the transfer of
    luma, of the power that it leaves, and of the power by which colours differ."""
    before, after = luma(clean), luma(photo)
    side, source, seen = clean.shape[-1], _spectrum(before), _spectrum(after)
    masks = _masks(side, COARSE)
    masks = torch.cat([masks, _directed_masks(side)]).to(clean.device)
    cross = torch.einsum("khw,bhw->bk", masks, (seen * source.conj()).real.mean(1))
    power = torch.einsum("khw,bhw->bk", masks, source.abs().square().mean(1)).clamp(min=LEAST)
    total = torch.einsum("khw,bhw->bk", masks, seen.abs().square().mean(1))
    parts = [(cross / power).clamp(0.03, 4).log(), (total - cross**2 / power).clamp(min=10 * LEAST).log()]
    left = _high_pass(after - before).square().flatten(1)
    third = left.shape[1] // 3
    order = before.flatten(1).argsort(1)
    shares = [left.gather(1, part).mean(1) for part in (order[:, :third], order[:, -third:])]
    parts.append(torch.stack(shares, 1).clamp(min=10 * LEAST).log())
    for channel in (0, 2):
        change = (photo[:, channel : channel + 1] - after) - (clean[:, channel : channel + 1] - before)
        parts.append(_banded(change, masks[: len(COARSE) - 1 : 3]).clamp(min=10 * LEAST).log())
    return torch.cat(parts, 1)


@lru_cache
def _masks(side: int, limits: tuple[float, ...]) -> Tensor:
    """Averages over the frequencies between neighbouring limits, `[K, side, side // 2 + 1]`."""
    frequency = (torch.fft.fftfreq(side)[:, None] ** 2 + torch.fft.rfftfreq(side)[None] ** 2).sqrt()
    inside = [(frequency >= low) & (frequency < high) for low, high in pairwise(limits)]
    masks = torch.stack(inside).float()
    return masks / masks.sum((1, 2), keepdim=True).clamp(min=1)


@lru_cache
def _directed_masks(side: int) -> Tensor:
    """As `_masks`, of the bands `DIRECTED`: each in four directions, then what changes from row to row or from column
    to column alone."""
    down, across = torch.fft.fftfreq(side)[:, None], torch.fft.rfftfreq(side)[None]
    frequency, angle = (down**2 + across**2).sqrt(), torch.atan2(down, across) / math.pi * 4
    ways = [(angle.round() % 4) == way for way in range(4)]
    ways += [across.expand_as(angle) * side < 1.5, (down.abs() * side < 1.5).expand_as(angle)]
    inside = [(frequency >= low) & (frequency < high) for low, high in pairwise(DIRECTED)]
    masks = torch.stack([band & way for band in inside for way in ways]).float()
    return masks / masks.sum((1, 2), keepdim=True)


def _directions(gray: Tensor) -> Tensor:
    """How much the bands' power differs by direction, `[B, 6 * bands]`: motion, rows of a sensor, interlacing."""
    masks = _directed_masks(gray.shape[-1]).to(gray.device)
    power = _banded(gray, masks).clamp(min=LEAST).log().unflatten(1, (-1, 6))
    return (power - power[:, :, :4].mean(2, keepdim=True)).flatten(1)


def _spectrum(plane: Tensor) -> Tensor:
    window = torch.hann_window(plane.shape[-1], periodic=False, device=plane.device)
    return torch.fft.rfft2((plane - plane.mean((2, 3), keepdim=True)) * window * window[:, None], norm="ortho")


def _banded(plane: Tensor, masks: Tensor) -> Tensor:
    return torch.einsum("khw,bhw->bk", masks, _spectrum(plane).abs().square().mean(1))


def _log_bands(plane: Tensor) -> Tensor:
    return _banded(plane, _masks(plane.shape[-1], FINE).to(plane.device)).clamp(min=LEAST).log()


def _high_pass(plane: Tensor) -> Tensor:
    return plane - F.avg_pool2d(F.pad(plane, (1,) * 4, mode="reflect"), 3, 1)


def _local_deviations(plane: Tensor, shares: tuple[float, ...]) -> Tensor:
    """Logarithms of quantiles of the fine detail's deviation in blocks of 8 px: the lowest are noise, not content."""
    deviation = F.avg_pool2d(_high_pass(plane).square(), 8, 4).clamp(min=10 * LEAST).sqrt().flatten(1)
    return torch.quantile(deviation, deviation.new_tensor(shares), dim=1).T.log()


def _by_brightness(gray: Tensor) -> Tensor:
    """How much calmer than the whole the flat places of the dark and of the bright third are, `[B, 2]`, logarithms."""
    deviation = F.avg_pool2d(_high_pass(gray).square(), 8, 4).clamp(min=10 * LEAST).log().flatten(1) / 2
    order = F.avg_pool2d(gray, 8, 4).flatten(1).argsort(1)
    third = order.shape[1] // 3
    dark, bright = (deviation.gather(1, part).quantile(0.3, 1) for part in (order[:, :third], order[:, -third:]))
    return torch.stack([dark, bright], 1) - deviation.quantile(0.3, 1)[:, None]


def _blocks(gray: Tensor) -> Tensor:
    """How much more neighbours differ across the borders of JPEG's blocks than within, first and second differences."""
    found = []
    for order, borders in ((1, (7,)), (2, (6, 7))):
        change = torch.diff(gray, order, dim=-1).abs().mean((1, 2))
        across = torch.isin(torch.arange(change.shape[-1]) % 8, torch.tensor(borders)).to(gray.device)
        ratio = change[:, across].mean(1) / change[:, ~across].mean(1).clamp(min=1e-5)
        found.append(3 * ratio.clamp(min=1e-3).log())
    return torch.stack(found, 1)


def _tails(gray: Tensor) -> Tensor:
    """Logarithm of the kurtosis of fine detail: edges have long tails, noise has none."""
    fine = _high_pass(gray)
    fourth, second = fine.pow(4).mean((1, 2, 3)), fine.square().mean((1, 2, 3))
    return (fourth.clamp(min=math.ulp(1) * 1e2).log() - 2 * second.clamp(min=LEAST).log())[:, None]
