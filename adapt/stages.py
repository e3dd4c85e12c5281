"""The stages of a round. Each leaves its result on disk and reads it back, so a finished stage costs nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from adapt.blend import best_share, blend
from adapt.camera_match import PipelineCamera
from adapt.camera_stage import as_content, camera_file, color_of_windows, drawn_apart, own_windows
from adapt.clean_bank import colored_in_share
from adapt.dataset import Lessons, colored_where
from adapt.finetune import distance_of, finetune
from adapt.finetune_codes import finetune_codes
from adapt.gathered import WindowRecord, load_view, load_windows
from adapt.generate import start_of
from adapt.judge import judge, photographed_scores, scores_of, served_photos, size_class
from adapt.records import read_camera, state_sha256
from adapt.results import Judgement
from adapt.round_job import FOLDERS, Job, factory, prior_knows
from adapt.seeds import generator_of, seed_of
from adapt.targets import TargetSet, make_targets, read_target, target_file
from adapt.training import make_accelerator
from pseudo_targets.camera import TonedCamera
from pseudo_targets.quality import fit_cleanness
from recipes.schema import Judge
from restorers.parts import merged, pupil_of
from restorers.published import PublishedRestorer
from restorers.runtime import runtime_of

KNOWN = 96
"""Windows at most that are photographed to blend and to judge."""
FEWEST_KNOWN = 16


@dataclass(frozen=True)
class KnownClean:
    """Clean windows `[N, 3, S, S]`, and the size class of the photo that each belongs to, "" where it is drawn."""

    images: Tensor
    groups: tuple[str, ...]


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
    old, camera = job.base.module.to(job.device).eval(), read_camera(camera_file(job, number))
    clean = known_clean(job, camera, number, held_out=False).images
    new, seen = module.to(job.device), camera(clean, generator_of("blend", job.recipe.seed, number))
    share = best_share(old, new, seen, clean)
    return blend(old, new, share).cpu(), share


def known_clean(job: Job, camera: TonedCamera, number: int, held_out: bool) -> KnownClean:
    """Clean windows like those of the photos, for the camera to photograph: there the truth is known.

    They are the photos' own windows, brought down and restored, that look clean, and drawn ones that did not teach.
    Where these are too few, or the prior knows the photos' windows, they are accepted targets of the first round in
    every round, as those of a later one agree with the restorer that helped to make them. All are without the camera's
    own tone, which it is to give them.
    """
    windows = job.gathered.judging() if held_out else job.gathered.teaching()
    own, sides = own_windows(job, held_out, KNOWN)
    if job.recipe.camera.bank_from == "prior":
        own, sides = own[:0], ()
    drawn = drawn_apart(job, held_out)
    if len(own) + len(drawn) >= FEWEST_KNOWN:
        clean = torch.cat([camera.untoned(own), drawn])
        if isinstance(camera, PipelineCamera):
            clean = as_content(camera, load_windows(job.workspace.root, windows), clean)
        images = colored_in_share(float(color_of_windows(windows).float().mean()), clean)
        return KnownClean(images, (*(size_class(side) for side in sides), *[""] * len(drawn)))
    if held_out and number == 1:
        generate(job, number, windows, "targets to judge by")
    folder = job.workspace.round(1) / FOLDERS["targets to judge by" if held_out else "pseudo targets"]
    return _targets_as_clean(folder, camera, windows)


def _targets_as_clean(folder: Path, camera: TonedCamera, windows: Sequence[WindowRecord]) -> KnownClean:
    files = {window: target_file(folder, window) for window in windows}
    targets = {window: read_target(path) for window, path in files.items() if path.is_file()}
    draws = {window: target.draw for window, target in targets.items() if target.accepted}
    if not draws:
        return KnownClean(torch.empty(0, 3, camera.size, camera.size), ())
    clean = colored_where(color_of_windows(tuple(draws)), camera.untoned(torch.stack(tuple(draws.values()))))
    return KnownClean(clean, tuple(size_class(window.side) for window in draws))


def judge_round(job: Job, module: nn.Module, number: int, lessons: Lessons) -> Judgement:
    """Compares the new restorer with the one before it, both as they are served, on what no round has learned from.

    Held-out photos are restored at their own size; their photographed targets, whose truth is known, tell better from
    worse.
    """
    cleanness = fit_cleanness(job.quality.removal.cpu(), lessons.bank.images.float())
    camera = read_camera(camera_file(job, number)) if job.recipe.camera.enabled else None
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
    return judge(before, after, limits_of(job), seed_of("judge", job.recipe.seed, number), groups)


def limits_of(job: Job) -> Judge:
    """The judge's limits, without one of the gain where the prior knows the windows and the camera errs little."""
    known = prior_knows(job, job.gathered.windows)
    return job.recipe.judge.model_copy(update={"gain": 0.0}) if known else job.recipe.judge
