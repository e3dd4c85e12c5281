"""Runs kept by MLflow: one parent an adaptation, one nested child a round; a killed run is continued, never doubled.

MLflow is imported at first use, with its telemetry off, and only through its client: no global active run.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shlex
import sqlite3
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, is_dataclass
from pathlib import Path
from time import time
from types import TracebackType
from typing import TYPE_CHECKING

from adapt.errors import AdaptError
from restorers.files import atomic_file

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

logger = logging.getLogger(__name__)

# MLflow's own limits: mlflow.utils.validation.
KEY_LENGTH = 250
VALUE_LENGTH = 6000
PARAMS_PER_BATCH = 100
REACH_SECONDS = 5


def default_uri(run_dir: Path) -> str:
    """The store inside a run folder: `sqlite:////absolute/run/mlflow.db`."""
    return _sqlite_uri(run_dir.absolute() / "mlflow.db")


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


class MlflowRun:
    """One MLflow run behind `adapt.tracking.Tracker`; `with` ends it as FINISHED, FAILED or KILLED.

    A parameter or a metric step that a continued run holds already is left as it is: work that a kill made us
    repeat is the same work, so it is not recorded twice.
    """

    def __init__(self, client: MlflowClient, uri: str, run_id: str, experiment_id: str, continued: bool) -> None:
        self._client = client
        self._uri = uri
        self._run_id = run_id
        self._experiment_id = experiment_id
        self._continued = continued
        self._known_steps: dict[str, set[int]] = {}

    @property
    def run_id(self) -> str:
        """The MLflow run id: keep it on disk and pass it as `resume_id` to continue the run."""
        return self._run_id

    def params(self, values: Mapping[str, object]) -> None:
        """Records parameters, dotted where nested, cut to MLflow's lengths; the first value of a name stays.

        Raises:
            AdaptError: the tracking store refuses or does not answer; so for every method below.
        """
        from mlflow.entities import Param

        flat = {_name(key): value[:VALUE_LENGTH] for key, value in flatten(values).items()}
        with _plain_errors(self._uri):
            known = self._client.get_run(self._run_id).data.params
            fresh = [Param(key, value) for key, value in flat.items() if key not in known]
            for start in range(0, len(fresh), PARAMS_PER_BATCH):
                self._client.log_batch(self._run_id, params=fresh[start : start + PARAMS_PER_BATCH])

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records numbers at a step, once."""
        from mlflow.entities import Metric

        now = int(time() * 1000)
        with _plain_errors(self._uri):
            fresh = [
                Metric(_name(key), float(value), now, step)
                for key, value in metrics.items()
                if step not in self._steps(_name(key))
            ]
            self._client.log_batch(self._run_id, metrics=fresh)
        for metric in fresh:
            self._known_steps[metric.key].add(step)

    def artifact(self, path: Path) -> None:
        """Copies a file, or a folder under its name, into the run."""
        with _plain_errors(self._uri):
            self._client.log_artifact(self._run_id, str(path))

    def model(self, path: Path) -> None:
        """Copies a model file into the run's `model` folder."""
        with _plain_errors(self._uri):
            self._client.log_artifact(self._run_id, str(path), "model")

    def child(self, name: str) -> MlflowRun:
        """The nested run of that name, continued where it exists, to be used in a `with`."""
        tags = {"mlflow.parentRunId": self._run_id}
        return _open_run(self._client, self._uri, self._experiment_id, name, tags)

    def _steps(self, key: str) -> set[int]:
        if key not in self._known_steps:
            # Only a continued run can hold steps that this process did not log.
            history = self._client.get_metric_history(self._run_id, key) if self._continued else []
            self._known_steps[key] = {metric.step for metric in history}
        return self._known_steps[key]

    def __enter__(self) -> MlflowRun:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            with _plain_errors(self._uri):
                self._client.set_terminated(self._run_id, "FINISHED")
            return
        # The error under way says more than a store that cannot take the news.
        with suppress(AdaptError), _plain_errors(self._uri):
            self._client.set_terminated(self._run_id, end_status(kind))


class MlflowTracker(MlflowRun):
    """The parent run of one adaptation.

    Args:
        uri: `sqlite:///...` (see `adapt.tracking.default_uri`; artifacts go to `mlartifacts` beside the file), or the
            `http(s)://` address of a tracking server, or anything else that MLflow reads.
        experiment: name of the experiment, made where missing.
        run_name: name of the run.
        resume_id: `run_id` of the run to continue. A run that the store does not know (another store, deleted by hand)
            is begun anew, with a warning.
        key: what marks this adaptation alone, such as the path of its run folder: a run of that key is continued even
            where a kill came before the caller could write `run_id` down.

    Raises:
        AdaptError: MLflow is not installed, or the store cannot be reached.
    """

    def __init__(
        self, uri: str, experiment: str, run_name: str, resume_id: str | None = None, key: str | None = None
    ) -> None:
        client = _connect(uri)
        with _plain_errors(uri):
            experiment_id = _experiment(client, uri, experiment)
        known = _find_run(client, uri, resume_id) if resume_id else None
        if resume_id and known is None:
            logger.warning("run %s is not in %s: a new run is begun", resume_id, uri)
        if known is not None:
            with _plain_errors(uri):
                client.update_run(known.info.run_id, status="RUNNING")
            super().__init__(client, uri, known.info.run_id, known.info.experiment_id, continued=True)
            return
        # Hashed, because MLflow's query language has no way to quote every path.
        tags = {"adapt.key": hashlib.sha256(key.encode(errors="backslashreplace")).hexdigest()} if key else {}
        run = _open_run(client, uri, experiment_id, run_name, tags)
        super().__init__(client, uri, run.run_id, experiment_id, run._continued)


