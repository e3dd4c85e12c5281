"""Faces in photos: find them, cut them out aligned to the FFHQ 5-point template, put restored ones back.

Pixel centres are at integer coordinates everywhere. A crop of any size shows the same square of the photo, so a face's
matrix is given once, for a crop of 512 px, and the other sizes follow from it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from adapt.errors import AdaptError, UsageError

log = logging.getLogger(__name__)

TEMPLATE_SIDE = 512
"""Side in px of the crop that `FFHQ_TEMPLATE` and `Face.matrix` refer to."""
FFHQ_TEMPLATE = torch.tensor(
    [
        [192.98138, 239.94708],
        [318.90277, 240.1936],
        [256.63416, 314.01935],
        [201.26117, 371.41043],
        [313.08905, 371.15118],
    ]
)
"""`[5,2]` x and y in px of a 512 px crop: eyes, nose, mouth corners; left in the image comes first."""
MINIMUM_SIDE = 32.0
"""Faces whose crop covers fewer photo px than this on a side are not reported."""

Matrix = tuple[tuple[float, float, float], tuple[float, float, float]]


@dataclass(frozen=True)
class Face:
    """One face of a photo.

    Attributes:
        index: its number in the photo; 0 is the largest.
        matrix: 2x3 similarity, photo px -> px of the aligned 512 px crop.
        score: the finder's confidence, 0 to 1; comparable within one finder only.
    """

    index: int
    matrix: Matrix
    score: float


class FaceFinder(Protocol):
    """Finds the faces of one photo."""

    @property
    def name(self) -> str:
        """Short name for manifests and reports."""

    def find(self, image: Tensor) -> list[Face]:
        """Faces in `[1,3,H,W]` RGB [0,1], largest first; an empty list when there are none."""


def load_finder(prefer: str = "auto", as_diffbir: bool = False) -> FaceFinder:
    """The finder to use: `"facexlib"`, `"bundled"`, or `"auto"`; never downloads anything.

    `"auto"` takes facexlib when it is installed and its detection weights are on disk, and else the bundled finder.
    `as_diffbir`: facexlib looks for the faces that DiffBIR restores, smaller and less sure ones too.
    Raises `UsageError` for another name and `AdaptError` when the finder asked for cannot be loaded.
    """
    if prefer not in ("auto", "facexlib", "bundled"):
        raise UsageError(f"face finder {prefer!r}: expected auto, facexlib or bundled")
    from adapt.face_fallback import BundledFinder
    from adapt.face_retina import FacexlibFinder
    from adapt.facexlib_nets import DETECTOR, usable

    if prefer == "bundled" or (prefer == "auto" and not usable(DETECTOR)):
        return BundledFinder.load()
    try:
        return FacexlibFinder.load(as_diffbir)
    except AdaptError as error:
        if prefer == "facexlib":
            raise
        log.warning("%s; using the bundled face finder", error)
        return BundledFinder.load()


SECOND_LOOK = {"bundled": 0.84}
"""Finders whose faces are looked at twice, and the geometric mean of both scores from which on a face is sure."""


def sure_faces(image: Tensor, faces: Sequence[Face], finder: FaceFinder) -> list[Face]:
    """Those of `faces` that `finder` finds again, in the same place and of the same size, in their own aligned crops.

    The bundled finder takes an ear, letters or a butterfly's wing for a face now and then; in a crop of their own most
    of them are none. It also loses every sixth face of a bad scan, so what can do without certainty should.
    """
    least = SECOND_LOOK.get(finder.name)
    if least is None:
        return list(faces)
    return [face for face in faces if math.sqrt(face.score * _found_again(image, face, finder)) >= least]


def _found_again(image: Tensor, face: Face, finder: FaceFinder, side: int = 256) -> float:
    """The best score of a face that fills an aligned crop as the template has it; 0 when there is none."""
    best = 0.0
    for other in finder.find(align(image, face, side)):
        (a, b, x0), (c, d, y0) = invert(other.matrix)
        middle = TEMPLATE_SIDE / 2 - 0.5
        x, y = (a + b) * middle + x0 - side / 2, (c + d) * middle + y0 - side / 2
        if math.hypot(x, y) < 0.15 * side and 0.75 < native_size(other) / side < 1.33:
            best = max(best, other.score)
    return best


def check_photo(image: Tensor) -> None:
    """Raise `ValueError` unless `image` is one photo, `[1,3,H,W]` with H, W >= 1."""
    if image.dim() != 4 or image.shape[:2] != (1, 3) or 0 in image.shape:
        raise ValueError(f"image has shape {tuple(image.shape)}, expected [1, 3, height, width]")


def number_faces(matrices: list[tuple[Matrix, float]]) -> list[Face]:
    """Faces from (matrix, score) pairs, largest first, without those below `MINIMUM_SIDE`."""
    faces = [Face(0, matrix, score) for matrix, score in matrices]
    large = sorted((face for face in faces if native_size(face) >= MINIMUM_SIDE), key=native_size, reverse=True)
    return [Face(number, face.matrix, face.score) for number, face in enumerate(large)]


def similarity_from_points(points: Tensor) -> Matrix:
    """Least-squares similarity (rotation, scale, shift; no mirror) from 5 photo points `[5,2]` to `FFHQ_TEMPLATE`."""
    source, target = points.double().cpu(), FFHQ_TEMPLATE.double()
    p, q = source - source.mean(0), target - target.mean(0)
    size = float((p**2).sum())
    if not math.isfinite(size) or size < 1e-9:
        raise ValueError("the five points of a face must be finite and must not coincide")
    a = float((p * q).sum()) / size
    b = float((p[:, 0] * q[:, 1] - p[:, 1] * q[:, 0]).sum()) / size
    (px, py), (qx, qy) = source.mean(0).tolist(), target.mean(0).tolist()
    return ((a, -b, qx - a * px + b * py), (b, a, qy - b * px - a * py))


def invert(matrix: Matrix) -> Matrix:
    """The inverse of an invertible 2x3 affine matrix."""
    (a, b, x), (c, d, y) = matrix
    area = a * d - b * c
    return ((d / area, -b / area, (b * y - d * x) / area), (-c / area, a / area, (c * x - a * y) / area))


def native_size(face: Face) -> float:
    """Side of the face's crop in photo px: an aligned crop of this size neither shrinks nor enlarges."""
    (a, b, _), (c, d, _) = face.matrix
    return TEMPLATE_SIDE / math.sqrt(abs(a * d - b * c))


