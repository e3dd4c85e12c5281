"""Photos: what is found and what is written."""

from __future__ import annotations

import copy
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from adapt import photos
from adapt.errors import AdaptError, UsageError, printable
from adapt.photo_formats import Refusal, decode
from adapt.photos import PhotoError, find_photos, read_photo, write_photo
from tests.pictures import noise, pixel

# Finding


def test_find_photos_is_recursive_sorted_and_blind_to_case(tmp_path: Path) -> None:
    (tmp_path / "b" / "c").mkdir(parents=True)
    noise(1).save(tmp_path / "b" / "c" / "z.JPG")
    noise(2).save(tmp_path / "b" / "y.PnG")
    noise(3).save(tmp_path / "a.webp")
    (tmp_path / "notes.txt").write_text("not looked at")
    found = find_photos(tmp_path)
    assert [photo.path for photo in found.photos] == [
        tmp_path / "a.webp",
        tmp_path / "b" / "c" / "z.JPG",
        tmp_path / "b" / "y.PnG",
    ]
    assert found.refused == found.duplicates == found.notes == ()
    assert {(photo.width, photo.height) for photo in found.photos} == {(40, 48)}
    assert all(len(photo.sha256) == 64 for photo in found.photos)


def test_find_photos_drops_exact_duplicates_and_keeps_the_first_path(tmp_path: Path) -> None:
    noise(1).save(tmp_path / "b.png")
    for name in ("a.png", "c.png"):
        (tmp_path / name).write_bytes((tmp_path / "b.png").read_bytes())
    noise(2).save(tmp_path / "d.png")
    found = find_photos(tmp_path)
    assert [photo.path.name for photo in found.photos] == ["a.png", "d.png"]
    assert found.duplicates == ((tmp_path / "b.png", tmp_path / "a.png"), (tmp_path / "c.png", tmp_path / "a.png"))


def test_find_photos_skips_hidden_files_and_run_folders(tmp_path: Path) -> None:
    for folder in (".cache", "run/targets", "no_run"):
        (tmp_path / folder).mkdir(parents=True)
        noise(1).save(tmp_path / folder / "x.png")
    noise(2).save(tmp_path / "._a.png")
    for name in ("run/command.json", "run/recipe.yaml", "no_run/recipe.yaml"):
        (tmp_path / name).touch()
    assert [photo.path for photo in find_photos(tmp_path).photos] == [tmp_path / "no_run" / "x.png"]
    with pytest.raises(UsageError, match="folder of an earlier run"):
        find_photos(tmp_path / "run")


def test_find_photos_reads_links_to_files_and_does_not_follow_links_to_folders(tmp_path: Path) -> None:
    outside, root = tmp_path / "outside", tmp_path / "root"
    outside.mkdir()
    root.mkdir()
    noise(1).save(outside / "linked.png")
    noise(2).save(outside / "unseen.png")
    noise(3).save(root / "own.png")
    (root / "link.png").symlink_to(outside / "linked.png")
    (root / "elsewhere").symlink_to(outside, target_is_directory=True)
    (root / "loop").symlink_to(root, target_is_directory=True)
    found = find_photos(root)
    assert [photo.path.name for photo in found.photos] == ["link.png", "own.png"]
    assert [path.name for path, _ in found.notes] == ["elsewhere", "loop"]
    assert all("link to a folder" in note for _, note in found.notes)
    (tmp_path / "also_root").symlink_to(root, target_is_directory=True)
    assert len(find_photos(tmp_path / "also_root").photos) == 2


def test_find_photos_accepts_a_single_file_by_content(tmp_path: Path) -> None:
    path = tmp_path / "scan.dat"
    noise(1).save(path, "PNG")
    assert [photo.path for photo in find_photos(path).photos] == [path]


def test_find_photos_reports_progress(tmp_path: Path) -> None:
    noise(1).save(tmp_path / "a.png")
    (tmp_path / "b.png").touch()
    calls: list[tuple[int, int]] = []
    find_photos(tmp_path, on_photo=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 2), (2, 2)]


def test_find_photos_says_what_is_wrong_with_the_root(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"does not exist; expected a folder with photos or one photo; check"):
        find_photos(tmp_path / "typo")
    with pytest.raises(AdaptError, match=r"no photos found; expected files ending in \.jpg .*; check the folder"):
        find_photos(tmp_path)
    (tmp_path / "b.png").touch()
    (tmp_path / "a.jpg").write_text("hello")
    with pytest.raises(AdaptError, match=r"none of 2 files can be used; the first, .*a\.jpg: content is text"):
        find_photos(tmp_path)
    with pytest.raises(AdaptError, match=r"b\.png: empty: 0 bytes; copy"):
        find_photos(tmp_path / "b.png")


def test_an_empty_root_mentions_links_that_were_not_followed(tmp_path: Path) -> None:
    (tmp_path / "photos").symlink_to("/", target_is_directory=True)
    with pytest.raises(AdaptError, match="is a link to a folder and was not followed"):
        find_photos(tmp_path)


