"""Latent spaces: the fixed linear patch transform of the mini family, and diffusers' autoencoder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from diffusers import AutoencoderKL


class PatchLatents(nn.Module):
    """Principal components of `p x p` RGB patches: orthonormal rows, so white noise stays white.

    `encode` maps `[B, 3, H, W]` in `[0, 1]` to `[B, C, H/p, W/p]`; `decode` maps back (not clamped). The transform acts
    on `2x - 1`; constraints and gradients of linear functions of the image are exact in this space.

    Args:
        basis: `[C, 3*p*p]`, orthonormal rows.
        mean: `[3*p*p]`, the mean patch.
        scaling: one factor for all channels, as Stable Diffusion's; 2 puts fine detail at mid timesteps.
    """

    basis: Tensor
    mean: Tensor

    def __init__(self, basis: Tensor, mean: Tensor, scaling: float = 2.0) -> None:
        super().__init__()
        self.register_buffer("basis", basis.float())
        self.register_buffer("mean", mean.float())
        self.scaling = scaling
        self.patch = round((basis.shape[1] / 3) ** 0.5)

    @property
    def channels(self) -> int:
        """Number of latent channels."""
        return self.basis.shape[0]

    def encode(self, image: Tensor) -> Tensor:
        """`[B, 3, H, W]` in `[0, 1]` -> `[B, C, H/p, W/p]`, float32 also under autocast."""
        patches = torch.nn.functional.pixel_unshuffle(2 * image - 1, self.patch)  # [B, 3pp, H/p, W/p]
        centred = patches - self.mean.view(1, -1, 1, 1)
        # A basis rounded to bfloat16 is not orthogonal: brightness would leak into the channels of fine detail.
        with torch.autocast(image.device.type, enabled=False):
            return torch.einsum("ck,bkhw->bchw", self.basis, centred.float()) * self.scaling

    def decode(self, latent: Tensor) -> Tensor:
        """`[B, C, h, w]` -> `[B, 3, h*p, w*p]`, about `[0, 1]`, float32 also under autocast."""
        with torch.autocast(latent.device.type, enabled=False):
            patches = torch.einsum("ck,bchw->bkhw", self.basis, latent.float() / self.scaling)
        patches = patches + self.mean.view(1, -1, 1, 1)
        return (torch.nn.functional.pixel_shuffle(patches, self.patch) + 1) / 2


def fit_patch_latents(images: Tensor, patch: int, channels: int) -> PatchLatents:
    """Principal components of the patches of `images` `[B, 3, H, W]` in `[0, 1]`, in float64.

    Raises:
        ValueError: more channels than a patch has values.
    """
    if channels > 3 * patch * patch:
        most = 3 * patch * patch
        raise ValueError(f"latent channels {channels}: a {patch}x{patch} RGB patch has {most} values at most")
    patches = torch.nn.functional.pixel_unshuffle(2 * images.double() - 1, patch)
    flat = patches.permute(0, 2, 3, 1).reshape(-1, 3 * patch * patch)
    mean = flat.mean(0)
    covariance = (flat - mean).T @ (flat - mean) / len(flat)
    vectors = torch.linalg.eigh(covariance).eigenvectors.flip(1)[:, :channels].T  # largest variance first
    signs = torch.where(vectors.sum(1, keepdim=True) < 0, -1.0, 1.0)
    return PatchLatents(vectors * signs, mean)


class AutoencoderLatents(nn.Module):
    """diffusers' `AutoencoderKL` behind the same two calls: posterior mean times the scaling factor (DiffBIR)."""

    autoencoder: AutoencoderKL

    def __init__(self, autoencoder: AutoencoderKL) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.scaling = float(autoencoder.config.scaling_factor)
        self.patch = 2 ** (len(autoencoder.config.block_out_channels) - 1)
        self.channels = int(autoencoder.config.latent_channels)

    def encode(self, image: Tensor) -> Tensor:
        """`[B, 3, H, W]` in `[0, 1]` -> `[B, C, H/p, W/p]`."""
        return self.autoencoder.encode(2 * image - 1).latent_dist.mode() * self.scaling

    def decode(self, latent: Tensor) -> Tensor:
        """`[B, C, h, w]` -> `[B, 3, h*p, w*p]`, about `[0, 1]`."""
        return (self.autoencoder.decode(latent / self.scaling).sample + 1) / 2
