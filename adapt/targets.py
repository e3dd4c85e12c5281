"""Generated work on disk: pseudo targets and bank images, made once each, by any mapper, and read back."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from adapt.cluster import Mapper
from adapt.errors import AdaptError
from adapt.gathered import WindowRecord, load_windows
from adapt.generate import BankTask, TargetTask, WorkerFactory
from adapt.seeds import seed_of
from adapt.workspace import read_metadata, read_tensors, write_tensors
from pseudo_targets.gating import PseudoTarget

Advance = Callable[[int], None]


@dataclass(frozen=True)
class TargetSet:
    """What became of windows whose pseudo targets were asked for; the images stay on disk, as thousands fill a memory.

    Attributes:
        accepted: windows whose target may teach.
        refused: why each of the others has none that may: a failure, or which limit of the gate it broke.
    """

    accepted: tuple[WindowRecord, ...]
    refused: tuple[str, ...]


class _Tasks(Sequence[TargetTask]):
    """Tasks whose photos are read when they are asked for; `chunks` are (windows, start timestep)."""

    def __init__(self, root: Path, chunks: Sequence[tuple[Sequence[WindowRecord], int]], seed: tuple[int, int]) -> None:
        self.root, self.chunks, self.seed = root, chunks, seed

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, index: int) -> TargetTask:  # type: ignore[override]  # no slices
        windows, start = self.chunks[index]
        seeds = tuple(seed_of(*self.seed, window.sha256, window.index) for window in windows)
        return TargetTask(tuple(window.id for window in windows), load_windows(self.root, windows), start, seeds)


def make_targets(
    windows: Sequence[WindowRecord],
    root: Path,
    starts: Sequence[int],
    folder: Path,
    factory: WorkerFactory,
    mapper: Mapper,
    seed: tuple[int, int],
    provenance: dict[str, str],
    advance: Advance,
) -> TargetSet:
    """Generates what is missing in `folder`.

    Batches are composed of all windows before those that exist are skipped, so an interrupted run computes what an
    uninterrupted one would.

    Args:
        root: the run's folder, which holds the pixels of `windows`.
        starts: the start timestep of each window.
        folder: where targets go, one file a window.
        seed: (recipe seed, round).
        provenance: written beside every target: round, weights and recipe hashes.
    """
    by_start: dict[int, list[WindowRecord]] = {}
    for window, start in zip(windows, starts, strict=True):
        by_start.setdefault(start, []).append(window)
    size = factory.generation.batch
    chunks = [
        (alike[first : first + size], start)
        for start, alike in sorted(by_start.items())
        for first in range(0, len(alike), size)
    ]
    todo = [chunk for chunk in chunks if not all(target_file(folder, window).exists() for window in chunk[0])]
    done = len(windows) - sum(len(chunk[0]) for chunk in todo)
    advance(done)
    failures: dict[str, str] = {}
    for outcome in mapper.map(factory.target_worker, _Tasks(root, todo, seed)):
        some, start = todo[outcome.index]
        if outcome.value is None:
            failures.update({window.id: str(outcome.failure) for window in some})
        else:
            for window, target in zip(some, outcome.value, strict=True):
                _write_target(target_file(folder, window), target, {**provenance, "start_timestep": str(start)})
        done += len(some)
        advance(done)
    if failures and len(failures) == len(windows):
        raise AdaptError(f"no pseudo target could be generated: {next(iter(failures.values()))}")
    verdicts = {window: read_verdict(target_file(folder, window)) for window in windows if window.id not in failures}
    limits = [reason.split(":")[0] for accepted, reason in verdicts.values() if not accepted]
    kept = tuple(window for window, (accepted, _) in verdicts.items() if accepted)
    return TargetSet(kept, (*limits, *failures.values()))


def target_file(folder: Path, window: WindowRecord) -> Path:
    """Where a window's pseudo target lies in the folder of its stage."""
    return folder / f"{window.id}.safetensors"


def make_bank(
    count: int,
    sources: Tensor,
    settings: tuple[int, int],
    folder: Path,
    factory: WorkerFactory,
    mapper: Mapper,
    seed: int,
    advance: Advance,
) -> Tensor:
    """Draws `count` clean faces `[count, 3, S, S]`; `settings` is (start timestep, calls)."""
    size = factory.generation.batch
    tasks = []
    for index, first in enumerate(range(0, count, size)):
        numbers = list(range(first, min(first + size, count)))
        faces = sources[[number % len(sources) for number in numbers]]
        seeds = tuple(seed_of(seed, number) for number in numbers)
        tasks.append(BankTask(index, faces, settings[0], settings[1], seeds))
    todo = [task for task in tasks if not _bank_file(folder, task.index).exists()]
    advance(min(count, (len(tasks) - len(todo)) * size))
    for number, outcome in enumerate(mapper.map(factory.bank_worker, todo), start=len(tasks) - len(todo) + 1):
        if outcome.value is None:
            raise AdaptError(f"the clean bank could not be drawn: {outcome.failure}")
        write_tensors(_bank_file(folder, todo[outcome.index].index), {"faces": outcome.value.half()})
        advance(min(count, number * size))
    return torch.cat([read_tensors(_bank_file(folder, task.index))[0]["faces"].float() for task in tasks])


def read_target(path: Path) -> PseudoTarget:
    """Reads a pseudo target in float32."""
    tensors, metadata = read_tensors(path)
    record = json.loads(metadata["record"])
    mean, draw, confidence = (tensors[name].float() for name in ("mean", "draw", "confidence"))
    return PseudoTarget(mean, draw, confidence, record["scores"], record["accepted"], record["reason"])


def read_verdict(path: Path) -> tuple[bool, str]:
    """Whether a pseudo target was accepted, and why not; reads no image."""
    record = json.loads(read_metadata(path)["record"])
    return record["accepted"], record["reason"]


def read_provenance(path: Path) -> dict[str, str]:
    """What a pseudo target was made with."""
    provenance: dict[str, str] = json.loads(read_metadata(path)["provenance"])
    return provenance


def _write_target(path: Path, target: PseudoTarget, provenance: dict[str, str]) -> None:
    record = {"scores": target.scores, "accepted": target.accepted, "reason": target.reason}
    images = {"mean": target.mean.half(), "draw": target.draw.half(), "confidence": target.confidence.half()}
    write_tensors(path, images, {"record": json.dumps(record), "provenance": json.dumps(provenance)})


def _bank_file(folder: Path, index: int) -> Path:
    return folder / f"{index:04d}.safetensors"
