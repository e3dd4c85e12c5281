"""facexlib's networks, where it is installed and their weights are on disk; nothing is downloaded here."""

from __future__ import annotations

import importlib.util
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from adapt.errors import AdaptError
from restorers.downloads import cache_folder
from restorers.zoo import DAMAGED

DETECTOR = "detection_Resnet50_Final.pth"
PARSER = "parsing_parsenet.pth"
RECOGNITION = "recognition_arcface_ir_se50.pth"
M = TypeVar("M", bound=nn.Module)


def installed() -> bool:
    """Whether facexlib is installed; does not import it."""
    return importlib.util.find_spec("facexlib") is not None


def find_weights(name: str) -> Path | None:
    """A weights file of facexlib on this machine, or None; the user's cache comes before its own folder."""
    folders = [cache_folder().parent / "facexlib"]
    spec = importlib.util.find_spec("facexlib")
    if spec is not None and spec.origin is not None:
        folders.append(Path(spec.origin).parent / "weights")
    return next((folder / name for folder in folders if (folder / name).is_file()), None)


def usable(name: str) -> bool:
    """Whether facexlib is installed and this weights file is here."""
    return installed() and find_weights(name) is not None


def load_net(build: Callable[[], M], name: str) -> M:
    """The network that `build` imports and makes, with the tensors of a weights file, frozen and in eval mode.

    Raises:
        AdaptError: facexlib cannot be imported, or the file is missing, damaged, holds code or the weights of another
            network.
    """
    path = find_weights(name)
    if path is None:
        place = cache_folder().parent / "facexlib" / name
        raise AdaptError(
            f"facexlib: {name} not found: run `adapt weights fetch facexlib`; offline, `adapt weights import {name}`, "
            f"or put it at {place}; or go without"
        )
    try:
        net = build()
    except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision that does not match torch
        raise AdaptError(f"facexlib cannot be imported ({error}): repair it with pip, or uninstall it") from error
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        net.load_state_dict({key.removeprefix("module."): value for key, value in state.items()})
    except (*DAMAGED, pickle.UnpicklingError) as error:
        what, kind = type(net).__name__, type(error).__name__
        raise AdaptError(f"{path}: not the weights of facexlib's {what} ({kind}); fetch it again") from error
    return net.eval().requires_grad_(False)
