"""BSRNet: residual-in-residual dense blocks (Wang et al. 2018, ESRGAN, figure 4), under its published tensor names."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

RESIDUAL = 0.2
"""What each residual is multiplied by before it is added."""
SLOPE = 0.2
"""Of the leaky rectifier."""


@dataclass(frozen=True)
class RrdbSizes:
    """Sizes under the published configuration's names; the defaults are BSRNet's.

    Attributes:
        in_nc: channels of the input.
        out_nc: channels of the output.
        nf: width of the trunk.
        nb: blocks in the trunk.
        gc: channels that each dense convolution adds.
        sf: how many times larger the output is, 2 or 4.
    """

    in_nc: int = 3
    out_nc: int = 3
    nf: int = 64
    nb: int = 23
    gc: int = 32
    sf: int = 4


class DenseBlock(nn.Module):
    """Five convolutions, each of which sees the input and what all before it added; `[B, nf, H, W]` -> the same."""

    def __init__(self, nf: int, gc: int) -> None:
        super().__init__()
        for number in range(5):
            self.add_module(f"conv{number + 1}", _conv(nf + number * gc, gc if number < 4 else nf))

    def forward(self, x: Tensor) -> Tensor:
        *growing, last = self.children()
        seen = x
        for conv in growing:
            seen = torch.cat([seen, F.leaky_relu(conv(seen), SLOPE)], dim=1)
        return x + RESIDUAL * last(seen)


class DenseBlocks(nn.Module):
    """Three dense blocks and a residual around them; `[B, nf, H, W]` -> the same."""

    def __init__(self, nf: int, gc: int) -> None:
        super().__init__()
        self.RDB1, self.RDB2, self.RDB3 = (DenseBlock(nf, gc) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return x + RESIDUAL * self.RDB3(self.RDB2(self.RDB1(x)))


class RrdbNet(nn.Module):
    """Degraded image `[B, in_nc, H, W]` in `[0, 1]` -> `[B, out_nc, H * sf, W * sf]`, about `[0, 1]`.

    Raises:
        ValueError: `sf` is neither 2 nor 4.
    """

    def __init__(self, sizes: RrdbSizes) -> None:
        super().__init__()
        if sizes.sf not in (2, 4):
            raise ValueError(f"got sf {sizes.sf}, expected 2 or 4")
        width = sizes.nf
        self.conv_first = _conv(sizes.in_nc, width)
        self.RRDB_trunk = nn.Sequential(*(DenseBlocks(width, sizes.gc) for _ in range(sizes.nb)))
        self.trunk_conv = _conv(width, width)
        self.upconv1 = _conv(width, width)
        self.upconv2 = _conv(width, width) if sizes.sf == 4 else None
        self.HRconv = _conv(width, width)
        self.conv_last = _conv(width, sizes.out_nc)

    def forward(self, image: Tensor) -> Tensor:
        features = self.conv_first(image)
        features = features + self.trunk_conv(self.RRDB_trunk(features))
        for conv in (self.upconv1, self.upconv2):
            if conv is not None:
                features = F.leaky_relu(conv(F.interpolate(features, scale_factor=2.0, mode="nearest")), SLOPE)
        return self.conv_last(F.leaky_relu(self.HRconv(features), SLOPE))


def _conv(inputs: int, outputs: int) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, 3, padding=1)
