"""Build the virtual environment `.venv` that `sample_run.py` and `run_tests.py` share. Standard library only.

Running it again is fast, and an install that was cut short is started over. On Linux without an NVIDIA GPU it looks for
a CPU build of torch first, so that no CUDA packages are fetched in vain.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parents[1]
VENV = ROOT / ".venv"
STATE = ROOT / ".venv-state.json"
PINS = ROOT / "scripts" / "constraints.txt"
CPU_PINS = ROOT / "scripts" / "constraints-cpu.txt"
CPU_INDEX = os.environ.get("ADAPT_TORCH_CPU_INDEX", "https://download.pytorch.org/whl/cpu")
MINIMUM_PIP = (22, 3)  # the first with a stable `install --dry-run --report`


class SetupError(RuntimeError):
    """The environment cannot be built; the text says why and what to do."""


class Torch(NamedTuple):
    """Where torch comes from: pip arguments for it and torchvision, pins that go with them, a line for the user."""

    source: tuple[str, ...]
    pins: tuple[str, ...]
    note: str


def say(line: str) -> None:
    """Print one line of progress at once, also into a pipe."""
    print(f"[setup] {line}", flush=True)


def prepare(extra: str | None) -> Path:
    """Make `.venv` hold the project and one extra (None: the core); return the path of its Python.

    Raises:
        SetupError: the environment cannot be made or a package cannot be installed.
    """
    wanted = extra or "core"
    state = _read_state()
    if not state and VENV.exists():
        raise SetupError(f"{VENV} exists and was not made by this script. Move it away, or install into it yourself: "
                         f"pip install -e '{ROOT}{f'[{extra}]' if extra else ''}'")
    sound = state.get("identity") == _identity() and not state.get("unfinished") and _python().exists()
    current = sound and state.get("requirements") == _requirements()
    if current and wanted in ["core", *state["installed"]]:
        return _python()
    if not sound:
        _write_state({"unfinished": True})
        _create()
    installed = sorted({wanted, *(state.get("installed", []) if sound else [])})
    _write_state({"unfinished": True})
    _install(installed)
    _write_state({"identity": _identity(), "requirements": _requirements(), "installed": installed})
    return _python()


def run(main: Callable[[], int]) -> int:
    """Call `main`, turning a failed set-up into one line and an interrupt into its usual exit status."""
    try:
        return main()
    except SetupError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def tool(name: str) -> Path:
    """Path of a command that was installed into the environment."""
    return _python().with_name(name + (".exe" if os.name == "nt" else ""))


def has_nvidia_gpu() -> bool:
    """Whether a usable NVIDIA device is present: a device node, or a driver tool that lists one."""
    if Path("/dev/nvidia0").exists():
        return True
    smi = shutil.which("nvidia-smi")
    if smi is None:
        return False
    listing = subprocess.run([smi, "-L"], capture_output=True, text=True, check=False)
    return listing.returncode == 0 and "GPU" in listing.stdout


def _python() -> Path:
    return VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def _identity() -> list[str]:
    """What a change of makes the environment unusable: it holds absolute paths and compiled packages."""
    return [str(ROOT), sys.version, platform.machine(), "gpu" if has_nvidia_gpu() else "cpu"]


def _requirements() -> str:
    """Digest of the files that say what to install."""
    files = (ROOT / "pyproject.toml", PINS, CPU_PINS, Path(__file__), ROOT / "scripts" / "torchvision_cpu.py")
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _read_state() -> dict[str, Any]:
    try:
        state: dict[str, Any] = json.loads(STATE.read_text(encoding="utf-8"))
        return state
    except FileNotFoundError:
        return {}
    except ValueError:
        return {"unfinished": True}


def _write_state(state: dict[str, Any]) -> None:
    temporary = STATE.with_suffix(".tmp")
    temporary.write_text(json.dumps(state, indent=1), encoding="utf-8")
    os.replace(temporary, STATE)


def _create() -> None:
    if VENV.exists():
        say("an earlier environment is unfinished or out of date: starting over")
        shutil.rmtree(VENV)
    say(f"creating {VENV} with Python {platform.python_version()}")
    made = subprocess.run([sys.executable, "-m", "venv", str(VENV)], capture_output=True, text=True, check=False)
    if made.returncode:
        raise SetupError("Python could not create a virtual environment. On Debian and Ubuntu: "
                         f"apt install python3-venv. It said: {(made.stdout + made.stderr).strip()}")
    version = subprocess.run([_python(), "-c", "import pip; print(pip.__version__)"],
                             capture_output=True, text=True, check=True).stdout
    if tuple(int(part) for part in version.split(".")[:2]) < MINIMUM_PIP:
        _pip("install", "--quiet", "--upgrade", "pip")


def _install(installed: list[str]) -> None:
    torch = _choose_torch()
    say(torch.note)
    pins = ("-c", str(PINS), *torch.pins)
    dev = "dev" in installed
    if torch.source:
        say("installing torch")
        _pip("install", *torch.source, "--no-deps", *torch.pins, "torch", *(["torchvision"] if dev else []))
    extras = ",".join(name for name in installed if name != "core")
    say(f"installing the project{f' with [{extras}]' if extras else ''}: a few minutes the first time")
    _pip("install", *pins, "--editable", f"{ROOT}[{extras}]" if extras else str(ROOT))
    if dev:
        _make_torchvision_importable()


def _pip(*arguments: str) -> None:
    done = subprocess.run([_python(), "-m", "pip", "--disable-pip-version-check", *arguments],
                          cwd=ROOT, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        raise SetupError(f"pip failed (its own message is above): pip {' '.join(arguments)}. Run this again to go on.")


def _choose_torch() -> Torch:
    """Prefer a CPU build where no NVIDIA GPU is found: from the registry pip uses, else from the official CPU index."""
    if platform.system() != "Linux":
        return Torch((), (), f"{platform.system()}: taking the registry's torch")
    if has_nvidia_gpu():
        return Torch((), (), "NVIDIA GPU found: taking the registry's torch, with CUDA")
    pins = ("-c", str(CPU_PINS))
    from_registry = _candidate()
    if from_registry and not _needs_cuda(from_registry):
        return Torch((), pins, f"no NVIDIA GPU: the registry has a CPU torch, {from_registry['version']}")
    from_index = _candidate("--timeout", "10", "--retries", "0", "--index-url", CPU_INDEX)
    if from_index and not _needs_cuda(from_index):
        return Torch(("--index-url", CPU_INDEX), pins, f"no NVIDIA GPU: CPU torch {from_index['version']}, {CPU_INDEX}")
    return Torch((), pins if from_registry else (), "no NVIDIA GPU, but neither the registry nor "
                 f"{CPU_INDEX} offers a CPU torch: taking what the registry gives, with CUDA packages (gigabytes)")


def _candidate(*options: str) -> dict[str, Any] | None:
    """Metadata of the torch that pip would install, or None where it finds none."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        done = subprocess.run(
            [_python(), "-m", "pip", "--disable-pip-version-check", "install", "--quiet", "--dry-run", "--no-deps",
             "--ignore-installed", "--report", str(report), *options, "-c", str(CPU_PINS), "torch"],
            capture_output=True, stdin=subprocess.DEVNULL, check=False)
        if done.returncode or not report.exists():
            return None
        metadata: dict[str, Any] = json.loads(report.read_text(encoding="utf-8"))["install"][0]["metadata"]
        return metadata


def _needs_cuda(metadata: dict[str, Any]) -> bool:
    """Whether a torch wheel asks for CUDA packages on this machine; markers are read only as far as torch uses them."""
    def applies(requirement: str) -> bool:
        return "platform_machine" not in requirement or platform.machine() in requirement

    required = (line.lower() for line in metadata.get("requires_dist", []) if "extra ==" not in line)
    return any(line.startswith(("nvidia-", "cuda-", "triton")) and applies(line) for line in required)


def _make_torchvision_importable() -> None:
    """Leave torchvision working or gone: broken, it would break diffusers, which imports it where it finds it."""
    probe = [str(_python()), "-c", "import torchvision"]
    if subprocess.run(probe, capture_output=True, check=False).returncode == 0:
        return
    say("this torchvision is a CUDA build: adding stubs so that it loads beside a CPU torch")
    stubbed = subprocess.run([str(_python()), str(ROOT / "scripts" / "torchvision_cpu.py")], check=False)
    if stubbed.returncode or subprocess.run(probe, capture_output=True, check=False).returncode:
        say("torchvision cannot be made to load here: removing it and spandrel, whose tests are skipped")
        _pip("uninstall", "--yes", "torchvision", "spandrel")
