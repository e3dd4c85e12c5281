"""Published weights of priors: what they are, under which licence, where they are kept. Nothing is downloaded here."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


class WeightsError(RuntimeError):
    """Weights are missing or are not what they should be."""


class WeightsMissingError(WeightsError):
    """Published weights are not on this machine; the message says how to get them."""


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


FFHQ512 = PublishedWeights(
    name="ffhq512",
    file="iddpm_ffhq512_ema500000.pth",
    purpose="pixel prior of DifFace and DT-BFR, faces at 512 px",
    licence="S-Lab-1.0",
    url="https://github.com/zsyOAOA/DifFace/releases/download/V1.0/iddpm_ffhq512_ema500000.pth",
    commercial=False,
)
PUBLISHED: tuple[PublishedWeights, ...] = (FFHQ512,)
"""Priors."""

SWINIR_FACE = PublishedWeights(
    name="swinir-face",
    file="face_swinir_v1.ckpt",
    purpose="stage 1 of DiffBIR for faces, all versions (SwinIR of DifFace)",
    licence="S-Lab-1.0",
    url="https://huggingface.co/lxq007/DiffBIR/resolve/main/face_swinir_v1.ckpt",
    commercial=False,
)
SWINIR_GENERAL = PublishedWeights(
    name="swinir",
    file="general_swinir_v1.ckpt",
    purpose="restorer, and stage 1 of DiffBIR v1 for other photos (SwinIR, L2)",
    licence="Apache-2.0",
    url="https://huggingface.co/lxq007/DiffBIR/resolve/main/general_swinir_v1.ckpt",
)
SWINIR_REALESRGAN = PublishedWeights(
    name="swinir-realesrgan",
    file="realesrgan_s4_swinir_100k.pth",
    purpose="stage 1 of DiffBIR v2.1 for other photos (SwinIR, degradations of Real-ESRGAN)",
    licence="Apache-2.0",
    url="https://huggingface.co/lxq007/DiffBIR-v2/resolve/main/realesrgan_s4_swinir_100k.pth",
)
BSRNET = PublishedWeights(
    name="bsrnet",
    file="BSRNet.pth",
    purpose="blind super-resolution (RRDB, no GAN), 4 x, and stage 1 of DiffBIR v2 for other photos",
    licence="Apache-2.0",
    url="https://github.com/cszn/KAIR/releases/download/v1.0/BSRNet.pth",
)
SCUNET_PSNR = PublishedWeights(
    name="scunet",
    file="scunet_color_real_psnr.pth",
    purpose="real-world denoising, and stage 1 of DiffBIR v2 for noise",
    licence="Apache-2.0",
    url="https://github.com/cszn/KAIR/releases/download/v1.0/scunet_color_real_psnr.pth",
    size=71_982_841,
    sha256="fa78899ba2caec9d235a900e91d96c689da71c42029230c2028b00f09f809c2e",
)
CLEANERS: tuple[PublishedWeights, ...] = (SWINIR_FACE, SWINIR_GENERAL, SWINIR_REALESRGAN, BSRNET, SCUNET_PSNR)
"""Stage 1 of priors; those that are also restorers by name have the same row in `restorers.downloads`."""


def cache_folder() -> Path:
    """Where published weights are kept: `$ADAPT_CACHE/weights`, else `adapt/weights` in the user's cache folder."""
    chosen = os.environ.get("ADAPT_CACHE")
    if chosen:
        return Path(chosen) / "weights"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "adapt" / "weights"


def weights_path(weights: PublishedWeights) -> Path:
    """The file in the cache.

    Raises:
        WeightsMissingError: it is not there.
    """
    path = cache_folder() / weights.file
    if not path.is_file():
        raise missing(weights)
    return path


def missing(weights: PublishedWeights) -> WeightsMissingError:
    """The error that says how to get weights."""
    return WeightsMissingError(
        f"the weights of {weights.name!r} are not here: run `adapt weights fetch {weights.name}`, "
        f"or `adapt weights import FILE` with {weights.file} from {weights.url}"
    )
