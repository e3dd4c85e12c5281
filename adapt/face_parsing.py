"""Which pixels of a restored face crop are face: the others are left as they are around it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapt.facexlib_nets import PARSER, load_net, usable

SIDE = 512
"""Side in px of what the network sees."""
LEFT_OUT = (0, 14, 16, 17, 18)
"""Its classes that stay as they are: background, hat, necklace, neck, clothes."""
RADIUS, SIGMA, BORDER = 50, 11.0, 10
"""Of the blur that softens the region, applied twice, and what is cut off along the edges after it; in px of `SIDE`."""


class FaceParser:
    """The region that facexlib's `FaceRestoreHelper` puts back, from its ParseNet.

    Args:
        net: `[1, 3, 512, 512]` in `[-1, 1]` -> a tuple whose first member is scores of 19 classes `[1, 19, 512, 512]`.
    """

    def __init__(self, net: nn.Module) -> None:
        self._net = net

    @torch.no_grad()
    def __call__(self, crop: Tensor) -> Tensor:
        """`[1, 3, S, S]` in `[0, 1]` -> `[1, 1, S, S]`: 1 on the face and its hair, 0 elsewhere, soft between."""
        seen = F.interpolate(crop.float().cpu(), (SIDE, SIDE), mode="bilinear")
        classes = self._net(2 * seen - 1)[0].argmax(1, keepdim=True)
        region = (~torch.isin(classes, torch.tensor(LEFT_OUT))).float()
        for _ in range(2):
            region = _blurred(region)
        kept = torch.zeros_like(region)
        inside = slice(BORDER, SIDE - BORDER)
        kept[..., inside, inside] = region[..., inside, inside]
        return F.interpolate(kept, crop.shape[-2:], mode="bilinear")


def load_parser() -> FaceParser | None:
    """facexlib's ParseNet, or None where it or its weights are not here.

    Raises:
        AdaptError: they are here and cannot be used.
    """
    return FaceParser(load_net(_parsenet, PARSER)) if usable(PARSER) else None


def _parsenet() -> nn.Module:
    from facexlib.parsing.parsenet import ParseNet

    return ParseNet(in_size=SIDE, out_size=SIDE, parsing_ch=19)


def _blurred(image: Tensor) -> Tensor:
    """`[1, 1, H, W]` under a Gaussian, mirrored at its edges."""
    x = torch.arange(-RADIUS, RADIUS + 1, dtype=torch.float32)
    weights = torch.exp(-(x**2) / (2 * SIGMA**2))
    weights = weights / weights.sum()
    padded = F.pad(image, (RADIUS,) * 4, mode="reflect")
    return F.conv2d(F.conv2d(padded, weights.view(1, 1, 1, -1)), weights.view(1, 1, -1, 1))
