"""Images in memory for training: folders of clean faces, and the pairs of a round."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Generator, Tensor

from adapt.errors import AdaptError
from adapt.photos import find_photos, read_photo
from restorers.degradations import resize


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
        mirrored = torch.rand(count, generator=generator) < (0.5 if flip else 0.0)
        return torch.where(mirrored.view(-1, 1, 1, 1), batch.flip(-1), batch)


def load_clean(folder: Path, size: int) -> ImageBank:
    """Reads every square photo of a folder tree at `size` pixels.

    Raises:
        AdaptError: the folder holds no square photo; non-square ones are skipped.
    """
    found = find_photos(folder)
    square = [photo for photo in found.photos if photo.width == photo.height]
    if not square:
        raise AdaptError(
            f"{folder}: 0 square photos, expected aligned clean images; align them first or check the path"
        )
    images = [resize(read_photo(photo.path), (size, size), 2).clamp(0, 1).half() for photo in square]
    return ImageBank(torch.cat(images))
