"""From a folder of photos to aligned faces, split into those that teach and those that judge."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from adapt.errors import AdaptError, printable
from adapt.faces import Face, FaceFinder, align, aligned_face
from adapt.photos import Photo, find_photos, read_photo, write_photo
from adapt.workspace import write_json
from recipes.schema import Faces

FEWEST_TARGETS = 4
"""A camera cannot be fitted on fewer pairs."""


@dataclass(frozen=True)
class FaceRecord:
    """One aligned face and where it came from.

    Attributes:
        id: content hash of the photo and the face's number in it; also the name of the crop's file.
        photo: path of the photo, safe to print.
        sha256: hash of the photo's content.
        index: number of the face in the photo.
        matrix: photo pixels -> the 512 px template; its inverse puts the face back.
        held_out: whether it only judges.
    """

    id: str
    photo: str
    sha256: str
    index: int
    matrix: tuple[tuple[float, float, float], tuple[float, float, float]]
    held_out: bool


@dataclass(frozen=True)
class Gathered:
    """What was found in the folder.

    Attributes:
        photos: how many could be read.
        faces: those that are used.
        refused: (photo, why it is not used).
        notes: (photo or folder, what was done otherwise than one may expect).
    """

    photos: int
    faces: tuple[FaceRecord, ...]
    refused: tuple[tuple[str, str], ...]
    notes: tuple[tuple[str, str], ...] = ()

    def teaching(self) -> list[FaceRecord]:
        """Faces that may teach."""
        return [face for face in self.faces if not face.held_out]

    def judging(self) -> list[FaceRecord]:
        """Faces that only judge."""
        return [face for face in self.faces if face.held_out]


def gather(
    inputs: Path, folder: Path, settings: Faces, finder: FaceFinder | None, on_photo: Callable[[int, int], None]
) -> Gathered:
    """Finds photos and faces and writes the aligned crops into `folder/faces`; a finished gathering is read back.

    Args:
        finder: None when the photos are aligned faces already.
        on_photo: called with (done, total).

    Raises:
        AdaptError: nothing to work with, too few faces, or a crop cannot be written.
    """
    record = folder / "faces.json"
    if record.is_file():
        return _read(record)
    found = find_photos(inputs)
    refused = [(printable(path), reason) for path, reason in found.refused]
    refused += [(printable(path), f"same content as {printable(first)}") for path, first in found.duplicates]
    faces: list[FaceRecord] = []
    for number, photo in enumerate(found.photos, start=1):
        try:
            image, transforms = _faces_of(photo.path, finder)
        except AdaptError as error:
            refused.append((printable(photo.path), str(error)))
        else:  # a crop that cannot be written is no fault of the photo
            faces += _write_crops(photo, image, transforms, folder, settings.size)
        on_photo(number, len(found.photos))
    with_faces = {face.photo for face in faces}
    told = {path for path, _ in refused}
    names = [printable(photo.path) for photo in found.photos]
    refused += [(name, "no face found") for name in names if name not in with_faces | told]
    kept = _split(sorted(faces, key=lambda face: face.id)[: settings.maximum], settings)
    kept_photos = {face.photo for face in kept}
    refused += [
        (name, f"its faces are beyond faces.maximum, which is {settings.maximum}")
        for name in names
        if name in with_faces - kept_photos
    ]
    _refuse_too_few(printable(inputs), kept, len(found.photos), settings, finder is not None, refused)
    notes = [(printable(path), note) for path, note in found.notes]
    if len(kept) < len(faces):
        left = f"{len(faces) - len(kept)} of {len(faces)} faces are left out: faces.maximum is {settings.maximum}"
        notes.append((printable(inputs), left))
    gathered = Gathered(len(found.photos), tuple(kept), tuple(refused), tuple(notes))
    write_json(record, asdict(gathered))
    return gathered


def load_crops(folder: Path, faces: Sequence[FaceRecord]) -> Tensor:
    """The aligned crops of `faces`, `[N, 3, S, S]` in `[0, 1]`."""
    return torch.cat([read_photo(folder / "faces" / f"{face.id}.png") for face in faces])


def _refuse_too_few(
    inputs: str,
    faces: Sequence[FaceRecord],
    photos: int,
    settings: Faces,
    found: bool,
    refused: Sequence[tuple[str, str]],
) -> None:
    if len(faces) < settings.minimum:
        unused = f"; files not used: {len(refused)}, the first: {': '.join(refused[0])}" if refused else ""
        raise AdaptError(
            f"{inputs}: {len(faces)} faces in {photos} photos, expected at least {settings.minimum}: "
            "a camera cannot be learned, nor the result judged, from fewer; add photos"
            + (" (or --aligned if each photo is one aligned face)" if found else "")
            + unused
        )
    teaching = sum(not face.held_out for face in faces)
    if teaching < FEWEST_TARGETS or teaching == len(faces):  # few photos of many faces
        raise AdaptError(
            f"{inputs}: of {len(faces)} faces {teaching} are left to teach once whole photos are set apart to judge, "
            f"expected at least {FEWEST_TARGETS}, and one that judges; add photos, or change --set faces.held_out"
        )


def _faces_of(path: Path, finder: FaceFinder | None) -> tuple[Tensor, Sequence[Face]]:
    """A photo `[1, 3, H, W]` and the faces in it."""
    image = read_photo(path)
    height, width = image.shape[-2:]
    return image, [aligned_face(width, height)] if finder is None else finder.find(image)


def _write_crops(photo: Photo, image: Tensor, faces: Sequence[Face], folder: Path, size: int) -> list[FaceRecord]:
    records = []
    for face in faces:
        name = f"{photo.sha256[:16]}-{face.index}"
        write_photo(folder / "faces" / f"{name}.png", align(image, face, size))
        records.append(FaceRecord(name, printable(photo.path), photo.sha256, face.index, face.matrix, False))
    return records


def _split(faces: list[FaceRecord], settings: Faces) -> list[FaceRecord]:
    """Holds out whole photos, chosen by content hash: the same photo is held out in whatever folder it lies."""
    order = sorted({face.sha256 for face in faces}, key=lambda sha: hashlib.sha256(f"held out {sha}".encode()).digest())
    count = max(2, round(settings.held_out * len(order)))
    held = set(order[: min(count, len(order) - 1)])  # at least one photo teaches
    return [FaceRecord(**{**asdict(face), "held_out": face.sha256 in held}) for face in faces]


def _read(record: Path) -> Gathered:
    values = json.loads(record.read_text(encoding="utf-8"))
    faces = tuple(
        FaceRecord(**{**face, "matrix": tuple(tuple(row) for row in face["matrix"])}) for face in values["faces"]
    )
    refused, notes = (tuple((path, reason) for path, reason in values[kind]) for kind in ("refused", "notes"))
    return Gathered(values["photos"], faces, refused, notes)
