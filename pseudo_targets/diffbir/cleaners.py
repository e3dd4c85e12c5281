"""DiffBIR's stage 1: the published networks that clean a photo before the prior refines it.

| prior | faces | whole photos | noise alone |
|---|---|---|---|
| `diffbir-v1`, `diffbir-v1-general` | `swinir-face` | `swinir` | `swinir` |
| `diffbir-v2` | `swinir-face` | `bsrnet` | `scunet` |
| `diffbir-v2.1` | `swinir-face` | `swinir-realesrgan` | `swinir-realesrgan` |

The names are those of `adapt weights`; the files may also lie beside the prior's.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pseudo_targets import downloads
from pseudo_targets.checkpoints import load_strictly, read_checkpoint
from pseudo_targets.diffbir import files
from pseudo_targets.diffbir.cleaner_nets import ReplicatePadded, SCUNetSizes, SwinIRSizes, build_scunet, build_swinir
from pseudo_targets.diffbir.rrdb import RrdbNet, RrdbSizes
from pseudo_targets.downloads import (
    BSRNET,
    SCUNET_PSNR,
    SWINIR_FACE,
    SWINIR_GENERAL,
    SWINIR_REALESRGAN,
    PublishedWeights,
)
from pseudo_targets.resize import pad_to_multiple
from pseudo_targets.tiling import blended

Content = Literal["faces", "photos", "noise"]
CLEANERS: dict[str, dict[Content, PublishedWeights]] = {
    "diffbir-v1": {"faces": SWINIR_FACE, "photos": SWINIR_GENERAL, "noise": SWINIR_GENERAL},
    "diffbir-v1-general": {"faces": SWINIR_FACE, "photos": SWINIR_GENERAL, "noise": SWINIR_GENERAL},
    "diffbir-v2": {"faces": SWINIR_FACE, "photos": BSRNET, "noise": SCUNET_PSNR},
    "diffbir-v2.1": {"faces": SWINIR_FACE, "photos": SWINIR_REALESRGAN, "noise": SWINIR_REALESRGAN},
}
"""The cleaner of each prior by what it is to clean, as published."""
MULTIPLE = 64
"""Sides that SwinIR (8 pixels to a grid of windows of 8) and SCUNet take."""


class Cleaner(nn.Module):
    """Degraded image -> regression of the clean one, behind one call for every network.

    Args:
        net: `[B, 3, H, W]` in `[0, 1]` -> `[B, 3, H * scale, W * scale]`.
        scale: how many times larger the network's output is.
        multiple: sides that the network takes; the image is continued in black below and on the right.

    Attributes:
        native: whether the network sees the image as it is and its output is resized, as those that enlarge and those
            for noise do, which resizing would change; any other sees the image resized.
        tile: side in pixels, as the network sees them, of tiles that overlap by half; 0 sees images whole.
    """

    tile: int = 0

    def __init__(self, net: nn.Module, scale: int, multiple: int, name: str, licence: str, weights_sha256: str) -> None:
        super().__init__()
        self.net, self.scale, self.multiple, self.native = net, scale, multiple, scale > 1
        self.name, self.licence, self.weights_sha256 = name, licence, weights_sha256

    def forward(self, image: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        """`[B, 3, H, W]` in `[0, 1]` -> `[B, 3, *size]`, about `[0, 1]`, not clamped.

        Args:
            size: height and width of the result; None is the image's own.
        """
        height, width = target = size or (image.shape[-2], image.shape[-1])
        if self.native:
            return _resized(self._seen(image), target)
        image = _resized(image, target)
        if not self.tile or min(target) < self.tile:  # tiles fit the network themselves
            image = pad_to_multiple(image, self.multiple)
        return self._seen(image)[..., :height, :width]

    def _seen(self, image: Tensor) -> Tensor:
        if not self.tile:
            return self.net(image)
        return blended(self.net, image, self.tile, self.tile // 2, up=self.scale)


def load_diffbir_cleaner(name: str, content: Content = "faces", folder: Path | None = None, tile: int = 0) -> Cleaner:
    """Stage 1 of a version of `CLEANERS`, in float32, eval mode and frozen.

    Args:
        content: what it is to clean.
        tile: as in `Cleaner`, a multiple of 64.
        folder: holds the file as published or under the same name as `.safetensors`; None is the folder of the prior's
            files, then that of `adapt weights`.

    Raises:
        WeightsMissingError: the file is not there; the message says how to get it.
        WeightsError: it cannot be read, does not hold exactly the network's tensors (each is named), or spandrel is
            not installed.
    """
    weights = CLEANERS[name][content]
    path = _found(weights, folder)
    build, scale, multiple = NETWORKS[weights]
    tensors = read_checkpoint(path)
    net = load_strictly(build(), tensors, path)
    if weights == SCUNET_PSNR:
        net = ReplicatePadded(net, MULTIPLE)
    cleaner = Cleaner(net, scale, multiple, weights.name, weights.licence, files.sha256_of(path))
    cleaner.native, cleaner.tile = cleaner.native or weights == SCUNET_PSNR, tile
    return cleaner.eval().requires_grad_(False)


def _published_swinir() -> nn.Module:
    return build_swinir(SwinIRSizes())


def _published_scunet() -> nn.Module:
    return build_scunet(SCUNetSizes())


def _published_bsrnet() -> nn.Module:
    with torch.device("meta"):
        return RrdbNet(RrdbSizes())


NETWORKS: dict[PublishedWeights, tuple[Callable[[], nn.Module], int, int]] = {
    SWINIR_FACE: (_published_swinir, 1, MULTIPLE),
    SWINIR_GENERAL: (_published_swinir, 1, MULTIPLE),
    SWINIR_REALESRGAN: (_published_swinir, 1, MULTIPLE),
    BSRNET: (_published_bsrnet, 4, 1),
    SCUNET_PSNR: (_published_scunet, 1, 1),
}
"""What a file holds: network without its weights, scale, multiple of the sides."""


def _found(weights: PublishedWeights, folder: Path | None) -> Path:
    folders = (files.cache_folder(), downloads.cache_folder()) if folder is None else (folder,)
    for place in folders:
        path = downloads.find(place, weights.file)
        if path is not None:
            return path
    raise downloads.missing(weights)


def _resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    if image.shape[-2:] == size:
        return image
    return F.interpolate(image, size, mode="bicubic", antialias=True)