def aligned_face(width: int, height: int) -> Face:
    """The face of a photo that is itself an aligned square crop; `AdaptError` when it is not square."""
    if width != height:
        raise AdaptError(f"photo is {width} x {height} px, aligned faces must be square: crop it, or drop --aligned")
    scale = TEMPLATE_SIDE / width
    shift = (scale - 1) / 2
    return Face(0, ((scale, 0.0, shift), (0.0, scale, shift)), 1.0)


def _pixels(origin: tuple[int, int], shape: tuple[int, int], dense: int = 1) -> tuple[Tensor, Tensor]:
    """x and y, `[h*dense,w*dense]` float64, of `dense` x `dense` samples in each px of a box at `origin` (x, y)."""
    ys, xs = ((torch.arange(n * dense, dtype=torch.float64) + 0.5) / dense - 0.5 for n in shape)
    y, x = torch.meshgrid(ys + origin[1], xs + origin[0], indexing="ij")
    return x, y


def _sample(image: Tensor, matrix: Matrix, origin: tuple[int, int], shape: tuple[int, int], dense: int) -> Tensor:
    """`image` seen through `matrix`, output px -> image px, for the output px from `origin` (x, y) on -> `[1,3,h,w]`.

    `dense` samples a side are averaged within each output px, which is the prefilter that shrinking needs.
    """
    (a, b, x0), (c, d, y0) = matrix
    height, width = image.shape[-2:]
    u, v = _pixels(origin, shape, dense)
    x, y = a * u + b * v + x0, c * u + d * v + y0
    grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], -1)[None].to(image)
    # Between its own pixels a photo is smooth: cubic keeps detail. Averaged samples need no more than linear.
    mode = "bicubic" if dense == 1 else "bilinear"
    sampled = F.grid_sample(image, grid, mode=mode, padding_mode="reflection", align_corners=False)
    return F.avg_pool2d(sampled, dense).clamp(0, 1)


