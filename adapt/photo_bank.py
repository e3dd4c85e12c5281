"""Clean photos of any sizes in memory, and the windows of them that the embedded networks are trained on."""

from __future__ import annotations

import math
import mmap
import multiprocessing
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Generator, Tensor

from adapt.errors import AdaptError, printable
from adapt.photos import find_photos, read_photo
from adapt.seeds import generator_of
from pseudo_targets.places import NOWHERE
from restorers.degradations import resize

CHUNK = 256
"""Windows of a pool that one process draws at a time."""


class Windows(Protocol):
    """What networks are trained on."""

    def draw_placed(self, count: int, side: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """`count` random windows `[count, 3, side, side]` in `[0, 1]`, and their places `[count, 3]`."""

    def draw_windows(self, count: int, side: int, generator: Generator) -> Tensor:
        """Those windows alone."""


class PhotoBank:
    """Clean photos of any sizes in memory, of which networks see windows.

    Args:
        groups: photos `[3, H, W]`, uint8; each group is drawn from equally often, however many photos it has.
        aligned: whether each group holds aligned faces, whose windows know their place.
    """

    def __init__(self, groups: Sequence[Sequence[Tensor]], aligned: Sequence[bool] | None = None) -> None:
        known = [False] * len(groups) if aligned is None else aligned
        kept = [(list(group), faces) for group, faces in zip(groups, known, strict=True) if group]
        self.groups, self.aligned = [group for group, _ in kept], [faces for _, faces in kept]

    def __len__(self) -> int:
        return sum(len(group) for group in self.groups)

    def photos(self) -> list[Tensor]:
        """All photos, group by group."""
        return [photo for group in self.groups for photo in group]

    def draw_windows(self, count: int, side: int, generator: Generator, flip: bool = True) -> Tensor:
        """`count` random windows `[count, 3, side, side]` in `[0, 1]`.

        Half of them at the photos' own pixels, the others of larger squares brought down to `side`, up to the largest
        that the photo holds; half of them mirrored.
        """
        return self.draw_placed(count, side, generator, flip)[0]

    def draw_placed(self, count: int, side: int, generator: Generator, flip: bool = True) -> tuple[Tensor, Tensor]:
        """As `draw_windows`, and the places of these windows `[count, 3]` (`pseudo_targets.places`)."""
        drawn = [self._window(side, generator) for _ in range(count)]
        windows, places = torch.stack([window for window, _ in drawn]), torch.tensor([place for _, place in drawn])
        return mirrored(windows, places, torch.rand(count, generator=generator) < (0.5 if flip else 0.0))

    def _window(self, side: int, generator: Generator) -> tuple[Tensor, tuple[float, float, float]]:
        number = int(torch.randint(len(self.groups), (1,), generator=generator))
        group = self.groups[number]
        photo = group[int(torch.randint(len(group), (1,), generator=generator))]
        window, place = window_of(photo, side, generator)
        return window, place if self.aligned[number] else NOWHERE


class WindowPool:
    """Windows drawn in advance and kept where a network trains: a GPU trains faster than photos are cut.

    Args:
        windows: `[N, 3, S, S]`, uint8.
        places: `[N, 3]`.
    """

    def __init__(self, windows: Tensor, places: Tensor) -> None:
        self.windows, self.places = windows, places

    def draw_windows(self, count: int, side: int, generator: Generator) -> Tensor:
        """As `PhotoBank.draw_windows`, on the pool's device; `side` is that of the pool."""
        return self.draw_placed(count, side, generator)[0]

    def draw_placed(self, count: int, side: int, generator: Generator) -> tuple[Tensor, Tensor]:
        """As `PhotoBank.draw_placed`, on the pool's device; `side` is that of the pool."""
        place, device = generator.device, self.windows.device
        index = torch.randint(len(self.windows), (count,), generator=generator, device=place).to(device)
        flip = (torch.rand(count, generator=generator, device=place) < 0.5).to(device)
        return mirrored(self.windows[index].float() / 255, self.places[index], flip)


def mirrored(windows: Tensor, places: Tensor, flip: Tensor) -> tuple[Tensor, Tensor]:
    """Windows `[B, 3, S, S]` and places `[B, 3]`, mirrored where `flip` `[B]` says so; faces are symmetric."""
    other = torch.stack([places[:, 0], 1 - places[:, 1], places[:, 2]], 1)
    return torch.where(flip.view(-1, 1, 1, 1), windows.flip(-1), windows), torch.where(flip[:, None], other, places)


def window_of(photo: Tensor, side: int, generator: Generator) -> tuple[Tensor, tuple[float, float, float]]:
    """A random window `[3, side, side]` in `[0, 1]` of a uint8 photo `[3, H, W]`; see `PhotoBank.draw_windows`.

    With it come its side and centre as shares of the photo's.
    """
    height, width = photo.shape[-2:]
    native, share = torch.rand(2, generator=generator).tolist()
    largest = min(height, width)
    span = side if native < 0.5 else round(side * (largest / side) ** share)  # sizes are equally likely on a log scale
    top = int(torch.randint(height - span + 1, (1,), generator=generator))
    left = int(torch.randint(width - span + 1, (1,), generator=generator))
    window = photo[None, :, top : top + span, left : left + span].float() / 255
    place = (span / largest, (left + span / 2) / width, (top + span / 2) / height)
    return resize(window, (side, side), 2).clamp(0, 1)[0], place


def draw_pool(bank: PhotoBank, count: int, side: int, seed: int, device: torch.device) -> WindowPool:
    """`count` windows drawn by all cores, the same whatever their number, and brought to `device`."""
    count = -(-count // CHUNK) * CHUNK
    # Anonymous maps: what torch shares by itself lies in a file system that is small in containers.
    windows = torch.frombuffer(mmap.mmap(-1, count * 3 * side * side), dtype=torch.uint8).view(count, 3, side, side)
    places = torch.frombuffer(mmap.mmap(-1, count * 12), dtype=torch.float32).view(count, 3)

    def fill(numbers: Sequence[int]) -> None:
        torch.set_num_threads(1)
        for number in numbers:
            part = slice(number * CHUNK, (number + 1) * CHUNK)
            drawn, places[part] = bank.draw_placed(CHUNK, side, generator_of("pool", seed, number), flip=False)
            windows[part] = (drawn * 255).round().to(torch.uint8)

    workers = os.cpu_count() or 1
    context = multiprocessing.get_context("fork")  # the photos need not be copied to the processes
    shares = [range(count // CHUNK)[worker::workers] for worker in range(workers)]
    processes = [context.Process(target=fill, args=(share,)) for share in shares if share]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    if any(process.exitcode for process in processes):
        raise AdaptError("a process that draws training windows ended early: ask for a smaller --pool, or none")
    return WindowPool(windows.to(device), places.to(device))


def load_photos(folders: Sequence[Path], side: int, most: int | None = None, aligned: Sequence[Path] = ()) -> PhotoBank:
    """Reads every photo of folder trees, each a group, at its own pixels; those smaller than `side` are left out.

    Args:
        most: photos whose shorter side is longer than this are brought down to it, to save memory.
        aligned: further folders, of aligned faces, whose windows know their place.

    Raises:
        AdaptError: a folder holds no photo that is large enough.
    """
    groups = [_photos_of(folder, side, most) for folder in (*folders, *aligned)]
    return PhotoBank(groups, [False] * len(folders) + [True] * len(aligned))


def _photos_of(folder: Path, side: int, most: int | None) -> list[Tensor]:
    photos = []
    for photo in find_photos(folder).photos:
        if min(photo.width, photo.height) < side:
            continue
        image = read_photo(photo.path)
        shrink = min(1.0, (most or math.inf) / min(photo.width, photo.height))
        size = (round(photo.height * shrink), round(photo.width * shrink))
        photos.append((resize(image, size, 2).clamp(0, 1)[0] * 255).round().to(torch.uint8))
    if not photos:
        raise AdaptError(f"{printable(folder)}: no photo of {side} px or more on both sides; give larger clean photos")
    return photos
