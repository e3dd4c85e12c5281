"""Published files in the user's cache: where they lie, and storing what they become. Nothing is downloaded."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from pseudo_targets import downloads
from pseudo_targets.downloads import WeightsError


def cache_folder() -> Path:
    """`$ADAPT_CACHE/diffbir`, or `adapt/diffbir` in the user's cache folder."""
    return downloads.cache_folder().parent / "diffbir"


def sha256_of(path: Path) -> str:
    """Digest of a file of any size, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 24):
            digest.update(block)
    return digest.hexdigest()


def store(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes safetensors whole or not at all, also when several processes write the same file.

    Raises:
        WeightsError: the disk refuses.
    """
    temporary = path.parent / f".tmp-{uuid.uuid4().hex}.safetensors"
    separate = {name: _separate(tensor.detach()) for name, tensor in tensors.items()}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(separate, temporary, metadata=dict(metadata))
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path}: cannot be written ({error}); free some disk space or set ADAPT_CACHE") from error
    finally:
        with suppress(OSError):  # it is in place already, or the error that is under way says more
            temporary.unlink()


def read_stored(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """What `store` wrote: the tensors in float32, and the metadata.

    Raises:
        WeightsError: the file is damaged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            # Copies are aligned alike; where a tensor begins in the file would change the last bits of results.
            tensors = {name: file.get_tensor(name).to(torch.float32, copy=True) for name in file.keys()}  # noqa: SIM118
            return tensors, dict(file.metadata() or {})
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path}: is damaged ({error}); delete it, and it is made again") from error


def stored_origin(path: Path) -> dict[str, str]:
    """The metadata of a stored file, without reading its tensors; empty when there is none or it cannot be read."""
    if not path.is_file():
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            return dict(file.metadata() or {})
    except (SafetensorError, OSError):
        return {}  # it is made again


def origin_of(paths: Iterable[Path]) -> dict[str, str]:
    """Metadata that tells which files a conversion came from: name, size, time and digest of each."""
    facts = {path.name: {**_stamp(path), "sha256": sha256_of(path)} for path in paths}
    return {"origin": json.dumps(facts, sort_keys=True)}


def comes_from(origin: Mapping[str, str], paths: Iterable[Path]) -> bool:
    """Whether a stored conversion was made from these files: by name, size and time, or else by digest."""
    facts = facts_of(origin)
    return bool(facts) and all(_is_same(facts.get(path.name, {}), path) for path in paths)


def _stamp(path: Path) -> dict[str, int]:
    status = path.stat()
    return {"bytes": status.st_size, "mtime_ns": status.st_mtime_ns}


def _is_same(fact: Mapping[str, Any], path: Path) -> bool:
    stamp = _stamp(path)
    if fact.get("bytes") != stamp["bytes"]:
        return False
    return fact.get("mtime_ns") == stamp["mtime_ns"] or fact["sha256"] == sha256_of(path)


def facts_of(origin: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """What `origin_of` noted, by the name of the file; empty where the note is another's."""
    try:
        facts = json.loads(origin.get("origin", ""))
    except json.JSONDecodeError:
        return {}
    whole = isinstance(facts, dict) and all(isinstance(fact, dict) and "sha256" in fact for fact in facts.values())
    return facts if whole else {}


def _separate(tensor: Tensor) -> Tensor:
    """The tensor in memory of its own: safetensors does not store two parts of one published tensor as they are."""
    if tensor.untyped_storage().nbytes() == tensor.nbytes:
        return tensor.contiguous()
    return tensor.clone(memory_format=torch.contiguous_format)
