"""Published restorers through spandrel: which network a state dict is, and how it is called.

spandrel recognises the architecture and builds the network. Its own call is made for single images without gradients,
and leaves GFPGAN's range to the caller; the calls here take batches, keep gradients, and hold every network to the
project's contract (image in `[0, 1]` in, image in `[0, 1]` out, deterministic).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


class PublishedError(ValueError):
    """spandrel is missing, does not know the network, or the network is not an RGB restorer."""


@dataclass(frozen=True)
class PublishedNet:
    """A network built from a published layout; fields as in `RestorerSpec` and `LoadedRestorer`."""

    module: nn.Module
    architecture: str
    scale: int
    multiple_of: int
    minimum: int
    tiles: bool


class PublishedRestorer(nn.Module):
    """Image `[B, 3, H, W]` in `[0, 1]` -> image, around an untouched published network `net`.

    Args:
        net: the published network.
        call: how this network is called on images in `[0, 1]`.
        side: the only side in pixels that the network takes, or None; other sizes are resampled to it and back.
    """

    def __init__(self, net: nn.Module, call: Callable[[nn.Module, Tensor], Tensor], side: int | None) -> None:
        super().__init__()
        self.net = net
        self.call = call
        self.side = side

    def forward(self, image: Tensor) -> Tensor:
        if self.side is None:
            return self.call(self.net, image)
        inner = F.interpolate(image, (self.side, self.side), mode="bilinear", antialias=True)
        restored = self.call(self.net, inner)
        return F.interpolate(restored, image.shape[-2:], mode="bilinear", antialias=True)


def _call_plain(net: nn.Module, image: Tensor) -> Tensor:
    restored: Tensor = net(image)
    return restored


def _call_first(net: nn.Module, image: Tensor) -> Tensor:
    restored: Tensor = net(image)[0]
    return restored


def _call_gfpgan(net: nn.Module, image: Tensor) -> Tensor:
    """GFPGAN works in `[-1, 1]`; its stored noise replaces the fresh noise of each call."""
    restored: Tensor = net(image * 2 - 1, return_rgb=False, randomize_noise=False)[0]
    return (restored + 1) / 2


def _call_restoreformer(net: nn.Module, image: Tensor) -> Tensor:
    restored: Tensor = net(image * 2 - 1)[0]
    return (restored + 1) / 2


def _call_mixdehaze(net: nn.Module, image: Tensor) -> Tensor:
    restored: Tensor = net(image)
    return restored * 0.5 + 0.5


CALLS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "GFPGAN": _call_gfpgan,
    "RestoreFormer": _call_restoreformer,
    "FBCNN": _call_first,
    "MMRealSR": _call_first,
    "MixDehazeNet": _call_mixdehaze,
}
"""Architectures whose call is not simply `net(image)`."""

UNSUPPORTED_CALLS = frozenset({"DRUNet", "DnCNN", "IPT", "RetinexFormer"})
"""Architectures whose call needs more than an image (a noise level, a task) or works for one image only."""

FIXED_SIDE = {"GFPGAN": 512}


def build(state: dict[str, Tensor]) -> PublishedNet:
    """Recognises the architecture of `state`, builds the network and loads the weights.

    Raises:
        PublishedError: spandrel is not installed, the layout is unknown, or it is not an RGB -> RGB restorer.
    """
    try:
        from spandrel import ImageModelDescriptor, ModelLoader, UnsupportedModelError
    except ImportError as error:
        raise PublishedError("not a compact restorer; other layouts need spandrel: pip install spandrel") from error
    try:
        found = ModelLoader("cpu").load_from_state_dict(_in_float32(state))
    except UnsupportedModelError as error:
        raise PublishedError("no restorer that spandrel knows has this layout") from error
    except (RuntimeError, KeyError, IndexError, ValueError, AssertionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[-1].strip()
        raise PublishedError(f"damaged weights: {reason}") from error
    architecture = found.architecture.id
    _restore_layout(found.model, architecture)
    if not isinstance(found, ImageModelDescriptor) or (found.input_channels, found.output_channels) != (3, 3):
        raise PublishedError(f"{architecture} with these weights is not an RGB -> RGB restorer")
    if architecture in UNSUPPORTED_CALLS:
        raise PublishedError(f"{architecture} needs more than an image as its input and is not supported")
    side = FIXED_SIDE.get(architecture)
    sizes = found.size_requirements
    return PublishedNet(
        module=PublishedRestorer(found.model, CALLS.get(architecture, _call_plain), side).eval(),
        architecture=architecture,
        scale=found.scale,
        multiple_of=1 if side else sizes.multiple_of,
        minimum=1 if side else max(sizes.minimum, sizes.multiple_of),
        tiles=side is None and found.tiling.name == "SUPPORTED",
    )


def _restore_layout(net: Any, architecture: str) -> None:
    """Gives a network the tensor names of its file again where spandrel has changed them beyond its own recognition.

    SwinIR that begins with a pixel unshuffle (DiffBIR, DifFace, DT-BFR) is told by its layer `conv_first.1`.
    """
    if architecture == "SwinIR" and net.start_unshuffle > 1:
        net.conv_first = nn.Sequential(nn.PixelUnshuffle(net.start_unshuffle), net.conv_first)
        net.start_unshuffle = 1


def _in_float32(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
