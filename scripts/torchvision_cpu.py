"""Make the registry's torchvision wheel (a CUDA build) importable beside a CPU-only torch. For test machines only.

The wheel's libraries link three CUDA libraries that a CPU torch does not ship, though its CPU kernels need none of
them: only some forty symbols stay open. This writes stub libraries that define exactly those symbols, and a `.pth` file
that loads them at start-up. The stubs stand aside if a CUDA torch is installed later. Run it again after each install
of torchvision. Needs Linux, gcc and binutils' nm; tried on x86-64 only.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path

SITE = Path(sysconfig.get_paths()["purelib"])
STUBS = SITE / "_torchvision_cpu_stubs"
LOADER = """\
import ctypes
from pathlib import Path

here = Path(__file__).parent
if not (here.parent / "torch" / "lib" / "libtorch_cuda.so").exists():  # a CUDA torch came: stand aside
    for name in {names!r}:
        ctypes.CDLL(str(here / name), ctypes.RTLD_GLOBAL)
"""


def folder_of(package: str) -> Path:
    """Folder of an installed package, found without importing it."""
    spec = find_spec(package)
    if spec is None or spec.origin is None:
        sys.exit(f"{package} is not installed: nothing to do")
    return Path(spec.origin).parent


def undefined_symbols(folder: Path) -> set[str]:
    """Names that the shared libraries in a folder leave for others to define."""
    symbols: set[str] = set()
    for library in folder.glob("*.so"):
        listing = subprocess.run(
            ["nm", "-D", "--undefined-only", str(library)], check=True, capture_output=True, text=True).stdout
        symbols.update(line.split()[-1] for line in listing.splitlines() if " U " in line)
    return symbols


def write_stub(name: str, symbols: list[str], version: str | None = None) -> None:
    """Compile a shared library that defines each symbol as a function returning 0."""
    source, version_script = STUBS / "stub.c", STUBS / "stub.map"
    source.write_text("".join(f"long {symbol}(void){{return 0;}}\n" for symbol in symbols), encoding="utf-8")
    command = ["gcc", "-shared", "-fPIC", "-O1", "-w", f"-Wl,-soname,{name}", "-o", str(STUBS / name), str(source)]
    if version:
        version_script.write_text(version + " { global: *; };\n", encoding="utf-8")
        command.append(f"-Wl,--version-script={version_script}")
    subprocess.run(command, check=True)
    source.unlink()
    version_script.unlink(missing_ok=True)


def main() -> None:
    """Write the three stub libraries and their loader into the running Python's site-packages."""
    if not sys.platform.startswith("linux") or not (shutil.which("gcc") and shutil.which("nm")):
        sys.exit("torchvision stubs need Linux, gcc and nm (Debian and Ubuntu: apt install gcc)")
    if (folder_of("torch") / "lib" / "libtorch_cuda.so").exists():
        sys.exit("torch is a CUDA build: nothing to do")
    open_symbols = undefined_symbols(folder_of("torchvision"))
    versioned = sorted(symbol.split("@") for symbol in open_symbols if "@libcudart.so" in symbol)
    runtime = versioned[0][-1] if versioned else "libcudart.so.13"
    c10 = sorted(symbol for symbol in open_symbols if re.match(r"_ZNK?3c104cuda", symbol))
    torch = sorted(symbol for symbol in open_symbols if re.match(
        r"_ZNK?2at4cuda|aoti_torch_get_current_cuda|torch_c10_cuda|torch_get_cuda", symbol))
    STUBS.mkdir(exist_ok=True)
    write_stub(runtime, [symbol[0] for symbol in versioned], runtime)
    write_stub("libc10_cuda.so", c10)
    write_stub("libtorch_cuda.so", torch)
    names = (runtime, "libc10_cuda.so", "libtorch_cuda.so")
    (STUBS / "__init__.py").write_text(LOADER.format(names=names), encoding="utf-8")
    (SITE / f"{STUBS.name}.pth").write_text(f"import {STUBS.name}\n", encoding="utf-8")
    print(f"stubbed {len(versioned) + len(c10) + len(torch)} symbols in {STUBS}")


if __name__ == "__main__":
    main()
