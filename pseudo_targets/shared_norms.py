"""Group norms that take their statistics from a whole image although they see a tile of it.

A norm's statistics depend on the norms before it. They are measured over tiles that each take their own; what is
measured is exact for the first norm, and for later ones as good as tiles are alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn


@dataclass
class _Sums:
    """Over the tiles of one norm: how many, and sums of the groups' means and mean squares `[1, G]`."""

    tiles: int = 0
    means: Tensor = field(default_factory=lambda: torch.zeros(()))
    squares: Tensor = field(default_factory=lambda: torch.zeros(()))


Moments = dict[nn.GroupNorm, tuple[Tensor, Tensor]]
"""Mean and standard deviation of every norm's groups, `[1, G, 1]`."""


@torch.no_grad()
def measure(network: nn.Module, see_tiles: Callable[[], object]) -> Moments:
    """What the norms of `network` see while `see_tiles` calls it with tiles of equal size of one image."""
    sums = {module: _Sums() for module in network.modules() if isinstance(module, nn.GroupNorm)}

    def add(norm: nn.GroupNorm, inputs: tuple[Tensor, ...], _: Tensor) -> None:
        groups, total = _grouped(norm, inputs[0]), sums[norm]
        total.tiles += 1
        total.means = total.means.to(groups.device) + groups.mean(-1)
        total.squares = total.squares.to(groups.device) + groups.square().mean(-1)

    handles = [norm.register_forward_hook(add) for norm in sums]
    try:
        see_tiles()
    finally:
        for handle in handles:
            handle.remove()
    return {norm: _moments(norm, total) for norm, total in sums.items() if total.tiles}


@contextmanager
def shared(moments: Moments) -> Iterator[None]:
    """Inside, the norms use these moments in place of those of what they see."""

    def normalised(norm: nn.GroupNorm, inputs: tuple[Tensor, ...], _: Tensor) -> Tensor:
        (x, *_rest), (mean, deviation) = inputs, moments[norm]
        unit = ((_grouped(norm, x) - mean) / deviation).reshape(x.shape)
        shape = (1, -1) + (1,) * (x.ndim - 2)
        return (unit * norm.weight.float().view(shape) + norm.bias.float().view(shape)).to(x.dtype)

    handles = [norm.register_forward_hook(normalised) for norm in moments]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _grouped(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    return x.float().reshape(len(x), norm.num_groups, -1)


def _moments(norm: nn.GroupNorm, total: _Sums) -> tuple[Tensor, Tensor]:
    mean, square = total.means / total.tiles, total.squares / total.tiles
    deviation = ((square - mean**2).clamp(min=0) + norm.eps).sqrt()
    return mean[..., None], deviation[..., None]
