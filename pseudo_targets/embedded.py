"""The mini family that ships inside the package: latent space, prior, IRControlNet, degradation removal."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import TypeVar

import torch
from diffusers import UNet2DConditionModel
from safetensors import safe_open
from torch import Tensor, nn

from pseudo_targets.downloads import WeightsError
from pseudo_targets.ir_controlnet import ENCODER, Steered
from pseudo_targets.latents import PatchLatents
from pseudo_targets.priors import Fusion, LatentPrior, build_mini_unet, mini_context
from pseudo_targets.quality import QualityPredictor
from pseudo_targets.removal import DegradationRemoval
from pseudo_targets.schedule import NoiseSchedule, scaled_linear_betas, zero_terminal_snr
from pseudo_targets.tone import ToneStatistics

WEIGHTS = Path(__file__).parent / "weights"
LICENCE = "Apache-2.0"
M = TypeVar("M", bound=nn.Module)


def mini_schedule() -> NoiseSchedule:
    """Velocity prediction on scaled-linear betas with zero terminal signal, as DiffBIR v2.1."""
    return NoiseSchedule.from_betas(zero_terminal_snr(scaled_linear_betas()), "v_prediction")


def load_codec(folder: Path = WEIGHTS) -> PatchLatents:
    """The patch transform.

    Raises:
        WeightsError: as `read_weights`; the same holds for the other loaders of this module.
    """
    tensors, metadata = read_weights(folder, "latents")
    return PatchLatents(tensors["basis"], tensors["mean"], float(metadata["scaling"]))


def load_removal(folder: Path = WEIGHTS) -> DegradationRemoval:
    """Degradation removal, in eval mode and frozen."""
    tensors, metadata = read_weights(folder, "removal")
    codec = load_codec(folder)
    removal = DegradationRemoval(codec, int(metadata["size"]), _widths(metadata))
    return _filled(removal, {**tensors, "codec.basis": codec.basis, "codec.mean": codec.mean})


def load_quality(folder: Path = WEIGHTS) -> QualityPredictor:
    """The quality read-out on top of degradation removal, in eval mode and frozen."""
    tensors, _ = read_weights(folder, "quality")
    return QualityPredictor(load_removal(folder), **tensors).eval().requires_grad_(False)


def load_tone(folder: Path = WEIGHTS) -> ToneStatistics:
    """What is known of the tone of clean images."""
    tensors, _ = read_weights(folder, "tone")
    return ToneStatistics(**tensors)


def load_unet(folder: Path = WEIGHTS) -> UNet2DConditionModel:
    """The prior's denoiser alone, in eval mode and frozen."""
    tensors, metadata = read_weights(folder, "prior")
    return _filled(build_mini_unet(load_codec(folder).channels, int(metadata["size"]), _widths(metadata)), tensors)


def load_mini(folder: Path = WEIGHTS) -> LatentPrior:
    """The prior with its IRControlNet, in eval mode and frozen."""
    codec, unet = load_codec(folder), load_unet(folder)
    tensors, metadata = read_weights(folder, "control")
    places = read_weights(folder, "prior")[1].get("places") == "yes"
    steered = Steered(unet)
    encoder = tuple(f"unet.{name}." for name in ENCODER)
    shared = {name: tensor for name, tensor in steered.state_dict().items() if name.startswith(encoder)}
    _filled(steered, {**shared, **tensors})
    variance = torch.tensor([float(value) for value in metadata["reference_variance"].split(",")])
    digests = _digests(folder)
    together = hashlib.sha256("".join(digests[name] for name in ("latents", "prior", "control")).encode()).hexdigest()
    return LatentPrior(
        codec,
        unet,
        steered.control,
        mini_schedule(),
        resolution=int(unet.config.sample_size) * codec.patch,
        context=mini_context(),
        name="mini",
        licence=LICENCE if folder == WEIGHTS else "your own training",
        weights_sha256=together,
        fusion=Fusion(variance),
        steered=steered.unet,
        knows_places=places,
    ).eval()


def read_weights(folder: Path, name: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Reads `<name>.safetensors` in float32 with its metadata, after checking it against `sha256.json`.

    Raises:
        WeightsError: missing, not listed, or changed.
    """
    path = folder / f"{name}.safetensors"
    if not path.is_file():
        raise WeightsError(f"weights {path} are missing: reinstall the package, or train them with `adapt pretrain`")
    expected = _digests(folder).get(name)
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != expected:
        raise WeightsError(f"weights {path}: sha256 {found[:12]}, expected {str(expected)[:12]}; reinstall the package")
    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key).float() for key in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118


def embedded_sha256(folder: Path = WEIGHTS) -> str:
    """One hash of all networks of the family."""
    return hashlib.sha256(json.dumps(_digests(folder), sort_keys=True).encode()).hexdigest()


def _digests(folder: Path) -> dict[str, str]:
    path = folder / "sha256.json"
    if not path.is_file():
        raise WeightsError(f"{path} is missing: reinstall the package, or train the weights with `adapt pretrain`")
    return json.loads(path.read_text(encoding="utf-8"))


def _widths(metadata: dict[str, str]) -> tuple[int, ...]:
    return tuple(int(width) for width in metadata["widths"].split(","))


def _filled(module: M, tensors: dict[str, Tensor]) -> M:
    module.load_state_dict(tensors)
    return module.eval().requires_grad_(False)
