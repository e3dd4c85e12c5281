"""What a diffusion prior is, and the latent prior with its IRControlNet at any size."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from torch import Tensor, nn

from pseudo_targets.schedule import NoiseSchedule


@dataclass(frozen=True)
class Condition:
    """What steers the prior.

    Attributes:
        latent: of the cleaned image, `[B, C, h, w]`; None where a context alone steers.
        strength: factor on the control's residuals.
        context: embeddings of texts or places `[B, tokens, width]`; None is the prior's own, of the empty prompt.
    """

    latent: Tensor | None
    strength: float = 1.0
    context: Tensor | None = None


class Fusion(nn.Module):
    """Takes the reference for what it is: one more noisy look at the clean latent.

    x_t / sqrt(abar_t) differs from the clean latent by white noise, the reference by an error of known variance. The
    best linear combination of both differs by less than either, and the denoiser is called on it, at the timestep that
    has that much noise. So at high noise the denoiser starts from the reference in place of having to copy it, and
    its output need only be the reference's error: the preconditioning of Karras et al. (2022, section 5) around the
    reference.

    Args:
        variance: `[C]`, mean squared error of references by latent channel.
    """

    variance: Tensor

    def __init__(self, variance: Tensor) -> None:
        super().__init__()
        self.register_buffer("variance", variance.float())

    def forward(
        self, x_t: Tensor, timestep: Tensor, reference: Tensor, schedule: NoiseSchedule
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The fused sample `[B, C, h, w]`, its timestep `[B]`, and the variance `[B, C, 1, 1]` of its error.

        Args:
            x_t: noisy latent `[B, C, h, w]` at `timestep` `[B]`.
            reference: latent of the cleaned image, `[B, C, h, w]`.
        """
        abar = schedule.level(timestep).view(-1, 1, 1, 1).to(x_t)
        error = self.variance.view(1, -1, 1, 1)
        certainty = abar * error + (1 - abar)
        clean = reference + abar.sqrt() * error / certainty * (x_t - abar.sqrt() * reference)
        left = error * (1 - abar) / certainty
        # Channels differ in what is left; the geometric mean lets the many fine ones speak, not the brightness.
        ratio = left.double().log().mean((1, 2, 3)).exp().cpu()
        ratios = 1 / schedule.alphas_cumprod[:-1].cpu() - 1  # the last one may be infinite
        level = torch.searchsorted(ratios.contiguous(), ratio).clamp(max=len(ratios) - 1).to(timestep)
        return schedule.level(level).sqrt().view(-1, 1, 1, 1).to(x_t) * clean, level, left


class Prior(Protocol):
    """A denoiser of images with a latent space of its own; `encode` and `decode` are the identity for pixel priors.

    Attributes:
        resolution: side in pixels of the images it was trained on.
        aligned_faces: whether it knows nothing but aligned faces.
    """

    name: str
    resolution: int
    aligned_faces: bool
    schedule: NoiseSchedule
    licence: str
    weights_sha256: str

    def encode(self, image: Tensor) -> Tensor:
        """`[B, 3, H, W]` in `[0, 1]` -> latent `[B, C, h, w]`."""

    def decode(self, latent: Tensor) -> Tensor:
        """Latent `[B, C, h, w]` -> `[B, 3, H, W]`, about `[0, 1]`."""

    def denoise(self, x_t: Tensor, timestep: Tensor, condition: Condition | None) -> Tensor:
        """Estimates x0 from `x_t` `[B, C, h, w]` at `timestep` `[B]`; unconditional without a condition."""


class Codec(Protocol):
    """The two calls of a latent space."""

    def encode(self, image: Tensor) -> Tensor:
        """`[B, 3, H, W]` in `[0, 1]` -> latent."""

    def decode(self, latent: Tensor) -> Tensor:
        """Latent -> `[B, 3, H, W]`, about `[0, 1]`."""


