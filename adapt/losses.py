"""Terms of the restorer's loss. Images are float32 `[B, 3, H, W]`, RGB, `[0, 1]`."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from adapt.evaluate import psnr

Features = Callable[[Tensor], list[Tensor]]
"""Image -> activations of a fixed network, fine to coarse."""
Distance = Callable[[Tensor, Tensor], Tensor]
"""Restored image and target -> how far apart they look, a scalar or one number an image."""


def pixel_loss(restored: Tensor, target: Tensor, confidence: Tensor) -> Tensor:
    """L1 distance, each pixel weighted by its confidence `[B, 1, H, W]`."""
    return (confidence * (restored - target).abs()).mean()


def perceptual_loss(restored: Tensor, target: Tensor, features: Features) -> Tensor:
    """L1 distance of channel-normalised activations (the form of LPIPS, Zhang et al. 2018, in features of our own)."""
    with torch.no_grad():
        wanted = [F.normalize(activation.float(), dim=1) for activation in features(target)]
    got = [F.normalize(activation.float(), dim=1) for activation in features(restored)]
    terms = [(a - b).abs().sum(1).mean() for a, b in zip(got, wanted, strict=True)]
    return torch.stack(terms).mean()


def harm_loss(restored: Tensor, before: Tensor, target: Tensor) -> Tensor:
    """How much worse `restored` is than `before`, in dB of PSNR, mean over images; what became better does not count.

    A mean of errors would let what most photos gain make up for it; to the owner of the photo it does not.
    """
    return (psnr(before, target) - psnr(restored, target)).clamp(min=0).mean()


def code_losses(scores: Tensor, features: Tensor, numbers: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
    """Cross-entropy of predicted codes, and squared distance of features to the right ones (CodeFormer's stage II).

    Args:
        scores: `[B, T, N]`, of each of N codes at T places.
        features: `[B, C, h, w]`, what the encoder makes of the degraded image.
        numbers: `[B, T]`, the right codes.
        codes: `[B, C, h, w]`, the right codes as features; they take no gradient.
    """
    return F.cross_entropy(scores.float().transpose(1, 2), numbers), F.mse_loss(features.float(), codes.detach())
