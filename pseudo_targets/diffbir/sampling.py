"""DiffBIR's second stage as published: classifier-free guidance, start point, noise augmentation, solvers.

The loop of this project is `pseudo_targets.sampling.refine`, which takes any prior; this one gives what DiffBIR gives.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from pseudo_targets.consistency import Consistency, Reference
from pseudo_targets.diffbir import solvers
from pseudo_targets.diffbir.denoiser import Corrected, Denoiser
from pseudo_targets.diffbir.solvers import Noise, Output
from pseudo_targets.diffbir.tiles import TiledDenoiser
from pseudo_targets.priors import Condition, LatentPrior
from pseudo_targets.resize import pad_to_multiple
from pseudo_targets.schedule import NoiseSchedule

Solver = Literal["spaced", "ddim", "dpm++_2m", "edm_euler", "edm_heun", "edm_dpm++_2m", "edm_dpm++_3m_sde"]
Start = Literal["noise", "condition"]


class SettingsError(ValueError):
    """Sampling settings that do not fit; the message says what was got and what is expected."""


@dataclass(frozen=True)
class Settings:
    """How an image is sampled; the defaults are version 1's.

    Attributes:
        solver: `spaced` is ancestral sampling on an evenly respaced chain; `edm_*` are solvers in Karras' form, of use
            with networks that predict velocity.
        steps: network evaluations along the way; guidance doubles them, `edm_heun` nearly so again.
        guidance: scale s of classifier-free guidance, output = u + s (c - u); 1 needs no second evaluation.
        rescale: let the scale rise late, from 1 to 1 + s (`rescale_cfg`).
        strength: factor on IRControlNet's residuals.
        start: pure noise, or the condition noised to the last timestep.
        augmentation: timestep to which the condition is noised; 0 leaves it clean, higher frees the result from it.
        tile: side in latents of tiles that overlap by half; 0 sees the latent whole.

    Raises:
        SettingsError: a value is out of range.
    """

    solver: Solver = "spaced"
    steps: int = 50
    guidance: float = 1.0
    rescale: bool = False
    strength: float = 1.0
    start: Start = "noise"
    augmentation: int = 0
    tile: int = 0

    def __post_init__(self) -> None:
        if self.solver not in get_args(Solver) or self.start not in get_args(Start):
            raise SettingsError(
                f"got solver {self.solver!r}, start {self.start!r}, expected one of {', '.join(get_args(Solver))} "
                f"and one of {', '.join(get_args(Start))}"
            )
        if self.steps < 1 or self.augmentation < 0 or self.strength < 0:
            raise SettingsError(
                f"got steps {self.steps}, augmentation {self.augmentation}, strength {self.strength}, "
                "expected at least 1, 0 and 0"
            )
        if self.tile < 0 or self.tile % 2:
            raise SettingsError(f"got tile {self.tile}, expected an even number of latents, or 0")


_SOLVERS: dict[str, Callable[[Output, NoiseSchedule, Tensor, int, Noise], Tensor]] = {
    "spaced": solvers.spaced,
    "ddim": solvers.ddim,
    "dpm++_2m": solvers.dpmpp_2m,
    "edm_euler": solvers.edm_euler,
    "edm_heun": solvers.edm_heun,
    "edm_dpm++_2m": solvers.edm_dpmpp_2m,
    "edm_dpm++_3m_sde": solvers.edm_dpmpp_3m_sde,
}


@torch.no_grad()
def restore(
    prior: LatentPrior,
    clean: Tensor,
    settings: Settings,
    noise: Noise,
    multiple: int = 64,
    positive: Tensor | None = None,
    negative: Tensor | None = None,
    consistency: Sequence[Consistency] = (),
) -> Tensor:
    """Regenerates the detail of cleaned images, before the colour fix (Lin et al. 2024, section 3.3).

    Args:
        clean: `[B, 3, H, W]` in `[0, 1]`, the output of stage 1; padded with black below and on the right.
        noise: gives unit normal noise shaped like its argument; called for the start, for the augmentation where there
            is one, and then at each step that adds noise.
        multiple: what the sides of the padded image are multiples of: `image_multiple`, or `image_patch` with tiles.
        positive: context `[1 or B, tokens, width]`; None is the prior's empty prompt.
        negative: context to lead away from; None turns guidance over the text off.
        consistency: corrections of the predicted clean latent, such as restoration guidance.

    Returns:
        `[B, 3, H, W]`, about `[0, 1]`, not clamped.
    """
    schedule, last = prior.schedule, len(prior.schedule) - 1
    image = pad_to_multiple(clean, multiple)
    latent = prior.encode(image)
    reference = Reference(latent, image)
    x = noise(latent)
    if settings.start == "condition":
        x = schedule.q_sample(latent, last, x)
    if settings.augmentation:
        latent = schedule.q_sample(latent, settings.augmentation, noise(latent))
    denoiser = Denoiser(
        prior,
        Condition(latent, settings.strength),
        prior.context if positive is None else positive,
        negative,
        settings.guidance,
        settings.rescale,
    )
    output = TiledDenoiser(denoiser, settings.tile, settings.tile // 2).output if settings.tile else denoiser.output
    corrected = Corrected(output, schedule, consistency, reference)
    x = _SOLVERS[settings.solver](corrected, schedule, x, settings.steps, noise)
    return prior.decode(x)[..., : clean.shape[-2], : clean.shape[-1]]


def multiple_for(prior: LatentPrior, height: int, width: int, tile: int = 0) -> int:
    """What the sides of an image are padded to: the autoencoder's patch where tiles fit, else what the UNet halves."""
    patch = int(prior.codec.patch)  # type: ignore[attr-defined]
    if tile and min(height, width) >= tile * patch:
        return patch
    return patch * 2 ** (len(prior.unet.config.block_out_channels) - 1)
