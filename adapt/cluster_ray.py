"""The Ray side of `adapt.cluster`: joining a cluster, and a pool of actors that outlives the death of some."""

from __future__ import annotations

import os
import socket
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapt.cluster import Item, Outcome, Value, attempt
from adapt.errors import AdaptError

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.actor import ActorHandle

RETRIES = 2
REACH_SECONDS = 5


def start_ray(address: str) -> None:
    """Joins or starts Ray, once a process; without telemetry, and on loopback alone where it starts one.

    Raises:
        AdaptError: Ray is not installed, or nothing answers at `address`.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray would set CUDA_VISIBLE_DEVICES to nothing in workers that reserve no GPU; it warns that this will change.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if address == "auto":
        address = "cluster" if _belongs_to_cluster() else "local"
    if address == "local":
        # Both are read when ray is imported. Without a token, ports must not leave this machine.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        if os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] == "0":
            os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    elif address != "cluster":
        _reach(address)
    try:
        import ray
    except ImportError as error:
        raise AdaptError(f"Ray is not installed ({error}): run `pip install 'ray>=2.40'`, or drop --ray") from error
    if ray.is_initialized():
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if address == "local":
        options["include_dashboard"] = False
    try:
        ray.init(address="auto" if address == "cluster" else address, **options)
    except (ConnectionError, RuntimeError, TimeoutError, ValueError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise AdaptError(
            f"--ray {address}: {reason}; start the cluster with `ray start`, or use --ray local"
        ) from error


class ActorPool:
    """Actors that each hold one worker built by `factory`; used once, by `map`."""

    def __init__(self, factory: Callable[[], Callable[[Any], Any]], cpus: float, gpus: float) -> None:
        import ray
        import torch

        self._ray = ray
        self._factory = ray.put(factory)
        self._class = ray.remote(num_cpus=cpus, num_gpus=gpus, max_restarts=0, max_task_retries=0)(_Worker)
        self._needs = {"CPU": cpus, "GPU": gpus}
        self._threads = torch.get_num_threads()
        self._loading_deaths = 0

    def map(self, items: Sequence[Item], workers: int | None) -> Iterator[Outcome[Value]]:
        """See `adapt.cluster.Mapper.map`; at most one item is under way in each actor."""
        waiting = deque(range(len(items)))
        deaths = [0] * len(items)
        busy: dict[ObjectRef, tuple[ActorHandle, int | None]] = {}
        try:
            for _ in range(min(workers or len(items), self._room(), len(items))):
                self._hire(busy)
            while busy:
                ready, _ = self._ray.wait(list(busy), num_returns=1)
                actor, index = busy.pop(ready[0])
                outcome: Outcome[Value] | None = None
                died, result = self._result(ready[0])
                if died is None:
                    if index is not None:
                        outcome = Outcome(index, *result)
                elif index is None:
                    self._count_loading_death(died)
                else:
                    deaths[index] += 1
                    if deaths[index] > RETRIES:
                        outcome = Outcome(index, None, f"worker died {deaths[index]} times at this item: {died}")
                    else:
                        waiting.append(index)
                if died is not None and waiting:
                    self._hire(busy)
                elif died is None and waiting:
                    following = waiting.popleft()
                    busy[actor.work.remote(items[following])] = (actor, following)
                else:
                    self._ray.kill(actor)
                if outcome is not None:
                    yield outcome  # after the next item was handed out: a slow reader keeps no actor idle
        finally:
            for actor, _ in busy.values():
                self._ray.kill(actor)

    def _hire(self, busy: dict[ObjectRef, tuple[ActorHandle, int | None]]) -> None:
        actor = self._class.remote()
        busy[actor.load.remote(self._factory, self._threads)] = (actor, None)

    def _result(self, ref: ObjectRef) -> tuple[str | None, Any]:
        """Why the actor died, or its result; what the code in it raised propagates as it is."""
        from ray.exceptions import RayError, RayTaskError

        try:
            return None, self._ray.get(ref)
        except RayTaskError as error:
            raise error.cause if isinstance(error.cause, Exception) else error from None
        except RayError as error:
            return (str(error).strip().splitlines() or [type(error).__name__])[0], None

    def _count_loading_death(self, reason: str) -> None:
        self._loading_deaths += 1
        if self._loading_deaths > RETRIES:
            raise AdaptError(
                f"Ray workers keep dying while they load ({reason}); use fewer, or machines with more memory"
            )

    def _room(self) -> int:
        """How many workers the cluster could hold if it were idle."""
        has = self._ray.cluster_resources()
        room = min(int(has.get(kind, 0) / need) for kind, need in self._needs.items() if need > 0)
        if room < 1:
            needs = ", ".join(f"{need:g} {kind}" for kind, need in self._needs.items() if need > 0)
            found = ", ".join(f"{has.get(kind, 0):g} {kind}" for kind in self._needs)
            raise AdaptError(f"--ray: one worker needs {needs}, the cluster has {found}; join a larger one")
        return room


class _Worker:
    """Runs in the actor."""

    def load(self, factory: Callable[[], Callable[[Any], Any]], threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self._work = factory()

    def work(self, item: Any) -> tuple[Any, str | None]:
        return attempt(self._work, item)


def _belongs_to_cluster() -> bool:
    """Whether `ray.init("auto")` would find a cluster, told without importing ray."""
    folder = Path(os.environ.get("RAY_TMPDIR", tempfile.gettempdir() if os.name == "nt" else "/tmp"))
    return "RAY_ADDRESS" in os.environ or (folder / "ray" / "ray_current_cluster").is_file()


def _reach(address: str) -> None:
    """One quick look whether anything listens; Ray itself would wait for minutes."""
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if not separator or not port.isdigit():
        raise AdaptError(f"--ray {address}: expected auto, local or HOST:PORT")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise AdaptError(f"--ray {address}: nothing answers ({error}); start the cluster with `ray start`") from error
