"""From a folder of photos to aligned faces, split into those that teach and those that judge."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor

from adapt.errors import AdaptError
from adapt.faces import FaceFinder, align, aligned_face
from adapt.photos import find_photos, printable, read_photo, write_photo
from adapt.workspace import write_json
from recipes.schema import Faces


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
    """What was found in the folder."""

    photos: int
    faces: tuple[FaceRecord, ...]
    refused: tuple[tuple[str, str], ...]

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
        AdaptError: nothing to work with, or too few faces.
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
            faces += _faces_of(photo.path, photo.sha256, folder, settings, finder)
        except AdaptError as error:
            refused.append((printable(photo.path), str(error)))
        on_photo(number, len(found.photos))
    with_faces = {face.photo for face in faces}
    told = {path for path, _ in refused}
    names = [printable(photo.path) for photo in found.photos]
    refused += [(name, "no face found") for name in names if name not in with_faces | told]
    kept = _split(sorted(faces, key=lambda face: face.id)[: settings.maximum], settings)
    if len(kept) < settings.minimum:
        raise AdaptError(
            f"{printable(inputs)}: {len(kept)} faces in {len(found.photos)} photos, "
            f"expected at least {settings.minimum}: "
            "a camera cannot be learned, nor the result judged, from fewer; add photos"
            + ("" if finder is None else " (or --aligned if each photo is one aligned face)")
        )
    gathered = Gathered(len(found.photos), tuple(kept), tuple(refused))
    write_json(record, asdict(gathered))
    return gathered


def load_crops(folder: Path, faces: Sequence[FaceRecord]) -> Tensor:
    """The aligned crops of `faces`, `[N, 3, S, S]` in `[0, 1]`."""
    return torch.cat([read_photo(folder / "faces" / f"{face.id}.png") for face in faces])


def _faces_of(path: Path, sha256: str, folder: Path, settings: Faces, finder: FaceFinder | None) -> list[FaceRecord]:
    image = read_photo(path)
    height, width = image.shape[-2:]
    found = [aligned_face(width, height)] if finder is None else finder.find(image)
    records = []
    for face in found:
        name = f"{sha256[:16]}-{face.index}"
        write_photo(folder / "faces" / f"{name}.png", align(image, face, settings.size))
        records.append(FaceRecord(name, printable(path), sha256, face.index, face.matrix, False))
    return records


def _split(faces: list[FaceRecord], settings: Faces) -> list[FaceRecord]:
    """Holds out whole photos, chosen by content hash: the same photo is held out in whatever folder it lies."""
    order = sorted({face.sha256 for face in faces}, key=lambda sha: hashlib.sha256(f"held out {sha}".encode()).digest())
    held = set(order[: max(2, round(settings.held_out * len(order)))])
    return [FaceRecord(**{**asdict(face), "held_out": face.sha256 in held}) for face in faces]


def _read(record: Path) -> Gathered:
    values = json.loads(record.read_text(encoding="utf-8"))
    faces = tuple(
        FaceRecord(**{**face, "matrix": tuple(tuple(row) for row in face["matrix"])}) for face in values["faces"]
    )
    return Gathered(values["photos"], faces, tuple((path, reason) for path, reason in values["refused"]))
