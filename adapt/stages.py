"""The stages of a round. Each leaves its result on disk and reads it back, so a finished stage costs nothing."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from adapt.blend import best_share, blend
from adapt.clean_bank import colored_in_share, windows_of_photos
from adapt.cluster import Mapper
from adapt.console import Narrator
from adapt.dataset import CleanFolder, ImageBank, Lessons, colored_where
from adapt.finetune import distance_of, finetune
from adapt.finetune_codes import finetune_codes
from adapt.gathered import Gathered, WindowRecord, load_view, load_windows
from adapt.generate import PriorShelf, WorkerFactory, start_of
from adapt.judge import judge, photographed_scores, scores_of, served_photos, size_class
from adapt.prior_setup import bank_start
from adapt.records import read_camera, state_sha256
from adapt.results import Judgement
from adapt.seeds import generator_of, seed_of
from adapt.targets import TargetSet, make_bank, make_targets, read_target, target_file
from adapt.tracking import Tracker
from adapt.training import make_accelerator
from adapt.workspace import Workspace, write_tensors
from pseudo_targets.camera import CameraFit, LearnedCamera, fit_camera
from pseudo_targets.diffbir.cleaners import Cleaner
from pseudo_targets.embedded import load_tone
from pseudo_targets.quality import QualityPredictor, fit_cleanness
from pseudo_targets.tone import ToneChange, ToneStatistics, find_tone
from pseudo_targets.zoo import PRIORS, family_of
from recipes.schema import Recipe
from restorers.parts import merged, pupil_of
from restorers.published import PublishedRestorer
from restorers.runtime import runtime_of
from restorers.zoo import LoadedRestorer

FEWEST_TONES = 8
"""Faces without which a set says too little of the camera's tone."""
WHOLE_FACE = 192
"""Side in px of photos below which a window on a face shows the whole of it, as the embedded prior knows faces."""
KNOWN = 96
"""Windows at most that are photographed to blend and to judge."""
FEWEST_KNOWN = 16
FOLDERS = {"pseudo targets": "targets", "targets to judge by": "judged"}


@dataclass(frozen=True)
class KnownClean:
    """Clean windows `[N, 3, S, S]`, and the size class of the photo that each belongs to."""

    images: Tensor
    groups: tuple[str, ...]


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


def generate(job: Job, number: int, windows: Sequence[WindowRecord], name: str) -> TargetSet:
    """Stage 1, stage 2 and gate for windows; `name` is one of `FOLDERS`."""
    settings, root = job.recipe.generation, job.workspace.root
    removal = job.quality.removal.cpu()
    starts = [start_of(load_windows(root, [window])[0], removal, settings) for window in windows]
    provenance = {
        "round": str(number),
        "prior": job.prior,
        "restorer_sha256": state_sha256(job.restorer.module),
        "recipe_sha256": hashlib.sha256(job.recipe.model_dump_json().encode()).hexdigest(),
    }
    if job.cleaner is not None:
        provenance["cleaner_sha256"] = job.cleaner.weights_sha256
    with job.narrator.stage(name, len(windows)) as advance:
        folder = job.workspace.round(number) / FOLDERS[name]
        seed = (job.recipe.seed, number)
        return make_targets(windows, root, starts, folder, factory(job), job.mapper, seed, provenance, advance)


