"""What sampling must not change: corrections of a predicted clean image (or of a noisy one) towards a reference.

Each is a frozen callable `(x0, reference, timestep) -> corrected` without state or randomness, and says with
`active(timestep)` whether it acts there; the sampler asks, the correction itself does not. Timesteps count noise on
the scale of the prior's full schedule, so "from `start` down to `end`" reads in sampling order.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from pseudo_targets.filters import BlockMean, LowPass
from pseudo_targets.schedule import Chain, NoiseSchedule

Space = Literal["rgb", "latent"]
Loss = Literal["mse", "wmse"]


class ConsistencyError(ValueError):
    """A consistency's settings or inputs do not fit; the message says what was got and what is expected."""


@dataclass(frozen=True, eq=False)
class Reference:
    """What a sample is held to.

    Attributes:
        latent: the reference in the space that is sampled, `[B, C, h, w]`; for a pixel prior its own image range.
        image: the same picture as an image, `[B, 3, H, W]`, RGB, `[0, 1]`.
    """

    latent: Tensor
    image: Tensor


class Consistency(Protocol):
    """The contract of every correction of x0."""

    def active(self, timestep: int) -> bool:
        """Whether the correction acts at this timestep."""

    def __call__(self, x0: Tensor, reference: Reference, timestep: int) -> Tensor:
        """`x0` `[B, C, h, w]`, a predicted clean sample at `timestep`, corrected; same shape."""


@dataclass(frozen=True, eq=False)
class LowPassReplacement:
    """Gives x0 the low band of the reference: x0 - P(x0) + P(reference), for `end` <= timestep <= `start`.

    With an idempotent filter (`BlockMean`) the low band of the result is exactly the reference's and the detail is
    untouched: the null-space correction of DDNM (Wang et al. 2023, eq. 13) for a block-averaging degradation.
    """

    filter: LowPass
    start: int
    end: int

    def __post_init__(self) -> None:
        _check_window(self.start, self.end)

    def active(self, timestep: int) -> bool:
        """Whether `end` <= timestep <= `start`."""
        return self.end <= timestep <= self.start

    def __call__(self, x0: Tensor, reference: Reference, timestep: int) -> Tensor:
        return x0 + self.filter(reference.latent - x0)


@dataclass(frozen=True, eq=False)
class NoisyLowPassReplacement:
    """DT-BFR's form of the replacement, on the noisy sample: x - P(x) + P(q_sample(reference, timestep, noise)).

    It runs after the step from `timestep` to `next_timestep` and takes a reference noised afresh to the level of
    `next_timestep`, the level of the sample it corrects. The noise is an argument, drawn anew for every step.
    """

    filter: LowPass
    schedule: NoiseSchedule
    start: int
    end: int

    def __post_init__(self) -> None:
        _check_window(self.start, self.end)

    def active(self, timestep: int) -> bool:
        """Whether to correct after the step that began at `timestep`."""
        return self.end <= timestep <= self.start

    def __call__(self, x: Tensor, reference: Reference, next_timestep: int, noise: Tensor) -> Tensor:
        return x + self.filter(self.schedule.q_sample(reference.latent, next_timestep, noise) - x)


def detail_weight(image: Tensor) -> Tensor:
    """DiffBIR's region weight `[B, 1, H, W]` of an image `[B, 3, H, W]` in `[0, 1]`: 1 where flat, 0 at strong detail.

    1 - tanh of the Sobel gradient magnitude of the gray image, summed over blocks of 2 x 2 pixels (Lin et al. 2024,
    section 3.4, as released).
    """
    gray = (image * image.new_tensor((0.2989, 0.5870, 0.1140)).view(1, 3, 1, 1)).sum(dim=1, keepdim=True)
    padded = F.pad(gray, (1, 1, 1, 1), mode="replicate")
    smooth_rows = padded[..., :-2, :] + 2 * padded[..., 1:-1, :] + padded[..., 2:, :]
    smooth_columns = padded[..., :-2] + 2 * padded[..., 1:-1] + padded[..., 2:]
    across = smooth_rows[..., :-2] - smooth_rows[..., 2:]
    down = smooth_columns[..., :-2, :] - smooth_columns[..., 2:, :]
    magnitude = (across**2 + down**2).sqrt()
    return 1 - torch.tanh(4 * BlockMean(2)(magnitude))


