"""Tiny networks and faces for tests: random weights, 32 px, seconds on a CPU."""

from __future__ import annotations

import torch
from diffusers import AutoencoderKL
from torch import Tensor

from pseudo_targets.embedded import mini_schedule
from pseudo_targets.iddpm import IddpmShape, IddpmUNet
from pseudo_targets.ir_controlnet import build_ir_controlnet
from pseudo_targets.latents import AutoencoderLatents, fit_patch_latents
from pseudo_targets.pixel_prior import PixelPrior, ffhq512_schedule
from pseudo_targets.priors import LatentPrior, build_mini_unet, mini_context


def blobs(count: int, size: int = 32, seed: int = 0) -> Tensor:
    """Smooth random colour images `[count, 3, size, size]` in `[0, 1]`."""
    noise = torch.rand(count, 3, 5, 5, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.interpolate(noise, (size, size), mode="bicubic").clamp(0, 1)


def tiny_patch_prior(size: int = 32) -> LatentPrior:
    """The mini family with random weights; the control's outputs are random too, so a condition has an effect."""
    torch.manual_seed(0)
    codec = fit_patch_latents(blobs(16, size), 4, 8)
    return _prior(codec, 8, size // 4, size)


def tiny_autoencoder_prior(size: int = 32) -> LatentPrior:
    """The same path over diffusers' `AutoencoderKL`, as Stable Diffusion based priors use it."""
    return _prior(AutoencoderLatents(tiny_autoencoder().eval().requires_grad_(False)), 4, size // 2, size)


def tiny_autoencoder() -> AutoencoderKL:
    """Random weights; halves the sides."""
    torch.manual_seed(0)
    return AutoencoderKL(
        block_out_channels=(8, 16),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        layers_per_block=1,
    )


def _prior(codec: torch.nn.Module, channels: int, grid: int, size: int) -> LatentPrior:
    unet = build_mini_unet(channels, grid, (16, 32))
    control = build_ir_controlnet(unet)
    for parameter in control.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    prior = LatentPrior(codec, unet, control, mini_schedule(), size, mini_context(), "tiny", "Apache-2.0", "0" * 64)
    return prior.eval().requires_grad_(False)


def tiny_pixel_prior(size: int = 32, licence: str = "Apache-2.0") -> PixelPrior:
    """The FFHQ-512 prior's kind with two levels and random weights."""
    torch.manual_seed(0)
    unet = IddpmUNet(IddpmShape(size, 32, (1, 1), (1, 2), (size // 2,), 16))
    prior = PixelPrior(unet, ffhq512_schedule(), size, "tiny pixel", licence, "0" * 64)
    return prior.eval().requires_grad_(False)


PRIORS = {"patch": tiny_patch_prior, "autoencoder": tiny_autoencoder_prior, "pixel": tiny_pixel_prior}
