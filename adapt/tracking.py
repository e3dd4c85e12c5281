"""Where the numbers of a run go: MLflow, memory, or nowhere. Only the driver logs, workers return values.

    with MlflowTracker(default_uri(run_dir), "faces", run_dir.name, resume_id=saved) as tracker:
        saved = tracker.run_id                       # the caller keeps it on disk, so that a killed run goes on
        with tracker.child("round 1") as one_round:
            one_round.log(10, {"loss": 0.5})

MLflow itself lives in `adapt.tracking_mlflow`, which imports it at first use.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from types import TracebackType
from typing import Protocol


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


def default_uri(run_dir: Path) -> str:
    """The store inside a run folder: `sqlite:////absolute/run/mlflow.db`."""
    # SQLAlchemy reads these two characters of a path as URL syntax.
    path = (run_dir.absolute() / "mlflow.db").as_posix().replace("%", "%25").replace("?", "%3F")
    return f"sqlite:///{path}"


def ui_command(uri: str) -> str:
    """The shell command that shows the runs of a tracking store in a browser."""
    if uri.startswith(("http://", "https://")):
        return shlex.join([sys.executable, "-m", "webbrowser", uri])
    return shlex.join([sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri])


def flatten(values: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """Nested mappings and dataclasses as dotted names with text values: `{"a": {"b": 1}}` -> `{"a.b": "1"}`."""
    flat: dict[str, str] = {}
    for name, value in values.items():
        if is_dataclass(value) and not isinstance(value, type):
            value = asdict(value)
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = str(value)
    return flat


def end_status(kind: type[BaseException] | None) -> str:
    """MLflow's word for how a run ended, given the exception that ended it."""
    if kind is None:
        return "FINISHED"
    return "FAILED" if issubclass(kind, Exception) else "KILLED"


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