class LatentPrior(nn.Module):
    """A latent UNet, optionally steered by an IRControlNet: the mini family and Stable Diffusion based priors alike.

    Args:
        codec: latent space, a module.
        unet: denoiser whose output `schedule.prediction_type` explains.
        control: IRControlNet, or None for a prior that can only draw.
        schedule: noise levels.
        resolution: side in pixels the prior was trained at.
        context: `[1, tokens, width]`, the embedding of the empty prompt.
        fusion: combines sample and reference before the network sees them; the published priors do without.
        steered: the denoiser to call under a condition, where it differs from `unet`.
        knows_places: whether its contexts are places of windows (`pseudo_targets.places`).
    """

    codec: Codec
    context: Tensor
    aligned_faces = False

    def __init__(
        self,
        codec: Codec,
        unet: UNet2DConditionModel,
        control: ControlNetModel | None,
        schedule: NoiseSchedule,
        resolution: int,
        context: Tensor,
        name: str,
        licence: str,
        weights_sha256: str,
        fusion: Fusion | None = None,
        steered: UNet2DConditionModel | None = None,
        knows_places: bool = False,
    ) -> None:
        super().__init__()
        self.codec, self.unet, self.control, self.fusion, self.steered = codec, unet, control, fusion, steered
        self.schedule, self.resolution, self.name = schedule, resolution, name
        self.licence, self.weights_sha256, self.knows_places = licence, weights_sha256, knows_places
        self.register_buffer("context", context)

    def encode(self, image: Tensor) -> Tensor:
        """`[B, 3, H, W]` in `[0, 1]` -> latent `[B, C, h, w]`."""
        return self.codec.encode(image)

    def decode(self, latent: Tensor) -> Tensor:
        """Latent `[B, C, h, w]` -> `[B, 3, H, W]`, about `[0, 1]`."""
        return self.codec.decode(latent)

    def denoise(self, x_t: Tensor, timestep: Tensor, condition: Condition | None) -> Tensor:
        """Estimates x0 from `x_t` `[B, C, h, w]` at `timestep` `[B]`; unconditional without a condition."""
        chosen = self.context if condition is None or condition.context is None else condition.context
        context = chosen.expand(len(x_t), -1, -1)
        reference = None if condition is None else condition.latent
        if reference is not None and self.fusion is not None:
            x_t, timestep, _ = self.fusion(x_t, timestep, reference, self.schedule)
        unet = self.unet if reference is None or self.steered is None else self.steered
        output = denoiser_output(unet, self.control, x_t, timestep, context, condition)
        return self.schedule.to_x0(output.float(), x_t, timestep)


def denoiser_output(
    unet: nn.Module,
    control: nn.Module | None,
    x_t: Tensor,
    timestep: Tensor,
    context: Tensor,
    condition: Condition | None,
) -> Tensor:
    """One call of the UNet with the control's residuals added, in the UNet's own parameterisation and type.

    Raises:
        ValueError: a condition was given to a prior without control.
    """
    timestep = timestep.to(x_t.device)
    dtype = next(unet.parameters(), x_t).dtype
    x_t, context = x_t.to(dtype), context.to(dtype)
    if condition is None or condition.latent is None:
        return unet(x_t, timestep, context).sample
    if control is None:
        raise ValueError(
            "this prior has no IRControlNet: it can draw faces but not restore photos; load one with control"
        )
    down, middle = control(
        x_t, timestep, context, condition.latent.to(dtype), conditioning_scale=condition.strength, return_dict=False
    )
    return unet(
        x_t, timestep, context, down_block_additional_residuals=down, mid_block_additional_residual=middle
    ).sample


def build_mini_unet(channels: int, size: int, widths: tuple[int, ...] = (64, 128, 192)) -> UNet2DConditionModel:
    """The mini denoiser: attention only at the coarsest level, one token of context for later prompts."""
    plain = len(widths) - 1
    return UNet2DConditionModel(
        sample_size=size,
        in_channels=channels,
        out_channels=channels,
        down_block_types=("DownBlock2D",) * plain + ("CrossAttnDownBlock2D",),
        up_block_types=("CrossAttnUpBlock2D",) + ("UpBlock2D",) * plain,
        block_out_channels=widths,
        layers_per_block=1,
        cross_attention_dim=64,
        attention_head_dim=4,
        norm_num_groups=16,
    )


def mini_context() -> Tensor:
    """The empty prompt of the mini family, `[1, 1, 64]`."""
    return torch.zeros(1, 1, 64)
