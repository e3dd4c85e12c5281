"""Noise levels of a diffusion prior: beta schedules, timestep grids, respaced chains, steps between levels.

Notation: abar_t is the cumulative product of alphas and x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) noise (Ho et al. 2020,
eq. 4). Timestep -1 stands for the clean image (abar = 1), so the last step of every sampler needs no special case.
Coefficients live in float64 on the CPU and are cast to the image's dtype and device only when they are applied.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, repeat
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor

PredictionType = Literal["epsilon", "v_prediction", "sample"]
Timestep = int | Tensor
"""One timestep for the whole batch, or an integer tensor `[B]` with one for each image; -1 is the clean image."""


class ScheduleError(ValueError):
    """A schedule, grid or timestep that cannot be used; the message says what was got and what is expected."""


def linear_betas(steps: int = 1000, start: float = 1e-4, end: float = 0.02) -> Tensor:
    """Evenly spaced betas, float64 `[steps]` (Ho et al. 2020); the defaults are those of the FFHQ pixel prior."""
    return torch.linspace(start, end, steps, dtype=torch.float64)


def scaled_linear_betas(steps: int = 1000, start: float = 0.00085, end: float = 0.012) -> Tensor:
    """Betas whose square roots are evenly spaced, float64 `[steps]`; the defaults are those of Stable Diffusion."""
    return torch.linspace(math.sqrt(start), math.sqrt(end), steps, dtype=torch.float64) ** 2


def zero_terminal_snr(betas: Tensor) -> Tensor:
    """Betas `[T]` rescaled so that abar of the last timestep is exactly 0 and abar of the first stays the same.

    sqrt(abar) is shifted and stretched linearly (Lin et al. 2023, algorithm 1).
    """
    root = torch.cumprod(1 - betas.double(), dim=0).sqrt()
    root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
    abar = root**2
    return 1 - abar / torch.cat([abar.new_ones(1), abar[:-1]])


@dataclass(frozen=True, eq=False)
class NoiseSchedule:
    """Noise levels of a prior and the meaning of its network's output.

    Attributes:
        alphas_cumprod: abar, float64 `[T]`, strictly falling, in `[0, 1)`.
        prediction_type: what the network predicts: the noise, the velocity (Salimans and Ho 2022) or the clean image.

    Raises:
        ScheduleError: abar is out of range or not falling, or noise is predicted where abar is 0.
    """

    alphas_cumprod: Tensor
    prediction_type: PredictionType

    def __post_init__(self) -> None:
        abar = self.alphas_cumprod
        if abar.ndim != 1 or abar.dtype != torch.float64 or len(abar) == 0:
            raise ScheduleError(f"alphas_cumprod: got {abar.dtype} {tuple(abar.shape)}, expected float64 [T]")
        if not (abar.min() >= 0 and abar.max() < 1 and bool((abar.diff() < 0).all())):
            raise ScheduleError("alphas_cumprod: expected strictly falling values in [0, 1)")
        if self.prediction_type not in get_args(PredictionType):
            known = ", ".join(get_args(PredictionType))
            raise ScheduleError(f"prediction_type: got {self.prediction_type!r}, expected one of {known}")
        if self.prediction_type == "epsilon" and abar[-1] == 0:
            raise ScheduleError("prediction_type 'epsilon' cannot give the image where abar is 0, use 'v_prediction'")

    @classmethod
    def from_betas(cls, betas: Tensor, prediction_type: PredictionType) -> NoiseSchedule:
        """The schedule with these betas `[T]`."""
        return cls(torch.cumprod(1 - betas.double(), dim=0), prediction_type)

    def __len__(self) -> int:
        return len(self.alphas_cumprod)

    def level(self, timestep: Timestep) -> Tensor:
        """abar at a timestep, float64 `[]` or `[B]`; 1 at timestep -1."""
        index = torch.as_tensor(timestep).cpu()
        if index.min() < -1 or index.max() >= len(self):
            raise ScheduleError(f"timestep: got {timestep}, expected -1 (clean) to {len(self) - 1}")
        # Index -1 wraps to the appended 1.
        return torch.cat([self.alphas_cumprod.cpu(), torch.ones(1, dtype=torch.float64)])[index]

    def q_sample(self, x0: Tensor, timestep: Timestep, noise: Tensor) -> Tensor:
        """x0 `[B, C, H, W]` with `noise` (unit variance, same shape) added at the level of `timestep`."""
        abar = self.level(timestep)
        return _cast(abar.sqrt(), x0) * x0 + _cast((1 - abar).sqrt(), x0) * noise

    def velocity(self, x0: Tensor, noise: Tensor, timestep: Timestep) -> Tensor:
        """v = sqrt(abar) noise - sqrt(1 - abar) x0 (Salimans and Ho 2022, appendix D)."""
        abar = self.level(timestep)
        return _cast(abar.sqrt(), x0) * noise - _cast((1 - abar).sqrt(), x0) * x0

    def target(self, x0: Tensor, noise: Tensor, timestep: Timestep) -> Tensor:
        """What the network is trained to return for x_t = q_sample(x0, timestep, noise)."""
        if self.prediction_type == "sample":
            return x0
        return noise if self.prediction_type == "epsilon" else self.velocity(x0, noise, timestep)

    def to_x0(self, model_output: Tensor, x_t: Tensor, timestep: Timestep) -> Tensor:
        """The clean image that a network output stands for, unclamped."""
        if self.prediction_type == "sample":
            return model_output
        abar = self.level(timestep)
        signal, sigma = abar.sqrt(), (1 - abar).sqrt()
        if self.prediction_type == "v_prediction":
            return _cast(signal, x_t) * x_t - _cast(sigma, x_t) * model_output
        return _cast(1 / signal, x_t) * x_t - _cast(sigma / signal, x_t) * model_output

    def to_eps(self, model_output: Tensor, x_t: Tensor, timestep: Timestep) -> Tensor:
        """The noise that a network output stands for."""
        if self.prediction_type == "epsilon":
            return model_output
        if self.prediction_type == "sample":
            return self.eps_of(model_output, x_t, timestep)
        abar = self.level(timestep)
        return _cast(abar.sqrt(), x_t) * model_output + _cast((1 - abar).sqrt(), x_t) * x_t

    def eps_of(self, x0: Tensor, x_t: Tensor, timestep: Timestep) -> Tensor:
        """The noise that leads from x0 to x_t, for an x0 that a consistency has corrected."""
        abar = self.level(timestep)
        return (x_t - _cast(abar.sqrt(), x_t) * x0) * _cast((1 - abar).rsqrt(), x_t)

    def posterior(self, timestep: Timestep, next_timestep: Timestep) -> tuple[Tensor, Tensor, Tensor]:
        """Weight of x0, weight of x_t, and variance of q(x_next | x_t, x0), float64 (Ho et al. 2020, eq. 6 and 7)."""
        abar, abar_next = self.level(timestep), self.level(next_timestep)
        if not bool((abar < abar_next).all()):
            raise ScheduleError(f"next_timestep: got {next_timestep}, expected less noise than at {timestep}")
        beta = 1 - abar / abar_next
        weight_x0 = beta * abar_next.sqrt() / (1 - abar)
        weight_x_t = (1 - abar_next) * (abar / abar_next).sqrt() / (1 - abar)
        return weight_x0, weight_x_t, beta * (1 - abar_next) / (1 - abar)

    def posterior_step(
        self, x0: Tensor, x_t: Tensor, timestep: Timestep, next_timestep: Timestep, noise: Tensor
    ) -> Tensor:
        """One ancestral step to `next_timestep`: a draw from q(x_next | x_t, x0); to -1 it returns x0."""
        weight_x0, weight_x_t, variance = self.posterior(timestep, next_timestep)
        return _cast(weight_x0, x0) * x0 + _cast(weight_x_t, x0) * x_t + _cast(variance.sqrt(), x0) * noise

    def ddim_step(
        self,
        x0: Tensor,
        x_t: Tensor,
        timestep: Timestep,
        next_timestep: Timestep,
        eta: float = 0.0,
        noise: Tensor | None = None,
    ) -> Tensor:
        """One step to `next_timestep` (Song et al. 2021, eq. 12): eta 0 is deterministic, eta 1 is ancestral.

        Raises:
            ScheduleError: `eta` is not 0 and no `noise` was given.
        """
        if eta != 0 and noise is None:
            raise ScheduleError(f"eta {eta}: a step with noise needs the noise tensor, got None")
        variance = eta**2 * self.posterior(timestep, next_timestep)[2]
        abar_next = self.level(next_timestep)
        direction = (1 - abar_next - variance).clamp(min=0).sqrt()
        result = _cast(abar_next.sqrt(), x0) * x0 + _cast(direction, x0) * self.eps_of(x0, x_t, timestep)
        return result if noise is None else result + _cast(variance.sqrt(), x0) * noise


@dataclass(frozen=True, eq=False)
class Chain:
    """A schedule restricted to some of its timesteps. Index i counts them upwards; all vectors are float64 `[N]`.

    Attributes:
        timesteps: ascending, on the scale of `schedule`.
        betas: the betas that give these abar.
        posterior_log_variance: log of `posterior_variance`, whose zero at index 0 is replaced by the value at index 1.
    """

    schedule: NoiseSchedule
    timesteps: tuple[int, ...]
    alphas_cumprod: Tensor
    betas: Tensor
    posterior_variance: Tensor
    posterior_log_variance: Tensor
    posterior_mean_coef1: Tensor
    posterior_mean_coef2: Tensor

    def __len__(self) -> int:
        return len(self.timesteps)

    def index(self, timestep: int) -> int:
        """The index of a timestep; `ScheduleError` when the chain does not hold it."""
        if timestep not in self.timesteps:
            raise ScheduleError(f"timestep {timestep} is not in the chain {self.timesteps}")
        return self.timesteps.index(timestep)

    def previous(self, i: int) -> int:
        """The timestep below index i; -1 below index 0."""
        return self.timesteps[i - 1] if i > 0 else -1

    def learned_log_variance(self, prediction: Tensor, i: int) -> Tensor:
        """Log variance from a learned-range output in `[-1, 1]` (Nichol and Dhariwal 2021, eq. 15)."""
        low, high = self.posterior_log_variance[i], self.betas[i].log()
        return _cast(low, prediction) + (prediction + 1) / 2 * _cast(high - low, prediction)

    def posterior_step(
        self, x0: Tensor, x_t: Tensor, i: int, noise: Tensor, log_variance: Tensor | None = None
    ) -> Tensor:
        """One ancestral step from index i to i - 1, with the posterior's variance or a learned one; x0 at index 0."""
        if log_variance is None or i == 0:
            return self.schedule.posterior_step(x0, x_t, self.timesteps[i], self.previous(i), noise)
        mean = _cast(self.posterior_mean_coef1[i], x0) * x0 + _cast(self.posterior_mean_coef2[i], x0) * x_t
        return mean + (log_variance / 2).exp() * noise

    def ddim_step(self, x0: Tensor, x_t: Tensor, i: int, eta: float = 0.0, noise: Tensor | None = None) -> Tensor:
        """One DDIM step from index i to i - 1; x0 at index 0."""
        return self.schedule.ddim_step(x0, x_t, self.timesteps[i], self.previous(i), eta, noise)


