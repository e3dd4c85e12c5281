"""Which tensor of a published file each tensor of our networks comes from.

The published files name their tensors as latent diffusion and OpenCLIP do. Every function here goes from the names of a
network of ours to published names, so that what is missing and what is left over are both known.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from torch import Tensor

from pseudo_targets.diffbir.networks import Sizes


@dataclass(frozen=True)
class Source:
    """A tensor of a published file, and what is taken of it."""

    name: str
    take: Callable[[Tensor], Tensor] | None = None


_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_MIDDLE = {"resnets.0": "0", "attentions.0": "1", "resnets.1": "2"}
_TEXT = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
_TEXT_BLOCK = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_TEXT_BLOCK_TENSORS = (
    *(f"attn.{part}" for part in ("in_proj_weight", "in_proj_bias", "out_proj.weight", "out_proj.bias")),
    *(f"{layer}.{kind}" for layer in ("ln_1", "ln_2", "mlp.c_fc", "mlp.c_proj") for kind in ("weight", "bias")),
)


def unet_sources(names: Iterable[str], sizes: Sizes) -> dict[str, Source]:
    """Sources of a `UNet2DConditionModel`'s tensors, without the prefix `model.diffusion_model.`."""
    return {name: Source(_unet_name(name, sizes)) for name in names}


def control_sources(names: Iterable[str], sizes: Sizes) -> dict[str, Source]:
    """Sources of an IRControlNet's tensors.

    The published first convolution sees the noisy latent and then the condition; convolution is linear, so its halves
    are the two convolutions of `build_ir_controlnet`.
    """
    channels = sizes.unet["in_channels"]
    first = "input_blocks.0.0.weight"
    special = {
        "conv_in.weight": Source(first, lambda weight: weight[:, :channels]),
        "controlnet_cond_embedding.weight": Source(first, lambda weight: weight[:, channels:]),
        "controlnet_mid_block.weight": Source("middle_block_out.0.weight"),
        "controlnet_mid_block.bias": Source("middle_block_out.0.bias"),
    }
    return {name: special.get(name) or Source(_control_name(name, sizes)) for name in names}


def autoencoder_sources(names: Iterable[str], sizes: Sizes) -> dict[str, Source]:
    """Sources of an `AutoencoderKL`'s tensors, without the prefix `first_stage_model.`."""
    levels = len(sizes.vae["ddconfig"]["ch_mult"])
    found = {}
    for name in names:
        # Attention is published as convolutions over single pixels.
        is_projection = re.search(r"attentions\.0\.to_\w+(\.0)?\.weight$", name) is not None
        found[name] = Source(_autoencoder_name(name, levels), _squeezed if is_projection else None)
    return found


def text_sources(names: Iterable[str]) -> dict[str, Source]:
    """Sources of a `CLIPTextModel`'s tensors, without the prefix `cond_stage_model.model.`."""
    found = {}
    for name in names:
        # transformers before version 5 has one more level of names.
        found[name] = _text_source(name.removeprefix("text_model."))
    return found


def unused_text_tensors(sizes: Sizes) -> tuple[str, ...]:
    """Published tensors of the text tower that the penultimate layer's output does not depend on."""
    last = sizes.clip["text_cfg"]["layers"] - 1
    block = (f"transformer.resblocks.{last}.{tensor}" for tensor in _TEXT_BLOCK_TENSORS)
    return (*block, "text_projection", "logit_scale")


def _squeezed(weight: Tensor) -> Tensor:
    return weight.flatten(1)  # [C, C, 1, 1] -> [C, C]


def _third(part: int) -> Callable[[Tensor], Tensor]:
    """Query, key or value of a joint projection `[3 * width, ...]`."""
    return lambda joint: joint.chunk(3)[part]


def _control_name(name: str, sizes: Sizes) -> str:
    zero = re.fullmatch(r"controlnet_down_blocks\.(\d+)\.(.+)", name)
    return f"zero_convs.{zero[1]}.0.{zero[2]}" if zero else _unet_name(name, sizes)


def _unet_name(name: str, sizes: Sizes) -> str:
    ends = {
        "conv_in.": "input_blocks.0.0.",
        "time_embedding.linear_1.": "time_embed.0.",
        "time_embedding.linear_2.": "time_embed.2.",
        "conv_norm_out.": "out.0.",
        "conv_out.": "out.2.",
    }
    for ours, theirs in ends.items():
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    middle = re.fullmatch(r"mid_block\.(\w+\.\d)\.(.+)", name)
    if middle:
        return f"middle_block.{_MIDDLE[middle[1]]}.{_resnet_name(middle[2])}"
    block = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", name)
    if block is None:
        return name  # no published name: it will be reported as missing
    return _block_name(block[1], int(block[2]), block[3], int(block[4]), block[5], sizes)


def _block_name(side: str, level: int, kind: str, position: int, rest: str, sizes: Sizes) -> str:
    """Published name inside the numbered lists `input_blocks` (after the first convolution) and `output_blocks`."""
    layers = sizes.unet["num_res_blocks"]
    if kind == "downsamplers":
        return f"input_blocks.{(level + 1) * (layers + 1)}.0.op.{rest.removeprefix('conv.')}"
    if kind == "upsamplers":
        scale = 2 ** (len(sizes.unet["channel_mult"]) - 1 - level)
        after = 2 if scale in sizes.unet["attention_resolutions"] else 1
        return f"output_blocks.{level * (layers + 1) + layers}.{after}.{rest}"
    number = level * (layers + 1) + position
    blocks = f"input_blocks.{number + 1}" if side == "down" else f"output_blocks.{number}"
    return f"{blocks}.0.{_resnet_name(rest)}" if kind == "resnets" else f"{blocks}.1.{rest}"


def _resnet_name(rest: str) -> str:
    layer, _, tensor = rest.partition(".")
    return f"{_RESNET[layer]}.{tensor}" if layer in _RESNET else rest


def _autoencoder_name(name: str, levels: int) -> str:
    def level(match: re.Match[str]) -> str:
        up = match[1] == "up"
        return f"{match[1]}.{levels - 1 - int(match[2]) if up else match[2]}."

    name = re.sub(r"(down|up)_blocks\.(\d+)\.", level, name)
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda match: f"mid.block_{int(match[1]) + 1}", name)
    name = re.sub(r"resnets\.(\d+)", r"block.\1", name)
    name = re.sub(r"(down|up)samplers\.0", r"\1sample", name)
    name = name.replace("conv_shortcut", "nin_shortcut").replace("conv_norm_out", "norm_out")
    for ours, theirs in (("group_norm", "norm"), ("to_out.0", "proj_out"), ("to_", "")):
        name = re.sub(rf"mid_block\.attentions\.0\.{re.escape(ours)}", f"mid_block.attentions.0.{theirs}", name)
    return name.replace("mid_block.attentions.0", "mid.attn_1")


def _text_source(name: str) -> Source:
    block = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
    if block is None:
        return Source(_TEXT.get(name, name))
    place = f"transformer.resblocks.{block[1]}"
    projection = re.fullmatch(r"self_attn\.([qkv])_proj", block[2])
    if projection:
        return Source(f"{place}.attn.in_proj_{block[3]}", _third("qkv".index(projection[1])))
    return Source(f"{place}.{_TEXT_BLOCK[block[2]]}.{block[3]}")
