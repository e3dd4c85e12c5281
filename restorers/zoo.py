"""Restorers by name or by file: network, weights and what must be known about them.

A name is looked up in `RESTORERS`; anything else is a file of weights. Files are read as plain tensors (safetensors, or
`torch.load(weights_only=True)`), never unpickled freely.
"""

from __future__ import annotations

import difflib
import json
import pickle
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from restorers import compact, downloads
from restorers.downloads import PublishedWeights
from restorers.files import atomic_file, sha256_of
from restorers.spec import RestorerSpec

if TYPE_CHECKING:
    from restorers.published import PublishedNet

EMBEDDED_COMPACT = Path(__file__).parent / "weights" / "compact.safetensors"
# What torch's reader raises on bytes that only begin like a checkpoint; it checks little before it acts on them.
DAMAGED = (SafetensorError, OSError, EOFError, RuntimeError, LookupError, ValueError, TypeError, AttributeError,
           AssertionError, struct.error)  # fmt: skip
WEIGHT_SUFFIXES = (".safetensors", ".pth", ".pt", ".ckpt")
# Checkpoints written by Lightning name this class as a key beside the weights.
NAMES_ONLY = ("pytorch_lightning.callbacks.model_checkpoint.ModelCheckpoint",)
WRAPPERS = ("params_ema", "params-ema", "params", "state_dict", "model_state_dict", "model", "net")
NON_COMMERCIAL_WORDS = ("non-commercial", "noncommercial", "-nc", "s-lab", "research only")


class ZooError(ValueError):
    """No such restorer, or its weights cannot be read."""


class _Inert:
    """Stands for a class that a training library left in a file; it does nothing."""


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

    @property
    def aligned_faces(self) -> bool:
        """Whether the network knows nothing but aligned faces, of the one size that it takes."""
        return getattr(self.module, "side", None) is not None


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
            decoder=compact.DECODER,
        ),
    )


def load_published(weights: PublishedWeights, architecture: str, scale: int) -> LoadedRestorer:
    """A published restorer from the user's cache, where `adapt weights fetch` puts it.

    Args:
        weights: the row of `restorers.downloads`; its name, licence and address go into the spec.
        architecture: what spandrel must recognise in the file.
        scale: how many times larger the result is.

    Raises:
        ZooError: the file is not there, not the published one, or holds another network; or a library is missing.
    """
    from restorers import published

    try:
        path = downloads.weights_path(weights)
        if architecture in published.EXTRA and not published.has_extra():
            raise ZooError(f"{weights.name}: {architecture} needs a library: pip install spandrel-extra-arches")
        sha256 = downloads.checked_sha256(path, weights)
    except (downloads.WeightsMissingError, downloads.WeightsChangedError) as error:
        raise ZooError(str(error)) from error
    net = _published_net(path, read_state(path)[0])
    if (net.architecture, net.scale) != (architecture, scale):
        raise ZooError(f"{path}: holds {net.architecture} x{net.scale}, expected {architecture} x{scale}")
    facts = {"name": weights.name, "licence": weights.licence, "source": weights.url}
    return _loaded(net, facts, sha256, weights.commercial)


RESTORERS: dict[str, Callable[[], LoadedRestorer]] = {
    "compact": load_embedded_compact,
    "swinir": partial(load_published, downloads.SWINIR, "SwinIR", 1),
    "swinir-gan": partial(load_published, downloads.SWINIR_GAN, "SwinIR", 1),
    "bsrgan": partial(load_published, downloads.BSRGAN, "ESRGAN", 4),
    "bsrnet": partial(load_published, downloads.BSRNET, "ESRGAN", 4),
    "realesrgan": partial(load_published, downloads.REALESRGAN, "ESRGAN", 4),
    "realesr-general-x4v3": partial(load_published, downloads.REALESR_GENERAL, "Compact", 4),
    "scunet": partial(load_published, downloads.SCUNET, "SCUNet", 1),
    "nafnet": partial(load_published, downloads.NAFNET, "NAFNet", 1),
    "gfpgan-v1.4": partial(load_published, downloads.GFPGAN, "GFPGAN", 1),
    "restoreformer": partial(load_published, downloads.RESTOREFORMER, "RestoreFormer", 1),
    "codeformer": partial(load_published, downloads.CODEFORMER, "CodeFormer", 1),
    "femasr": partial(load_published, downloads.FEMASR, "FeMaSR", 4),
}
NON_COMMERCIAL = {weights.name: weights.licence for weights in downloads.PUBLISHED if not weights.commercial}
"""Names that are loaded only for those who ask for it, and their licences."""


