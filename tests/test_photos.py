"""Photos: what is found, how each kind of pixel is read, and what is written."""

from __future__ import annotations

import copy
import importlib.util
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from adapt import photos
from adapt.errors import AdaptError, UsageError
from adapt.photo_formats import Refusal, decode
from adapt.photos import PhotoError, find_photos, printable, read_photo, write_photo

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def solid(colour: tuple[int, int, int], width: int = 40, height: int = 48) -> Image.Image:
    return Image.new("RGB", (width, height), colour)


def noise(seed: int, width: int = 40, height: int = 48) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def pixel(path: Path, y: int = 20, x: int = 20) -> list[int]:
    """One pixel of a photo as it is read, in 8-bit steps."""
    return [round(value * 255) for value in read_photo(path)[0, :, y, x].tolist()]


def gamma_profile(gamma: float) -> bytes:
    """A monochrome ICC profile with a plain power curve: header, tag table, three tags (ICC.1 section 7)."""
    tags = {
        b"wtpt": b"XYZ \0\0\0\0" + b"".join(round(v * 65536).to_bytes(4, "big") for v in (0.9642, 1.0, 0.8249)),
        b"kTRC": b"curv\0\0\0\0\0\0\0\x01" + round(gamma * 256).to_bytes(2, "big") + b"\0\0",
        b"desc": b"desc\0\0\0\0\0\0\0\x02x\0" + b"\0" * 78,
    }
    table, body = len(tags).to_bytes(4, "big"), b""
    start = 128 + 4 + 12 * len(tags)
    for name, data in tags.items():
        table += name + (start + len(body)).to_bytes(4, "big") + len(data).to_bytes(4, "big")
        body += data + b"\0" * (-len(data) % 4)
    size = (start + len(body)).to_bytes(4, "big")
    illuminant = bytes.fromhex("0000f6d6000100000000d32d")
    header = size + b"\0\0\0\0\x02\x10\0\0mntrGRAYXYZ " + b"\0" * 12 + b"acsp" + b"\0" * 28 + illuminant
    return header.ljust(128, b"\0") + table + body


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
    for folder in (".cache", "run/targets", "half_a_run"):
        (tmp_path / folder).mkdir(parents=True)
        noise(1).save(tmp_path / folder / "x.png")
    noise(2).save(tmp_path / "._a.png")
    for name in ("run/manifest.jsonl", "run/recipe.yaml", "half_a_run/recipe.yaml"):
        (tmp_path / name).touch()
    assert [photo.path for photo in find_photos(tmp_path).photos] == [tmp_path / "half_a_run" / "x.png"]
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


# Reading


def test_read_photo_gives_the_contracts_tensor(tmp_path: Path) -> None:
    source = noise(1)
    source.save(tmp_path / "a.png")
    image = read_photo(tmp_path / "a.png")
    assert (image.dtype, tuple(image.shape), image.is_contiguous()) == (torch.float32, (1, 3, 48, 40), True)
    expected = torch.from_numpy(np.array(source)).permute(2, 0, 1)[None].float() / 255
    assert torch.equal(image, expected)


def test_read_photo_names_file_and_reason(tmp_path: Path) -> None:
    (tmp_path / "a.png").touch()
    with pytest.raises(PhotoError, match=r"a\.png: empty: 0 bytes; copy the file again") as caught:
        read_photo(tmp_path / "a.png")
    assert caught.value.reason.startswith("empty")


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_once(tmp_path: Path, suffix: str, orientation: int) -> None:
    upright = solid(BLUE, 64, 48)
    upright.paste(RED, (0, 0, 32, 24))
    to_stored = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,  # shown turned clockwise, so stored turned the other way
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = upright.transpose(to_stored[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a{suffix}"
    stored.save(path, exif=exif)
    (photo,) = find_photos(path).photos
    assert (photo.width, photo.height) == (64, 48)
    image = read_photo(path)[0]
    assert image[0, 12, 16] > 0.9  # red in the upper left
    assert (image[2, [12, 36, 36], [48, 16, 48]] > 0.9).all()  # blue elsewhere


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "YCbCr", "CMYK", "LAB", "I;16"])
@pytest.mark.parametrize("value", [0, 255])
def test_every_layout_keeps_black_and_white(tmp_path: Path, mode: str, value: int) -> None:
    path = tmp_path / "a.tif"
    source = solid((value,) * 3)
    if mode == "LAB":
        Image.merge("LAB", [Image.new("L", source.size, level) for level in (value, 128, 128)]).save(path)
    elif mode == "I;16":
        Image.fromarray(np.full((48, 40), value * 257, dtype=np.uint16)).save(path)
    else:
        source.convert(mode).save(path, compression="jpeg" if mode == "YCbCr" else "raw")
    assert pixel(path) == pytest.approx([value] * 3, abs=1 if mode == "LAB" else 0)


def test_sixteen_bit_gray_is_rounded_not_cut(tmp_path: Path) -> None:
    values = np.full((48, 40), 1000, dtype=np.uint16)  # 1000 / 257 = 3.891
    for name in ("a.tif", "a.png"):
        Image.fromarray(values).save(tmp_path / name)
        assert pixel(tmp_path / name) == [4, 4, 4]


def test_white_is_zero_sixteen_bit_is_inverted(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((48, 40), dtype=np.uint16)).save(tmp_path / "a.tif", tiffinfo={262: 0})
    data = (tmp_path / "a.tif").read_bytes()
    if Image.open(tmp_path / "a.tif").tag_v2[262] != 0:  # Pillow writes its own value; patch the directory entry
        entry = data.index(b"\x06\x01\x03\x00\x01\x00\x00\x00")
        (tmp_path / "a.tif").write_bytes(data[: entry + 8] + b"\0\0\0\0" + data[entry + 12 :])
    assert pixel(tmp_path / "a.tif") == [255] * 3


