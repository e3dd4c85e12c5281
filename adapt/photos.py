"""Finding, reading and writing photos: the only place of the project that knows of 8-bit pixels.

Everywhere else a photo is a float32 tensor `[1, 3, H, W]`, RGB, `[0, 1]`, sRGB-encoded.
What is read, and how each kind of file becomes such a tensor, is described in `photo_formats`.
"""

from __future__ import annotations

import hashlib
import os
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageCms
from torch import Tensor

from adapt.errors import AdaptError, UsageError, printable
from adapt.photo_formats import Refusal, decode
from restorers.files import atomic_file

PHOTO_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".tif", ".tiff", ".bmp", ".heic", ".heif")
"""Suffixes `find_photos` looks at, in any case; the content decides what a file is."""

WRITE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
"""Suffixes `write_photo` can write."""

MAX_FILE_BYTES = 1 << 30
"""Larger files are refused unread; 80 megapixels of uncompressed 16-bit colour stay below."""

RUN_FOLDER_FILES = ("command.json", "recipe.yaml")
"""A folder that holds all of these belongs to a run, finished or not, and is no input: it is skipped."""

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
    candidates, refused, notes = photo_files(root)
    photos: dict[str, Photo] = {}
    duplicates: list[tuple[Path, Path]] = []
    for done, path in enumerate(candidates, start=1):
        try:
            with _opened(path) as handle:
                sha256 = _sha256(handle)
                if sha256 in photos:
                    duplicates.append((path, photos[sha256].path))
                else:
                    image, remarks = decode(handle)
                    photos[sha256] = Photo(path, sha256, image.width, image.height)
                    notes.extend((path, remark) for remark in remarks)
        except Refusal as refusal:
            refused.append((path, str(refusal)))
        if on_photo is not None:
            on_photo(done, len(candidates))
    refused.sort()
    if not photos:
        raise AdaptError(_nothing_found(root, refused, notes))
    return PhotoSet(tuple(photos.values()), tuple(refused), tuple(duplicates), tuple(sorted(notes)))


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
    try:
        with atomic_file(path) as temporary, temporary.open("wb") as handle:
            _encode(picture, handle, suffix, quality)
    except (OSError, ValueError) as error:
        raise PhotoError(path, f"cannot be written: {_os_reason(error)}; check the disk and the folder") from error


def to_picture(image: Tensor) -> Image.Image:
    """`[3, H, W]` in `[0, 1]` as an 8-bit picture, for libraries that take pictures.

    Raises:
        PhotoError: it is no image.
    """
    return Image.fromarray(_to_bytes(Path("photo"), image))


def photo_files(root: Path) -> tuple[list[Path], list[tuple[Path, str]], list[tuple[Path, str]]]:
    """Sorted files that `find_photos` looks at, what is refused by its place alone, and notes; nothing is opened.

    Raises:
        UsageError: `root` does not exist or is a run folder.
        AdaptError: there is no file to look at.
    """
    if not os.path.lexists(root):
        raise UsageError(
            f"{printable(root)}: does not exist; expected a folder with photos or one photo; check the spelling"
        )
    if not root.is_dir():
        return [root], [], []
    if _is_run_folder(root):
        raise UsageError(
            f"{printable(root)}: is the folder of an earlier run; expected a folder with photos; give that one"
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
    if not candidates:
        raise AdaptError(_nothing_found(root, refused, notes))
    return sorted(candidates), refused, notes


def _has_photo_suffix(name: str) -> bool:
    return name.lower().endswith(PHOTO_SUFFIXES)


def _is_run_folder(folder: Path) -> bool:
    return all(os.path.isfile(folder / name) for name in RUN_FOLDER_FILES)


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Open a regular file of acceptable size for reading; whatever is in the way becomes a Refusal."""
    try:
        status = os.stat(path)
        if stat.S_ISDIR(status.st_mode):
            raise Refusal("is a folder, not a photo; give the photo itself")
        if not stat.S_ISREG(status.st_mode):  # opening a pipe would wait for its writer for ever
            raise Refusal("is a pipe, socket or device, not a file; give the photo itself")
        if status.st_size == 0:
            raise Refusal("empty: 0 bytes; copy the file again from its source")
        if status.st_size > MAX_FILE_BYTES:
            limit = MAX_FILE_BYTES >> 20
            raise Refusal(f"{status.st_size >> 20} MiB, more than {limit} MiB, the limit; make it smaller")
        with open(path, "rb") as handle:
            yield handle
    except FileNotFoundError as error:
        gone = "is a link to nothing; restore what it points to" if path.is_symlink() else "is gone; copy it again"
        raise Refusal(gone) from error
    except PermissionError as error:
        raise Refusal("no permission to read it; change its permissions") from error
    except OSError as error:
        raise Refusal(f"cannot be read: {_os_reason(error)}; check the disk") from error


def _sha256(handle: BinaryIO) -> str:
    digest = hashlib.sha256()
    while block := handle.read(_READ_BYTES):
        digest.update(block)
    return digest.hexdigest()


def _nothing_found(root: Path, refused: list[tuple[Path, str]], notes: list[tuple[Path, str]]) -> str:
    """One line on why there is nothing to work with, led by what the user can most likely act on."""
    if refused:
        path, reason = refused[0]
        if path == root:
            return f"{printable(root)}: {reason}"
        return f"{printable(root)}: none of {len(refused)} files can be used; the first, {printable(path)}: {reason}"
    hint = f"; {printable(notes[0][0])} {notes[0][1]}" if notes else ""
    return (
        f"{printable(root)}: no photos found; expected files ending in {' '.join(PHOTO_SUFFIXES)}, "
        f"not hidden and not in a run folder; check the folder{hint}"
    )


def _os_reason(error: OSError | ValueError) -> str:
    return getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__


def _to_bytes(path: Path, image: Tensor) -> NDArray[np.uint8]:
    """Check an image for writing and round it to `[H, W, 3]` uint8."""
    shape = tuple(image.shape)
    if image.ndim == 4 and image.shape[0] == 1:
        image = image[0]
    if image.ndim != 3 or image.shape[0] != 3 or not image.is_floating_point():
        raise PhotoError(path, f"cannot write {image.dtype} {list(shape)}; expected float [1, 3, H, W] or [3, H, W]")
    image = image.detach().to("cpu", torch.float32)
    if not torch.isfinite(image).all():
        raise PhotoError(path, "cannot write NaN or infinite pixels; the restorer that made them is broken")
    return image.clamp(0.0, 1.0).mul(255.0).round().to(torch.uint8).permute(1, 2, 0).contiguous().numpy()


def _encode(picture: Image.Image, handle: BinaryIO, suffix: str, quality: int) -> None:
    profile = _srgb_profile()
    if suffix == ".png":
        picture.save(handle, "PNG", icc_profile=profile)
    elif suffix == ".webp":
        picture.save(handle, "WEBP", quality=quality, icc_profile=profile)
    else:
        picture.save(handle, "JPEG", quality=quality, subsampling=0, icc_profile=profile)


@lru_cache(maxsize=1)
def _srgb_profile() -> bytes:
    """An sRGB profile; its creation date is fixed so that equal images become equal files."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    profile[24:36] = struct.pack(">6H", 2000, 1, 1, 0, 0, 0)  # ICC.1 header, bytes 24 to 35
    return bytes(profile)
