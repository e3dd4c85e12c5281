"""Serving a restorer loads no diffusion, cluster or tracking library, and importing the packages reaches no network.

Each case runs in a fresh interpreter, since this one has already loaded whatever other tests needed.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
NOT_AT_START = {"diffusers", "transformers", "ray", "mlflow", "basicsr", "facexlib", "spandrel", "torchvision"}
NOT_WHEN_SERVING = NOT_AT_START | {"accelerate", "pseudo_targets"}
WATCH_NETWORK = """
import sys
watched = {"socket.connect", "socket.getaddrinfo", "socket.gethostbyname", "urllib.Request"}
reached = []
sys.addaudithook(lambda event, arguments: reached.append(f"{event} {arguments}") if event in watched else None)
"""
REPORT = """
import json
print("\\n" + json.dumps({"modules": sorted({name.split(".")[0] for name in sys.modules}), "reached": reached}))
"""


def run(script: str) -> dict[str, list[str]]:
    """Run a script in a fresh interpreter; return the top-level modules it ended with and the hosts it asked for."""
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", WATCH_NETWORK + script + REPORT], capture_output=True, text=True,
                          env=variables, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    result: dict[str, list[str]] = json.loads(done.stdout.splitlines()[-1])
    return result


def command_line(*arguments: str) -> str:
    """Script that runs the console command in the same interpreter and goes on after its exit."""
    return f"""
from adapt.cli import main
sys.argv = ["adapt", *{arguments!r}]
try:
    status = main()
except SystemExit as exit:
    status = exit.code
if status not in (0, None):
    sys.exit(f"adapt {' '.join(arguments)} ended with {{status}}")
"""


@pytest.mark.parametrize("module", ["restorers.runtime", "adapt.photos", "adapt.faces"])
def test_serving_modules_load_no_training_library(module: str) -> None:
    loaded = run(f"import {module}")
    assert set(loaded["modules"]) & NOT_WHEN_SERVING == set()
    assert loaded["reached"] == []


@pytest.mark.parametrize("arguments", [("restore", "--help"), ("--help",), ("recipes",)], ids=" ".join)
def test_light_commands_load_no_heavy_library(arguments: tuple[str, ...]) -> None:
    loaded = run(command_line(*arguments))
    assert set(loaded["modules"]) & NOT_AT_START == set()
    assert loaded["reached"] == []


def test_importing_every_module_reaches_no_network() -> None:
    loaded = run("""
import importlib, pkgutil
names = []
for package in ("adapt", "pseudo_targets", "restorers", "recipes"):
    names.append(package)
    paths = importlib.import_module(package).__path__
    names += [found.name for found in pkgutil.walk_packages(paths, package + ".") if "__main__" not in found.name]
for name in names:
    importlib.import_module(name)
""")
    assert {"adapt", "pseudo_targets", "restorers", "recipes", "torch"} <= set(loaded["modules"])
    assert loaded["reached"] == []
    assert set(loaded["modules"]) & {"mlflow", "ray", "basicsr", "facexlib", "spandrel"} == set()
