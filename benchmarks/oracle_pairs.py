"""The photos of a camera beside their references, read as the job reads them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from adapt.errors import AdaptError, UsageError, printable
from adapt.faces import align, aligned_face
from adapt.gather import gather, load_crops
from adapt.photos import find_photos, photo_files, read_photo
from recipes.schema import Faces


@dataclass(frozen=True)
class Pairs:
    """Photos and their references, `[N, 3, S, S]`."""

    photos: Tensor
    references: Tensor


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


def taught_photos(inputs: Path, run: Path, settings: Faces) -> tuple[Tensor, list[Path]]:
    """What a finished run of the job has gathered from `inputs`: crops `[N, 3, S, S]` and the photo of each."""
    gathered = gather(inputs, run, settings, None, lambda done, total: None)
    paths = {photo.sha256: photo.path for photo in find_photos(inputs).photos}
    return load_crops(run, gathered.faces), [paths[face.sha256] for face in gathered.faces]


def scored_photos(folder: Path, size: int) -> tuple[Tensor, list[Path]]:
    """Every usable photo of a folder, `[N, 3, size, size]`, and its path; says which are not used.

    Raises:
        AdaptError: none can be used.
    """
    found = find_photos(folder)
    square = [photo.path for photo in found.photos if photo.width == photo.height]
    for photo in found.photos:
        if photo.width != photo.height:
            print(f"not scored: {printable(photo.path)}: {photo.width} x {photo.height} px, expected an aligned face")
    for path, reason in found.refused:
        print(f"not scored: {printable(path)}: {reason}")
    for path, first in found.duplicates:
        print(f"not scored: {printable(path)}: same content as {printable(first)}")
    if not square:
        raise AdaptError(f"{printable(folder)}: no square photos, expected aligned faces")
    return read_faces(square, size), square


def references_of(photos: list[Path], references: Path, size: int) -> Tensor:
    """The reference of each photo, `[N, 3, size, size]`; one may serve several photos."""
    by_stem = {path.stem: path for path in photo_files(references)[0]}
    return read_faces([by_stem[path.stem] for path in photos], size)


def read_faces(paths: list[Path], size: int) -> Tensor:
    """Aligned faces `[N, 3, size, size]`, brought to this size as the job does it.

    Raises:
        AdaptError: a photo cannot be read or is not square; the message names it.
    """
    faces = []
    for path in paths:
        image = read_photo(path)
        try:
            face = aligned_face(image.shape[-1], image.shape[-2])
        except AdaptError as error:
            raise AdaptError(f"{printable(path)}: {error}") from error
        faces.append(align(image, face, size))
    return torch.cat(faces)


def _stems(folder: Path) -> set[str]:
    count = Counter(path.stem for path in photo_files(folder)[0])
    twice = sorted(stem for stem, times in count.items() if times > 1)
    if twice:
        raise UsageError(
            f"{printable(folder)}: {len(twice)} names stand more than once, the first is {twice[0]!r}; "
            "photo and reference find each other by name: rename the files"
        )
    return set(count)
