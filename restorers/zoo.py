"""Restorers by name or by file: network, weights and what must be known about them.

A name is looked up in `RESTORERS`; anything else is a file of weights. Files are read as plain tensors (safetensors, or
`torch.load(weights_only=True)`), never unpickled freely.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import pickle
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from restorers import compact
from restorers.files import atomic_file
from restorers.spec import RestorerSpec

EMBEDDED_COMPACT = Path(__file__).parent / "weights" / "compact.safetensors"
# What torch's reader raises on bytes that only begin like a checkpoint; it checks little before it acts on them.
DAMAGED = (SafetensorError, OSError, EOFError, RuntimeError, LookupError, ValueError, TypeError, AttributeError,
           AssertionError, struct.error, pickle.UnpicklingError)  # fmt: skip
WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt")
NON_COMMERCIAL_WORDS = ("non-commercial", "noncommercial", "-nc", "s-lab", "research only")


class ZooError(ValueError):
    """No such restorer, or its weights cannot be read."""


@dataclass(frozen=True)
class LoadedRestorer:
    """A network ready to train or to serve.

    Attributes:
        module: image `[B, 3, H, W]`, RGB, `[0, 1]` -> image `[B, 3, H * scale, W * scale]`, not clamped; float32, in
            eval mode, on the CPU.
        spec: size rules, licence, origin.
        tiles: False when the network must see the whole image at once.
    """

    module: nn.Module
    spec: RestorerSpec
    tiles: bool = True


def load_embedded_compact() -> LoadedRestorer:
    """The restorer that ships inside the package."""
    if not EMBEDDED_COMPACT.is_file():
        raise ZooError(f"the embedded weights {EMBEDDED_COMPACT} are missing: reinstall the package")
    loaded = load_file(EMBEDDED_COMPACT)
    expected = json.loads(EMBEDDED_COMPACT.with_name("sha256.json").read_text(encoding="utf-8"))["compact"]
    if loaded.spec.sha256 != expected:
        raise ZooError(
            f"{EMBEDDED_COMPACT}: sha256 {loaded.spec.sha256[:12]}, expected {expected[:12]}; reinstall the package"
        )
    return LoadedRestorer(
        loaded.module,
        RestorerSpec(
            name="compact",
            scale=1,
            multiple_of=compact.MULTIPLE_OF,
            minimum=compact.MINIMUM,
            licence="Apache-2.0",
            source="ships with adapt",
            sha256=loaded.spec.sha256,
        ),
    )


RESTORERS: dict[str, Callable[[], LoadedRestorer]] = {"compact": load_embedded_compact}


def load_restorer(name_or_path: str | Path) -> LoadedRestorer:
    """Loads a restorer by its name in `RESTORERS`, or from a local file of weights.

    Raises:
        ZooError: unknown name, missing or unreadable file, or a network that is not an RGB restorer.
    """
    text = str(name_or_path)
    if text in RESTORERS:
        return RESTORERS[text]()
    path = Path(name_or_path)
    if path.is_file():
        return load_file(path)
    if path.is_dir():
        raise ZooError(f"{path} is a folder, expected a file of weights ({', '.join(WEIGHT_SUFFIXES)})")
    if path.suffix.lower() in WEIGHT_SUFFIXES or path.parent != Path("."):
        raise ZooError(f"no such file: {path}")
    close = difflib.get_close_matches(text.lower(), RESTORERS, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise ZooError(f"unknown restorer {text!r}: {hint}Known names: {', '.join(RESTORERS)}; or give a file of weights")


def load_file(path: Path) -> LoadedRestorer:
    """Loads a file of weights: a compact restorer directly, every other layout through spandrel.

    Raises:
        ZooError: the file cannot be read or holds no RGB restorer.
    """
    state, metadata = read_state(path)
    licence = metadata.get("licence", "unknown (local file)")
    module: nn.Module
    try:
        module = compact.compact_from_state({name: tensor.float() for name, tensor in state.items()}).eval()
    except ValueError:  # some other layout
        from restorers import published

        try:
            net = published.build(state)
        except published.PublishedError as error:
            raise ZooError(f"{path}: {error}") from error
        module, scale, multiple_of, minimum, tiles = net.module, net.scale, net.multiple_of, net.minimum, net.tiles
        licence = metadata.get("licence", f"unknown (local {net.architecture} file)")
    else:
        scale, multiple_of, minimum, tiles = 1, compact.MULTIPLE_OF, compact.MINIMUM, True
    spec = RestorerSpec(
        name=metadata.get("name", path.stem),
        scale=scale,
        multiple_of=multiple_of,
        minimum=minimum,
        licence=licence,
        source=metadata.get("source", str(path)),
        sha256=hashlib.sha256(path.read_bytes()).hexdigest(),
        commercial=metadata.get("commercial") != "no" and not is_non_commercial(licence),
    )
    return LoadedRestorer(module, spec, tiles)


def save_restorer(restorer: LoadedRestorer, path: Path) -> None:
    """Writes the weights as safetensors, atomically, in the layout that spandrel reads, with name, licence and source.

    `load_file` gives the same network and the same licence back.
    """
    from restorers.published import PublishedRestorer

    module, spec = restorer.module, restorer.spec
    inner = module.net if isinstance(module, PublishedRestorer) else module
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in inner.state_dict().items()}
    metadata = {
        "format": "pt",
        "name": spec.name,
        "licence": spec.licence,
        "source": spec.source,
        "commercial": "yes" if spec.commercial else "no",
    }
    with atomic_file(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def read_state(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Reads the tensors and the text metadata of a file of weights, without running anything stored in it.

    Wrappers such as `params_ema` and prefixes such as `module.` are removed.

    Raises:
        ZooError: not a readable file of weights.
    """
    suffix = path.suffix.lower()
    if suffix not in WEIGHT_SUFFIXES:
        expected = "serve it with restorers.runtime; " if suffix == ".onnx" else ""
        raise ZooError(f"{path}: got suffix {suffix!r}, {expected}expected one of {', '.join(WEIGHT_SUFFIXES)}")
    try:
        if suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
        content = torch.load(path, map_location="cpu", weights_only=True)
    except DAMAGED as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ZooError(f"{path}: cannot be read as weights ({reason}); is the download complete?") from error
    return _tensors(path, content), {}


def is_non_commercial(licence: str) -> bool:
    """Whether a licence text forbids commercial use, judged by its name (`CC-BY-NC-4.0`, `S-Lab-1.0` ...)."""
    return any(word in licence.lower() for word in NON_COMMERCIAL_WORDS)


def _tensors(path: Path, content: object) -> dict[str, Tensor]:
    for wrapper in ("params_ema", "params-ema", "params", "state_dict", "model_state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
            break
    if not isinstance(content, dict) or not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise ZooError(f"{path}: holds no table of tensors, expected the state dict of a restorer")
    state = {str(name): value for name, value in content.items()}
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return state
