"""What gathering leaves for later stages, on disk and as records: windows, held-out photos, photos brought down."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from adapt.faces import Matrix
from adapt.photos import read_photo


@dataclass(frozen=True)
class WindowRecord:
    """One window, or one aligned face, and where it came from.

    Attributes:
        id: content hash of the photo and the window's number in it; also the name of its file.
        photo: path of the photo, safe to print.
        sha256: hash of the photo's content.
        index: number of the window in the photo.
        matrix: photo pixels -> window pixels; a mere shift where the window lies at the photo's own pixels.
        side: shorter side of the photo in pixels, at the scale it is worked on.
        face: whether it lies on a face.
        color: whether its photo shows colour; prints in one tint do not.
        held_out: whether it only judges.
    """

    id: str
    photo: str
    sha256: str
    index: int
    matrix: Matrix
    side: int
    face: bool
    color: bool
    held_out: bool


@dataclass(frozen=True)
class View:
    """A held-out photo at its own pixels, or the part of a large one that holds its face, for the judge to serve."""

    id: str
    photo: str
    face: bool


@dataclass(frozen=True)
class Gathered:
    """What was found in the folder.

    Attributes:
        photos: how many could be read.
        faces: how many faces were found in those that are used.
        windows: those that are used.
        views: held-out photos as the judge serves them.
        small: of the photos that were brought down and lie in `small/`, the shorter side of each teaching photo.
        small_held: the same of photos that only judge.
        tones: of every teaching face, as `pseudo_targets.tone.tone_of` gives it, and whether it shows colour.
        refused: (photo, why it is not used).
        notes: (photo or folder, what was done otherwise than one may expect).
    """

    photos: int
    faces: int
    windows: tuple[WindowRecord, ...]
    views: tuple[View, ...]
    small: tuple[int, ...]
    small_held: tuple[int, ...]
    tones: tuple[tuple[tuple[float, ...], bool], ...]
    refused: tuple[tuple[str, str], ...]
    notes: tuple[tuple[str, str], ...] = ()

    def teaching(self) -> list[WindowRecord]:
        """Windows that may teach."""
        return [window for window in self.windows if not window.held_out]

    def judging(self) -> list[WindowRecord]:
        """Windows that only judge."""
        return [window for window in self.windows if window.held_out]


def load_windows(folder: Path, windows: Sequence[WindowRecord]) -> Tensor:
    """The pixels of `windows`, `[N, 3, S, S]` in `[0, 1]`."""
    return torch.cat([read_photo(folder / "windows" / f"{window.id}.png") for window in windows])


def load_view(folder: Path, view: View) -> Tensor:
    """What the judge serves of a held-out photo, `[1, 3, H, W]` in `[0, 1]`."""
    return read_photo(folder / "views" / f"{view.id}.png")


def small_file(folder: Path, number: int, held_out: bool) -> Path:
    """Where a photo that was brought down lies; those that teach and those that judge are counted apart."""
    return folder / "small" / f"{'held' if held_out else 'teach'}-{number:04d}.png"


def load_small(folder: Path, gathered: Gathered, held_out: bool) -> list[Tensor]:
    """The photos that were brought down, `[1, 3, h, w]` in `[0, 1]`, in the order of their sides in `gathered`."""
    count = len(gathered.small_held if held_out else gathered.small)
    return [read_photo(small_file(folder, number, held_out)) for number in range(count)]


def read_gathered(record: Path) -> Gathered:
    """Reads the record of a finished gathering."""
    values = json.loads(record.read_text(encoding="utf-8"))
    windows = tuple(
        WindowRecord(**{**window, "matrix": tuple(tuple(row) for row in window["matrix"])})
        for window in values.pop("windows")
    )
    views = tuple(View(**view) for view in values.pop("views"))
    small, held = (tuple(values.pop(name)) for name in ("small", "small_held"))
    tones = tuple((tuple(tone), color) for tone, color in values.pop("tones"))
    refused, notes = (tuple((path, reason) for path, reason in values.pop(kind)) for kind in ("refused", "notes"))
    return Gathered(
        **values,
        small=small,
        small_held=held,
        windows=windows,
        views=views,
        tones=tones,
        refused=refused,
        notes=notes,
    )
