"""What cameras do to a photo, step by step: blur, zoom, noise, noise reduction, sharpening, JPEG at its own pixels.

`GenericDegradation` draws such steps for training on anything; a `PhotoPipeline` is one setting of them, so that the
settings of one camera can be looked for (`adapt.camera_match`). Images are float32 `[B, 3, H, W]`, RGB, `[0, 1]`.
"""

from __future__ import annotations

import math
from dataclasses import astuple, dataclass, fields

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from restorers.degradations import add_noise, add_shot_noise, blur, elliptic_kernels, jpeg, luma, resize

NEW = 0.1
"""Chance of each value to be drawn anew when settings are changed."""


@dataclass(frozen=True)
class Range:
    """How one value is drawn: with `chance` between `low` and `high`, else the step is left out.

    Attributes:
        even: equally likely on a log scale.
        spread: deviation of the logarithm by which a value is changed.
        limits: a changed value stays between them.
        absent: the value of a step that is left out.
    """

    low: float
    high: float
    limits: tuple[float, float]
    chance: float = 1.0
    even: bool = False
    spread: float = 0.25
    absent: float = 0.0

    def draw(self, generator: Generator) -> float:
        """A value from the whole range."""
        present, share = torch.rand(2, generator=generator).tolist()
        if present >= self.chance:
            return self.absent
        return self.low * (self.high / self.low) ** share if self.even else self.low + share * (self.high - self.low)

    def change(self, value: float, generator: Generator) -> float:
        """A value near this one, now and then another."""
        if float(torch.rand((), generator=generator)) < NEW:
            return self.draw(generator)
        step = float(torch.randn((), generator=generator))
        if value == self.absent:
            return value
        return min(self.limits[1], max(self.limits[0], value * math.exp(self.spread * step)))


@dataclass(frozen=True)
class PhotoPipeline:
    """One setting of a camera's steps, in the order in which they are taken."""

    blur: float
    """Standard deviation of the lens's blur in px."""
    motion: float
    """Length in px of the straight line that a shaken camera draws of a point."""
    angle: float
    """Of that line to the rows, in rad."""
    zoom: float
    """How many times fewer pixels the sensor has than the photo; enlarged again after noise reduction."""
    gamma: float
    """Noise arises in light, of which the photo shows the root of this degree: it is strong in the dark then."""
    noise: float
    """Standard deviation of noise of all colours."""
    grain: float
    """Standard deviation in px of the blur that this noise gets, as demosaicking correlates it."""
    shot: float
    """Variance of shot noise at white."""
    color_noise: float
    """Standard deviation of noise that changes colour alone."""
    blotch: float
    """Size of its blotches: the standard deviation of its blur in px."""
    rows: float
    """Standard deviation of an offset of each row, as old sensors have."""
    smear: float
    """Noise reduction that keeps edges: contrasts far below this value are smoothed away (bilateral filter)."""
    color_smear: float
    """Standard deviation in px of the blur of colour alone."""
    sharpening: float
    """Share of the difference from a blurred copy that is added."""
    radius: float
    """Standard deviation of that blur in px."""
    quality: float
    """Of JPEG with half the resolution of colour; 0 is no JPEG."""
    enlarged: float
    """How many times the finished photo was enlarged, as stills of videos and previews are."""

    def __call__(self, image: Tensor, generator: Generator) -> Tensor:
        """The photos of clean images `[B, 3, H, W]`, same shape; the generator lies on the CPU."""
        count, _, *whole = image.shape
        height, width = (max(8, round(side / self.enlarged)) for side in whole)
        x = resize(image, (height, width), 0)
        x = softened(x, self.blur) if self.blur else x
        x = moved(x, self.motion, self.angle) if self.motion else x
        if self.zoom > 1:
            x = resize(x, (max(1, round(height / self.zoom)), max(1, round(width / self.zoom))), 0)
        if self.gamma != 1:
            x = self._with_noise(x.clamp(0, 1) ** self.gamma, generator).clamp(0, 1) ** (1 / self.gamma)
        else:
            x = self._with_noise(x, generator)
        if self.smear:
            x = bilateral(x.clamp(0, 1), self.smear)
        if self.color_smear:
            gray = luma(x)
            x = gray + softened(x - gray, self.color_smear)
        x = resize(x, (height, width), 2)
        if self.sharpening:
            x = x + self.sharpening * (x - softened(x, self.radius))
        x = x.clamp(0, 1)
        if self.quality:
            x = jpeg(x, torch.full((count,), self.quality))
        return resize(x, (whole[0], whole[1]), 2).clamp(0, 1)

    def _with_noise(self, x: Tensor, generator: Generator) -> Tensor:
        def each(value: float) -> Tensor:
            return torch.full((len(x),), value)

        if self.noise:
            grain = _fitting(self.grain, x)
            x = add_noise(x, each(self.noise), generator, (grain, grain) if grain else None)
        if self.shot:
            x = add_shot_noise(x, each(self.shot), generator)
        if self.color_noise:
            blotch = _fitting(self.blotch, x)
            noise = add_noise(torch.zeros_like(x), each(self.color_noise), generator, (blotch, blotch))
            x = x + noise - luma(noise)
        if self.rows:
            x = x + self.rows * torch.randn((len(x), 1, x.shape[2], 1), generator=generator).to(x)
        return x


