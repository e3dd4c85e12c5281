"""Random degradations, batched on the accelerator: blur, resampling, noise, JPEG.

The generic recipe follows the one-and-a-half order degradations of GFPGAN and Real-ESRGAN (Wang et al. 2021), for
windows of photos at their own pixels. It is deliberately broad and knows nothing of any particular camera. All
functions take and return float32 `[B, 3, H, W]`, RGB, `[0, 1]`; randomness comes from the `torch.Generator` that is
passed in, and arises where that lies.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Generator, Tensor


@dataclass(frozen=True)
class GenericDegradation:
    """Ranges of the generic degradation, in pixels of the photo; every value is drawn uniformly for each image."""

    blur_sigma: tuple[float, float] = (0.1, 2.5)
    """Standard deviation of the blur in pixels, for each axis of an elliptic Gaussian."""
    scale: tuple[float, float] = (1.0, 5.0)
    """How many times smaller the image becomes before it is enlarged again."""
    noise_sigma: tuple[float, float] = (0.0, 18.0)
    """Standard deviation of Gaussian noise, in 1/255."""
    poisson: tuple[float, float] = (0.0, 0.02)
    """Shot noise: variance at white, in units of 1."""
    jpeg_quality: tuple[float, float] = (25.0, 95.0)
    grain_sigma: tuple[float, float] = (0.3, 1.0)
    """Standard deviation in pixels of the blur that noise gets, as demosaicking and noise reduction correlate it."""
    grain_probability: float = 0.4
    """Chance of a chunk's Gaussian noise to be correlated."""
    sharpening: tuple[float, float] = (0.2, 1.5)
    """How much of the difference from a blurred copy is added, before JPEG, as cameras do."""
    sharpening_probability: float = 0.25
    skip_probability: float = 0.25
    """Chance of each step to be left out for a chunk."""
    mild_probability: float = 0.35
    """Chance of a chunk to be degraded mildly, with ranges up to a random part of their strong half: most photos of a
    good camera are, and a restorer that saw strong defects alone takes their detail away."""
    clean_probability: float = 0.1
    """Chance of an image to stay as it is: a restorer that never saw a good photo softens every one it gets."""
    chunk: int = 4
    """Images that share the resampling factor and the steps that are left out; a GPU is faster with many."""

    def __call__(self, image: Tensor, generator: Generator) -> Tensor:
        """Degrades each image of the batch on its own; those of a chunk share the resampling factor."""
        return torch.cat([self._chunk(chunk, generator) for chunk in image.split(self.chunk)])

    def _chunk(self, image: Tensor, generator: Generator) -> Tensor:
        x, (count, _, height, width) = image, image.shape
        skip = [draw < self.skip_probability for draw in _uniform(5, (0.0, 1.0), generator).tolist()]
        mild, reach, grain, sharpen = _uniform(4, (0.0, 1.0), generator).tolist()
        reach = reach / 2 if mild < self.mild_probability else 1.0
        if not skip[0]:
            x = blur(x, elliptic_kernels(count, _part(self.blur_sigma, reach), generator))
        factor = 1.0 if skip[1] else float(_uniform(1, _part(self.scale, reach), generator))
        x = resize(x, (round(height / factor), round(width / factor)), int(_uniform(1, (0, 3), generator)))
        if not skip[2]:
            sigma = _uniform(count, _part(self.noise_sigma, reach), generator) / 255
            x = add_noise(x, sigma, generator, self.grain_sigma if grain < self.grain_probability else None)
        if not skip[3]:
            x = add_shot_noise(x, _uniform(count, _part(self.poisson, reach), generator), generator)
        if sharpen < self.sharpening_probability:
            x = sharpened(x, _uniform(count, _part(self.sharpening, reach), generator))
        if not skip[4]:
            x = jpeg(x.clamp(0, 1), _uniform(count, _part(self.jpeg_quality[::-1], reach), generator))
        x = resize(x, (height, width), int(_uniform(1, (0, 2), generator))).clamp(0, 1)
        clean = (_uniform(count, (0.0, 1.0), generator) < self.clean_probability).view(-1, 1, 1, 1)
        return torch.where(clean.to(x.device), image, x)


