"""Recipes: presets validate, overrides apply, every fault is reported at once with a suggestion."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from recipes.load import PRESETS, RecipeError, dump_recipe, load_recipe, preset_names
from recipes.schema import Recipe


@pytest.mark.parametrize("name", preset_names())
def test_every_preset_validates_and_round_trips(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name)
    assert recipe.name == name
    path = tmp_path / "again.yaml"
    path.write_text(dump_recipe(recipe))
    assert load_recipe(str(path)) == recipe


def test_every_yaml_file_is_a_preset() -> None:
    assert {path.stem for path in PRESETS.rglob("*.y*ml")} == set(preset_names())


def test_dt_bfr_is_the_released_recipe() -> None:
    recipe = load_recipe("dt_bfr")
    made = recipe.generation
    assert (made.sampler, made.start, made.start_timesteps, made.calls) == ("dt_bfr", "fixed", (602,), 150)
    assert (made.filter, made.filter_factor, made.end_timestep) == ("published", 16, 361)
    assert (made.candidates, made.realism, made.control_strength, made.guidance_scale) == (1, 1, 0, 0)
    assert (recipe.rounds, recipe.camera.enabled, recipe.judge.enabled) == (1, False, False)
    taught = recipe.finetune
    assert (taught.camera_share, taught.batch * taught.accumulate) == (0, 16)
    assert (taught.learning_rate, taught.learning_rate * taught.final_rate) == (2e-5, 5e-6)
    # 0.1 of LPIPS summed over a micro-batch, not averaged.
    assert (taught.perceptual_net, taught.perceptual) == ("lpips", 0.1 * taught.batch)
    assert (taught.adversarial, taught.adversarial_form, taught.discriminator) == (0.1, "logistic", "unet")
    assert (taught.betas, taught.adversarial_betas, taught.mirror) == ((0.9, 0.999), (0.9, 0.999), "none")


def test_dt_bfr_codeformer_is_the_released_recipe() -> None:
    recipe = load_recipe("dt_bfr_codeformer")
    made, taught = recipe.generation, recipe.finetune
    assert (made.sampler, made.start_timesteps, made.calls, made.filter_factor) == ("dt_bfr", (602,), 150, 8)
    assert (made.filter, made.end_timestep, made.candidates, made.realism) == ("published", 361, 1, 1)
    assert (recipe.rounds, recipe.camera.enabled, recipe.judge.enabled) == (1, False, False)
    assert (taught.losses, taught.code_entropy, taught.code_distance) == ("codes", 0.5, 1.0)
    assert (taught.steps, taught.batch * taught.accumulate, taught.camera_share) == (40000, 8, 0)
    assert (taught.learning_rate, taught.halve_at, taught.betas) == (1e-4, (35000, 38000), (0.9, 0.99))
    assert (taught.ema_decay, taught.mirror) == (0.995, "all")


def test_dt_bfr_few_is_the_same_prior_with_few_calls_exact_filter_and_gates() -> None:
    recipe = load_recipe("dt_bfr_few")
    made, default = recipe.generation, load_recipe("default")
    assert (made.sampler, made.calls, made.filter, made.filter_factor) == ("few_calls", 10, "idempotent", 16)
    assert (made.candidates, made.realism, made.control_strength) == (4, 1, 0)
    assert (recipe.gate, recipe.camera, recipe.judge) == (default.gate, default.camera, default.judge)


def test_settings_of_dt_bfr_change_no_other_recipe() -> None:
    made = load_recipe("default")
    assert (made.finetune.perceptual_net, made.finetune.discriminator) == ("removal", "patch")
    assert (made.generation.sampler, made.judge.enabled, made.finetune.final_rate) == ("few_calls", True, 0.02)


def test_the_released_sampler_has_no_guidance() -> None:
    with pytest.raises(RecipeError, match="sampler dt_bfr has no guidance"):
        load_recipe("dt_bfr", ("generation.guidance_scale=1",))


def test_overrides_apply_to_nested_keys() -> None:
    recipe = load_recipe("default", ("finetune.steps=7", "generation.start_timesteps=[100, 200]", "rounds=1"))
    assert (recipe.finetune.steps, recipe.generation.start_timesteps, recipe.rounds) == (7, (100, 200), 1)


def test_all_faults_are_reported_at_once_with_suggestions() -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("default", ("finetune.stepz=5", "gate.low_band=-1", "nonsense", "camra.steps=1"))
    message = str(caught.value)
    assert "did you mean 'steps'" in message
    assert "did you mean 'camera'" in message
    assert "gate.low_band: got -1" in message
    assert "--set nonsense" in message
    assert "\n" not in message


@pytest.mark.parametrize(("text", "expected"), [("- a\n", "expected a mapping"), ("a: [", "not readable as YAML")])
def test_files_that_are_no_recipes_are_refused(tmp_path: Path, text: str, expected: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=expected):
        load_recipe(str(path))


def test_unknown_preset_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match="did you mean 'quick'"):
        load_recipe("quik")


def test_shares_above_one_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"finetune\.camera_share"):
        load_recipe("default", ("finetune.camera_share=1.1",))


def test_recipes_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Recipe().rounds = 3  # type: ignore[misc]


def undocumented(section: type, path: str) -> list[str]:
    found = []
    for name, field in section.model_fields.items():
        if not field.description:
            found.append(f"{path}.{name}")
        if hasattr(field.annotation, "model_fields"):
            found += undocumented(field.annotation, f"{path}.{name}")
    return found


def test_every_field_is_documented() -> None:
    sections = {name: field.annotation for name, field in Recipe.model_fields.items()}
    sections = {name: section for name, section in sections.items() if hasattr(section, "model_fields")}
    assert {"generation", "finetune"} <= sections.keys()
    assert [fault for name, section in sections.items() for fault in undocumented(section, name)] == []


def test_diffbir_is_the_published_recipe() -> None:
    made = load_recipe("diffbir").generation
    assert (made.sampler, made.diffbir.solver, made.calls) == ("diffbir", "edm_dpm++_3m_sde", 10)
    assert (made.stage1, made.color_fix, made.filter, made.realism) == ("removal", "wavelet", "none", 1)


@pytest.mark.parametrize(
    ("setting", "reason"),
    [
        ("generation.tiles.denoiser=512", "sampler few_calls has no tiles"),
        ("generation.tiles.decode=100", "multiple of 128"),
        ("generation.diffbir.prompt_scale=0.5", "greater than or equal to 1"),
        ("generation.compute.precission=fp32", "did you mean 'precision'"),
        ("generation.compute={compile: true, offload: true}", "expected one: what is compiled"),
    ],
)
def test_settings_of_diffbir_are_checked(setting: str, reason: str) -> None:
    with pytest.raises(RecipeError, match=reason):
        load_recipe("default", (setting,))


def test_recipes_import_no_torch() -> None:
    code = "import recipes.load, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_dump_spells_out_every_value() -> None:
    assert yaml.safe_load(dump_recipe(Recipe()))["finetune"]["steps"] == Recipe().finetune.steps


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("generation.calls=102", "generation.calls is 102, expected 101 at most: a path starts at timestep 100"),
        ("generation.start_timesteps=[]", "generation.start_timesteps: got"),
        ("generation.start_timesteps=[1000]", "generation.start_timesteps.0: got 1000"),
        ("generation.severity_limits=[0.03]", "generation.severity_limits has 1, expected 2"),
        ("finetune=5", "finetune: got 5, expected a section: set finetune.KEY"),
        ("camera.bank_start=10", "camera.bank_calls is 20, expected 11 at most"),
        ("finetune.steps=2020-13-45", "--set finetune.steps=2020-13-45: month must be in 1..12"),
        ("finetune.steps=[1,", "--set finetune.steps=[1,: expected the node content, but found '<stream end>', line 1"),
    ],
)
def test_paths_and_calls_must_agree(override: str, fault: str) -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("default", (override,))
    assert fault in str(caught.value) and len(str(caught.value)) < 200


def test_no_is_a_word() -> None:
    overrides = ("finetune.precision=no", "generation.compute.channels_last=no", "generation.compute.offload=true")
    recipe = load_recipe("default", overrides)
    assert (recipe.finetune.precision, recipe.generation.compute.channels_last) == ("no", "no")
    assert recipe.generation.compute.offload is True
    with pytest.raises(RecipeError, match=r"camera\.enabled"):
        load_recipe("default", ("camera.enabled=maybe",))
