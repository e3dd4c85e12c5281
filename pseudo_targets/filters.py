"""Low-pass filters that say which band of a reference a sample must keep. Plain callables, tensor to tensor."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from pseudo_targets.resize import resize_cubic

LowPass = Callable[[Tensor], Tensor]
"""`[B, C, H, W]` (image or latent) -> its low band, same shape; linear and channel by channel."""


class FilterError(ValueError):
    """A filter's settings do not fit; the message says what was got and what is expected."""


@dataclass(frozen=True)
class BlockMean:
    """Replaces each `factor` x `factor` block by its mean: an orthogonal projection, so P(P(x)) = P(x).

    It commutes with every linear transform that mixes channels only, hence in the latent space of a patch transform
    it holds the same band as a block mean over `factor` x `factor` patches, one patch position at a time. Sides that
    are no multiple of `factor` end in a smaller block.
    """

    factor: int

    def __post_init__(self) -> None:
        _check_factor(self.factor)

    def __call__(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        means = F.avg_pool2d(image, self.factor, ceil_mode=True)
        blocks = means.repeat_interleave(self.factor, dim=-2).repeat_interleave(self.factor, dim=-1)
        return blocks[..., :height, :width]


@dataclass(frozen=True)
class CubicLowPass:
    """Down by `factor` and up again with the cubic kernel a = -0.5, antialiased down, mirrored borders.

    The filter of the published DT-BFR and DR2 samplers. It keeps constants but is no projection: applying it twice
    moves the image by about a quarter of its low band's detail, so a replacement with it is not an exact constraint.
    """

    factor: int

    def __post_init__(self) -> None:
        _check_factor(self.factor)

    def down(self, image: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C, ceil(H / factor), ceil(W / factor)]`."""
        height, width = image.shape[-2:]
        return resize_cubic(image, -(-height // self.factor), -(-width // self.factor))

    def __call__(self, image: Tensor) -> Tensor:
        return resize_cubic(self.down(image), *image.shape[-2:])


def _check_factor(factor: int) -> None:
    if factor < 1:
        raise FilterError(f"factor: got {factor}, expected a whole number of 1 or more")
