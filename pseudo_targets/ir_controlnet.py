"""IRControlNet (Lin et al. 2023, DiffBIR, section 3.3) on diffusers' `ControlNetModel`.

The condition is the latent of the cleaned image. DiffBIR concatenates it with the noisy latent before the first
convolution; a convolution is linear, so that equals diffusers' `conv_in(x_t) + condition_embedding(condition)` with the
first convolution split in two. Only the hint encoder of the stock class is replaced.
"""

from __future__ import annotations

import copy

from diffusers import ControlNetModel, UNet2DConditionModel
from torch import nn

ENCODER = ("conv_in", "time_embedding", "down_blocks", "mid_block")
"""What the denoiser that is steered shares with the one that draws."""


class Steered(nn.Module):
    """An IRControlNet and the denoiser it steers, a copy of `unet` whose decoder learns with it.

    DiffBIR leaves the decoder alone, which at its size costs nothing. A decoder of the mini's size has no room for
    both drawing and refining, so it is unlocked here, as ControlNet offers for small models (Zhang et al. 2023).
    """

    def __init__(self, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.control = build_ir_controlnet(unet)
        self.unet = copy.deepcopy(unet).requires_grad_(True)
        for name in ENCODER:
            getattr(self.unet, name).requires_grad_(False)


def build_ir_controlnet(unet: UNet2DConditionModel) -> ControlNetModel:
    """An IRControlNet that starts as a copy of the encoder of `unet`; its outputs start at zero."""
    config = unet.config
    control = ControlNetModel(
        in_channels=config.in_channels,
        down_block_types=config.down_block_types,
        mid_block_type=config.mid_block_type,
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        norm_num_groups=config.norm_num_groups,
        cross_attention_dim=config.cross_attention_dim,
        attention_head_dim=config.attention_head_dim,
        use_linear_projection=config.use_linear_projection,
        flip_sin_to_cos=config.flip_sin_to_cos,
        freq_shift=config.freq_shift,
    )
    control.conv_in.load_state_dict(unet.conv_in.state_dict())
    control.time_embedding.load_state_dict(unet.time_embedding.state_dict())
    control.down_blocks.load_state_dict(unet.down_blocks.state_dict())
    control.mid_block.load_state_dict(unet.mid_block.state_dict())
    control.controlnet_cond_embedding = nn.Conv2d(
        config.in_channels, config.block_out_channels[0], 3, padding=1, bias=False
    )
    return control
