"""Draws the photos in `samples/`: faces of nobody, drawn by the embedded prior, seen by a simulated camera.

    python scripts/make_samples.py samples/ [--clean DIR] [--count 32] [--seed 7]

The camera shakes along one slanted axis, is a little out of focus, has noise that grows with brightness, and saves
strongly compressed JPEG. `--clean` also writes what it saw.
"""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import torch
from torch import Generator, Tensor

from adapt.photos import write_photo
from adapt.seeds import generator_of
from pseudo_targets.embedded import load_mini
from pseudo_targets.sampling import Trajectory, draw
from restorers.degradations import add_shot_noise, blur
from restorers.zoo import load_restorer

JPEG_QUALITY = 45


def shaky_camera(clean: Tensor, generator: Generator) -> Tensor:
    """Motion blur of five pixels at 30 degrees, defocus, shot noise; `[B, 3, S, S]` in `[0, 1]`."""
    axis = torch.arange(-4, 5, dtype=torch.float32)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    angle = math.radians(30)
    along, across = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    kernel = torch.exp(-0.5 * ((along / 1.8) ** 2 + (across / 0.7) ** 2))
    moved = blur(clean, (kernel / kernel.sum()).expand(len(clean), -1, -1))
    return add_shot_noise(moved, torch.full((len(clean),), 0.003), generator).clamp(0, 1)


@torch.no_grad()
def main() -> None:
    """Draws, photographs and writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", type=Path)
    parser.add_argument("--clean", type=Path)
    parser.add_argument("--count", type=int, default=32)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    prior, restorer = load_mini(), load_restorer("compact").module
    for number in range(options.count):
        generator = generator_of("sample", options.seed, number)
        face = restorer(draw(prior, Trajectory(len(prior.schedule) - 1, 40), [generator])).clamp(0, 1)
        if options.clean is not None:
            write_photo(options.clean / f"{number + 1:02d}.png", face)
        write_photo(options.output / f"{number + 1:02d}.jpg", shaky_camera(face, generator), quality=JPEG_QUALITY)


if __name__ == "__main__":
    main()
