"""Which parts of a restorer train: what its authors train, all, the decoder, or low-rank updates of every layer."""

from __future__ import annotations

import copy
from typing import Literal

import torch
from torch import Generator, Tensor, nn
from torch.nn.utils import parametrize

from restorers.zoo import LoadedRestorer

Parts = Literal["default", "all", "decoder", "lora"]


class LowRank(nn.Module):
    """A weight plus a product of two thin matrices that alone train (LoRA, Hu et al. 2022); zero at first.

    Args:
        weight: `[outputs, ...]`, of a linear layer or a convolution.
        rank: columns of the first matrix, fewer where the weight is smaller.
    """

    def __init__(self, weight: Tensor, rank: int, generator: Generator) -> None:
        super().__init__()
        outputs, inputs = len(weight), weight[0].numel()
        rank = min(rank, outputs, inputs)
        self.down = nn.Parameter((torch.randn(rank, inputs, generator=generator) / inputs**0.5).to(weight.device))
        self.up = nn.Parameter(torch.zeros(outputs, rank, device=weight.device))

    def forward(self, weight: Tensor) -> Tensor:
        return weight + (self.up @ self.down).view_as(weight)


def pupil_of(restorer: LoadedRestorer, parts: Parts, rank: int, generator: Generator) -> nn.Module:
    """A copy of the network in which only `parts` take gradients.

    Args:
        parts: `default` leaves frozen what its authors freeze; `decoder` needs `restorer.spec.decoder`.
        rank: of the updates for `lora`; `merged` turns them into plain weights again.
        generator: on the CPU, for the start of the updates.
    """
    module = copy.deepcopy(restorer.module)
    if parts == "default":
        return module
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(parts == "all" or (parts == "decoder" and _within(name, restorer.spec.decoder)))
    if parts == "lora":
        for layer in [layer for layer in module.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]:
            parametrize.register_parametrization(layer, "weight", LowRank(layer.weight, rank, generator))
    return module


def merged(pupil: nn.Module, base: nn.Module) -> nn.Module:
    """A network as `base`, on its device, with what `pupil` has learned; low-rank updates join their weights."""
    pupil = copy.deepcopy(pupil)
    for layer in list(pupil.modules()):
        if parametrize.is_parametrized(layer, "weight"):
            parametrize.remove_parametrizations(layer, "weight", leave_parametrized=True)
    result = copy.deepcopy(base).eval()
    result.load_state_dict(pupil.state_dict())
    return result


def _within(name: str, parts: tuple[str, ...]) -> bool:
    inner = name.removeprefix("net.")
    return any(inner == part or inner.startswith(f"{part}.") for part in parts)
