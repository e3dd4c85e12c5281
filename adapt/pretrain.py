"""`adapt pretrain`: trains the mini family on a folder of clean aligned images, resumable, on any domain."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from adapt.dataset import ImageBank
from adapt.seeds import generator_of
from adapt.training import ComputeLosses, TrainingPlan, make_accelerator, train
from adapt.workspace import write_json, write_tensors

Validate = Callable[[nn.Module], dict[str, float]]


@dataclass(frozen=True)
class Pretraining:
    """One network's pretraining: what is trained, on what signal, how it is judged."""

    name: str
    module: nn.Module
    losses: ComputeLosses
    validate: Validate
    plan: TrainingPlan
    metadata: dict[str, str] = field(default_factory=dict)


def run_pretraining(job: Pretraining, output: Path, device: torch.device, say: Callable[[str], None]) -> nn.Module:
    """Trains, writes `<name>.safetensors` (half precision) and `<name>.json` (plan, curve, scores) into `output`.

    The validation curve is measured on the running average ten times; a killed run continues with the same command.
    """
    output.mkdir(parents=True, exist_ok=True)
    accelerator = make_accelerator(device)
    started = time.monotonic()

    def report(step: int, terms: dict[str, float]) -> None:
        if step % 100 == 0 or step == job.plan.steps:
            text = " ".join(f"{name} {value:.4f}" for name, value in terms.items())
            say(f"{job.name} step {step}/{job.plan.steps} {text} {time.monotonic() - started:.0f} s")

    done = train(
        job.module.to(device), job.losses, job.plan, accelerator, output / f"{job.name}.checkpoint.pt", report, log_every=100
    )
    half = {name: tensor.half() for name, tensor in done.module.state_dict().items()}
    write_tensors(output / f"{job.name}.safetensors", half, job.metadata)
    done.module.load_state_dict({name: tensor.float() for name, tensor in half.items()})
    scores = job.validate(done.module)
    write_json(
        output / f"{job.name}.json",
        {"plan": asdict(job.plan), "scores": scores, "losses": list(done.losses), "precision": accelerator.mixed_precision},
    )
    say(f"{job.name} validation {json.dumps(scores)}")
    return done.module


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio in dB of each image of a batch, `[B]`."""
    return -10 * ((a.clamp(0, 1) - b.clamp(0, 1)) ** 2).mean((1, 2, 3)).log10()


def fixed_pairs(clean: Tensor, degrade: Callable[[Tensor, torch.Generator], Tensor]) -> Tensor:
    """Degrades validation images with a seed of their own, the same in every run."""
    return torch.cat([degrade(image[None], generator_of("validation", index)) for index, image in enumerate(clean)])


def restorer_job(bank: ImageBank, validation: Tensor, plan: TrainingPlan, batch: int) -> Pretraining:
    """The compact restorer on generic degradations."""
    from restorers.compact import Compact
    from restorers.degradations import GenericDegradation
    from restorers.pretrain import restoration_losses

    degrade = GenericDegradation()
    torch.manual_seed(plan.seed)

    def losses(module: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
        clean = bank.draw(batch, generator).contiguous(memory_format=torch.channels_last)
        return restoration_losses(module, clean, degrade, generator)

    return Pretraining("compact", Compact(), losses, lambda m: _restoration_scores(m, validation, degrade), plan)


@torch.no_grad()
def _restoration_scores(module: Callable[[Tensor], Tensor], clean: Tensor, degrade) -> dict[str, float]:
    lq = fixed_pairs(clean, degrade)
    restored = torch.cat([module(part) for part in lq.split(16)])
    return {"psnr_lq": float(psnr(lq, clean).mean()), "psnr": float(psnr(restored, clean).mean())}


def prior_job(bank: ImageBank, validation: Tensor, codec: nn.Module, schedule, plan: TrainingPlan, batch: int) -> Pretraining:
    """The unconditional latent denoiser."""
    from pseudo_targets.pretrain import error_by_timestep, prior_losses
    from pseudo_targets.priors import build_mini_unet, mini_context

    variance = latent_variance(bank, codec)
    torch.manual_seed(plan.seed)
    unet = build_mini_unet(codec.channels, validation.shape[-1] // codec.patch)

    def losses(module: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
        return prior_losses(module, codec.encode(bank.draw(batch, generator)), schedule, mini_context(), variance, generator)

    def validate(module: nn.Module) -> dict[str, float]:
        timesteps = [t for t in (25, 50, 100, 200, 400, 600, 800, 950) if t < len(schedule)]
        return error_by_timestep(module, codec.encode(validation), schedule, mini_context(), variance, timesteps)

    return Pretraining("prior", unet, losses, validate, plan)


def latent_variance(bank: ImageBank, codec: nn.Module) -> Tensor:
    """Variance of each latent channel over the training images, `[C]`."""
    return codec.encode(bank.images[:: max(1, len(bank) // 512)].float()).var((0, 2, 3))
