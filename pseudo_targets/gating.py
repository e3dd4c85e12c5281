"""Which pseudo targets can be trusted, and how far, pixel by pixel."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pseudo_targets.filters import BlockMean
from pseudo_targets.tone import tone_of, with_tone

Embed = Callable[[Tensor], Tensor]
"""Face image `[B, 3, S, S]` -> identity embedding `[B, D]`."""


@dataclass(frozen=True)
class Thresholds:
    """Limits of the gate; a target that breaks one is rejected with that reason.

    Attributes:
        low_band: largest root mean square difference between the low bands of target and photo.
        spread: largest mean standard deviation between the candidates.
        quality: smallest quality, in dB of predicted PSNR (`pseudo_targets.quality`).
        identity: smallest cosine similarity between the identities of target and cleaned photo.
    """

    low_band: float
    spread: float
    quality: float
    identity: float


@dataclass(frozen=True)
class PseudoTarget:
    """A photo's pseudo target and what is known about it.

    Attributes:
        mean: the target itself, `[3, S, S]` in `[0, 1]`, for the pixel loss.
        draw: one candidate; the clean side of the camera fit, and what perceptual and adversarial losses compare with.
        confidence: `[1, S, S]` in `(0, 1]`, near 1 where the candidates agree.
        scores: name -> value, each the one its threshold is compared with.
        accepted: whether it may teach.
        reason: why it was rejected, or "".
    """

    mean: Tensor
    draw: Tensor
    confidence: Tensor
    scores: dict[str, float]
    accepted: bool
    reason: str


def low_band_difference(image: Tensor, photo: Tensor, factor: int = 8) -> Tensor:
    """Root mean square difference of the block means, with the overall tone removed, `[B]`."""
    filter_ = BlockMean(factor)
    difference = filter_(image) - filter_(photo)
    return (difference - difference.mean((2, 3), keepdim=True)).square().mean((1, 2, 3)).sqrt()


def confidence_map(candidates: Tensor, scale: float = 0.04) -> Tensor:
    """`[K, B, 3, H, W]` candidates -> `[B, 1, H, W]`: 1 / (1 + variance / scale^2), smoothed over 5 x 5 pixels."""
    if len(candidates) == 1:
        return torch.ones_like(candidates[0, :, :1])
    variance = candidates.var(0).mean(1, keepdim=True)
    smooth = F.avg_pool2d(F.pad(variance, (2,) * 4, mode="replicate"), 5, stride=1)
    return 1 / (1 + smooth / scale**2)


def gate(
    photo: Tensor,
    reference: Tensor,
    mean: Tensor,
    candidates: Tensor,
    quality: Callable[[Tensor], Tensor],
    thresholds: Thresholds,
    embed: Embed | None = None,
) -> list[PseudoTarget]:
    """Judges the targets of a batch of photos.

    Args:
        photo: `[B, 3, S, S]`, the degraded photos.
        reference: `[B, 3, S, S]`, stage 1's output.
        mean: `[B, 3, S, S]`, the targets.
        candidates: `[K, B, 3, S, S]`, draws whose spread says how sure the targets are.
        quality: image -> predicted PSNR in dB, `[B]`.
        embed: identity embedding, or None when no identity network is there.
    """
    confidence = confidence_map(candidates)
    columns = {
        # A restorer that has learned to undo the camera's tone must not lose its targets for that.
        "low_band": low_band_difference(with_tone(mean, tone_of(photo)), photo),
        "quality": quality(mean),
        "spread": candidates.std(0, correction=min(1, len(candidates) - 1)).mean((1, 2, 3)),
    }
    if embed is not None:
        columns["identity"] = F.cosine_similarity(embed(mean), embed(reference), dim=1)
    targets = []
    for index in range(len(photo)):
        scores = {name: float(values[index]) for name, values in columns.items()}
        reason = _reason(scores, thresholds)
        targets.append(PseudoTarget(mean[index], candidates[0, index], confidence[index], scores, reason == "", reason))
    return targets


def _reason(scores: dict[str, float], thresholds: Thresholds) -> str:
    if not all(math.isfinite(score) for score in scores.values()):
        return "not finite: the prior or the restorer gives no numbers for this photo"
    if scores["low_band"] > thresholds.low_band:
        return f"disagrees with the photo: low band differs by {scores['low_band']:.3f} > {thresholds.low_band:.3f}"
    if scores["spread"] > thresholds.spread:
        return f"draws disagree: spread {scores['spread']:.3f} > {thresholds.spread:.3f}"
    if scores["quality"] < thresholds.quality:
        return f"still degraded: quality {scores['quality']:.1f} dB < {thresholds.quality:.1f} dB"
    if "identity" in scores and scores["identity"] < thresholds.identity:
        return f"identity drifted: similarity {scores['identity']:.2f} < {thresholds.identity:.2f}"
    return ""
