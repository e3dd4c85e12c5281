"""Maps a worker that is expensive to build over many items: in this process, or over Ray actors.

Both mappers give the same values for the same items. Ray is imported when `RayMapper.map` first runs, never before.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

from adapt.errors import AdaptError

Item = TypeVar("Item")
Value = TypeVar("Value")

# What an item can do wrong. Anything else (TypeError, AttributeError, IndexError ...) is our mistake and stops the job.
ITEM_ERRORS = (AdaptError, RuntimeError, ValueError, OSError, ArithmeticError, MemoryError)


@dataclass(frozen=True)
class Outcome(Generic[Value]):
    """What became of one item: `failure` is `None` and `value` counts, or `failure` says why there is none."""

    index: int
    value: Value | None = None
    failure: str | None = None


class Mapper(Protocol):
    """Applies a worker to items."""

    def map(
        self, worker_factory: Callable[[], Callable[[Item], Value]], items: Sequence[Item]
    ) -> Iterator[Outcome[Value]]:
        """Yields one outcome for each item as they finish, in any order.

        `worker_factory` runs once for each worker (it loads the networks), not at all without items. An item at which
        the worker raises one of `ITEM_ERRORS` comes back as a failure; other exceptions, and those of the factory,
        propagate.
        """


class InProcessMapper:
    """One worker in this process, items in order."""

    def map(
        self, worker_factory: Callable[[], Callable[[Item], Value]], items: Sequence[Item]
    ) -> Iterator[Outcome[Value]]:
        """See `Mapper.map`."""
        if not items:
            return
        worker = worker_factory()
        for index, item in enumerate(items):
            value, failure = attempt(worker, item)
            yield Outcome(index, value, failure)


class RayMapper:
    """One Ray actor a worker, one item at a time in each; an item whose actor dies is tried again, twice at most.

    Each worker runs torch with as many threads as the driver, because the number of threads changes the last bits of a
    result.

    Args:
        address: `"local"` starts Ray on this machine, on the loopback interface alone; `"HOST:PORT"` joins that
            cluster; `"auto"` joins the cluster this machine belongs to, or starts a local one where there is none.
        gpus_per_worker: GPUs each worker reserves; fractions share one.
        workers: how many, at most; `None` means as many as the cluster has room for.
        cpus_per_worker: CPU cores each worker reserves.
    """

    def __init__(
        self,
        address: str = "auto",
        gpus_per_worker: float = 0.0,
        workers: int | None = None,
        cpus_per_worker: float = 1.0,
    ) -> None:
        if workers is not None and workers < 1:
            raise AdaptError(f"got {workers} Ray workers, expected at least 1")
        self.address = address
        self.gpus_per_worker = gpus_per_worker
        self.workers = workers
        self.cpus_per_worker = cpus_per_worker

    def map(
        self, worker_factory: Callable[[], Callable[[Item], Value]], items: Sequence[Item]
    ) -> Iterator[Outcome[Value]]:
        """See `Mapper.map`.

        Raises:
            AdaptError: Ray is not installed, the cluster does not answer or has no room for one worker, or workers keep
                dying while they load.
        """
        if not items:
            return
        from adapt.cluster_ray import ActorPool, start_ray

        start_ray(self.address)
        pool = ActorPool(worker_factory, self.cpus_per_worker, self.gpus_per_worker)
        yield from pool.map(items, self.workers)


def attempt(worker: Callable[[Item], Value], item: Item) -> tuple[Value | None, str | None]:
    """The worker's value and no failure, or no value and the reason in one line: `ValueError: not a face`."""
    try:
        return worker(item), None
    except ITEM_ERRORS as error:
        lines = str(error).strip().splitlines()
        return None, f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
