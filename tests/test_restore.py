import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from adapt.errors import UsageError
from adapt.faces import Face, native_size
from adapt.photos import read_photo, write_photo
from adapt.restore import crop_side, restore_photos, restore_whole
from restorers.runtime import RuntimeRestorer


def photo(height: int, width: int, seed: int = 0) -> Tensor:
    coarse = torch.rand(1, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)


def face(left: float, top: float, side: float, index: int = 0) -> Face:
    scale = 512 / side
    return Face(index, ((scale, 0.0, -left * scale), (0.0, scale, -top * scale)), 0.9)


class FixedFinder:
    """Finds the same faces in every photo."""

    name = "fixed"

    def __init__(self, *faces: Face) -> None:
        self.faces = list(faces)

    def find(self, image: Tensor) -> list[Face]:
        return self.faces


class Recorder:
    """Inverts the image and remembers the shapes it saw."""

    def __init__(self) -> None:
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, image: Tensor) -> Tensor:
        self.shapes.append(tuple(image.shape))
        return 1 - image


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def invert(recorder) -> RuntimeRestorer:
    return RuntimeRestorer(recorder, name="invert", multiple_of=8, minimum=64)


def outputs(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_photo_is_restored_from_edge_to_edge(tmp_path, invert):
    write_photo(tmp_path / "in" / "a.png", photo(70, 70))
    summary = restore_photos([tmp_path / "in"], invert, tmp_path / "out")
    assert [(item.source.name, item.output.name, item.faces) for item in summary.restored] == [("a.png", "a.png", 0)]
    assert summary.exit_code == 0
    before, after = read_photo(tmp_path / "in" / "a.png"), read_photo(tmp_path / "out" / "a.png")
    torch.testing.assert_close(after, 1 - before, atol=1 / 255, rtol=0)


def test_faces_are_pasted_back_and_the_background_is_untouched(tmp_path, invert, recorder):
    write_photo(tmp_path / "in" / "a.png", photo(200, 300))
    finder = FixedFinder(face(20, 30, 101), face(180, 60, 80, 1))
    summary = restore_photos([tmp_path / "in" / "a.png"], invert, tmp_path / "out", finder)
    assert summary.restored[0].faces == 2
    assert recorder.shapes == [(1, 3, 104, 104), (1, 3, 80, 80)]
    before, after = read_photo(tmp_path / "in" / "a.png"), read_photo(tmp_path / "out" / "a.png")
    changed = (before - after).abs().amax(1)[0] > 0
    inside = torch.zeros_like(changed)
    inside[28:133, 18:123] = True
    inside[58:142, 178:262] = True
    assert not bool((changed & ~inside).any())
    torch.testing.assert_close(after[..., 70:90, 60:80], 1 - before[..., 70:90, 60:80], atol=0.02, rtol=0)
    torch.testing.assert_close(after[..., 95:105, 215:225], 1 - before[..., 95:105, 215:225], atol=0.02, rtol=0)


@pytest.mark.parametrize(
    ("side", "multiple_of", "expected"), [(101, 8, 104), (99, 8, 96), (20, 8, 64), (20, 48, 96), (333, 1, 333)]
)
def test_a_face_is_restored_at_its_own_size(side, multiple_of, expected):
    assert native_size(face(0, 0, side)) == pytest.approx(side)
    assert crop_side(face(0, 0, side), multiple_of) == expected


def test_a_photo_enlarged_beyond_what_restorers_know_is_restored_at_a_smaller_scale(tmp_path, recorder, invert):
    noise = torch.randn(1, 3, 50, 60, generator=torch.Generator().manual_seed(1))
    small = (photo(50, 60) + 0.03 * noise).clamp(0, 1)
    large = torch.nn.functional.interpolate(small, (600, 720), mode="bicubic").clamp(0, 1)
    write_photo(tmp_path / "in" / "a.png", large)
    (restored,) = restore_photos([tmp_path / "in"], invert, tmp_path / "out").restored
    assert restored.shrunk == 3 and recorder.shapes == [(1, 3, 200, 240)]
    assert read_photo(tmp_path / "out" / "a.png").shape == large.shape
    restore_photos([tmp_path / "in"], invert, tmp_path / "as it is", fit_scale=False)
    assert recorder.shapes[-1] == (1, 3, 600, 720)


def test_detail_that_a_smaller_scale_cannot_hold_is_not_lost(tmp_path):
    image = photo(300, 400) + 0.2 * torch.rand(1, 3, 300, 400, generator=torch.Generator().manual_seed(1))
    kept = restore_whole(image.clamp(0, 1), lambda small: small, 2)
    assert torch.equal(kept, image.clamp(0, 1))


def test_a_photo_without_faces_is_reported_and_not_written(tmp_path, invert):
    write_photo(tmp_path / "in" / "a.png", photo(80, 80))
    summary = restore_photos([tmp_path / "in"], invert, tmp_path / "out", FixedFinder())
    assert summary.without_faces == (tmp_path / "in" / "a.png",)
    assert summary.restored == ()
    assert summary.exit_code == 1
    assert not (tmp_path / "out").exists()


def test_bad_files_are_reported_with_their_reason_and_the_others_go_on(tmp_path, invert):
    folder = tmp_path / "in"
    write_photo(folder / "good.png", photo(70, 70))
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "text.jpg").write_text("no photo")
    summary = restore_photos([folder], invert, tmp_path / "out")
    assert [item.source.name for item in summary.restored] == ["good.png"]
    assert sorted(path.name for path, _ in summary.failed) == ["empty.jpg", "text.jpg"]
    assert all(reason for _, reason in summary.failed)
    assert summary.exit_code == 0


