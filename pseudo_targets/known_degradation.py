"""Consistency with a photo whose degradation is known (DDNM) or estimated on the way (GDP).

The corrections have the contract of `pseudo_targets.consistency.Consistency` and can be mixed with the others; what
they hold on to is the measured photo itself, not the reference of stage 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from pseudo_targets.consistency import ConsistencyError, Reference

LUMA = (0.299, 0.587, 0.114)
Degrade = Callable[[Tensor], Tensor]
"""Image `[B, 3, H, W]` in `[0, 1]` -> what would be measured, differentiable."""
Estimate = Callable[[Tensor, Tensor], Degrade]
"""(clean estimate, measured photo), both `[B, 3, H, W]` in `[0, 1]` -> the degradation between the two."""


class LinearDegradation(Protocol):
    """A known linear degradation A, with a pseudo-inverse: A(A+(A(x))) = A(x)."""

    def apply(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> measurement A x."""

    def invert(self, y: Tensor) -> Tensor:
        """Measurement -> A+ y, `[B, C, H, W]`."""


@dataclass(frozen=True)
class BlockAverage:
    """Super-resolution: each `factor` x `factor` block is measured as its mean. Sides are multiples of `factor`."""

    factor: int

    def apply(self, x: Tensor) -> Tensor:
        """`[B, C, H, W]` -> `[B, C, H / factor, W / factor]`."""
        return F.avg_pool2d(x, self.factor)

    def invert(self, y: Tensor) -> Tensor:
        """Repeats each value over its block."""
        return y.repeat_interleave(self.factor, dim=-2).repeat_interleave(self.factor, dim=-1)


@dataclass(frozen=True)
class Gray:
    """Colourisation: only the weighted sum of the three channels is measured."""

    weights: tuple[float, float, float] = LUMA

    def apply(self, x: Tensor) -> Tensor:
        """`[B, 3, H, W]` -> `[B, 1, H, W]`."""
        return (self._row(x) * x).sum(dim=1, keepdim=True)

    def invert(self, y: Tensor) -> Tensor:
        """w y / |w|^2, `[B, 3, H, W]`."""
        row = self._row(y)
        return row * y / row.square().sum()

    def _row(self, like: Tensor) -> Tensor:
        return like.new_tensor(self.weights).view(1, 3, 1, 1)


@dataclass(frozen=True, eq=False)
class Mask:
    """Inpainting: only pixels where `kept` `[B or 1, 1, H, W]` is 1 are measured; it holds 0 and 1 only."""

    kept: Tensor

    def apply(self, x: Tensor) -> Tensor:
        """Unmeasured pixels become 0."""
        return self.kept.to(x) * x

    def invert(self, y: Tensor) -> Tensor:
        """The mask is its own pseudo-inverse."""
        return self.apply(y)


@dataclass(frozen=True)
class InTurn:
    """`first`, then `second`. The inverses in reverse order are a pseudo-inverse where the two act on different axes.

    Channels and blocks are such a pair: `InTurn(Gray(), BlockAverage(4))`. A mask followed by another degradation is
    not.
    """

    first: LinearDegradation
    second: LinearDegradation

    def apply(self, x: Tensor) -> Tensor:
        """A2 A1 x."""
        return self.second.apply(self.first.apply(x))

    def invert(self, y: Tensor) -> Tensor:
        """A1+ A2+ y."""
        return self.first.invert(self.second.invert(y))


@dataclass(frozen=True, eq=False)
class NullSpaceProjection:
    """x0 <- A+ y + (I - A+ A) x0: afterwards A x0 = y exactly, and what A cannot see is untouched (DDNM, eq. 13).

    Wang, Yu and Zhang 2023. For measurements without noise: noise in y would go into the image as it is.

    Attributes:
        degradation: A and A+.
        measured: y, in the range of the sample: `[-1, 1]` for a pixel prior, whose 0 and 1 a mask must keep apart.
        start, end: acts for `end` <= timestep <= `start`.

    Raises:
        ConsistencyError: `end` lies above `start`.
    """

    degradation: LinearDegradation
    measured: Tensor
    start: int = 999
    end: int = 0

    def __post_init__(self) -> None:
        if self.end > self.start:
            raise ConsistencyError(f"got start {self.start}, end {self.end}, expected end <= start")

    def active(self, timestep: int) -> bool:
        """Whether `end` <= timestep <= `start`."""
        return self.end <= timestep <= self.start

    def __call__(self, x0: Tensor, reference: Reference, timestep: int) -> Tensor:
        return x0 + self.degradation.invert(self.measured - self.degradation.apply(x0))


