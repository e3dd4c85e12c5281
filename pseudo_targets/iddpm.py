"""The pixel UNet of improved DDPM (Nichol and Dhariwal 2021) in the layout of the published FFHQ-512 checkpoint.

Parameter names follow the published file (`input_blocks.4.0.in_layers.2.weight` ...), so its state dict loads as it is.
Beside the noise the network predicts, for each pixel, where the step's variance lies between its two bounds.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

GROUPS = 32
MAX_PERIOD = 10_000.0


@dataclass(frozen=True)
class IddpmShape:
    """Sizes of an improved-DDPM UNet; the defaults are those of the FFHQ-512 prior of DifFace and DT-BFR.

    Attributes:
        image_size: side in pixels that `attention_sides` refer to; the network itself takes other sides too.
        width: channels of the finest level; a multiple of 32.
        channel_mult: channels of each level as a multiple of `width`; one halving of the side between two levels.
        blocks: residual blocks of each level on the way down; one more on the way up.
        attention_sides: sides in pixels of the feature maps that have self-attention, for an input of `image_size`.
        head_channels: channels of one attention head.
        channels: colours of the image.

    Raises:
        ValueError: the two lists of levels differ in length, or a width does not divide into groups or heads.
    """

    image_size: int = 512
    width: int = 32
    channel_mult: tuple[int, ...] = (1, 2, 4, 8, 8, 16, 16)
    blocks: tuple[int, ...] = (1, 2, 2, 2, 2, 3, 4)
    attention_sides: tuple[int, ...] = (32, 16, 8)
    head_channels: int = 64
    channels: int = 3

    def __post_init__(self) -> None:
        if len(self.channel_mult) != len(self.blocks):
            raise ValueError(
                f"got {len(self.channel_mult)} channel multiples and {len(self.blocks)} block counts, "
                "expected one of each for every level"
            )
        if self.width % GROUPS:
            raise ValueError(f"width: got {self.width}, expected a multiple of {GROUPS}")
        attended = [c for level, c in enumerate(self.widths) if self.attends(level)] + [self.widths[-1]]
        if any(channels % self.head_channels for channels in attended):
            raise ValueError(f"head_channels: {self.head_channels} does not divide the attended widths {attended}")

    @property
    def widths(self) -> tuple[int, ...]:
        """Channels of each level, finest first."""
        return tuple(self.width * factor for factor in self.channel_mult)

    @property
    def factor(self) -> int:
        """Sides of an input must be a multiple of this."""
        return 1 << (len(self.blocks) - 1)

    def attends(self, level: int) -> bool:
        """Whether the blocks of `level` (0 is the finest) are followed by self-attention."""
        return self.image_size >> level in self.attention_sides


class IddpmUNet(nn.Module):
    """`x_t` `[B, 3, H, W]` and timestep `[B]` -> `[B, 6, H, W]`: noise, then the variance's place in `[-1, 1]`.

    Args:
        shape: sizes; see `IddpmShape`.
    """

    def __init__(self, shape: IddpmShape) -> None:
        super().__init__()
        self.shape = shape
        embedding = 4 * shape.width
        self.time_embed = nn.Sequential(nn.Linear(shape.width, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.input_blocks, skips = _encoder(shape, embedding)
        deepest = shape.widths[-1]
        self.middle_block = Stage(
            ResidualBlock(deepest, deepest, embedding),
            SelfAttention(deepest, shape.head_channels),
            ResidualBlock(deepest, deepest, embedding),
        )
        self.output_blocks = _decoder(shape, embedding, skips)
        self.out = nn.Sequential(_norm(shape.width), nn.SiLU(), _conv(shape.width, 2 * shape.channels))

    def forward(self, x_t: Tensor, timestep: Tensor) -> Tensor:
        """See the class; `timestep` counts on the scale of the full schedule.

        Raises:
            ValueError: a side is no multiple of `shape.factor`.
        """
        if any(side % self.shape.factor for side in x_t.shape[-2:]):
            raise ValueError(f"got an image of {tuple(x_t.shape[-2:])}, expected multiples of {self.shape.factor}")
        embedding = self.time_embed(timestep_features(timestep.to(x_t.device), self.shape.width).to(x_t.dtype))
        h = x_t
        kept: list[Tensor] = []
        for stage in self.input_blocks:
            h = stage(h, embedding)
            kept.append(h)
        h = self.middle_block(h, embedding)
        for stage in self.output_blocks:
            h = stage(torch.cat([h, kept.pop()], dim=1), embedding)
        result: Tensor = self.out(h)
        return result


class Stage(nn.Sequential):
    """Layers in a row, of which the residual blocks see the embedded timestep."""

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:  # type: ignore[override]
        for layer in self:
            x = layer(x, embedding) if isinstance(layer, ResidualBlock) else layer(x)
        return x


class ResidualBlock(nn.Module):
    """Two convolutions and a skip; the timestep scales and shifts the second normalisation."""

    def __init__(self, channels: int, out_channels: int, embedding: int) -> None:
        super().__init__()
        self.in_layers = nn.Sequential(_norm(channels), nn.SiLU(), _conv(channels, out_channels))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, 2 * out_channels))
        # Identity stands where the published network has its dropout of 0, which numbers the convolution 3.
        self.out_layers = nn.Sequential(
            _norm(out_channels), nn.SiLU(), nn.Identity(), _conv(out_channels, out_channels)
        )
        self.skip_connection = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """`[B, C, H, W]` and `[B, E]` -> `[B, C', H, W]`."""
        scale, shift = self.emb_layers(embedding)[..., None, None].chunk(2, dim=1)  # [B, C', 1, 1]
        norm, *rest = self.out_layers
        h = norm(self.in_layers(x)) * (1 + scale) + shift
        for layer in rest:
            h = layer(h)
        result: Tensor = self.skip_connection(x) + h
        return result


class SelfAttention(nn.Module):
    """Attention of every position to every other, added to its input; q, k and v of a head lie side by side."""

    def __init__(self, channels: int, head_channels: int) -> None:
        super().__init__()
        self.head_channels = head_channels
        self.norm = _norm(channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> the same shape."""
        flat = x.flatten(2)  # [B, C, HW]
        heads = self.qkv(self.norm(flat)).unflatten(1, (-1, 3 * self.head_channels))  # [B, heads, 3 c, HW]
        q, k, v = heads.transpose(2, 3).chunk(3, dim=-1)  # [B, heads, HW, c]
        attended = F.scaled_dot_product_attention(q, k, v).transpose(2, 3).flatten(1, 2)  # [B, C, HW]
        result: Tensor = (flat + self.proj_out(attended)).view_as(x)
        return result


