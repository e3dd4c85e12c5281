"""What the camera stage does: makes the clean bank and learns the camera, from pairs or by looking for its steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from adapt.camera_match import PipelineCamera, Search, match_camera, unlikeness, with_contrast_of
from adapt.clean_bank import colored_in_share, looks_clean, windows_of_photos
from adapt.dataset import ImageBank, Lessons, colored_where
from adapt.gathered import Gathered, WindowRecord, load_windows
from adapt.prior_setup import bank_start
from adapt.records import read_camera, write_camera
from adapt.round_job import FOLDERS, Job, factory, prior_knows
from adapt.seeds import generator_of, seed_of
from adapt.targets import make_bank, read_target, target_file
from adapt.workspace import read_tensors, write_tensors
from pseudo_targets.camera import CameraFit, TonedCamera, fit_camera
from pseudo_targets.embedded import load_tone
from pseudo_targets.tone import ToneChange, ToneStatistics, find_tone
from pseudo_targets.zoo import family_of

ALIKE = 1.0
"""Unlikeness up to which a pipeline is taken for the camera: one standard deviation of the photos' statistics."""
APART = 4
"""Beside every so many drawn windows of the bank one more is drawn that does not teach: half blend, half judge."""
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
        if not path.is_file():
            draw = settings.clean_side == "draw" or (settings.clean_side == "auto" and prior_knows(job, windows))
            groups, clean = [window.sha256 for window in windows], draws if draw else means
            write_camera(path, _learned(job, number, groups, (clean, lq, bank), tone, prior_knows(job, windows)))
        camera = read_camera(path).to(job.device)
        if isinstance(camera, PipelineCamera):  # a drawn bank fills its windows as faces fill photos
            bank = as_content(camera, lq.to(job.device), bank.to(job.device)).cpu()
    held = ImageBank(bank)
    reals = held if job.clean is None else replace(job.clean, gray=not bool(color.any()))
    return Lessons(held, reals, camera, lq, means, draws, confidence)


def _learned(
    job: Job,
    number: int,
    groups: Sequence[str],
    images: tuple[Tensor, Tensor, Tensor],
    tone: ToneChange | None,
    known: bool,
) -> TonedCamera:
    """The camera in the form that the recipe asks for; `images` are clean sides, photos and bank.

    Args:
        known: whether the prior knows such windows, so that pairs can be trusted.
    """
    form, (clean, lq, bank) = job.recipe.camera.form, (part.to(job.device) for part in images)
    if form == "pairs" or (form == "auto" and known):
        return _fit_on_pairs(job, number, clean, lq, bank, tone)
    pipeline = _look_for(job, number, groups, lq, bank, tone)
    if form == "pipeline":
        return pipeline
    pairs = _fit_on_pairs(job, number, clean, lq, bank, tone)
    seed = seed_of("camera choice", job.recipe.seed, number)
    simulated, fitted = (
        unlikeness(lq, camera(as_content(camera, lq, bank), generator_of("photos", seed)))
        for camera in (pipeline, pairs)
    )
    taken = pipeline if simulated < min(fitted, ALIKE) else pairs
    name = "pipeline" if taken is pipeline else "pairs"
    job.narrator.say(f"  camera: {name}; photos of the pipeline differ by {simulated:.2f}, of pairs by {fitted:.2f}")
    return taken


def as_content(camera: TonedCamera, photos: Tensor, bank: Tensor) -> Tensor:
    """The clean windows with the contrast that the photos' content has, as `with_contrast_of` gives it."""
    return camera.untoned(with_contrast_of(photos, camera.toned(bank)))


def _fit_on_pairs(
    job: Job, number: int, clean: Tensor, lq: Tensor, bank: Tensor, tone: ToneChange | None
) -> TonedCamera:
    settings, path = job.recipe.camera, job.workspace.round(number) / "pairs.safetensors"
    with job.narrator.stage("camera by pairs", settings.steps) as advance:
        if not path.is_file():
            plan = CameraFit(settings.steps, spectrum_match=settings.spectrum_match)
            seed = seed_of("camera", job.recipe.seed, number)
            write_camera(path, fit_camera(clean, lq, bank, plan, seed, advance, tone))
        advance(settings.steps)
    return read_camera(path).to(job.device)


