"""DiffBIR's own sampler, its texts and its guidance through the settings of a recipe."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from adapt import generate, prior_setup
from adapt.console import Narrator
from adapt.errors import UsageError
from adapt.generate import TargetTask, WorkerFactory
from adapt.options import JobOptions, checked, cleaner_of
from adapt.seeds import generator_of
from pseudo_targets.color_fix import wavelet_color_fix
from pseudo_targets.consistency import LowPassReplacement, Reference, RestorationGuidance
from pseudo_targets.diffbir import networks, texts
from pseudo_targets.diffbir.denoiser import Corrected
from pseudo_targets.diffbir.prompts import token_ids
from pseudo_targets.diffbir.sampling import Settings, multiple_for, restore
from pseudo_targets.diffbir.solvers import spaced
from pseudo_targets.diffbir.texts import joined, load_texts
from pseudo_targets.downloads import WeightsError
from pseudo_targets.dt_bfr import noise_from
from pseudo_targets.filters import BlockMean
from pseudo_targets.schedule import NoiseSchedule, respace, scaled_linear_betas, spaced_timesteps, zero_terminal_snr
from recipes.load import load_recipe
from recipes.schema import Generation
from tests.diffbir_files import TINY, put_files, put_vocabulary, tiny_diffbir
from tests.test_stage1 import Quality
from tests.tiny import blobs

NAME, SIDE = "diffbir-v2.1", 32


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The published files at tiny sizes, with a vocabulary of letters."""
    monkeypatch.setenv("ADAPT_CACHE", str(tmp_path))
    monkeypatch.setattr(networks, "PUBLISHED", dataclasses.replace(TINY, resolution=SIDE))
    monkeypatch.setattr(generate, "load_quality", Quality)
    monkeypatch.setattr(generate, "load_identity", lambda _: None)
    folder = tmp_path / "diffbir"
    folder.mkdir()
    put_files(folder)
    put_vocabulary(folder)
    return folder


def settings(**changes: object) -> Generation:
    values = {"sampler": "diffbir", "calls": 3, "candidates": 1, "realism": 1, "filter": "none", "stage1": "restorer"}
    return Generation.model_validate(values | changes)


def draws(chosen: Generation, count: int = 1, cleaner: nn.Module | None = None) -> Tensor:
    """Targets of `count` photos; stage 1 leaves them as they are."""
    plan = WorkerFactory(nn.Identity(), NAME, chosen, load_recipe("default").gate, "cpu", cleaner)
    names, seeds = tuple("abc"[:count]), tuple(range(count))
    made = plan.target_worker()(TargetTask(names, blobs(count, SIDE), 300, seeds))
    return torch.stack([target.draw for target in made])


def test_a_target_is_a_draw_of_the_published_sampler_with_its_colour_fix(cache: Path) -> None:
    found = draws(settings(color_fix="wavelet"))
    prior, photo = tiny_diffbir(), blobs(1, SIDE)
    noise = noise_from([generator_of("target", 0, 0)])
    plan = Settings(solver="edm_dpm++_3m_sde", steps=3)
    expected = restore(prior, photo, plan, noise, multiple_for(prior, SIDE, SIDE))
    torch.testing.assert_close(found, wavelet_color_fix(expected, photo).clamp(0, 1))


def test_a_batch_is_its_photos_one_by_one(cache: Path) -> None:
    chosen = settings(diffbir={"prompt_scale": 3, "negative_prompt": "blurry"}, prompt="sharp")
    torch.testing.assert_close(draws(chosen, 2)[:1], draws(chosen), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "sharp"},
        {"diffbir": {"prompt_scale": 4, "negative_prompt": "blurry"}},
        {"diffbir": {"prompt_scale": 4, "negative_prompt": "blurry", "rescale": True}},
        {"diffbir": {"solver": "spaced"}},
        {"diffbir": {"augmentation": 200}},
        {"guidance_scale": 0.5, "guidance_space": "rgb"},
        {"guidance_scale": 0.5, "guidance_space": "latent"},
        {"guidance_scale": 0.5, "diffbir": {"solver": "spaced"}},
        {"filter": "idempotent"},
        {"control_strength": 0.2},
    ],
)
def test_every_setting_has_an_effect(change: dict, cache: Path) -> None:
    assert not torch.allclose(draws(settings()), draws(settings(**change)), atol=1e-4)


