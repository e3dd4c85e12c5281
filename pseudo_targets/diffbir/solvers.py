"""Ways from noise to a clean latent that DiffBIR offers, for a network whose output a `NoiseSchedule` explains.

Each takes the (guided) network output as a function of the noisy latent and its timestep, the schedule, the start `x`
`[B, C, h, w]` at unit variance, the number of steps, and a source of noise; it returns the clean latent.

The `edm_*` solvers work on y = x sqrt(1 + sigma^2), where y = x0 + sigma noise (Karras et al. 2022).
"""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import Tensor

from pseudo_targets.schedule import (
    NoiseSchedule,
    ddim_timesteps,
    edm_sigmas,
    even_log_alphas,
    respace,
    spaced_timesteps,
)

Output = Callable[[Tensor, float], Tensor]
Noise = Callable[[Tensor], Tensor]
"""Unit normal noise shaped like its argument."""
Denoised = Callable[[Tensor, int], Tensor]
"""Clean latent from y at the i-th sigma."""


def spaced(output: Output, schedule: NoiseSchedule, x: Tensor, steps: int, noise: Noise) -> Tensor:
    """Ancestral sampling (Ho et al. 2020, algorithm 2) on `steps` evenly spaced timesteps; each step draws noise."""
    chain = respace(schedule, spaced_timesteps(len(schedule), [steps]))
    for i in reversed(range(len(chain))):
        timestep = chain.timesteps[i]
        x0 = schedule.to_x0(output(x, timestep), x, timestep)
        x = chain.posterior_step(x0, x, i, noise(x))
    return x


def ddim(output: Output, schedule: NoiseSchedule, x: Tensor, steps: int, noise: Noise) -> Tensor:
    """DDIM (Song et al. 2021, eq. 12 with eta 0) on the grid of `ddim_timesteps`; it ends at timestep 0, not below."""
    del noise  # nothing is random here
    grid = ddim_timesteps(len(schedule), steps)
    for timestep, following in zip(reversed(grid), reversed((0, *grid[:-1])), strict=True):
        x0 = schedule.to_x0(output(x, timestep), x, timestep)
        x = schedule.ddim_step(x0, x, timestep, following)
    return x


def dpmpp_2m(output: Output, schedule: NoiseSchedule, x: Tensor, steps: int, noise: Noise) -> Tensor:
    """DPM-Solver++ (2M) (Lu et al. 2022, algorithm 2) on even times; the last step ends at timestep 0.

    Times are continuous, so the network is asked between timesteps. Levels of almost no signal are left out. As its
    authors have it, the last of fewer than 10 steps is of first order.
    """
    del noise
    timesteps, log_alpha = even_log_alphas(schedule, steps)
    alpha = log_alpha.exp()
    sigma = (1 - alpha**2).sqrt()
    lambdas = (alpha / sigma).log().tolist()
    previous: Tensor | None = None
    for i in range(steps):
        x0 = _clean(schedule, output(x, timesteps[i]), x, float(alpha[i]), float(sigma[i]))
        step = lambdas[i + 1] - lambdas[i]
        estimate = x0
        if previous is not None and (i + 1 < steps or steps >= 10):
            estimate = x0 + (x0 - previous) * step / (2 * (lambdas[i] - lambdas[i - 1]))
        x = float(sigma[i + 1] / sigma[i]) * x - float(alpha[i + 1]) * math.expm1(-step) * estimate
        previous = x0
    return x


def _clean(schedule: NoiseSchedule, answer: Tensor, x: Tensor, alpha: float, sigma: float) -> Tensor:
    """The clean latent at a level between timesteps."""
    if schedule.prediction_type == "epsilon":
        return (x - sigma * answer) / alpha
    return alpha * x - sigma * answer if schedule.prediction_type == "v_prediction" else answer


def edm_euler(output: Output, schedule: NoiseSchedule, x: Tensor, steps: int, noise: Noise) -> Tensor:
    """Euler's method (Karras et al. 2022, algorithm 2 without the correction and without churn)."""
    del noise
    sigmas, denoised, y = _karras(output, schedule, x, steps)
    for i in range(steps):
        slope = (y - denoised(y, i)) / sigmas[i]
        y = y + (sigmas[i + 1] - sigmas[i]) * slope
    return y


