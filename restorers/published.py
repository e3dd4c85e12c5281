"""Published restorers through spandrel: which network a state dict is, and how it is called.

spandrel recognises the architecture and builds the network. Its own call is made for single images without gradients,
and leaves GFPGAN's range to the caller; the calls here take batches, keep gradients, and hold every network to the
project's contract (image in `[0, 1]` in, image in `[0, 1]` out, deterministic).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn


class PublishedError(ValueError):
    """spandrel is missing, does not know the network, or the network is not an RGB restorer."""


@dataclass(frozen=True)
class PublishedNet:
    """A network built from a published layout; fields as in `RestorerSpec` and `LoadedRestorer`."""

    module: PublishedRestorer
    architecture: str
    commercial: bool
    scale: int
    multiple_of: int
    minimum: int
    tiles: bool
    half: bool
    trains: tuple[str, ...]
    decoder: tuple[str, ...]


class PublishedRestorer(nn.Module):
    """Image `[B, 3, H, W]` in `[0, 1]` -> image, around an untouched published network `net`.

    Args:
        net: the published network.
        call: how this network is called on images in `[0, 1]`.
        side: the only side in pixels that the network takes, or None; other sizes are resampled to it and back.
        shrink: by how much the result is made smaller again, by area: a network that enlarges 4 times and is shrunk
            by 4 restores at the size of its input.
        square: whether the network takes square images alone; others are continued below or on the right.
    """

    def __init__(
        self,
        net: nn.Module,
        call: Callable[[nn.Module, Tensor], Tensor],
        side: int | None,
        shrink: int = 1,
        square: bool = False,
    ) -> None:
        super().__init__()
        self.net = net
        self.call = call
        self.side = side
        self.shrink = shrink
        self.square = square

    @property
    def plain(self) -> bool:
        """Whether the network alone, on images in `[0, 1]`, gives what this module gives."""
        return self.side is None and self.shrink == 1 and not self.square and self.call is _call_plain

    def forward(self, image: Tensor) -> Tensor:
        if self.square and image.shape[-1] != image.shape[-2]:
            height, width = image.shape[-2:]
            whole = self(F.pad(image, (0, max(height - width, 0), 0, max(width - height, 0)), mode="replicate"))
            scale = whole.shape[-1] // max(height, width)
            return whole[..., : height * scale, : width * scale]
        if self.side is None:
            restored = self.call(self.net, image)
            return restored if self.shrink == 1 else F.avg_pool2d(restored, self.shrink)
        restored = self.call(self.net, self.resampled(image)).float()
        return F.interpolate(restored, image.shape[-2:], mode="bilinear", antialias=True)

    def resampled(self, image: Tensor) -> Tensor:
        """The image at the only side that the network takes; as it is where there is none such."""
        if self.side is None:
            return image
        image = image.float().contiguous()  # this filter knows no half precision on a CPU
        return F.interpolate(image, (self.side, self.side), mode="bilinear", antialias=True)


def _call_plain(net: nn.Module, image: Tensor) -> Tensor:
    restored: Tensor = net(image)
    return restored


def _call_on_copy(net: nn.Module, image: Tensor) -> Tensor:
    """A network that writes into its input."""
    restored: Tensor = net(image.clone())
    return restored


def _call_first(net: nn.Module, image: Tensor) -> Tensor:
    restored: Tensor = net(image)[0]
    return restored


def _call_gfpgan(net: nn.Module, image: Tensor) -> Tensor:
    """GFPGAN works in `[-1, 1]`; its stored noise replaces the fresh noise of each call."""
    restored: Tensor = net(image * 2 - 1, return_rgb=False, randomize_noise=False)[0]
    return (restored + 1) / 2


def _call_signed(net: nn.Module, image: Tensor) -> Tensor:
    """Networks that work in `[-1, 1]`; CodeFormer at its own fidelity weight, 0.5."""
    restored: Tensor = net(image * 2 - 1)[0]
    return (restored + 1) / 2


def _call_mixdehaze(net: nn.Module, image: Tensor) -> Tensor:
    restored: Tensor = net(image)
    return restored * 0.5 + 0.5


CALLS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "GFPGAN": _call_gfpgan,
    "RestoreFormer": _call_signed,
    "CodeFormer": _call_signed,
    "FBCNN": _call_first,
    "MMRealSR": _call_first,
    "MPRNet": _call_first,
    "RCAN": _call_on_copy,
    "MixDehazeNet": _call_mixdehaze,
}
"""Architectures whose call is not simply `net(image)`."""

UNSUPPORTED_CALLS = frozenset({"DDColor", "DRUNet", "DnCNN", "IPT", "RetinexFormer"})
"""Architectures whose call needs more than an image (a noise level, a task), works for one image only, or gives
something else."""

MULTIPLES = {"SCUNet": 64}
"""Multiples of the sides where spandrel states none because the network pads by itself, which no export can follow."""

FIXED_SIDE = {"GFPGAN": 512, "RestoreFormer": 512, "CodeFormer": 512}
SMALLEST = 32
"""Smallest side in pixels of an image for the networks of `FIXED_SIDE`; there is no face in less."""

TRAINS: dict[str, tuple[str, ...]] = {
    # The StyleGAN2 prior stays, as in the authors' own training; `toRGB` is not part of the result.
    "GFPGAN": ("conv_body_first", "conv_body_down", "final_conv", "conv_body_up", "final_linear", "condition_scale",
               "condition_shift"),
    # The dictionary stays.
    "RestoreFormer": ("encoder", "quant_conv", "post_quant_conv", "decoder"),
    # The codes are chosen, which passes no gradient: what is left to a loss on images is how far the photo is followed.
    "CodeFormer": ("fuse_convs_dict",),
    # Code book and decoder stay.
    "FeMaSR": ("multiscale_encoder", "before_quant_group"),
}  # fmt: skip
"""Top-level modules that train; all of them where an architecture is not named."""

DECODERS: dict[str, tuple[str, ...]] = {
    "SwinIR": ("conv_after_body", "conv_before_upsample", "upsample", "conv_up1", "conv_up2", "conv_up3", "conv_hr",
               "conv_HR", "conv_last"),
    "ESRGAN": tuple(f"model.{index}" for index in range(2, 16)),
    "SCUNet": ("m_up3", "m_up2", "m_up1", "m_tail"),
    "NAFNet": ("decoders", "ups", "ending"),
    "GFPGAN": ("stylegan_decoder",),
    "RestoreFormer": ("post_quant_conv", "decoder"),
    "CodeFormer": ("generator", "fuse_convs_dict"),
    "FeMaSR": ("after_quant_group", "decoder_group", "out_conv"),
}  # fmt: skip
"""Parts between a network's deepest features and its image."""

