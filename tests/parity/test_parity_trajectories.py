"""Whole sampling runs, replayed with the recorded network outputs and noises through our steps and guidance."""

import pytest
import torch
from torch import Tensor

from pseudo_targets.consistency import Reference, RestorationGuidance, detail_weight, guidance_loss
from pseudo_targets.schedule import Chain, NoiseSchedule, rescale_cfg, respace, spaced_timesteps
from tests.parity.parity_files import config, names, needs_fixtures, relative, tensors
from tests.parity.reference_schedules import diffbir_schedule
from tests.parity.tiny_vae import TinyVae, tiny_vae

pytestmark = needs_fixtures


def recorded_chain(run: dict[str, Tensor], schedule: NoiseSchedule) -> Chain:
    """The chain of a run, whose recorded timesteps fall and are those of the spaced grid."""
    chain = respace(schedule, spaced_timesteps(len(schedule), [len(run["timesteps"])]))
    assert chain.timesteps == tuple(sorted(run["timesteps"].tolist()))
    return chain


@pytest.mark.parametrize("name", names("traj_spaced_*"))
def test_spaced_run(name: str) -> None:
    run = tensors(name)
    schedule = diffbir_schedule("v21" if "_v_" in name else "v1v2")
    chain = recorded_chain(run, schedule)
    x = tensors("diffbir_traj_inputs")["x_T"]
    for step, timestep in enumerate(run["timesteps"].tolist()):
        x0 = schedule.to_x0(run["model_output_after_cfg"][step], x, timestep)
        assert relative(x0, run["pred_x0"][step]) < 1e-4
        x = chain.posterior_step(x0, x, chain.index(timestep), run["noises"][step])
        assert relative(x, run["x_after_step"][step]) < 1e-4
    assert relative(x, run["z_final"]) < 1e-4


@pytest.mark.parametrize("name", names("traj_spaced_*"))
def test_guidance_scale(name: str) -> None:
    run = tensors(name)
    scale = 1.0 if "nocfg" in name else config("diffbir")["cfg_scale"]
    for timestep, used in zip(run["timesteps"].tolist(), run["cfg_scale_used"].tolist(), strict=True):
        assert used == pytest.approx(rescale_cfg(scale, timestep) if "rescale" in name else scale, rel=1e-9)


def guided_settings(name: str, run: dict[str, Tensor], chain: Chain, vae: TinyVae) -> RestorationGuidance:
    """The guidance that a file says it was recorded with."""
    return RestorationGuidance(
        vae.decode,
        float(run["g_scale"]),
        space="latent" if "latent" in name else "rgb",
        loss="wmse" if "wmse" in name else "mse",
        start=int(run["t_start"]),
        stop=int(run["t_stop"]),
        repeat=int(run["repeat"]),
        chain=chain,
    )


@pytest.mark.parametrize("name", names("guided_*"))
def test_guided_run(name: str) -> None:
    run, inputs = tensors(name), tensors("diffbir_traj_inputs")
    schedule, vae = diffbir_schedule("v1v2"), tiny_vae()
    chain = recorded_chain(run, schedule)
    assert 3000 * float(run["g_scale"]) == pytest.approx(float(run["kappa"]))
    guidance = guided_settings(name, run, chain, vae)
    noises = iter([run[key] for key in sorted(run) if key.startswith("noise_")])
    losses = iter(run["loss"].tolist())
    x, image = inputs["x_T"], inputs["image01"]
    for step, timestep in enumerate(run["timesteps"].tolist()):
        x0 = schedule.to_x0(run["model_output_after_cfg"][step], x, timestep)
        assert relative(x0, run["pred_x0_before_guidance"][step]) < 1e-4
        assert guidance.active(timestep) == bool(run["guidance_applied"][step])
        if guidance.active(timestep):
            # The reference draws the target from the posterior anew at every step.
            latent = vae.encode(image, next(noises)) if guidance.space == "latent" else x0
            reference = Reference(latent, image)
            assert first_loss(guidance, x0, reference) == pytest.approx(next(losses), rel=1e-4)
            if "delta_pred" in run:
                assert relative(guidance.shift(x0, reference), run["delta_pred"][step]) < 1e-4
            for _ in range(guidance.repeat - 1):
                next(losses)
            x0 = guidance(x0, reference, timestep)
        assert relative(x0, run["pred_x0_after_guidance"][step]) < 1e-4
        x = chain.posterior_step(x0, x, chain.index(timestep), next(noises))
        assert relative(x, run["x_after_step"][step]) < 1e-4
    assert relative(x, run["z_final"]) < 1e-4
    assert next(noises, None) is None
    assert next(losses, None) is None


def first_loss(guidance: RestorationGuidance, x0: Tensor, reference: Reference) -> float:
    """The loss before the first gradient step."""
    if guidance.space == "latent":
        return float(guidance_loss(x0, reference.latent))
    weight = detail_weight(reference.image) if guidance.loss == "wmse" else None
    with torch.no_grad():
        return float(guidance_loss(2 * guidance.decode(x0) - 1, 2 * reference.image - 1, weight))
