"""From the bytes of one photo file to 8-bit sRGB pixels, or a reason why not.

`photos` is the public face; this module holds what depends on file formats: recognising content, checking the
header before decoding, and bringing every pixel layout to RGB. What each layout becomes:

- gray, 1-bit, palette, YCbCr, CMYK, CIELAB: RGB. CMYK without a profile is only approximate, and noted.
- alpha: composited over white, which is what viewers show; the colour under transparent pixels is often garbage.
- 16-bit: scaled by the white of its depth (255 / 65535, rounded). Float: 0 to 1 is black to white, as encoded.
- a readable ICC profile: converted to sRGB (relative colorimetric, black point compensated). A broken one: noted.
- several images in one file: the first page of a TIFF (noted), the main picture of a phone's MPO or HEIC.
  Animations are refused.
"""

from __future__ import annotations

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageCms, UnidentifiedImageError

MIN_SIDE = 32
"""Shortest side in pixels; a face in anything smaller carries nothing to restore."""

MAX_PIXELS = 80_000_000
"""Width x height that is decoded at most: 240 MB as 8-bit RGB, 960 MB as a float32 image."""

MAX_ASPECT = 20.0
"""Longer side over shorter side at most; a wide panorama stays below 10."""

HEAD_BYTES = 64
"""How much of a file `recognise` wants to see."""

