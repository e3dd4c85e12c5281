"""What the camera stage does: makes the clean bank and learns the camera, from pairs or by looking for its steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from adapt.camera_match import PipelineCamera, Search, match_camera, with_contrast_of
from adapt.clean_bank import colored_in_share, windows_of_photos
from adapt.dataset import ImageBank, Lessons, colored_where
from adapt.gathered import Gathered, WindowRecord, load_windows
from adapt.prior_setup import bank_start
from adapt.records import read_camera, write_camera
from adapt.round_job import FOLDERS, Job, factory, prior_knows
from adapt.seeds import generator_of, seed_of
from adapt.targets import make_bank, read_target, target_file
from pseudo_targets.camera import CameraFit, fit_camera
from pseudo_targets.embedded import load_tone
from pseudo_targets.tone import ToneChange, ToneStatistics, find_tone
from pseudo_targets.zoo import family_of

FEWEST_TONES = 8
"""Faces without which a set says too little of the camera's tone."""


def learn_camera(job: Job, number: int, windows: Sequence[WindowRecord]) -> Lessons:
    """Makes the clean bank and learns the camera from `windows`, whose targets were accepted."""
    settings, folder = job.recipe.camera, job.workspace.round(number) / FOLDERS["pseudo targets"]
    lq = load_windows(job.workspace.root, windows)
    targets = (read_target(target_file(folder, window)) for window in windows)
    parts = zip(*((target.mean, target.draw, target.confidence) for target in targets), strict=True)
    means, draws, confidence = (torch.stack(images) for images in parts)
    # Where a photo shows no colour the clean side has none; a tint is the camera's, and the restorer must remove it.
    color = color_of_windows(windows)
    means, draws = colored_where(color, means), colored_where(color, draws)
    tone = tone_change(job.gathered, load_tone(family_of(job.prior))) if settings.tone and settings.enabled else None
    bank = colored_in_share(float(color.float().mean()), clean_bank(job, means, tone))
    camera = None
    if settings.enabled:
        path = camera_file(job, number)
        if settings.form == "pairs":
            draw = settings.clean_side == "draw" or (settings.clean_side == "auto" and prior_knows(job, windows))
            _fit_on_pairs(job, number, draws if draw else means, lq, bank, tone)
        else:
            _look_for(job, number, [window.sha256 for window in windows], lq, bank, tone)
        camera = read_camera(path).to(job.device)
        if isinstance(camera, PipelineCamera):  # a drawn bank fills its windows as faces fill photos
            bank = camera.untoned(with_contrast_of(lq, camera.toned(bank.to(job.device)))).cpu()
    held = ImageBank(bank)
    reals = held if job.clean is None else replace(job.clean, gray=not bool(color.any()))
    return Lessons(held, reals, camera, lq, means, draws, confidence)


def _fit_on_pairs(job: Job, number: int, clean: Tensor, lq: Tensor, bank: Tensor, tone: ToneChange | None) -> None:
    settings, path = job.recipe.camera, camera_file(job, number)
    with job.narrator.stage("camera", settings.steps) as advance:
        if not path.is_file():
            plan = CameraFit(settings.steps, spectrum_match=settings.spectrum_match)
            seed = seed_of("camera", job.recipe.seed, number)
            pairs, seen, drawn = (images.to(job.device) for images in (clean, lq, bank))
            write_camera(path, fit_camera(pairs, seen, drawn, plan, seed, advance, tone))
        advance(settings.steps)


def _look_for(
    job: Job, number: int, groups: Sequence[str], lq: Tensor, bank: Tensor, tone: ToneChange | None
) -> None:
    search, path = Search(job.recipe.camera.settings), camera_file(job, number)
    with job.narrator.stage("camera", search.total) as advance:
        if not path.is_file():
            # What is simulated must have the tone of the photos; what it does beside the tone is looked for.
            as_seen = bank if tone is None else (tone.gain * bank + tone.offset[:, None, None]).clamp(0, 1)
            seed = seed_of("camera", job.recipe.seed, number)
            camera = match_camera(lq.to(job.device), groups, as_seen.to(job.device), search, seed, advance)
            if tone is not None:
                camera.set_tone(tone)
            write_camera(path, camera)
        advance(search.total)


def color_of_windows(windows: Sequence[WindowRecord]) -> Tensor:
    """Whether the photo of each window shows colour, `[N]`."""
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


def camera_file(job: Job, number: int) -> Path:
    """Where the camera of a round lies."""
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
            own = own_windows(job, False, settings.bank)[0]
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


def own_windows(job: Job, held_out: bool, count: int) -> tuple[Tensor, tuple[int, ...]]:
    """Windows of photos that were brought down, restored by the restorer before all rounds."""
    module, size = job.base.module.to(job.device).eval(), job.recipe.windows.size
    path = job.workspace.root / "bank" / f"{'judging' if held_out else 'photos'}.safetensors"
    seed = seed_of("bank", job.recipe.seed)
    return windows_of_photos(job.gathered, job.workspace.root, held_out, module, count, size, seed, path)
