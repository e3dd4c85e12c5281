"""The clean bank: faces drawn by the prior, which the learned camera then photographs."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from pseudo_targets.consistency import Reference
from pseudo_targets.priors import Prior
from pseudo_targets.sampling import Trajectory, denoise_with_consistency


@torch.no_grad()
def vary(prior: Prior, faces: Tensor, trajectory: Trajectory, generators: list[Generator]) -> Tensor:
    """New clean faces of the same tones, poses and framing as `faces` `[B, 3, S, S]`.

    Each face is noised to `trajectory.start_timestep` and denoised freely, so its layout survives and all detail is the
    prior's own.
    """
    latent = prior.encode(faces)
    noise = torch.stack([torch.randn(latent.shape[1:], generator=generator) for generator in generators]).to(latent)
    x = prior.schedule.q_sample(latent, trajectory.start_timestep, noise)
    x = denoise_with_consistency(prior, x, trajectory, None, (), Reference(latent, faces), generators)
    return prior.decode(x).clamp(0, 1)


def color_of(images: Tensor) -> Tensor:
    """Colour of each image `[N, 3, H, W]`, `[N]`: standard deviation of what its brightness does not explain.

    A toned print has colour, but one for each brightness: a cubic of it explains the two channel differences. Colour
    noise is no colour either: what counts is the covariance of neighbours, of the means of 4 px blocks.
    """
    low = F.avg_pool2d(images.float(), 4, ceil_mode=True)
    brightness, difference = low.mean(1).flatten(1), (low[:, ::2] - low[:, 1:2]).flatten(2).mT
    terms = torch.stack([brightness**power for power in range(4)], -1)
    normal = terms.mT @ terms + 1e-6 * torch.eye(4, device=terms.device)
    left = (difference - terms @ torch.linalg.solve(normal, terms.mT @ difference)).unflatten(1, low.shape[2:])
    beside = (left[:, :, 1:] * left[:, :, :-1]).sum(-1).mean((1, 2))
    below = (left[:, 1:] * left[:, :-1]).sum(-1).mean((1, 2))
    return ((beside + below) / 2).clamp(min=0).sqrt()


def has_color(images: Tensor, threshold: float = 0.015) -> Tensor:
    """Which of `[N, 3, H, W]` show colour, `[N]`; prints in one tint do not."""
    return color_of(images) > threshold
