"""LPIPS (Zhang et al. 2018, version 0.1 on VGG-16), from files in the user's cache; nothing is downloaded here.

Images are float32 `[B, 3, H, W]`, RGB, `[0, 1]`.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapt.weights_table import LPIPS, LPIPS_HEADS, VGG16, file_of, place_of
from pseudo_targets.checkpoints import load_strictly, read_checkpoint, read_layout
from pseudo_targets.downloads import WeightsMissingError

WIDTHS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Channels of VGG-16's convolutions, block by block; between two blocks the sides are halved."""
SMALLEST = 2 ** (len(WIDTHS) - 1)
# The mean and the spread of ImageNet that LPIPS was trained with, for images in [-1, 1].
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


class Vgg16(nn.Module):
    """Image, normalised -> the last activations of each of the five blocks, fine to coarse.

    The convolutions alone, named as torchvision names them; the layers that classify are not needed.
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for block in WIDTHS:
            layers += [nn.MaxPool2d(2)] if layers else []
            for width in block:
                layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU()]
                inputs = width
        self.features = nn.Sequential(*layers)

    def forward(self, image: Tensor) -> list[Tensor]:
        activations = []
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                activations.append(image)
            image = layer(image)
        return [*activations, image]


class Heads(nn.ModuleDict):
    """Squared differences of each block's activations `[B, C, h, w]` -> one number a place; named as published."""

    def __init__(self) -> None:
        # In training a dropout stands before each convolution; without it the names stay as they are.
        parts = (nn.Sequential(nn.Identity(), nn.Conv2d(block[-1], 1, 1, bias=False)) for block in WIDTHS)
        super().__init__({f"lin{index}": nn.ModuleDict({"model": part}) for index, part in enumerate(parts)})

    def forward(self, differences: list[Tensor]) -> Tensor:
        """Mean over places, sum over blocks, `[B]`."""
        maps = [self[f"lin{index}"].get_submodule("model")(part) for index, part in enumerate(differences)]
        return torch.stack([part.float().mean((1, 2, 3)) for part in maps]).sum(0)


class Lpips(nn.Module):
    """The distance of two images as people see it, from 0 up; differentiable in both."""

    shift: Tensor
    scale: Tensor

    def __init__(self, vgg: Vgg16, heads: Heads) -> None:
        super().__init__()
        self.vgg, self.heads = vgg, heads
        self.register_buffer("shift", torch.tensor(SHIFT).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor(SCALE).view(1, 3, 1, 1))

    def forward(self, image: Tensor, reference: Tensor) -> Tensor:
        """`[B]`.

        Raises:
            ValueError: a side is shorter than 16 px.
        """
        height, width = image.shape[-2:]
        if min(height, width) < SMALLEST:
            raise ValueError(f"image of {height} x {width} px, expected sides of {SMALLEST} px or more for LPIPS")
        pairs = zip(self._directions(image), self._directions(reference), strict=True)
        return self.heads([(a - b).square() for a, b in pairs])

    def _directions(self, image: Tensor) -> list[Tensor]:
        """Activations, the vector of each place brought to length 1."""
        activations = self.vgg((image * 2 - 1 - self.shift) / self.scale)
        return [F.normalize(activation.float(), dim=1, eps=1e-10) for activation in activations]


def load_lpips(device: torch.device) -> Lpips:
    """The network, frozen and in eval mode.

    Raises:
        WeightsMissingError: a file is not there; the message says how to get it.
        WeightsError: a file cannot be read, holds code, or holds other tensors than it should; each is named.
    """
    found = {weights.name: path for weights in LPIPS if (path := file_of(weights)) is not None}
    missing = [weights for weights in LPIPS if weights.name not in found]
    if missing:
        raise WeightsMissingError(
            f"{' and '.join(weights.file for weights in missing)}, of LPIPS, not here: run `adapt weights fetch "
            f"lpips-vgg`; offline, bring {' and '.join(weights.url for weights in missing)} and `adapt weights import "
            f"FILE`, or put it into {place_of(VGG16).parent}"
        )
    with torch.device("meta"):  # the files give all values
        vgg, heads = Vgg16(), Heads()
    for part, weights in ((vgg, VGG16), (heads, LPIPS_HEADS)):
        path = found[weights.name]
        load_strictly(part, _used(read_checkpoint(path)), path)
    return Lpips(vgg, heads).to(device).eval().requires_grad_(False)


def find_lpips(device: torch.device) -> Lpips | None:
    """As `load_lpips`, but None where a file is missing.

    Raises:
        WeightsError: a file is damaged or another.
    """
    try:
        return load_lpips(device)
    except WeightsMissingError:
        return None


def check_part(name: str, path: Path, suffix: str | None = None) -> bool:
    """Whether `name` is a row of `LPIPS`; then the file must have the names and shapes of its network.

    Args:
        suffix: what the file is where its name does not say it, as in `read_layout`.

    Raises:
        WeightsError: the file cannot be read or is another; what is missing, left over or misshapen is named.
    """
    parts: dict[str, Callable[[], nn.Module]] = {VGG16.name: Vgg16, LPIPS_HEADS.name: Heads}
    if name not in parts:
        return False
    with torch.device("meta"):
        load_strictly(parts[name](), _used(read_layout(path, suffix)), path)
    return True


def _used(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Without VGG-16's last layers, which classify."""
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("classifier.")}