def test_a_single_bad_file_is_reported_without_its_path_twice(tmp_path, invert):
    (tmp_path / "empty.jpg").write_bytes(b"")
    write_photo(tmp_path / "good.png", photo(70, 70))
    inputs = [tmp_path / "empty.jpg", tmp_path / "good.png"]
    summary = restore_photos(inputs, invert, tmp_path / "out")
    ((path, reason),) = summary.failed
    assert path == tmp_path / "empty.jpg"
    assert "empty.jpg" not in reason
    assert len(summary.restored) == 1


def test_a_restorer_that_fails_writes_nothing(tmp_path):
    broken = RuntimeRestorer(lambda image: image * float("nan"), name="broken", multiple_of=8, minimum=64)
    write_photo(tmp_path / "in" / "a.png", photo(70, 70))
    summary = restore_photos([tmp_path / "in"], broken, tmp_path / "out")
    assert summary.exit_code == 1
    assert "not finite" in summary.failed[0][1]
    assert not (tmp_path / "out").exists()


def test_a_disk_that_refuses_is_reported(tmp_path, invert):
    write_photo(tmp_path / "in" / "sub" / "a.png", photo(70, 70))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sub").write_text("a file where a folder must be")
    summary = restore_photos([tmp_path / "in"], invert, tmp_path / "out")
    assert summary.exit_code == 1
    assert summary.failed[0][0].name == "a.png"
    assert outputs(tmp_path / "out") == ["sub"]


def test_formats_and_folders_are_kept(tmp_path, invert):
    folder = tmp_path / "in"
    for place in ("a.JPG", "b.webp", "sub/c.png"):
        write_photo(folder / place, photo(70, 70, seed=len(place)))
    Image.new("RGB", (70, 70), (90, 80, 70)).save(folder / "d.bmp")
    restore_photos([folder], invert, tmp_path / "out")
    assert outputs(tmp_path / "out") == ["a.JPG", "b.webp", "d.png", "sub/c.png"]
    formats = {}
    for name in outputs(tmp_path / "out"):
        with Image.open(tmp_path / "out" / name) as opened:
            formats[name] = opened.format
    assert formats == {"a.JPG": "JPEG", "b.webp": "WEBP", "d.png": "PNG", "sub/c.png": "PNG"}


def test_equal_names_do_not_collide(tmp_path, invert):
    write_photo(tmp_path / "one" / "a.png", photo(70, 70, 1))
    write_photo(tmp_path / "two" / "a.png", photo(70, 70, 2))
    Image.new("RGB", (70, 70)).save(tmp_path / "two" / "A.bmp")
    summary = restore_photos([tmp_path / "one", tmp_path / "two"], invert, tmp_path / "out")
    names = [item.output.name for item in summary.restored]
    assert len({name.casefold() for name in names}) == 3
    for item in summary.restored:
        torch.testing.assert_close(read_photo(item.output), 1 - read_photo(item.source), atol=1 / 255, rtol=0)