def learn_camera(job: Job, number: int, windows: Sequence[WindowRecord]) -> Lessons:
    """Makes the clean bank and fits the camera on the pairs of `windows`, whose targets were accepted."""
    settings, folder = job.recipe.camera, job.workspace.round(number) / FOLDERS["pseudo targets"]
    lq = load_windows(job.workspace.root, windows)
    targets = (read_target(target_file(folder, window)) for window in windows)
    parts = zip(*((target.mean, target.draw, target.confidence) for target in targets), strict=True)
    means, draws, confidence = (torch.stack(images) for images in parts)
    # Where a photo shows no colour the clean side has none; a tint is the camera's, and the restorer must remove it.
    color = _color(windows)
    means, draws = colored_where(color, means), colored_where(color, draws)
    tone = tone_change(job.gathered, load_tone(family_of(job.prior))) if settings.tone and settings.enabled else None
    bank = colored_in_share(float(color.float().mean()), clean_bank(job, means, tone))
    camera = None
    if settings.enabled:
        with job.narrator.stage("camera", settings.steps) as advance:
            plan = CameraFit(settings.steps, spectrum_match=settings.spectrum_match)
            path = _camera_file(job, number)
            if not path.is_file():
                seed = seed_of("camera", job.recipe.seed, number)
                known = settings.clean_side == "auto" and prior_knows(job, windows)
                side = draws if known or settings.clean_side == "draw" else means
                clean, seen, drawn = (images.to(job.device) for images in (side, lq, bank))
                fitted = fit_camera(clean, seen, drawn, plan, seed, advance, tone)
                write_tensors(path, fitted.state_dict(), {"size": str(fitted.size)})
            camera = read_camera(path).to(job.device)
            advance(settings.steps)
    held = ImageBank(bank)
    reals = held if job.clean is None else replace(job.clean, gray=not bool(color.any()))
    return Lessons(held, reals, camera, lq, means, draws, confidence)


def prior_knows(job: Job, windows: Sequence[WindowRecord]) -> bool:
    """Whether the prior has learned from images like most of `windows`.

    The embedded family has from whole faces alone; published priors have from photos, or get crops of faces.
    """
    embedded = job.prior == "mini" or job.prior not in PRIORS  # or what `adapt pretrain` left in a folder
    whole = sum(window.face and window.side < WHOLE_FACE for window in windows)
    return not embedded or job.recipe.windows.crops == "yes" or 2 * whole > len(windows)


def _color(windows: Sequence[WindowRecord]) -> Tensor:
    return torch.tensor([window.color for window in windows], dtype=torch.bool)


def tone_change(gathered: Gathered, known: ToneStatistics) -> ToneChange | None:
    """What the camera does to the tone of its faces, from those of the more frequent kind, gray or coloured.

    `known` is of clean faces, so without faces nothing is known of the tone, and None is returned.
    """
    if len(gathered.tones) < FEWEST_TONES:
        return None
    tones = torch.tensor([tone for tone, _ in gathered.tones])
    color = torch.tensor([colored for _, colored in gathered.tones], dtype=torch.bool)
    gray = bool(color.float().mean() < 0.5)
    return find_tone(tones[~color if gray else color], known, gray)


def _camera_file(job: Job, number: int) -> Path:
    return job.workspace.round(number) / "camera.safetensors"


def clean_bank(job: Job, sources: Tensor, tone: ToneChange | None) -> Tensor:
    """Clean windows `[M, 3, S, S]`: the user's, or the photos' own brought down and, where these lack, drawn ones.

    `tone` is the camera's, which the photos' own windows have and clean ones have not.
    """
    settings, size, place = job.recipe.camera, job.recipe.windows.size, job.workspace.root / "bank"
    seed = seed_of("bank", job.recipe.seed)
    if job.clean is not None:
        count = len(job.clean.photos) if job.clean.whole else settings.bank * 4
        return job.clean.windows(min(count, settings.bank * 4), generator_of("clean", seed))
    own = torch.empty(0, 3, size, size)
    if settings.bank_from != "prior" and job.gathered.small:
        with job.narrator.stage("clean windows", settings.bank) as advance:
            own = _own_windows(job, False, settings.bank)[0]
            advance(len(own))
        if tone is not None:
            own = ((own - tone.offset[:, None, None]) / tone.gain).clamp(0, 1)
    lacking = settings.bank - len(own)
    if lacking <= 0 or (settings.bank_from == "photos" and len(own)):
        return own
    with job.narrator.stage("clean bank", lacking) as advance:
        plan = (bank_start(job.prior, settings.bank_start), settings.bank_calls)
        drawn = make_bank(lacking, sources, plan, place, factory(job), job.mapper, seed, advance)
    return torch.cat([own, drawn])


