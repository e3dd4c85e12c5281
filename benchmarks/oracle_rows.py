"""The rows of `benchmarks.oracle_gap`: what adaptation is compared with, from the same start, for as many steps.

Every row but the supervised ones sees photos alone. The ones that may open references take them as an argument.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from adapt.dataset import Degrade, ImageBank, Lessons, colored_like
from adapt.finetune import distance_of, finetune
from adapt.generate import TargetTask, Worker, WorkerFactory, start_of
from adapt.job import run_job
from adapt.judge import restore_all
from adapt.options import JobOptions
from adapt.seeds import seed_of
from adapt.training import TrainingPlan, make_accelerator, train
from adapt.workspace import read_tensors
from pseudo_targets.camera import CameraFit, fit_camera
from pseudo_targets.embedded import load_quality, load_removal
from pseudo_targets.tone import ToneChange
from recipes.schema import Finetune, Recipe
from restorers.degradations import GenericDegradation
from restorers.zoo import load_restorer

CPU = torch.device("cpu")
DT_BFR = (
    "faces.maximum=192",
    "camera.bank=192",  # what the adversary holds for real, as many drawn faces as the default recipe has
    "generation.control_strength=1",  # this prior can be steered
    "generation.filter_factor=2",  # blocks of 8 px, as the default recipe's
    "generation.batch=8",
    "finetune.batch=8",
    "finetune.accumulate=1",
    "finetune.learning_rate=2e-4",
    "finetune.ema_decay=0.99",
    "finetune.perceptual_net=removal",  # LPIPS is not at hand everywhere, and the embedded network is
    "finetune.perceptual=0.1",
    "finetune.discriminator=patch",  # a step of the U-Net takes 50 s where one of the patches takes half a second
)
"""What the recipe `dt_bfr` needs on the embedded prior, without published files and at equal steps, on a CPU; sampler,
kinds of losses and missing gates stay."""


@dataclass(frozen=True)
class Ground:
    """What all rows share: photos that teach `[N, 3, S, S]`, the recipe, a folder for checkpoints."""

    photos: Tensor
    recipe: Recipe
    folder: Path
    base: nn.Module
    steps: int


@dataclass(frozen=True)
class Run:
    """A finished adaptation and what its rounds said of themselves."""

    folder: Path
    rounds: tuple[dict[str, object], ...]

    def accepted(self) -> int:
        """How many rounds were kept."""
        return sum(bool(report["judgement"]["accepted"]) for report in self.rounds)  # type: ignore[index]

    def restorer(self) -> nn.Module:
        """What ships."""
        return load_restorer(self.folder / "restorer.safetensors").module

    def bank(self) -> Tensor:
        """The clean faces it drew."""
        files = sorted((self.folder / "bank").glob("*.safetensors"))
        return torch.cat([read_tensors(file)[0]["faces"].float() for file in files])


def job_options(photos: Path, folder: Path, recipe: str, overrides: Sequence[str]) -> JobOptions:
    """The whole job on a folder of aligned photos."""
    return JobOptions(
        inputs=photos,
        command="benchmarks.oracle_gap",
        output=folder,
        recipe=recipe,
        overrides=tuple(overrides),
        aligned=True,
        tracking=False,
    )


def adapt(options: JobOptions) -> Run:
    """Runs the job; references are not among its arguments."""
    run = run_job(options)
    reports = (json.loads(path.read_text()) for path in sorted(run.glob("rounds/*/round.json")))
    return Run(run, tuple(reports))


def teach(ground: Ground, lessons: Lessons, settings: Finetune, name: str) -> nn.Module:
    """The base restorer finetuned on `lessons` for the common number of steps."""
    settings = settings.model_copy(update={"steps": ground.steps})
    accelerator = make_accelerator(CPU, settings.precision)
    path = ground.folder / f"{name}.pt"
    seed = seed_of("benchmark", name, ground.recipe.seed)
    distance = distance_of(settings, load_removal(), CPU)
    return finetune(ground.base, lessons, settings, distance, accelerator, path, seed, base=ground.base).module


def generic_steps(ground: Ground, bank: Tensor) -> nn.Module:
    """As many more steps on generic degradations of the same clean bank."""
    return through_camera(ground, bank, GenericDegradation(), "generic")


def self_distilled(ground: Ground, bank: Tensor) -> nn.Module:
    """The restorer's own outputs as targets."""
    own = restore_all(ground.base.eval(), ground.photos)
    lessons = replace(_lessons(ground, bank, None), means=own, draws=own)
    settings = ground.recipe.finetune.model_copy(update={"camera_share": 0.0})
    return teach(ground, lessons, settings, "self_distilled")