def test_float_tiff_from_zero_to_one_is_read(tmp_path: Path) -> None:
    Image.fromarray(np.full((48, 40), 0.5, dtype=np.float32)).save(tmp_path / "a.tif")
    assert pixel(tmp_path / "a.tif") == [128] * 3


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_alpha_is_composited_over_white(tmp_path: Path, mode: str) -> None:
    source = Image.new("RGBA", (40, 48), (0, 0, 0, 255))
    source.paste((0, 0, 0, 0), (0, 0, 40, 24))  # transparent black above, opaque black below
    if mode == "P":
        palette = Image.new("P", (40, 48), 1)
        palette.putpalette([10, 200, 10, 0, 0, 0])
        palette.paste(0, (0, 0, 40, 24))
        palette.save(tmp_path / "a.png", transparency=0)
    else:
        source.convert(mode).save(tmp_path / "a.png")
    assert pixel(tmp_path / "a.png", y=10) == [255] * 3
    assert pixel(tmp_path / "a.png", y=40) == [0] * 3


def test_half_transparent_colour_mixes_with_white(tmp_path: Path) -> None:
    Image.new("RGBA", (40, 48), (255, 0, 0, 128)).save(tmp_path / "a.webp", lossless=True)
    assert pixel(tmp_path / "a.webp") == [255, 127, 127]


def test_gray_profile_is_converted_to_srgb(tmp_path: Path) -> None:
    Image.new("L", (40, 48), 128).save(tmp_path / "linear.png", icc_profile=gamma_profile(1.0))
    value = 128 / 255
    expected = round(255 * (1.055 * value ** (1 / 2.4) - 0.055))  # IEC 61966-2-1: linear light to sRGB
    assert pixel(tmp_path / "linear.png") == pytest.approx([expected] * 3, abs=1)


def test_gray_photo_with_srgb_profile_is_unchanged(tmp_path: Path) -> None:
    Image.new("L", (40, 48), 77).save(tmp_path / "a.jpg", icc_profile=photos._srgb_profile())
    assert pixel(tmp_path / "a.jpg") == [77] * 3


def test_srgb_profile_leaves_pixels_exact(tmp_path: Path) -> None:
    noise(1).save(tmp_path / "tagged.png", icc_profile=photos._srgb_profile())
    noise(1).save(tmp_path / "plain.png")
    assert torch.equal(read_photo(tmp_path / "tagged.png"), read_photo(tmp_path / "plain.png"))


def test_lab_is_converted_by_its_meaning(tmp_path: Path) -> None:
    to_lab = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    lab = ImageCms.applyTransform(solid((200, 60, 40)), to_lab)
    assert lab is not None
    lab.save(tmp_path / "a.tif")
    assert pixel(tmp_path / "a.tif") == pytest.approx([200, 60, 40], abs=4)  # 8-bit Lab is coarse


@pytest.mark.parametrize("profile", [b"not a profile" * 20, gamma_profile(1.0)], ids=["broken", "gray profile on RGB"])
def test_unusable_profile_is_noted_and_ignored(tmp_path: Path, profile: bytes) -> None:
    solid(GREEN).save(tmp_path / "a.png", icc_profile=profile)
    found = find_photos(tmp_path)
    assert pixel(tmp_path / "a.png") == list(GREEN)
    assert [note for _, note in found.notes] == [
        "its colour profile is unreadable or of another colour model, taken as sRGB"
    ]


def test_cmyk_without_profile_is_read_and_noted(tmp_path: Path) -> None:
    solid(RED).convert("CMYK").save(tmp_path / "a.jpg", quality=95)
    found = find_photos(tmp_path)
    assert pixel(tmp_path / "a.jpg") == pytest.approx(list(RED), abs=6)
    assert found.notes == ((tmp_path / "a.jpg", "CMYK without a colour profile, colours are approximate"),)


def test_first_page_of_a_tiff_is_used_and_noted(tmp_path: Path) -> None:
    solid(RED).save(tmp_path / "a.tif", save_all=True, append_images=[solid(BLUE)])
    found = find_photos(tmp_path)
    assert pixel(tmp_path / "a.tif") == list(RED)
    assert "only the first is used" in found.notes[0][1]


def test_main_picture_of_a_phone_mpo_is_used(tmp_path: Path) -> None:
    solid(RED).save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[solid(BLUE)])
    assert pixel(tmp_path / "a.jpg") == pytest.approx(list(RED), abs=3)


def test_content_decides_not_the_suffix(tmp_path: Path) -> None:
    noise(1).save(tmp_path / "a.jpg", format="PNG")
    noise(2).save(tmp_path / "b.png", format="WEBP")
    noise(3).save(tmp_path / "c.heic", format="JPEG")
    assert len(find_photos(tmp_path).photos) == 3


def test_broken_exif_does_not_cost_the_photo(tmp_path: Path) -> None:
    solid(RED).save(tmp_path / "a.jpg", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + b"\xff" * 40, quality=95)
    assert pixel(tmp_path / "a.jpg") == pytest.approx(list(RED), abs=3)


@pytest.mark.skipif(importlib.util.find_spec("pillow_heif") is None, reason="pillow-heif is not installed")
def test_heic_is_read(tmp_path: Path) -> None:
    import pillow_heif

    pillow_heif.from_pillow(solid(RED, 64, 64)).save(tmp_path / "a.HEIC", quality=95)
    assert pixel(tmp_path / "a.HEIC") == pytest.approx(list(RED), abs=6)


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
