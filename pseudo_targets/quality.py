"""How good is an image without its original? Linear read-outs of the features of degradation removal.

The encoder of degradation removal has to tell degradations from faces. For the gate, a ridge regression on the strength
of its activations predicts the PSNR that an image would have against its clean original; it is fitted on degraded
images, their restorations and mixtures of both with the original, whose PSNR is known. For the judge, the distance of
the same statistics from those of clean faces counts.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Generator, Tensor, nn

from pseudo_targets.removal import DegradationRemoval

Degrade = Callable[[Tensor, Generator], Tensor]
RANGE = (15.0, 45.0)  # dB; beyond, differences cannot be seen


class QualityPredictor(nn.Module):
    """Image `[B, 3, H, W]` in `[0, 1]` -> predicted PSNR in dB, `[B]`."""

    mean: Tensor
    scale: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, removal: DegradationRemoval, mean: Tensor, scale: Tensor, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.removal = removal
        for name, value in (("mean", mean), ("scale", scale), ("weight", weight), ("bias", bias)):
            self.register_buffer(name, value.float())

    @torch.no_grad()
    def forward(self, image: Tensor) -> Tensor:
        return ((statistics(self.removal, image) - self.mean) / self.scale) @ self.weight + self.bias


@torch.no_grad()
def statistics(removal: DegradationRemoval, image: Tensor) -> Tensor:
    """What the read-out sees of each image, `[B, D]`, all as logarithms of standard deviations.

    Every encoder channel; every latent channel, which is a frequency band; and what removal would change in it.
    """
    latent = removal.codec.encode(image)
    change = removal.clean_latent(latent) - latent
    bands = torch.cat([_log_deviation(latent), _log_deviation(change)], 1)
    encoder = torch.cat([_log_deviation(activation) for activation in removal.features(image)], 1)
    return torch.cat([encoder, bands, bands**2], 1)


def _log_deviation(activation: Tensor) -> Tensor:
    return (activation.std((2, 3)) + 1e-3).log()


def fit_quality(removal: DegradationRemoval, images: Tensor, decibels: Tensor, ridge: float = 10.0) -> QualityPredictor:
    """Fits the read-out in closed form.

    Args:
        images: `[N, 3, S, S]` of known quality.
        decibels: their PSNR `[N]`, clamped to `RANGE`.
    """
    rows = torch.cat([statistics(removal, part) for part in images.split(16)]).double()
    mean, scale = rows.mean(0), rows.std(0) + 1e-6
    unit, wanted = (rows - mean) / scale, decibels.clamp(*RANGE).double()
    normal = unit.T @ unit + ridge * torch.eye(unit.shape[1], dtype=torch.float64)
    weight = torch.linalg.solve(normal, unit.T @ (wanted - wanted.mean()))
    return QualityPredictor(removal, mean, scale, weight, wanted.mean())


@torch.no_grad()
def graded_images(
    clean: Tensor, degrade: Degrade, restore: Callable[[Tensor], Tensor], generator: Generator
) -> tuple[Tensor, Tensor]:
    """Images of known quality made from clean ones `[N, 3, S, S]`, with their PSNR: `([6N, 3, S, S], [6N])`."""
    lq = torch.cat([degrade(image[None], generator) for image in clean])
    restored = torch.cat([restore(part).clamp(0, 1) for part in lq.split(16)])
    share = torch.rand(len(clean), 1, 1, 1, generator=generator)
    smooth = torch.nn.functional.avg_pool2d(torch.nn.functional.pad(clean, (1,) * 4, mode="reflect"), 3, 1)
    kinds = (
        lq,
        restored,
        share * restored + (1 - share) * clean,
        share * lq + (1 - share) * restored,
        0.9 * clean + 0.1 * lq,
        share * smooth + (1 - share) * clean,
    )
    images = torch.cat(kinds)
    error = (images - clean.repeat(len(kinds), 1, 1, 1)).square().mean((1, 2, 3)).clamp(min=1e-6)
    return images, -10 * error.log10()


def fit_cleanness(removal: DegradationRemoval, clean: Tensor) -> Callable[[Tensor], Tensor]:
    """How near an image comes to clean faces: minus the mean distance of its statistics from theirs.

    In standard deviations of the clean faces' `[M, 3, S, S]`, so their own scores are about -0.8. Two restorations of
    one photo share their content, so the difference of their scores is about what is left of the camera.

    Returns:
        A function from images `[B, 3, S, S]` to scores `[B]`.
    """
    rows = torch.cat([statistics(removal, part) for part in clean.split(16)])
    mean, scale = rows.mean(0), rows.std(0) + 1e-3
    return lambda image: -((statistics(removal, image) - mean) / scale).abs().mean(1)