EXTRA = frozenset({"CodeFormer", "FeMaSR"})
"""Architectures of spandrel's second package, whose code is not for commercial use, that have a name here."""


def build(state: dict[str, Tensor]) -> PublishedNet:
    """Recognises the architecture of `state`, builds the network and loads the weights.

    Raises:
        PublishedError: spandrel is not installed, the layout is unknown, or it is not an RGB -> RGB restorer.
    """
    try:
        from spandrel import ImageModelDescriptor, UnsupportedModelError
    except ImportError as error:
        raise PublishedError("not a compact restorer; other layouts need spandrel: pip install spandrel") from error
    try:
        found = _loader().load_from_state_dict(_in_float32(state))
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
    side, trains = FIXED_SIDE.get(architecture), TRAINS.get(architecture, ())
    sizes = found.size_requirements
    multiple_of = MULTIPLES.get(architecture, sizes.multiple_of)
    for name, parameter in found.model.named_parameters():
        parameter.requires_grad_(not trains or name.split(".")[0] in trains)
    return PublishedNet(
        module=PublishedRestorer(
            found.model, CALLS.get(architecture, _call_plain), side, square=side is None and sizes.square
        ).eval(),
        architecture=architecture,
        commercial=architecture not in _extra_architectures(),
        scale=found.scale,
        multiple_of=1 if side else multiple_of,
        minimum=SMALLEST if side else max(sizes.minimum, multiple_of),
        tiles=side is None and found.tiling.name == "SUPPORTED",
        half=found.supports_half,
        trains=trains,
        decoder=DECODERS.get(architecture, ()),
    )


def _restore_layout(net: Any, architecture: str) -> None:
    """Gives a network the tensor names of its file again where spandrel has changed them beyond its own recognition.

    SwinIR that begins with a pixel unshuffle (DiffBIR, DifFace, DT-BFR) is told by its layer `conv_first.1`.
    """
    if architecture == "SwinIR" and net.start_unshuffle > 1:
        net.conv_first = nn.Sequential(nn.PixelUnshuffle(net.start_unshuffle), net.conv_first)
        net.start_unshuffle = 1


def has_extra() -> bool:
    """Whether the package with the architectures of `EXTRA` is installed."""
    return find_spec("spandrel_extra_arches") is not None


def _extra_architectures() -> frozenset[str]:
    """All architectures of the package whose code is not for commercial use."""
    if not has_extra():
        return EXTRA
    from spandrel_extra_arches import EXTRA_REGISTRY

    return EXTRA | {support.architecture.id for support in EXTRA_REGISTRY}


def _loader() -> Any:
    """spandrel's loader, with the architectures of `EXTRA` where they are installed; its own registry is untouched."""
    from spandrel import MAIN_REGISTRY, ModelLoader

    registry = MAIN_REGISTRY.copy()
    if has_extra():
        from spandrel_extra_arches import EXTRA_REGISTRY

        registry.add(*EXTRA_REGISTRY, ignore_duplicates=True)
    return ModelLoader("cpu", registry=registry)


def _in_float32(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.float() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
