"""What each network of the embedded family is trained on and judged by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import cast

import torch
from diffusers import UNet2DConditionModel
from torch import Generator, Tensor, nn

from adapt.dataset import some_gray
from adapt.evaluate import psnr, ssim
from adapt.photo_bank import Windows
from adapt.seeds import generator_of, generator_on
from adapt.training import ComputeLosses, Evaluate, TrainingPlan
from pseudo_targets.consistency import LowPassReplacement
from pseudo_targets.embedded import mini_schedule
from pseudo_targets.filters import BlockMean
from pseudo_targets.ir_controlnet import ENCODER, Steered
from pseudo_targets.latents import PatchLatents
from pseudo_targets.places import WHOLE, place_context
from pseudo_targets.pretrain import (
    clean_condition,
    control_losses,
    error_by_timestep,
    prior_losses,
    removal_losses,
)
from pseudo_targets.priors import Fusion, LatentPrior, build_mini_unet, mini_context
from pseudo_targets.removal import DegradationRemoval
from pseudo_targets.sampling import Trajectory, conditional_mean, draw
from restorers.compact import Compact
from restorers.degradations import GenericDegradation
from restorers.pretrain import restoration_losses

SHOWN = 8  # validation images on a sheet
UNTOLD = 0.1
"""Share of windows of faces whose place the prior is not told, so that it also knows what to do without."""
PARTS = [(0.5, x, y) for y in (0.35, 0.65) for x in (0.35, 0.65)] + [
    (0.25, x, y) for y in (0.45, 0.6) for x in (0.4, 0.6)
]
"""Places of which the prior's sheet shows draws beside whole faces."""
CLEAN = 0.3
"""Share of clean photos that the restorer sees: under L1 it leaves alone what is more likely clean than degraded."""
CHUNK = 32
"""Images that share steps of the degradation on a GPU, where many small ones would take most of the time."""


@dataclass(frozen=True)
class Validation:
    """Scores on held-out images, and a sheet to look at: `[1, 3, H, W]` in `[0, 1]`."""

    scores: dict[str, float]
    sheet: Tensor


Validate = Callable[[nn.Module], Validation]


@dataclass(frozen=True)
class Pretraining:
    """One network's pretraining: what is trained, on what signal, how it is judged, what its file says of its shape.

    Tensors whose names start with one of `elsewhere` have a file of their own. `late_losses` are those of the second
    half of the steps, where they differ. `losses` and `evaluate`, which gives the points of the validation curve,
    compute on the device the job was made for, `validate` on the CPU.
    """

    name: str
    module: nn.Module
    losses: ComputeLosses
    validate: Validate
    plan: TrainingPlan
    metadata: dict[str, str] = field(default_factory=dict)
    evaluate: Evaluate | None = None
    elsewhere: tuple[str, ...] = ("codec.",)
    late_losses: ComputeLosses | None = None


def degradation_for(
    device: torch.device, clean_probability: float = GenericDegradation.clean_probability
) -> GenericDegradation:
    """The generic degradation in chunks that suit the device."""
    chunk = CHUNK if device.type == "cuda" else GenericDegradation.chunk
    return GenericDegradation(clean_probability=clean_probability, chunk=chunk)


def fixed_pairs(clean: Tensor) -> Tensor:
    """Degrades validation images with a seed of their own, the same in every run; hardly any stays clean."""
    degrade = GenericDegradation(clean_probability=0)
    return torch.cat([degrade(image[None], generator_of("validation", index)) for index, image in enumerate(clean)])


def restorer_job(
    bank: Windows, validation: Tensor, plan: TrainingPlan, batch: int, device: torch.device
) -> Pretraining:
    """The compact restorer on generic degradations of windows."""
    degrade, side = degradation_for(device, CLEAN), validation.shape[-1]
    torch.manual_seed(plan.seed)
    watched = validation.to(device)
    watched_lq = fixed_pairs(validation).to(device)

    def losses(module: nn.Module, generator: Generator) -> dict[str, Tensor]:
        generator = generator_on(device, generator)
        clean = some_gray(bank.draw_windows(batch, side, generator), generator)
        clean = clean.to(device, memory_format=torch.channels_last)
        return restoration_losses(module, clean, degrade, generator)

    def evaluate(module: nn.Module) -> dict[str, float]:
        with torch.no_grad():
            return {"val_psnr": float(psnr(module(watched_lq), watched).mean())}

    def validate(module: nn.Module) -> Validation:
        return _restoration_scores(module, validation)

    return Pretraining("compact", Compact(), losses, validate, plan, evaluate=evaluate)