def _look_for(
    job: Job, number: int, groups: Sequence[str], lq: Tensor, bank: Tensor, tone: ToneChange | None
) -> TonedCamera:
    search, path = Search(job.recipe.camera.settings), job.workspace.round(number) / "pipeline.safetensors"
    with job.narrator.stage("camera as a pipeline", search.total) as advance:
        if not path.is_file():
            toned = TonedCamera(lq.shape[-1]).to(lq.device)
            if tone is not None:
                toned.set_tone(tone)
            # What is simulated must have the tone of the photos; what it does beside the tone is looked for.
            as_seen, seed = toned.toned(bank).clamp(0, 1), seed_of("camera", job.recipe.seed, number)
            camera = match_camera(lq, groups, as_seen, search, seed, advance)
            if tone is not None:
                camera.set_tone(tone)
            write_camera(path, camera)
        advance(search.total)
    return read_camera(path).to(job.device)


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
    if settings.bank_from == "photos" or (settings.bank_from == "auto" and not shows_faces(job.gathered)):
        with job.narrator.stage("clean windows", settings.bank) as advance:
            own = own_windows(job, False, settings.bank)[0]
            advance(len(own))
        if tone is not None:
            own = ((own - tone.offset[:, None, None]) / tone.gain).clamp(0, 1)
    lacking = settings.bank - len(own)
    if lacking <= 0 or (settings.bank_from == "photos" and len(own)):
        return own
    # Where the prior knows the photos' windows, targets are what is judged by.
    needed = settings.enabled and not prior_knows(job, job.gathered.windows)
    apart = settings.bank // APART if needed else 0
    with job.narrator.stage("clean bank", lacking + apart) as advance:
        plan = (bank_start(job.prior, settings.bank_start), settings.bank_calls)
        drawn = make_bank(lacking + apart, sources, plan, place, factory(job), job.mapper, seed, advance)
    if apart:
        write_tensors(place / "apart.safetensors", {"windows": drawn[lacking:].half()})
    return torch.cat([own, drawn[:lacking]])


def drawn_apart(job: Job, held_out: bool) -> Tensor:
    """Drawn windows `[M, 3, S, S]` that do not teach, to judge or to blend; none where none were drawn."""
    path = job.workspace.root / "bank" / "apart.safetensors"
    if not path.is_file():
        return torch.empty(0, 3, job.recipe.windows.size, job.recipe.windows.size)
    blending, judging = read_tensors(path)[0]["windows"].float().tensor_split(2)
    return judging if held_out else blending


def shows_faces(gathered: Gathered) -> bool:
    """Whether most photos show faces, which the prior can draw."""
    photos = {window.sha256 for window in gathered.windows}
    return 2 * len({window.sha256 for window in gathered.windows if window.face}) >= len(photos)


def own_windows(job: Job, held_out: bool, count: int) -> tuple[Tensor, tuple[int, ...]]:
    """Windows of photos that were brought down, restored by the restorer before all rounds, and their photos' sides.

    Of faces only those that look clean then.
    """
    module, size = job.base.module.to(job.device).eval(), job.recipe.windows.size
    path = job.workspace.root / "bank" / f"{'judging' if held_out else 'photos'}.safetensors"
    seed = seed_of("bank", job.recipe.seed)
    windows, sides = windows_of_photos(job.gathered, job.workspace.root, held_out, module, count, size, seed, path)
    if not shows_faces(job.gathered):
        return windows, sides
    clean = looks_clean(windows, job.quality.removal.cpu())
    return windows[clean], tuple(side for side, kept in zip(sides, clean.tolist(), strict=True) if kept)
