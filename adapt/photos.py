"""Finding, reading and writing photos: the only place of the project that knows of 8-bit pixels.

Everywhere else a photo is a float32 tensor `[1, 3, H, W]`, RGB, `[0, 1]`, sRGB-encoded.
What is read, and how each kind of file becomes such a tensor, is described in `photo_formats`.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageCms
from torch import Tensor

from adapt.errors import AdaptError, UsageError
from adapt.photo_formats import Refusal, decode

PHOTO_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".tif", ".tiff", ".bmp", ".heic", ".heif")
"""Suffixes `find_photos` looks at, in any case; the content decides what a file is."""

WRITE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
"""Suffixes `write_photo` can write."""

MAX_FILE_BYTES = 1 << 30
"""Larger files are refused unread; 80 megapixels of uncompressed 16-bit colour stay below."""

RUN_FOLDER_FILES = ("manifest.jsonl", "recipe.yaml")
"""A folder that holds all of these is the result of a run, not input, and is skipped."""

_READ_BYTES = 1 << 20


class PhotoError(AdaptError):
    """One photo cannot be read or written.

    Attributes:
        path: the file.
        reason: one short line without the path: what is wrong and what to do.
    """

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)  # both as args, so that the error survives pickling between processes
        self.path = path
        self.reason = reason

    def __str__(self) -> str:
        return f"{printable(self.path)}: {self.reason}"


@dataclass(frozen=True)
class Photo:
    """A photo that has been decoded once without fault.

    Attributes:
        path: where it lies, as reached from the root that was given.
        sha256: hash of the file's bytes, 64 hex digits.
        width: pixels, upright.
        height: pixels, upright.
    """

    path: Path
    sha256: str
    width: int
    height: int


@dataclass(frozen=True)
class PhotoSet:
    """What a folder holds.

    Attributes:
        photos: the usable ones, sorted by path, no two with the same bytes.
        refused: (path, reason) of each file that looks like a photo and cannot be used.
        duplicates: (path, path of the photo kept in its place).
        notes: (path, remark) on things used otherwise than one may expect: first page only, approximate colours,
            links to folders that were not followed.
    """

    photos: tuple[Photo, ...]
    refused: tuple[tuple[Path, str], ...]
    duplicates: tuple[tuple[Path, Path], ...]
    notes: tuple[tuple[Path, str], ...] = ()


def printable(path: Path | str) -> str:
    """A path as one line of valid UTF-8 text: undecodable bytes and control characters appear as escapes."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def find_photos(root: Path, on_photo: Callable[[int, int], None] | None = None) -> PhotoSet:
    """Find all photos below `root`, or the one photo that `root` is; each is hashed and decoded once.

    Suffixes count in any case. Hidden files and folders, and run folders of `adapt`, are skipped. Links to files are
    read; links to folders are not followed, so the search always ends. One photo is in memory at a time.

    Args:
        root: folder or single file.
        on_photo: called as (done, total) after each file, for progress.

    Raises:
        UsageError: `root` does not exist or is a run folder.
        AdaptError: no usable photo was found; the message says what was refused first.
    """
    candidates, refused, notes = _candidates(root)
    photos: dict[str, Photo] = {}
    duplicates: list[tuple[Path, Path]] = []
    faults: dict[str, str] = {}  # a refused file's hash -> reason, so that its copies are not decoded again
    for done, path in enumerate(candidates, start=1):
        try:
            with _opened(path) as handle:
                sha256 = _sha256(handle)
                if sha256 in photos:
                    duplicates.append((path, photos[sha256].path))
                elif sha256 in faults:
                    refused.append((path, faults[sha256]))
                else:
                    image, remarks = _decoded(path, handle, sha256, faults)
                    photos[sha256] = Photo(path, sha256, image.width, image.height)
                    notes.extend((path, remark) for remark in remarks)
        except PhotoError as error:
            refused.append((path, error.reason))
        if on_photo is not None:
            on_photo(done, len(candidates))
    if not photos:
        raise AdaptError(_nothing_found(root, refused, notes))
    return PhotoSet(tuple(photos.values()), tuple(sorted(refused)), tuple(duplicates), tuple(sorted(notes)))