@dataclass(frozen=True, eq=False)
class EstimatedDegradationGuidance:
    """x0 descends the distance between the measured photo and what a degradation fitted to x0 makes of it (GDP).

    Fei et al. 2023 take gradient steps in the parameters of the degradation and in x0 by turns. Here the parameters are
    fitted in closed form at each call, the end that such steps approach, so the correction keeps no state. The loss is
    the squared error, averaged over a sample and summed over the batch.

    Attributes:
        estimate: fits the degradation, for example `estimate_gain`.
        measured: the photo, `[B, 3, H, W]` in `[0, 1]`.
        decode: sample -> image in `[0, 1]`, differentiable; its parameters need no gradient.
        scale: step along the gradient, per pixel: 1 undoes half of the difference where the degradation is 1 and
            `decode` is the identity.
        start, end: acts for `end` <= timestep <= `start`.

    Raises:
        ConsistencyError: a negative scale, or `end` above `start`; at the call, inference mode.
    """

    estimate: Estimate
    measured: Tensor
    decode: Callable[[Tensor], Tensor]
    scale: float
    start: int = 999
    end: int = 0

    def __post_init__(self) -> None:
        if self.scale < 0 or self.end > self.start:
            raise ConsistencyError(
                f"got scale {self.scale}, start {self.start}, end {self.end}, expected scale >= 0 and end <= start"
            )

    def active(self, timestep: int) -> bool:
        """Whether `end` <= timestep <= `start` and there is any strength."""
        return self.scale > 0 and self.end <= timestep <= self.start

    def __call__(self, x0: Tensor, reference: Reference, timestep: int) -> Tensor:
        if torch.is_inference_mode_enabled():
            raise ConsistencyError("guidance needs gradients of the decoder: sample under no_grad, not inference_mode")
        with torch.no_grad():
            degrade = self.estimate(self.decode(x0), self.measured)
        with torch.enable_grad():
            z = x0.detach().requires_grad_()
            loss = (degrade(self.decode(z)) - self.measured).square().mean(dim=(1, 2, 3)).sum()
            gradient = torch.autograd.grad(loss, z)[0]
        return x0 - self.scale * self.measured[0].numel() / 4 * gradient


def estimate_gain(image: Tensor, measured: Tensor) -> Degrade:
    """Brightness: measured = gain * image + offset, by least squares for each sample and channel (GDP's light factor).

    A channel without variance has gain 0 and the measured mean as its offset.
    """
    mean, measured_mean = image.mean((2, 3), keepdim=True), measured.mean((2, 3), keepdim=True)
    centred = image - mean
    variance = centred.square().mean((2, 3), keepdim=True)
    covariance = (centred * (measured - measured_mean)).mean((2, 3), keepdim=True)
    rounding = torch.finfo(image.dtype).eps * image.square().mean((2, 3), keepdim=True)
    gain = torch.where(variance > rounding, covariance / variance.clamp(min=torch.finfo(image.dtype).tiny), 0)
    return lambda x: gain * x + (measured_mean - gain * mean)


@dataclass(frozen=True)
class BlurEstimate:
    """Blur: one kernel of `side` x `side` taps for each sample, by ridge-regularised least squares; mirrored borders.

    Attributes:
        side: odd.
        ridge: pulls the kernel towards 0 where the image cannot tell, as a share of the image's mean power.

    Raises:
        ConsistencyError: `side` is even.
    """

    side: int = 7
    ridge: float = 1e-6

    def __post_init__(self) -> None:
        if self.side < 1 or self.side % 2 == 0:
            raise ConsistencyError(f"side: got {self.side}, expected an odd number of taps")

    def kernel(self, image: Tensor, measured: Tensor) -> Tensor:
        """The kernels `[B, side, side]` that turn `image` into `measured`, both `[B, C, H, W]`."""
        windows = F.unfold(self._padded(image), self.side)  # [B, C side^2, HW]
        taps = windows.unflatten(1, (image.shape[1], -1)).transpose(1, 2).flatten(2)  # [B, side^2, C HW]
        power = taps @ taps.transpose(1, 2)  # [B, side^2, side^2]
        level = self.ridge * power.diagonal(dim1=1, dim2=2).mean(dim=1)
        power = power + level[:, None, None] * torch.eye(self.side**2).to(power)
        towards = taps @ measured.flatten(1)[:, :, None]  # [B, side^2, 1]
        return torch.linalg.solve(power, towards).view(-1, self.side, self.side)

    def __call__(self, image: Tensor, measured: Tensor) -> Degrade:
        kernels = self.kernel(image, measured)
        return lambda x: self._blurred(x, kernels)

    def _blurred(self, image: Tensor, kernels: Tensor) -> Tensor:
        batch, channels = image.shape[:2]
        weight = kernels.repeat_interleave(channels, dim=0)[:, None]  # [B C, 1, side, side]
        flat = self._padded(image).flatten(0, 1)[None]  # [1, B C, H + side - 1, W + side - 1]
        return F.conv2d(flat, weight, groups=batch * channels).view_as(image)

    def _padded(self, image: Tensor) -> Tensor:
        return F.pad(image, (self.side // 2,) * 4, mode="reflect")