def removal_job(
    bank: Windows, validation: Tensor, codec: PatchLatents, plan: TrainingPlan, batch: int, device: torch.device
) -> Pretraining:
    """Degradation removal in latent space, on the same degradations."""
    degrade, codec, side = degradation_for(device), codec.to(device), validation.shape[-1]
    size = validation.shape[-1] // codec.patch
    torch.manual_seed(plan.seed)
    module = DegradationRemoval(codec, size)

    def losses(net: nn.Module, generator: Generator) -> dict[str, Tensor]:
        removal = cast(DegradationRemoval, net)  # a copy of `module`
        generator = generator_on(device, generator)
        clean = some_gray(bank.draw_windows(batch, side, generator), generator).to(device)
        return removal_losses(removal, clean, degrade, codec, generator)

    metadata = {"size": str(size), "widths": "48,96,192"}
    return Pretraining("removal", module, losses, lambda m: _restoration_scores(m, validation), plan, metadata)


def prior_job(
    bank: Windows,
    validation: Tensor,
    places: Tensor,
    codec: PatchLatents,
    plan: TrainingPlan,
    batch: int,
    device: torch.device,
) -> Pretraining:
    """The latent denoiser, which is told nothing but the place of its window, and of some not even that.

    Its overall tone counts in the second half of the steps only: from the first one on, detail would be learned several
    times more slowly.
    """
    schedule, side = mini_schedule(), validation.shape[-1]
    variance = latent_variance(bank, codec, side)
    codec, variance = codec.to(device), variance.to(device)
    size = validation.shape[-1] // codec.patch
    torch.manual_seed(plan.seed)
    unet = build_mini_unet(codec.channels, size)

    def losses(module: nn.Module, generator: Generator, tone_weight: float) -> dict[str, Tensor]:
        generator = generator_on(device, generator)
        windows, context = placed_batch(bank, batch, side, generator, device)
        return prior_losses(module, codec.encode(windows), schedule, context, variance, generator, tone_weight)

    def validate(module: nn.Module) -> Validation:
        latent, timesteps = codec.cpu().encode(validation), (25, 50, 100, 200, 400, 600, 800, 950)
        told = place_context(places)
        scores = error_by_timestep(module, latent, schedule, told, variance.cpu(), timesteps)
        denoiser = cast(UNet2DConditionModel, module)
        prior = LatentPrior(codec, denoiser, None, schedule, validation.shape[-1], mini_context(), "mini", "", "")
        generators = [generator_of("draw", index) for index in range(SHOWN)]
        shown = torch.tensor([WHOLE] * SHOWN), torch.tensor(PARTS)
        path = Trajectory(len(schedule) - 1, 20)
        sheet = sheet_of(*(draw(prior, path, generators, context=place_context(rows)) for rows in shown))
        return Validation(scores, sheet)

    metadata = {"size": str(size), "widths": "64,128,192", "places": "yes"}
    early, late = partial(losses, tone_weight=0.0), partial(losses, tone_weight=1.0)
    return Pretraining("prior", unet, early, validate, plan, metadata, late_losses=late)


