"""Several networks on one small device: only those in use are there, the others wait in main memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import nn

from pseudo_targets.compute import autoencoder_of, denoisers
from pseudo_targets.priors import LatentPrior

Move = Callable[[nn.Module, torch.device], object]
"""(network, where to)."""
HOME = torch.device("cpu")


def _move(network: nn.Module, device: torch.device) -> None:
    network.to(device)


class OneAtATime:
    """Brings a group of networks to the device when one of them is called, after sending the last group home.

    A group of several networks is for those that are called in turns, such as a UNet and its control.

    Args:
        groups: networks by the name of their group, each one that is called itself; they start in main memory.
        device: where they are computed.
        move: moves a network.
    """

    def __init__(self, groups: Mapping[str, Sequence[nn.Module]], device: torch.device, move: Move = _move) -> None:
        self.groups, self.device, self.move = dict(groups), device, move
        self.here: str | None = None
        for name, networks in self.groups.items():
            for network in networks:
                self.move(network, HOME)
                network.register_forward_pre_hook(partial(self._called, name))

    def bring(self, name: str | None) -> None:
        """Makes `name` the group on the device; None sends all home."""
        if name == self.here:
            return
        if self.here is not None:
            for network in self.groups[self.here]:
                self.move(network, HOME)
        self.here = name
        if name is not None:
            for network in self.groups[name]:
                self.move(network, self.device)

    def _called(self, name: str, _network: nn.Module, _inputs: object) -> None:
        self.bring(name)


def groups_of(prior: LatentPrior) -> dict[str, list[nn.Module]]:
    """The networks of a prior that are called in turns: `denoiser`, and `codec` where there is an autoencoder."""
    autoencoder = autoencoder_of(prior)
    parts = [] if autoencoder is None else [part for part in autoencoder.children() if list(part.parameters())]
    return {"denoiser": denoisers(prior)} | ({"codec": parts} if parts else {})