def load_restorer(name_or_path: str | Path, *, non_commercial: bool = False) -> LoadedRestorer:
    """Loads a restorer by its name in `RESTORERS`, or from a local file of weights.

    Args:
        non_commercial: whether what forbids commercial use may be used: the names of `NON_COMMERCIAL`, their files
            under any path, and what was adapted from them.

    Raises:
        ZooError: unknown name, missing or unreadable file, a network that is not an RGB restorer, or one that is not
            for commercial use and was not asked for.
    """
    text = str(name_or_path)
    if text in NON_COMMERCIAL and not non_commercial:
        raise forbidden(text, NON_COMMERCIAL[text])
    if text in RESTORERS:
        return RESTORERS[text]()
    path = Path(name_or_path)
    if path.is_file():
        loaded = load_file(path)
        if not loaded.spec.commercial and not non_commercial:
            raise forbidden(text, loaded.spec.licence)
        return loaded
    if path.is_dir():
        of_a_run = path / "restorer.safetensors"
        kinds = ", ".join(WEIGHT_SUFFIXES)
        raise ZooError(f"{path} is a folder, expected a file of weights ({kinds}); of a run, {of_a_run}")
    if path.suffix.lower() in WEIGHT_SUFFIXES or path.parent != Path("."):
        raise ZooError(f"no such file: {path}")
    close = difflib.get_close_matches(text.lower(), RESTORERS, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise ZooError(f"unknown restorer {text!r}: {hint}Known names: {', '.join(RESTORERS)}; or give a file of weights")


def forbidden(what: str, licence: str) -> ZooError:
    """The refusal of what is not for commercial use."""
    return ZooError(
        f"{what}: its licence ({licence}) forbids commercial use, also of what is adapted from it; if you can accept "
        "that, give --non-commercial"
    )


def load_file(path: Path) -> LoadedRestorer:
    """Loads a file of weights: a compact restorer directly, every other layout through spandrel.

    The licence is what the file says of itself, or that of the published file of its hash or name.

    Raises:
        ZooError: the file cannot be read or holds no RGB restorer.
    """
    state, metadata = read_state(path)
    sha256 = sha256_of(path)
    facts = {"name": path.stem, "source": str(path), **_known_of(path, sha256), **metadata}
    try:
        module = compact.compact_from_state({name: tensor.float() for name, tensor in state.items()}).eval()
    except ValueError:  # some other layout
        return _loaded(_published_net(path, state), facts, sha256)
    licence = facts.get("licence", "unknown (local file)")
    spec = RestorerSpec(
        name=facts["name"],
        scale=1,
        multiple_of=compact.MULTIPLE_OF,
        minimum=compact.MINIMUM,
        licence=licence,
        source=facts["source"],
        sha256=sha256,
        commercial=facts.get("commercial") != "no" and not is_non_commercial(licence),
        decoder=compact.DECODER,
    )
    return LoadedRestorer(module, spec)


def _known_of(path: Path, sha256: str) -> dict[str, str]:
    for weights in (*downloads.PUBLISHED, downloads.SWINIR_FACE):
        if sha256 in (weights.sha256, downloads.pinned(weights)) or weights.file == path.name:
            return {"licence": weights.licence, "commercial": "yes" if weights.commercial else "no"}
    return {}


def at_input_size(restorer: LoadedRestorer) -> LoadedRestorer:
    """The same network with a result of the input's size: what it enlarged is shrunk again, by area.

    The result shares the weights; saved, it comes back the same. A restorer of scale 1 is returned as it is.
    """
    from restorers.published import PublishedRestorer

    module, scale = restorer.module, restorer.spec.scale
    if scale == 1 or not isinstance(module, PublishedRestorer):
        return restorer
    shrunk = PublishedRestorer(module.net, module.call, module.side, scale, module.square).eval()
    return replace(restorer, module=shrunk, spec=replace(restorer.spec, scale=1))


def _published_net(path: Path, state: dict[str, Tensor]) -> PublishedNet:
    from restorers import published

    try:
        return published.build(state)
    except published.PublishedError as error:
        raise ZooError(f"{path}: {error}") from error


def _loaded(net: PublishedNet, facts: dict[str, str], sha256: str, commercial: bool = True) -> LoadedRestorer:
    """A published network with what `facts`, the metadata of its file, say of it."""
    licence = facts.get("licence", f"unknown (local {net.architecture} file)")
    spec = RestorerSpec(
        name=facts["name"],
        scale=net.scale,
        multiple_of=net.multiple_of,
        minimum=net.minimum,
        licence=licence,
        source=facts["source"],
        sha256=sha256,
        commercial=commercial
        and facts.get("commercial") != "no"
        and net.commercial
        and not is_non_commercial(licence),
        half=net.half,
        trains=net.trains,
        decoder=net.decoder,
    )
    loaded = LoadedRestorer(net.module, spec, net.tiles)
    return at_input_size(loaded) if facts.get("size") == "kept" else loaded


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
        "size": "kept" if spec.scale == 1 else "enlarged",
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
        with torch.serialization.safe_globals([(_Inert, name) for name in NAMES_ONLY]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ZooError(f"{path}: holds code or is no checkpoint, and only plain tensors are read") from error
    except DAMAGED as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ZooError(f"{path}: cannot be read as weights ({reason}); is the download complete?") from error
    return _tensors(path, content), {}


def is_non_commercial(licence: str) -> bool:
    """Whether a licence text forbids commercial use, judged by its name (`CC-BY-NC-4.0`, `S-Lab-1.0` ...)."""
    return any(word in licence.lower() for word in NON_COMMERCIAL_WORDS)


def _tensors(path: Path, content: object) -> dict[str, Tensor]:
    for wrapper in WRAPPERS:
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
            break
    if isinstance(content, dict) and len(content) == 1 and isinstance(next(iter(content.values())), dict):
        content = next(iter(content.values()))
    if not isinstance(content, dict) or not content or not all(isinstance(value, Tensor) for value in content.values()):
        raise ZooError(f"{path}: holds no table of tensors, expected the state dict of a restorer")
    state = {str(name): value for name, value in content.items()}
    if all(name.startswith("module.") for name in state):
        state = {name.removeprefix("module."): value for name, value in state.items()}
    return state
