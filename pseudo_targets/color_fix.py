"""Colour fixes: give a generated image the colours of the image it was conditioned on.

Images are `[B, 3, H, W]`, RGB, `[0, 1]`. Results are not clamped: what overshoots must survive until the image is
resized and written.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def binomial_blur(image: Tensor, radius: int) -> Tensor:
    """`image` filtered by [1 2 1] / 4 along rows and columns, taps `radius` pixels apart, edges repeated."""
    height, width = image.shape[-2:]
    padded = F.pad(image, (radius, radius, radius, radius), mode="replicate")
    rows = (padded[..., :height, :] + padded[..., 2 * radius :, :]) / 4 + padded[..., radius : radius + height, :] / 2
    return (rows[..., :width] + rows[..., 2 * radius :]) / 4 + rows[..., radius : radius + width] / 2


def wavelet_split(image: Tensor, levels: int = 5) -> tuple[Tensor, Tensor]:
    """High and low band of the a-trous wavelet transform with blur radii 1, 2, 4, ...; they add up to `image`."""
    low = image
    for level in range(levels):
        low = binomial_blur(low, 2**level)
    # The details of all levels telescope to the difference from the last blur.
    return image - low, low


def wavelet_color_fix(content: Tensor, style: Tensor, levels: int = 5) -> Tensor:
    """High band of `content` on the low band of `style`, both of the same shape."""
    return wavelet_split(content, levels)[0] + wavelet_split(style, levels)[1]


def adain_color_fix(content: Tensor, style: Tensor, epsilon: float = 1e-5) -> Tensor:
    """`content` with each channel's mean and deviation replaced by those of `style` (Huang and Belongie 2017, eq. 8).

    `epsilon` is added to the unbiased variances.
    """
    content_mean, content_deviation = _mean_and_deviation(content, epsilon)
    style_mean, style_deviation = _mean_and_deviation(style, epsilon)
    return (content - content_mean) / content_deviation * style_deviation + style_mean


def _mean_and_deviation(image: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    mean = image.mean(dim=(-2, -1), keepdim=True)
    return mean, (image.var(dim=(-2, -1), keepdim=True) + epsilon).sqrt()