def _own_windows(job: Job, held_out: bool, count: int) -> tuple[Tensor, tuple[int, ...]]:
    """Windows of photos that were brought down, restored by the restorer before all rounds."""
    module, size = job.base.module.to(job.device).eval(), job.recipe.windows.size
    path = job.workspace.root / "bank" / f"{'judging' if held_out else 'photos'}.safetensors"
    seed = seed_of("bank", job.recipe.seed)
    return windows_of_photos(job.gathered, job.workspace.root, held_out, module, count, size, seed, path)


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
    clean = known_clean(job, camera, number, held_out=False).images
    new, seen = module.to(job.device), camera(clean, generator_of("blend", job.recipe.seed, number))
    share = best_share(old, new, seen, clean)
    return blend(old, new, share).cpu(), share


def known_clean(job: Job, camera: LearnedCamera, number: int, held_out: bool) -> KnownClean:
    """Clean windows like those of the photos, for the camera to photograph: there the truth is known.

    They are the photos' own windows, brought down and restored, where there are enough: their detail is real. Else they
    are accepted targets of the first round in every round, as those of a later one agree with the restorer that helped
    to make them. Both are without the camera's own tone, which it is to give them.
    """
    own, sides = _own_windows(job, held_out, KNOWN)
    if len(own) >= FEWEST_KNOWN and job.recipe.camera.bank_from != "prior":
        share = float(_color([window for window in job.gathered.windows if window.held_out == held_out]).float().mean())
        images = colored_in_share(share, camera.untoned(own))
        return KnownClean(images, tuple(size_class(side) for side in sides))
    windows = job.gathered.judging() if held_out else job.gathered.teaching()
    if held_out and number == 1:
        generate(job, number, windows, "targets to judge by")
    folder = job.workspace.round(1) / FOLDERS["targets to judge by" if held_out else "pseudo targets"]
    return _targets_as_clean(folder, camera, windows)


def _targets_as_clean(folder: Path, camera: LearnedCamera, windows: Sequence[WindowRecord]) -> KnownClean:
    files = {window: target_file(folder, window) for window in windows}
    targets = {window: read_target(path) for window, path in files.items() if path.is_file()}
    draws = {window: target.draw for window, target in targets.items() if target.accepted}
    if not draws:
        return KnownClean(torch.empty(0, 3, camera.size, camera.size), ())
    clean = colored_where(_color(tuple(draws)), camera.untoned(torch.stack(tuple(draws.values()))))
    return KnownClean(clean, tuple(size_class(window.side) for window in draws))


def judge_round(job: Job, module: nn.Module, number: int, lessons: Lessons) -> Judgement:
    """Compares the new restorer with the one before it, both as they are served, on what no round has learned from.

    Held-out photos are restored at their own size; their photographed targets, whose truth is known, tell better from
    worse.
    """
    cleanness = fit_cleanness(job.quality.removal.cpu(), lessons.bank.images.float())
    camera = read_camera(_camera_file(job, number)) if job.recipe.camera.enabled else None
    views = [load_view(job.workspace.root, view) for view in job.gathered.views]
    loaded = (job.restorer, replace(job.restorer, module=module.eval()))
    served = tuple(runtime_of(restorer, job.device.type) for restorer in loaded)
    before, after = (scores_of(served_photos(serve, views), views, cleanness, camera) for serve in served)
    groups: tuple[str, ...] = ()
    if camera is not None:
        known = known_clean(job, camera, number, held_out=True)
        if len(known.images) > 1:
            seen = camera(known.images, generator_of("judge", job.recipe.seed))
            groups = known.groups
            for scores, serve in zip((before, after), served, strict=True):
                scores |= photographed_scores(serve, seen, known.images)
    return judge(before, after, job.recipe.judge, seed_of("judge", job.recipe.seed, number), groups)


def factory(job: Job) -> WorkerFactory:
    """What a worker needs to generate for this job."""
    settings, module, limits = job.recipe.generation, job.restorer.module.cpu(), job.recipe.gate
    if not prior_knows(job, job.gathered.windows):  # quality is predicted by what has learned from such windows alone
        limits = limits.model_copy(update={"quality": -math.inf})
    return WorkerFactory(module, job.prior, settings, limits, job.device.type, job.cleaner, job.shelf)
