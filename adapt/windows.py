"""Windows of a photo: un-resampled squares, chosen where defects and detail are, faces weighted more.

What a camera does lies at the photo's own pixels, so nothing here resamples. Windows begin at multiples of 16 px, which
is the grid of JPEG's blocks with halved chroma.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from adapt.faces import Face, invert

GRID = 16
INNER = 0.6
"""Share of the side of an aligned crop that the face itself takes; the rest is hair and background."""
FACE_SHARE = 0.5
"""Share of a photo's windows that lie on its faces, where it has any."""
CLIPPED = 0.5
"""Windows of which a larger share is black or white say nothing of the camera."""


@dataclass(frozen=True)
class Window:
    """One un-resampled square of a photo.

    Attributes:
        top, left: its first row and column, in pixels of the photo.
        face: whether it lies on a face.
    """

    top: int
    left: int
    face: bool


def cut(image: Tensor, window: Window, size: int) -> Tensor:
    """The window's pixels `[1, 3, size, size]` of a photo `[1, 3, H, W]`; a smaller photo is mirrored at its edges."""
    part = image[..., window.top : window.top + size, window.left : window.left + size]
    return padded(part, size)


def padded(image: Tensor, size: int) -> Tensor:
    """`[1, 3, H, W]` grown to `size` on both sides, to the right and below, by as many reflections as it takes."""
    while min(image.shape[-2:]) < size:
        height, width = image.shape[-2:]
        down, right = (min(max(size - length, 0), max(length - 1, 1)) for length in (height, width))
        mode = "reflect" if min(height, width) > 1 else "replicate"
        image = F.pad(image, (0, right, 0, down), mode=mode)
    return image


def choose_windows(
    image: Tensor, faces: Sequence[Face], size: int, count: int, only_faces: bool = False
) -> list[Window]:
    """At most `count` windows of a photo `[1, 3, H, W]`, as unlike each other as they can be.

    Half of them lie on faces, where there are any, or all with `only_faces`. Within faces and within the rest they are
    chosen one after the other, each the one that differs most from those before it in brightness, colour, contrast and
    fine detail (farthest-point sampling), because noise, blocks and blur depend on these. No two share more than half.
    """
    places = _places(image, faces, size)
    if not places:
        return []
    features, clipped = _features(image, places, size)
    on_face = torch.tensor([place.face for place in places])
    usable = clipped <= CLIPPED if bool((clipped <= CLIPPED).any()) else torch.ones_like(on_face)
    wanted = count if only_faces else -int(-count * FACE_SHARE // 1)
    chosen = _farthest(features, places, on_face & usable, wanted, size, [])
    if not only_faces:
        chosen = _farthest(features, places, usable & ~on_face, count - len(chosen), size, chosen)
        chosen = _farthest(features, places, usable, count - len(chosen), size, chosen)
    return [places[index] for index in chosen]


def _places(image: Tensor, faces: Sequence[Face], size: int) -> list[Window]:
    """Where windows may lie: a grid of half their side, and the middle of every face."""
    height, width = image.shape[-2:]
    step = max(GRID, size // 2 // GRID * GRID)
    boxes = [face_box(face) for face in faces]
    starts = [(top, left) for top in _starts(height, size, step) for left in _starts(width, size, step)]
    for top, left, bottom, right in boxes:
        middle = (_snapped((top + bottom - size) / 2, height - size), _snapped((left + right - size) / 2, width - size))
        starts.append(middle)
    return [Window(top, left, _on_face(top, left, size, boxes)) for top, left in dict.fromkeys(starts)]


def face_box(face: Face) -> tuple[float, float, float, float]:
    """Top, left, bottom and right of the upright square about the inner part of a face's crop, in photo px."""
    (a, b, x0), (c, d, y0) = invert(face.matrix)
    centre_x, centre_y = a * 255.5 + b * 255.5 + x0, c * 255.5 + d * 255.5 + y0
    half = INNER * 256 * abs(a * d - b * c) ** 0.5
    return centre_y - half, centre_x - half, centre_y + half, centre_x + half


def _on_face(top: int, left: int, size: int, boxes: Sequence[tuple[float, float, float, float]]) -> bool:
    for upper, first, lower, last in boxes:
        height, width = min(top + size, lower) - max(top, upper), min(left + size, last) - max(left, first)
        smaller = min(size * size, (lower - upper) * (last - first))
        if height > 0 and width > 0 and height * width >= smaller / 2:
            return True
    return False


def _starts(length: int, size: int, step: int) -> list[int]:
    last = max(0, (length - size) // GRID * GRID)
    starts = list(range(0, last + 1, step))
    return starts if starts[-1] == last else [*starts, last]


def _snapped(position: float, last: int) -> int:
    return min(max(0, round(position / GRID) * GRID), max(0, last // GRID * GRID))


def _features(image: Tensor, places: Sequence[Window], size: int) -> tuple[Tensor, Tensor]:
    """What windows are told apart by, `[N, 5]` in standard deviations, and the share of clipped pixels, `[N]`."""
    image = padded(image, size)
    luma, colour = image.mean(1, keepdim=True), image[:, ::2] - image[:, 1:2]
    fine = (luma - F.avg_pool2d(luma, 3, 1, 1, count_include_pad=False)).square()
    clipped = ((luma < 0.02) | (luma > 0.98)).float()
    maps = torch.cat([luma, colour, luma.square(), fine, clipped], 1)
    # Windows begin at multiples of the grid, so their means are means of its cells.
    means = F.avg_pool2d(F.avg_pool2d(maps, GRID), size // GRID, 1)[0]
    rows = means[:, [p.top // GRID for p in places], [p.left // GRID for p in places]].T
    contrast = (rows[:, 3] - rows[:, 0].square()).clamp(min=1e-6).sqrt().log()
    features = torch.stack([rows[:, 0], rows[:, 1], rows[:, 2], contrast, (rows[:, 4] + 1e-6).sqrt().log()], 1)
    spread = features.std(0, correction=0).clamp(min=1e-3)
    return (features - features.mean(0)) / spread, rows[:, 5]


def _farthest(
    features: Tensor, places: Sequence[Window], allowed: Tensor, count: int, size: int, chosen: list[int]
) -> list[int]:
    """`chosen` and up to `count` more of the allowed places; the first of all is the one with most fine detail."""
    chosen, free = list(chosen), allowed.clone()
    for index in chosen:
        free &= ~_overlapping(places, index, size)
    for _ in range(max(count, 0)):
        if not bool(free.any()):
            break
        distance = torch.cdist(features, features[chosen]).amin(1) if chosen else features[:, -1]
        index = int(torch.where(free, distance, -torch.inf).argmax())
        chosen.append(index)
        free &= ~_overlapping(places, index, size)
    return chosen


def _overlapping(places: Sequence[Window], index: int, size: int) -> Tensor:
    """Which places share more than half of a window with the one at `index`."""
    tops = torch.tensor([place.top for place in places])
    lefts = torch.tensor([place.left for place in places])
    rows = (size - (tops - tops[index]).abs()).clamp(min=0)
    columns = (size - (lefts - lefts[index]).abs()).clamp(min=0)
    return 2 * rows * columns > size * size
