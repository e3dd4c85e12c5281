"""The stages of a round. Each leaves its result on disk and reads it back, so a finished stage costs nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from adapt.blend import best_share, blend
from adapt.cluster import Mapper
from adapt.console import Narrator
from adapt.dataset import CleanFolder, ImageBank, Lessons, colored_like, colored_where
from adapt.finetune import distance_of, finetune
from adapt.finetune_codes import finetune_codes
from adapt.gather import FaceRecord, Gathered, load_crops
from adapt.generate import PriorShelf, WorkerFactory, start_of
from adapt.judge import judge, photographed_score, restore_all, scores_of
from adapt.prior_setup import bank_start
from adapt.records import read_camera, state_sha256
from adapt.results import Judgement
from adapt.seeds import generator_of, seed_of
from adapt.targets import TargetSet, make_bank, make_targets, read_target, target_file
from adapt.tracking import Tracker
from adapt.training import make_accelerator
from adapt.workspace import Workspace, write_tensors
from pseudo_targets.bank import has_color
from pseudo_targets.camera import CameraFit, LearnedCamera, fit_camera
from pseudo_targets.diffbir.cleaners import Cleaner
from pseudo_targets.embedded import load_tone
from pseudo_targets.quality import QualityPredictor, fit_cleanness
from pseudo_targets.tone import ToneChange, ToneStatistics, find_tone, tone_of
from pseudo_targets.zoo import family_of
from recipes.schema import Recipe
from restorers.parts import merged, pupil_of
from restorers.published import PublishedRestorer
from restorers.zoo import LoadedRestorer

FOLDERS = {"pseudo targets": "targets", "targets to judge by": "judged"}


@dataclass(frozen=True)
class Job:
    """One adaptation: what goes in, what it works with, where it reports to.

    `base` is the restorer before all rounds, `restorer` the current one.
    """

    recipe: Recipe
    gathered: Gathered
    base: LoadedRestorer
    restorer: LoadedRestorer
    prior: str
    quality: QualityPredictor
    clean: CleanFolder | None
    workspace: Workspace
    mapper: Mapper
    tracker: Tracker
    narrator: Narrator
    device: torch.device
    cleaner: Cleaner | None = None
    """Published stage 1 of the prior, where the recipe asks for one and its file is here."""
    prior_licence: str = ""
    shelf: PriorShelf = field(default_factory=PriorShelf)


def generate(job: Job, number: int, faces: Sequence[FaceRecord], name: str) -> TargetSet:
    """Stage 1, stage 2 and gate for faces; `name` is one of `FOLDERS`."""
    settings, root = job.recipe.generation, job.workspace.root
    removal = job.quality.removal.cpu()
    starts = [start_of(load_crops(root, [face])[0], removal, settings) for face in faces]
    provenance = {
        "round": str(number),
        "prior": job.prior,
        "restorer_sha256": state_sha256(job.restorer.module),
        "recipe_sha256": hashlib.sha256(job.recipe.model_dump_json().encode()).hexdigest(),
    }
    if job.cleaner is not None:
        provenance["cleaner_sha256"] = job.cleaner.weights_sha256
    with job.narrator.stage(name, len(faces)) as advance:
        folder = job.workspace.round(number) / FOLDERS[name]
        seed = (job.recipe.seed, number)
        return make_targets(faces, root, starts, folder, factory(job), job.mapper, seed, provenance, advance)


def learn_camera(job: Job, number: int, faces: Sequence[FaceRecord]) -> Lessons:
    """Draws the clean bank and fits the camera on the pairs of `faces`, whose targets were accepted."""
    settings, folder = job.recipe.camera, job.workspace.round(number) / FOLDERS["pseudo targets"]
    lq = load_crops(job.workspace.root, faces)
    targets = (read_target(target_file(folder, face)) for face in faces)
    parts = zip(*((target.mean, target.draw, target.confidence) for target in targets), strict=True)
    means, draws, confidence = (torch.stack(images) for images in parts)
    bank = clean_bank(job, means)
    # Where a photo shows no colour the clean side has none; a tint is the camera's, and the restorer must remove it.
    color = has_color(lq)
    bank, means, draws = colored_like(lq, bank), colored_where(color, means), colored_where(color, draws)
    camera = None
    if settings.enabled:
        with job.narrator.stage("camera", settings.steps) as advance:
            plan = CameraFit(settings.steps, spectrum_match=settings.spectrum_match)
            path = _camera_file(job, number)
            if not path.is_file():
                # Draws, not means: a mean keeps what the restorer left of the defect, so that a camera fitted on it
                # looks milder than it is; a draw and its photo are a pair as true ones are.
                known = load_tone(family_of(job.prior))
                tone = tone_change(lq, color, known) if settings.tone else None
                seed = seed_of("camera", job.recipe.seed, number)
                clean, seen, drawn = (images.to(job.device) for images in (draws, lq, bank))
                fitted = fit_camera(clean, seen, drawn, plan, seed, advance, tone)
                write_tensors(path, fitted.state_dict(), {"size": str(fitted.size)})
            camera = read_camera(path).to(job.device)
            advance(settings.steps)
    held = ImageBank(bank)
    reals = held if job.clean is None else replace(job.clean, gray=not bool(color.any()))
    return Lessons(held, reals, camera, lq, means, draws, confidence)


def tone_change(photos: Tensor, color: Tensor, known: ToneStatistics) -> ToneChange:
    """What the camera does to the tone of `photos` `[N, 3, S, S]`, from those of the more frequent kind.

    `color` `[N]` tells which of them show colour, `known` what is known of the tone of clean images.
    """
    gray = bool(color.float().mean() < 0.5)
    return find_tone(tone_of(photos[~color if gray else color]).cpu(), known, gray)


def _camera_file(job: Job, number: int) -> Path:
    return job.workspace.round(number) / "camera.safetensors"


def clean_bank(job: Job, sources: Tensor) -> Tensor:
    """The user's clean faces, or faces drawn by the prior once a run."""
    settings = job.recipe.camera
    if job.clean is not None:
        return job.clean.read(job.clean.photos[: max(settings.bank, 16) * 4])
    with job.narrator.stage("clean bank", settings.bank) as advance:
        seed = seed_of("bank", job.recipe.seed)
        path = (bank_start(job.prior, settings.bank_start), settings.bank_calls)
        return make_bank(
            settings.bank, sources, path, job.workspace.root / "bank", factory(job), job.mapper, seed, advance
        )