def read_photo(path: Path) -> Tensor:
    """Read one photo as float32 `[1, 3, H, W]`, RGB, `[0, 1]`, upright, sRGB.

    Raises:
        PhotoError: with the reason `find_photos` would give for refusing it.
    """
    try:
        with _opened(path) as handle:
            image, _ = decode(handle)
    except Refusal as error:
        raise PhotoError(path, str(error)) from error
    pixels = torch.from_numpy(np.array(image))  # [H, W, 3] uint8
    return pixels.permute(2, 0, 1)[None].to(torch.float32, memory_format=torch.contiguous_format).div_(255.0)


def write_photo(path: Path, image: Tensor, quality: int = 95) -> None:
    """Write an image, tagged as sRGB, by suffix: png (exact to 8 bits), jpg or webp.

    The file appears whole or not at all, and missing folders are made. Values are clamped to `[0, 1]` and rounded.

    Args:
        path: target; replaced if it exists.
        image: float `[1, 3, H, W]` or `[3, H, W]`, RGB, `[0, 1]`.
        quality: 1 to 100, for jpg (without chroma subsampling) and webp.

    Raises:
        PhotoError: unknown suffix, wrong shape, NaN or infinite values, or the disk refuses.
    """
    suffix = path.suffix.lower()
    if suffix not in WRITE_SUFFIXES:
        raise PhotoError(path, f"cannot write '{path.suffix}' files; use one of {', '.join(WRITE_SUFFIXES)}")
    picture = Image.fromarray(_to_bytes(path, image))
    options: dict[str, object] = {"icc_profile": _srgb_profile()}
    if suffix in (".jpg", ".jpeg"):
        options |= {"format": "JPEG", "quality": quality, "subsampling": 0}
    elif suffix == ".webp":
        options |= {"format": "WEBP", "quality": quality}
    else:
        options |= {"format": "PNG"}
    temporary = path.parent / f".{uuid.uuid4().hex}.tmp"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "xb") as handle:
            picture.save(handle, **options)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except (OSError, ValueError) as error:
        raise PhotoError(path, f"cannot be written: {_os_reason(error)}; check the disk and the folder") from error
    finally:
        temporary.unlink(missing_ok=True)


def _candidates(root: Path) -> tuple[list[Path], list[tuple[Path, str]], list[tuple[Path, str]]]:
    """Sorted files to look at, what is refused by its place alone, and notes."""
    if not os.path.lexists(root):
        raise UsageError(
            f"{printable(root)}: does not exist; expected a folder with photos or one photo; check the spelling"
        )
    if not root.is_dir():
        return [root], [], []
    if _is_run_folder(root):
        raise UsageError(
            f"{printable(root)}: is the result of an earlier run; expected a folder with photos; give the photos' folder"
        )
    candidates: list[Path] = []
    refused: list[tuple[Path, str]] = []
    notes: list[tuple[Path, str]] = []

    def unreadable(error: OSError) -> None:
        folder = Path(error.filename if error.filename is not None else root)
        refused.append((folder, f"folder cannot be opened: {_os_reason(error)}; change its permissions"))

    for folder, folders, files in os.walk(root, onerror=unreadable, followlinks=False):
        here = Path(folder)
        folders[:] = [name for name in folders if not name.startswith(".") and not _is_run_folder(here / name)]
        for name in folders:
            if (here / name).is_symlink():
                notes.append((here / name, "is a link to a folder and was not followed; give that folder itself"))
            elif _has_photo_suffix(name):
                refused.append((here / name, "is a folder with a photo's name, not a photo; rename the folder"))
        candidates += [here / name for name in files if not name.startswith(".") and _has_photo_suffix(name)]
    return sorted(candidates), refused, notes


def _has_photo_suffix(name: str) -> bool:
    return name.lower().endswith(PHOTO_SUFFIXES)


def _is_run_folder(folder: Path) -> bool:
    return all(os.path.isfile(folder / name) for name in RUN_FOLDER_FILES)


class _opened:  # noqa: N801  (used as a function, in a with statement)
    """A regular file of acceptable size opened for reading; any obstacle is a PhotoError with its reason."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> BinaryIO: ...