def test_copies_of_a_photo_are_all_restored(tmp_path, invert):
    write_photo(tmp_path / "in" / "a.png", photo(70, 70))
    (tmp_path / "in" / "b.png").write_bytes((tmp_path / "in" / "a.png").read_bytes())
    restore_photos([tmp_path / "in"], invert, tmp_path / "out")
    assert outputs(tmp_path / "out") == ["a.png", "b.png"]


def test_a_photo_named_twice_is_restored_once(tmp_path, invert):
    write_photo(tmp_path / "in" / "a.png", photo(70, 70))
    inputs = [tmp_path / "in", tmp_path / "in" / "a.png"]
    assert len(restore_photos(inputs, invert, tmp_path / "out").restored) == 1


def test_existing_files_are_kept_unless_overwriting(tmp_path, invert):
    write_photo(tmp_path / "in" / "a.png", photo(70, 70))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a.png").write_bytes(b"precious")
    restore_photos([tmp_path / "in"], invert, tmp_path / "out")
    assert (tmp_path / "out" / "a.png").read_bytes() == b"precious"
    assert outputs(tmp_path / "out") == ["a-2.png", "a.png"]
    restore_photos([tmp_path / "in"], invert, tmp_path / "out", overwrite=True)
    assert (tmp_path / "out" / "a.png").read_bytes() != b"precious"


def test_inputs_are_never_replaced(tmp_path, invert):
    write_photo(tmp_path / "a.png", photo(70, 70))
    before = (tmp_path / "a.png").read_bytes()
    restore_photos([tmp_path / "a.png"], invert, tmp_path, overwrite=True)
    assert (tmp_path / "a.png").read_bytes() == before
    assert outputs(tmp_path) == ["a-2.png", "a.png"]


def test_earlier_results_below_the_input_folder_are_not_restored_again(tmp_path, invert):
    write_photo(tmp_path / "a.png", photo(70, 70))
    for _ in range(2):
        summary = restore_photos([tmp_path], invert, tmp_path / "out", overwrite=True)
        assert [item.source.name for item in summary.restored] == ["a.png"]
    assert outputs(tmp_path / "out") == ["a.png"]


def test_usage_errors(tmp_path, invert):
    write_photo(tmp_path / "a.png", photo(70, 70))
    with pytest.raises(UsageError, match="does not exist"):
        restore_photos([tmp_path / "absent"], invert, tmp_path / "out")
    with pytest.raises(UsageError, match="no photos given"):
        restore_photos([], invert, tmp_path / "out")
    with pytest.raises(UsageError, match="is a file"):
        restore_photos([tmp_path / "a.png"], invert, tmp_path / "a.png")
    with pytest.raises(UsageError, match="also an input folder"):
        restore_photos([tmp_path], invert, tmp_path)


def test_exif_orientation_is_applied(tmp_path, invert):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees to look at
    Image.new("RGB", (96, 64)).save(tmp_path / "a.jpg", exif=exif)
    restore_photos([tmp_path / "a.jpg"], invert, tmp_path / "out")
    with Image.open(tmp_path / "out" / "a.jpg") as opened:
        assert opened.size == (64, 96)
        assert opened.getexif().get(0x0112, 1) == 1


def test_progress_reaches_the_end(tmp_path, invert):
    for seed in range(3):
        write_photo(tmp_path / "in" / f"{seed}.png", photo(70, 70, seed))
    seen: list[tuple[int, int]] = []

    def remember(done: int, total: int) -> None:
        seen.append((done, total))

    restore_photos([tmp_path / "in"], invert, tmp_path / "out", on_photo=remember)
    assert seen == [(1, 3), (2, 3), (3, 3)]


@pytest.mark.skipif(os.name == "nt", reason="such names do not exist on Windows")
def test_names_that_are_not_text_survive(tmp_path, invert):
    place = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png"))
    try:
        write_photo(place, photo(70, 70))
    except Exception as error:  # noqa: BLE001 - some file systems refuse the name
        pytest.skip(f"the file system refuses the name: {error}")
    summary = restore_photos([place], invert, tmp_path / "out")
    assert summary.restored[0].output.name == place.name


def test_serving_imports_nothing_heavy():
    program = (
        "import sys, adapt.restore\n"
        "heavy = {'diffusers', 'ray', 'mlflow', 'spandrel', 'torchvision', 'facexlib'} & sys.modules.keys()\n"
        "sys.exit(' '.join(sorted(heavy)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