def control_job(
    bank: Windows,
    validation: Tensor,
    places: Tensor,
    codec: PatchLatents,
    unet: UNet2DConditionModel,
    cleaners: tuple[nn.Module, ...],
    plan: TrainingPlan,
    batch: int,
    device: torch.device,
) -> Pretraining:
    """The IRControlNet and the decoder that it steers, conditioned on what the cleaners make of degraded images.

    The last of the cleaners is stage 1: its error is what fusion reckons with, and validation refines its output.
    """
    schedule, degrade, side = mini_schedule(), degradation_for(device), validation.shape[-1]
    watched, watched_lq = validation[::3].to(device), fixed_pairs(validation)[::3].to(device)
    for part in (codec, *cleaners):
        part.to(device).eval().requires_grad_(False)
    fusion = Fusion(reference_variance(bank, side, degrade, cleaners[-1], codec, device))
    keep = [LowPassReplacement(BlockMean(2), len(schedule) - 1, 0)]

    def losses(net: nn.Module, generator: Generator) -> dict[str, Tensor]:
        steered = cast(Steered, net)  # a copy of the module below
        generator = generator_on(device, generator)
        windows, context = placed_batch(bank, batch, side, generator, device)
        clean = some_gray(windows, generator)
        condition = clean_condition(clean, degrade, cleaners, codec, generator)
        latent = codec.encode(clean)
        return control_losses(steered, latent, condition, schedule, context, fusion, generator)

    def expected(net: nn.Module, reference: Tensor, told: Tensor) -> Tensor:
        steered = cast(Steered, net)
        args = (codec, steered.unet, steered.control, schedule, side, mini_context(), "mini", "", "", fusion)
        prior = LatentPrior(*args).to(reference.device)
        parts = zip(reference.split(16), told.to(reference.device).split(16), strict=True)
        return torch.cat([conditional_mean(prior, part, 1.0, keep, place_context(where)) for part, where in parts])

    @torch.no_grad()
    def cleaned(lq: Tensor) -> Tensor:
        return torch.cat([cleaners[-1](part).clamp(0, 1) for part in lq.split(16)])

    def evaluate(net: nn.Module) -> dict[str, float]:
        image = expected(net, cleaned(watched_lq), places[::3])
        return {"val_psnr": float(psnr(image, watched).mean()), "val_ssim": float(ssim(image, watched).mean())}

    def validate(net: nn.Module) -> Validation:
        for part in (codec, fusion, *cleaners):
            part.cpu()
        lq = fixed_pairs(validation)
        images = {"lq": lq, "reference": cleaned(lq)}
        images["refined"] = expected(net, images["reference"], places)
        measures = {"psnr": psnr, "ssim": ssim}
        scores = {
            f"{measure}_{name}": float(score(image, validation).mean())
            for measure, score in measures.items()
            for name, image in images.items()
        }
        return Validation(scores, sheet_of(*images.values(), validation))

    metadata = {"reference_variance": ",".join(f"{value:.4g}" for value in fusion.variance.tolist())}
    shared = tuple(f"unet.{name}." for name in ENCODER)
    return Pretraining("control", Steered(unet), losses, validate, plan, metadata, evaluate, shared)


def placed_batch(
    bank: Windows, count: int, side: int, generator: Generator, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Windows `[count, 3, side, side]` and what says their places `[count, 1, 64]`, which some are not told."""
    windows, places = bank.draw_placed(count, side, generator)
    untold = torch.rand(count, 1, generator=generator, device=generator.device) < UNTOLD
    places = torch.where(untold.to(places.device), torch.nan, places)
    return windows.to(device), place_context(places.to(device))


@torch.no_grad()
def reference_variance(
    bank: Windows,
    side: int,
    degrade: GenericDegradation,
    cleaner: nn.Module,
    codec: PatchLatents,
    device: torch.device,
) -> Tensor:
    """Mean squared error by latent channel of what the cleaner makes of degraded images, `[C]`."""
    generator = generator_of("reference variance")
    clean = bank.draw_windows(256, side, generator).to(device)
    lq = degrade(clean, generator)
    cleaned = torch.cat([cleaner(part).clamp(0, 1) for part in lq.split(16)])
    return (codec.encode(cleaned) - codec.encode(clean)).square().mean((0, 2, 3))


def latent_variance(bank: Windows, codec: PatchLatents, side: int) -> Tensor:
    """Variance of each latent channel over windows of the training photos, `[C]`."""
    windows = bank.draw_windows(512, side, generator_of("latent variance"))
    return codec.to(windows.device).encode(windows).var((0, 2, 3))


def sheet_of(*rows: Tensor) -> Tensor:
    """The first images of each batch side by side, a batch a row."""
    return torch.cat([torch.cat(list(row[:SHOWN]), dim=2) for row in rows], dim=1)[None].clamp(0, 1)


@torch.no_grad()
def _restoration_scores(module: nn.Module, clean: Tensor) -> Validation:
    lq = fixed_pairs(clean)
    restored = torch.cat([module(part) for part in lq.split(16)])
    scores = {
        "psnr_lq": float(psnr(lq, clean).mean()),
        "psnr": float(psnr(restored, clean).mean()),
        "ssim": float(ssim(restored, clean).mean()),
    }
    return Validation(scores, sheet_of(lq, restored, clean))
