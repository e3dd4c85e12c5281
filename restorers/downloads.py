"""Published weights of restorers: what they are, under which licence, where they are kept. Nothing is downloaded here.

`pseudo_targets.downloads` has the same table for priors; neither package imports the other, and
`tests/test_weights.py` holds the two alike.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class PublishedWeights:
    """One published file.

    Attributes:
        name: what users type.
        file: its name, in the cache as at its source.
        purpose: what it is, in a few words.
        licence: SPDX id or short name; the weights', not this project's.
        url: where its authors publish it.
        size: bytes, or 0 when unknown.
        sha256: hash of the file, or "unknown".
        commercial: False when the licence forbids commercial use.
    """

    name: str
    file: str
    purpose: str
    licence: str
    url: str
    size: int = 0
    sha256: str = "unknown"
    commercial: bool = True


PUBLISHED: tuple[PublishedWeights, ...] = (
    PublishedWeights(
        name="swinir_gan",
        file="swinir_gan_v1.pth",
        purpose="face restorer that DT-BFR starts from (SwinIR, L1 + LPIPS + GAN)",
        licence="CC-BY-NC-SA-4.0",
        url="https://github.com/SamsungLabs/DT-BFR/releases/download/v1.0.0/swinir_gan_v1.pth",
        commercial=False,
    ),
    PublishedWeights(
        name="codeformer",
        file="codeformer.pth",
        purpose="face restorer with a code book",
        licence="S-Lab-1.0",
        url="https://github.com/sczhou/CodeFormer/releases/download/v0.1.0/codeformer.pth",
        size=376_637_898,
        sha256="1009e537e0c2a07d4cabce6355f53cb66767cd4b4297ec7a4a64ca4b8a5684b7",
        commercial=False,
    ),
    PublishedWeights(
        name="gfpgan",
        file="GFPGANv1.4.pth",
        purpose="face restorer with a StyleGAN2 decoder",
        licence="Apache-2.0",
        url="https://github.com/TencentARC/GFPGAN/releases/download/v1.3.0/GFPGANv1.4.pth",
        size=348_632_874,
        sha256="e2cd4703ab14f4d01fd1383a8a8b266f9a5833dacee8e6a79d3bf21a1b6be5ad",
    ),
)


def cache_folder() -> Path:
    """Where published weights are kept: `$ADAPT_CACHE/weights`, else `adapt/weights` in the user's cache folder."""
    chosen = os.environ.get("ADAPT_CACHE")
    if chosen:
        return Path(chosen) / "weights"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "adapt" / "weights"