def teach(job: Job, number: int, lessons: Lessons) -> tuple[nn.Module, tuple[dict[str, float], ...]]:
    """Finetunes a copy of the current restorer."""
    settings = job.recipe.finetune
    job.shelf.clear()
    accelerator = make_accelerator(job.device, settings.precision)
    removal = job.quality.removal.to(accelerator.device)
    with job.narrator.stage("finetune", settings.steps) as advance:
        checkpoint, seed = job.workspace.round(number) / "finetune.pt", seed_of("finetune", job.recipe.seed, number)
        restorer = job.restorer.module.to(accelerator.device)
        if settings.losses == "codes":  # allowed only for restorers that predict codes
            nets = cast(PublishedRestorer, restorer), cast(PublishedRestorer, job.base.module)
            trained = finetune_codes(
                *nets, lessons, settings, accelerator, checkpoint, seed, lambda step, _: advance(step)
            )
        else:
            start = generator_of("lora", job.recipe.seed, number)
            pupil = pupil_of(job.restorer, settings.parts, settings.rank, start)
            distance = distance_of(settings, removal, accelerator.device)
            args = pupil, lessons, settings, distance, accelerator, checkpoint, seed
            trained = finetune(*args, lambda step, _: advance(step), job.base.module)
    return merged(trained.module, restorer).cpu(), trained.losses


def settle(job: Job, number: int, lessons: Lessons, module: nn.Module) -> tuple[nn.Module, float]:
    """Goes as far from the base to the finetuned restorer as photographed targets say; also returns the share."""
    if lessons.camera is None or not job.recipe.finetune.blend:
        return module, 1.0
    old, camera = job.base.module.to(job.device).eval(), read_camera(_camera_file(job, number))
    clean = known_clean(job, camera, job.gathered.teaching(), "pseudo targets")
    new, seen = module.to(job.device), camera(clean, generator_of("blend", job.recipe.seed, number))
    share = best_share(old, new, seen, clean)
    return blend(old, new, share).cpu(), share


def known_clean(job: Job, camera: LearnedCamera, faces: Sequence[FaceRecord], name: str) -> Tensor:
    """Clean faces `[N, 3, S, S]` like those of the photos, for the camera to photograph: there the truth is known.

    They are accepted targets of the first round in every round, as those of a later one agree with the restorer that
    helped to make them; and without the camera's own tone, which it is to give them. `name` is one of `FOLDERS`.
    """
    files = {face: target_file(job.workspace.round(1) / FOLDERS[name], face) for face in faces}
    targets = {face: read_target(path) for face, path in files.items() if path.is_file()}
    draws = {face: target.draw for face, target in targets.items() if target.accepted}
    if not draws:
        return torch.empty(0, 3, camera.size, camera.size)
    color = has_color(load_crops(job.workspace.root, tuple(draws)))
    return colored_where(color, camera.untoned(torch.stack(tuple(draws.values()))))


def judge_round(job: Job, module: nn.Module, number: int, lessons: Lessons) -> Judgement:
    """Compares the new restorer with the one before it on the held-out photos and on their photographed targets."""
    held = load_crops(job.workspace.root, job.gathered.judging())
    cleanness = fit_cleanness(job.quality.removal.cpu(), lessons.bank.images.float())
    nets = tuple(net.to(job.device).eval() for net in (job.restorer.module, module))
    camera = read_camera(_camera_file(job, number)) if job.recipe.camera.enabled else None
    before, after = (scores_of(restore_all(net, held), held, cleanness, camera) for net in nets)
    if camera is not None:
        if number == 1:
            generate(job, number, job.gathered.judging(), "targets to judge by")
        clean = known_clean(job, camera, job.gathered.judging(), "targets to judge by")
        if len(clean) > 1:
            seen = camera(clean, generator_of("judge", job.recipe.seed))
            for scores, net in zip((before, after), nets, strict=True):
                scores["photographed"] = photographed_score(net, seen, clean)
    return judge(before, after, job.recipe.judge, seed_of("judge", job.recipe.seed, number))


def factory(job: Job) -> WorkerFactory:
    """What a worker needs to generate for this job."""
    settings, module = job.recipe.generation, job.restorer.module.cpu()
    return WorkerFactory(module, job.prior, settings, job.recipe.gate, job.device.type, job.cleaner, job.shelf)
