"""The published versions of DiffBIR as priors, from their files in the user's cache.

The first load converts the published files and stores the result beside them; later loads read only that.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor, nn

from pseudo_targets.checkpoints import read_checkpoint
from pseudo_targets.diffbir import files, networks
from pseudo_targets.diffbir.convert import (
    Checkpoint,
    convert_autoencoder,
    convert_control,
    convert_text_tower,
    convert_unet,
    split_checkpoint,
)
from pseudo_targets.diffbir.networks import (
    Sizes,
    build_autoencoder,
    build_control,
    build_text_tower,
    build_unet,
)
from pseudo_targets.diffbir.prompts import embed, empty_prompt
from pseudo_targets.downloads import (
    DIFFBIR_V1_FACE,
    DIFFBIR_V1_FACE_FULL,
    DIFFBIR_V1_GENERAL,
    DIFFBIR_V1_GENERAL_FULL,
    DIFFBIR_V2_CONTROL,
    DIFFBIR_V21_CONTROL,
    SD21_BASE,
    SD21_ZSNR,
    PublishedWeights,
    WeightsError,
    find,
)
from pseudo_targets.latents import AutoencoderLatents
from pseudo_targets.priors import LatentPrior
from pseudo_targets.schedule import NoiseSchedule, scaled_linear_betas, zero_terminal_snr

if TYPE_CHECKING:
    from transformers import CLIPTextModel

M = TypeVar("M", bound=nn.Module)
LAYOUT = "1"
LICENCE = "CreativeML OpenRAIL++-M (Stable Diffusion 2.1), Apache-2.0 (DiffBIR)"
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Version:
    """One published version.

    Attributes:
        name: as in `PRIORS`.
        base: Stable Diffusion checkpoint with UNet, autoencoder and text tower.
        control: IRControlNet.
        whole: one file that holds all of it, if there is one.
        velocity: predicts velocity under zero terminal SNR; otherwise noise.
        aligned: knows nothing but aligned faces.
    """

    name: str
    base: PublishedWeights
    control: PublishedWeights
    whole: PublishedWeights | None = None
    velocity: bool = False
    aligned: bool = False


VERSIONS = {
    version.name: version
    for version in (
        Version("diffbir-v1", SD21_BASE, DIFFBIR_V1_FACE, DIFFBIR_V1_FACE_FULL, aligned=True),
        Version("diffbir-v1-general", SD21_BASE, DIFFBIR_V1_GENERAL, DIFFBIR_V1_GENERAL_FULL),
        Version("diffbir-v2", SD21_BASE, DIFFBIR_V2_CONTROL),
        Version("diffbir-v2.1", SD21_ZSNR, DIFFBIR_V21_CONTROL, velocity=True),
    )
}


def load_diffbir(name: str, folder: Path | None = None, sizes: Sizes | None = None) -> LatentPrior:
    """A version of `VERSIONS` with the empty prompt as its context, in float32, eval mode and frozen.

    Args:
        folder: holds the published files, each as published or under the same name as `.safetensors`; None is
            `files.cache_folder()`.
        sizes: of the networks; None is `networks.PUBLISHED`.

    Raises:
        WeightsError: files are missing, unreadable, or do not hold the tensors they should.
    """
    version, place, sizes = VERSIONS[name], folder or files.cache_folder(), sizes or networks.PUBLISHED
    _ensure_converted(version, place, sizes)
    tensors, metadata = files.read_stored(_stored(version, place))
    if "context" not in tensors:
        raise WeightsError(f"{_stored(version, place)}: holds no context; delete it, and it is made again")
    digests = [str(fact["sha256"]) for _, fact in sorted(files.facts_of(metadata).items())]
    with torch.device("meta"):
        unet = build_unet(sizes)
        control = build_control(unet)
        autoencoder = build_autoencoder(sizes)
    return LatentPrior(
        AutoencoderLatents(_filled(autoencoder, tensors, "codec.")),
        _filled(unet, tensors, "unet."),
        _filled(control, tensors, "control."),
        version_schedule(version),
        resolution=sizes.resolution,
        context=tensors["context"],
        name=name,
        licence=LICENCE,
        weights_sha256=hashlib.sha256("".join(digests).encode()).hexdigest(),
    ).eval()


def load_text_tower(name: str, folder: Path | None = None, sizes: Sizes | None = None) -> CLIPTextModel:
    """The text tower of a version, for prompts other than the empty one; frozen, in eval mode.

    Raises:
        WeightsError: as `load_diffbir`, or transformers is not installed.
    """
    version, place, sizes = VERSIONS[name], folder or files.cache_folder(), sizes or networks.PUBLISHED
    _ensure_converted(version, place, sizes)
    tensors, _ = files.read_stored(_stored(version, place, "text"))
    return _filled(build_text_tower(sizes), tensors, "")


def version_schedule(version: Version) -> NoiseSchedule:
    """Scaled-linear betas; velocity prediction goes with zero terminal SNR."""
    betas = scaled_linear_betas()
    if version.velocity:
        return NoiseSchedule.from_betas(zero_terminal_snr(betas), "v_prediction")
    return NoiseSchedule.from_betas(betas, "epsilon")


def _stored(version: Version, folder: Path, part: str = "prior") -> Path:
    return folder / f"{version.name}.converted.{part}.safetensors"


def _ensure_converted(version: Version, folder: Path, sizes: Sizes) -> None:
    """Converts the published files unless that was done and they have not changed since."""
    paths = _published(version, folder)
    # The prior is stored last: where it is, the text tower is too.
    origin = files.stored_origin(_stored(version, folder))
    text_is_there = _stored(version, folder, "text").is_file()
    if text_is_there and origin.get("layout") == LAYOUT and files.comes_from(origin, paths.values()):
        return
    if "whole" not in paths and len(paths) < 2:
        raise WeightsError(_what_is_missing(version, folder, paths))
    checkpoint = _read(version, paths)
    metadata = {"layout": LAYOUT, **files.origin_of(paths.values())}
    _LOG.info("%s: converting %s", version.name, metadata["origin"])
    text = convert_text_tower(checkpoint.text, sizes, f"{version.name}, text tower")
    tensors = {
        **_prefixed("unet.", convert_unet(checkpoint.unet, sizes, f"{version.name}, UNet")),
        **_prefixed("control.", convert_control(checkpoint.control, sizes, f"{version.name}, IRControlNet")),
        **_prefixed("codec.", convert_autoencoder(checkpoint.autoencoder, sizes, f"{version.name}, autoencoder")),
    }
    tower = _filled(build_text_tower(sizes), {key: value.float() for key, value in text.items()}, "")
    tensors["context"] = embed(tower, empty_prompt(sizes))
    files.store(_stored(version, folder, "text"), text, metadata)
    files.store(_stored(version, folder), tensors, metadata)


def _published(version: Version, folder: Path) -> dict[str, Path]:
    """The published files that are there: `whole`, or those of `base` and `control`."""
    found = {
        role: path
        for role, weights in (("base", version.base), ("control", version.control))
        if (path := find(folder, weights.file)) is not None
    }
    whole = find(folder, version.whole.file) if version.whole is not None else None
    return {"whole": whole} if whole is not None and len(found) < 2 else found


def _what_is_missing(version: Version, folder: Path, found: Mapping[str, Path]) -> str:
    absent = [weights for role, weights in (("base", version.base), ("control", version.control)) if role not in found]
    names, files = " ".join(weights.name for weights in absent), " and ".join(weights.file for weights in absent)
    instead = f" (or {version.whole.file} alone)" if version.whole else ""
    return (
        f"prior {version.name}: run `adapt weights fetch {names}`; offline, `adapt weights import FILE` with {files}"
        f"{instead}, or put it into {folder}"
    )


def _read(version: Version, paths: Mapping[str, Path]) -> Checkpoint:
    if "whole" in paths:
        return split_checkpoint(read_checkpoint(paths["whole"]), f"{version.name}, {paths['whole'].name}")
    base = split_checkpoint(read_checkpoint(paths["base"]), f"{version.name}, {paths['base'].name}")
    return Checkpoint(base.unet, base.autoencoder, base.text, read_checkpoint(paths["control"]))


def _prefixed(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def _filled(module: M, tensors: Mapping[str, Tensor], prefix: str) -> M:
    own = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    try:
        module.load_state_dict(own, assign=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())
        raise WeightsError(f"converted weights do not fit the networks, delete *.converted.*: {reason}") from error
    return module.eval().requires_grad_(False)
