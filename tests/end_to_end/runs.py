"""Small photo folders and settings with which the whole job takes seconds."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from adapt.photos import write_photo
from adapt.workspace import read_tensors
from tests.tiny import blobs

SHARED = Path(os.environ.get("ADAPT_SHARED", Path(__file__).parents[3] / "shared")) / "faces"
"""Face photos that are not part of the project, where they are at hand."""
SHORT = (
    "rounds=1",
    "generation.candidates=2",
    "generation.calls=2",
    "camera.steps=4",
    "camera.settings=16",
    "camera.bank=16",
    "camera.bank_calls=1",
    "finetune.steps=6",
    "finetune.batch=4",
    # Blobs are no faces: the gate and the judge would rightly refuse them, and then nothing would be exercised.
    "gate.low_band=9",
    "gate.spread=9",
    "gate.quality=-99",
)


def short_settings() -> list[str]:
    """`--set` options for `SHORT`."""
    return [word for setting in SHORT for word in ("--set", setting)]


def write_blobs(folder: Path, count: int = 12) -> Path:
    """Writes `count` noisy square images and returns the folder."""
    images = blobs(count, 128)
    noise = 0.05 * torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    for index, image in enumerate((images + noise).clamp(0, 1)):
        write_photo(folder / f"{index:02d}.png", image[None])
    return folder


def content(path: Path) -> object:
    """What a file says: safetensors keep their metadata in no particular order, so their bytes may differ."""
    if path.suffix != ".safetensors":
        return path.read_bytes()
    tensors, metadata = read_tensors(path)
    return metadata, {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}
