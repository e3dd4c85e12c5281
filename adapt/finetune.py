"""Teaches a copy of the restorer: clean faces seen through the learned camera, and the photos."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Generator, Tensor, nn

from adapt.adversary import Adversary
from adapt.dataset import Lessons, draw_batch, seen_in_batch
from adapt.losses import Distance, harm_loss, perceptual_loss, pixel_loss
from adapt.lpips import load_lpips
from adapt.seeds import seed_of
from adapt.training import OnStep, Trained, TrainingPlan, layout_of, train
from pseudo_targets.removal import DegradationRemoval
from recipes.schema import Finetune


def finetune(
    module: nn.Module,
    lessons: Lessons,
    settings: Finetune,
    distance: Distance,
    accelerator: Accelerator,
    checkpoint: Path,
    seed: int,
    on_step: OnStep | None = None,
    base: nn.Module | None = None,
) -> Trained:
    """Trains a copy of `module` on `lessons`; see `adapt.training.train` for resuming and errors.

    Args:
        distance: the perceptual term, as `distance_of` gives it.
        base: the restorer that photos must not lose against; without it harm does not count.
    """
    adversary, layout, seen = None, layout_of(module), seen_in_batch(lessons, settings)
    first = None
    if base is not None and settings.harm and seen:  # for harm the truth must be known
        first = copy.deepcopy(base).eval().to(accelerator.device)
        first = first.to(memory_format=layout)  # type: ignore[call-overload]  # not in its stubs
    if settings.adversarial:
        start = seed_of("adversary", seed)
        kind = settings.adversarial_form, settings.discriminator, settings.adversarial_betas
        adversary = Adversary(accelerator.device, settings.learning_rate, start, *kind)

    def losses(net: nn.Module, generator: Generator) -> dict[str, Tensor]:
        with torch.no_grad(), torch.autocast(accelerator.device.type, enabled=False):
            batch = draw_batch(lessons, settings, generator, accelerator.device)
        restored = net(batch.lq.contiguous(memory_format=layout)).float()
        terms = {"pixel": settings.pixel * pixel_loss(restored, batch.target, batch.confidence)}
        if settings.perceptual:
            terms["perceptual"] = settings.perceptual * distance(restored, batch.sharp).mean()
        if first is not None:
            with torch.no_grad():
                before = first(batch.lq[:seen].contiguous(memory_format=layout)).float()
            terms["harm"] = settings.harm * harm_loss(restored[:seen], before, batch.target[:seen])
        if adversary is not None:
            terms["adversarial"] = settings.adversarial * adversary.loss(restored)
            real = lessons.reals.draw(len(restored), generator, settings.mirror != "none").to(restored)
            adversary.learn(restored, real, 1 / settings.accumulate)
        return terms

    extras, after_step = ({}, None) if adversary is None else ({"adversary": adversary}, adversary.step)
    plan = plan_of(settings, seed)
    return train(module, losses, plan, accelerator, checkpoint, on_step, extras=extras, after_step=after_step)


def distance_of(settings: Finetune, removal: DegradationRemoval, device: torch.device) -> Distance:
    """The perceptual distance that the recipe asks for; networks that a weight of 0 makes needless are not loaded.

    Raises:
        WeightsError: LPIPS is asked for and its files are missing or damaged; the message says what to do.
    """
    if settings.perceptual and settings.perceptual_net == "lpips":
        return load_lpips(device)
    return partial(perceptual_loss, features=removal.features)


def plan_of(settings: Finetune, seed: int) -> TrainingPlan:
    """The recipe's settings as a plan of training."""
    return TrainingPlan(
        steps=settings.steps,
        learning_rate=settings.learning_rate,
        warmup=settings.warmup,
        final_rate=settings.final_rate,
        halve_at=settings.halve_at,
        betas=settings.betas,
        ema_decay=settings.ema_decay,
        clip=settings.clip,
        accumulate=settings.accumulate,
        seed=seed,
        save_seconds=15.0,
    )
