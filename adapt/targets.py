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
from adapt.gather import FaceRecord
from adapt.generate import BankTask, TargetTask, WorkerFactory
from adapt.seeds import seed_of
from adapt.workspace import read_tensors, write_tensors
from pseudo_targets.gating import PseudoTarget

Advance = Callable[[int], None]


@dataclass(frozen=True)
class TargetSet:
    """The pseudo targets of a round, in the order of `faces`; `failures` are faces whose generation failed."""

    faces: tuple[FaceRecord, ...]
    targets: tuple[PseudoTarget, ...]
    failures: tuple[tuple[str, str], ...]

    def accepted(self) -> list[int]:
        """Indices of the targets that may teach."""
        return [index for index, target in enumerate(self.targets) if target.accepted]


def make_targets(
    faces: Sequence[FaceRecord],
    photos: Tensor,
    starts: Sequence[int],
    folder: Path,
    factory: WorkerFactory,
    mapper: Mapper,
    seed: tuple[int, int],
    provenance: dict[str, str],
    advance: Advance,
) -> TargetSet:
    """Generates what is missing in `folder` and reads everything back.

    Batches are composed of all faces before those that exist are skipped, so an interrupted run computes what an
    uninterrupted one would.

    Args:
        seed: (recipe seed, round).
        provenance: written beside every target: round, weights and recipe hashes.
    """
    by_start: dict[int, list[int]] = {}
    for index, start in enumerate(starts):
        by_start.setdefault(start, []).append(index)
    size = factory.generation.batch
    chunks = [
        (start, indices[first : first + size])
        for start, indices in sorted(by_start.items())
        for first in range(0, len(indices), size)
    ]
    tasks = [
        TargetTask(
            tuple(faces[i].id for i in indices),
            photos[indices],
            start,
            tuple(seed_of(*seed, faces[i].sha256, faces[i].index) for i in indices),
        )
        for start, indices in chunks
    ]
    todo = [task for task in tasks if not all((folder / f"{face}.safetensors").exists() for face in task.faces)]
    done = len(faces) - sum(len(task.faces) for task in todo)
    advance(done)
    failures: dict[str, str] = {}
    for outcome in mapper.map(factory.target_worker, todo):
        task = todo[outcome.index]
        if outcome.value is None:
            failures.update(dict.fromkeys(task.faces, str(outcome.failure)))
        else:
            for face, target in zip(task.faces, outcome.value, strict=True):
                _write_target(folder / f"{face}.safetensors", target, {**provenance, "start_timestep": str(task.start)})
        done += len(task.faces)
        advance(done)
    if failures and len(failures) == len(faces):
        raise AdaptError(f"no pseudo target could be generated: {next(iter(failures.values()))}")
    made = [face for face in faces if face.id not in failures]
    targets = tuple(read_target(folder / f"{face.id}.safetensors") for face in made)
    return TargetSet(tuple(made), targets, tuple(failures.items()))


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


def read_provenance(path: Path) -> dict[str, str]:
    """What a pseudo target was made with."""
    provenance: dict[str, str] = json.loads(read_tensors(path)[1]["provenance"])
    return provenance


def _write_target(path: Path, target: PseudoTarget, provenance: dict[str, str]) -> None:
    record = {"scores": target.scores, "accepted": target.accepted, "reason": target.reason}
    images = {"mean": target.mean.half(), "draw": target.draw.half(), "confidence": target.confidence.half()}
    write_tensors(path, images, {"record": json.dumps(record), "provenance": json.dumps(provenance)})


def _bank_file(folder: Path, index: int) -> Path:
    return folder / f"{index:04d}.safetensors"
