"""The camera found by looking: of many settings of a camera's steps, those whose photos look like the given ones.

Pairs of restored photo and photo cannot show what the restorer left in or took for content: a restorer that leaves a
soft photo as it is says that the camera is sharp, and one that removes noise together with detail says that the camera
adds detail. Simulated photos of clean windows have no such gap. Settings are drawn from everything that cameras do,
clean windows are photographed with them, and each setting counts as much as its photos' statistics make it likely
(approximate Bayesian computation with regression summaries, Fearnhead and Prangle 2012; sampled in generations,
Beaumont et al. 2009; the camera's distribution of settings by expectation maximisation over all its photos).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from adapt.photo_statistics import CONTENT_STATISTICS, content_power, photo_statistics, transfer_and_noise
from pseudo_targets.camera import TonedCamera
from restorers.photo_pipeline import (
    VALUES,
    PhotoPipeline,
    changed_pipeline,
    draw_pipeline,
    pipelines_of,
    table_of,
)

KEPT = 64
"""Settings that a camera consists of, at most."""
WINDOWS = 8
"""Clean windows that are photographed with each setting."""
BROAD, NARROW = 40, 12
"""Effective number of settings at least, while looking for them and in the end: a few that happen to lie near are no
camera."""
SOFTEST = 0.1
"""Least contrast that a clean window is brought to."""


class PipelineCamera(TonedCamera):
    """Clean image `[B, 3, H, W]` -> photo of the camera, same shape, `[0, 1]`; each with a setting of its own.

    Args:
        size: side in pixels of the windows it was found on.
        settings: how many settings it consists of.
    """

    table: Tensor
    weights: Tensor

    def __init__(self, size: int, settings: int) -> None:
        super().__init__(size)
        self.register_buffer("table", torch.zeros(settings, VALUES, dtype=torch.float64))
        self.register_buffer("weights", torch.ones(settings) / settings)

    @torch.no_grad()
    def forward(self, clean: Tensor, generator: Generator) -> Tensor:
        toned = self.toned(clean, generator)
        chosen = torch.multinomial(self.weights.cpu(), len(clean), replacement=True, generator=generator)
        settings = pipelines_of(self.table.cpu()[chosen])
        return torch.cat([steps(toned[n : n + 1], generator) for n, steps in enumerate(settings)])


@dataclass(frozen=True)
class Search:
    """How settings are looked for.

    Attributes:
        settings: how many are drawn anew in each generation, twice as many in the first.
        generations: each draws near what the ones before found likely.
    """

    settings: int = 300
    generations: int = 4

    @property
    def total(self) -> int:
        """How many are tried."""
        return (self.generations + 1) * self.settings


@dataclass(frozen=True)
class Simulated:
    """What is known of all settings tried, `[K, WINDOWS, ...]`: statistics, and what was really done."""

    settings: list[PhotoPipeline]
    statistics: Tensor
    truth: Tensor


def match_camera(
    photos: Tensor,
    groups: Sequence[str],
    bank: Tensor,
    search: Search,
    seed: int,
    on_step: Callable[[int], None] | None = None,
) -> PipelineCamera:
    """Finds the settings whose photos of clean windows look like the photos.

    Args:
        photos: `[N, 3, S, S]`, windows at the photos' own pixels.
        groups: the photo that each window is of; those of one photo have one setting.
        bank: `[M, 3, S, S]`, clean windows with the tone that the photos have.
        seed: of every draw.
        on_step: called with the number of settings tried.
    """
    generator = Generator().manual_seed(seed)
    clean, found = with_contrast_of(photos, bank), photo_statistics(photos)
    place = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    photo_of = torch.tensor([place[group] for group in groups], device=photos.device)
    known = _tried([draw_pipeline(generator) for _ in range(2 * search.settings)], clean, generator, on_step, 0)
    weights = _likely(known, found, photo_of, BROAD)
    for generation in range(1, search.generations):
        spread = 0.9 * weights + 0.1 / len(weights)
        chosen = torch.multinomial(spread.cpu(), search.settings, replacement=True, generator=generator).tolist()
        near = [changed_pipeline(known.settings[number], generator) for number in chosen]
        new = _tried(near, clean, generator, on_step, len(known.settings))
        known = Simulated(
            known.settings + new.settings,
            torch.cat([known.statistics, new.statistics]),
            torch.cat([known.truth, new.truth]),
        )
        weights = _likely(known, found, photo_of, NARROW if generation == search.generations - 1 else BROAD)
    best = weights.cpu().argsort(descending=True)[:KEPT]
    camera = PipelineCamera(photos.shape[-1], len(best))
    camera.table.copy_(table_of([known.settings[number] for number in best.tolist()]))
    camera.weights.copy_(weights.cpu()[best] / weights.cpu()[best].sum())
    return camera.to(photos.device)


def with_contrast_of(photos: Tensor, bank: Tensor) -> Tensor:
    """The clean windows `[M, 3, S, S]`, each with the contrast of the photos' window of its rank, never with more.

    Windows that were brought down hold more contrast than those of a photo at its own pixels, and what is simulated,
    taught and compared should hold as much.
    """
    own, wanted = content_power(bank), content_power(photos).sort().values
    rank = own.argsort().argsort() / max(1, len(own) - 1) * (len(wanted) - 1)
    gain = ((wanted[rank.round().long()] - own) / 2).exp().clamp(SOFTEST, 1).view(-1, 1, 1, 1)
    mean = bank.mean((2, 3), keepdim=True)
    return (mean + gain * (bank - mean)).clamp(0, 1)


def unlikeness(photos: Tensor, seen: Tensor) -> float:
    """How far photos that a camera would take, `seen` `[M, 3, S, S]`, are from the photos `[N, 3, S, S]`.

    The root mean square, over all statistics of what a camera does, of the difference of means in standard deviations.
    """
    real, simulated = (photo_statistics(images)[:, :-CONTENT_STATISTICS] for images in (photos, seen))
    deviation = ((real.var(0) + simulated.var(0)) / 2).sqrt().clamp(min=1e-3)
    return float(((real.mean(0) - simulated.mean(0)) / deviation).square().mean().sqrt())


def _tried(
    settings: list[PhotoPipeline],
    clean: Tensor,
    generator: Generator,
    on_step: Callable[[int], None] | None,
    before: int,
) -> Simulated:
    statistics, truth = [], []
    for number, steps in enumerate(settings, start=before + 1):
        windows = clean[torch.randint(len(clean), (WINDOWS,), generator=generator)]
        seen = steps(windows, generator)
        statistics.append(photo_statistics(seen))
        truth.append(transfer_and_noise(windows, seen))
        if on_step is not None:
            on_step(number)
    return Simulated(settings, torch.stack(statistics), torch.stack(truth))


def _likely(known: Simulated, found: Tensor, photo_of: Tensor, fewest: int) -> Tensor:
    """How likely each setting is for a photo of this camera, `[K]`, sums to 1.

    Statistics are compared in the form of what they say about transfer and noise, which a regression on the simulated
    photos knows; so what says nothing does not count, and content is allowed for. Where photos lie further from every
    setting than chance explains, or fewer than `fewest` would count, settings are told apart less sharply.
    """
    summarise = _regression(known)
    simulated = summarise(known.statistics.flatten(0, 1)).unflatten(0, (len(known.settings), WINDOWS))
    count = torch.bincount(photo_of).unsqueeze(1).to(found)
    seen = found.new_zeros(len(count), simulated.shape[-1]).index_add_(0, photo_of, summarise(found)) / count
    centre = simulated.mean(1)
    error = (simulated - centre[:, None]).flatten(0, 1)
    covariance = error.T @ error / (len(known.settings) * (WINDOWS - 1))
    precision = torch.linalg.inv(covariance + 1e-2 * torch.diag(covariance.diagonal()) + 1e-6 * _eye(covariance))
    root = torch.linalg.cholesky(precision)
    distance = torch.cdist(seen @ root, centre @ root).square() / (1 / count + 1 / WINDOWS)
    misfit = float((distance.min(1).values.median() / seen.shape[-1]).clamp(min=1))
    fewest = min(fewest, len(known.settings) // 4)
    weights = _mixture(distance / misfit)
    while 1 / float(weights.square().sum()) < fewest:
        misfit *= 1.3
        weights = _mixture(distance / misfit)
    return weights


def _mixture(distance: Tensor) -> Tensor:
    """The distribution over settings that makes photos at these squared distances `[N, K]` most likely, `[K]`."""
    weights = distance.new_full((distance.shape[1],), 1 / distance.shape[1])
    for _ in range(20):
        weights = (weights.log() - distance / 2).softmax(1).mean(0).clamp(min=1e-12)
        weights = weights / weights.sum()
    return weights


def _regression(known: Simulated) -> Callable[[Tensor], Tensor]:
    """Ridge regression of what was done on the statistics and their squares, `[N, D]` -> `[N, T]`."""
    statistics, truth = known.statistics.flatten(0, 1), known.truth.flatten(0, 1)
    mean, deviation = statistics.mean(0), statistics.std(0).clamp(min=1e-6)

    def features(found: Tensor) -> Tensor:
        unit = ((found - mean) / deviation).clamp(-4, 4)
        return torch.cat([unit, unit.square(), torch.ones_like(unit[:, :1])], 1)

    seen = features(statistics)
    normal = seen.T @ seen + 3 * _eye(seen.T @ seen)
    solution = torch.linalg.solve(normal, seen.T @ (truth - truth.mean(0)))
    return lambda found: features(found) @ solution


def _eye(matrix: Tensor) -> Tensor:
    return torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
