"""Published checkpoints: read as plain tensors, matched name by name."""

from __future__ import annotations

import pickle
import struct
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from pseudo_targets.downloads import WeightsError

SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt")
WRAPPERS = ("state_dict", "params_ema", "params-ema", "params", "model_state_dict", "model", "net", "ema")
# What torch's reader raises on bytes that only begin like a checkpoint; it checks little before it acts on them.
DAMAGED = (SafetensorError, OSError, EOFError, RuntimeError, LookupError, ValueError, TypeError, AttributeError,
           AssertionError, struct.error)  # fmt: skip
M = TypeVar("M", bound=nn.Module)


class _Inert:
    """Stands for a class that a training library left in a file; it does nothing."""


# Checkpoints written by Lightning name this class as a key beside the weights.
NAMES_ONLY = ("pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",)


class CheckpointError(WeightsError):
    """A checkpoint cannot be read, or is not the one of this network; the message names file and reason."""


def read_checkpoint(path: Path, suffix: str | None = None) -> dict[str, Tensor]:
    """The tensors of a file by name, on the CPU, in the types they were saved in. Nothing stored in the file is run.

    One wrapper such as `state_dict` and the prefix `module.` are taken off. `suffix` says what the file is where its
    name does not, such as `.pth` for a download under way.

    Raises:
        CheckpointError: the file is missing, damaged, holds code or something else than tensors.
    """
    return _read(path, suffix, "cpu")


def read_layout(path: Path, suffix: str | None = None) -> dict[str, Tensor]:
    """Names and shapes of `read_checkpoint`, as tensors without values; the values are not read.

    Raises:
        CheckpointError: as `read_checkpoint`.
    """
    return _read(path, suffix, "meta")


def _read(path: Path, suffix: str | None, device: str) -> dict[str, Tensor]:
    kind = (suffix or path.suffix).lower()
    if kind not in SUFFIXES:
        raise CheckpointError(f"{path}: got suffix {kind!r}, expected one of {', '.join(SUFFIXES)}")
    try:
        if kind == ".safetensors":
            content = _read_safetensors(path, device)
        else:
            with torch.serialization.safe_globals([(_Inert, name) for name in NAMES_ONLY]):
                content = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError as error:
        raise CheckpointError(f"{path}: no such file") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path}: holds code or is no checkpoint, and only plain tensors are read") from error
    except DAMAGED as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path}: damaged ({reason}); fetch it again") from error
    return _unwrapped(path, content)


def _read_safetensors(path: Path, device: str) -> object:
    with safe_open(path, framework="pt") as file:
        names = list(file.keys())
        if device == "meta":
            return {name: torch.empty(file.get_slice(name).get_shape(), device=device) for name in names}
        return {name: file.get_tensor(name) for name in names}


def load_strictly(module: M, tensors: dict[str, Tensor], origin: Path) -> M:
    """Fills `module` in float32, in eval mode and frozen; returns it.

    Raises:
        CheckpointError: a tensor is missing, unexpected or of another shape; each one is named.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    faults = [f"missing {name}" for name in expected if name not in tensors]
    faults += [f"unexpected {name}" for name in tensors if name not in expected]
    faults += [
        f"{name} has shape {tuple(tensor.shape)}, expected {expected[name]}"
        for name, tensor in tensors.items()
        if name in expected and tuple(tensor.shape) != expected[name]
    ]
    if faults:
        raise CheckpointError(f"{origin}: not the weights of {type(module).__name__}: {'; '.join(faults)}")
    module.load_state_dict({n: t.float() if t.is_floating_point() else t for n, t in tensors.items()}, assign=True)
    return module.eval().requires_grad_(False)


def _unwrapped(path: Path, content: object) -> dict[str, Tensor]:
    if isinstance(content, dict):
        content = next((content[key] for key in WRAPPERS if isinstance(content.get(key), dict)), content)
    if not isinstance(content, dict) or not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{path}: holds no table of tensors, expected a state dict")
    for name, tensor in content.items():
        if not str(name).isprintable():
            raise CheckpointError(f"{path}: tensor {str(name)!r}, expected a printable name")
        if tensor.layout != torch.strided or tensor.is_complex() or tensor.is_quantized:
            raise CheckpointError(f"{path}: {name} is {tensor.dtype}, {tensor.layout}, expected plain real numbers")
    return {str(name).removeprefix("module."): value for name, value in content.items()}
