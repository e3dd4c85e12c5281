"""The set-up scripts: what is installed anew when, and which torch counts as a CPU build. Nothing is installed here."""

from __future__ import annotations

import importlib.util
import platform
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
NOTHING = None
CUDA = {"version": "2.13.0", "requires_dist": ["nvidia-cublas==13 ; platform_system == 'Linux'"]}
CPU = {"version": "2.13.0+cpu", "requires_dist": ["sympy"]}


class Calls(list[str]):
    """Names of the costly steps, in the order they were taken."""


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("environment", ROOT / "scripts" / "environment.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "VENV", tmp_path / ".venv")
    monkeypatch.setattr(module, "STATE", tmp_path / ".venv-state.json")
    monkeypatch.setattr(module, "has_nvidia_gpu", lambda: False)
    return module


@pytest.fixture
def calls(environment: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Calls:
    taken = Calls()

    def create() -> None:
        taken.append("create")
        environment._python().parent.mkdir(parents=True, exist_ok=True)
        environment._python().touch()

    monkeypatch.setattr(environment, "_create", create)
    monkeypatch.setattr(environment, "_install", lambda sets: taken.append("install " + ",".join(sets)))
    return taken


def test_a_second_run_does_nothing(environment: ModuleType, calls: Calls) -> None:
    first = environment.prepare(None)
    assert environment.prepare(None) == first
    assert calls == ["create", "install core"]


def test_development_set_joins_the_core_and_covers_it(environment: ModuleType, calls: Calls) -> None:
    environment.prepare(None)
    environment.prepare("dev")
    environment.prepare(None)
    assert calls == ["create", "install core", "install core,dev"]


def test_an_install_cut_short_starts_over(
    environment: ModuleType, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut(_: list[str]) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(environment, "_install", cut)
        with pytest.raises(KeyboardInterrupt):
            environment.prepare(None)
    environment.prepare(None)
    assert calls == ["create", "create", "install core"]


def test_changed_requirements_install_again_without_a_new_environment(
    environment: ModuleType, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment.prepare(None)
    monkeypatch.setattr(environment, "_requirements", lambda: "changed")
    environment.prepare(None)
    assert calls == ["create", "install core", "install core"]


def test_another_python_makes_a_new_environment(
    environment: ModuleType, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment.prepare("dev")
    monkeypatch.setattr(environment, "_identity", lambda: ["other"])
    environment.prepare(None)
    assert calls == ["create", "install dev", "create", "install core"]


def test_a_broken_note_counts_as_unfinished(environment: ModuleType, calls: Calls) -> None:
    environment.prepare(None)
    environment.STATE.write_text("{", encoding="utf-8")
    environment.prepare(None)
    assert calls == ["create", "install core"] * 2


def test_an_environment_of_the_users_own_is_left_alone(environment: ModuleType, calls: Calls) -> None:
    environment.VENV.mkdir()
    with pytest.raises(environment.SetupError, match="was not made by this script"):
        environment.prepare(None)
    assert calls == []


@pytest.mark.skipif(platform.system() != "Linux", reason="elsewhere the registry's torch is taken as it is")
@pytest.mark.parametrize(
    ("registry", "index", "source", "pinned"),
    [(CPU, NOTHING, "registry", True), (CUDA, CPU, "index", True), (NOTHING, CPU, "index", True),
     (CUDA, NOTHING, "registry", True), (CUDA, CUDA, "registry", True), (NOTHING, NOTHING, "registry", False)],
)
def test_cpu_torch_is_looked_for_in_order(
    environment: ModuleType, monkeypatch: pytest.MonkeyPatch, registry: object, index: object, source: str, pinned: bool
) -> None:
    monkeypatch.setattr(environment, "_candidate", lambda *options: index if options else registry)
    torch = environment._choose_torch()
    assert bool(torch.source) == (source == "index")
    assert bool(torch.pins) == pinned


def test_a_gpu_takes_the_registrys_torch(environment: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "has_nvidia_gpu", lambda: True)
    assert environment._choose_torch()[:2] == ((), ())


@pytest.mark.parametrize(
    ("requirements", "expected"),
    [(["sympy", "triton==3.9.0 ; extra == 'opt'"], False), (["nvidia-cublas==13 ; platform_system == 'Linux'"], True),
     (["cuda-toolkit[cudart]==13 ; platform_machine == 'other'"], False), (["triton==3.9.0"], True)],
)
def test_cuda_is_read_off_the_requirements(environment: ModuleType, requirements: list[str], expected: bool) -> None:
    assert environment._needs_cuda({"requires_dist": requirements}) is expected


def test_scripts_tell_an_old_python_what_is_needed() -> None:
    for name in ("sample_run.py", "run_tests.py"):
        source = (ROOT / "scripts" / name).read_text(encoding="utf-8")
        assert source.index("sys.version_info < (3, 10)") < source.index("import environment")
    assert sys.version_info >= (3, 10)
