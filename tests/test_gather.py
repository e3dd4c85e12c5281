"""From photos to windows: splits by content, records what was refused, several windows a photo, resumes."""

from pathlib import Path

import pytest
import torch

from adapt.errors import AdaptError
from adapt.faces import Face, aligned_face
from adapt.gather import gather
from adapt.gathered import Gathered, load_small, load_view, load_windows
from adapt.photos import read_photo, write_photo
from adapt.working_scale import enlargement, shrink_factor
from recipes.schema import Windows
from restorers.degradations import jpeg
from tests.end_to_end.runs import write_blobs
from tests.tiny import blobs

SETTINGS = Windows(crops="no")
CROPS = Windows(crops="yes")


def ignore(_: int, __: int) -> None:
    pass


class TwoFaces:
    """Finds two faces in every photo that is not black."""

    name = "fake"

    def find(self, image: torch.Tensor) -> list[Face]:
        whole = aligned_face(image.shape[-1], image.shape[-2])
        return [] if image.max() < 0.1 else [whole, Face(1, whole.matrix, 0.9)]


def run(
    tmp_path: Path,
    name: str = "run",
    finder: TwoFaces | None = None,
    settings: Windows = SETTINGS,
    aligned: bool = False,
) -> Gathered:
    return gather(tmp_path / "photos", tmp_path / name, settings, finder, ignore, aligned)


def grainy(height: int, width: int, seed: int, grain: float = 0.05) -> torch.Tensor:
    """A photo with detail at its own pixels."""
    image = torch.nn.functional.interpolate(blobs(1, 64, seed), (height, width), mode="bicubic")
    return (image + grain * torch.randn(image.shape, generator=torch.Generator().manual_seed(seed))).clamp(0, 1)


def test_the_split_depends_on_content_not_on_names(tmp_path: Path) -> None:
    write_blobs(tmp_path / "photos", 20)
    first = run(tmp_path)
    for path in sorted((tmp_path / "photos").iterdir()):
        path.rename(path.with_name(f"renamed-{path.name}"))
    second = run(tmp_path, "again")
    assert len(first.judging()) == 4 and len(first.teaching()) == 16
    assert {window.id for window in first.judging()} == {window.id for window in second.judging()}


def test_windows_are_the_photos_own_pixels(tmp_path: Path) -> None:
    for seed in range(6):
        write_photo(tmp_path / "photos" / f"{seed}.png", grainy(300, 420, seed))
    found = run(tmp_path)
    assert len(found.windows) > 6 * 3
    for window in found.windows:
        photo = read_photo(tmp_path / "photos" / Path(window.photo).name)
        left, top = (-round(row[2]) for row in window.matrix)
        assert left % 16 == top % 16 == 0 and window.side == 300
        pixels = load_windows(tmp_path / "run", [window])
        torch.testing.assert_close(pixels, photo[..., top : top + 128, left : left + 128], atol=1e-6, rtol=0)


def test_no_two_windows_of_a_photo_share_more_than_half(tmp_path: Path) -> None:
    for seed in range(3):
        write_photo(tmp_path / "photos" / f"{seed}.png", grainy(300, 300, seed))
    found = run(tmp_path)
    for photo in {window.photo for window in found.windows}:
        places = [[-row[2] for row in window.matrix] for window in found.windows if window.photo == photo]
        assert len(places) > 2
        for index, (x, y) in enumerate(places):
            for u, v in places[:index]:
                assert max(0, 128 - abs(x - u)) * max(0, 128 - abs(y - v)) <= 128 * 64


def test_all_windows_of_a_photo_fall_on_the_same_side(tmp_path: Path) -> None:
    for seed in range(10):
        write_photo(tmp_path / "photos" / f"{seed}.png", grainy(260, 260, seed))
    found = run(tmp_path)
    held, taught = ({window.sha256 for window in side} for side in (found.judging(), found.teaching()))
    assert len(held) == 2 and len(taught) == 8 and not held & taught
    assert len(found.views) == 2 and len(list((tmp_path / "run" / "views").iterdir())) == 2
    for view in found.views:
        photo = tmp_path / "photos" / Path(view.photo).name
        torch.testing.assert_close(load_view(tmp_path / "run", view), read_photo(photo), atol=1e-6, rtol=0)


