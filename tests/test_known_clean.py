"""What blend and judge photograph: accepted targets of the first round, without the camera's tone, gray like photos."""

from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import torch

from adapt.gathered import WindowRecord
from adapt.stages import Job, known_clean
from adapt.targets import _write_target
from adapt.workspace import Workspace
from pseudo_targets.camera import LearnedCamera
from pseudo_targets.gating import PseudoTarget
from tests.tiny import blobs

COLORFUL = blobs(1, 32, seed=9)[0]


@dataclass(frozen=True)
class Window:
    """All that is asked of a window here."""

    id: str
    color: bool
    side: int = 100


def put(folder: Path, name: str, draw: torch.Tensor, accepted: bool = True) -> None:
    target = PseudoTarget(draw * 0, draw, torch.ones(1, 32, 32), {}, accepted, "" if accepted else "still degraded")
    _write_target(folder / f"{name}.safetensors", target, {})


def job_of(root: Path, gray: str) -> tuple[Job, list[WindowRecord]]:
    windows = [cast(WindowRecord, Window(name, name != gray)) for name in "abcd"]
    return cast(Job, SimpleNamespace(workspace=Workspace(root))), windows


def test_it_takes_accepted_targets_of_the_first_round(tmp_path: Path) -> None:
    job, windows = job_of(tmp_path, gray="b")
    draws = 0.3 + 0.2 * blobs(3, 32)
    first, second = (job.workspace.round(number) / "targets" for number in (1, 2))
    put(first, "a", draws[0])
    put(first, "b", draws[1])
    put(first, "c", draws[2], accepted=False)  # "d" could not be generated
    put(second, "a", draws[2])
    camera = LearnedCamera(32)
    camera.tone_gain.fill_(0.5)
    camera.tone_offset.fill_(0.1)
    known = known_clean(job, camera, windows, "pseudo targets")
    clean = known.images
    assert known.groups == ("below 192 px",) * 2
    assert clean.shape == (2, 3, 32, 32)
    torch.testing.assert_close(clean[0], camera.untoned(draws[:1])[0], atol=2e-3, rtol=0)
    assert (clean[1, 0] - clean[1, 2]).abs().max() < 1e-6 < (clean[0, 0] - clean[0, 2]).abs().max()


def test_without_any_it_is_empty(tmp_path: Path) -> None:
    job, windows = job_of(tmp_path, gray="")
    put(job.workspace.round(1) / "targets", "a", blobs(1, 32)[0], accepted=False)
    assert known_clean(job, LearnedCamera(32), windows, "pseudo targets").images.shape == (0, 3, 32, 32)
