"""Published weights of restorers: what they are, under which licence, where they are kept. Nothing is downloaded here.

`pseudo_targets.downloads` has the same table for priors; neither package imports the other, and
`tests/test_weights.py` holds the two alike.
"""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from pathlib import Path

from restorers.files import atomic_file, sha256_of

logger = logging.getLogger(__name__)


class WeightsMissingError(RuntimeError):
    """Published weights are not on this machine; the message says how to get them."""


class WeightsChangedError(RuntimeError):
    """A file of weights is not the one that was published, or not the one that was used before."""


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


SWINIR = PublishedWeights(
    name="swinir",
    file="general_swinir_v1.ckpt",
    purpose="restorer, and stage 1 of DiffBIR v1 for other photos (SwinIR, L2)",
    licence="Apache-2.0",
    url="https://huggingface.co/lxq007/DiffBIR/resolve/main/general_swinir_v1.ckpt",
    size=90_208_287,
    sha256="577b8f84815d324e5ee17ef3c85d8bc9b7ebd05b20a6d61a5452b66e7e24dcaf",
)
SWINIR_GAN = PublishedWeights(
    name="swinir-gan",
    file="swinir_gan_v1.pth",
    purpose="face restorer that DT-BFR starts from (SwinIR, L1 + LPIPS + GAN)",
    licence="CC-BY-NC-SA-4.0",
    url="https://github.com/SamsungLabs/DT-BFR/releases/download/v1.0.0/swinir_gan_v1.pth",
    commercial=False,
)
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
"""No restorer by name, but one by its file, which keeps its licence; `pseudo_targets.downloads` fetches it."""
BSRGAN = PublishedWeights(
    name="bsrgan",
    file="BSRGAN.pth",
    purpose="blind super-resolution (RRDB, GAN), 4 x",
    licence="Apache-2.0",
    url="https://github.com/cszn/KAIR/releases/download/v1.0/BSRGAN.pth",
    size=67_046_751,
    sha256="5d505a0766160921e0388d76e1ddf08cb114303990f9080432bf2b1c988b1c54",
)
BSRNET = PublishedWeights(
    name="bsrnet",
    file="BSRNet.pth",
    purpose="blind super-resolution (RRDB, no GAN), 4 x, and stage 1 of DiffBIR v2 for other photos",
    licence="Apache-2.0",
    url="https://github.com/cszn/KAIR/releases/download/v1.0/BSRNet.pth",
    sha256="fa633d80ff4db5a546740ae8e3baebe925fc84d3c03e3e9002493acc5e88c3ec",
)
REALESRGAN = PublishedWeights(
    name="realesrgan",
    file="RealESRGAN_x4plus.pth",
    purpose="practical super-resolution (RRDB, GAN), 4 x",
    licence="BSD-3-Clause",
    url="https://github.com/xinntao/Real-ESRGAN/releases/download/v0.1.0/RealESRGAN_x4plus.pth",
    size=67_040_989,
    sha256="4fa0d38905f75ac06eb49a7951b426670021be3018265fd191d2125df9d682f1",
)
REALESR_GENERAL = PublishedWeights(
    name="realesr-general-x4v3",
    file="realesr-general-x4v3.pth",
    purpose="practical super-resolution, compact network, 4 x",
    licence="BSD-3-Clause",
    url="https://github.com/xinntao/Real-ESRGAN/releases/download/v0.2.5.0/realesr-general-x4v3.pth",
    size=4_885_111,
    sha256="8dc7edb9ac80ccdc30c3a5dca6616509367f05fbc184ad95b731f05bece96292",
)
SCUNET = PublishedWeights(
    name="scunet",
    file="scunet_color_real_psnr.pth",
    purpose="real-world denoising, and stage 1 of DiffBIR v2 for noise",
    licence="Apache-2.0",
    url="https://github.com/cszn/KAIR/releases/download/v1.0/scunet_color_real_psnr.pth",
    size=71_982_841,
    sha256="fa78899ba2caec9d235a900e91d96c689da71c42029230c2028b00f09f809c2e",
)
NAFNET = PublishedWeights(
    name="nafnet",
    file="NAFNet-SIDD-width64.pth",
    purpose="denoising of phone photos (SIDD)",
    licence="MIT",
    url="https://huggingface.co/spaces/chuxiaojie/NAFNet"
    "/resolve/5964ed4955416df99210106b708e4a2df9e9eca0/NAFNet-SIDD-width64.pth",
    size=464_154_961,
    sha256="cd685efaae01f7c4e9951f2deab05780079c8eb1e49ed664b72f6db04dabb445",
)
GFPGAN = PublishedWeights(
    name="gfpgan-v1.4",
    file="GFPGANv1.4.pth",
    purpose="face restorer with a StyleGAN2 decoder",
    licence="Apache-2.0",
    url="https://github.com/TencentARC/GFPGAN/releases/download/v1.3.0/GFPGANv1.4.pth",
    size=348_632_874,
    sha256="e2cd4703ab14f4d01fd1383a8a8b266f9a5833dacee8e6a79d3bf21a1b6be5ad",
)
RESTOREFORMER = PublishedWeights(
    name="restoreformer",
    file="RestoreFormer.pth",
    purpose="face restorer with a dictionary of features",
    licence="Apache-2.0",
    url="https://github.com/TencentARC/GFPGAN/releases/download/v1.3.4/RestoreFormer.pth",
    size=290_785_322,
    sha256="07404d446d62ca3d5ed38b1de09a947a1e77d46dbccec961a74d713a8f24ace0",
)
CODEFORMER = PublishedWeights(
    name="codeformer",
    file="codeformer.pth",
    purpose="face restorer with a code book",
    licence="S-Lab-1.0",
    url="https://github.com/sczhou/CodeFormer/releases/download/v0.1.0/codeformer.pth",
    size=376_637_898,
    sha256="1009e537e0c2a07d4cabce6355f53cb66767cd4b4297ec7a4a64ca4b8a5684b7",
    commercial=False,
)
FEMASR = PublishedWeights(
    name="femasr",
    file="FeMaSR_SRX4_model_g.pth",
    purpose="blind super-resolution with a code book of textures, 4 x",
    licence="CC-BY-NC-SA-4.0",
    url="https://github.com/chaofengc/FeMaSR/releases/download/v0.1-pretrain_models/FeMaSR_SRX4_model_g.pth",
    commercial=False,
)
PUBLISHED: tuple[PublishedWeights, ...] = (
    SWINIR, SWINIR_GAN, BSRGAN, BSRNET, REALESRGAN, REALESR_GENERAL,
    SCUNET, NAFNET, GFPGAN, RESTOREFORMER, CODEFORMER, FEMASR,
)  # fmt: skip


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
    path = cache_folder().parent / weights.folder / weights.file
    if not path.is_file():
        raise WeightsMissingError(
            f"{weights.file}, the weights of {weights.name!r}, is not here: run `adapt weights fetch {weights.name}`; "
            f"offline, bring it from {weights.url} and `adapt weights import {weights.file}`, or put it at {path}"
        )
    return path


