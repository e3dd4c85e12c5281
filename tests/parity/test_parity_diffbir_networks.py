"""DiffBIR's networks: published layouts through our converters, one evaluation of each."""

import json

import pytest
import torch

from pseudo_targets.diffbir.convert import ConversionError, convert_text_tower, convert_unet
from pseudo_targets.diffbir.files import cache_folder
from pseudo_targets.diffbir.networks import PUBLISHED, build_text_tower
from pseudo_targets.diffbir.prompts import TOKENIZER_FILES, embed, empty_prompt, token_ids
from pseudo_targets.priors import Condition, denoiser_output
from tests.parity.parity_files import FOLDER, absolute, needs_fixtures, relative, tensors
from tests.parity.tiny_diffbir import tiny_checkpoint, tiny_prior, tiny_sizes

pytestmark = needs_fixtures


@torch.no_grad()
def test_control_residuals() -> None:
    io, prior = tensors("diffbir_model_io"), tiny_prior("v1v2")
    down, middle = prior.control(io["x"], io["t"], io["context"], io["hint"], return_dict=False)
    expected = [io[key] for key in sorted(io) if key.startswith("control_")]
    assert len(expected) == len(down) + 1
    for ours, theirs in zip([*down, middle], expected, strict=True):
        assert relative(ours, theirs) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize(
    ("recorded", "strength"),
    [("model_output", 1.0), ("model_output_strength_0p6", 0.6), ("unet_output_without_control", None)],
)
def test_network_output(recorded: str, strength: float | None) -> None:
    io, prior = tensors("diffbir_model_io"), tiny_prior("v1v2")
    condition = None if strength is None else Condition(io["hint"], strength)
    output = denoiser_output(prior.unet, prior.control, io["x"], io["t"], io["context"], condition)
    assert relative(output, io[recorded]) < 1e-5


@torch.no_grad()
@pytest.mark.parametrize("version", ["v1v2", "v21"])
def test_denoise_is_the_clean_latent(version: str) -> None:
    io, prior = tensors("diffbir_model_io"), tiny_prior(version)
    row = slice(0, 1)
    # A prior has one context for the batch, the recorded call one for each image.
    prior.context, before = io["context"][row], prior.context
    x0 = prior.denoise(io["x"][row], io["t"][row], Condition(io["hint"][row]))
    prior.context = before
    expected = io["x0_if_eps" if version == "v1v2" else "x0_if_v_zero_snr"]
    assert absolute(x0, expected[row]) < 1e-5 * float(expected.abs().max())


@torch.no_grad()
def test_autoencoder() -> None:
    io, codec = tensors("vae_io"), tiny_prior("v1v2").codec
    posterior = codec.autoencoder.encode(2 * io["image01"] - 1).latent_dist
    assert relative(posterior.mean, io["mean"]) < 1e-5
    assert relative(posterior.logvar, io["logvar"]) < 1e-5
    assert relative(codec.encode(io["image01"]), io["latent_mode_scaled"]) < 1e-5
    drawn = (posterior.mean + posterior.std * io["noises"][0]) * codec.scaling
    assert relative(drawn, io["latent_sample_scaled"]) < 1e-5
    assert relative(2 * codec.decode(io["z"]) - 1, io["decoded"]) < 1e-5


def test_text_tower() -> None:
    pytest.importorskip("transformers")
    io, sizes = tensors("clip_io"), tiny_sizes()
    tower = build_text_tower(sizes)
    tower.load_state_dict(convert_text_tower(tiny_checkpoint().text, sizes))
    assert absolute(embed(tower.eval(), io["tokens"]), io["penultimate_ln"]) < 1e-5
    assert torch.equal(empty_prompt(sizes), io["tokens"][1:2])


def test_token_ids() -> None:
    recorded = json.loads((FOLDER / "tokenizer_ids.json").read_text(encoding="utf-8"))
    empty = [entry["ids"] for entry in recorded if not entry["prompt"]]
    assert empty == empty_prompt(PUBLISHED).tolist()
    folder = cache_folder() / "tokenizer"
    if not all((folder / name).is_file() for name in TOKENIZER_FILES):
        pytest.skip(f"no vocabulary in {folder}: only the empty prompt was compared")
    pytest.importorskip("transformers")
    ids = token_ids([entry["prompt"] for entry in recorded], folder, PUBLISHED)
    assert ids.tolist() == [entry["ids"] for entry in recorded]


def test_a_tensor_less_or_more_is_an_error() -> None:
    state = dict(tiny_checkpoint().unet)
    state["one.more"] = state.pop("output_blocks.5.2.conv.bias")
    with pytest.raises(ConversionError, match=r"missing tensors: output_blocks\.5\.2\.conv\.bias; unexp.*: one\.more"):
        convert_unet(state, tiny_sizes())