def guidance_loss(prediction: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    """(Weighted) squared error, averaged over each sample's `[C, H, W]` and summed over the batch; scalar."""
    error = (prediction - target) ** 2
    return (error if weight is None else weight * error).mean(dim=(1, 2, 3)).sum()


@dataclass(frozen=True, eq=False)
class RestorationGuidance:
    """DiffBIR's restoration guidance: x0 descends a distance to the reference, less so where there is detail.

    x0 moves by d = -3000 `scale` times the gradient of the loss with respect to x0, `repeat` times, divided by the
    posterior's weight of x0 when `chain` is given (then an ancestral step's mean moves by exactly d, as published).
    The gradient passes through `decode` alone, never through the denoising network; call it under `no_grad` or with
    gradients on, not under `inference_mode`. As the loss is a mean over a
    sample, the same `scale` pulls each pixel less in a larger image.

    Attributes:
        decode: sample `[B, C, h, w]` -> image `[B, 3, H, W]` in `[0, 1]`, differentiable, not clamped. Its
            parameters need no gradient.
        scale: strength, 0 and up; the paper's values lie around 0.5.
        space: compare decoded images (in `[-1, 1]`), or samples, which needs no decoding.
        loss: "wmse" weighs by `detail_weight` of the reference image, brought to the sample's grid by area averaging.
        start: acts where timestep + 1 < `start`.
        stop: acts where timestep + 1 > `stop`.
        repeat: gradient steps at each timestep.
        chain: the respaced chain being sampled, or None to move x0 by d itself.
        at_once: images decoded together; bounds the memory that the decoder's activations take.
    """

    decode: Callable[[Tensor], Tensor]
    scale: float
    space: Space = "rgb"
    loss: Loss = "wmse"
    start: int = 1001
    stop: int = -1
    repeat: int = 1
    chain: Chain | None = None
    at_once: int = 1

    def __post_init__(self) -> None:
        if self.space not in get_args(Space) or self.loss not in get_args(Loss):
            raise ConsistencyError(f"got space {self.space!r}, loss {self.loss!r}, expected rgb or latent, mse or wmse")
        if self.scale < 0 or self.repeat < 1 or self.at_once < 1:
            raise ConsistencyError(
                f"got scale {self.scale}, repeat {self.repeat}, at_once {self.at_once}, expected 0, 1 and 1 or more"
            )

    def active(self, timestep: int) -> bool:
        """Whether `stop` < timestep + 1 < `start` and there is any strength."""
        return self.scale > 0 and self.stop < timestep + 1 < self.start

    def __call__(self, x0: Tensor, reference: Reference, timestep: int) -> Tensor:
        if torch.is_inference_mode_enabled():
            raise ConsistencyError("guidance needs gradients of the decoder: sample under no_grad, not inference_mode")
        gain = 1.0
        if self.chain is not None:
            gain = 1 / float(self.chain.posterior_mean_coef1[self.chain.index(timestep)])
        for _ in range(self.repeat):
            x0 = x0 + gain * self.shift(x0, reference)
        return x0

    def shift(self, x0: Tensor, reference: Reference) -> Tensor:
        """d = -3000 `scale` dL/dx0, same shape as `x0` and without history."""
        parts = zip(*(t.split(self.at_once) for t in (x0, reference.latent, reference.image)), strict=True)
        return -3000 * self.scale * torch.cat([self._gradient(z, latent, image) for z, latent, image in parts])

    def _gradient(self, x0: Tensor, latent: Tensor, image: Tensor) -> Tensor:
        weight = detail_weight(image) if self.loss == "wmse" else None
        if weight is not None and self.space == "latent":
            weight = F.interpolate(weight, x0.shape[-2:], mode="area")
        with torch.enable_grad():
            z = x0.detach().requires_grad_()
            if self.space == "rgb":
                loss = guidance_loss(2 * self.decode(z) - 1, 2 * image - 1, weight)
            else:
                loss = guidance_loss(z, latent, weight)
            return torch.autograd.grad(loss, z)[0]


def _check_window(start: int, end: int) -> None:
    if end > start:
        raise ConsistencyError(f"got start {start} and end {end}, expected end <= start: sampling counts down")