def luma(image: Tensor) -> Tensor:
    """BT.601 luma, `[B, 3, H, W]` -> `[B, 1, H, W]`."""
    return (image * image.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)).sum(1, keepdim=True)


def elliptic_kernels(count: int, sigma: tuple[float, float], generator: Generator) -> Tensor:
    """`[count, k, k]` normalised Gaussian kernels with random axes and angle; `k` covers three sigma."""
    radius = max(1, math.ceil(3 * sigma[1]))
    axis = torch.arange(-radius, radius + 1, dtype=torch.float32, device=generator.device)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    s1, s2 = _uniform(count, sigma, generator).view(-1, 1, 1), _uniform(count, sigma, generator).view(-1, 1, 1)
    angle = _uniform(count, (0.0, math.pi), generator).view(-1, 1, 1)
    u = x * angle.cos() + y * angle.sin()
    v = -x * angle.sin() + y * angle.cos()
    kernel = torch.exp(-0.5 * ((u / s1) ** 2 + (v / s2) ** 2))
    return kernel / kernel.sum((1, 2), keepdim=True)


def blur(image: Tensor, kernels: Tensor) -> Tensor:
    """Filters image `b` with kernel `b` (`[B, k, k]`), reflecting at the borders."""
    count, channels, height, width = image.shape
    radius = kernels.shape[-1] // 2
    weight = kernels.to(image).repeat_interleave(channels, 0).unsqueeze(1)  # [B*C, 1, k, k]
    padded = F.pad(image, (radius,) * 4, mode="reflect").reshape(1, count * channels, height + 2 * radius, -1)
    return F.conv2d(padded, weight, groups=count * channels).view(count, channels, height, width)


def resize(image: Tensor, size: tuple[int, int], mode: int) -> Tensor:
    """Resamples to `size` by area (0), bilinear (1) or bicubic (2) interpolation, antialiased when shrinking."""
    if tuple(image.shape[-2:]) == size:
        return image
    if mode == 0 and size[0] < image.shape[-2]:
        return F.interpolate(image, size, mode="area")
    return F.interpolate(image, size, mode="bicubic" if mode == 2 else "bilinear", antialias=True)


def add_noise(
    image: Tensor, sigma: Tensor, generator: Generator, grain: tuple[float, float] | None = None
) -> Tensor:
    """Adds Gaussian noise of standard deviation `sigma` `[B]`: white, or blurred by a deviation within `grain` px."""
    noise = torch.randn(image.shape, generator=generator, device=generator.device).to(image)
    if grain is not None:
        kernels = elliptic_kernels(len(image), grain, generator)
        noise = blur(noise, kernels) / kernels.square().sum((1, 2)).sqrt().view(-1, 1, 1, 1).to(image)
    return image + noise * sigma.view(-1, 1, 1, 1).to(image)


def sharpened(image: Tensor, amount: Tensor, sigma: float = 1.5) -> Tensor:
    """Unsharp masking: adds `amount` `[B]` times the difference from a Gaussian blur of `sigma` px; not clamped."""
    count = len(image)
    kernels = elliptic_kernels(count, (sigma, sigma), Generator())
    return image + amount.view(-1, 1, 1, 1).to(image) * (image - blur(image, kernels))


def add_shot_noise(image: Tensor, variance: Tensor, generator: Generator) -> Tensor:
    """Adds noise whose variance is `variance * image`, the Gaussian limit of Poisson noise."""
    noise = torch.randn(image.shape, generator=generator, device=generator.device).to(image)
    return image + noise * (image.clamp(min=0) * variance.view(-1, 1, 1, 1).to(image)).sqrt()


