"""Restoration guidance: weight maps, losses, gradients, and one application through the fixtures' decoder."""

import re

import pytest
import torch
from torch import Tensor

from pseudo_targets.consistency import Reference, RestorationGuidance, detail_weight, guidance_loss
from pseudo_targets.schedule import respace, spaced_timesteps
from tests.parity.parity_files import absolute, config, needs_fixtures, relative, tensors
from tests.parity.reference_schedules import diffbir_schedule
from tests.parity.tiny_vae import tiny_vae

pytestmark = needs_fixtures


def identity(x: Tensor) -> Tensor:
    return x


@pytest.fixture(scope="module")
def pieces() -> dict[str, Tensor]:
    return tensors("guidance_pieces")


def test_weight_maps(pieces: dict[str, Tensor]) -> None:
    for image, weight in (("image01", "weight_map"), ("step01", "step_weight_map"), ("flat01", "flat_weight_map")):
        assert absolute(detail_weight(pieces[image]), pieces[weight]) < 1e-5


def test_losses_and_deltas(pieces: dict[str, Tensor]) -> None:
    keys = [key for key in pieces if re.fullmatch(r"w?mse_delta_g\d+p\d+", key)]
    assert keys
    prediction, target = (pieces["pred"] + 1) / 2, (pieces["target"] + 1) / 2
    reference = Reference(latent=target, image=target)
    for key in keys:
        loss, scale = key.split("_delta_g")
        scale = float(scale.replace("p", "."))
        guidance = RestorationGuidance(identity, scale, "rgb", loss)
        # The recorded gradient is with respect to the picture in [-1, 1], ours to the one in [0, 1].
        assert relative(guidance.shift(prediction, reference) / 2, pieces[key]) < 1e-4
        assert 3000 * scale == pytest.approx(float(pieces[key.replace(f"{loss}_delta", "kappa")]))
        weight = detail_weight(target) if loss == "wmse" else None
        value = guidance_loss(pieces["pred"], pieces["target"], weight)
        assert float(value) == pytest.approx(float(pieces[f"{loss}_loss"]), rel=1e-5)


@pytest.mark.parametrize("loss", ["mse", "wmse"])
def test_one_application(pieces: dict[str, Tensor], loss: str) -> None:
    schedule = diffbir_schedule("v1v2")
    steps = len(tensors("guided_mse_rgb")["timesteps"])
    chain = respace(schedule, spaced_timesteps(len(schedule), [steps]))
    timestep = int(pieces["latent_t"])
    image, z0 = tensors("diffbir_traj_inputs")["image01"], pieces["latent_z0"]
    coefficient = float(pieces["latent_posterior_mean_coef1"])
    assert float(chain.posterior_mean_coef1[chain.index(timestep)]) == pytest.approx(coefficient, rel=1e-5)

    vae = tiny_vae()
    with torch.no_grad():
        decoded = vae.decode(z0)
    assert relative(2 * decoded - 1, pieces["latent_decoded"]) < 1e-5
    reference = Reference(latent=z0, image=image)
    expected = pieces[f"latent_{loss}_rgb_dz"]
    guidance = RestorationGuidance(vae.decode, config("diffbir")["guidance_scale"]["rgb"], "rgb", loss, chain=chain)
    assert relative(guidance.shift(z0, reference), expected) < 1e-4
    assert relative(guidance(z0, reference, timestep), pieces[f"latent_{loss}_rgb_z0_after"]) < 1e-4
    weight = detail_weight(image) if loss == "wmse" else None
    value = guidance_loss(2 * decoded - 1, 2 * image - 1, weight)
    assert float(value) == pytest.approx(float(pieces[f"latent_{loss}_rgb_loss"]), rel=1e-4)
