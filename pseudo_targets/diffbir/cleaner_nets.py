"""The networks of DiffBIR's stage 1 at any size: SwinIR and SCUNet from spandrel, BSRNet from `rrdb`.

Each has the published tensor names, buffers included, so that a published file loads strictly as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pseudo_targets.downloads import WeightsError

S = TypeVar("S")


@dataclass(frozen=True)
class SwinIRSizes:
    """Sizes under the published configuration's names; the defaults are those of DiffBIR, DifFace and DT-BFR.

    Attributes:
        img_size: side of the feature grid that the stored attention masks are for; others are computed when needed.
        embed_dim: width.
        depths: attention blocks in each group.
        num_heads: attention heads in each group.
        window_size: side of an attention window.
        mlp_ratio: width of the layers between attentions, in widths.
        sf: how many times larger than the feature grid the output is.
        unshuffle_scale: side of the pixel blocks that become channels of the feature grid.
    """

    img_size: int = 64
    embed_dim: int = 180
    depths: tuple[int, ...] = (6,) * 8
    num_heads: tuple[int, ...] = (6,) * 8
    window_size: int = 8
    mlp_ratio: float = 2
    sf: int = 8
    unshuffle_scale: int = 8


@dataclass(frozen=True)
class SCUNetSizes:
    """Sizes under the published configuration's names; the defaults are SCUNet-PSNR's.

    Attributes:
        config: blocks at each level, down, in the middle and up.
        dim: width of the finest level.
        head_dim: width of an attention head.
        input_resolution: side of the images it was made for; levels no larger than a window do not shift theirs.
    """

    config: tuple[int, ...] = (4,) * 7
    dim: int = 64
    head_dim: int = 32
    input_resolution: int = 256


def sizes_from(kind: type[S], config: dict[str, Any]) -> S:
    """The fields of `kind` that a published configuration sets; what has no field of its own is fixed here."""
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    return kind(**{key: tuple(v) if isinstance(v, list) else v for key, v in config.items() if key in known})


def build_swinir(sizes: SwinIRSizes) -> nn.Module:
    """SwinIR between pixel unshuffle and nearest upsampling (Liang et al. 2021), random weights.

    Image `[B, 3, H, W]` in `[0, 1]`, sides multiples of `window_size * unshuffle_scale` -> the same shape times
    `sf / unshuffle_scale`, about `[0, 1]`.

    Raises:
        WeightsError: spandrel is not installed.
    """
    try:
        from spandrel.architectures.SwinIR import SwinIR
    except ImportError as error:
        raise _without_spandrel("SwinIR") from error
    net = SwinIR(
        img_size=sizes.img_size,
        embed_dim=sizes.embed_dim,
        depths=list(sizes.depths),
        num_heads=list(sizes.num_heads),
        window_size=sizes.window_size,
        mlp_ratio=sizes.mlp_ratio,
        upscale=sizes.sf,
        upsampler="nearest+conv",
        start_unshuffle=sizes.unshuffle_scale,
    )
    # spandrel unshuffles outside of the first layer; inside, the layer has its published name `conv_first.1`.
    net.conv_first = nn.Sequential(nn.PixelUnshuffle(sizes.unshuffle_scale), net.conv_first)
    net.start_unshuffle = 1
    return net


class ReplicatePadded(nn.Module):
    """Calls `net` on the image continued by its last row and column to sides that are multiples of `multiple`."""

    def __init__(self, net: nn.Module, multiple: int) -> None:
        super().__init__()
        self.net, self.multiple = net, multiple

    def forward(self, image: Tensor) -> Tensor:
        """`[B, C, H, W]` -> the same shape."""
        height, width = image.shape[-2:]
        padding = (0, -width % self.multiple, 0, -height % self.multiple)
        return self.net(F.pad(image, padding, mode="replicate"))[..., :height, :width]


def build_scunet(sizes: SCUNetSizes) -> nn.Module:
    """SCUNet (Zhang et al. 2022), random weights, with published names.

    Image `[B, 3, H, W]` in `[0, 1]`, sides multiples of 64 -> the same shape, about `[0, 1]`. As published it is called
    through `ReplicatePadded(net, 64)`; spandrel's own padding of other sides mirrors.

    Raises:
        WeightsError: spandrel is not installed.
    """
    try:
        from spandrel.architectures.SCUNet import SCUNet
    except ImportError as error:
        raise _without_spandrel("SCUNet") from error
    net = SCUNet(config=list(sizes.config), dim=sizes.dim, input_resolution=sizes.input_resolution)
    for module in net.modules():
        if hasattr(module, "relative_position_params") and module.head_dim != sizes.head_dim:
            _set_head_dim(module, sizes.head_dim)
    return net


def _set_head_dim(attention: Any, head_dim: int) -> None:
    """spandrel fixes the published width of heads; only the table of relative positions depends on their number."""
    side = 2 * attention.window_size - 1
    heads = attention.input_dim // head_dim
    attention.head_dim, attention.n_heads, attention.scale = head_dim, heads, head_dim**-0.5
    attention.relative_position_params = nn.Parameter(0.02 * torch.randn(heads, side, side))


def _without_spandrel(name: str) -> WeightsError:
    return WeightsError(f"stage 1 with {name} needs spandrel: pip install 'adapt-restorer[diffbir]'")
