"""Both mappers: same outcomes, one load a worker, failures that name their reason."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from adapt.cluster import InProcessMapper, Mapper, Outcome, RayMapper
from adapt.errors import AdaptError

needs_ray = pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
ITEMS = list(range(7))


class Squarer:
    """Squares a number through torch; refuses 3; falls over its own mistake at 100."""

    def __init__(self, folder: Path) -> None:
        (folder / f"load-{os.getpid()}-{id(self)}").touch()

    def __call__(self, item: int) -> torch.Tensor:
        if item == 3:
            raise ValueError("three is refused\nwith a second line")
        if item == 100:
            raise TypeError("a mistake in the program")
        return torch.randn(50, 50, generator=torch.Generator().manual_seed(item)).matmul(torch.ones(50, 50))


@dataclass(frozen=True)
class SquarerFactory:
    """Builds a `Squarer` and leaves a mark for each one built."""

    folder: Path

    def __call__(self) -> Squarer:
        return Squarer(self.folder)


@dataclass(frozen=True)
class DyingFactory:
    """Item 1 always kills its process; item 2 kills it once."""

    folder: Path

    def __call__(self) -> Callable[[int], int]:
        def work(item: int) -> int:
            mark = self.folder / "died-at-2"
            if item == 1 or (item == 2 and not mark.exists()):
                if item == 2:
                    mark.touch()
                os._exit(1)
            return item * 10

        return work


def broken_factory() -> Callable[[int], int]:
    """Fails to load."""
    raise AdaptError("the weights are not there")


@pytest.fixture(scope="module")
def ray_mapper() -> Iterator[RayMapper]:
    """Two CPU workers on a Ray of their own."""
    yield RayMapper("local", workers=2, cpus_per_worker=0.5)
    import ray

    ray.shutdown()


@pytest.fixture(params=["in_process", pytest.param("ray", marks=needs_ray)])
def mapper(request: pytest.FixtureRequest) -> Mapper:
    """Each kind of mapper."""
    return InProcessMapper() if request.param == "in_process" else request.getfixturevalue("ray_mapper")


def collect(mapper: Mapper, folder: Path, items: list[int]) -> list[Outcome[torch.Tensor]]:
    return sorted(mapper.map(SquarerFactory(folder), items), key=lambda outcome: outcome.index)


def test_each_item_comes_back_once_with_its_value_or_reason(mapper: Mapper, tmp_path: Path) -> None:
    outcomes = collect(mapper, tmp_path, ITEMS)
    assert [outcome.index for outcome in outcomes] == ITEMS
    assert outcomes[3] == Outcome(3, None, "ValueError: three is refused")
    for outcome in outcomes[:3] + outcomes[4:]:
        assert outcome.failure is None
        assert torch.equal(outcome.value, Squarer(tmp_path)(outcome.index))


def test_no_items_load_nothing(mapper: Mapper, tmp_path: Path) -> None:
    assert collect(mapper, tmp_path, []) == []
    assert not list(tmp_path.iterdir())


def test_a_programming_mistake_stops_the_job(mapper: Mapper, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="a mistake in the program"):
        collect(mapper, tmp_path, [100])


def test_an_error_of_the_factory_stops_the_job(mapper: Mapper) -> None:
    with pytest.raises(AdaptError, match="the weights are not there"):
        list(mapper.map(broken_factory, [1, 2]))


def test_in_process_loads_once(tmp_path: Path) -> None:
    collect(InProcessMapper(), tmp_path, ITEMS)
    assert len(list(tmp_path.iterdir())) == 1


@needs_ray
def test_ray_equals_in_process_and_loads_once_a_worker(ray_mapper: RayMapper, tmp_path: Path) -> None:
    theirs, ours = collect(ray_mapper, tmp_path, ITEMS), None
    assert len(list(tmp_path.iterdir())) == 2
    ours = collect(InProcessMapper(), tmp_path, ITEMS)
    for a, b in zip(theirs, ours, strict=True):
        assert (a.index, a.failure) == (b.index, b.failure)
        assert (a.value is None and b.value is None) or torch.equal(a.value, b.value)


@needs_ray
def test_items_of_dead_actors_are_tried_again_then_fail(ray_mapper: RayMapper, tmp_path: Path) -> None:
    outcomes = sorted(ray_mapper.map(DyingFactory(tmp_path), [0, 1, 2, 3]), key=lambda outcome: outcome.index)
    assert [outcome.value for outcome in outcomes] == [0, None, 20, 30]
    assert (outcomes[1].failure or "").startswith("worker died 3 times at this item")


@needs_ray
def test_a_worker_that_fits_nowhere_is_refused_at_once(ray_mapper: RayMapper) -> None:
    with pytest.raises(AdaptError, match=r"one worker needs 0\.5 CPU, 64 GPU"):
        list(RayMapper("local", workers=1, gpus_per_worker=64, cpus_per_worker=0.5).map(broken_factory, [1]))


@pytest.mark.parametrize(("address", "message"), [("127.0.0.1:1", "nothing answers"), ("nonsense", "HOST:PORT")])
def test_an_address_without_a_cluster_is_refused_in_one_line(address: str, message: str) -> None:
    with pytest.raises(AdaptError, match=message) as caught:
        list(RayMapper(address).map(broken_factory, [1]))
    assert "\n" not in str(caught.value)


def test_no_workers_is_refused() -> None:
    with pytest.raises(AdaptError, match="at least 1"):
        RayMapper("local", workers=0)


def test_importing_the_module_imports_no_ray() -> None:
    code = "import sys, adapt.cluster, adapt.tracking; sys.exit('ray' in sys.modules or 'mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], check=False).returncode == 0
