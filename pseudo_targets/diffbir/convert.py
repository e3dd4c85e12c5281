"""Published state dicts to the tensors of our networks: complete, of the right shapes, or an error that names each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pseudo_targets.diffbir.layout import (
    Source,
    autoencoder_sources,
    control_sources,
    text_sources,
    unet_sources,
    unused_text_tensors,
)
from pseudo_targets.diffbir.networks import (
    Sizes,
    build_autoencoder,
    build_control,
    build_text_tower,
    build_unet,
)
from pseudo_targets.downloads import WeightsError

State = Mapping[str, Tensor]

UNET = "model.diffusion_model."
AUTOENCODER = "first_stage_model."
TEXT = "cond_stage_model.model."
CONTROL = "control_model."
# The file of version 1 that holds everything also holds stage 1, and a second copy of the autoencoder's encoder.
LEFT_OUT = ("model_ema.", "preprocess_model.", "cond_encoder.")
# Vectors of the noise schedule, which is computed here.
SCHEDULE = frozenset(
    {
        "betas",
        "alphas_cumprod",
        "alphas_cumprod_prev",
        "sqrt_alphas_cumprod",
        "sqrt_one_minus_alphas_cumprod",
        "log_one_minus_alphas_cumprod",
        "sqrt_recip_alphas_cumprod",
        "sqrt_recipm1_alphas_cumprod",
        "posterior_variance",
        "posterior_log_variance_clipped",
        "posterior_mean_coef1",
        "posterior_mean_coef2",
        "lvlb_weights",
        "logvar",
    }
)


class ConversionError(WeightsError):
    """A published file does not hold exactly the tensors of the network it should hold."""


@dataclass(frozen=True)
class Checkpoint:
    """The networks in one published file, each with its own prefix removed; empty when the file has none of it."""

    unet: State
    autoencoder: State
    text: State
    control: State


def split_checkpoint(state: State, what: str) -> Checkpoint:
    """Sorts the tensors of a Stable Diffusion checkpoint, or of DiffBIR's version 1 that holds everything.

    Raises:
        ConversionError: tensors that belong to no network; each is named.
    """
    parts: dict[str, dict[str, Tensor]] = {prefix: {} for prefix in (UNET, AUTOENCODER, TEXT, CONTROL)}
    unknown = []
    for name, tensor in state.items():
        prefix = next((prefix for prefix in parts if name.startswith(prefix)), None)
        if prefix is not None:
            parts[prefix][name.removeprefix(prefix)] = tensor
        elif name not in SCHEDULE and not name.startswith(LEFT_OUT):
            unknown.append(name)
    if unknown:
        raise ConversionError(f"{what}: unexpected tensors: {', '.join(sorted(unknown))}")
    return Checkpoint(parts[UNET], parts[AUTOENCODER], parts[TEXT], parts[CONTROL])


def convert_unet(state: State, sizes: Sizes, what: str = "UNet") -> dict[str, Tensor]:
    """Tensors of `build_unet(sizes)` from latent diffusion's names.

    Raises:
        ConversionError: tensors are missing, unexpected or of another shape; the same holds for all `convert_*`.
    """
    target = shapes(_on_meta(build_unet, sizes))
    return _converted(state, target, unet_sources(target, sizes), (), what)


def convert_control(state: State, sizes: Sizes, what: str = "IRControlNet") -> dict[str, Tensor]:
    """Tensors of `build_control` from the published state dict, its first convolution split in two."""
    target = shapes(_on_meta(lambda s: build_control(build_unet(s)), sizes))
    return _converted(state, target, control_sources(target, sizes), (), what)


def convert_autoencoder(state: State, sizes: Sizes, what: str = "autoencoder") -> dict[str, Tensor]:
    """Tensors of `build_autoencoder(sizes)` from latent diffusion's names."""
    target = shapes(_on_meta(build_autoencoder, sizes))
    return _converted(state, target, autoencoder_sources(target, sizes), (), what)


def convert_text_tower(state: State, sizes: Sizes, what: str = "text tower") -> dict[str, Tensor]:
    """Tensors of `build_text_tower(sizes)` from OpenCLIP's names; the last block and the projection are left out."""
    target = shapes(_on_meta(build_text_tower, sizes))
    return _converted(state, target, text_sources(target), unused_text_tensors(sizes), what)


def shapes(network: nn.Module) -> dict[str, torch.Size]:
    """Names and shapes of a network's tensors."""
    return {name: tensor.shape for name, tensor in network.state_dict().items()}


def _on_meta(build: Callable[[Sizes], nn.Module], sizes: Sizes) -> nn.Module:
    with torch.device("meta"):
        return build(sizes)


def _converted(
    state: State, target: Mapping[str, torch.Size], sources: Mapping[str, Source], unused: Iterable[str], what: str
) -> dict[str, Tensor]:
    expected = {source.name for source in sources.values()} | set(unused)
    faults = []
    for word, names in (("missing", expected - state.keys()), ("unexpected", state.keys() - expected)):
        if names:
            faults.append(f"{word} tensors: {', '.join(sorted(names))}")
    result = {}
    for name, source in sources.items():
        if source.name not in state:
            continue
        whole = state[source.name]
        tensor = _taken(source, whole)
        if tensor is None or tensor.shape != target[name]:
            faults.append(f"{source.name} {list(whole.shape)} does not give {name} its shape {list(target[name])}")
        else:
            result[name] = tensor
    if faults:
        raise ConversionError(f"{what}: {'; '.join(faults)}")
    return result


def _taken(source: Source, whole: Tensor) -> Tensor | None:
    if source.take is None:
        return whole
    try:
        return source.take(whole)
    except (IndexError, RuntimeError):  # too few dimensions to take a part of
        return None
