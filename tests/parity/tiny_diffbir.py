"""The fixtures' networks as a prior, through the converters of published files."""

from functools import lru_cache

import torch
from torch import Tensor

from pseudo_targets.diffbir.convert import (
    Checkpoint,
    convert_autoencoder,
    convert_control,
    convert_unet,
    split_checkpoint,
)
from pseudo_targets.diffbir.networks import Sizes, build_autoencoder, build_control, build_unet
from pseudo_targets.latents import AutoencoderLatents
from pseudo_targets.priors import LatentPrior
from tests.parity.parity_files import config, tensors, weights
from tests.parity.reference_schedules import diffbir_schedule


def tiny_sizes() -> Sizes:
    """Sizes of the fixtures."""
    return Sizes.from_config(config("diffbir"), resolution=128)


@lru_cache(maxsize=1)
def tiny_checkpoint() -> Checkpoint:
    """The fixtures' Stable Diffusion checkpoint, sorted by network."""
    return split_checkpoint(weights("diffbir_sd"), "diffbir_sd")


@lru_cache(maxsize=2)
def tiny_prior(version: str) -> LatentPrior:
    """`v1v2` (epsilon) or `v21` (velocity, zero terminal SNR); the context is the fixtures' positive prompt."""
    sizes, checkpoint = tiny_sizes(), tiny_checkpoint()
    with torch.device("meta"):
        unet, autoencoder = build_unet(sizes), build_autoencoder(sizes)
        control = build_control(unet)
    unet.load_state_dict(convert_unet(checkpoint.unet, sizes), assign=True)
    control.load_state_dict(convert_control(weights("diffbir_controlnet"), sizes), assign=True)
    autoencoder.load_state_dict(convert_autoencoder(checkpoint.autoencoder, sizes), assign=True)
    return (
        LatentPrior(
            AutoencoderLatents(autoencoder),
            unet,
            control,
            diffbir_schedule(version),
            sizes.resolution,
            tensors("diffbir_traj_inputs")["c_txt_pos"],
            name="tiny",
            licence="none",
            weights_sha256="0" * 64,
        )
        .eval()
        .requires_grad_(False)
    )


class Replay:
    """Recorded noises in the order they were drawn."""

    def __init__(self, noises: Tensor) -> None:
        self.noises = list(noises)

    def __call__(self, like: Tensor) -> Tensor:
        noise = self.noises.pop(0)
        assert noise.shape == like.shape
        return noise

    @property
    def used_up(self) -> bool:
        return not self.noises