def test_photos_of_all_sizes_take_part(tmp_path: Path) -> None:
    sizes = [(40, 50), (64, 300), (128, 128), (200, 130), (500, 700), (900, 600), (130, 1200), (128, 129)]
    for seed, (height, width) in enumerate(sizes):
        write_photo(tmp_path / "photos" / f"{seed}.png", grainy(height, width, seed))
    found = run(tmp_path)
    assert {Path(window.photo).stem for window in found.windows} == {str(seed) for seed in range(8)}
    assert load_windows(tmp_path / "run", found.windows).shape[1:] == (3, 128, 128)


def test_half_of_the_windows_lie_on_faces(tmp_path: Path) -> None:
    class Corner(TwoFaces):
        def find(self, image: torch.Tensor) -> list[Face]:
            return [Face(0, ((2.0, 0.0, 0.0), (0.0, 2.0, 0.0)), 0.9)]  # 256 px in the upper left corner

    for seed in range(12):
        write_photo(tmp_path / "photos" / f"{seed}.png", grainy(600, 700, seed))
    found = run(tmp_path, finder=Corner(), settings=Windows(crops="no", maximum=48))
    assert found.faces == 12 and len(found.windows) == 48
    on_face = [window for window in found.windows if window.face]
    assert len(on_face) >= 24
    assert all(-256 < window.matrix[0][2] <= 0 and -256 < window.matrix[1][2] <= 0 for window in on_face)
    only = run(tmp_path, "faces", Corner(), Windows(crops="no", maximum=48, content="faces"))
    assert only.windows and all(window.face for window in only.windows)


def test_photos_without_a_face_teach_too_unless_faces_are_asked_for(tmp_path: Path) -> None:
    write_blobs(tmp_path / "photos", 10)
    write_photo(tmp_path / "photos" / "black.png", torch.zeros(1, 3, 64, 64))
    assert not run(tmp_path, finder=TwoFaces()).refused
    found = run(tmp_path, "faces", TwoFaces(), Windows(crops="no", content="faces"))
    assert [reason for path, reason in found.refused if path.endswith("black.png")] == ["no face found"]
    found = run(tmp_path, "crops", TwoFaces(), CROPS)
    assert len(found.windows) == 20 and len(found.refused) == 1


def test_a_face_that_is_found_but_once_does_not_count(tmp_path: Path) -> None:
    class Fooled(TwoFaces):
        name = "bundled"

        def find(self, image: torch.Tensor) -> list[Face]:
            return [] if image.shape[-1] == 256 else super().find(image)

    write_blobs(tmp_path / "photos", 10)
    assert run(tmp_path, finder=Fooled()).faces == 0
    assert run(tmp_path, "sure", TwoFaces()).faces == 20


def test_photos_enlarged_beyond_what_restorers_know_are_worked_on_at_a_smaller_scale(tmp_path: Path) -> None:
    for seed in range(4):
        small = grainy(60, 80, seed, 0.03)
        large = torch.nn.functional.interpolate(small, (720, 960), mode="bicubic").clamp(0, 1)
        write_photo(tmp_path / "photos" / f"{seed}.png", large)
        assert shrink_factor(read_photo(tmp_path / "photos" / f"{seed}.png")) == 3
        assert shrink_factor(small) == 1
    found = run(tmp_path)
    assert {round(1 / window.matrix[0][0]) for window in found.windows} == {3}
    assert {window.side for window in found.windows} == {240}
    note = "4 of 4 photos hold no detail beyond 1/12 of their size, and are worked on at 1/3"
    assert found.notes == ((str(tmp_path / "photos"), note),)


@pytest.mark.parametrize("times", [1, 2, 4])
def test_photos_enlarged_as_restorers_know_it_are_worked_on_at_their_own_pixels(times: int) -> None:
    large = torch.nn.functional.interpolate(grainy(192, 256, 1, 0.03), scale_factor=times, mode="bicubic")
    assert shrink_factor(large.clamp(0, 1)) == 1