class Downsample(nn.Module):
    """Halves the sides with a strided convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = _conv(channels, channels, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C, H / 2, W / 2]`."""
        result: Tensor = self.op(x)
        return result


class Upsample(nn.Module):
    """Doubles the sides by repetition, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = _conv(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C, 2 H, 2 W]`."""
        result: Tensor = self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
        return result


def timestep_features(timestep: Tensor, width: int) -> Tensor:
    """Cosines and sines of `timestep` `[B]` at `width / 2` frequencies from 1 down to 1 / 10000, float32 `[B, width]`.

    The position code of Vaswani et al. 2017 (section 3.5), cosines first.
    """
    half = width // 2
    frequencies = torch.exp(-math.log(MAX_PERIOD) / half * torch.arange(half, device=timestep.device))
    angles = timestep.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def _encoder(shape: IddpmShape, embedding: int) -> tuple[nn.ModuleList, list[int]]:
    """The stages on the way down and the channels that each hands over to the way up."""
    here = shape.width
    stages, skips = [Stage(_conv(shape.channels, here))], [here]
    for level, (width, count) in enumerate(zip(shape.widths, shape.blocks, strict=True)):
        if level > 0:
            stages.append(Stage(Downsample(here)))
            skips.append(here)
        for _ in range(count):
            stages.append(_stage(shape, level, here, embedding))
            here = width
            skips.append(here)
    return nn.ModuleList(stages), skips


def _decoder(shape: IddpmShape, embedding: int, skips: list[int]) -> nn.ModuleList:
    """The stages on the way up; each takes the last output of the way down that is not used yet."""
    here, left = shape.widths[-1], list(skips)
    stages: list[Stage] = []
    for level in reversed(range(len(shape.blocks))):
        for number in range(shape.blocks[level] + 1):
            stage = _stage(shape, level, here + left.pop(), embedding)
            here = shape.widths[level]
            if level > 0 and number == shape.blocks[level]:
                stage.append(Upsample(here))
            stages.append(stage)
    return nn.ModuleList(stages)


def _stage(shape: IddpmShape, level: int, channels: int, embedding: int) -> Stage:
    width = shape.widths[level]
    stage = Stage(ResidualBlock(channels, width, embedding))
    if shape.attends(level):
        stage.append(SelfAttention(width, shape.head_channels))
    return stage


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(GROUPS, channels)


def _conv(channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(channels, out_channels, 3, stride=stride, padding=1)
