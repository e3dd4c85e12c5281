"""Latent spaces: the fixed linear patch transform of the mini family, and diffusers' autoencoder."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pseudo_targets.shared_norms import measure, shared
from pseudo_targets.tiling import blended, windows

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
    """diffusers' `AutoencoderKL` behind the same two calls: posterior mean times the scaling factor (DiffBIR).

    It sees a batch one image at a time, as its activations are what needs memory. A gradient through it keeps those of
    one block at a time; the others are computed again.
    """

    autoencoder: AutoencoderKL

    def __init__(self, autoencoder: AutoencoderKL) -> None:
        super().__init__()
        self.autoencoder = autoencoder
        self.scaling = float(autoencoder.config.scaling_factor)
        self.patch = 2 ** (len(autoencoder.config.block_out_channels) - 1)
        self.channels = int(autoencoder.config.latent_channels)
        autoencoder.enable_slicing()
        autoencoder.enable_gradient_checkpointing()

    def encode(self, image: Tensor) -> Tensor:
        """`[B, 3, H, W]` in `[0, 1]` -> `[B, C, H/p, W/p]`."""
        return self.autoencoder.encode(2 * image - 1).latent_dist.mode() * self.scaling

    def decode(self, latent: Tensor) -> Tensor:
        """`[B, C, h, w]` -> `[B, 3, h*p, w*p]`, about `[0, 1]`."""
        return (self.autoencoder.decode(latent / self.scaling).sample + 1) / 2


@dataclass(frozen=True)
class CodecTiles:
    """Sides of the square tiles an autoencoder sees, in pixels; 0 sees the image whole. They overlap by half."""

    encode: int = 0
    decode: int = 0


class TiledLatents(nn.Module):
    """An autoencoder that sees an image tile by tile, for images whose activations do not fit.

    Convolutions agree with those of the whole image but where tiles end, and there a neighbour outweighs them. Norms
    share what all tiles measure, so that tiles agree in tone. The attention in the middle sees one tile. A gradient
    through `decode` keeps the activations of one tile at a time, and takes the shared statistics as given.

    Args:
        codec: the autoencoder; its `patch` is the number of pixels along a latent's side.
        tiles: multiples of twice the codec's patch.
    """

    def __init__(self, codec: AutoencoderLatents, tiles: CodecTiles) -> None:
        super().__init__()
        self.codec, self.tiles = codec, tiles
        self.patch, self.channels = codec.patch, codec.channels
        if tiles.decode:
            codec.autoencoder.disable_gradient_checkpointing()  # a tile is computed again whole, not by blocks

    def encode(self, image: Tensor) -> Tensor:
        """`[B, 3, H, W]` in `[0, 1]` -> `[B, C, H/p, W/p]`."""
        tile = self.tiles.encode
        if not tile or min(image.shape[-2:]) < tile:
            return self.codec.encode(image)
        parts = []
        for one in image.split(1):  # norms share within an image, not across a batch
            encode = self._sharing(self.codec.encode, one, tile)
            parts.append(blended(encode, one, tile, tile // 2, down=self.patch))
        return torch.cat(parts)

    def decode(self, latent: Tensor) -> Tensor:
        """`[B, C, h, w]` -> `[B, 3, h*p, w*p]`, about `[0, 1]`."""
        tile = self.tiles.decode // self.patch
        if not tile or min(latent.shape[-2:]) < tile:
            return self.codec.decode(latent)
        parts = []
        for one in latent.split(1):
            decode = self._sharing(self.codec.decode, one, tile)
            if torch.is_grad_enabled() and latent.requires_grad:
                decode = partial(checkpoint, decode, use_reentrant=False)
            parts.append(blended(decode, one, tile, tile // 2, up=self.patch))
        return torch.cat(parts)

    def _sharing(self, function: Callable[[Tensor], Tensor], whole: Tensor, tile: int) -> Callable[[Tensor], Tensor]:
        """`function` of a tile with norms that know the other tiles of `whole`."""
        height, width = whole.shape[-2:]
        parts = [whole.detach()[..., a:b, c:d] for a, b, c, d in windows(height, width, tile, tile)]
        moments = measure(self.codec, lambda: [function(part) for part in parts])

        def sharing(part: Tensor) -> Tensor:
            with shared(moments):
                return function(part)

        return sharing