def record_of(path: Path) -> Path:
    """Where the hash of a file in the cache is kept from the day it came or was first used."""
    return path.with_name(path.name + ".sha256")


def pinned(weights: PublishedWeights) -> str | None:
    """The hash that a file had when it came to the cache or was first used, if it did."""
    record = record_of(cache_folder().parent / weights.folder / weights.file)
    return record.read_text(encoding="utf-8").strip() if record.is_file() else None


def checked_sha256(path: Path, weights: PublishedWeights) -> str:
    """Hash of the file `path`, which must be the published one; where none is published, the one it had at first.

    Raises:
        WeightsChangedError: it is another.
    """
    found, record = sha256_of(path), record_of(path)
    expected = weights.sha256
    if expected == "unknown" and record.is_file():
        expected = record.read_text(encoding="utf-8").strip()
    if expected == "unknown":
        _pin(record, found, weights)
    elif found != expected:
        raise WeightsChangedError(
            f"{path}: sha256 {found}, expected {expected}; delete it and run `adapt weights fetch {weights.name}`"
        )
    return found


def _pin(record: Path, sha256: str, weights: PublishedWeights) -> None:
    """Keeps the hash of a file that is used for the first time, so that a later change is noticed."""
    try:
        with atomic_file(record) as temporary:
            temporary.write_text(f"{sha256}\n", encoding="utf-8")
    except OSError as error:  # a cache that others keep for us
        logger.warning("%s: sha256 %s, which cannot be kept (%s)", weights.file, sha256, error.strerror)
    else:
        logger.warning("%s: sha256 %s, kept; a file of another hash will be refused", weights.file, sha256)
