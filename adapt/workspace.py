"""The run folder: atomic writes, the manifest, what is done already."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from adapt.photos import photo_files
from restorers.files import atomic_file, sha256_of


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text atomically; bytes of file names that are not UTF-8 survive as escapes."""
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as indented JSON, atomically."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_torch(path: Path, state: dict[str, Any]) -> None:
    """Saves a training checkpoint (tensors and plain values only), atomically."""
    with atomic_file(path) as temporary:
        torch.save(state, temporary)


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """Saves safetensors atomically."""
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_file(path) as temporary:
        save_file(contiguous, temporary, metadata=metadata)


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Reads what `write_tensors` wrote: tensors and text metadata."""
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118


def read_metadata(path: Path) -> dict[str, str]:
    """The text metadata of what `write_tensors` wrote, without its tensors."""
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata() or {})


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Writes one JSON object a line, atomically."""
    write_text(path, "".join(json.dumps(row) + "\n" for row in rows))


class Workspace:
    """The folder of one run. Every file in it is complete or absent; a stage is done when its file is there."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def round(self, number: int) -> Path:
        """Folder of a round, counted from 1."""
        return self.root / "rounds" / str(number)

    @property
    def done(self) -> Path:
        """Present when the run is finished; holds the summary that is printed."""
        return self.root / "done.json"

    @property
    def manifest(self) -> Path:
        """One line for each photo, face and target."""
        return self.root / "manifest.jsonl"


def fingerprint(root: Path) -> str:
    """A hash of names, sizes and times of all photos below `root`; changes when one is added or edited.

    Raises:
        UsageError: `root` does not exist or is a run folder.
        AdaptError: it holds no photo.
    """
    if root.is_file():
        return sha256_of(root)
    entries = []
    for path in photo_files(root)[0]:
        try:
            status = os.stat(path)
        except OSError:  # a link to nothing, which the search refuses
            continue
        entries.append((os.fsencode(path.relative_to(root)), status.st_size, status.st_mtime_ns))
    return hashlib.sha256(repr(sorted(entries)).encode()).hexdigest()