def _open_run(client: MlflowClient, uri: str, experiment_id: str, name: str, tags: dict[str, str]) -> MlflowRun:
    """Continues the run of that name and tags, or creates it; without tags it is always a new one."""
    with _plain_errors(uri):
        query = " and ".join(f"tags.`{tag}` = '{value}'" for tag, value in tags.items())
        found = client.search_runs([experiment_id], query, order_by=["attributes.start_time ASC"]) if tags else []
        same = [run for run in found if run.info.run_name == name]
        if same:
            client.update_run(same[0].info.run_id, status="RUNNING")
            return MlflowRun(client, uri, same[0].info.run_id, experiment_id, continued=True)
        created = client.create_run(experiment_id, tags=tags, run_name=name)
        return MlflowRun(client, uri, created.info.run_id, experiment_id, continued=False)


def _connect(uri: str) -> MlflowClient:
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "WARNING")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    # Seven retries, MLflow's default, keep a user waiting for minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    try:
        from mlflow.tracking import MlflowClient
    except ImportError as error:
        raise AdaptError(f"MLflow is not installed ({error}): run `pip install mlflow`") from error
    if uri.startswith(("http://", "https://")):
        _reach_server(uri)
    with _plain_errors(uri):
        if uri.startswith("sqlite:"):
            _prepare_sqlite(uri)
        return MlflowClient(tracking_uri=uri)


def _reach_server(uri: str) -> None:
    """One quick look whether anything answers; MLflow itself would retry for minutes."""
    try:
        urllib.request.urlopen(f"{uri.rstrip('/')}/health", timeout=REACH_SECONDS).close()
    except urllib.error.HTTPError:
        return  # it answers; a proxy may guard or hide this path
    except (OSError, ValueError) as error:
        raise AdaptError(
            f"--tracking-uri {uri}: no server answers ({_first_line(error)}); start it, or drop --tracking-uri to keep "
            "the runs in the run folder"
        ) from error


def _prepare_sqlite(uri: str) -> None:
    """Creates the tables under another name and renames: a kill half-way would leave a store MLflow cannot open."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
    from sqlalchemy.exc import SQLAlchemyError

    database = _sqlite_path(uri)
    try:
        database.parent.mkdir(parents=True, exist_ok=True)
        if database.exists() and database.stat().st_size > 0:
            # MLflow would retry for two minutes on a file that is no database.
            with closing(sqlite3.connect(database)) as connection:
                connection.execute("PRAGMA schema_version")
            return
        with atomic_file(database) as temporary:
            store = SqlAlchemyStore(_sqlite_uri(temporary), _artifacts_of(database))
            store.engine.dispose()
    except (OSError, sqlite3.Error, SQLAlchemyError) as error:
        raise AdaptError(f"--tracking-uri {uri}: {_first_line(error)}; name a file that can be written") from error


def _sqlite_uri(path: Path) -> str:
    # SQLAlchemy reads these two characters of a path as URL syntax.
    return "sqlite:///" + path.as_posix().replace("%", "%25").replace("?", "%3F")


def _sqlite_path(uri: str) -> Path:
    from sqlalchemy.engine import make_url

    name = make_url(uri).database
    if not name or name == ":memory:":
        raise AdaptError(f"--tracking-uri {uri}: got no file, expected sqlite:////absolute/path/mlflow.db")
    return Path(name).absolute()


def _artifacts_of(database: Path) -> str:
    return (database.parent / "mlartifacts").as_uri()


def _experiment(client: MlflowClient, uri: str, name: str) -> str:
    known = client.get_experiment_by_name(name)
    if known is not None and known.lifecycle_stage == "active":
        return str(known.experiment_id)
    if known is not None:
        client.restore_experiment(known.experiment_id)
        return str(known.experiment_id)
    # A server knows where its artifacts go; a bare database would put them into the current folder.
    location = _artifacts_of(_sqlite_path(uri)) if uri.startswith("sqlite:") else None
    return str(client.create_experiment(name, artifact_location=location))


def _find_run(client: MlflowClient, uri: str, run_id: str) -> Run | None:
    from mlflow.exceptions import MlflowException

    with _plain_errors(uri):
        try:
            run = client.get_run(run_id)
        except MlflowException as error:
            if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                return None
            raise
        return run if run.info.lifecycle_stage == "active" else None


@contextmanager
def _plain_errors(uri: str) -> Iterator[None]:
    """Turns what MLflow raises into one line."""
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (MlflowException, SQLAlchemyError, OSError, ImportError) as error:  # ImportError: a database's driver
        raise AdaptError(
            f"--tracking-uri {uri}: {_first_line(error)}; once that is mended, the same command continues the run"
        ) from error


def _name(key: str) -> str:
    """A name MLflow takes: letters, digits and `_-. :/`, at most 250."""
    return re.sub(r"[^\w\-. :/]", "_", key, flags=re.ASCII)[:KEY_LENGTH]


def _first_line(error: BaseException) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__