def test_an_unreadable_folder_is_refused_and_the_rest_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "locked").mkdir()
    noise(1).save(tmp_path / "a.png")
    scandir = os.scandir

    def guarded(path: os.PathLike[str] | str) -> object:
        if os.fspath(path).endswith("locked"):  # permissions do not stop the superuser, so the refusal is staged
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", guarded)
    found = find_photos(tmp_path)
    assert len(found.photos) == 1
    assert found.refused == (
        (tmp_path / "locked", "folder cannot be opened: Permission denied; change its permissions"),
    )


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.jpg", "a.jpg"),
        ("né.jpg", "né.jpg"),
        ("a\nb\x1b[0m.jpg", r"a\nb\x1b[0m.jpg"),
        (b"caf\xe9.jpg", r"caf\xe9.jpg"),
    ],
)
def test_printable_is_one_line_of_valid_text(name: str | bytes, expected: str) -> None:
    assert printable(Path(os.fsdecode(name))) == expected
    printable(Path(os.fsdecode(name))).encode("utf-8")


def test_a_photo_error_survives_the_way_between_processes() -> None:
    error = copy.copy(PhotoError(Path("a.jpg"), "empty"))  # by the protocol that pickle uses between processes
    assert (str(error), error.path, error.reason) == ("a.jpg: empty", Path("a.jpg"), "empty")


# Writing


@pytest.mark.parametrize(("suffix", "tolerance"), [(".png", 0), (".PNG", 0), (".jpg", 3), (".jpeg", 3), (".webp", 5)])
def test_write_then_read_returns_the_image(tmp_path: Path, suffix: str, tolerance: int) -> None:
    path = tmp_path / f"new/folder/a{suffix}"
    image = torch.tensor([200, 60, 40]).float().div(255).reshape(1, 3, 1, 1).expand(1, 3, 48, 40)
    write_photo(path, image)
    assert pixel(path) == pytest.approx([200, 60, 40], abs=tolerance)
    assert find_photos(path).notes == ()
    assert Image.open(path).info["icc_profile"] == photos._srgb_profile()


def test_write_rounds_and_clamps(tmp_path: Path) -> None:
    values = torch.tensor([-0.2, 1.3, 0.499 / 255, 0.501 / 255, 254.6 / 255]).reshape(1, 1, 5)
    write_photo(tmp_path / "a.png", values.expand(3, 40, 5))
    assert np.array(Image.open(tmp_path / "a.png"))[0, :, 0].tolist() == [0, 255, 0, 1, 255]


def test_png_round_trip_is_exact_and_bytes_repeat(tmp_path: Path) -> None:
    noise(1).save(tmp_path / "a.png")
    image = read_photo(tmp_path / "a.png")
    write_photo(tmp_path / "b.png", image)
    write_photo(tmp_path / "c.png", image)
    assert torch.equal(read_photo(tmp_path / "b.png"), image)
    assert (tmp_path / "b.png").read_bytes() == (tmp_path / "c.png").read_bytes()


@pytest.mark.parametrize(
    ("name", "image", "reason"),
    [
        ("a.gif", torch.zeros(3, 40, 40), r"cannot write '\.gif' files; use one of \.png"),
        ("a.png", torch.zeros(2, 3, 40, 40), r"expected float \[1, 3, H, W\]"),
        ("a.png", torch.zeros(1, 40, 40), r"expected float \[1, 3, H, W\]"),
        ("a.png", torch.zeros(3, 40, 40, dtype=torch.uint8), "expected float"),
        ("a.png", torch.full((3, 40, 40), float("nan")), "cannot write NaN or infinite"),
        ("a.webp", torch.zeros(3, 32, 20000), "cannot be written"),
    ],
)
def test_write_refuses_with_a_reason(tmp_path: Path, name: str, image: torch.Tensor, reason: str) -> None:
    with pytest.raises(PhotoError, match=reason):
        write_photo(tmp_path / name, image)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_photo(tmp_path / "a.png", torch.zeros(3, 40, 40))
    before = (tmp_path / "a.png").read_bytes()

    def full_disk(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(PhotoError, match=r"cannot be written: No space left on device; check"):
        write_photo(tmp_path / "a.png", torch.ones(3, 40, 40))
    assert (tmp_path / "a.png").read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_a_written_file_follows_the_umask(tmp_path: Path) -> None:
    write_photo(tmp_path / "a.png", torch.zeros(3, 40, 40))
    (tmp_path / "plain").touch()
    assert (tmp_path / "a.png").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_decode_of_an_empty_stream_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    with (tmp_path / "a").open("rb") as handle, pytest.raises(Refusal, match="all zeros"):
        decode(handle)


def test_a_file_in_place_of_the_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "taken").touch()
    with pytest.raises(PhotoError, match="cannot be written"):
        write_photo(tmp_path / "taken" / "a.png", torch.zeros(3, 40, 40))
    with pytest.raises(PhotoError, match="cannot be written"):
        write_photo(tmp_path / "taken" / "deeper" / "a.png", torch.zeros(3, 40, 40))
