"""Training data of the bundled face finder: aligned faces placed at known positions, in strange surroundings, degraded.

The faces are FFHQ-aligned, so a random similarity transform is an exact label. Every paste uses the same random soft
masks for faces and for pieces of background, so the edge of a paste says nothing about what was pasted.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from adapt.errors import AdaptError

Gray = NDArray[np.float32]
"""One channel, `[H,W]`, [0,1]."""

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")


@dataclass(frozen=True)
class Placement:
    """Where a face's crop lies on a canvas: centre and side in px, angle in radians (clockwise, y points down)."""

    x: float
    y: float
    side: float
    angle: float


@dataclass(frozen=True)
class FacePool:
    """Aligned faces at 128 px and their half-size copies (`uint8 [N,128,128]`, `[N,64,64]`), and face-free photos."""

    faces: NDArray[np.uint8]
    small: NDArray[np.uint8]
    backgrounds: tuple[NDArray[np.uint8], ...]


def _images(folder: Path) -> list[Path]:
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not found:
        raise AdaptError(f"{folder}: no images found, expected {', '.join(SUFFIXES)}; name another folder")
    return found


def _read_gray(path: Path, rng: Generator) -> NDArray[np.uint8]:
    """Mostly luminance, at times one channel: plates before 1920 saw blue only."""
    colour = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if colour is None:
        raise AdaptError(f"{path}: not a readable image; remove it from the training folder")
    if rng.random() < 0.7:
        return cv2.cvtColor(colour, cv2.COLOR_BGR2GRAY)
    return np.ascontiguousarray(colour[:, :, int(rng.integers(3))])


def load_pool(faces: Path, backgrounds: Path, seed: int) -> FacePool:
    """Read aligned square faces and photos without faces; raises `AdaptError` for empty folders or broken images."""
    rng = np.random.default_rng(seed)
    gray = [cv2.resize(_read_gray(p, rng), (128, 128), interpolation=cv2.INTER_AREA) for p in _images(faces)]
    large = np.stack(gray)
    small = np.stack([cv2.resize(face, (64, 64), interpolation=cv2.INTER_AREA) for face in gray])
    return FacePool(large, small, tuple(_read_gray(p, rng) for p in _images(backgrounds)))


def background(rng: Generator, pool: FacePool, size: int) -> Gray:
    """A random piece of a face-free photo at a random scale, or a plain or blurred ground."""
    photo = pool.backgrounds[int(rng.integers(len(pool.backgrounds)))]
    side = int(min(photo.shape[:2]) * rng.uniform(0.15, 1.0) ** 1.5)
    side = max(side, min(size, *photo.shape[:2]))
    y, x = (int(rng.integers(n - side + 1)) for n in photo.shape[:2])
    piece = cv2.resize(photo[y : y + side, x : x + side], (size, size), interpolation=cv2.INTER_AREA)
    ground = piece.astype(np.float32) / 255
    if rng.random() < 0.35:  # studio portraits stand before a nearly plain wall
        ground = cv2.GaussianBlur(ground, (0, 0), float(rng.uniform(4, 20)))
        ground = ground.mean() + (ground - ground.mean()) * float(rng.uniform(0, 1)) + float(rng.uniform(-0.3, 0.3))
    return np.clip(ground, 0, 1)


def _mask(rng: Generator, size: int, at: Placement, wide: bool) -> Gray:
    """Soft superellipse around the paste, in [0,1]; from a round vignette to the whole square.

    `wide` allows a mask beyond the crop: the wall behind a sitter goes on around the face.
    """
    ys, xs = np.mgrid[0:size, 0:size].astype(np.float32)
    c, s = np.cos(at.angle), np.sin(at.angle)
    u = (c * (xs - at.x) + s * (ys - at.y)) / at.side
    v = (-s * (xs - at.x) + c * (ys - at.y)) / at.side - float(rng.uniform(0, 0.06))
    power = float(rng.choice([2.0, 4.0, 12.0]))
    grow = float(rng.uniform(1.2, 3.0)) if wide and rng.random() < 0.4 else 1.0
    reach = grow * rng.uniform([0.34, 0.42], 0.62)
    inner = (np.abs(u) / reach[0]) ** power + (np.abs(v) / reach[1]) ** power
    return np.clip((1 - inner ** (1 / power)) / float(rng.uniform(0.02, 0.4)) + 0.5, 0, 1).astype(np.float32)


