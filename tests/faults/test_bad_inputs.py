"""A folder full of bad files: each is refused with a reason a user understands, and the good ones are all found."""

from __future__ import annotations

import builtins
import os
import random
import re
import socket
import struct
import sys
import zlib
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from adapt.errors import printable
from adapt.photo_formats import Refusal, decode
from adapt.photos import PhotoError, find_photos, read_photo

MAX_REASON = 200  # characters: one short line


def picture(seed: int = 0, width: int = 64, height: int = 48) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values)


def encoded(kind: str, image: Image.Image | None = None, **options: object) -> bytes:
    buffer = BytesIO()
    (picture() if image is None else image).save(buffer, kind, **options)
    return buffer.getvalue()


def cut(data: bytes, share: float = 0.5) -> bytes:
    return data[: int(len(data) * share)]


def float_tiff(value: float) -> bytes:
    values = np.full((48, 64), 0.5, dtype=np.float32)
    values[10, 10] = value
    return encoded("TIFF", Image.fromarray(values))


def png(width: int, height: int, bits: int = 8, data: bytes = b"") -> bytes:
    """A PNG whose header promises `width` x `height`, whatever its data holds."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, bits, 2, 0, 0, 0)
    body = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def tiff(entries: dict[int, tuple[int, int]], pixels: bytes = b"") -> bytes:
    """A little-endian TIFF of one directory: tag -> (type 3 short or 4 long, value); pixels follow it."""
    start = 8 + 2 + 12 * (len(entries) + 1) + 4
    table = {**entries, 273: (4, start)}
    rows = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, (kind, value) in sorted(table.items()))
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(table)) + rows + b"\0\0\0\0" + pixels


GRAY_TIFF = {256: (4, 64), 257: (4, 48), 258: (3, 8), 259: (3, 1), 262: (3, 1), 277: (3, 1), 279: (4, 3072)}
HUGE_TILES = {256: (4, 64), 257: (4, 48), 258: (3, 8), 259: (3, 5), 262: (3, 1), 322: (4, 65536), 323: (4, 65536)}
FLOAT_COLOUR = {**GRAY_TIFF, 258: (3, 32), 262: (3, 2), 277: (3, 3), 339: (3, 3)}
ANIMATION = {"save_all": True, "append_images": [picture(1)]}

# name -> (content, what the reason must say)
BAD_FILES: dict[str, tuple[bytes, str]] = {
    "empty.jpg": (b"", "empty: 0 bytes"),
    "cut_baseline.jpg": (cut(encoded("JPEG")), "truncated"),
    "cut_progressive.jpg": (cut(encoded("JPEG", progressive=True)), "truncated"),
    "cut_in_header.jpg": (encoded("JPEG")[:30], "damaged|truncated"),
    "cut.png": (cut(encoded("PNG")), "truncated"),
    "cut_in_header.png": (encoded("PNG")[:20], "damaged|truncated"),
    "cut.webp": (cut(encoded("WEBP")), "damaged|truncated"),
    "cut.bmp": (cut(encoded("BMP")), "truncated"),
    "cut.tif": (cut(encoded("TIFF")), "damaged|truncated"),
    "cut_lzw.tif": (cut(encoded("TIFF", compression="tiff_lzw")), "damaged|truncated"),
    "only_magic.jpg": (b"\xff\xd8\xff", "damaged"),
    "only_magic.webp": (b"RIFF\x10\0\0\0WEBPVP8 ", "damaged"),
    "no_data.png": (png(64, 48), "truncated|damaged"),
    "bad_checksum.png": (encoded("PNG")[:16] + b"\0\0\0\x41" + encoded("PNG")[20:], "damaged"),
    "text.jpg": (b"this is a shopping list, not a photo\n" * 9, "content is text"),
    "one_letter.jpg": (b"x", "content is text"),
    "page.jpg": (b"<!DOCTYPE html><title>404 Not Found</title>", "a web page"),
    "document.jpg": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n" + b"\0" * 99, "a PDF document"),
    "archive.png": (b"PK\x03\x04" + b"\0" * 99, "a zip archive"),
    "animation.jpg": (encoded("GIF"), "a GIF"),
    "film.heic": (b"\0\0\0\x18ftypisom" + b"\0" * 99, "a video"),
    "modern.jpg": (b"\0\0\0\x1cftypavif" + b"\0" * 99, "content is AVIF"),
    "broken.heic": (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 99, "damaged|plug-in"),
    "zeros.jpg": (b"\0" * 5000, "all zeros"),
    "random.jpg": (b"\x01\x02" + random.Random(0).randbytes(5000), "no known photo format"),
    "1x1.png": (encoded("PNG", picture(0, 1, 1)), "1x1 pixels, each side must have at least 32"),
    "31x400.png": (encoded("PNG", picture(0, 31, 400)), "31x400 pixels, each side"),
    "30000x2.png": (encoded("PNG", Image.new("RGB", (30000, 2))), "30000x2 pixels, each side"),
    "ribbon.png": (encoded("PNG", Image.new("L", (3300, 33))), "longer than 20 times"),
    "bomb.png": (png(50_000, 50_000), "megapixels"),
    "bomb_just_above.png": (png(9_000, 8_900), "9000x8900 pixels, more than 80 megapixels"),
    "bomb_huge.png": (png(2**31 - 1, 2**31 - 1), "megapixels|damaged"),
    "bomb.bmp": (b"BM" + struct.pack("<IHHIIiiHHIIiiII", 54, 0, 0, 54, 40, 60_000, 60_000, 1, 24, 0, 0, 0, 0, 0, 0),
                 "megapixels"),
    "huge_tiles.tif": (tiff(HUGE_TILES | {324: (4, 200), 325: (4, 10)}, b"\0" * 99), "damaged"),
    "float_colour.tif": (tiff(FLOAT_COLOUR, b"\0" * 36864), "damaged, or a TIFF with a pixel layout"),
    "endless_directory.tif": (tiff(GRAY_TIFF)[:10] + b"\xff" * 40, "damaged"),
    "nan.tif": (float_tiff(float("nan")), "NaN or infinite"),
    "inf.tif": (float_tiff(float("-inf")), "NaN or infinite"),
    "elevation.tif": (float_tiff(8848.0), "run from 0.5 to 8848, expected 0 to 1"),
    "animated.png": (encoded("PNG", **ANIMATION), "animated"),
    "animated.webp": (encoded("WEBP", **ANIMATION), "animated"),
}  # fmt: skip

GOOD_FILES: dict[str, bytes] = {
    "good.jpg": encoded("JPEG", picture(1)),
    "GOOD.JPEG": encoded("JPEG", picture(2)),
    "good.png": encoded("PNG", picture(3)),
    "good.webp": encoded("WEBP", picture(4)),
    "good.tif": encoded("TIFF", picture(5)),
    "good.bmp": encoded("BMP", picture(6)),
    "wrong_suffix.jpg": encoded("PNG", picture(7)),
    "smallest.png": encoded("PNG", picture(8, 32, 32)),
    "panorama.png": encoded("PNG", picture(9, 640, 32)),
    "trailing_data.jpg": encoded("JPEG", picture(10)) + b"motion photo" * 99,
    "plain.tif": tiff(GRAY_TIFF, bytes(range(256)) * 12),
}


def write_bad_places(root: Path) -> dict[Path, str]:
    """What is bad by its place or kind rather than its content: path -> what the reason must say."""
    expected: dict[Path, str] = {}

    def add(path: Path, reason: str) -> Path:
        expected[path] = reason
        return path

    add(root / "folder.jpg", "is a folder with a photo's name").mkdir()
    add(root / "dangling.jpg", "is a link to nothing").symlink_to(root / "nowhere.jpg")
    add(root / "self.jpg", "cannot be read: .*symbolic links").symlink_to(root / "self.jpg")
    os.mkfifo(add(root / "pipe.jpg", "is a pipe, socket or device"))
    add(root / "device.png", "is a pipe, socket or device").symlink_to("/dev/zero")
    with add(root / "endless.tif", "MiB, more than 1024 MiB").open("wb") as handle:
        handle.truncate((1 << 30) + 1)  # sparse: takes no room on the disk
    add(root / "line\nbreak\x1b[31m.jpg", "empty").touch()
    return expected


@pytest.fixture
def corpus(tmp_path: Path) -> tuple[Path, dict[Path, str]]:
    """A folder with every bad and every good file, and what is expected of the bad ones."""
    root = tmp_path / "photos"
    (root / "sub").mkdir(parents=True)
    expected = write_bad_places(root)
    for name, (content, reason) in BAD_FILES.items():
        path = root / "sub" / name
        path.write_bytes(content)
        expected[path] = reason
    for name, content in GOOD_FILES.items():
        (root / name).write_bytes(content)
    return root, expected


def test_bad_inputs_are_refused_and_good_ones_found(
    corpus: tuple[Path, dict[Path, str]], capfd: pytest.CaptureFixture[str]
) -> None:
    root, expected = corpus
    found = find_photos(root)
    assert len(expected) >= 40
    assert {photo.path.name for photo in found.photos} == set(GOOD_FILES)
    refused = dict(found.refused)
    assert set(refused) == set(expected)
    wrong = {path.name: refused[path] for path, reason in expected.items() if not matches(reason, refused[path])}
    assert wrong == {}
    assert found.duplicates == ()
    assert capfd.readouterr().out == ""


def matches(pattern: str, reason: str) -> bool:
    """A reason fits when it says the expected thing, in one short line, and what to do about it."""
    return bool(re.search(pattern, reason)) and "; " in reason and len(reason) <= MAX_REASON and reason.isprintable()


def test_every_found_photo_can_be_read_later(corpus: tuple[Path, dict[Path, str]]) -> None:
    root, expected = corpus
    for photo in find_photos(root).photos:
        assert tuple(read_photo(photo.path).shape) == (1, 3, photo.height, photo.width)
    for path in expected:
        with pytest.raises(PhotoError) as caught:
            read_photo(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["bomb.png", "bomb_just_above.png", "bomb_huge.png", "bomb.bmp", "huge_tiles.tif"])
def test_bombs_are_refused_before_memory_is_spent(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(image: Image.Image) -> None:
        raise AssertionError(f"{image.size} was decoded")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", never)
    monkeypatch.setattr("PIL.TiffImagePlugin.TiffImageFile.load", never)
    with pytest.raises(Refusal):
        decode(BytesIO(BAD_FILES[name][0]))


def test_the_size_limit_holds_where_pillow_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # as other libraries in the same process do
    with pytest.raises(Refusal, match="50000x50000 pixels, more than 80 megapixels"):
        decode(BytesIO(png(50_000, 50_000)))


def test_no_permission_is_refused_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("good.png", "locked.png"):
        (tmp_path / name).write_bytes(GOOD_FILES[name] if name in GOOD_FILES else encoded("PNG"))
    (tmp_path / "locked.png").chmod(0)
    if os.access(tmp_path / "locked.png", os.R_OK):  # the superuser may read anything: stage what others meet
        real_open: Callable[..., object] = builtins.open

        def guarded(file: object, *args: object, **options: object) -> object:
            if isinstance(file, Path) and file.name == "locked.png":
                raise PermissionError(13, "Permission denied", os.fspath(file))
            return real_open(file, *args, **options)

        monkeypatch.setattr(builtins, "open", guarded)
    found = find_photos(tmp_path)
    assert [photo.path.name for photo in found.photos] == ["good.png"]
    assert found.refused == ((tmp_path / "locked.png", "no permission to read it; change its permissions"),)


def test_a_failing_disk_is_refused_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "good.png").write_bytes(GOOD_FILES["good.png"])

    def broken(file: object, *args: object, **options: object) -> object:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(builtins, "open", broken)
    with pytest.raises(PhotoError, match="cannot be read: Input/output error; check the disk"):
        read_photo(tmp_path / "good.png")


def test_running_out_of_memory_is_refused_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(image: Image.Image) -> None:
        raise MemoryError

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", exhausted)
    with pytest.raises(Refusal, match="not enough memory for 64x48 pixels; make it smaller"):
        decode(BytesIO(GOOD_FILES["good.png"]))


def test_a_file_that_vanishes_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("good.jpg", "good.png"):
        (tmp_path / name).write_bytes(GOOD_FILES[name])
    found = find_photos(tmp_path, on_photo=lambda done, total: (tmp_path / "good.png").unlink(missing_ok=True))
    assert [photo.path.name for photo in found.photos] == ["good.jpg"]
    assert found.refused == ((tmp_path / "good.png", "is gone; copy it again"),)


def test_names_that_are_not_utf8_are_handled_and_printable(tmp_path: Path) -> None:
    good, bad = (Path(os.fsdecode(os.fsencode(tmp_path) + name)) for name in (b"/caf\xe9.jpg", b"/\xff\xfe.png"))
    try:
        good.write_bytes(GOOD_FILES["good.jpg"])
        bad.write_bytes(b"")
    except OSError as error:
        pytest.skip(f"this file system has no such names: {error}")
    found = find_photos(tmp_path)
    assert [photo.path for photo in found.photos] == [good]
    assert [path for path, _ in found.refused] == [bad]
    assert printable(bad).endswith(r"/\xff\xfe.png")
    with pytest.raises(PhotoError) as caught:
        read_photo(bad)
    str(caught.value).encode("utf-8")  # can be printed anywhere
    assert tuple(read_photo(good).shape) == (1, 3, 48, 64)


@pytest.mark.skipif(sys.platform == "win32", reason="no Unix sockets as files")
def test_a_socket_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # socket paths must be short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("s.jpg")
        with pytest.raises(PhotoError, match="is a pipe, socket or device"):
            read_photo(Path("s.jpg"))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF", "BMP", "MPO"])
def test_damaged_bytes_never_crash_the_decoder(kind: str) -> None:
    """Whatever a few flipped or missing bytes do, the outcome is a picture or a reason."""
    exif = Image.Exif()
    exif[0x0112] = 6
    options: dict[str, object] = {} if kind == "BMP" else {"exif": exif}
    if kind in ("MPO", "TIFF"):
        options |= {"save_all": True, "append_images": [picture(1)]}
    original = encoded(kind, **options)
    dice = random.Random(kind)
    decoded, reasons = 0, []
    for _ in range(150):
        data = bytearray(original[: dice.randrange(len(original))] if dice.random() < 0.2 else original)
        for _ in range(dice.choice([1, 2, 5, 20])):
            if data:
                data[dice.randrange(min(len(data), dice.choice([300, len(data)])))] = dice.choice([0, 127, 255])
        try:
            image, _ = decode(BytesIO(bytes(data)))
            decoded += 1
            assert image.mode == "RGB"
        except Refusal as refusal:
            reasons.append(str(refusal))
    assert decoded > 0
    assert len(reasons) > 0
    assert all(matches("", reason) for reason in reasons)
