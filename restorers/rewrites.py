"""Blocks of published networks in forms that the ONNX exporter takes: equal results, other operations.

The exporter must follow every size as a symbol. Blocks that turn a size into a plain number, or that convolve with one
group an image, are exchanged for the modules below; weights are shared. `restorers.export` compares the exported file
with the untouched network.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def exportable(module: nn.Module) -> nn.Module:
    """A copy of `module`, in eval mode, with every block that is in `REWRITES` exchanged; everything else untouched."""
    rewritten = copy.deepcopy(module).eval()
    for parent in list(rewritten.modules()):
        for name, child in list(parent.named_children()):
            kind = type(child)
            wrapper = REWRITES.get(f"{kind.__module__}.{kind.__qualname__}")
            if wrapper is not None:
                setattr(parent, name, wrapper(child).eval())
    return rewritten


class ShiftedWindowBlock(nn.Module):
    """A Swin block (Liu et al. 2021) of SwinIR or FeMaSR without dropout, whose windows are an axis of their own.

    Args:
        block: the published block; its layers are used.
    """

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.norm1, self.norm2, self.mlp = block.norm1, block.norm2, block.mlp
        self.qkv, self.proj = block.attn.qkv, block.attn.proj
        self.side, self.shift, self.heads, self.scale = (
            block.window_size, block.shift_size, block.attn.num_heads, block.attn.scale,
        )  # fmt: skip
        table, index = block.attn.relative_position_bias_table.detach(), block.attn.relative_position_index
        self.bias: Tensor
        self.register_buffer("bias", table[index].permute(2, 0, 1).contiguous())  # heads, S^2, S^2

    def forward(self, tokens: Tensor, size: tuple[int, int]) -> Tensor:
        """`[B, H * W, C]` and (H, W) -> `[B, H * W, C]`; both sides are multiples of the window's side S."""
        count, _, width = tokens.shape
        image = self.norm1(tokens).view(count, *size, width)
        if self.shift:
            image = torch.roll(image, (-self.shift, -self.shift), (1, 2))
        image = self._joined(self._attend(self._windows(image), size), size)
        if self.shift:
            image = torch.roll(image, (self.shift, self.shift), (1, 2))
        tokens = tokens + image.reshape(tokens.shape)
        result: Tensor = tokens + self.mlp(self.norm2(tokens))
        return result

    def _attend(self, windows: Tensor, size: tuple[int, int]) -> Tensor:
        count, number, area, width = windows.shape
        parts = self.qkv(windows).view(count, number, area, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(3, 0, 1, 4, 2, 5)  # B, N, heads, S^2, C / heads
        affinity = (query * self.scale) @ key.transpose(-2, -1) + self.bias
        if self.shift:
            affinity = affinity + self._apart(size).to(affinity)[:, None]
        mixed = affinity.softmax(-1) @ value
        result: Tensor = self.proj(mixed.transpose(2, 3).reshape(windows.shape))
        return result

    def _apart(self, size: tuple[int, int]) -> Tensor:
        """-100 between pixels of one window that only the cyclic shift made neighbours, else 0: `[N, S^2, S^2]`."""
        steps = [torch.arange(length) for length in size]
        bands = [
            (step >= length - self.side).int() + (step >= length - self.shift).int()
            for step, length in zip(steps, size, strict=True)
        ]
        region = 3 * bands[0][:, None] + bands[1]
        labels = self._windows(region[None, :, :, None])[0, :, :, 0]  # N, S^2
        return -100.0 * (labels[:, :, None] != labels[:, None, :]).float()

    def _windows(self, image: Tensor) -> Tensor:
        """`[B, H, W, C]` -> `[B, N, S^2, C]`."""
        count, height, width, channels = image.shape
        split = image.view(count, height // self.side, self.side, width // self.side, self.side, channels)
        return split.transpose(2, 3).reshape(count, -1, self.side * self.side, channels)

    def _joined(self, windows: Tensor, size: tuple[int, int]) -> Tensor:
        """`[B, N, S^2, C]` -> `[B, H, W, C]`."""
        height, width = size
        split = windows.view(windows.shape[0], height // self.side, width // self.side, self.side, self.side, -1)
        return split.transpose(2, 3).reshape(windows.shape[0], height, width, -1)


class ModulatedConvolution(nn.Module):
    """StyleGAN2's modulated convolution (Karras et al. 2020) on modulated inputs in place of modulated weights.

    The weights of image b are w * s_b over the input channels, then normalised over each output channel; the same comes
    out of scaling the input by s_b and the output by that norm, with one kernel for all images.

    Args:
        convolution: the published layer; its parameters are used.
    """

    def __init__(self, convolution: Any) -> None:
        super().__init__()
        self.modulation, self.weight = convolution.modulation, convolution.weight
        self.demodulate, self.eps, self.padding = convolution.demodulate, convolution.eps, convolution.padding
        self.enlarge = {None: 1.0, "upsample": 2.0, "downsample": 0.5}[convolution.sample_mode]

    def forward(self, image: Tensor, style: Tensor) -> Tensor:
        """`[B, C, H, W]` and `[B, F]` -> the convolved image."""
        scale, kernel = self.modulation(style), self.weight[0]
        if self.enlarge != 1:
            image = F.interpolate(image, scale_factor=self.enlarge, mode="bilinear", align_corners=False)
        result = F.conv2d(image * scale[:, :, None, None], kernel, padding=self.padding)
        if self.demodulate:
            power = scale.square() @ kernel.square().sum((2, 3)).T  # B, C_out
            result = result * torch.rsqrt(power + self.eps)[:, :, None, None]
        return result


REWRITES = {
    "spandrel.architectures.SwinIR.__arch.SwinIR.SwinTransformerBlock": ShiftedWindowBlock,
    "spandrel.architectures.GFPGAN.__arch.stylegan2_clean_arch.ModulatedConv2d": ModulatedConvolution,
}
"""Class of a published block -> what takes its place in an export."""
