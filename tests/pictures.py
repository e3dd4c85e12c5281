"""Small pictures for tests of photo reading and writing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from adapt.photos import read_photo

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def solid(colour: tuple[int, int, int], width: int = 40, height: int = 48) -> Image.Image:
    return Image.new("RGB", (width, height), colour)


def noise(seed: int, width: int = 40, height: int = 48) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def pixel(path: Path, y: int = 20, x: int = 20) -> list[int]:
    """One pixel of a photo as it is read, in 8-bit steps."""
    return [round(value * 255) for value in read_photo(path)[0, :, y, x].tolist()]