def _forward(side: int, at: Placement) -> NDArray[np.float64]:
    """Pixels of a `side` px source -> canvas pixels."""
    scale = at.side / side
    c, s, half = scale * np.cos(at.angle), scale * np.sin(at.angle), (side - 1) / 2
    return np.array([[c, -s, at.x - half * (c - s)], [s, c, at.y - half * (s + c)]])


def paste(rng: Generator, pool: FacePool, canvas: Gray, at: Placement, face: bool, wide: bool = True) -> Gray:
    """The canvas with a random face (or, for `face=False`, a random piece of background) at `at`.

    `wide=False` keeps the paste within its own square, so that it does not cover what was pasted before.
    """
    size = canvas.shape[0]
    if face:
        source = (pool.faces if at.side > 56 else pool.small)[int(rng.integers(len(pool.faces)))]
        source = source[:, ::-1] if rng.random() < 0.5 else source
        source = source.astype(np.float32) / 255
    else:
        source = background(rng, pool, 64)
    source = np.clip(0.5 + (source - 0.5) * float(rng.uniform(0.5, 1.2)) + float(rng.uniform(-0.2, 0.2)), 0, 1)
    if face and rng.random() < 0.15:  # something in front of the face, or a torn corner
        y, x = rng.integers(source.shape[0], size=2)
        source[y : y + source.shape[0] // 4, x : x + source.shape[0] // 3] = float(rng.random())
    warped = cv2.warpAffine(
        source, _forward(source.shape[0], at), (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    mask = _mask(rng, size, at, wide)
    return canvas * (1 - mask) + warped * mask


def _print_like(rng: Generator, image: Gray) -> Gray:
    """Engraving or newspaper: tones turned into hard dots or lines, softened again by the scan."""
    ys, xs = np.mgrid[0 : image.shape[0], 0 : image.shape[1]].astype(np.float32)
    angle, pitch = float(rng.uniform(0, np.pi)), float(rng.uniform(1.8, 4.0))
    u, v = np.cos(angle) * xs + np.sin(angle) * ys, -np.sin(angle) * xs + np.cos(angle) * ys
    screen = np.sin(2 * np.pi * u / pitch) * (np.sin(2 * np.pi * v / pitch) if rng.random() < 0.5 else 1.0)
    hard = 1 / (1 + np.exp(-(image - 0.5 + 0.35 * screen) * float(rng.uniform(4, 20))))
    mix = float(rng.uniform(0.3, 1.0))
    return cv2.GaussianBlur((image * (1 - mix) + hard * mix).astype(np.float32), (0, 0), float(rng.uniform(0.3, 0.9)))


def degrade(rng: Generator, image: Gray) -> Gray:
    """A bad photograph of `image`: tone, light, blur, grain, print screen, low resolution, JPEG."""
    size = image.shape[0]
    image = np.clip(image, 0, 1) ** float(np.exp(rng.normal(0, 0.35)))
    image = float(rng.uniform(0, 0.25)) + image * float(rng.uniform(0.35, 0.8) if rng.random() < 0.4 else 0.85)
    if rng.random() < 0.3:
        light = np.linspace(float(rng.uniform(0.4, 1)), 1, size, dtype=np.float32)
        image = image * (light[None, :: int(rng.choice([-1, 1]))] if rng.random() < 0.6 else light[:, None])
    if rng.random() < 0.25:  # over-sharpened or hard paper
        soft = cv2.GaussianBlur(image.astype(np.float32), (0, 0), float(rng.uniform(1, 3)))
        image = image + (image - soft) * float(0.5 + 2.5 * rng.random() ** 2)
    if rng.random() < 0.15:
        image = _print_like(rng, np.clip(image, 0, 1))
    image = np.asarray(image, np.float32)
    if rng.random() < 0.4:
        image = cv2.GaussianBlur(image, (0, 0), float(rng.uniform(0.3, 1.8)))
    if rng.random() < 0.25:
        small = max(16, int(size / rng.uniform(1.2, 2.5)))
        image = cv2.resize(cv2.resize(image, (small, small), interpolation=cv2.INTER_AREA), (size, size))
    if rng.random() < 0.6:
        grain = rng.standard_normal((size, size), dtype=np.float32) * float(0.12 * rng.random() ** 2)
        image = image + (cv2.GaussianBlur(grain, (0, 0), 0.8) * 1.5 if rng.random() < 0.4 else grain)
    image = np.clip(image, 0, 1)
    if rng.random() < 0.4:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(12, 90))]
        _, coded = cv2.imencode(".jpg", (image * 255).astype(np.uint8), quality)
        image = (np.asarray(cv2.imdecode(coded, cv2.IMREAD_GRAYSCALE)) / 255).astype(np.float32)
    return image.astype(np.float32)
