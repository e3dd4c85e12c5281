"""From photos to crops: splits by content, records what was refused, several faces a photo, resumes."""

from pathlib import Path

import pytest
import torch

from adapt.errors import AdaptError
from adapt.faces import Face, aligned_face
from adapt.gather import Gathered, gather, load_crops
from adapt.photos import read_photo, write_photo
from recipes.schema import Faces
from tests.end_to_end.runs import write_blobs

SETTINGS = Faces()


def ignore(_: int, __: int) -> None:
    pass


class TwoFaces:
    """Finds two faces in every photo that is not black."""

    name = "fake"

    def find(self, image: torch.Tensor) -> list[Face]:
        whole = aligned_face(image.shape[-1], image.shape[-2])
        return [] if image.max() < 0.1 else [whole, Face(1, whole.matrix, 0.9)]


def run(tmp_path: Path, name: str = "run", finder: TwoFaces | None = None) -> Gathered:
    return gather(tmp_path / "photos", tmp_path / name, SETTINGS, finder, ignore)


def test_the_split_depends_on_content_not_on_names(tmp_path: Path) -> None:
    write_blobs(tmp_path / "photos", 20)
    first = run(tmp_path)
    for path in sorted((tmp_path / "photos").iterdir()):
        path.rename(path.with_name(f"renamed-{path.name}"))
    second = run(tmp_path, "again")
    assert len(first.judging()) == 4 and len(first.teaching()) == 16
    assert {face.id for face in first.judging()} == {face.id for face in second.judging()}


def test_all_faces_of_a_photo_fall_on_the_same_side(tmp_path: Path) -> None:
    write_blobs(tmp_path / "photos", 10)
    found = run(tmp_path, finder=TwoFaces())
    assert len(found.faces) == 20
    assert not {face.sha256 for face in found.judging()} & {face.sha256 for face in found.teaching()}


def test_photos_without_a_face_are_named(tmp_path: Path) -> None:
    write_blobs(tmp_path / "photos", 10)
    write_photo(tmp_path / "photos" / "black.png", torch.zeros(1, 3, 64, 64))
    found = run(tmp_path, finder=TwoFaces())
    assert [reason for path, reason in found.refused if path.endswith("black.png")] == ["no face found"]


def test_oblong_photos_are_refused_when_faces_are_said_to_be_aligned(tmp_path: Path) -> None:
    write_blobs(tmp_path / "photos", 10)
    write_photo(tmp_path / "photos" / "oblong.png", torch.rand(1, 3, 64, 96))
    found = run(tmp_path)
    assert any("square" in reason for path, reason in found.refused if path.endswith("oblong.png"))


def test_crops_come_back_as_they_were_and_a_second_call_reads_the_record(tmp_path: Path) -> None:
    photos = write_blobs(tmp_path / "photos", 9)
    first = run(tmp_path)
    third = [face for face in first.faces if face.photo.endswith("03.png")]
    torch.testing.assert_close(load_crops(tmp_path / "run", third), read_photo(photos / "03.png"))
    for path in photos.iterdir():
        path.unlink()
    assert run(tmp_path) == first


def test_too_few_faces_say_how_many_are_needed(tmp_path: Path) -> None:
    write_blobs(tmp_path / "photos", 4)
    (tmp_path / "photos" / "torn.jpg").write_text("no photo")
    said = r"4 faces in 4 photos, expected at least 8.*files not used: 1, the first: .*torn\.jpg"
    with pytest.raises(AdaptError, match=said):
        run(tmp_path)
    assert not (tmp_path / "run" / "faces.json").exists()


def test_a_few_group_photos_leave_some_to_teach(tmp_path: Path) -> None:
    class ManyFaces(TwoFaces):
        def find(self, image: torch.Tensor) -> list[Face]:
            whole = aligned_face(image.shape[-1], image.shape[-2])
            return [Face(index, whole.matrix, 1.0) for index in range(5)]

    write_blobs(tmp_path / "photos", 2)
    found = run(tmp_path, finder=ManyFaces())
    assert len(found.teaching()) == len(found.judging()) == 5
    (tmp_path / "photos" / sorted(path.name for path in (tmp_path / "photos").iterdir())[0]).unlink()
    with pytest.raises(AdaptError, match="of 8 faces 8 are left to teach"):
        gather(tmp_path / "photos", tmp_path / "one", SETTINGS, EightFaces(), ignore)


class EightFaces(TwoFaces):
    def find(self, image: torch.Tensor) -> list[Face]:
        whole = aligned_face(image.shape[-1], image.shape[-2])
        return [Face(index, whole.matrix, 1.0) for index in range(8)]


def test_a_crop_that_cannot_be_written_is_no_fault_of_the_photo(tmp_path: Path) -> None:
    write_blobs(tmp_path / "photos", 10)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "faces").write_text("in the way")
    with pytest.raises(AdaptError, match=r"faces/.*cannot be written"):
        run(tmp_path)
    assert not (tmp_path / "run" / "faces.json").exists()


def test_faces_beyond_the_maximum_are_named(tmp_path: Path) -> None:
    write_blobs(tmp_path / "photos", 12)
    found = gather(tmp_path / "photos", tmp_path / "run", Faces(maximum=8), None, ignore)
    assert len(found.faces) == 8
    assert [reason for _, reason in found.refused] == ["its faces are beyond faces.maximum, which is 8"] * 4
    assert found.notes[-1][1] == "4 of 12 faces are left out: faces.maximum is 8"
    assert gather(tmp_path / "photos", tmp_path / "run", Faces(maximum=8), None, ignore) == found