_COPY_AGAIN = "copy the file again from its source"
_SAVE_AS = "save it as png or jpg"
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")
_MAGIC = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    (b"BM", "BMP"),
)
_FOREIGN_MAGIC = (
    (b"GIF8", "a GIF"),
    (b"%PDF", "a PDF document"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"8BPS", "a Photoshop document"),
    (b"\xff\x0a", "JPEG XL"),
    (b"\0\0\0\x0cJXL ", "JPEG XL"),
    (b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (b"<!DOCTYPE", "a web page"),
    (b"<html", "a web page"),
    (b"<svg", "an SVG drawing"),
)
# What decoders are known to raise when fed arbitrary bytes; found by mutating files (see tests/faults).
_DECODER_ERRORS = (
    ArithmeticError, AttributeError, EOFError, LookupError, OSError, RuntimeError, SyntaxError, TypeError, ValueError,
    struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip
# EXIF orientation -> what brings the picture upright (EXIF 2.3, tag 0x0112).
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Refusal(Exception):
    """The content cannot be used; the message is the reason and what to do, without the file's name."""


def decode(handle: BinaryIO) -> tuple[Image.Image, tuple[str, ...]]:
    """Decode the photo in `handle` completely.

    Returns:
        An upright 8-bit sRGB image of mode "RGB", and notes for the user (usually none).

    Raises:
        Refusal: the content is no photo, damaged, too small, too large, or of a kind that is not handled.
    """
    handle.seek(0)
    kind = recognise(handle.read(HEAD_BYTES))
    handle.seek(0)
    with _quiet_decoder():
        image = _open(handle, kind)
        _check_header(image)
        try:
            image.load()
            orientation = _orientation(image)
        except _DECODER_ERRORS as error:
            raise Refusal(_damage(error)) from error
        except MemoryError as error:
            raise Refusal(f"not enough memory for {image.width}x{image.height} pixels; make it smaller") from error
        rgb, notes = _to_srgb(image)
    if kind == "TIFF" and getattr(image, "is_animated", False):
        notes += ("has several pages, only the first is used; save the others as files of their own",)
    if orientation in _UPRIGHT:
        rgb = rgb.transpose(_UPRIGHT[orientation])
    return rgb, notes


def recognise(head: bytes) -> str:
    """Name the Pillow format of a file from its first `HEAD_BYTES` bytes, whatever its suffix says.

    Raises:
        Refusal: the content is of another kind; the reason names it as well as it can.
    """
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp":
        return _recognise_iso_media(head[8:12])
    for magic, kind in _MAGIC:
        if head.startswith(magic):
            return kind
    for magic, description in _FOREIGN_MAGIC:
        if head.lower().startswith(magic.lower()):
            raise Refusal(f"content is {description}, not a photo format that is read here; {_SAVE_AS}")
    if not head.strip(b"\0"):
        raise Refusal(f"content is all zeros, as after a copy that broke off; {_COPY_AGAIN}")
    if all(byte in b"\t\n\r\f" or 32 <= byte != 127 for byte in head):
        raise Refusal(f"content is text, not a photo; {_COPY_AGAIN}")
    raise Refusal(f"content is of no known photo format (starts with {head[:4].hex(' ')}); {_COPY_AGAIN}")


def _recognise_iso_media(brand: bytes) -> str:
    if brand not in _HEIF_BRANDS:
        description = "AVIF" if brand in (b"avif", b"avis") else "a video or an unknown kind of media"
        raise Refusal(f"content is {description}, not a photo format that is read here; {_SAVE_AS}")
    try:
        import pillow_heif
    except ImportError as error:
        raise Refusal("content is HEIC, which needs a plug-in; pip install pillow-heif, or save it as jpg") from error
    pillow_heif.register_heif_opener()
    return "HEIF"


@contextmanager
def _quiet_decoder() -> Iterator[None]:
    """Keep Pillow's warnings (odd metadata, sizes that are refused here anyway) off the user's screen."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _open(handle: BinaryIO, kind: str) -> Image.Image:
    try:
        return Image.open(handle, formats=(kind,))
    except Image.DecompressionBombError as error:
        raise Refusal(f"more than {MAX_PIXELS // 10**6} megapixels, the limit; make it smaller") from error
    except UnidentifiedImageError as error:
        if kind == "TIFF":
            raise Refusal(f"damaged, or a TIFF with a pixel layout that is not read here; {_SAVE_AS}") from error
        raise Refusal(f"damaged: the {kind} header cannot be read; {_COPY_AGAIN}") from error
    except _DECODER_ERRORS as error:
        raise Refusal(_damage(error)) from error


def _check_header(image: Image.Image) -> None:
    """Refuse by the size in the header, before memory is spent on pixels."""
    width, height = image.size
    if min(width, height) < MIN_SIDE:
        raise Refusal(f"{width}x{height} pixels, each side must have at least {MIN_SIDE}; use a larger original")
    if width * height > MAX_PIXELS:
        limit = MAX_PIXELS // 10**6
        raise Refusal(f"{width}x{height} pixels, more than {limit} megapixels, the limit; make it smaller")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise Refusal(f"{width}x{height} pixels, longer than {MAX_ASPECT:.0f} times its width; crop it")
    if image.format in ("PNG", "WEBP") and getattr(image, "is_animated", False):
        raise Refusal("animated, a single picture is expected; save one frame as png or jpg")
    if image.format == "TIFF":
        # The decoder allocates whole tiles, which may be declared far larger than the picture.
        tile_width, tile_height = (_tag_number(image, tag) for tag in (322, 323))
        if tile_width * tile_height > MAX_PIXELS:
            raise Refusal(f"damaged: tiles of {tile_width}x{tile_height} pixels; {_COPY_AGAIN}")


def _tag_number(image: Image.Image, tag: int) -> int:
    """First number of a TIFF tag, 0 where it is absent or no number."""
    value = image.tag_v2.get(tag, 0)  # type: ignore[attr-defined]
    first = value[0] if isinstance(value, tuple) and value else value
    return first if isinstance(first, int) else 0


def _damage(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    cut_off = "truncated" in text.lower() or isinstance(error, EOFError)
    return f"{'truncated' if cut_off else 'damaged'}: the decoder stopped with '{text[:80]}'; {_COPY_AGAIN}"


def _orientation(image: Image.Image) -> int:
    """EXIF orientation; 1 (upright) where the metadata is absent or unreadable, as viewers do."""
    try:
        return int(image.getexif().get(0x0112, 1))
    except _DECODER_ERRORS:
        return 1


def _to_srgb(image: Image.Image) -> tuple[Image.Image, tuple[str, ...]]:
    """Bring any pixel layout to "RGB" in sRGB, with notes on what could not be exact."""
    alpha = None
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        colour = _deep_gray(image)
    elif image.has_transparency_data:
        alpha = image.convert("RGBA").getchannel("A")
        colour = image.convert("L" if image.mode in ("L", "LA") else "RGB")  # drops alpha, keeps the colours
    elif image.mode in ("L", "RGB", "CMYK", "LAB"):
        colour = image
    else:
        colour = image.convert("L" if image.mode == "1" else "RGB")
    rgb, notes = _apply_profile(colour, image.info.get("icc_profile"))
    if alpha is not None and alpha.getextrema() != (255, 255):
        rgb = Image.composite(rgb, Image.new("RGB", rgb.size, "white"), alpha)
    return rgb, notes


def _deep_gray(image: Image.Image) -> Image.Image:
    """16-bit or float gray to 8-bit gray, rounded; refuses numbers whose white is unknown."""
    values = np.asarray(image)
    if not np.isfinite(values).all():
        raise Refusal("has NaN or infinite pixels; repair the values and save it again")
    low, high = float(values.min()), float(values.max())
    white = 1.0
    if image.mode != "F":
        depth = _tag_number(image, 258) if image.format == "TIFF" else 16
        white = 4095.0 if depth == 12 else 65535.0
    if low < 0.0 or high > white:
        expected = f"0 to {white:.0f}"
        raise Refusal(f"pixel values run from {low:.4g} to {high:.4g}, expected {expected}; rescale and save it again")
    scaled = np.rint(values * np.float32(255.0 / white)).astype(np.uint8)
    if image.format == "TIFF" and 262 in image.tag_v2 and _tag_number(image, 262) == 0:  # type: ignore[attr-defined]
        scaled = 255 - scaled  # photometric 0, white is zero: Pillow inverts it at 8 bits only
    return Image.fromarray(scaled)


def _apply_profile(colour: Image.Image, profile: bytes | None) -> tuple[Image.Image, tuple[str, ...]]:
    """Convert to sRGB by the embedded profile; an unreadable profile is ignored, as viewers do, and noted."""
    if profile:
        try:
            return _convert_profile(colour, profile), ()
        except (ImageCms.PyCMSError, OSError, ValueError):
            note: tuple[str, ...] = ("its colour profile is unreadable or of another colour model, taken as sRGB",)
    else:
        note = ("CMYK without a colour profile, colours are approximate",) if colour.mode == "CMYK" else ()
    if colour.mode == "LAB":
        return _lab_to_rgb(colour), note
    return colour.convert("RGB"), note


def _convert_profile(colour: Image.Image, profile: bytes) -> Image.Image:
    source = ImageCms.getOpenProfile(BytesIO(profile))
    if colour.mode == "L" and source.profile.xcolor_space.strip() == "RGB":
        colour = colour.convert("RGB")
    transform = ImageCms.buildTransform(
        source,
        ImageCms.createProfile("sRGB"),
        colour.mode,
        "RGB",
        ImageCms.Intent.RELATIVE_COLORIMETRIC,
        ImageCms.Flags.BLACKPOINTCOMPENSATION,
    )
    if colour.mode == "RGB" and _is_identity(transform):
        return colour
    converted = ImageCms.applyTransform(colour, transform)
    return colour.convert("RGB") if converted is None else converted


def _is_identity(transform: ImageCms.ImageCmsTransform) -> bool:
    """Whether a transform moves no colour by more than a rounding step, as from one sRGB profile to another.

    Then the pixels are left alone: the round trip through the profile would only add rounding errors.
    """
    levels = np.linspace(0, 255, 16).round().astype(np.uint8)
    lattice = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(64, 64, 3)
    converted = ImageCms.applyTransform(Image.fromarray(lattice), transform)
    return int(np.abs(np.asarray(converted).astype(np.int16) - lattice).max()) <= 1


def _lab_to_rgb(colour: Image.Image) -> Image.Image:
    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    transform = ImageCms.buildTransform(lab, srgb, "LAB", "RGB")
    converted = ImageCms.applyTransform(colour, transform)
    return colour if converted is None else converted