def test_no_second_evaluation_when_guidance_is_off(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    original = prior_setup.load_texts
    monkeypatch.setattr(
        prior_setup, "load_texts", lambda *args, **kwargs: calls.append("texts") or original(*args, **kwargs)
    )
    forward = networks.UNet2DConditionModel.forward
    counted = lambda self, *args, **kwargs: calls.append("unet") or forward(self, *args, **kwargs)  # noqa: E731
    monkeypatch.setattr(networks.UNet2DConditionModel, "forward", counted)
    draws(settings())
    assert calls == ["unet"] * 3
    calls.clear()
    draws(settings(diffbir={"prompt_scale": 2, "negative_prompt": "blurry"}))
    assert calls == ["texts"] + ["unet"] * 6


def test_a_caption_joins_the_prompt_of_its_photo(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load_captioner(model: str, device: torch.device) -> prior_setup.Captioner:
        asked.append(model)
        return lambda photos: ["a face"] * len(photos)

    monkeypatch.setattr(prior_setup, "load_captioner", load_captioner)
    captioned = draws(settings(caption="folder/model", prompt="sharp"))
    assert asked == ["folder/model"]
    assert torch.equal(captioned, draws(settings(prompt="a face, sharp")))
    few = {"sampler": "few_calls", "realism": 0.5}
    assert torch.equal(draws(settings(caption="folder/model", **few)), draws(settings(prompt="a face", **few)))
    assert not torch.equal(draws(settings(prompt="a face", **few)), draws(settings(**few)))


def test_embeddings_are_computed_once(cache: Path) -> None:
    texts, loads = load_texts(NAME, torch.device("cpu")), []
    tower = texts.tower
    texts.tower = lambda: loads.append(1) or tower()
    first = texts(["sharp", "", "sharp"])
    assert torch.equal(first[0], first[2]) and not torch.equal(first[0], first[1])
    assert torch.equal(texts(["", "sharp"]), first[[1, 0]])
    assert loads == [1] and texts.waiting is None
    texts.many = True
    assert torch.equal(texts(["a", "b"])[1], texts(["b", "c"])[0])
    assert loads == [1, 1] and texts.waiting is not None
    assert torch.equal(first[1:2], tiny_diffbir().context)
    assert joined("", "sharp") == "sharp" and joined("a", "b") == "a, b"


def test_words_without_a_vocabulary_are_refused(cache: Path) -> None:
    (cache / "tokenizer" / "vocab.json").unlink()
    with pytest.raises(WeightsError, match=r"vocab\.json"):
        draws(settings(prompt="sharp"))
    (fault,) = prior_setup.faults_of(NAME, settings(prompt="sharp"))
    assert "vocab.json" in fault and "merges.txt" not in fault and str(cache) in fault
    assert prior_setup.faults_of(NAME, settings()) == []


def test_guidance_is_as_the_recipe_says() -> None:
    chosen = settings(guidance_scale=0.5, guidance_loss="mse", guidance_window=(700, 100), guidance_repeat=2)
    (guidance,) = prior_setup.consistencies(chosen, tiny_diffbir(), 999)
    assert (guidance.scale, guidance.loss, guidance.repeat) == (0.5, "mse", 2)
    assert [guidance.active(t) for t in (99, 100, 698, 699)] == [False, True, True, False]


def test_what_only_diffbir_has_is_refused_for_other_priors(cache: Path) -> None:
    options = JobOptions(cache, "adapt", overrides=("generation.sampler=diffbir", "generation.prompt=sharp"))
    with pytest.raises(UsageError) as error:
        checked(options, Narrator())
    for part in ("sampler diffbir: prior 'mini'", "prompt 'sharp': prior 'mini'", "give --prior, one of diffbir-v1"):
        assert part in str(error.value)
    right = dataclasses.replace(options, prior=NAME, overrides=(*options.overrides, "windows.size=64"))
    with pytest.raises(UsageError, match="works at 32 px") as error:
        checked(right, Narrator())
    assert "expected one of" not in str(error.value)


def test_a_prior_of_all_photos_varies_faces_for_the_bank() -> None:
    assert prior_setup.bank_start("mini", 999) == 999
    assert [prior_setup.bank_start(NAME, start) for start in (999, 300)] == [prior_setup.VARIED_FROM, 300]


def test_tiles_of_stage_1_reach_the_job(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapt.options.load_cleaner", lambda name, tile: (name, tile))
    recipe = load_recipe("diffbir", ("generation.tiles.stage1=256",))
    assert cleaner_of(JobOptions(cache, "adapt", prior=NAME), recipe, Narrator()) == (NAME, 256)


def test_tiles_of_the_denoiser_need_no_padding_beyond_the_autoencoder(cache: Path) -> None:
    prior = tiny_diffbir()
    assert multiple_for(prior, 256, 256) == networks.image_multiple(TINY)
    assert multiple_for(prior, 256, 130, tile=64) == networks.image_patch(TINY)
    assert multiple_for(prior, 256, 120, tile=64) == networks.image_multiple(TINY)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_a_corrected_output_stands_for_the_corrected_image(kind: str) -> None:
    betas = scaled_linear_betas()
    schedule = NoiseSchedule.from_betas(betas if kind == "epsilon" else zero_terminal_snr(betas), kind)
    generator = torch.Generator().manual_seed(0)
    output, x, latent = torch.randn(3, 1, 4, 8, 8, generator=generator)
    reference = Reference(latent, blobs(1))
    keep = LowPassReplacement(BlockMean(2), 900, 100)
    corrected = Corrected(lambda *_: output, schedule, (keep,), reference)
    for timestep in (100, 500, 900):
        expected = keep(schedule.to_x0(output, x, timestep), reference, timestep)
        found = schedule.to_x0(corrected(x, timestep), x, timestep)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert corrected(x, 50) is output


def test_guidance_of_an_ancestral_path_moves_its_mean_as_published() -> None:
    prior, steps = tiny_diffbir(), 3
    latent = prior.encode(blobs(1, 16))
    reference = Reference(0.5 * latent, blobs(1, 16))
    chain = respace(prior.schedule, spaced_timesteps(1000, [steps]))
    guidance = RestorationGuidance(prior.decode, 0.01, "latent", "mse", chain=chain)
    moves = []

    def output(x: Tensor, timestep: int) -> Tensor:
        v = prior.schedule.target(latent, prior.schedule.eps_of(latent, x, timestep), timestep)
        x0 = prior.schedule.to_x0(v, x, timestep)
        coefficient = float(chain.posterior_mean_coef1[chain.index(timestep)])
        moves.append(
            float((coefficient * (guidance(x0, reference, timestep) - x0) - guidance.shift(x0, reference)).abs().max())
        )
        return v

    spaced(output, prior.schedule, torch.randn(latent.shape), steps, torch.zeros_like)
    assert len(moves) == steps and max(moves) < 1e-5


@pytest.mark.parametrize(
    ("name", "content"),
    [("vocab.json", '{"a": 1, "b'), ("vocab.json", "[1, 2]"), ("merges.txt", "#version: 0.2\nq zz\n")],
)
def test_a_damaged_vocabulary_is_named(cache: Path, name: str, content: str) -> None:
    (cache / "tokenizer" / name).write_text(content)
    with pytest.raises(WeightsError, match=rf"{name}: is damaged .*fetch sd21-tokenizer"):
        token_ids(["sharp"], cache / "tokenizer", TINY)


def test_texts_forget_the_oldest_captions(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(texts, "KEPT", 2)
    known = load_texts(NAME, torch.device("cpu"), many=True)
    first = known(["a", "b", "c"])
    assert list(known.known) == ["b", "c"]
    torch.testing.assert_close(known(["a"]), first[:1])
