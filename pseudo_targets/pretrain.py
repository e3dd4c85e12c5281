"""Training signals of the mini family: degradation removal, prior, IRControlNet."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from pseudo_targets.ir_controlnet import Steered
from pseudo_targets.priors import Codec, Condition, Fusion, denoiser_output
from pseudo_targets.removal import DegradationRemoval
from pseudo_targets.schedule import NoiseSchedule

Degrade = Callable[[Tensor, Generator], Tensor]
Cleaner = Callable[[Tensor], Tensor]


def removal_losses(
    module: DegradationRemoval, clean: Tensor, degrade: Degrade, codec: Codec, generator: Generator
) -> dict[str, Tensor]:
    """Mean squared error of the cleaned latent, which for an orthonormal transform is that of the image."""
    with torch.no_grad(), torch.autocast(clean.device.type, enabled=False):
        target, latent = codec.encode(clean), codec.encode(degrade(clean, generator))
    return {"mse": ((module.clean_latent(latent) - target) ** 2).mean()}


def prior_losses(
    module: nn.Module,
    latent: Tensor,
    schedule: NoiseSchedule,
    context: Tensor,
    variance: Tensor,
    generator: Generator,
    tone_weight: float,
) -> dict[str, Tensor]:
    """Error of the unconditional denoiser at uniformly drawn timesteps, and that of its overall tone.

    The tone is a thousandth of the plain error, so it would be learned last, and draws of a network that shrinks it
    towards the mean all have the same skin. The conditional mean, which is what the network learns, is the same for any
    weight of at least 0.
    """
    timestep = torch.randint(len(schedule), (len(latent),), generator=generator, device=generator.device)
    error = denoising_error(module, latent, timestep, schedule, context, variance, generator)
    return {"v": (error**2).mean(), "tone": tone_weight * tone_loss(error)}


def tone_loss(error: Tensor) -> Tensor:
    """Mean square of an error's averages over wide regions of `[B, C, h, w]`, a quarter of the side and the whole."""
    regions = (error.shape[-1] // 4, error.shape[-1])
    return torch.stack([side * (F.avg_pool2d(error, side) ** 2).mean() for side in regions]).sum()


def control_losses(
    steered: Steered,
    latent: Tensor,
    condition: Tensor,
    schedule: NoiseSchedule,
    context: Tensor,
    fusion: Fusion,
    generator: Generator,
) -> dict[str, Tensor]:
    """Error of what the steered denoiser makes of fused samples, in x0.

    Each channel is divided by what fusion leaves open. A third of the timesteps is drawn from the lower two fifths:
    above, x_t says next to nothing beside the reference, and the conditional mean is all there is to learn.
    """
    count, steps, place = len(latent), len(schedule), generator.device
    low = torch.rand(count, generator=generator, device=place) < 1 / 3
    timestep = torch.randint(steps, (count,), generator=generator, device=place)
    timestep = torch.where(low, timestep * 2 // 5, timestep)
    noise = torch.randn(latent.shape, generator=generator, device=place).to(latent)
    x_t = schedule.q_sample(latent, timestep, noise)
    x_t, timestep, left = fusion(x_t, timestep, condition, schedule)
    prompt = context.expand(count, -1, -1)
    output = denoiser_output(steered.unet, steered.control, x_t, timestep, prompt, Condition(condition))
    error = schedule.to_x0(output.float(), x_t, timestep) - latent
    return {"x0": (error**2 / left).mean()}


def denoising_error(
    unet: nn.Module,
    latent: Tensor,
    timestep: Tensor,
    schedule: NoiseSchedule,
    context: Tensor,
    variance: Tensor,
    generator: Generator,
) -> Tensor:
    """Error of the network output `[B, C, h, w]`, each channel divided by the deviation of its target.

    `variance` `[C]` is the variance of the latent's channels. Without the division the mean brightness, whose channel
    varies a thousand times more than fine detail, would take the whole loss at high noise.
    """
    noise = torch.randn(latent.shape, generator=generator, device=generator.device).to(latent)
    abar = schedule.level(timestep).view(-1, 1, 1, 1).to(latent)
    weight = 1 / (abar + (1 - abar) * variance.clamp(min=1).view(1, -1, 1, 1))
    x_t = schedule.q_sample(latent, timestep, noise)
    output = denoiser_output(unet, None, x_t, timestep, context.expand(len(latent), -1, -1), None)
    return weight.sqrt() * (output.float() - schedule.target(latent, noise, timestep))


@torch.no_grad()
def clean_condition(
    clean: Tensor, degrade: Degrade, cleaners: Sequence[Cleaner], codec: Codec, generator: Generator
) -> Tensor:
    """The control's condition: the latent of a degraded image cleaned by one of several cleaners, drawn by batch.

    Several cleaners make the control tolerate the restorer that adaptation changes round by round. A tenth of the
    images is cleaned halfway only, as photos of a camera are that the restorer does not know yet.
    """
    place = generator.device
    choice = int(torch.randint(len(cleaners), (1,), generator=generator, device=place))
    with torch.autocast(clean.device.type, enabled=False):
        lq = degrade(clean, generator)
    cleaned = cleaners[choice](lq).float()
    kept = 0.5 * torch.rand(len(clean), generator=generator, device=place)
    halfway = torch.rand(len(clean), generator=generator, device=place) < 0.1
    kept = torch.where(halfway, kept, 0).view(-1, 1, 1, 1).to(clean)
    return codec.encode((cleaned + kept * (lq - cleaned)).clamp(0, 1))


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
    result = {}
    for t in timesteps:
        timestep, generator = torch.full((len(latent),), t), Generator().manual_seed(0)
        error = denoising_error(unet, latent, timestep, schedule, context, variance, generator)
        result[f"v_{t}"] = float((error**2).mean())
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
    "tone_loss",
]
