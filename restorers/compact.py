"""The compact restorer: a bias-free residual U-Net, milliseconds a face on a CPU.

The layout (module names, 2x2 strided down, 2x2 transposed up, constant noise map as a fourth input channel) is the one
of DRUNet (Zhang et al. 2021, "Plug-and-Play Image Restoration with Deep Denoiser Prior") as spandrel reads it, so a
fitted restorer opens in every program that loads models through spandrel.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

NOISE_MAP = 15 / 255  # the constant spandrel appends to the image; here it serves as the network's only bias
MULTIPLE_OF = 8
MINIMUM = 64


class ResidualBlock(nn.Module):
    """`x + conv(relu(conv(x)))` without biases."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.res = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.res(x)


class Compact(nn.Module):
    """Image `[B, 3, H, W]`, RGB, `[0, 1]` -> restored image of the same shape (not clamped).

    Args:
        widths: channels at full, half, quarter and eighth resolution.
        blocks: residual blocks a level; spandrel recognises the layout from 2 blocks on.

    `H` and `W` must be multiples of 8; the runtime pads.
    """

    def __init__(self, widths: tuple[int, int, int, int] = (16, 32, 64, 128), blocks: int = 2) -> None:
        super().__init__()
        w0, w1, w2, w3 = widths
        self.m_head = nn.Conv2d(4, w0, 3, padding=1, bias=False)
        self.m_down1 = nn.Sequential(*_residual(w0, blocks), nn.Conv2d(w0, w1, 2, stride=2, bias=False))
        self.m_down2 = nn.Sequential(*_residual(w1, blocks), nn.Conv2d(w1, w2, 2, stride=2, bias=False))
        self.m_down3 = nn.Sequential(*_residual(w2, blocks), nn.Conv2d(w2, w3, 2, stride=2, bias=False))
        self.m_body = nn.Sequential(*_residual(w3, blocks))
        self.m_up3 = nn.Sequential(nn.ConvTranspose2d(w3, w2, 2, stride=2, bias=False), *_residual(w2, blocks))
        self.m_up2 = nn.Sequential(nn.ConvTranspose2d(w2, w1, 2, stride=2, bias=False), *_residual(w1, blocks))
        self.m_up1 = nn.Sequential(nn.ConvTranspose2d(w1, w0, 2, stride=2, bias=False), *_residual(w0, blocks))
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


def _residual(channels: int, blocks: int) -> list[ResidualBlock]:
    return [ResidualBlock(channels) for _ in range(blocks)]


def compact_from_state(state: dict[str, Tensor]) -> Compact:
    """Builds the network whose widths and depth the tensors of `state` imply and loads them.

    Raises:
        ValueError: `state` is not of this layout.
    """
    ups = [f"m_up{level}.0.weight" for level in (1, 2, 3)]
    for name in ("m_head.weight", "m_down1.0.res.0.weight", *ups, "m_tail.weight"):
        if name not in state or state[name].ndim != 4:
            raise ValueError(f"not a compact restorer: tensor {name} is missing or no convolution")
    blocks = sum(name.startswith("m_body.") and name.endswith(".res.0.weight") for name in state)
    w0, w1, w2 = (state[name].shape[1] for name in ups)
    module = Compact((w0, w1, w2, state[ups[2]].shape[0]), blocks)
    try:
        module.load_state_dict(state)
    except RuntimeError as error:
        raise ValueError(f"not a compact restorer: {str(error).splitlines()[-1].strip()}") from error
    return module


def load_compact(path: Path) -> Compact:
    """Reads a compact restorer saved as safetensors (any float precision) in float32, in eval mode."""
    state = {name: tensor.float() for name, tensor in load_file(path).items()}
    return compact_from_state(state).eval()