def through_camera(ground: Ground, bank: Tensor, camera: Degrade, name: str) -> nn.Module:
    """Clean faces seen through a given camera, all of each batch."""
    settings = ground.recipe.finetune.model_copy(update={"camera_share": 1.0})
    return teach(ground, _lessons(ground, bank, camera), settings, name)


def camera_of_true_pairs(ground: Ground, references: Tensor, bank: Tensor) -> Degrade:
    """Our camera model, fitted on true pairs: what a perfect clean side would give."""
    settings = ground.recipe.camera
    plan = CameraFit(settings.steps, spectrum_match=settings.spectrum_match)
    bank, seed = colored_like(ground.photos, bank), seed_of("true pairs")
    return fit_camera(references, ground.photos, bank, plan, seed, tone=_true_tone(references, ground.photos))


def _true_tone(references: Tensor, photos: Tensor) -> ToneChange:
    """Gain and offsets that explain the photos best, and the covariance of what they leave in each photo's means."""
    clean, seen = F.avg_pool2d(references, 4), F.avg_pool2d(photos, 4)
    means = clean.mean((0, 2, 3)), seen.mean((0, 2, 3))
    centred, wanted = (image - mean.view(1, 3, 1, 1) for image, mean in zip((clean, seen), means, strict=True))
    gain = (centred * wanted).sum() / centred.square().sum()
    left = wanted.mean((2, 3)) - gain * centred.mean((2, 3))
    values, vectors = torch.linalg.eigh(torch.cov(left.T))
    return ToneChange(gain, means[1] - gain * means[0], vectors * values.clamp(min=0).sqrt())


def given_camera(name: str) -> Degrade:
    """A simulator `module:function` that takes clean images `[B, 3, S, S]` and a generator."""
    module, _, function = name.partition(":")
    camera: Degrade = getattr(importlib.import_module(module), function)
    return camera


def oracle(ground: Ground, references: Tensor) -> nn.Module:
    """The same network, steps, batch and schedule on true pairs."""
    settings = ground.recipe.finetune

    def losses(net: nn.Module, generator: Generator) -> dict[str, Tensor]:
        index = torch.randint(len(ground.photos), (settings.batch,), generator=generator)
        photos = ground.photos[index].contiguous(memory_format=torch.channels_last)
        return {"pixel": (net(photos).float() - references[index]).abs().mean()}

    plan = TrainingPlan(
        ground.steps, settings.learning_rate, settings.warmup, ema_decay=settings.ema_decay, clip=settings.clip
    )
    accelerator = make_accelerator(CPU, settings.precision)
    return train(ground.base, losses, plan, accelerator, ground.folder / "oracle.pt").module


def targets_of(ground: Ground, photos: Tensor) -> Tensor:
    """Pseudo targets of photos `[N, 3, S, S]`: diffusion at test time in place of a restorer."""
    settings, quality = ground.recipe.generation, load_quality()
    factory = WorkerFactory(ground.base, "mini", settings, ground.recipe.gate, "cpu")
    worker = Worker(factory)
    means = []
    for index, photo in enumerate(photos):
        start = start_of(photo, quality.removal, settings)
        task = TargetTask((str(index),), photo[None], start, (seed_of("test target", index),))
        means.append(worker.targets(task)[0].mean)
    return torch.stack(means)


def _lessons(ground: Ground, bank: Tensor, camera: Degrade | None) -> Lessons:
    photos = ground.photos
    clean = ImageBank(colored_like(ground.photos, bank))
    return Lessons(clean, clean, camera, photos, photos, photos, torch.ones_like(photos[:, :1]))
