"""The schedules of the reference implementations, built with ours."""

from pseudo_targets.schedule import NoiseSchedule, linear_betas, scaled_linear_betas, zero_terminal_snr
from tests.parity.parity_files import config


def diffbir_schedule(version: str) -> NoiseSchedule:
    """`v1v2` (epsilon) or `v21` (velocity, zero terminal SNR)."""
    values = config("diffbir")["diffusion"]
    betas = scaled_linear_betas(values["timesteps"], values["linear_start"], values["linear_end"])
    if version == "v21":
        return NoiseSchedule.from_betas(zero_terminal_snr(betas), "v_prediction")
    return NoiseSchedule.from_betas(betas, "epsilon")


def iddpm_schedule() -> NoiseSchedule:
    """The FFHQ pixel prior's: linear betas, epsilon."""
    return NoiseSchedule.from_betas(linear_betas(config("dtbfr")["diffusion"]["steps"]), "epsilon")
