"""Tiny DiffBIR checkpoints in the full published layouts, with random weights."""

from __future__ import annotations

import json
import tempfile
from collections import defaultdict
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pseudo_targets.diffbir.convert import AUTOENCODER, CONTROL, TEXT, UNET
from pseudo_targets.diffbir.layout import (
    Source,
    autoencoder_sources,
    control_sources,
    text_sources,
    unet_sources,
    unused_text_tensors,
)
from pseudo_targets.diffbir.networks import Sizes, build_autoencoder, build_control, build_text_tower, build_unet
from pseudo_targets.diffbir.published import load_diffbir
from pseudo_targets.priors import LatentPrior

State = dict[str, Tensor]

TINY = Sizes(
    unet={
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": 32,
        "channel_mult": (1, 2),
        "num_res_blocks": 1,
        "num_head_channels": 16,
        "attention_resolutions": (1,),
        "transformer_depth": 1,
        "context_dim": 16,
    },
    vae={
        "ddconfig": {"in_channels": 3, "out_ch": 3, "ch": 32, "ch_mult": (1, 2), "num_res_blocks": 1, "z_channels": 4}
    },
    clip={"text_cfg": {"width": 16, "heads": 2, "layers": 2, "context_length": 77, "vocab_size": 64}},
    latent_scale=0.18215,
    resolution=16,
)


def published(network: nn.Module, sources: Mapping[str, Source]) -> State:
    """The state dict that the published layout would have for a network of ours."""
    parts: dict[str, State] = defaultdict(dict)
    for name, tensor in network.state_dict().items():
        parts[sources[name].name][name] = tensor
    result = {}
    for theirs, ours in parts.items():
        names = sorted(ours)
        if len(names) == 3:  # joint projection: query, key, value
            by_kind = {name.split("self_attn.")[1][0]: name for name in names}
            result[theirs] = torch.cat([ours[by_kind[kind]] for kind in "qkv"])
        elif len(names) == 2:  # first convolution: noisy latent, condition
            result[theirs] = torch.cat([ours["conv_in.weight"], ours["controlnet_cond_embedding.weight"]], dim=1)
        else:
            result[theirs] = ours[names[0]] if sources[names[0]].take is None else ours[names[0]][..., None, None]
    return result


@lru_cache(maxsize=1)
def base_state() -> State:
    """A Stable Diffusion checkpoint's tensors, with two vectors of its schedule."""
    pytest.importorskip("transformers")
    torch.manual_seed(0)
    unet, autoencoder, text = build_unet(TINY), build_autoencoder(TINY), build_text_tower(TINY)
    text_state = published(text, text_sources(text.state_dict()))
    text_state |= {name: torch.zeros(1) for name in unused_text_tensors(TINY)}
    states = {
        UNET: published(unet, unet_sources(unet.state_dict(), TINY)),
        AUTOENCODER: published(autoencoder, autoencoder_sources(autoencoder.state_dict(), TINY)),
        TEXT: text_state,
    }
    tensors = {prefix + name: tensor for prefix, state in states.items() for name, tensor in state.items()}
    return tensors | {"betas": torch.zeros(1000), "logvar": torch.zeros(1000)}


@lru_cache(maxsize=1)
def control_state() -> State:
    """An IRControlNet's tensors; its outputs are not zero, so a condition has an effect."""
    torch.manual_seed(1)
    control = build_control(build_unet(TINY))
    for parameter in control.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.05)
    return published(control, control_sources(control.state_dict(), TINY))


def whole_state() -> State:
    """Everything in one table, as version 1 was first published."""
    control = {CONTROL + name: tensor for name, tensor in control_state().items()}
    return base_state() | control | {"preprocess_model.conv_last.bias": torch.zeros(3)}


def put_files(folder: Path) -> None:
    """The two published files of version 2.1."""
    torch.save({"state_dict": base_state()}, folder / "sd2.1-base-zsnr-laionaes5.ckpt")
    torch.save(control_state(), folder / "DiffBIR_v2.1.pt")


def put_vocabulary(folder: Path) -> None:
    """The tokenizer's files: letters only."""
    folder = folder / "tokenizer"
    folder.mkdir()
    letters = "abcdefghijklmnopqrstuvwxyz,"
    words = [*letters, *(f"{letter}</w>" for letter in letters)]
    vocabulary = dict(zip(words, range(len(words)), strict=True)) | {"<|startoftext|>": 62, "<|endoftext|>": 63}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")


def tiny_diffbir() -> LatentPrior:
    """Version 2.1, tiny, through its files."""
    with tempfile.TemporaryDirectory() as folder:
        put_files(Path(folder))
        return load_diffbir("diffbir-v2.1", Path(folder), TINY)
