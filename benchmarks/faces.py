"""How well a face finder finds and aligns: `python -m benchmarks.faces --photos DIR --clean DIR`.

Photos: how many had at least one face found, with scores, sizes and seconds; `--sheet FILE` writes the aligned crops as
one picture, because only a look tells whether they are right. Clean: aligned faces, moved by random known transforms
onto a gray ground and degraded; the error is the mean distance of the five template points, in eye distances.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from adapt.faces import FFHQ_TEMPLATE, Face, FaceFinder, Matrix, align, invert, load_finder, native_size, paste_back
from adapt.photos import find_photos, read_photo, write_photo

CANVAS = 384
EYES = float((FFHQ_TEMPLATE[0] - FFHQ_TEMPLATE[1]).norm())


def photo_table(finder: FaceFinder, folder: Path, sheet: Path | None) -> list[str]:
    """Markdown rows, one a photo set; `sheet` gets a picture of all crops."""
    counts, sizes, scores, seconds, crops = [], [], [], [], []
    photos = find_photos(folder).photos
    for photo in photos:
        image = read_photo(photo.path)
        start = time.perf_counter()
        faces = finder.find(image)
        seconds.append(time.perf_counter() - start)
        counts.append(len(faces))
        sizes += [native_size(face) for face in faces]
        scores += [face.score for face in faces]
        crops += [align(image, face, 96) for face in faces]
        if len(faces) != 1:
            print(f"{photo.path.name}: {len(faces)} faces")
    if sheet is not None and crops:
        write_photo(sheet, _grid(crops, 16))
    with_face = sum(count > 0 for count in counts)
    spread = torch.tensor([sizes or [math.nan], scores or [math.nan]]).quantile(torch.tensor([0.05, 0.5]), dim=1)
    return [
        "| photos | with a face | several | faces | crop side 5 % / median px | score 5 % / median | s a photo |",
        "|--:|--:|--:|--:|--:|--:|--:|",
        f"| {len(counts)} | {with_face} ({with_face / max(1, len(counts)):.1%}) | {sum(c > 1 for c in counts)} "
        f"| {sum(counts)} | {spread[0, 0]:.0f} / {spread[1, 0]:.0f} | {spread[0, 1]:.2f} / {spread[1, 1]:.2f} "
        f"| {sum(seconds) / max(1, len(seconds)):.3f} |",
    ]


def _grid(crops: list[Tensor], columns: int) -> Tensor:
    blank = torch.zeros_like(crops[0])
    padded = crops + [blank] * (-len(crops) % columns)
    rows = [torch.cat(padded[i : i + columns], -1) for i in range(0, len(padded), columns)]
    return torch.cat(rows, -2)


def _moved(image: Tensor, generator: torch.Generator) -> tuple[Tensor, Face]:
    """A gray 384 px photo with the aligned face `[1,3,S,S]` pasted at 60 to 240 px, within 25 degrees; and where."""
    side, x, y, turn = torch.rand(4, generator=generator).tolist()
    side, angle = 60 * 4**side, math.radians(50 * turn - 25)
    x, y = (side / 2 + v * (CANVAS - side) for v in (x, y))
    a, b = 512 / side * math.cos(angle), 512 / side * math.sin(angle)
    face = Face(0, ((a, b, 255.5 - a * x - b * y), (-b, a, 255.5 + b * x - a * y)), 1.0)
    return paste_back(torch.full((1, 3, CANVAS, CANVAS), 0.5), image, face), face


def _degraded(photo: Tensor, generator: torch.Generator, shrink: float, noise: float) -> Tensor:
    small = int(CANVAS / shrink)
    low = F.interpolate(photo, (small, small), mode="bilinear", antialias=True)
    low = low + noise * torch.randn(low.shape, generator=generator)
    return F.interpolate(low, (CANVAS, CANVAS), mode="bicubic").clamp(0, 1)


def _error(found: Face, true: Face) -> float:
    """Mean distance of the template points on the photo, in true eye distances."""
    points = [_points(face.matrix) for face in (found, true)]
    return float((points[0] - points[1]).norm(dim=1).mean()) / (EYES * native_size(true) / 512)


def _points(matrix: Matrix) -> Tensor:
    inverse = torch.tensor(invert(matrix), dtype=torch.float64)
    return FFHQ_TEMPLATE.double() @ inverse[:, :2].T + inverse[:, 2]


def clean_table(finder: FaceFinder, folder: Path, limit: int, seed: int) -> list[str]:
    """Markdown rows, one a degradation; missed: no face within half an eye distance; false: any further face."""
    rows = [
        "| degradation | faces | missed | false | error median / 95 % (eye distances) |",
        "|---|--:|--:|--:|--:|",
    ]
    images = [read_photo(photo.path) for photo in find_photos(folder).photos[:limit]]
    for title, shrink, noise in (("none", 1.0, 0.0), ("noise 0.1", 1.0, 0.1), ("shrunk 2.5x, noise 0.03", 2.5, 0.03)):
        generator = torch.Generator().manual_seed(seed)
        errors, false = [], 0
        for image in images:
            photo, true = _moved(image, generator)
            found = [_error(face, true) for face in finder.find(_degraded(photo, generator, shrink, noise))]
            near = [error for error in found if error < 0.5]
            errors += [min(near)] if near else []
            false += len(found) - bool(near)
        spread = torch.tensor(errors or [math.nan]).quantile(torch.tensor([0.5, 0.95])).tolist()
        missed = len(images) - len(errors)
        rows.append(f"| {title} | {len(images)} | {missed} | {false} | {spread[0]:.3f} / {spread[1]:.3f} |")
    return rows


def main() -> None:
    """Parse the command line of the module docstring and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faces", description=__doc__)
    parser.add_argument("--photos", type=Path, action="append", default=[], help="folder of photos; may be repeated")
    parser.add_argument("--clean", type=Path, help="folder of clean aligned faces")
    parser.add_argument("--finder", default="auto", help="auto, facexlib or bundled")
    parser.add_argument("--sheet", type=Path, help="write the crops of the last --photos folder to this picture")
    parser.add_argument("--limit", type=int, default=200, help="clean faces to use")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    finder = load_finder(given.finder)
    print(f"face finder: {finder.name}")
    for folder in given.photos:
        print(f"\n{folder.name}\n" + "\n".join(photo_table(finder, folder, given.sheet)))
    if given.clean is not None:
        print(f"\n{given.clean.name}\n" + "\n".join(clean_table(finder, given.clean, given.limit, given.seed)))


if __name__ == "__main__":
    main()