def test_photos_coded_small_and_enlarged_are_brought_down_beyond_the_size_they_were_coded_at(tmp_path: Path) -> None:
    for seed in range(3):
        small = jpeg(grainy(192, 256, seed, 0.03), torch.tensor([90.0]))
        large = torch.nn.functional.interpolate(small, scale_factor=2, mode="bicubic").clamp(0, 1)
        assert enlargement(large) == 2 and enlargement(grainy(384, 512, seed, 0.03)) == 1
        write_photo(tmp_path / "photos" / f"{seed}.png", large)
    found = run(tmp_path)
    assert found.small == () and found.small_held == ()  # a quarter of 384 px holds no window of 128


def test_photos_brought_down_hold_a_window_and_are_split_as_the_photos_are(tmp_path: Path) -> None:
    for seed in range(6):
        write_photo(tmp_path / "photos" / f"{seed}.png", grainy(300, 400, seed))
    found = run(tmp_path)
    assert (len(found.small), len(found.small_held)) == (4, 2) and set(found.small) == {300}
    for held_out in (False, True):
        assert all(min(image.shape[-2:]) == 150 for image in load_small(tmp_path / "run", found, held_out))
    write_blobs(tmp_path / "tiny" / "photos", 9)
    assert run(tmp_path / "tiny").small == ()


def test_oblong_photos_are_refused_when_faces_are_said_to_be_aligned(tmp_path: Path) -> None:
    write_blobs(tmp_path / "photos", 10)
    write_photo(tmp_path / "photos" / "oblong.png", torch.rand(1, 3, 64, 96))
    found = run(tmp_path, aligned=True)
    assert found.faces == 10
    assert any("square" in reason for path, reason in found.refused if path.endswith("oblong.png"))


def test_windows_come_back_as_they_were_and_a_second_call_reads_the_record(tmp_path: Path) -> None:
    photos = write_blobs(tmp_path / "photos", 9)
    first = run(tmp_path)
    third = [window for window in first.windows if window.photo.endswith("03.png")]
    torch.testing.assert_close(load_windows(tmp_path / "run", third), read_photo(photos / "03.png"))
    for path in photos.iterdir():
        path.unlink()
    assert run(tmp_path) == first


def test_too_few_windows_say_how_many_are_needed(tmp_path: Path) -> None:
    write_blobs(tmp_path / "photos", 4)
    (tmp_path / "photos" / "torn.jpg").write_text("no photo")
    said = r"4 windows in 4 photos, expected at least 8.*files not used: 1, the first: .*torn\.jpg"
    with pytest.raises(AdaptError, match=said):
        run(tmp_path)
    assert not (tmp_path / "run" / "gathered.json").exists()


def test_a_few_large_photos_leave_some_to_teach(tmp_path: Path) -> None:
    for seed in range(2):
        write_photo(tmp_path / "photos" / f"{seed}.png", grainy(400, 400, seed))
    found = run(tmp_path)
    assert len(found.teaching()) >= 4 and len(found.judging()) >= 4
    (tmp_path / "photos" / "0.png").unlink()
    with pytest.raises(AdaptError, match="are left to teach"):
        run(tmp_path, "one")


def test_a_window_that_cannot_be_written_is_no_fault_of_the_photo(tmp_path: Path) -> None:
    write_blobs(tmp_path / "photos", 10)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "windows").write_text("in the way")
    with pytest.raises(AdaptError, match=r"windows/.*cannot be written"):
        run(tmp_path)
    assert not (tmp_path / "run" / "gathered.json").exists()


def test_photos_beyond_the_maximum_are_named(tmp_path: Path) -> None:
    write_blobs(tmp_path / "photos", 12)
    settings = Windows(crops="no", maximum=8)
    found = run(tmp_path, settings=settings)
    assert len(found.windows) == 8
    reasons = [reason for _, reason in found.refused]
    assert reasons == ["not needed: 8 photos give windows enough (windows.maximum)"] * 4
    assert run(tmp_path, settings=settings) == found
