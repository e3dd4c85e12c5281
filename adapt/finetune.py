"""Teaches a copy of the restorer: clean faces seen through the learned camera, replayed targets, and the photos."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Generator, Tensor, nn

from adapt.dataset import ImageBank
from adapt.losses import Adversary, Features, perceptual_loss, pixel_loss
from adapt.seeds import seed_of
from adapt.training import OnStep, Trained, TrainingPlan, train
from recipes.schema import Finetune

Degrade = Callable[[Tensor, Generator], Tensor]


@dataclass(frozen=True)
class Lessons:
    """What a round teaches with.

    Attributes:
        bank: clean faces.
        camera: the learned camera, or None when the recipe does without.
        generic: generic degradation for replay.
        photos: accepted photos `[N, 3, S, S]`.
        means: their pseudo targets, mean of the candidates.
        draws: their pseudo targets, one candidate.
        confidence: `[N, 1, S, S]`.
    """

    bank: ImageBank
    camera: Degrade | None
    generic: Degrade
    photos: Tensor
    means: Tensor
    draws: Tensor
    confidence: Tensor


@dataclass(frozen=True)
class Batch:
    """Inputs and what they should become; `sharp` is what perceptual and adversarial losses compare with."""

    lq: Tensor
    target: Tensor
    sharp: Tensor
    confidence: Tensor


def draw_batch(lessons: Lessons, settings: Finetune, generator: Generator) -> Batch:
    """Composes one micro-batch in the shares of the recipe; flips the clean side only, never a real pair."""
    seen = round(settings.batch * settings.camera_share) if lessons.camera is not None else 0
    replayed = round(settings.batch * settings.replay_share)
    parts = []
    if seen and lessons.camera is not None:
        clean = lessons.bank.draw(seen, generator).to(lessons.photos)
        parts.append(_trusted(lessons.camera(clean, generator), clean))
    if replayed:
        parts.append(_replay(lessons, replayed, generator))
    if settings.batch > seen + replayed:
        index = torch.randint(len(lessons.photos), (settings.batch - seen - replayed,), generator=generator)
        rows = (lessons.photos, lessons.means, lessons.draws, lessons.confidence)
        parts.append(Batch(*(tensor[index] for tensor in rows)))
    names = ("lq", "target", "sharp", "confidence")
    return Batch(*(torch.cat([getattr(part, name) for part in parts]) for name in names))


def _trusted(lq: Tensor, clean: Tensor) -> Batch:
    return Batch(lq, clean, clean, torch.ones_like(clean[:, :1]))


def _replay(lessons: Lessons, count: int, generator: Generator) -> Batch:
    target = lessons.means[torch.randint(len(lessons.means), (count,), generator=generator)]
    # Half of the time the photos' own camera, which teaches; half of the time anything, which prevents forgetting.
    own = lessons.camera is not None and bool(torch.rand(1, generator=generator) < 0.5)
    degrade = lessons.camera if own and lessons.camera is not None else lessons.generic
    return _trusted(degrade(target, generator), target)


def finetune(
    module: nn.Module,
    lessons: Lessons,
    settings: Finetune,
    features: Features,
    accelerator: Accelerator,
    checkpoint: Path,
    seed: int,
    on_step: OnStep | None = None,
) -> Trained:
    """Trains a copy of `module` on `lessons`; see `adapt.training.train` for resuming and errors."""
    plan = TrainingPlan(
        steps=settings.steps,
        learning_rate=settings.learning_rate,
        warmup=settings.warmup,
        ema_decay=settings.ema_decay,
        clip=settings.clip,
        accumulate=settings.accumulate,
        seed=seed,
        save_seconds=15.0,
    )
    adversary = None
    if settings.adversarial:
        adversary = Adversary(accelerator.device, settings.learning_rate, seed_of("adversary", seed))

    def losses(net: nn.Module, generator: Generator) -> dict[str, Tensor]:
        with torch.no_grad(), torch.autocast(accelerator.device.type, enabled=False):
            batch = draw_batch(lessons, settings, generator)
        restored = net(batch.lq.contiguous(memory_format=torch.channels_last)).float()
        terms = {"pixel": settings.pixel * pixel_loss(restored, batch.target, batch.confidence)}
        if settings.perceptual:
            terms["perceptual"] = settings.perceptual * perceptual_loss(restored, batch.sharp, features)
        if adversary is not None:
            real = lessons.bank.draw(len(restored), generator).to(restored)
            adversary.learn(restored, real)
            terms["adversarial"] = settings.adversarial * adversary.loss(restored)
        return terms

    extras = {} if adversary is None else {"adversary": adversary}
    return train(module, losses, plan, accelerator, checkpoint, on_step, extras=extras)
