"""The compact restorer: a bias-free residual U-Net, milliseconds a face on a CPU.

The layout (module names, 2x2 strided down, 2x2 transposed up, constant noise map as a fourth input channel) is the one
of DRUNet (Zhang et al. 2021, "Plug-and-Play Image Restoration with Deep Denoiser Prior") as spandrel reads it, so a
fitted restorer opens in every program that loads models through spandrel.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

NOISE_MAP = 15 / 255  # the constant spandrel appends to the image; here it serves as the network's only bias
MULTIPLE_OF = 8
MINIMUM = 64
DECODER = ("m_up3", "m_up2", "m_up1", "m_tail")
WIDTHS = (4, 32, 48, 96)
BLOCKS = (0, 0, 1, 2, 1, 1, 0)
LEVELS = ("m_down1", "m_down2", "m_down3", "m_body", "m_up3", "m_up2", "m_up1")


class ResidualBlock(nn.Module):
    """`x + conv(relu(conv(x)))` without biases; a block that is left out holds frozen zeros and returns `x`."""

    def __init__(self, channels: int, present: bool = True) -> None:
        super().__init__()
        self.present = present
        self.res = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        )
        if not present:
            for parameter in self.parameters():
                nn.init.zeros_(parameter).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.res(x) if self.present else x


class Compact(nn.Module):
    """Image `[B, 3, H, W]`, RGB, `[0, 1]` -> restored image of the same shape (not clamped).

    Full resolution is where convolutions cost most and add least, so by default it has 4 channels and no blocks.
    The layout knows one number of blocks for all levels; a level with fewer is filled up with blocks of zeros, which
    cost space in the file (little) but no time.

    Args:
        widths: channels at full, half, quarter and eighth resolution.
        blocks: residual blocks of down1, down2, down3, body, up3, up2, up1; spandrel recognises the layout when the
            largest is at least 2.

    `H` and `W` must be multiples of 8; the runtime pads.
    """

    def __init__(self, widths: Sequence[int] = WIDTHS, blocks: Sequence[int] = BLOCKS) -> None:
        super().__init__()
        w0, w1, w2, w3 = widths
        depth = max(blocks)
        down1, down2, down3, body, up3, up2, up1 = (
            [ResidualBlock(channels, index < count) for index in range(depth)]
            for channels, count in zip((w0, w1, w2, w3, w2, w1, w0), blocks, strict=True)
        )
        self.m_head = nn.Conv2d(4, w0, 3, padding=1, bias=False)
        self.m_down1 = nn.Sequential(*down1, nn.Conv2d(w0, w1, 2, stride=2, bias=False))
        self.m_down2 = nn.Sequential(*down2, nn.Conv2d(w1, w2, 2, stride=2, bias=False))
        self.m_down3 = nn.Sequential(*down3, nn.Conv2d(w2, w3, 2, stride=2, bias=False))
        self.m_body = nn.Sequential(*body)
        self.m_up3 = nn.Sequential(nn.ConvTranspose2d(w3, w2, 2, stride=2, bias=False), *up3)
        self.m_up2 = nn.Sequential(nn.ConvTranspose2d(w2, w1, 2, stride=2, bias=False), *up2)
        self.m_up1 = nn.Sequential(nn.ConvTranspose2d(w1, w0, 2, stride=2, bias=False), *up1)
        self.m_tail = nn.Conv2d(w0, 3, 3, padding=1, bias=False)

    def forward(self, image: Tensor) -> Tensor:
        x1 = self.m_head(torch.cat([image, torch.full_like(image[:, :1], NOISE_MAP)], dim=1))  # [B, w0, H, W]
        x2 = self.m_down1(x1)  # [B, w1, H/2, W/2]
        x3 = self.m_down2(x2)  # [B, w2, H/4, W/4]
        x4 = self.m_down3(x3)  # [B, w3, H/8, W/8]
        x = self.m_up3(self.m_body(x4) + x4)
        x = self.m_up2(x + x3)
        x = self.m_up1(x + x2)
        return self.m_tail(x + x1)


def compact_from_state(state: dict[str, Tensor]) -> Compact:
    """Builds the network whose widths and blocks the tensors of `state` imply and loads them.

    Raises:
        ValueError: `state` is not of this layout.
    """
    ups = [f"m_up{level}.0.weight" for level in (1, 2, 3)]
    for name in ("m_head.weight", "m_down1.0.res.0.weight", *ups, "m_tail.weight"):
        if name not in state or state[name].ndim != 4:
            raise ValueError(f"not a compact restorer: tensor {name} is missing or no convolution")
    w0, w1, w2 = (state[name].shape[1] for name in ups)
    module = Compact((w0, w1, w2, state[ups[2]].shape[0]), [_present(state, level) for level in LEVELS])
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"not a compact restorer: {str(error).splitlines()[-1].strip()}") from error
    return module


def _present(state: dict[str, Tensor], level: str) -> int:
    """How many blocks of a level there are, blocks of zeros at its end not counted."""
    ends = [name for name in state if name.startswith(f"{level}.") and name.endswith(".res.2.weight")]
    return max((position + 1 for position, name in enumerate(sorted(ends)) if bool(state[name].any())), default=0)


def load_compact(path: Path) -> Compact:
    """Reads a compact restorer saved as safetensors (any float precision) in float32, in eval mode."""
    state = {name: tensor.float() for name, tensor in load_file(path).items()}
    return compact_from_state(state).eval()
