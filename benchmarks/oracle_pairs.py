"""The photos of a camera beside their references, at their own pixels, and windows of both as the job takes them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from adapt.errors import AdaptError, UsageError, printable
from adapt.faces import Face, Matrix, align
from adapt.gathered import WindowRecord, load_windows, read_gathered
from adapt.photos import find_photos, photo_files, read_photo
from adapt.windows import Window, cut
from adapt.working_scale import shrunk


@dataclass(frozen=True)
class Pairs:
    """Photos and their references, each `[1, 3, H, W]` at its own size."""

    photos: list[Tensor]
    references: list[Tensor]


def check_folders(references: Path, *photos: Path) -> None:
    """Looks at names alone, before hours of work: no reference is opened.

    Raises:
        UsageError: a photo has no reference, two files share a stem, or references lie among photos.
        AdaptError: a folder holds no photos.
    """
    known = _stems(references)
    for folder in photos:
        if references.resolve().is_relative_to(folder.resolve()):
            raise UsageError(
                f"--references {printable(references)}: lies in {printable(folder)}, whose photos it would join; "
                "move it beside that folder"
            )
        lacking = sorted(_stems(folder) - known)
        if lacking:
            raise UsageError(
                f"--references {printable(references)}: no reference for {len(lacking)} photos of {printable(folder)}, "
                f"the first is {lacking[0]!r}; a reference bears its photo's name, the suffix may differ"
            )


def taught_windows(run: Path) -> tuple[Tensor, tuple[WindowRecord, ...]]:
    """The windows of a finished run of the job, `[N, 3, S, S]`, and where they come from."""
    gathered = read_gathered(run / "gathered.json")
    return load_windows(run, gathered.windows), gathered.windows


def references_of_windows(windows: Sequence[WindowRecord], inputs: Path, references: Path, size: int) -> Tensor:
    """The same windows of the references, `[N, 3, size, size]`.

    Raises:
        AdaptError: a reference cannot be read or is of another size than its photo.
    """
    paths = {photo.sha256: photo.path for photo in find_photos(inputs).photos}
    whole: dict[str, Tensor] = {}
    found = []
    for window in windows:
        if window.sha256 not in whole:
            whole = {window.sha256: references_of([paths[window.sha256]], references)[0]}  # one at a time in memory
        found.append(_window(whole[window.sha256], window.matrix, size))
    return torch.cat(found)


def _window(image: Tensor, matrix: Matrix, size: int) -> Tensor:
    factor = round(1 / matrix[0][0]) if matrix[0][0] <= 1 and matrix[0][2] == round(matrix[0][2]) else 0
    if factor:  # a window at the photo's own pixels, or at those of its working scale
        place = Window(-round(matrix[1][2]), -round(matrix[0][2]), False)
        return cut(shrunk(image, factor), place, size)
    return align(image, Face(0, matrix, 1.0), size)


def scored_photos(folder: Path) -> tuple[list[Tensor], list[Path]]:
    """Every usable photo of a folder, `[1, 3, H, W]` at its own size, and its path; says which are not used."""
    found = find_photos(folder)
    for path, reason in found.refused:
        print(f"not scored: {printable(path)}: {reason}")
    for path, first in found.duplicates:
        print(f"not scored: {printable(path)}: same content as {printable(first)}")
    paths = [photo.path for photo in found.photos]
    return [read_photo(path) for path in paths], paths


def references_of(photos: Sequence[Path], references: Path) -> list[Tensor]:
    """The reference of each photo, `[1, 3, H, W]`; one may serve several photos.

    Raises:
        AdaptError: a reference cannot be read or is of another size than its photo.
    """
    by_stem = {path.stem: path for path in photo_files(references)[0]}
    found = []
    for path in photos:
        image, photo = read_photo(by_stem[path.stem]), read_photo(path)
        if image.shape != photo.shape:
            sizes = " and ".join(f"{one.shape[-1]} x {one.shape[-2]} px" for one in (photo, image))
            raise AdaptError(f"{printable(path)}: photo and reference are {sizes}, expected the same size")
        found.append(image)
    return found


def _stems(folder: Path) -> set[str]:
    count = Counter(path.stem for path in photo_files(folder)[0])
    twice = sorted(stem for stem, times in count.items() if times > 1)
    if twice:
        raise UsageError(
            f"{printable(folder)}: {len(twice)} names stand more than once, the first is {twice[0]!r}; "
            "photo and reference find each other by name: rename the files"
        )
    return set(count)
