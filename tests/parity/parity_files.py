"""The golden files that the parity tests read, and how differences are measured."""

import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

DEFAULT = Path(__file__).resolve().parents[3] / "shared" / "parity" / "fixtures"
FOLDER = Path(os.environ.get("ADAPT_PARITY_DIR") or DEFAULT)

needs_fixtures = pytest.mark.skipif(
    not FOLDER.is_dir(), reason=f"parity fixtures not found at {FOLDER}; set ADAPT_PARITY_DIR"
)


def names(pattern: str) -> list[str]:
    """Stems of the array files that match, such as "traj_*"; empty when the fixtures are absent."""
    return sorted(path.stem for path in FOLDER.glob(f"{pattern}.npz"))


def arrays(name: str) -> dict[str, np.ndarray]:
    """All arrays of one file; skips the test when this set of fixtures does not hold it."""
    path = FOLDER / f"{name}.npz"
    if not path.is_file():
        pytest.skip(f"{path.name} is not in {FOLDER}")
    with np.load(path) as file:
        return {key: file[key] for key in file.files}


def tensors(name: str) -> dict[str, Tensor]:
    """The numeric arrays of one file as tensors."""
    return {key: torch.from_numpy(value) for key, value in arrays(name).items() if value.dtype.kind != "U"}


def config(name: str) -> dict:
    """A `*_config.json` file."""
    return json.loads((FOLDER / f"{name}_config.json").read_text())


def weights(name: str) -> dict[str, Tensor]:
    """A state dict stored as `*.safetensors.gz`."""
    return safetensors.torch.load(gzip.decompress((FOLDER / f"{name}.safetensors.gz").read_bytes()))


def relative(ours: Tensor, theirs: Tensor, share: float = 1.0) -> float:
    """max |difference| / max |reference|; the largest difference of this share of the values."""
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().quantile(share) / theirs.abs().max())


def absolute(ours: Tensor, theirs: Tensor) -> float:
    """max |difference|."""
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max())