def _density(source_px_per_output_px: float) -> int:
    return max(1, math.ceil(source_px_per_output_px - 0.25))


def _resized(matrix: Matrix, size: int) -> Matrix:
    """The matrix to a 512 px crop -> the matrix to a `size` px crop of the same square."""
    scale = size / TEMPLATE_SIDE
    shift = (scale - 1) / 2
    (a, b, x), (c, d, y) = matrix
    return ((a * scale, b * scale, x * scale + shift), (c * scale, d * scale, y * scale + shift))


def align(image: Tensor, face: Face, size: int) -> Tensor:
    """The face's aligned crop, `[1,3,size,size]`, from the photo `[1,3,H,W]`.

    Filtered against aliasing when it shrinks. Where the crop reaches over the photo's edge the photo is mirrored.
    """
    check_photo(image)
    to_photo = invert(_resized(face.matrix, size))
    return _sample(image, to_photo, (0, 0), (size, size), _density(native_size(face) / size))


def paste_back(
    image: Tensor, restored_crop: Tensor, face: Face, feather: float = 0.1, region: Tensor | None = None
) -> Tensor:
    """The photo `[1,3,H,W]` with the restored aligned crop `[1,3,S,S]` in place of the face; the photo is not changed.

    The crop fades in over `feather` (share of its side) along its edges; pixels outside it keep their exact values.
    `region`, `[1,1,S,S]` in `[0, 1]`, says how much of each crop pixel is wanted.
    """
    check_photo(image)
    check_photo(restored_crop)
    size = restored_crop.shape[-1]
    if restored_crop.shape[-2] != size:
        raise ValueError(f"restored crop has shape {tuple(restored_crop.shape)}, expected a square")
    to_crop = _resized(face.matrix, size)
    left, top, right, bottom = _bounds(invert(to_crop), size, image.shape[-1], image.shape[-2])
    if left >= right or top >= bottom:
        return image.clone()
    shape = (bottom - top, right - left)
    crop = restored_crop.to(image)
    pasted = _sample(crop, to_crop, (left, top), shape, _density(size / native_size(face)))
    weight = _feathered(to_crop, (left, top), shape, size, feather).to(image)
    if region is not None:
        weight = torch.minimum(weight, _sample(region.to(image), to_crop, (left, top), shape, 1)[0, 0])
    result = image.clone()
    before = result[..., top:bottom, left:right]
    result[..., top:bottom, left:right] = torch.where(weight > 0, before + weight * (pasted - before), before)
    return result


def _bounds(to_photo: Matrix, size: int, width: int, height: int) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of the photo px that a crop's square touches, cut to the photo."""
    ends = (-0.5, size - 0.5)
    (a, b, x0), (c, d, y0) = to_photo
    xs = [a * u + b * v + x0 for u in ends for v in ends]
    ys = [c * u + d * v + y0 for u in ends for v in ends]
    left, top = max(0, math.floor(min(xs))), max(0, math.floor(min(ys)))
    return left, top, min(width, math.ceil(max(xs)) + 1), min(height, math.ceil(max(ys)) + 1)


def _feathered(to_crop: Matrix, origin: tuple[int, int], shape: tuple[int, int], size: int, feather: float) -> Tensor:
    """Weight of the crop at each photo px of a box, `[h,w]`: 0 outside the crop, 1 well inside, smooth between."""
    (a, b, x0), (c, d, y0) = to_crop
    x, y = _pixels(origin, shape)
    u, v = (a * x + b * y + x0 + 0.5) / size, (c * x + d * y + y0 + 0.5) / size
    depth = torch.stack([u, 1 - u, v, 1 - v]).amin(0)
    t = (depth / max(feather, 1e-6)).clamp(0, 1)
    return t * t * (3 - 2 * t)
