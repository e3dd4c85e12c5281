"""Which package may import which, read from the source without importing anything."""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("adapt", "pseudo_targets", "restorers", "recipes")
ALLOWED = {
    "adapt": {"pseudo_targets", "restorers", "recipes"},
    "pseudo_targets": set(),
    "restorers": set(),
    "recipes": set(),
}
# Heavy or optional: imported inside the function that needs them, so that nothing else pays for or requires them.
LAZY = {"basicsr", "facexlib", "mlflow", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "pillow_heif", "piq", "ray",
        "spandrel", "spandrel_extra_arches", "torchvision"}
HOMES = {
    "mlflow": {"adapt/tracking.py", "adapt/tracking_mlflow.py"},
    "ray": {"adapt/cluster.py", "adapt/cluster_ray.py", "adapt/tuning.py"},
}
SERVING = ("adapt/photos.py", "adapt/faces.py", "restorers/runtime.py")
NOT_WHEN_SERVING = {"diffusers", "accelerate", "transformers", "ray", "mlflow", "pseudo_targets", "recipes"}


# Distributions whose import name is another.
DISTRIBUTIONS = {"PIL": "pillow", "cv2": "opencv-python-headless", "onnx_ir": "onnx-ir", "pillow_heif": "pillow-heif",
                 "spandrel_extra_arches": "spandrel-extra-arches", "yaml": "pyyaml"}


def sources(package: str) -> list[Path]:
    return sorted((ROOT / package).rglob("*.py"))


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def nodes(tree: ast.AST, *, into_functions: bool) -> Iterator[ast.AST]:
    """Every node that runs at import time, and with `into_functions` also those that run when called."""
    for child in ast.iter_child_nodes(tree):
        if is_type_checking(child):
            continue
        if not into_functions and isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        yield child
        yield from nodes(child, into_functions=into_functions)


def imported(path: Path, *, into_functions: bool = True) -> set[str]:
    """Full dotted names a file imports; relative imports are resolved against its package."""
    found: set[str] = set()
    for node in nodes(ast.parse(path.read_text(encoding="utf-8")), into_functions=into_functions):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = path.relative_to(ROOT).parts[:-1]
            base = ".".join(parents[: len(parents) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            found.add(module)
            found.update(f"{module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in {"importlib.import_module", "__import__",
                                                                       "import_module"}:
            argument = node.args[0] if node.args else None
            if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
                found.add(argument.value)
    return found


def roots(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize("package", PACKAGES)
def test_package_exists_and_imports_only_what_lies_below_it(package: str) -> None:
    files = sources(package)
    assert ROOT / package / "__init__.py" in files
    forbidden = set(PACKAGES) - ALLOWED[package] - {package} | {"tests", "benchmarks", "scripts"}
    wrong = {relative(path): sorted(roots(imported(path)) & forbidden) for path in files}
    assert {path: names for path, names in wrong.items() if names} == {}


def test_recipes_know_no_torch() -> None:
    wrong = [relative(path) for path in sources("recipes")
             if roots(imported(path)) & {"torch", "numpy", "diffusers", "accelerate"}]
    assert wrong == []


@pytest.mark.parametrize("package", PACKAGES)
def test_heavy_libraries_are_not_imported_at_module_level(package: str) -> None:
    wrong = {relative(path): sorted(roots(imported(path, into_functions=False)) & LAZY) for path in sources(package)}
    assert {path: names for path, names in wrong.items() if names} == {}


@pytest.mark.parametrize("library", sorted(HOMES))
def test_libraries_behind_a_protocol_have_one_home(library: str) -> None:
    users = {relative(path) for package in PACKAGES for path in sources(package) if library in roots(imported(path))}
    assert users <= HOMES[library]


def test_restorers_do_not_know_diffusion() -> None:
    wrong = [relative(path) for path in sources("restorers") if "diffusers" in roots(imported(path))]
    assert wrong == []


@pytest.mark.parametrize("path", SERVING)
def test_serving_modules_name_no_training_library_even_lazily(path: str) -> None:
    assert roots(imported(ROOT / path)) & NOT_WHEN_SERVING == set()


def test_every_library_is_declared_where_it_is_needed() -> None:
    tomllib = pytest.importorskip("tomllib", reason="the standard library reads TOML from Python 3.11 on")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

    def named(requirements: list[str]) -> set[str]:
        return {re.split(r"[\[<>=!~; ]", requirement)[0].lower() for requirement in requirements}

    core = named(project["dependencies"])
    extras = {name for key, extra in project["optional-dependencies"].items() if key != "dev" for name in named(extra)}
    files = [path for package in PACKAGES for path in sources(package)]
    used = {name for path in files for name in roots(imported(path))} - set(PACKAGES) - set(sys.stdlib_module_names)
    at_start = {name for path in files if relative(path) != "adapt/face_synthesis.py"
                for name in roots(imported(path, into_functions=False))} & used
    assert {DISTRIBUTIONS.get(name, name) for name in used} <= core | extras
    assert {DISTRIBUTIONS.get(name, name) for name in at_start} <= core


def test_the_reader_of_imports_sees_what_it_should(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "adapt").mkdir()
    path = tmp_path / "adapt" / "module.py"
    path.write_text(
        "from typing import TYPE_CHECKING\n"
        "from . import photos\n"
        "from .faces import align\n"
        "if TYPE_CHECKING:\n    import mlflow\n"
        "try:\n    import cv2\nexcept ImportError:\n    pass\n"
        "def lazy():\n    import ray.tune\n    importlib.import_module('spandrel')\n",
        encoding="utf-8",
    )
    assert imported(path) == {"typing", "typing.TYPE_CHECKING", "adapt", "adapt.photos", "adapt.faces",
                              "adapt.faces.align", "cv2", "ray.tune", "spandrel"}
    assert roots(imported(path, into_functions=False)) == {"typing", "adapt", "cv2"}