RANGES = {
    "blur": Range(0.3, 2.5, (0.1, 3.0), chance=0.65),
    "motion": Range(2.0, 12.0, (1.0, 20.0), chance=0.25, even=True),
    "angle": Range(0.0, math.pi, (0.0, math.pi)),
    "zoom": Range(1.2, 3.0, (1.1, 4.0), chance=0.5, spread=0.12, absent=1.0),
    "gamma": Range(1.8, 2.4, (1.6, 2.6), chance=0.4, spread=0.05, absent=1.0),
    "noise": Range(0.7 / 255, 35 / 255, (0.2 / 255, 60 / 255), chance=0.9, even=True),
    "grain": Range(0.4, 1.5, (0.2, 3.0), chance=0.5),
    "shot": Range(0.0005, 0.02, (0.0001, 0.05), chance=0.5),
    "color_noise": Range(1 / 255, 20 / 255, (0.3 / 255, 40 / 255), chance=0.5, even=True),
    "blotch": Range(0.5, 6.0, (0.4, 8.0), even=True),
    "rows": Range(0.5 / 255, 5 / 255, (0.1 / 255, 10 / 255), chance=0.2, even=True),
    "smear": Range(0.05, 0.3, (0.01, 0.5), chance=0.4),
    "color_smear": Range(0.7, 4.0, (0.4, 6.0), chance=0.4, even=True),
    "sharpening": Range(0.2, 1.5, (0.05, 2.5), chance=0.5),
    "radius": Range(0.7, 2.5, (0.6, 3.0)),
    "quality": Range(25.0, 95.0, (10.0, 97.0), chance=0.85, spread=0.12),
    "enlarged": Range(1.2, 3.0, (1.1, 4.0), chance=0.25, spread=0.12, absent=1.0),
}
"""Of each value of a pipeline; deliberately broad, as nothing is known of the camera."""


def draw_pipeline(generator: Generator) -> PhotoPipeline:
    """A setting from everything that cameras do."""
    return PhotoPipeline(**{name: span.draw(generator) for name, span in RANGES.items()})


def changed_pipeline(pipeline: PhotoPipeline, generator: Generator) -> PhotoPipeline:
    """A setting near this one."""
    return PhotoPipeline(
        **{name: span.change(getattr(pipeline, name), generator) for name, span in RANGES.items()}
    )


def table_of(pipelines: list[PhotoPipeline]) -> Tensor:
    """Settings as a table `[K, values]`, in float64."""
    return torch.tensor([astuple(pipeline) for pipeline in pipelines], dtype=torch.float64)


def pipelines_of(table: Tensor) -> list[PhotoPipeline]:
    """The settings of a table."""
    return [PhotoPipeline(*row) for row in table.tolist()]


VALUES = len(fields(PhotoPipeline))


def softened(image: Tensor, sigma: float) -> Tensor:
    """Blurred by a round Gaussian of `sigma` px, of less where the image is hardly larger."""
    sigma = _fitting(sigma, image)
    return blur(image, elliptic_kernels(len(image), (sigma, sigma), Generator()))


def moved(image: Tensor, length: float, angle: float) -> Tensor:
    """Blurred along a straight line of `length` px at `angle` rad to the rows."""
    radius = min(math.ceil(length / 2), min(image.shape[-2:]) - 1)
    axis = torch.arange(-radius, radius + 1, dtype=torch.float32)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    along, across = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    beyond = (along.abs() - length / 2 + 0.5).clamp(min=0)
    kernel = (1 - (across**2 + beyond**2).sqrt()).clamp(min=0)
    return blur(image, (kernel / kernel.sum()).expand(len(image), -1, -1))


def _fitting(sigma: float, image: Tensor) -> float:
    """The deviation of a Gaussian whose kernel of three deviations can be reflected at the image's borders."""
    return min(sigma, (min(image.shape[-2:]) - 1) // 3)


def bilateral(image: Tensor, contrast: float, radius: int = 3, sigma: float = 2.0) -> Tensor:
    """Averages over the neighbours of each pixel that look like it (Tomasi and Manduchi 1998)."""
    height, width = image.shape[-2:]
    padded = F.pad(image, (radius,) * 4, mode="reflect")
    total, weights = torch.zeros_like(image), torch.zeros_like(image[:, :1])
    for top in range(2 * radius + 1):
        for left in range(2 * radius + 1):
            near = padded[..., top : top + height, left : left + width]
            difference = (near - image).square().mean(1, keepdim=True)
            distance = (top - radius) ** 2 + (left - radius) ** 2
            weight = torch.exp(-difference / (2 * contrast**2) - distance / (2 * sigma**2))
            total, weights = total + weight * near, weights + weight
    return total / weights
