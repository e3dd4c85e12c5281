"""Restoring photos with a finished restorer: the serving path, without diffusion, Ray or MLflow."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from adapt.errors import AdaptError, UsageError, printable
from adapt.faces import Face, FaceFinder, align, load_finder, native_size, paste_back
from adapt.photos import WRITE_SUFFIXES, PhotoError, find_photos, read_photo, write_photo
from adapt.working_scale import enlarged, shrink_factor, shrunk
from restorers.runtime import RuntimeFailure, load_runtime
from restorers.zoo import EMBEDDED_COMPACT

SMALLEST_CROP = 64
"""Side in px of the smallest face crop; smaller faces are enlarged to it."""


class Restores(Protocol):
    """What restores images of any size: the serving runtime, or a prior with its stages.

    Attributes:
        multiple_of: what the sides of face crops are multiples of.
    """

    @property
    def multiple_of(self) -> int: ...

    def __call__(self, image: Tensor, /) -> Tensor:
        """`[1, 3, H, W]` in `[0, 1]` -> restored, in `[0, 1]`."""


@dataclass(frozen=True)
class RestoredPhoto:
    """One photo that was restored and written.

    Attributes:
        source: the photo.
        output: the file that was written.
        faces: how many faces were restored one by one; 0 where the photo was restored as a whole.
        shrunk: how many times smaller it was worked on, as it was enlarged beyond what restorers know; mostly 1.
    """

    source: Path
    output: Path
    faces: int
    shrunk: int = 1


@dataclass(frozen=True)
class RestoreSummary:
    """What became of every input: each photo is in exactly one of the three lists.

    Attributes:
        restored: photos that were written.
        without_faces: photos in which no face was found by a restorer that knows faces alone; nothing was written for
            them.
        failed: (photo, reason) of those that could not be read, restored or written.
    """

    restored: tuple[RestoredPhoto, ...]
    without_faces: tuple[Path, ...]
    failed: tuple[tuple[Path, str], ...]

    @property
    def exit_code(self) -> int:
        """0, or 1 when nothing at all was restored."""
        return 0 if self.restored else 1


def restore_photos(
    inputs: Sequence[Path],
    runtime: Restores,
    output: Path,
    finder: FaceFinder | None = None,
    *,
    fit_scale: bool = True,
    overwrite: bool = False,
    quality: int = 95,
    on_photo: Callable[[int, int], None] | None = None,
) -> RestoreSummary:
    """Restores photos into the folder `output`; one photo is in memory at a time.

    A photo keeps its place below the folder it came from, its name and its format (formats that cannot be written
    become png). It is restored as a whole at its own pixels; with a `finder` its faces are found, restored one by one
    at their own size and pasted back, and every pixel outside of them stays as it was. A photo that fails is reported
    with its reason and the others go on; no photo is ever written unrestored.

    Args:
        inputs: photos and folders with photos.
        runtime: the restorer.
        output: folder for the results; made when missing.
        finder: finds the faces, for a restorer that knows nothing but aligned faces.
        fit_scale: whether enlarged photos are worked on at the scale of their detail.
        overwrite: replace files that exist in `output`. Otherwise results get a free name (`x-2.jpg`). Inputs are never
            replaced.
        quality: of jpg and webp files, 1 to 100.
        on_photo: called as (done, total) after each photo.

    Raises:
        UsageError: an input does not exist, there is none, or `output` is a file or one of the input folders.
    """
    sources, failed = _collect(inputs, output)
    names = _Names(output, frozenset(source.resolve() for source, _ in sources), overwrite)
    restored: list[RestoredPhoto] = []
    without_faces: list[Path] = []
    for done, (source, place) in enumerate(sources, start=1):
        try:
            image = read_photo(source)
            faces, factor = 0, shrink_factor(image) if fit_scale and finder is None else 1
            if finder is None:
                result = restore_whole(image, runtime, factor)
            else:
                result, faces = _restore_faces(image, runtime, finder)
            if finder is None or faces:
                target = names.free(place)
                write_photo(target, result, quality)
                restored.append(RestoredPhoto(source, target, faces, factor))
            else:
                without_faces.append(source)
        except PhotoError as error:
            failed.append((source, error.reason if error.path == source else str(error)))
        except (AdaptError, RuntimeFailure, OSError) as error:  # OSError: the output folder cannot be looked at
            failed.append((source, str(error)))
        if on_photo is not None:
            on_photo(done, len(sources))
    return RestoreSummary(tuple(restored), tuple(without_faces), tuple(failed))


def restore_from_files(
    inputs: Sequence[Path],
    restorer: Path | None,
    output: Path,
    aligned: bool,
    non_commercial: bool = False,
    overwrite: bool = False,
) -> RestoreSummary:
    """`restore_photos` with a restorer read from a run folder or file (the embedded one without).

    Restorers that know nothing but aligned faces get the best finder, unless each photo is one (`aligned`). `restorer`
    may also be a published restorer's name; `non_commercial` allows those that are not for commercial use, by name or
    from a file.

    Raises:
        UsageError: the restorer cannot be loaded, or as `restore_photos`.
    """
    try:
        runtime = load_runtime(restorer or EMBEDDED_COMPACT, non_commercial=non_commercial)
    except RuntimeFailure as error:
        raise UsageError(f"--restorer: {error}") from error
    finder = load_finder() if runtime.aligned_faces and not aligned else None
    return restore_photos(inputs, runtime, output, finder, overwrite=overwrite)


def restore_whole(image: Tensor, runtime: Restores, factor: int) -> Tensor:
    """A photo `[1, 3, H, W]` restored as a whole, in `[0, 1]`.

    Args:
        factor: how many times smaller it is worked on, as `adapt.working_scale.shrink_factor` says. What changes there
            is enlarged and added, so the rest of the photo keeps its pixels.
    """
    if factor == 1:
        return runtime(image)
    small = shrunk(image, factor)
    change = runtime(small) - small
    return (image + enlarged(change, (image.shape[-2], image.shape[-1]))).clamp(0, 1)


def crop_side(face: Face, multiple_of: int) -> int:
    """Side in px at which a face is restored: its own size in the photo, at least 64, a multiple of `multiple_of`."""
    smallest = math.ceil(SMALLEST_CROP / multiple_of) * multiple_of
    return max(smallest, round(native_size(face) / multiple_of) * multiple_of)


def _restore_faces(image: Tensor, runtime: Restores, finder: FaceFinder) -> tuple[Tensor, int]:
    """The photo with every face restored, and their number. Crops come from the untouched photo, so order is free."""
    faces = finder.find(image)
    result = image
    for face in faces:
        crop = align(image, face, crop_side(face, runtime.multiple_of))  # [1, 3, S, S]
        result = paste_back(result, runtime(crop), face)
    return result, len(faces)


def _collect(inputs: Sequence[Path], output: Path) -> tuple[list[tuple[Path, Path]], list[tuple[Path, str]]]:
    """(photo, its place below the output folder) of every photo, each once; and (path, reason) of what is refused."""
    if not inputs:
        raise UsageError("no photos given: name at least one photo or folder")
    if output.exists() and not output.is_dir():
        raise UsageError(f"output {printable(output)} is a file, expected a folder: choose another --output")
    sources: dict[Path, tuple[Path, Path]] = {}
    failed: list[tuple[Path, str]] = []
    for root in inputs:
        if root.is_dir() and root.resolve() == output.resolve():
            raise UsageError(f"output {printable(output)} is also an input folder: choose another --output")
        try:
            found = find_photos(root)
        except UsageError:
            raise
        except AdaptError as error:
            failed.append((root, str(error).removeprefix(f"{printable(root)}: ")))
            continue
        failed.extend(found.refused)
        # Copies of a photo were dropped for training; a user who restores a folder wants each of its files.
        paths = [photo.path for photo in found.photos] + [path for path, _ in found.duplicates]
        if root.is_dir():
            paths = _outside(paths, output)
        for path in sorted(paths):
            sources.setdefault(path.resolve(), (path, path.relative_to(root) if root.is_dir() else Path(path.name)))
    return list(sources.values()), failed


def _outside(paths: Sequence[Path], folder: Path) -> list[Path]:
    """Leaves out earlier results when the output folder lies below an input folder."""
    return [path for path in paths if folder.resolve() not in path.resolve().parents]


class _Names:
    """Hands out output paths: no two alike even where case does not count, never an input, no silent overwriting."""

    def __init__(self, output: Path, inputs: frozenset[Path], overwrite: bool) -> None:
        self._output = output
        self._inputs = inputs
        self._overwrite = overwrite
        self._given: set[str] = set()

    def free(self, place: Path) -> Path:
        suffix = place.suffix if place.suffix.lower() in WRITE_SUFFIXES else ".png"
        number = 1
        while True:
            name = place.stem + ("" if number == 1 else f"-{number}") + suffix
            target = self._output / place.parent / name
            key = str(target).casefold()
            if key not in self._given and self._usable(target):
                self._given.add(key)
                return target
            number += 1

    def _usable(self, target: Path) -> bool:
        if target.resolve() in self._inputs:
            return False
        return not target.exists() or (self._overwrite and target.is_file())
