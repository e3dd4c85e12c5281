"""Photos: how each kind of pixel is read."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from adapt import photos
from adapt.photos import PhotoError, find_photos, read_photo
from tests.pictures import BLUE, GREEN, RED, noise, pixel, solid


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
