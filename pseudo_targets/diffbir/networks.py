"""The networks of DiffBIR as diffusers' and transformers' classes, at the sizes that a published configuration names.

Configurations keep the field names of the published ones, so tiny and full-sized networks are built the same way.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel

from pseudo_targets.downloads import WeightsError
from pseudo_targets.ir_controlnet import build_ir_controlnet

if TYPE_CHECKING:
    from transformers import CLIPTextModel

Settings = Mapping[str, Any]


class SizesError(ValueError):
    """A configuration that these networks cannot be built from."""


@dataclass(frozen=True)
class Sizes:
    """Sizes of the four networks, in the published field names.

    Attributes:
        unet: `model_channels`, `channel_mult`, `num_res_blocks`, `num_head_channels`, `attention_resolutions`,
            `context_dim`, `in_channels`, `out_channels`, `transformer_depth`. IRControlNet shares them.
        vae: `ddconfig` with `ch`, `ch_mult`, `num_res_blocks`, `z_channels`, `in_channels`, `out_ch`.
        clip: `text_cfg` with `width`, `heads`, `layers`, `context_length`, `vocab_size`.
        latent_scale: factor between the autoencoder's latents and those that are denoised.
        resolution: side in pixels that the prior was trained at.
    """

    unet: Settings
    vae: Settings
    clip: Settings
    latent_scale: float
    resolution: int

    @classmethod
    def from_config(cls, config: Settings, resolution: int) -> Sizes:
        """Reads `unet_cfg`, `controlnet_cfg`, `vae_cfg`, `clip_cfg` and `latent_scale_factor`.

        Raises:
            SizesError: a section is missing, or UNet and IRControlNet disagree.
        """
        sections = ("unet_cfg", "controlnet_cfg", "vae_cfg", "clip_cfg", "latent_scale_factor")
        absent = [name for name in sections if name not in config]
        if absent:
            raise SizesError(f"configuration: {', '.join(absent)} missing, expected {', '.join(sections)}")
        unet, control = config["unet_cfg"], config["controlnet_cfg"]
        differing = sorted(name for name in unet.keys() & control.keys() if unet[name] != control[name])
        if differing:
            raise SizesError(f"configuration: controlnet_cfg and unet_cfg differ in {', '.join(differing)}")
        return cls(unet, config["vae_cfg"], config["clip_cfg"], float(config["latent_scale_factor"]), resolution)


_ENCODER: dict[str, Any] = {
    "in_channels": 4,
    "model_channels": 320,
    "channel_mult": (1, 2, 4, 4),
    "num_res_blocks": 2,
    "num_head_channels": 64,
    "attention_resolutions": (4, 2, 1),
    "transformer_depth": 1,
    "context_dim": 1024,
}

PUBLISHED = Sizes(
    unet={**_ENCODER, "out_channels": 4},
    vae={
        "ddconfig": {
            "in_channels": 3,
            "out_ch": 3,
            "ch": 128,
            "ch_mult": (1, 2, 4, 4),
            "num_res_blocks": 2,
            "z_channels": 4,
        }
    },
    clip={"text_cfg": {"width": 1024, "heads": 16, "layers": 24, "context_length": 77, "vocab_size": 49408}},
    latent_scale=0.18215,
    resolution=512,
)
"""Stable Diffusion 2.1 with OpenCLIP's ViT-H/14 text tower, as in every version of DiffBIR."""


def build_unet(sizes: Sizes) -> UNet2DConditionModel:
    """The denoiser of noisy latents `[B, in_channels, h, w]`; `h` and `w` are multiples of `latent_multiple`.

    Raises:
        SizesError: more than one transformer block at a level, which IRControlNet's copy does not hold.
    """
    shape = sizes.unet
    if shape["transformer_depth"] != 1:
        raise SizesError(f"transformer_depth: got {shape['transformer_depth']}, expected 1")
    widths = tuple(shape["model_channels"] * factor for factor in shape["channel_mult"])
    attends = [2**level in shape["attention_resolutions"] for level in range(len(widths))]
    return UNet2DConditionModel(
        sample_size=sizes.resolution // image_patch(sizes),
        in_channels=shape["in_channels"],
        out_channels=shape["out_channels"],
        down_block_types=tuple("CrossAttnDownBlock2D" if yes else "DownBlock2D" for yes in attends),
        up_block_types=tuple("CrossAttnUpBlock2D" if yes else "UpBlock2D" for yes in reversed(attends)),
        block_out_channels=widths,
        layers_per_block=shape["num_res_blocks"],
        cross_attention_dim=shape["context_dim"],
        # diffusers' name is historical: it is the number of heads.
        attention_head_dim=tuple(width // shape["num_head_channels"] for width in widths),
        use_linear_projection=True,
    )


def build_control(unet: UNet2DConditionModel) -> ControlNetModel:
    """IRControlNet beside `unet`; its condition is a latent of the same channels."""
    return build_ir_controlnet(unet)


def build_autoencoder(sizes: Sizes) -> AutoencoderKL:
    """Stable Diffusion's autoencoder: images `[B, 3, H, W]` in `[-1, 1]` to latents `[B, 4, H/8, W/8]` and back."""
    shape = sizes.vae["ddconfig"]
    widths = tuple(shape["ch"] * factor for factor in shape["ch_mult"])
    return AutoencoderKL(
        in_channels=shape["in_channels"],
        out_channels=shape["out_ch"],
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=widths,
        layers_per_block=shape["num_res_blocks"],
        latent_channels=shape["z_channels"],
        sample_size=sizes.resolution,
        scaling_factor=sizes.latent_scale,
    )


def build_text_tower(sizes: Sizes) -> CLIPTextModel:
    """Token ids `[B, 77]` -> `last_hidden_state` `[B, 77, width]`: all blocks but the last, then the final norm.

    Raises:
        WeightsError: transformers is not installed.
    """
    try:
        from transformers import CLIPTextConfig, CLIPTextModel
    except ImportError as error:
        raise WeightsError(
            "DiffBIR's text tower needs transformers: pip install 'adapt-restorer[diffbir]' (once, for the conversion)"
        ) from error
    shape = sizes.clip["text_cfg"]
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=shape["vocab_size"],
            hidden_size=shape["width"],
            intermediate_size=4 * shape["width"],
            num_hidden_layers=shape["layers"] - 1,
            num_attention_heads=shape["heads"],
            max_position_embeddings=shape["context_length"],
            hidden_act="gelu",
            bos_token_id=shape["vocab_size"] - 2,
            eos_token_id=shape["vocab_size"] - 1,
            pad_token_id=0,
        )
    )


def image_patch(sizes: Sizes) -> int:
    """Pixels along the side of one latent."""
    return 2 ** (len(sizes.vae["ddconfig"]["ch_mult"]) - 1)


def latent_multiple(sizes: Sizes) -> int:
    """What the sides of a latent must be multiples of."""
    return 2 ** (len(sizes.unet["channel_mult"]) - 1)


def image_multiple(sizes: Sizes) -> int:
    """What the sides of an image must be multiples of; 64 for the published networks."""
    return image_patch(sizes) * latent_multiple(sizes)
