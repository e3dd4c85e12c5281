"""Images in memory for training: folders of clean faces, and the pairs of a round."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor

from adapt.errors import AdaptError, printable
from adapt.photos import Photo, find_photos, read_photo
from pseudo_targets.bank import color_of, has_color
from recipes.schema import Finetune
from restorers.degradations import luma, resize

Degrade = Callable[[Tensor, Generator], Tensor]
CPU = torch.device("cpu")


class ImageBank:
    """Equally sized images held in half precision.

    Args:
        images: `[N, 3, S, S]`, RGB, `[0, 1]`.
    """

    def __init__(self, images: Tensor) -> None:
        self.images = images.half()

    def __len__(self) -> int:
        return len(self.images)

    def draw(self, count: int, generator: Generator, flip: bool = True) -> Tensor:
        """`count` random images `[count, 3, S, S]` in float32, half of them mirrored."""
        index = torch.randint(len(self.images), (count,), generator=generator)
        batch = self.images[index].float()
        return torch.where(_half(count, generator, flip), batch.flip(-1), batch)

    def draw_views(self, count: int, side: int, generator: Generator) -> Tensor:
        """`count` random images at `side` pixels: half of the time whole, else a random crop at a random scale.

        Crops let a network see more detail than whole faces have at `side`, and faces that are not aligned.
        """
        batch, full = self.draw(count, generator), self.images.shape[-1]
        if full <= side or bool(torch.rand(1, generator=generator) < 0.5):
            return resize(batch, (side, side), 2).clamp(0, 1)
        scaled = int(torch.randint(side, full + 1, (1,), generator=generator))
        top, left = torch.randint(scaled - side + 1, (2,), generator=generator).tolist()
        return resize(batch, (scaled, scaled), 2)[..., top : top + side, left : left + side].clamp(0, 1)


@dataclass(frozen=True)
class CleanFolder:
    """Square clean photos that are read when they are drawn: FFHQ's 70,000 fit into no memory.

    Attributes:
        photos: the files.
        size: side in pixels at which they are read.
        gray: without their colour, for a camera that sees none.
    """

    photos: tuple[Photo, ...]
    size: int
    gray: bool = False

    def read(self, photos: Sequence[Photo]) -> Tensor:
        """`[N, 3, S, S]` in `[0, 1]`."""
        images = [resize(read_photo(photo.path), (self.size, self.size), 2).clamp(0, 1) for photo in photos]
        return torch.cat([luma(image).expand_as(image) if self.gray else image for image in images])

    def draw(self, count: int, generator: Generator, flip: bool = True) -> Tensor:
        """As `ImageBank.draw`."""
        index = torch.randint(len(self.photos), (count,), generator=generator).tolist()
        batch = self.read([self.photos[number] for number in index])
        return torch.where(_half(count, generator, flip), batch.flip(-1), batch)


def open_clean(folder: Path, size: int, on_photo: Callable[[int, int], None] | None = None) -> CleanFolder:
    """The square photos of a folder tree, to be read at `size` pixels; `on_photo` is called as by `find_photos`.

    Raises:
        AdaptError: the folder holds no square photo; non-square ones are skipped.
    """
    square = square_photos(folder, on_photo)
    if not square:
        raise AdaptError(
            f"{printable(folder)}: 0 square photos, expected aligned clean images; align them first or check the path"
        )
    return CleanFolder(tuple(square), size)


def _half(count: int, generator: Generator, flip: bool) -> Tensor:
    """Which of `count` images to mirror, `[count, 1, 1, 1]`."""
    return (torch.rand(count, generator=generator) < (0.5 if flip else 0.0)).view(-1, 1, 1, 1)


def load_clean(folder: Path, size: int) -> ImageBank:
    """Reads every square photo of a folder tree at `size` pixels; raises as `open_clean`."""
    clean = open_clean(folder, size)
    return ImageBank(torch.cat([clean.read([photo]).half() for photo in clean.photos]))


def square_photos(folder: Path, on_photo: Callable[[int, int], None] | None = None) -> list[Photo]:
    """The photos that `open_clean` finds, in its order."""
    return [photo for photo in find_photos(folder, on_photo).photos if photo.width == photo.height]


def some_gray(images: Tensor, generator: Generator, share: float = 0.08) -> Tensor:
    """Takes the colour from a random share of `[B, 3, H, W]`: gray photos must be restored to gray ones."""
    return colored_where(torch.rand(len(images), generator=generator) >= share, images)


def colored_where(color: Tensor, images: Tensor) -> Tensor:
    """`[N, 3, H, W]` with its colour where `color` `[N]` says so, gray elsewhere."""
    return torch.where(color.view(-1, 1, 1, 1).to(images.device), images, luma(images).expand_as(images))


def colored_like(photos: Tensor, images: Tensor) -> Tensor:
    """`images` `[N, 3, H, W]` with colour in as large a share as among `photos`: the most colourful keep theirs."""
    share = float(has_color(photos).float().mean())
    rank = color_of(images).argsort(descending=True).argsort()
    return colored_where(rank < round(share * len(images)), images)


@dataclass(frozen=True)
class Lessons:
    """What a round teaches with; the images lie on the CPU, as thousands of 512 px fit into no GPU.

    Attributes:
        bank: clean faces.
        reals: clean faces that the adversary holds against what is restored.
        camera: the learned camera, where the network trains, or None when the recipe does without.
        photos: accepted photos `[N, 3, S, S]`.
        means: their pseudo targets.
        draws: their pseudo targets, one candidate.
        confidence: `[N, 1, S, S]`.
    """

    bank: ImageBank
    reals: ImageBank | CleanFolder
    camera: Degrade | None
    photos: Tensor
    means: Tensor
    draws: Tensor
    confidence: Tensor


@dataclass(frozen=True)
class Batch:
    """Inputs and what they should become; `sharp` is what perceptual and adversarial losses compare with."""

    lq: Tensor
    target: Tensor
    sharp: Tensor
    confidence: Tensor


def seen_in_batch(lessons: Lessons, settings: Finetune) -> int:
    """How many images of a micro-batch, its first ones, are clean faces seen through the camera."""
    return round(settings.batch * settings.camera_share) if lessons.camera is not None else 0


def draw_batch(lessons: Lessons, settings: Finetune, generator: Generator, device: torch.device = CPU) -> Batch:
    """Composes one micro-batch on `device`, in the shares of the recipe.

    A clean face is mirrored before the camera sees it, as a camera may be directional; a photo and its target are only
    where the recipe says so.
    """
    seen = seen_in_batch(lessons, settings)
    parts = []
    if seen and lessons.camera is not None:
        clean = lessons.bank.draw(seen, generator, settings.mirror != "none").to(device)
        parts.append(Batch(lessons.camera(clean, generator), clean, clean, torch.ones_like(clean[:, :1])))
    if settings.batch > seen:
        index = torch.randint(len(lessons.photos), (settings.batch - seen,), generator=generator)
        weight = lessons.confidence if settings.confidence else torch.ones_like(lessons.confidence)
        rows = [tensor[index] for tensor in (lessons.photos, lessons.means, lessons.draws, weight)]
        if settings.mirror == "all":
            mirrored = _half(len(index), generator, flip=True)
            rows = [torch.where(mirrored, row.flip(-1), row) for row in rows]
        parts.append(Batch(*(row.to(device) for row in rows)))
    names = ("lq", "target", "sharp", "confidence")
    return Batch(*(torch.cat([getattr(part, name) for part in parts]) for name in names))
