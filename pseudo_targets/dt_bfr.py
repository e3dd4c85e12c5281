"""The sampler of DT-BFR as released (Kuai et al. 2025): a respaced ancestral chain with a low-band swap on the sample.

`pseudo_targets.sampling.refine` is the few-call path of this project; this one takes the steps, the noises and the
order of the published runs, so that their pseudo targets can be made again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Generator, Tensor

from pseudo_targets.consistency import NoisyLowPassReplacement, Reference
from pseudo_targets.filters import LowPass
from pseudo_targets.priors import Condition, Prior
from pseudo_targets.resize import resize_cubic
from pseudo_targets.schedule import Chain, NoiseSchedule, ScheduleError, respace, spaced_timesteps

Noise = Callable[[Tensor], Tensor]
"""`[B, C, h, w]` -> unit noise of that shape, type and device, fresh at each call."""


@runtime_checkable
class LearnedVariance(Protocol):
    """A prior that predicts the variance of its steps beside x0."""

    def denoise_with_variance(
        self, x_t: Tensor, timestep: Tensor, condition: Condition | None
    ) -> tuple[Tensor, Tensor]:
        """x0, and where the log variance lies between its bounds, in `[-1, 1]`; both of the shape of `x_t`."""


@dataclass(frozen=True, eq=False)
class ReleasedPath:
    """The way from the noised reference to the pseudo target; positions count the timesteps of `chain` from 0.

    Attributes:
        chain: respaced chain; the released one has 250 timesteps.
        start: position whose level the reference is noised to; the first call is for `start` - 1, as released.
        swap: low-band swap after each step within its window, or None.
        stop: position of the last call; its predicted clean image is the result.

    Raises:
        ScheduleError: not 0 <= stop < start < len(chain).
    """

    chain: Chain
    start: int
    swap: NoisyLowPassReplacement | None
    stop: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.stop < self.start < len(self.chain):
            raise ScheduleError(
                f"got start {self.start} and stop {self.stop}, expected 0 <= stop < start < {len(self.chain)}"
            )


def released_path(
    schedule: NoiseSchedule, start_timestep: int, calls: int, low_pass: LowPass | None, end_timestep: int
) -> ReleasedPath:
    """The path that needs `calls` network calls from `start_timestep`, on an even chain over the whole schedule.

    150 calls from timestep 602 of 1000 give the released chain of 250 timesteps. The swap acts down to `end_timestep`;
    the release ends it at position 90, which is timestep 361.

    Raises:
        ScheduleError: the chain cannot be made, for example with more calls than timesteps.
    """
    last = len(schedule) - 1
    if not 1 <= calls <= start_timestep <= last:
        raise ScheduleError(f"got {calls} calls from timestep {start_timestep}, expected 1 <= calls <= start <= {last}")
    length = max(round(calls * last / start_timestep), calls) + 1
    chain = respace(schedule, spaced_timesteps(len(schedule), (length,)))
    start = chain.timesteps[calls]
    swap = None
    if low_pass is not None:
        swap = NoisyLowPassReplacement(low_pass, schedule, start, min(end_timestep, start))
    return ReleasedPath(chain, calls, swap)


@torch.no_grad()
def released_pseudo_target(
    prior: Prior, reference: Tensor, path: ReleasedPath, noise: Noise, strength: float = 0.0
) -> Tensor:
    """DT-BFR's pseudo target: the reference noised to `path.start`, sampled down, its low band handed over on the way.

    Each step draws x from the posterior with the prior's learned variance (the posterior's own where it has none), then
    x <- x - P(x) + P(q_sample(reference)) with fresh noise at the level just reached, while the swap is active.

    Args:
        prior: a pixel prior, or any other.
        reference: `[B, 3, H, W]` in `[0, 1]`, stage 1's output; other sides than the prior's are
            resampled, as released.
        noise: draws in this order: the start; then for each step the ancestral noise and, within the swap's window,
            the noise of the reference. After the last call nothing is drawn.
        strength: of the IRControlNet, for priors that have one; 0 is the released, unconditional sampler.

    Returns:
        `[B, 3, H, W]` in `[0, 1]`.
    """
    side = (prior.resolution, prior.resolution)
    resized = reference.shape[-2:] != side
    image = resize_cubic(reference, *side, border="fold") if resized else reference
    latent = prior.encode(image)
    target = Reference(latent, image)
    condition = Condition(latent, strength) if strength > 0 else None
    chain = path.chain
    x = x0 = chain.schedule.q_sample(latent, chain.timesteps[path.start], noise(latent))
    for i in range(path.start - 1, path.stop - 1, -1):
        x0, log_variance = _predict(prior, chain, x, i, condition)
        if i > path.stop:
            x = chain.posterior_step(x0, x, i, noise(x), log_variance)
            if path.swap is not None and path.swap.active(chain.timesteps[i]):
                x = path.swap(x, target, chain.previous(i), noise(x))
    result = prior.decode(x0).clamp(0, 1)
    if resized:
        height, width = reference.shape[-2:]
        result = resize_cubic(result, height, width, border="fold").clamp(0, 1)
    return result


def noise_from(generators: Sequence[Generator]) -> Noise:
    """Noise of one CPU generator an image, so that the batch an image is in does not change its draw."""
    return lambda like: torch.stack([torch.randn(like.shape[1:], generator=g) for g in generators]).to(like)


def _predict(
    prior: Prior, chain: Chain, x: Tensor, i: int, condition: Condition | None
) -> tuple[Tensor, Tensor | None]:
    timestep = torch.full((len(x),), chain.timesteps[i])
    if isinstance(prior, LearnedVariance):
        x0, place = prior.denoise_with_variance(x, timestep, condition)
        return x0, chain.learned_log_variance(place, i)
    return prior.denoise(x, timestep, condition), None
