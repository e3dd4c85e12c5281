"""From a folder of photos to windows at their own pixels, split into those that teach and those that judge."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path

import torch
from torch import Tensor

from adapt.errors import AdaptError, printable
from adapt.faces import Face, FaceFinder, Matrix, align, aligned_face, sure_faces
from adapt.gathered import Gathered, View, WindowRecord, read_gathered, small_file
from adapt.photos import Photo, PhotoSet, find_photos, read_photo, write_photo
from adapt.windows import choose_windows, cut, face_box
from adapt.working_scale import KNOWN_ENLARGEMENT, enlargement, shrink_factor, shrunk
from adapt.workspace import write_json
from pseudo_targets.bank import has_color
from pseudo_targets.tone import tone_of
from recipes.schema import Windows
from restorers.degradations import resize

FEWEST_TARGETS = 4
"""A camera cannot be fitted on fewer pairs."""
TONE_SIDE = 128
"""Side in px at which the tone of faces is known (`pseudo_targets.tone`)."""
VIEW_SIDE = 768
"""Longest side in px of what is kept of a held-out photo, at its own pixels, for the judge to serve."""
SMALLER = (2, 3, 4)
"""How many times photos are brought down where their windows are to be clean (`Gathered.small`)."""


def gather(
    inputs: Path,
    folder: Path,
    settings: Windows,
    finder: FaceFinder | None,
    on_photo: Callable[[int, int], None],
    aligned: bool = False,
) -> Gathered:
    """Finds photos, their faces and windows, and writes these into `folder/windows`; a finished gathering is read back.

    Photos are taken in an order that their content gives, until there are enough windows; the first of them are held
    out. So a photo is held out in whatever folder it lies and whatever it is called.

    Args:
        finder: None where no faces are to be found.
        on_photo: called with (done, total).
        aligned: each photo is one aligned square face.

    Raises:
        AdaptError: nothing to work with, too few windows, or one cannot be written.
    """
    record = folder / "gathered.json"
    if record.is_file():
        return read_gathered(record)
    found = find_photos(inputs)
    work = _Work(folder, settings, finder, aligned)
    order = sorted(found.photos, key=lambda photo: hashlib.sha256(f"held out {photo.sha256}".encode()).digest())
    room = _room(len(order), settings.maximum)
    for number, photo in enumerate(order, start=1):
        work.take(photo, room[number - 1])
        on_photo(number, len(order))
    gathered = _finished(printable(inputs), work, found, settings)
    write_json(record, asdict(gathered))
    return gathered


class _Work:
    """Goes through photos and remembers what came of each."""

    def __init__(self, folder: Path, settings: Windows, finder: FaceFinder | None, aligned: bool) -> None:
        self.folder, self.settings, self.finder, self.aligned = folder, settings, finder, aligned
        self.windows: dict[str, list[WindowRecord]] = {}
        self.views: dict[str, View] = {}
        self.tones: dict[str, list[tuple[tuple[float, ...], bool]]] = {}
        self.small: dict[str, Tensor] = {}
        self.faces: dict[str, int] = {}
        self.refused: list[tuple[str, str]] = []
        self.shrunk: Counter[int] = Counter()

    def take(self, photo: Photo, count: int) -> None:
        """Writes the windows of a photo, `count` at most, and what the judge serves of it."""
        name = printable(photo.path)
        if count == 0:
            reason = f"not needed: {self.settings.maximum} photos give windows enough (windows.maximum)"
            self.refused.append((name, reason))
            return
        try:
            image = read_photo(photo.path)
            faces = self._faces(image)
        except AdaptError as error:
            self.refused.append((name, str(error)))
            return
        if not faces and (self.settings.content == "faces" or self.settings.crops == "yes"):
            self.refused.append((name, "no face found"))
        elif self.settings.crops == "yes":
            self._take_crops(photo, image, faces[:count])
        else:
            self._take_windows(photo, image, faces, count)

    def _faces(self, image: Tensor) -> list[Face]:
        if self.aligned:
            return [aligned_face(image.shape[-1], image.shape[-2])]
        if self.finder is None:
            return []
        faces = self.finder.find(image)
        # A crop that is no face would teach a restorer of faces; a window that is none only counts more than it should.
        return faces if self.settings.crops == "yes" else sure_faces(image, faces, self.finder)

    def _take_crops(self, photo: Photo, image: Tensor, faces: Sequence[Face]) -> None:
        size, color = self.settings.size, bool(has_color(_whole(image)))
        records = []
        for face in faces:
            crop = align(image, face, size)
            records.append(self._write(photo, face.index, crop, face.matrix, True, color, size))
            self._remember_tone(photo, crop)
        if records:
            self._keep(photo, records, align(image, faces[0], size), True, len(faces))

    def _take_windows(self, photo: Photo, image: Tensor, faces: Sequence[Face], count: int) -> None:
        size = self.settings.size
        factor, color = shrink_factor(image), bool(has_color(_whole(image)))
        self.shrunk[factor] += 1
        for face in faces:
            self._remember_tone(photo, align(image, face, TONE_SIDE))
        worked, scaled = shrunk(image, factor), [_at_scale(face, factor) for face in faces]
        records = []
        for index, window in enumerate(choose_windows(worked, scaled, size, count, self.settings.content == "faces")):
            matrix = ((1 / factor, 0.0, -float(window.left)), (0.0, 1 / factor, -float(window.top)))
            pixels, side = cut(worked, window, size), min(worked.shape[-2:])
            records.append(self._write(photo, index, pixels, matrix, window.face, color, side))
        if records:
            self._keep(photo, records, _view(worked, scaled), bool(faces), len(faces))
            small = _small(worked, photo.sha256, size)
            if small is not None:
                self.small[photo.sha256] = (small * 255).round().to(torch.uint8)  # as it will be on disk

    def _remember_tone(self, photo: Photo, crop: Tensor) -> None:
        tone, color = tuple(tone_of(crop)[0].tolist()), bool(has_color(crop))
        self.tones.setdefault(photo.sha256, []).append((tone, color))

    def _write(
        self, photo: Photo, index: int, pixels: Tensor, matrix: Matrix, face: bool, color: bool, side: int
    ) -> WindowRecord:
        name = f"{photo.sha256[:16]}-{index}"
        write_photo(self.folder / "windows" / f"{name}.png", pixels)
        return WindowRecord(name, printable(photo.path), photo.sha256, index, matrix, side, face, color, False)

    def _keep(self, photo: Photo, records: list[WindowRecord], view: Tensor, face: bool, faces: int) -> None:
        self.windows[photo.sha256], self.faces[photo.sha256] = records, faces
        name = photo.sha256[:16]
        write_photo(self.folder / "views" / f"{name}.png", view)
        self.views[photo.sha256] = View(name, printable(photo.path), face)


def _finished(inputs: str, work: _Work, found: PhotoSet, settings: Windows) -> Gathered:
    """Splits what was found; removes what is kept of photos that teach for the judge alone, and the reverse."""
    used = list(work.windows)
    count = max(2, round(settings.held_out * len(used)))
    held = set(used[: max(0, min(count, len(used) - 1))])  # at least one photo teaches
    windows = [
        replace(window, held_out=sha in held) for sha in used for window in work.windows[sha]
    ]
    refused = [(printable(path), reason) for path, reason in found.refused]
    refused += [(printable(path), f"same content as {printable(first)}") for path, first in found.duplicates]
    refused += work.refused
    _refuse_too_few(inputs, windows, len(found.photos), settings, refused)
    for sha in set(used) - held:
        (work.folder / "views" / f"{work.views[sha].id}.png").unlink(missing_ok=True)
    small: dict[bool, list[int]] = {False: [], True: []}
    for sha, image in work.small.items():
        write_photo(small_file(work.folder, len(small[sha in held]), sha in held), image.float() / 255)
        small[sha in held].append(work.windows[sha][0].side)
    notes = [(printable(path), note) for path, note in found.notes]
    for factor, number in sorted(work.shrunk.items()):
        if factor > 1:
            which, detail = f"{number} of {work.shrunk.total()} photos", f"1/{KNOWN_ENLARGEMENT * factor} of their size"
            notes.append((inputs, f"{which} hold no detail beyond {detail}, and are worked on at 1/{factor}"))
    return Gathered(
        photos=len(found.photos),
        faces=sum(work.faces.values()),
        windows=tuple(sorted(windows, key=lambda window: window.id)),
        views=tuple(work.views[sha] for sha in used if sha in held),
        small=tuple(small[False]),
        small_held=tuple(small[True]),
        tones=tuple(tone for sha, tones in work.tones.items() if sha in set(used) - held for tone in tones),
        refused=tuple(refused),
        notes=tuple(notes),
    )


def _room(photos: int, maximum: int) -> list[int]:
    """How many windows each photo may give, so that all together are `maximum`; earlier photos give no fewer."""
    each, more = divmod(maximum, photos)
    return [each + (index < more) for index in range(photos)]


def _whole(image: Tensor) -> Tensor:
    """The photo at the size of a face's crop, as colour is judged there."""
    height, width = image.shape[-2:]
    shrink = max(1.0, min(height, width) / TONE_SIDE)
    return resize(image, (max(8, round(height / shrink)), max(8, round(width / shrink))), 0)


