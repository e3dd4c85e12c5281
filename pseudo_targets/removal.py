"""Degradation removal: the regression stage of DiffBIR (section 3.2) in the latent space of the mini family."""

from __future__ import annotations

from contextlib import nullcontext

from diffusers import UNet2DModel
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from pseudo_targets.latents import PatchLatents


class DegradationRemoval(nn.Module):
    """Degraded image -> conditional mean of the clean one; its encoder also gives features for perceptual distances."""

    def __init__(self, codec: PatchLatents, size: int, widths: tuple[int, ...] = (48, 96, 192)) -> None:
        super().__init__()
        self.codec = codec
        self.net = UNet2DModel(
            sample_size=size,
            in_channels=codec.channels,
            out_channels=codec.channels,
            down_block_types=("DownBlock2D",) * (len(widths) - 1) + ("AttnDownBlock2D",),
            up_block_types=("AttnUpBlock2D",) + ("UpBlock2D",) * (len(widths) - 1),
            block_out_channels=widths,
            layers_per_block=1,
            norm_num_groups=16,
        )

    def clean_latent(self, latent: Tensor) -> Tensor:
        """Latent of a degraded image -> latent of the cleaned one, `[B, C, h, w]`."""
        return latent + self.net(latent, 0).sample

    def forward(self, image: Tensor) -> Tensor:
        """`[B, 3, H, W]` in `[0, 1]` -> cleaned image of the same shape, about `[0, 1]`."""
        return self.codec.decode(self.clean_latent(self.codec.encode(image)))

    def features(self, image: Tensor) -> list[Tensor]:
        """Encoder activations, fine to coarse, for perceptual distances."""
        return latent_features(self.net, self.codec.encode(image))


def latent_features(net: UNet2DModel, latent: Tensor) -> list[Tensor]:
    """Activations after each level of the encoder of a `UNet2DModel` at timestep 0."""
    embedding = net.time_embedding(net.time_proj(latent.new_zeros(len(latent))).to(latent.dtype))
    hidden = net.conv_in(latent)
    features = [hidden]
    # The fused attention of a CPU is slow backwards: for these small heads, a quarter of the time of all features.
    plain = sdpa_kernel(SDPBackend.MATH) if hidden.device.type == "cpu" else nullcontext()
    with plain:
        for block in net.down_blocks:
            hidden, _ = block(hidden, embedding)
            features.append(hidden)
    return features
