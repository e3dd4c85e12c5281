"""DiffBIR from files in the cache to images, with tiny checkpoints in the full published layouts."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from pseudo_targets.checkpoints import read_checkpoint
from pseudo_targets.diffbir import solvers
from pseudo_targets.diffbir.convert import ConversionError, convert_control, split_checkpoint
from pseudo_targets.diffbir.files import read_stored
from pseudo_targets.diffbir.networks import PUBLISHED, Sizes, SizesError, build_text_tower, image_multiple
from pseudo_targets.diffbir.prompts import embed, empty_prompt, token_ids
from pseudo_targets.diffbir.published import load_diffbir, load_text_tower
from pseudo_targets.diffbir.sampling import Settings, SettingsError, restore
from pseudo_targets.downloads import SETS, WeightsError
from pseudo_targets.priors import Condition, LatentPrior
from pseudo_targets.resize import pad_to_multiple
from pseudo_targets.schedule import NoiseSchedule, even_log_alphas, scaled_linear_betas, zero_terminal_snr
from pseudo_targets.tiling import TilesError, windows
from pseudo_targets.zoo import load_prior
from restorers.zoo import read_state
from tests.diffbir_files import TINY, base_state, control_state, put_files, whole_state
from tests.tiny import blobs

NAME = "diffbir-v2.1"
BASE, CONTROL = "sd2.1-base-zsnr-laionaes5.ckpt", "DiffBIR_v2.1.pt"


def answer(prior: LatentPrior) -> Tensor:
    latent = prior.encode(blobs(1, TINY.resolution))
    return prior.denoise(latent, torch.tensor([500]), Condition(latent))


def one_line(error: pytest.ExceptionInfo[BaseException]) -> str:
    text = str(error.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("name", ["diffbir-v1", "diffbir-v1-general", "diffbir-v2", "diffbir-v2.1"])
def test_missing_files_are_named_with_the_place_to_put_them(name, tmp_path, monkeypatch):
    monkeypatch.setenv("ADAPT_CACHE", str(tmp_path))
    with pytest.raises(WeightsError) as error:
        load_prior(name)
    text = one_line(error)
    assert str(tmp_path / "diffbir") in text
    assert ".ckpt and " in text
    alone = {"diffbir-v1": "(or face_full_v1.ckpt alone)", "diffbir-v1-general": "(or general_full_v1.ckpt alone)"}
    assert alone.get(name, ".ckpt and ") in text and (" alone)" in text) == (name in alone)
    assert f"`adapt weights fetch {' '.join(weights.name for weights in SETS[name])}`" in text


def test_only_what_is_missing_is_asked_for(tmp_path):
    torch.save(control_state(), tmp_path / CONTROL)
    with pytest.raises(WeightsError) as error:
        load_diffbir(NAME, tmp_path, TINY)
    assert BASE in one_line(error) and CONTROL not in one_line(error)
    assert "`adapt weights fetch sd21-zsnr`" in one_line(error)


def test_converted_once_then_the_published_files_are_not_needed(tmp_path):
    put_files(tmp_path)
    first = load_diffbir(NAME, tmp_path, TINY)
    assert first.schedule.prediction_type == "v_prediction"
    assert len(first.weights_sha256) == 64
    assert not any(parameter.requires_grad for parameter in first.parameters())
    assert not any(path.name.startswith(".tmp") for path in tmp_path.iterdir())

    (tmp_path / BASE).unlink()
    (tmp_path / CONTROL).unlink()
    again = load_diffbir(NAME, tmp_path, TINY)
    assert again.weights_sha256 == first.weights_sha256
    assert torch.equal(answer(again), answer(first))


@pytest.mark.parametrize("origin", ["no json", "[]", '{"a": 1}', ""])
def test_a_conversion_with_the_note_of_another_is_made_again(origin, tmp_path):
    put_files(tmp_path)
    first = load_diffbir(NAME, tmp_path, TINY)
    path = tmp_path / f"{NAME}.converted.prior.safetensors"
    tensors, metadata = read_stored(path)
    save_file(tensors, path, {**metadata, "origin": origin})
    assert load_diffbir(NAME, tmp_path, TINY).weights_sha256 == first.weights_sha256


def test_a_conversion_without_its_context_is_refused(tmp_path):
    put_files(tmp_path)
    load_diffbir(NAME, tmp_path, TINY)
    path = tmp_path / f"{NAME}.converted.prior.safetensors"
    tensors, metadata = read_stored(path)
    save_file({name: tensor for name, tensor in tensors.items() if name != "context"}, path, metadata)
    with pytest.raises(WeightsError, match="holds no context; delete it") as error:
        load_diffbir(NAME, tmp_path, TINY)
    one_line(error)


@pytest.mark.parametrize(
    ("name", "tensor", "reason"),
    [
        ("w", torch.ones(2, 2).to_sparse(), "expected plain real numbers"),
        ("w", torch.ones(2, dtype=torch.complex64), "expected plain real numbers"),
        ("a\nb", torch.ones(2), "expected a printable name"),
    ],
)
def test_tensors_of_another_kind_are_refused(name, tensor, reason, tmp_path):
    torch.save({"state_dict": {name: tensor}}, tmp_path / "x.ckpt")
    with pytest.raises(WeightsError, match=reason) as error:
        read_checkpoint(tmp_path / "x.ckpt")
    one_line(error)


def test_a_changed_file_is_converted_anew(tmp_path):
    put_files(tmp_path)
    first = load_diffbir(NAME, tmp_path, TINY)
    torch.save({name: tensor.half() for name, tensor in control_state().items()}, tmp_path / CONTROL)
    again = load_diffbir(NAME, tmp_path, TINY)
    assert again.weights_sha256 != first.weights_sha256
    assert {parameter.dtype for parameter in again.parameters()} == {torch.float32}
    assert not torch.equal(answer(again), answer(first))


def test_safetensors_and_module_prefixes(tmp_path):
    put_files(tmp_path)
    expected = answer(load_diffbir(NAME, tmp_path, TINY))
    other = tmp_path / "other"
    other.mkdir()
    wrapped = {f"module.{name}": tensor for name, tensor in control_state().items()}
    save_file(wrapped, (other / CONTROL).with_suffix(".safetensors"))
    torch.save({"state_dict": base_state()}, other / BASE)
    assert torch.equal(answer(load_diffbir(NAME, other, TINY)), expected)


@pytest.mark.parametrize(("name", "kind"), [("diffbir-v1", "face"), ("diffbir-v1-general", "general")])
def test_version_1_in_one_file(name, kind, tmp_path):
    torch.save({"state_dict": whole_state(), "global_step": 3}, tmp_path / f"{kind}_full_v1.ckpt")
    prior = load_diffbir(name, tmp_path, TINY)
    assert prior.schedule.prediction_type == "epsilon"
    parts = tmp_path / "parts"
    parts.mkdir()
    torch.save({"state_dict": base_state()}, parts / "v2-1_512-ema-pruned.ckpt")
    torch.save(control_state(), parts / f"v1_{kind}.pth")
    assert torch.equal(answer(prior), answer(load_diffbir(name, parts, TINY)))


def test_the_context_is_the_embedding_of_the_empty_prompt(tmp_path):
    put_files(tmp_path)
    prior = load_diffbir(NAME, tmp_path, TINY)
    tower = load_text_tower(NAME, tmp_path, TINY)
    assert torch.equal(prior.context, embed(tower, empty_prompt(TINY)))
    assert prior.context.shape == (1, 77, 16)


def test_without_transformers_the_conversion_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(WeightsError, match=r"pip install 'adapt-restorer\[diffbir\]'"):
        build_text_tower(TINY)


@pytest.mark.parametrize(("tile", "stride"), [(8, 4), (4, 0), (4, 5)])
def test_tiles_that_do_not_cover_the_latent_are_refused(tile, stride):
    with pytest.raises(TilesError, match="expected 1 <= stride <= tile <= sides"):
        list(windows(6, 9, tile, stride))


def test_prompts_with_words_need_a_vocabulary(tmp_path):
    assert token_ids(["", ""], tmp_path, PUBLISHED).tolist() == [[49406, 49407] + [0] * 75] * 2
    with pytest.raises(WeightsError, match=r"vocab\.json and merges\.txt"):
        token_ids(["sharp"], tmp_path, PUBLISHED)


def test_faults_of_a_state_dict_are_all_named():
    state = dict(control_state())
    del state["zero_convs.0.0.weight"], state["time_embed.2.bias"]
    state["input_hint_block.0.weight"] = torch.zeros(1)
    state["input_blocks.0.0.weight"] = torch.zeros(32, 9, 3, 3)
    state["middle_block.1.norm.bias"] = torch.zeros(())
    with pytest.raises(ConversionError) as error:
        convert_control(state, TINY)
    text = one_line(error)
    assert "missing tensors: time_embed.2.bias, zero_convs.0.0.weight" in text
    assert "unexpected tensors: input_hint_block.0.weight" in text
    assert "input_blocks.0.0.weight [32, 9, 3, 3]" in text
    assert "middle_block.1.norm.bias []" in text


@pytest.mark.parametrize("shape", [(), (8,), (32, 4, 3, 3)])
def test_a_first_convolution_of_any_other_shape_is_named(shape):
    state = {**control_state(), "input_blocks.0.0.weight": torch.zeros(shape)}
    with pytest.raises(ConversionError, match=r"input_blocks\.0\.0\.weight \["):
        convert_control(state, TINY)


def test_tensors_of_no_network_are_named():
    with pytest.raises(ConversionError, match=r"unexpected tensors: a\.b, c"):
        split_checkpoint({"c": torch.zeros(1), "a.b": torch.zeros(1), "betas": torch.zeros(1)}, "file")


@pytest.mark.parametrize(
    "read", [lambda path: read_checkpoint(path)["w"], lambda path: read_state(path)[0]["w"]], ids=["prior", "restorer"]
)
def test_a_class_that_lightning_left_behind_is_no_obstacle(read, tmp_path, monkeypatch):
    path = "pytorch_lightning.callbacks.model_checkpoint"
    module = types.ModuleType(path)
    module.ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": path})
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, path, module)
    torch.save(
        {"state_dict": {"w": torch.ones(2)}, "callbacks": {module.ModelCheckpoint: {"best": 0.1}}}, tmp_path / "x.ckpt"
    )
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks", path):
        monkeypatch.delitem(sys.modules, name)
    assert read(tmp_path / "x.ckpt").tolist() == [1, 1]


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"state_dict": Payload()}, tmp_path / "x.ckpt")
    with pytest.raises(WeightsError, match=r"x\.ckpt: holds code") as error:
        read_checkpoint(tmp_path / "x.ckpt")
    one_line(error)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"\0" * 64, b"PK\x03\x04 cut off"])
@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_damaged_files_are_refused(tmp_path, content, suffix):
    path = tmp_path / f"bad{suffix}"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="bad"):
        read_checkpoint(path)


def test_restore_pads_and_crops_and_follows_its_settings(tmp_path):
    put_files(tmp_path)
    prior = load_diffbir(NAME, tmp_path, TINY)
    clean = blobs(2, 16)[..., :13, :10]

    def run(settings: Settings, **contexts: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(3)
        return restore(prior, clean, settings, noise_from(generator), image_multiple(TINY), **contexts)

    plain = run(Settings(steps=2))
    assert plain.shape == clean.shape
    assert torch.equal(plain, run(Settings(steps=2)))
    negative = torch.randn(prior.context.shape, generator=torch.Generator().manual_seed(0))
    for settings in (Settings(steps=2, guidance=4.0), Settings(steps=2, guidance=4.0, rescale=True)):
        assert not torch.equal(plain, run(settings, negative=negative))
    for changes in ({"strength": 0.5}, {"augmentation": 100}, {"tile": 4}, {"solver": "ddim"}, {"solver": "dpm++_2m"}):
        assert not torch.equal(plain, run(Settings(steps=2, **changes)))


def noise_from(generator: torch.Generator) -> solvers.Noise:
    return lambda like: torch.randn(like.shape, generator=generator)


@pytest.mark.parametrize("solver", ["spaced", "edm_euler", "edm_heun", "edm_dpmpp_2m", "edm_dpmpp_3m_sde"])
def test_a_perfect_denoiser_gives_the_clean_latent(solver):
    schedule = NoiseSchedule.from_betas(zero_terminal_snr(scaled_linear_betas()), "v_prediction")
    generator = torch.Generator().manual_seed(0)
    clean, start = torch.randn(2, 1, 4, 4, 4, generator=generator)

    def output(x: Tensor, timestep: int) -> Tensor:
        # v of the noise that leads from the clean latent to x: to_x0 then gives the clean latent back.
        abar = float(schedule.level(timestep))
        return (abar**0.5 * x - clean) / (1 - abar) ** 0.5

    found = getattr(solvers, solver)(output, schedule, start, 6, noise_from(generator))
    torch.testing.assert_close(found, clean, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    "wrong", [{"solver": "lms"}, {"start": "image"}, {"steps": 0}, {"augmentation": -1}, {"tile": 3}]
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(SettingsError, match="expected"):
        Settings(**wrong)


def test_images_are_padded_with_black_below_and_on_the_right():
    padded = pad_to_multiple(torch.ones(1, 3, 65, 128), image_multiple(PUBLISHED))
    assert padded.shape == (1, 3, 128, 128)
    assert padded[..., :65, :].min() == 1 and padded[..., 65:, :].max() == 0


def test_a_configuration_with_a_section_missing_is_refused():
    with pytest.raises(SizesError, match="vae_cfg, clip_cfg, latent_scale_factor missing"):
        Sizes.from_config({"unet_cfg": {}, "controlnet_cfg": {}}, 512)
    config = {"unet_cfg": {"a": 1}, "controlnet_cfg": {"a": 2}, "vae_cfg": {}, "clip_cfg": {}, "latent_scale_factor": 1}
    with pytest.raises(SizesError, match="differ in a"):
        Sizes.from_config(config, 512)


@pytest.mark.parametrize(("steps", "first_order"), [(9, True), (10, False)])
def test_the_last_of_few_steps_of_dpm_solver_is_of_first_order(steps, first_order):
    schedule = NoiseSchedule.from_betas(scaled_linear_betas(), "epsilon")
    seen: list[tuple[Tensor, Tensor]] = []

    def output(x: Tensor, timestep: float) -> Tensor:
        seen.append((x, torch.tanh(x + timestep / 1000)))
        return seen[-1][1]

    found = solvers.dpmpp_2m(output, schedule, torch.randn(1, 4, 2, 2, dtype=torch.float64), steps, noise_from)
    alpha = even_log_alphas(schedule, steps)[1].exp()
    sigma = (1 - alpha**2).sqrt()
    ends = ((steps - 2, *seen[-2]), (steps - 1, *seen[-1]))
    before, last = ((x - sigma[i] * answer) / alpha[i] for i, x, answer in ends)
    lambdas = (alpha / sigma).log()
    step = lambdas[steps] - lambdas[steps - 1]
    ratio = step / (lambdas[steps - 1] - lambdas[steps - 2])
    estimate = last if first_order else last + (last - before) * ratio / 2
    expected = sigma[steps] / sigma[steps - 1] * seen[-1][0] - alpha[steps] * torch.expm1(-step) * estimate
    torch.testing.assert_close(found, expected)


def test_a_replaced_file_of_the_same_size_is_converted_anew(tmp_path):
    put_files(tmp_path)
    first = load_diffbir(NAME, tmp_path, TINY)
    path = next(tmp_path.glob("DiffBIR_v2.1.pt"))
    state = torch.load(path, weights_only=True)
    size = path.stat().st_size
    torch.save({name: tensor + 1 for name, tensor in state.items()}, path)
    assert path.stat().st_size == size
    second = load_diffbir(NAME, tmp_path, TINY)
    assert second.weights_sha256 != first.weights_sha256
    path.touch()
    assert load_diffbir(NAME, tmp_path, TINY).weights_sha256 == second.weights_sha256