def _at_scale(face: Face, factor: int) -> Face:
    (a, b, x), (c, d, y) = face.matrix
    shift = (factor - 1) / 2  # pixel centres are at integers
    x, y = x + (a + b) * shift, y + (c + d) * shift
    return Face(face.index, ((a * factor, b * factor, x), (c * factor, d * factor, y)), face.score)


def _view(image: Tensor, faces: Sequence[Face]) -> Tensor:
    """The photo, or of a large one the part about its largest face or its middle."""
    height, width = image.shape[-2:]
    middle = (height / 2, width / 2)
    if faces:
        top, left, bottom, right = face_box(faces[0])
        middle = ((top + bottom) / 2, (left + right) / 2)
    sides = []
    for centre, length in zip(middle, (height, width), strict=True):
        first = min(max(0, round(centre - VIEW_SIDE / 2)), max(0, length - VIEW_SIDE)) // 16 * 16
        sides.append(slice(first, first + VIEW_SIDE))
    return image[..., sides[0], sides[1]]


def _small(image: Tensor, sha256: str, size: int) -> Tensor | None:
    """The photo brought down by one of `SMALLER`, which its content chooses among those that leave a window.

    By as much more as it was enlarged: at the size at which it was coded it is as bad as ever.
    """
    times = enlargement(image)
    factors = [times * factor for factor in SMALLER if min(image.shape[-2:]) // (times * factor) >= size]
    if not factors:
        return None
    factor = factors[int(sha256[:8], 16) % len(factors)]
    height, width = image.shape[-2:]
    part = image[..., : height // factor * factor, : width // factor * factor]
    small = resize(part, (height // factor, width // factor), 0)
    top, left = (max(0, (length - VIEW_SIDE) // 2) for length in small.shape[-2:])
    return small[..., top : top + VIEW_SIDE, left : left + VIEW_SIDE]


def _refuse_too_few(
    inputs: str,
    windows: Sequence[WindowRecord],
    photos: int,
    settings: Windows,
    refused: Sequence[tuple[str, str]],
) -> None:
    unused = f"; files not used: {len(refused)}, the first: {': '.join(refused[0])}" if refused else ""
    if len(windows) < settings.minimum:
        raise AdaptError(
            f"{inputs}: {len(windows)} windows in {photos} photos, expected at least {settings.minimum}: "
            f"a camera cannot be learned, nor the result judged, from fewer; add photos, or larger ones{unused}"
        )
    teaching = sum(not window.held_out for window in windows)
    if teaching < FEWEST_TARGETS or teaching == len(windows):  # few photos of many windows
        raise AdaptError(
            f"{inputs}: of {len(windows)} windows {teaching} are left to teach once whole photos are set apart to "
            f"judge, expected at least {FEWEST_TARGETS}, and one that judges; add photos, or change --set "
            f"windows.held_out{unused}"
        )