def respace(schedule: NoiseSchedule, timesteps: Iterable[int]) -> Chain:
    """The chain that visits only `timesteps` (distinct, any order), with the posteriors between neighbours."""
    ascending = tuple(sorted(int(t) for t in timesteps))
    if not ascending or ascending[0] < 0 or len(set(ascending)) != len(ascending):
        raise ScheduleError(f"timesteps: got {ascending}, expected at least one, distinct and not negative")
    here, below = torch.tensor(ascending), torch.tensor((-1, *ascending[:-1]))
    coef1, coef2, variance = schedule.posterior(here, below)
    betas = 1 - schedule.level(here) / schedule.level(below)
    # A single step has no second variance to borrow; its beta is the only scale there is.
    first = variance[1:2] if len(ascending) > 1 else betas[:1]
    log_variance = torch.cat([first, variance[1:]]).log()
    return Chain(schedule, ascending, schedule.level(here), betas, variance, log_variance, coef1, coef2)


def spaced_timesteps(steps: int, counts: Sequence[int]) -> tuple[int, ...]:
    """Split `steps` timesteps into equal sections and take `counts[k]` evenly spaced ones of section k; ascending.

    Both ends of a section are taken. The position is accumulated in floating point and rounded half to even, as in
    improved diffusion (Nichol and Dhariwal 2021), because published settings such as 21 steps depend on it.
    """
    sizes = [steps // len(counts) + (k < steps % len(counts)) for k in range(len(counts))]
    result: list[int] = []
    for first, size, count in zip(accumulate(sizes, initial=0), sizes, counts, strict=False):
        if not 1 <= count <= size:
            raise ScheduleError(f"respacing: got {count} timesteps, expected 1 to {size} in a section of {size}")
        stride = (size - 1) / (count - 1) if count > 1 else 1.0
        result += [first + round(position) for position in accumulate(repeat(stride, count - 1), initial=0.0)]
    return tuple(result)


def respacing(steps: int, spec: str) -> tuple[int, ...]:
    """Ascending timesteps for an improved-diffusion respacing string: "250", "10,15,20" (sections) or "ddim25"."""
    text = spec.removeprefix("ddim")
    numbers = text.split(",")
    if not all(number.strip().isdecimal() for number in numbers) or (text != spec and len(numbers) > 1):
        raise ScheduleError(f"respacing: got {spec!r}, expected counts joined by commas, or 'ddim' and a count")
    counts = [int(number) for number in numbers]
    if text == spec:
        return spaced_timesteps(steps, counts)
    for stride in range(1, steps):
        if len(range(0, steps, stride)) == counts[0]:
            return tuple(range(0, steps, stride))
    raise ScheduleError(f"respacing: got {spec!r}, no whole stride gives {counts[0]} of {steps} timesteps")


def ddim_timesteps(steps: int, calls: int) -> tuple[int, ...]:
    """Latent diffusion's uniform DDIM grid 1, 1 + c, 1 + 2c, ... with c = steps // calls; ascending.

    It can hold one timestep more than asked for (30 calls give 31 timesteps) and never reaches the last one.
    """
    if not 1 <= calls <= steps:
        raise ScheduleError(f"calls: got {calls}, expected 1 to {steps}")
    grid = tuple(range(1, steps + 1, steps // calls))
    if grid[-1] >= steps:
        raise ScheduleError(f"calls: {calls} calls would reach timestep {grid[-1]} of {steps}, choose another count")
    return grid


def edm_sigmas(schedule: NoiseSchedule, calls: int) -> tuple[tuple[int, ...], Tensor]:
    """Descending timesteps and their sigmas sqrt((1 - abar) / abar) for solvers in Karras' form, both ending at 0.

    Returns `calls` + 1 of each. The first abar is set to 1e-8 (sigma 1e4), as DiffBIR does whatever the network
    predicts, so that chains with zero terminal signal start from a finite level.
    """
    timesteps = tuple(int(t) for t in np.linspace(len(schedule) - 1, 0, calls, endpoint=False))
    abar = schedule.level(torch.tensor(timesteps)).clone()
    abar[0] = 1e-8
    return (*timesteps, 0), torch.cat([((1 - abar) / abar).sqrt(), torch.zeros(1, dtype=torch.float64)])


def even_log_alphas(schedule: NoiseSchedule, calls: int, lowest: float = -5.1) -> tuple[tuple[float, ...], Tensor]:
    """Descending continuous timesteps, evenly spaced, and log sqrt(abar) there, for DPM-Solver; `calls` + 1 of each.

    Between timesteps log sqrt(abar) is interpolated linearly. Timesteps whose log(sqrt(abar) / sigma) is below `lowest`
    are left out and the others stretched over their place, so that zero terminal signal leaves a finite start.
    """
    abar = schedule.alphas_cumprod.cpu()
    kept = abar[(abar / (1 - abar)).log() / 2 >= lowest]
    times = np.linspace(1, 1 / len(kept), calls + 1)
    log_alphas = np.interp(times, np.arange(1, len(kept) + 1) / len(kept), kept.log().numpy() / 2)
    timesteps = tuple(float(time - 1 / len(kept)) * len(schedule) for time in times)
    return timesteps, torch.from_numpy(log_alphas)


def descending_timesteps(start: int, calls: int) -> tuple[int, ...]:
    """`calls` timesteps from `start` down to 0, evenly spaced (few-step path); `(start,)` for one call."""
    if start < 0 or not 1 <= calls <= start + 1:
        raise ScheduleError(f"got start {start} with {calls} calls, expected start >= 0 and 1 to start + 1 calls")
    return tuple(round(start * (1 - k / max(calls - 1, 1))) for k in range(calls))


def rescale_cfg(scale: float, timestep: float, steps: int = 1000) -> float:
    """DiffBIR's schedule of the guidance scale: it rises late, from 1 at the noisy end to 1 + `scale` at timestep 0.

    Scales of 1 and below come back unchanged.
    """
    if scale <= 1:
        return scale
    return 1 + scale * (1 - math.cos(math.pi * ((steps - timestep) / steps) ** 5)) / 2


def _cast(coefficient: Tensor, like: Tensor) -> Tensor:
    """A coefficient `[]` or `[B]` in float64, ready to multiply an image `[B, C, H, W]` like `like`."""
    shape = coefficient.shape + (1,) * (like.ndim - 1) if coefficient.ndim else ()
    return coefficient.reshape(shape).to(device=like.device, dtype=like.dtype)
