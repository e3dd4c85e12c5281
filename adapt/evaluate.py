"""Scores against ground truth, for benchmarks only: adaptation never calls this module."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def psnr(image: Tensor, reference: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each image, `[B, 3, H, W]` in `[0, 1]` -> `[B]`; 100 for equal images."""
    return -10 * (image.clamp(0, 1) - reference.clamp(0, 1)).square().mean((1, 2, 3)).clamp(min=1e-10).log10()


def ssim(image: Tensor, reference: Tensor) -> Tensor:
    """Structural similarity (Wang et al. 2004; 11 x 11 Gaussian window, sigma 1.5, mean over channels), `[B]`."""
    axis = torch.arange(11, dtype=image.dtype, device=image.device) - 5
    window = torch.exp(-(axis**2) / (2 * 1.5**2))
    window = torch.outer(window / window.sum(), window / window.sum()).expand(3, 1, 11, 11)
    a, b = image.clamp(0, 1), reference.clamp(0, 1)

    def local(x: Tensor) -> Tensor:
        return F.conv2d(x, window, groups=3)

    mean_a, mean_b = local(a), local(b)
    var_a, var_b = local(a * a) - mean_a**2, local(b * b) - mean_b**2
    covariance = local(a * b) - mean_a * mean_b
    c1, c2 = 0.01**2, 0.03**2
    score = (2 * mean_a * mean_b + c1) * (2 * covariance + c2) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
    return score.mean((1, 2, 3))


def haarpsi(image: Tensor, reference: Tensor) -> Tensor:
    """HaarPSI (Reisenhofer et al. 2018) by `piq`, `[B]`.

    Raises:
        ImportError: `piq` is not installed; it belongs to the development set.
    """
    import piq

    return piq.haarpsi(image.clamp(0, 1), reference.clamp(0, 1), reduction="none")


def align_tone(image: Tensor, reference: Tensor) -> Tensor:
    """Fits gain and offset of each channel of each image to the reference by least squares."""
    mean_i, mean_r = image.mean((2, 3), keepdim=True), reference.mean((2, 3), keepdim=True)
    centred = image - mean_i
    gain = (centred * (reference - mean_r)).mean((2, 3), keepdim=True) / centred.square().mean((2, 3), keepdim=True)
    return centred * gain + mean_r
