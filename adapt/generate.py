"""Stage 1 and stage 2 as work items: the same calls in process and on a cluster, in any order."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Generator, Tensor, nn

from adapt.identity import load_identity
from adapt.prior_setup import LOW_PASSES, consistencies, negative_of, placed, sampled_as_diffbir, texts_for
from adapt.seeds import generator_of
from pseudo_targets.bank import vary
from pseudo_targets.color_fix import adain_color_fix, wavelet_color_fix
from pseudo_targets.dt_bfr import noise_from, released_path, released_pseudo_target
from pseudo_targets.embedded import load_quality
from pseudo_targets.gating import PseudoTarget, Thresholds, gate
from pseudo_targets.priors import Prior
from pseudo_targets.sampling import Trajectory, conditional_mean, draw, refine
from pseudo_targets.zoo import family_of, load_prior
from recipes.schema import Gate, Generation

COLOR_FIXES = {"wavelet": wavelet_color_fix, "adain": adain_color_fix}


@dataclass(frozen=True)
class TargetTask:
    """Pseudo targets for a few photos `[B, 3, S, S]` that share a start timestep; one seed a photo."""

    windows: tuple[str, ...]
    photos: Tensor
    start: int
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class BankTask:
    """Clean faces: variations of `faces` `[B, 3, S, S]` from timestep `start`; from the last one, free draws."""

    index: int
    faces: Tensor
    start: int
    calls: int
    seeds: tuple[int, ...]


class PriorShelf:
    """Keeps a prior that was read and placed for the next stage of the same process; empty where it travels to."""

    def __init__(self) -> None:
        self._held: tuple[Prior, nn.Module | None] | None = None

    def take(self, place: Callable[[], tuple[Prior, nn.Module | None]]) -> tuple[Prior, nn.Module | None]:
        """What is kept, or what `place` returns, which is kept from then on."""
        if self._held is None:
            self._held = place()
        return self._held

    def clear(self) -> None:
        """Frees the device for what trains."""
        self._held = None
        gc.collect()  # hooks that bring a network to the device and back refer to each other
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def __reduce__(self) -> tuple[type[PriorShelf], tuple[()]]:
        return PriorShelf, ()


@dataclass(frozen=True)
class WorkerFactory:
    """Builds a worker wherever it is called; everything in it travels to other machines."""

    restorer: nn.Module
    prior: str
    generation: Generation
    gate: Gate
    device: str
    cleaner: nn.Module | None = None
    """Published stage 1 of the prior; None is the embedded degradation removal."""
    shelf: PriorShelf = field(default_factory=PriorShelf)
    """Of all stages of one job, which share prior, settings and device."""

    def target_worker(self) -> Callable[[TargetTask], list[PseudoTarget]]:
        """Loads the prior once; the call makes pseudo targets."""
        return Worker(self).targets

    def bank_worker(self) -> Callable[[BankTask], Tensor]:
        """Loads the prior once; the call draws clean faces."""
        return Worker(self).bank


class Worker:
    """Holds one prior on one device and turns tasks into results."""

    def __init__(self, plan: WorkerFactory) -> None:
        self.plan = plan
        self.device = torch.device(plan.device)
        self.prior, cleaner = plan.shelf.take(
            lambda: placed(load_prior(plan.prior), plan.cleaner, plan.generation, self.device)
        )
        self.quality = load_quality(family_of(plan.prior)).to(self.device)
        self.restorer = plan.restorer.to(self.device).eval()
        removal = self.quality.removal if cleaner is None else cleaner
        self.stage1: nn.Module = removal if plan.generation.stage1 == "removal" else self.restorer
        self.embed = load_identity(self.device)
        self.texts = texts_for(plan.prior, plan.generation, self.device)

    @torch.no_grad()
    def targets(self, task: TargetTask) -> list[PseudoTarget]:
        """Cleans, refines, gates; in the order of the task's photos, on the CPU."""
        settings = self.plan.generation
        photos = task.photos.to(self.device)
        reference = self.stage1(photos)
        if settings.sampler != "diffbir":  # whose conditions overshoot as stage 1 does
            reference = reference.clamp(0, 1)
        context = None if self.texts is None else self.texts.positive(photos)
        candidates = self._candidates(reference, task, context)
        mean = candidates.mean(0)
        if settings.realism < 1:
            keep = consistencies(settings, self.prior, len(self.prior.schedule) - 1)
            expected = conditional_mean(self.prior, reference, settings.control_strength, keep, context)
            expected = recoloured(expected, reference, settings.color_fix).clamp(0, 1)
            mean = torch.lerp(expected, mean, settings.realism)
        thresholds = Thresholds(**self.plan.gate.model_dump())
        targets = gate(photos, reference.clamp(0, 1), mean, candidates, self.quality, thresholds, self.embed)
        return [_on_cpu(target) for target in targets]

    def _candidates(self, reference: Tensor, task: TargetTask, context: Tensor | None) -> Tensor:
        """Draws `[K, B, 3, S, S]` behind cleaned photos."""
        settings = self.plan.generation
        trajectory = Trajectory(task.start, settings.calls, settings.eta, settings.control_strength)
        keep = consistencies(settings, self.prior, task.start)
        draws = []
        for number in range(settings.candidates):
            generators = [generator_of("target", seed, number) for seed in task.seeds]
            if settings.sampler == "dt_bfr":
                image = self.released(reference, task.start, generators)
            elif settings.sampler == "diffbir":
                negative = negative_of(self.texts, settings)
                image = sampled_as_diffbir(self.prior, reference, settings, generators, context, negative)
            else:
                image = refine(self.prior, reference, trajectory, keep, generators, context)
            draws.append(recoloured(image, reference, settings.color_fix).clamp(0, 1))
        return torch.stack(draws)

    def released(self, reference: Tensor, start: int, generators: list[Generator]) -> Tensor:
        """One draw of DT-BFR's released sampler for each reference `[B, 3, S, S]`, in `[0, 1]`."""
        settings = self.plan.generation
        low_pass = None if settings.filter == "none" else LOW_PASSES[settings.filter](settings.filter_factor)
        path = released_path(self.prior.schedule, start, settings.calls, low_pass, settings.end_timestep)
        noise = noise_from(generators)
        return released_pseudo_target(self.prior, reference, path, noise, settings.control_strength)

    @torch.no_grad()
    def bank(self, task: BankTask) -> Tensor:
        """Draws clean faces `[B, 3, S, S]` on the CPU; the restorer takes away the grain that a small prior leaves."""
        generators = [generator_of("bank", seed) for seed in task.seeds]
        last = len(self.prior.schedule) - 1
        trajectory = Trajectory(min(task.start, last), task.calls)
        if task.start >= last:
            faces = draw(self.prior, trajectory, generators, self.device)
        else:
            faces = vary(self.prior, task.faces.to(self.device), trajectory, generators)
        return self.restorer(faces).clamp(0, 1).cpu()


def start_of(photo: Tensor, removal: nn.Module, settings: Generation) -> int:
    """The start timestep of one photo `[3, S, S]`: the more removal changes it, the more must be invented."""
    if settings.start == "fixed":
        return settings.start_timesteps[0]
    with torch.no_grad():
        change = float((removal(photo[None]) - photo[None]).square().mean().sqrt())
    level = sum(change > limit for limit in settings.severity_limits)
    return settings.start_timesteps[min(level, len(settings.start_timesteps) - 1)]


def recoloured(image: Tensor, reference: Tensor, fix: str) -> Tensor:
    """Drawn images `[B, 3, S, S]` with the colours of their reference, as the recipe says; not clamped."""
    return image if fix == "none" else COLOR_FIXES[fix](image, reference)


def _on_cpu(target: PseudoTarget) -> PseudoTarget:
    return PseudoTarget(
        target.mean.cpu(), target.draw.cpu(), target.confidence.cpu(), target.scores, target.accepted, target.reason
    )