_LUMA_TABLE = [
    [16, 11, 10, 16, 24, 40, 51, 61], [12, 12, 14, 19, 26, 58, 60, 55], [14, 13, 16, 24, 40, 57, 69, 56],
    [14, 17, 22, 29, 51, 87, 80, 62], [18, 22, 37, 56, 68, 109, 103, 77], [24, 35, 55, 64, 81, 104, 113, 92],
    [49, 64, 78, 87, 103, 121, 120, 101], [72, 92, 95, 98, 112, 100, 103, 99],
]  # fmt: skip
_CHROMA_TABLE = [
    [17, 18, 24, 47, 99, 99, 99, 99], [18, 21, 26, 66, 99, 99, 99, 99], [24, 26, 56, 99, 99, 99, 99, 99],
    [47, 66, 99, 99, 99, 99, 99, 99], *[[99] * 8] * 4,
]  # fmt: skip
_TO_YCC = [[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]]


def jpeg(image: Tensor, quality: Tensor) -> Tensor:
    """Baseline JPEG with 4:2:0 chroma (ITU T.81 annex K tables, libjpeg's quality scale), without the entropy coder.

    Args:
        image: `[B, 3, H, W]` in `[0, 1]`.
        quality: `[B]`, 1 to 100.
    """
    height, width = image.shape[-2:]
    padded = F.pad(image, (0, -width % 16, 0, -height % 16), mode="replicate") * 255
    matrix = image.new_tensor(_TO_YCC)
    ycc = torch.einsum("ij,bjhw->bihw", matrix, padded) - image.new_tensor([128.0, 0, 0]).view(1, 3, 1, 1)
    scale = torch.where(quality < 50, 5000 / quality.clamp(min=1), 200 - 2 * quality).to(image).view(-1, 1, 1, 1, 1)
    y = _code(ycc[:, :1], _LUMA_TABLE, scale)
    chroma = F.interpolate(_code(F.avg_pool2d(ycc[:, 1:], 2), _CHROMA_TABLE, scale), scale_factor=2.0, mode="bilinear")
    ycc = torch.cat([y, chroma], 1) + image.new_tensor([128.0, 0, 0]).view(1, 3, 1, 1)
    rgb = torch.einsum("ij,bjhw->bihw", torch.linalg.inv(matrix), ycc) / 255
    return rgb[..., :height, :width].clamp(0, 1)


def _code(plane: Tensor, table: list[list[int]], scale: Tensor) -> Tensor:
    """Quantises the 8x8 cosine coefficients of `[B, C, H, W]`."""
    k = torch.arange(8, dtype=plane.dtype, device=plane.device)
    dct = torch.cos((2 * k.view(1, 8) + 1) * k.view(8, 1) * math.pi / 16) / 2
    dct[0] /= math.sqrt(2)
    step = ((plane.new_tensor(table) * scale + 50) / 100).floor().clamp(1, 255)  # [B, 1, 1, 8, 8]
    batch, channels, height, width = plane.shape
    grid = plane.view(batch, channels, height // 8, 8, width // 8, 8)
    blocks = grid.transpose(3, 4).reshape(batch, channels, -1, 8, 8)
    coded = dct.T @ (torch.round(dct @ blocks @ dct.T / step) * step) @ dct
    return coded.view(batch, channels, height // 8, width // 8, 8, 8).transpose(3, 4).reshape(plane.shape)


def _part(bounds: tuple[float, float], reach: float) -> tuple[float, float]:
    """The mild part of a range whose second value is its strong end; `reach` 1 is all of it."""
    return bounds[0], bounds[0] + reach * (bounds[1] - bounds[0])


def _uniform(count: int, bounds: tuple[float, float], generator: Generator) -> Tensor:
    draws = torch.rand(count, generator=generator, device=generator.device)
    return draws * (bounds[1] - bounds[0]) + bounds[0]
