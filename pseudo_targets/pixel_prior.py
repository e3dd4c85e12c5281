"""Priors that denoise pixels: the improved-DDPM UNet behind the members of `Prior`."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn

from pseudo_targets.checkpoints import load_strictly, read_checkpoint
from pseudo_targets.downloads import FFHQ512, weights_path
from pseudo_targets.iddpm import IddpmShape, IddpmUNet
from pseudo_targets.priors import Condition
from pseudo_targets.schedule import NoiseSchedule, linear_betas


class PixelPrior(nn.Module):
    """An unconditional denoiser of images in `[-1, 1]` that also predicts the variance of its steps.

    Args:
        unet: `x_t` `[B, 3, H, W]`, timestep `[B]` -> `[B, 6, H, W]`, as `IddpmUNet`.
        schedule: noise levels and the meaning of the first three channels.
        resolution: side in pixels the prior was trained at.
    """

    aligned_faces = True
    control = None
    """No IRControlNet: every condition is refused."""

    def __init__(
        self, unet: nn.Module, schedule: NoiseSchedule, resolution: int, name: str, licence: str, weights_sha256: str
    ) -> None:
        super().__init__()
        self.unet, self.schedule, self.resolution = unet, schedule, resolution
        self.name, self.licence, self.weights_sha256 = name, licence, weights_sha256

    def encode(self, image: Tensor) -> Tensor:
        """`[B, 3, H, W]` in `[0, 1]` -> the same picture in `[-1, 1]`."""
        return 2 * image - 1

    def decode(self, latent: Tensor) -> Tensor:
        """The inverse of `encode`."""
        return (latent + 1) / 2

    def denoise(self, x_t: Tensor, timestep: Tensor, condition: Condition | None) -> Tensor:
        """Estimates x0 from `x_t` `[B, 3, H, W]` at `timestep` `[B]`, clipped to `[-1, 1]`.

        Raises:
            ValueError: a condition was given.
        """
        return self.denoise_with_variance(x_t, timestep, condition)[0]

    def denoise_with_variance(
        self, x_t: Tensor, timestep: Tensor, condition: Condition | None
    ) -> tuple[Tensor, Tensor]:
        """x0 as `denoise`, and where the log variance of the step lies between its bounds, `[B, 3, H, W]`.

        The second value is about `[-1, 1]`; `Chain.learned_log_variance` reads it (Nichol and Dhariwal 2021, eq. 15).

        Raises:
            ValueError: a condition was given.
        """
        if condition is not None:
            raise ValueError(
                f"prior {self.name!r} has no IRControlNet: it takes no condition; set generation.control_strength to 0"
            )
        output, place = self.unet(x_t, timestep).float().chunk(2, dim=1)
        return self.schedule.to_x0(output, x_t, timestep).clamp(-1, 1), place


def ffhq512_schedule() -> NoiseSchedule:
    """1000 linear betas, noise prediction (Ho et al. 2020)."""
    return NoiseSchedule.from_betas(linear_betas(), "epsilon")


def load_ffhq512(path: Path | None = None) -> PixelPrior:
    """The FFHQ-512 pixel prior of DifFace and DT-BFR, frozen, from `path` or from where `adapt weights` keeps it.

    Raises:
        CheckpointError: the file is damaged or another network's.
        WeightsMissingError: it is not on this machine; the message says how to get it.
    """
    path = path or weights_path(FFHQ512)
    with torch.device("meta"):
        unet = IddpmUNet(IddpmShape())
    load_strictly(unet, read_checkpoint(path), path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return PixelPrior(unet, ffhq512_schedule(), 512, "ffhq512", FFHQ512.licence, digest).eval().requires_grad_(False)
