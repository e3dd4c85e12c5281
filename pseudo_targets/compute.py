"""How the networks of a latent prior are computed: precision, memory order, compilation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from pseudo_targets.latents import AutoencoderLatents, TiledLatents
from pseudo_targets.priors import LatentPrior


@dataclass(frozen=True)
class Compute:
    """The defaults change nothing.

    Attributes:
        denoiser: type of UNet and IRControlNet. Samples, noise levels and steps stay in float32.
        decoder: type of an autoencoder's decoder. Its last norm and convolution stay in float32, so that pixels are
            not rounded, and so does the encoder, whose output conditions everything.
        channels_last: keep images and weights with the channels innermost.
        compiled: compile the denoiser with torch.compile at its first call.
    """

    denoiser: torch.dtype = torch.float32
    decoder: torch.dtype = torch.float32
    channels_last: bool = False
    compiled: bool = False


def prepare(prior: LatentPrior, compute: Compute) -> LatentPrior:
    """Sets the networks of `prior` up in place, and returns it."""
    for network in denoisers(prior):
        nn.Module.to(network, compute.denoiser)  # diffusers' own warns that nothing is kept in float32
    autoencoder = autoencoder_of(prior)
    if autoencoder is not None and compute.decoder != torch.float32:
        _lower_decoder(autoencoder.decoder, compute.decoder)
    if compute.channels_last:
        for network in (*denoisers(prior), *([] if autoencoder is None else [autoencoder])):
            network.to(memory_format=torch.channels_last)
    if compute.compiled:
        for network in denoisers(prior):
            network.compile()
    return prior


def denoisers(prior: LatentPrior) -> list[nn.Module]:
    """UNet, IRControlNet and the steered UNet, as far as the prior has them."""
    return [network for network in (prior.unet, prior.control, prior.steered) if network is not None]


def autoencoder_of(prior: LatentPrior) -> Any:
    """diffusers' autoencoder of a prior, tiled or not; None for a latent space without one."""
    codec = prior.codec.codec if isinstance(prior.codec, TiledLatents) else prior.codec
    return codec.autoencoder if isinstance(codec, AutoencoderLatents) else None


def _lower_decoder(decoder: Any, dtype: torch.dtype) -> None:
    decoder.to(dtype)
    decoder.register_forward_pre_hook(lambda _, inputs: (inputs[0].to(dtype), *inputs[1:]))
    decoder.conv_norm_out.float().register_forward_pre_hook(_in_float32)
    decoder.conv_out.float()


def _in_float32(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(tensor.float() for tensor in inputs)
