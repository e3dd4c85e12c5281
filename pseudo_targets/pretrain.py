"""Training signals of the mini family: degradation removal, prior, IRControlNet."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from pseudo_targets.priors import Codec, Condition, denoiser_output
from pseudo_targets.removal import DegradationRemoval
from pseudo_targets.schedule import NoiseSchedule

Degrade = Callable[[Tensor, Generator], Tensor]
Cleaner = Callable[[Tensor], Tensor]
LOWEST_START = 50  # refining from below would change nothing worth having


def removal_losses(
    module: DegradationRemoval, clean: Tensor, degrade: Degrade, codec: Codec, generator: Generator
) -> dict[str, Tensor]:
    """Mean squared error of the cleaned latent, which for an orthonormal transform is that of the image."""
    with torch.no_grad(), torch.autocast(clean.device.type, enabled=False):
        target, latent = codec.encode(clean), codec.encode(degrade(clean, generator))
    return {"mse": ((module.clean_latent(latent) - target) ** 2).mean()}


def prior_losses(
    module: nn.Module, latent: Tensor, schedule: NoiseSchedule, context: Tensor, variance: Tensor, generator: Generator
) -> dict[str, Tensor]:
    """Error of the unconditional denoiser at uniformly drawn timesteps; see `denoising_error`."""
    timestep = torch.randint(len(schedule), (len(latent),), generator=generator)
    return {"v": denoising_error(module, None, latent, None, timestep, schedule, context, variance, generator)}


def control_losses(
    control: nn.Module,
    unet: nn.Module,
    latent: Tensor,
    condition: Tensor,
    schedule: NoiseSchedule,
    context: Tensor,
    variance: Tensor,
    generator: Generator,
) -> dict[str, Tensor]:
    """Error of the frozen denoiser steered by the control being trained (DiffBIR, equation 4).

    Three quarters of the timesteps lie in the lower two fifths, where refining starts; the others keep the way from
    pure noise open. Half of the samples are the noisy condition in place of the noisy clean latent, as in the first
    call of a refinement: trained on noisy clean latents alone, the network would take the condition's lack of detail,
    seen through little noise, for a fact.
    """
    count, steps = len(latent), len(schedule)
    low = torch.rand(count, generator=generator) < 0.75
    timestep = torch.randint(steps, (count,), generator=generator)
    timestep = torch.where(low, timestep * 2 // 5, timestep)
    first = (torch.rand(count, generator=generator) < 0.5) & (timestep >= LOWEST_START)
    drift = torch.where(first.view(-1, 1, 1, 1).to(latent.device), condition - latent, 0)
    args = (timestep, schedule, context, variance, generator, drift)
    return {"v": denoising_error(unet, control, latent, Condition(condition), *args)}


def denoising_error(
    unet: nn.Module,
    control: nn.Module | None,
    latent: Tensor,
    condition: Condition | None,
    timestep: Tensor,
    schedule: NoiseSchedule,
    context: Tensor,
    variance: Tensor,
    generator: Generator,
    drift: Tensor | None = None,
) -> Tensor:
    """Squared error of the network output, each channel divided by what its target varies by.

    `variance` `[C]` is the variance of the latent's channels. Without the division the mean brightness, whose channel
    varies a thousand times more than fine detail, would take the whole loss at high noise. The error's averages over
    wide regions count once more: the overall tone is a thousandth of the plain error, so it would be learned last, and
    draws of a network that shrinks it towards the mean all have the same skin. The conditional mean, which is what the
    network learns, is the same for any positive weight.

    `drift` `[B, C, h, w]` is what the sample's signal is wrong by: x_t is then latent + drift with noise, and counts as
    the latent with other noise. At low noise that other noise is large; those samples count less.
    """
    noise = torch.randn(latent.shape, generator=generator).to(latent)
    abar = schedule.level(timestep).view(-1, 1, 1, 1).to(latent)
    weight = 1 / (abar + (1 - abar) * variance.clamp(min=1).view(1, -1, 1, 1))
    if drift is not None:
        noise = noise + (abar / (1 - abar)).sqrt() * drift
        drifted = drift.abs().amax((1, 2, 3), keepdim=True) > 0
        weight = torch.where(drifted, weight * (4 * (1 - abar)).clamp(max=1), weight)
    x_t = schedule.q_sample(latent, timestep, noise)
    output = denoiser_output(unet, control, x_t, timestep, context.expand(len(latent), -1, -1), condition)
    error = weight.sqrt() * (output.float() - schedule.target(latent, noise, timestep))
    regions = (error.shape[-1] // 4, error.shape[-1])
    return (error**2).mean() + sum(side * (F.avg_pool2d(error, side) ** 2).mean() for side in regions)


@torch.no_grad()
def clean_condition(
    clean: Tensor, degrade: Degrade, cleaners: Sequence[Cleaner], codec: Codec, generator: Generator
) -> Tensor:
    """The control's condition: the latent of a degraded image cleaned by one of several cleaners, drawn by batch.

    Several cleaners make the control tolerate the restorer that adaptation changes round by round.
    """
    choice = int(torch.randint(len(cleaners), (1,), generator=generator))
    with torch.autocast(clean.device.type, enabled=False):
        lq = degrade(clean, generator)
    return codec.encode(cleaners[choice](lq).float().clamp(0, 1))


@torch.no_grad()
def error_by_timestep(
    unet: nn.Module,
    latent: Tensor,
    schedule: NoiseSchedule,
    context: Tensor,
    variance: Tensor,
    timesteps: Sequence[int],
) -> dict[str, float]:
    """The weighted error of the prior at each timestep on validation latents, with fixed noise."""
    noise = torch.randn(latent.shape, generator=Generator().manual_seed(0)).to(latent)
    result = {}
    for t in timesteps:
        timestep = torch.full((len(latent),), t)
        x_t = schedule.q_sample(latent, timestep, noise)
        output = denoiser_output(unet, None, x_t, timestep, context.expand(len(latent), -1, -1), None)
        abar = schedule.level(t).to(latent)
        weight = 1 / (abar + (1 - abar) * variance.clamp(min=1).view(1, -1, 1, 1))
        result[f"v_{t}"] = float((weight * (output - schedule.target(latent, noise, timestep)) ** 2).mean())
    return result


__all__ = [
    "Cleaner",
    "DegradationRemoval",
    "Degrade",
    "clean_condition",
    "control_losses",
    "denoising_error",
    "error_by_timestep",
    "prior_losses",
    "removal_losses",
]