def edm_heun(output: Output, schedule: NoiseSchedule, x: Tensor, steps: int, noise: Noise) -> Tensor:
    """Heun's method (Karras et al. 2022, algorithm 2 without churn): two evaluations a step, one in the last."""
    del noise
    sigmas, denoised, y = _karras(output, schedule, x, steps)
    for i in range(steps):
        step = sigmas[i + 1] - sigmas[i]
        slope = (y - denoised(y, i)) / sigmas[i]
        ahead = y + step * slope
        if sigmas[i + 1] > 0:
            slope = (slope + (ahead - denoised(ahead, i + 1)) / sigmas[i + 1]) / 2
        y = y + step * slope
    return y


def edm_dpmpp_2m(output: Output, schedule: NoiseSchedule, x: Tensor, steps: int, noise: Noise) -> Tensor:
    """DPM-Solver++ (2M) (Lu et al. 2022, algorithm 2): one evaluation a step, extrapolated from the step before."""
    del noise
    sigmas, denoised, y = _karras(output, schedule, x, steps)
    previous: Tensor | None = None
    for i in range(steps):
        x0 = denoised(y, i)
        if sigmas[i + 1] == 0:
            return x0
        step = math.log(sigmas[i] / sigmas[i + 1])
        estimate = x0
        if previous is not None:
            ratio = math.log(sigmas[i - 1] / sigmas[i]) / step
            estimate = x0 + (x0 - previous) / (2 * ratio)
        y = math.exp(-step) * y - math.expm1(-step) * estimate
        previous = x0
    return y


def edm_dpmpp_3m_sde(output: Output, schedule: NoiseSchedule, x: Tensor, steps: int, noise: Noise) -> Tensor:
    """The stochastic exponential integrator of third order, DiffBIR's default since version 2.1.

    With lambda = -log sigma the clean latent is taken as a quadratic in lambda through the last three estimates, and
    the reverse SDE (Lu et al. 2022, section 5) is solved exactly for it over each step h: its weights are
    phi_1 = 1 - exp(-2h), phi_2 = 1 - phi_1 / 2h and phi_3 = phi_2 / 2h - 1/2. The last step returns the estimate.
    """
    sigmas, denoised, y = _karras(output, schedule, x, steps)
    past: list[Tensor] = []  # estimates, the latest first
    spans: list[float] = []  # steps in lambda that lie between them
    for i in range(steps):
        x0 = denoised(y, i)
        if sigmas[i + 1] == 0:
            return x0
        step = math.log(sigmas[i] / sigmas[i + 1])
        decay = 2 * step
        y = math.exp(-decay) * y - math.expm1(-decay) * x0
        phi2 = math.expm1(-decay) / decay + 1
        if past:
            first, second = _derivatives([x0, *past], [span / step for span in spans])
            y = y + phi2 * first
            if second is not None:
                y = y - (phi2 / decay - 0.5) * second
        y = y + sigmas[i + 1] * math.sqrt(-math.expm1(-2 * step)) * noise(y)
        past, spans = [x0, *past][:2], [step, *spans][:2]
    return y


def _derivatives(estimates: list[Tensor], spans: list[float]) -> tuple[Tensor, Tensor | None]:
    """First derivative at the latest of two or three estimates, and the divided difference of second order.

    `spans` are the distances between the estimates in units of the coming step.
    """
    recent = (estimates[0] - estimates[1]) / spans[0]
    if len(estimates) == 2:
        return recent, None
    earlier = (estimates[1] - estimates[2]) / spans[1]
    second = (recent - earlier) / (spans[0] + spans[1])
    return recent + spans[0] * second, second


def _karras(output: Output, schedule: NoiseSchedule, x: Tensor, steps: int) -> tuple[list[float], Denoised, Tensor]:
    """Sigmas, the denoiser in Karras' form (eq. 7), and the start in its scale."""
    timesteps, levels = edm_sigmas(schedule, steps)
    sigmas = levels.tolist()

    def denoised(y: Tensor, i: int) -> Tensor:
        variance = 1 + sigmas[i] ** 2
        answer = output(y / math.sqrt(variance), timesteps[i])
        if schedule.prediction_type == "v_prediction":
            return y / variance - sigmas[i] / math.sqrt(variance) * answer
        return y - sigmas[i] * answer if schedule.prediction_type == "epsilon" else answer

    return sigmas, denoised, x * math.sqrt(1 + sigmas[0] ** 2)
