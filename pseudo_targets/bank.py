"""The clean bank: faces drawn by the prior, which the learned camera then photographs."""

from __future__ import annotations

import torch
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


def is_gray(images: Tensor, threshold: float = 0.02) -> bool:
    """Whether a set of images `[B, 3, H, W]` holds no colour: the median chroma is below `threshold`.

    Chroma is the largest channel difference of a pixel after its image's mean cast was removed.
    """
    balanced = images - images.mean((2, 3), keepdim=True)
    chroma = (balanced.amax(1) - balanced.amin(1)).mean((1, 2))
    return float(chroma.median()) < threshold
