"""Clean windows from the photos themselves: brought down they are sharper and cleaner, and of the same content."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapt.dataset import colored_where
from adapt.gathered import Gathered, load_small
from adapt.judge import restore_all
from adapt.seeds import generator_of
from adapt.workspace import read_tensors, write_tensors
from pseudo_targets.bank import color_of
from restorers.degradations import luma

CLEAN = 3.3 / 255
"""Root mean square of what degradation removal changes in the calm places of a window that is taken as clean, at most:
of clean faces brought down and restored nine in ten keep it, of those of a noisy camera one in three."""
STRIDE = 4
"""Windows count as different from a quarter of their side on."""


def windows_of_photos(
    gathered: Gathered, root: Path, held_out: bool, restorer: nn.Module, count: int, size: int, seed: int, path: Path
) -> tuple[Tensor, tuple[int, ...]]:
    """At most `count` restored windows `[M, 3, size, size]` of photos that were brought down, and their photos' sides.

    Fewer where the photos are small. They are kept in `path` and read back. The restorer takes away what bringing down
    leaves of the defects.

    Args:
        held_out: of the photos that only judge, or of those that teach.
    """
    small = load_small(root, gathered, held_out)
    places = _places(small, count, size, seed)
    if not places:
        return torch.empty(0, 3, size, size), ()
    if not path.is_file():
        windows = torch.cat([small[photo][..., top : top + size, left : left + size] for photo, top, left in places])
        write_tensors(path, {"windows": restore_all(restorer, windows).half()})
    sides = gathered.small_held if held_out else gathered.small
    return read_tensors(path)[0]["windows"].float(), tuple(sides[photo] for photo, _, _ in places)


@torch.no_grad()
def looks_clean(windows: Tensor, removal: nn.Module) -> Tensor:
    """Which windows `[N, 3, S, S]` degradation removal leaves alone where they are calm, `[N]`.

    Noise changes with brightness, so the calm places of the dark, the middle and the bright third must all be clean.
    Texture is taken for noise; of faces enough is left.
    """
    if not len(windows):
        return torch.ones(0, dtype=torch.bool)
    change = torch.cat([(removal(part) - part).square().mean(1, keepdim=True) for part in windows.split(16)])
    change, order = F.avg_pool2d(change, 8).flatten(1), F.avg_pool2d(luma(windows), 8).flatten(1).argsort(1)
    calm = [change.gather(1, third).quantile(0.3, 1) for third in order.tensor_split(3, 1)]
    return torch.stack(calm).amax(0).sqrt() <= CLEAN


def _places(small: Sequence[Tensor], count: int, size: int, seed: int) -> list[tuple[int, int, int]]:
    """Photo, top and left of windows, the photos in turn, each as often as it has different windows."""
    generator, step = generator_of("bank of photos", seed), size // STRIDE
    room = [((image.shape[-2] - size) // step + 1) * ((image.shape[-1] - size) // step + 1) for image in small]
    places: list[tuple[int, int, int]] = []
    turn = 0
    while len(places) < count and any(turn < most for most in room):
        for photo, (image, most) in enumerate(zip(small, room, strict=True)):
            if turn < most and len(places) < count:
                top = int(torch.randint(image.shape[-2] - size + 1, (1,), generator=generator))
                left = int(torch.randint(image.shape[-1] - size + 1, (1,), generator=generator))
                places.append((photo, top, left))
        turn += 1
    return places


def colored_in_share(share: float, images: Tensor) -> Tensor:
    """`images` `[N, 3, H, W]` with colour in this share of them: the most colourful keep theirs."""
    rank = color_of(images).argsort(descending=True).argsort()
    return colored_where(rank < round(share * len(images)), images)
