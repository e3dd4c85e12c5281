"""Scores against ground truth, for benchmarks only: adaptation never calls this module."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

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


BLOCK = 96
"""Side of the blocks that NIQE's model of natural images was made from."""


def niqe(images: Tensor) -> float:
    """NIQE (Mittal et al. 2013) of a set of images `[N, 3, S, S]` in `[0, 1]`, by `basicsr`; lower is more natural.

    NIQE fits a Gaussian to the blocks of 96 px of one image, and a face of 128 px has one. So this is the score of the
    set: of all blocks of all images beside each other, as `blocks_of` cuts them. The seams count as edges, the same for
    every set of as many images of this size; numbers of other sizes, or of whole photos, are not comparable.

    Raises:
        ValueError: images are smaller than a block, or give fewer than 2.
        ImportError: `basicsr` is not installed; it belongs to the extra of that name.
    """
    blocks = blocks_of(images)
    if len(blocks) < 2:
        raise ValueError(f"got {len(blocks)} block of {BLOCK} px, expected 2 or more: NIQE needs their covariance")
    strip = torch.cat(list(blocks), dim=-1)  # 3, 96, N * 96
    pixels = (strip.clamp(0, 1) * 255).round().to(torch.uint8).flip(0).permute(1, 2, 0)  # BGR
    return float(_basicsr_niqe()(pixels.cpu().numpy(), crop_border=0))


def blocks_of(images: Tensor) -> Tensor:
    """The middle of each image `[N, 3, S, S]` in as many blocks of 96 px as fit, `[N * (S // 96) ** 2, 3, 96, 96]`.

    Raises:
        ValueError: an image is smaller than a block.
    """
    count, channels, height, width = images.shape
    rows, columns = height // BLOCK, width // BLOCK
    if not rows * columns:
        raise ValueError(f"images of {height} x {width} px, expected sides of {BLOCK} px or more for NIQE")
    top, left = (height - rows * BLOCK) // 2, (width - columns * BLOCK) // 2
    middle = images[..., top : top + rows * BLOCK, left : left + columns * BLOCK]
    blocks = middle.reshape(count, channels, rows, BLOCK, columns, BLOCK).permute(0, 2, 4, 1, 3, 5)
    return blocks.reshape(-1, channels, BLOCK, BLOCK)


def _basicsr_niqe() -> Callable[..., Any]:
    # basicsr imports all of its modules, and one of them wants a module that newer releases of torchvision lack.
    name = "torchvision.transforms.functional_tensor"
    if name not in sys.modules and find_spec(name) is None:
        import torchvision.transforms.functional as functional

        sys.modules[name] = functional
    from basicsr.metrics.niqe import calculate_niqe

    return calculate_niqe


def align_tone(image: Tensor, reference: Tensor) -> Tensor:
    """Fits gain and offset of each channel of each image to the reference by least squares."""
    mean_i, mean_r = image.mean((2, 3), keepdim=True), reference.mean((2, 3), keepdim=True)
    centred = image - mean_i
    variance = centred.square().mean((2, 3), keepdim=True).clamp(min=1e-8)  # a channel may be all black
    gain = (centred * (reference - mean_r)).mean((2, 3), keepdim=True) / variance
    return centred * gain + mean_r
