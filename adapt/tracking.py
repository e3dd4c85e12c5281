"""Where the numbers of a run go: MLflow, memory, or nowhere. Only the driver logs, workers return values.

    with MlflowTracker(default_uri(run_dir), "faces", run_dir.name, resume_id=saved) as tracker:
        saved = tracker.run_id                       # the caller keeps it on disk, so that a killed run goes on
        with tracker.child("round 1") as one_round:
            one_round.log(10, {"loss": 0.5})

What speaks to MLflow lives in `adapt.tracking_mlflow`, which imports it at first use.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Protocol

from adapt.tracking_mlflow import MlflowTracker, default_uri, end_status, flatten, ui_command

__all__ = ["MemoryTracker", "MlflowTracker", "NullTracker", "Tracker", "default_uri", "ui_command"]


class Tracker(Protocol):
    """One run: numbers, parameters and files go in; `with` ends it as finished, failed or killed."""

    @property
    def run_id(self) -> str | None:
        """What to keep on disk and hand back as `resume_id`; `None` where runs have no identity."""

    def params(self, values: Mapping[str, object]) -> None:
        """Records parameters; nested mappings and dataclasses become dotted names."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records numbers at a step."""

    def artifact(self, path: Path) -> None:
        """Keeps a copy of a file or folder."""

    def model(self, path: Path) -> None:
        """Keeps a copy of a model file, apart from the other artifacts."""

    def child(self, name: str) -> Tracker:
        """A nested run, to be used in a `with`; the same name under the same parent is the same run."""

    def __enter__(self) -> Tracker:
        """Starts the `with`; the run exists already."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends the run; never swallows the error."""


@dataclass
class MemoryTracker:
    """Keeps everything in lists and dicts: for tests, and to look at a run from Python."""

    name: str = "run"
    parameters: dict[str, str] = field(default_factory=dict)
    metrics: list[tuple[int, dict[str, float]]] = field(default_factory=list)
    artifacts: list[Path] = field(default_factory=list)
    models: list[Path] = field(default_factory=list)
    children: dict[str, MemoryTracker] = field(default_factory=dict)
    status: str = "RUNNING"

    @property
    def run_id(self) -> str | None:
        """Memory does not outlive the process: nothing to resume."""
        return None

    def params(self, values: Mapping[str, object]) -> None:
        """Adds to `parameters`."""
        self.parameters.update(flatten(values))

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Adds to `metrics`."""
        self.metrics.append((step, dict(metrics)))

    def artifact(self, path: Path) -> None:
        """Adds to `artifacts`."""
        self.artifacts.append(path)

    def model(self, path: Path) -> None:
        """Adds to `models`."""
        self.models.append(path)

    def child(self, name: str) -> MemoryTracker:
        """The child of that name, made at the first call."""
        child = self.children.setdefault(name, MemoryTracker(name))
        child.status = "RUNNING"
        return child

    def __enter__(self) -> MemoryTracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.status = end_status(kind)


class NullTracker:
    """Drops everything: for runs that nobody tracks, or without MLflow installed."""

    run_id: str | None = None

    def params(self, values: Mapping[str, object]) -> None:
        """Does nothing."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Does nothing."""

    def artifact(self, path: Path) -> None:
        """Does nothing."""

    def model(self, path: Path) -> None:
        """Does nothing."""

    def child(self, name: str) -> NullTracker:
        """Itself."""
        return self

    def __enter__(self) -> NullTracker:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass
