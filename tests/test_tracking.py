"""Trackers: what is kept, what a killed run continues, how a store that fails is told in one line."""

from __future__ import annotations

import importlib.util
import sqlite3
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from adapt.errors import AdaptError
from adapt.tracking import MemoryTracker, MlflowTracker, NullTracker, Tracker, default_uri, ui_command
from adapt.tracking_mlflow import flatten

needs_mlflow = pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="mlflow is not installed")


@dataclass(frozen=True)
class Settings:
    """Something nested."""

    steps: int
    rate: float


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """One database for all tests of this file: making its tables takes a second or more."""
    # SQLAlchemy and MLflow would read these characters as URL syntax.
    return default_uri(tmp_path_factory.mktemp("run 100% #1"))


def client(uri: str) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=uri)


def use(tracker: Tracker, file: Path) -> None:
    with tracker:
        tracker.params({"recipe": {"finetune": Settings(10, 0.5)}, "restorer": "compact"})
        with tracker.child("round 1") as child:
            child.log(1, {"loss/total": 0.5})
            child.log(2, {"loss/total": 0.25})
            child.artifact(file)
        tracker.model(file)


def test_flatten_names_nested_values_with_dots() -> None:
    flat = flatten({"a": {"b": 1, "c": {"d": "x"}}, "s": Settings(3, 0.1), "list": [1, 2]})
    assert flat == {"a.b": "1", "a.c.d": "x", "s.steps": "3", "s.rate": "0.1", "list": "[1, 2]"}


def test_memory_keeps_everything(tmp_path: Path) -> None:
    tracker, file = MemoryTracker(), tmp_path / "a.txt"
    use(tracker, file)
    child = tracker.children["round 1"]
    assert tracker.parameters["recipe.finetune.steps"] == "10"
    assert child.metrics == [(1, {"loss/total": 0.5}), (2, {"loss/total": 0.25})]
    assert (child.artifacts, tracker.models) == ([file], [file])
    assert (child.status, tracker.status) == ("FINISHED", "FINISHED")


def test_memory_tells_how_a_run_ended() -> None:
    tracker = MemoryTracker()
    with pytest.raises(ValueError, match="x"), tracker, tracker.child("round 1"):
        raise ValueError("x")
    assert (tracker.status, tracker.children["round 1"].status) == ("FAILED", "FAILED")
    with pytest.raises(KeyboardInterrupt), tracker:
        raise KeyboardInterrupt
    assert tracker.status == "KILLED"


def test_null_takes_everything(tmp_path: Path) -> None:
    tracker = NullTracker()
    use(tracker, tmp_path / "never-read")
    assert tracker.run_id is None
    assert list(tmp_path.iterdir()) == []


@needs_mlflow
def test_mlflow_keeps_parameters_metrics_files_and_the_tree(store: str, tmp_path: Path) -> None:
    file = tmp_path / "restorer.safetensors"
    file.write_text("weights")
    tracker = MlflowTracker(store, "keeps", "faces")
    use(tracker, file)
    parent = client(store).get_run(tracker.run_id)
    assert parent.data.params["recipe.finetune.rate"] == "0.5"
    assert parent.info.status == "FINISHED"
    [child] = client(store).search_runs([parent.info.experiment_id], f"tags.mlflow.parentRunId = '{tracker.run_id}'")
    assert (child.info.run_name, child.info.status) == ("round 1", "FINISHED")
    history = client(store).get_metric_history(child.info.run_id, "loss/total")
    assert [(metric.step, metric.value) for metric in history] == [(1, 0.5), (2, 0.25)]
    assert [entry.path for entry in client(store).list_artifacts(tracker.run_id, "model")] == ["model/" + file.name]
    assert [entry.path for entry in client(store).list_artifacts(child.info.run_id)] == [file.name]
    artifacts = Path(parent.info.artifact_uri.removeprefix("file://").replace("%20", " ").replace("%25", "%"))
    assert "mlartifacts" in artifacts.as_posix()


@needs_mlflow
def test_a_killed_run_is_continued_and_nothing_is_doubled(store: str, tmp_path: Path) -> None:
    file = tmp_path / "restorer.safetensors"
    file.write_text("weights")
    first = MlflowTracker(store, "resumes", "faces", key=str(tmp_path))
    first.params({"steps": 10})
    first.child("round 1").log(1, {"loss": 0.5})  # and here the process dies: nothing ends the runs
    for second in (
        MlflowTracker(store, "resumes", "faces", resume_id=first.run_id),
        MlflowTracker(store, "resumes", "faces", key=str(tmp_path)),
    ):
        assert second.run_id == first.run_id
        with second:
            second.params({"steps": 11, "more": "x"})
            with second.child("round 1") as child:
                child.log(1, {"loss": 0.5})
                child.log(2, {"loss": 0.4})
    runs = client(store).search_runs([client(store).get_experiment_by_name("resumes").experiment_id])
    assert sorted(run.info.run_name for run in runs) == ["faces", "round 1"]
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert client(store).get_run(first.run_id).data.params == {"steps": "10", "more": "x"}
    history = client(store).get_metric_history(child.run_id, "loss")
    assert [(metric.step, metric.value) for metric in history] == [(1, 0.5), (2, 0.4)]


@needs_mlflow
def test_a_run_the_store_does_not_know_is_begun_anew(store: str, caplog: pytest.LogCaptureFixture) -> None:
    tracker = MlflowTracker(store, "anew", "faces", resume_id="0" * 32)
    assert tracker.run_id != "0" * 32
    assert "a new run is begun" in caplog.text


@needs_mlflow
def test_a_failed_run_is_marked_and_long_or_odd_parameters_fit(store: str) -> None:
    tracker = MlflowTracker(store, "fails", "faces")
    many = {f"p{number}": number for number in range(250)}
    tracker.params({"long": "x" * 10_000, "odd*name(é)": 1, "k" * 400: 2, **many})
    with pytest.raises(ValueError, match="boom"), tracker:
        raise ValueError("boom")
    run = client(store).get_run(tracker.run_id)
    assert run.info.status == "FAILED"
    assert len(run.data.params["long"]) == 6000
    assert run.data.params["odd_name___"] == "1"
    assert run.data.params["k" * 250] == "2"
    assert run.data.params["p249"] == "249"


@needs_mlflow
def test_an_artifact_that_is_not_there_is_told_in_one_line(store: str, tmp_path: Path) -> None:
    with pytest.raises(AdaptError, match="missing") as caught:
        MlflowTracker(store, "missing", "faces").artifact(tmp_path / "missing.png")
    assert "\n" not in str(caught.value)


@needs_mlflow
def test_a_store_left_half_made_under_its_temporary_name_is_no_store(store: str) -> None:
    # The tables are made under another name: a kill before the rename leaves only a file that nobody reads.
    database = Path(store.removeprefix("sqlite:///").replace("%25", "%"))
    MlflowTracker(store, "whole", "faces")
    assert sqlite3.connect(database).execute("SELECT count(*) FROM alembic_version").fetchone() == (1,)
    assert not list(database.parent.glob(".tmp-*"))


@needs_mlflow
@pytest.mark.parametrize("uri", ["http://127.0.0.1:1", "https://no.such.host.invalid"])
def test_a_server_that_is_not_there_is_told_at_once(uri: str) -> None:
    started = time.monotonic()
    with pytest.raises(AdaptError, match=f"--tracking-uri {uri}: no server answers") as caught:
        MlflowTracker(uri, "x", "y")
    assert "\n" not in str(caught.value)
    assert time.monotonic() - started < 60


@needs_mlflow
def test_a_file_that_is_no_database_is_told_at_once(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").write_text("this is text, and long enough to be taken for a header of something else" * 9)
    with pytest.raises(AdaptError, match="not a database"):
        MlflowTracker(default_uri(tmp_path), "x", "y")


def test_without_mlflow_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "mlflow.tracking", None)
    with pytest.raises(AdaptError, match="pip install mlflow"):
        MlflowTracker(default_uri(tmp_path), "x", "y")


def test_ui_command_opens_what_the_uri_names(tmp_path: Path) -> None:
    uri = default_uri(tmp_path / "two words")
    assert ui_command(uri).endswith(f"-m mlflow ui --backend-store-uri '{uri}'")
    assert ui_command("http://host:5000").endswith("-m webbrowser http://host:5000")
