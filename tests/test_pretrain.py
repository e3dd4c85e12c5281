"""`adapt pretrain`: the whole family from a folder of images, in the documented order, loadable afterwards."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from adapt.cli import main
from adapt.dataset import some_gray
from adapt.errors import AdaptError
from adapt.photo_bank import PhotoBank, load_photos
from adapt.photos import write_photo
from adapt.pretrain_jobs import fixed_pairs
from adapt.seeds import generator_of
from pseudo_targets.downloads import WeightsError
from pseudo_targets.embedded import load_mini, load_quality, load_removal, load_tone, mini_schedule
from pseudo_targets.pretrain import control_losses, prior_losses
from pseudo_targets.priors import Fusion
from restorers.compact import load_compact
from restorers.degradations import GenericDegradation, add_noise, sharpened
from tests.tiny import blobs

CONTEXT, ONES = torch.zeros(1, 1, 4), torch.ones(4)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretrain")
    for index, image in enumerate(blobs(40, 64)):
        write_photo(folder / "data" / f"{index}.png", image[None])
    assert main(["pretrain", "all", *arguments_of(folder), "--steps", "2", "--batch", "2"]) == 0
    return folder / "weights"


def arguments_of(folder: Path) -> list[str]:
    return ["--data", str(folder / "data"), "--output", str(folder / "weights"), "--size", "64"]


def test_every_network_loads_and_runs(trained: Path) -> None:
    image = blobs(1, 64)
    assert load_compact(trained / "compact.safetensors")(image).shape == image.shape
    assert load_removal(trained)(image).shape == image.shape
    assert load_quality(trained)(image).shape == (1,)
    assert float(load_tone(trained).between.min()) > 0
    prior = load_mini(trained)
    assert prior.resolution == 64
    assert prior.decode(prior.encode(image)).shape == image.shape


@pytest.mark.parametrize("name", ["compact", "removal", "prior", "control"])
def test_each_leaves_its_plan_curve_scores_and_card(trained: Path, name: str) -> None:
    record = json.loads((trained / f"{name}.json").read_text())
    assert record["plan"]["steps"] == 2
    assert record["losses"][-1]["step"] == 2
    assert all(torch.isfinite(torch.tensor(value)) for value in record["scores"].values())
    assert (trained / f"{name}.png").stat().st_size > 1000
    card = (trained / f"{name}.md").read_text()
    assert "38 images" in card and "2 steps" in card


def test_the_same_command_leaves_finished_networks_alone(trained: Path, capsys) -> None:
    before = {path: path.stat().st_mtime_ns for path in trained.glob("*.checkpoint.pt")}
    weights = {path: path.read_bytes() for path in trained.glob("*.safetensors")}
    assert main(["pretrain", "all", *arguments_of(trained.parent), "--steps", "2", "--batch", "2"]) == 0
    assert capsys.readouterr().out.count("is trained already") == 4
    assert {path: path.stat().st_mtime_ns for path in trained.glob("*.checkpoint.pt")} == before
    assert {path: path.read_bytes() for path in trained.glob("*.safetensors")} == weights


def test_images_of_one_name_up_to_the_last_underscore_are_a_set(tmp_path: Path) -> None:
    for index, image in enumerate(blobs(12, 64)):
        folder = tmp_path / "data" / ("mine" if index < 4 else "yours")
        write_photo(folder / f"{'ab'[index % 2]}_{index}.png", image[None])
    assert main(["pretrain", "tone", *arguments_of(tmp_path)]) == 0
    record = json.loads((tmp_path / "weights" / "tone.json").read_text())
    assert (record["images"], record["sets"]) == (12, 4)


def test_photos_of_any_size_and_several_folders_are_taken(trained: Path, tmp_path: Path, capsys) -> None:
    shutil.copytree(trained.parent, tmp_path, dirs_exist_ok=True)
    for index, (height, width) in enumerate([(70, 200), (150, 90), (64, 64), (40, 300)]):
        write_photo(tmp_path / "more" / f"{index}.png", torch.rand(1, 3, height, width))
    given = ["--steps", "2", "--batch", "2", "--seed", "5", "--data", str(tmp_path / "data"), str(tmp_path / "more")]
    assert main(["pretrain", "prior", *arguments_of(tmp_path)[2:], *given]) == 0
    said = capsys.readouterr().out
    assert "40 images of 64 to 90 px on the shorter side to train on, 3 to validate, in windows of 64 px" in said
    assert "in 2 folders that count alike" in (tmp_path / "weights" / "prior.md").read_text()


def test_weights_to_go_on_from_belong_to_one_network(trained: Path, capsys) -> None:
    given = ["--start-from", str(trained / "prior.safetensors")]
    with pytest.raises(SystemExit):
        main(["pretrain", "all", *arguments_of(trained.parent), *given])
    assert "name it in place of `all`" in capsys.readouterr().err


def test_changed_weights_are_refused(trained: Path, tmp_path: Path) -> None:
    for path in trained.glob("*"):
        if path.suffix in (".safetensors", ".json"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    damaged = bytearray((tmp_path / "removal.safetensors").read_bytes())
    damaged[-1] ^= 1
    (tmp_path / "removal.safetensors").write_bytes(damaged)
    with pytest.raises(WeightsError, match="sha256"):
        load_removal(tmp_path)


def test_a_network_that_builds_on_another_says_what_is_missing(tmp_path: Path, capsys) -> None:
    for index, image in enumerate(blobs(4, 64)):
        write_photo(tmp_path / "data" / f"{index}.png", image[None])
    arguments = ["--data", str(tmp_path / "data"), "--output", str(tmp_path / "weights"), "--size", "64"]
    assert main(["pretrain", "control", *arguments]) == 1
    error = capsys.readouterr().err
    assert "missing" in error and "adapt pretrain" in error


def test_training_goes_on_from_given_weights(trained: Path, tmp_path: Path) -> None:
    for path in trained.glob("*"):
        if path.suffix in (".safetensors", ".json"):
            (tmp_path / path.name).write_bytes(path.read_bytes())
    given = trained / "prior.safetensors"
    # A rate of almost nothing, so that what comes out is what went in.
    arguments = ["--data", str(trained.parent / "data"), "--output", str(tmp_path), "--size", "64", "--batch", "2"]
    rate = ["--steps", "1", "--learning-rate", "1e-12"]
    assert main(["pretrain", "prior", *arguments, *rate, "--start-from", str(given)]) == 0
    before, after = load_file(given), load_file(tmp_path / "prior.safetensors")
    assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
    assert "--start-from prior.safetensors (sha256 " in (tmp_path / "prior.md").read_text()


@pytest.mark.parametrize("given", ["control", "absent"])
def test_weights_of_another_network_are_refused(given: str, trained: Path, tmp_path: Path, capsys) -> None:
    arguments = ["--data", str(trained.parent / "data"), "--output", str(trained), "--size", "64", "--steps", "1"]
    file = trained / f"{given}.safetensors"
    assert main(["pretrain", "prior", *arguments, "--start-from", str(file)]) == 1
    assert f"--start-from {file}: expected weights of this network and size, got: " in capsys.readouterr().err


def test_windows_are_the_photos_own_pixels_half_of_the_time_and_larger_squares_else() -> None:
    ramp = (torch.arange(200) * 1.0).expand(3, 120, 200).to(torch.uint8)  # a window spans as many levels as columns
    windows = PhotoBank([[ramp]]).draw_windows(300, 64, generator_of("windows"), flip=False)
    assert windows.shape == (300, 3, 64, 64)
    spans = 255 * (windows.amax((1, 2, 3)) - windows.amin((1, 2, 3)))
    native = (spans - 63).abs() < 0.5
    assert 0.4 < float(native.float().mean()) < 0.65
    assert 100 < float(spans.max()) < 120.5  # never more than the shorter side


def test_groups_are_drawn_from_alike_however_many_photos_they_have() -> None:
    dark, bright = (torch.full((3, 64, 64), value, dtype=torch.uint8) for value in (0, 255))
    windows = PhotoBank([[dark] * 50, [bright]]).draw_windows(200, 64, generator_of("groups"))
    assert 0.4 < float(windows.mean()) < 0.6


def test_photos_that_are_too_small_are_left_out_and_large_ones_brought_down(tmp_path: Path) -> None:
    for index, (height, width) in enumerate([(300, 200), (50, 300), (96, 400)]):
        write_photo(tmp_path / f"{index}.png", torch.rand(1, 3, height, width))
    assert [tuple(photo.shape[-2:]) for photo in load_photos([tmp_path], 64).photos()] == [(300, 200), (96, 400)]
    assert [tuple(photo.shape[-2:]) for photo in load_photos([tmp_path], 64, 100).photos()] == [(150, 100), (96, 400)]
    with pytest.raises(AdaptError, match="no photo of 500 px or more"):
        load_photos([tmp_path], 500)


def test_some_images_lose_their_colour() -> None:
    images = blobs(300, 8)
    changed = some_gray(images, generator_of("gray"), share=0.3)
    gray = (changed.amax(1) - changed.amin(1)).amax((1, 2)) < 1e-6
    assert 0.2 < float(gray.float().mean()) < 0.4
    assert torch.equal(changed[~gray], images[~gray])


class Network(torch.nn.Module):
    """A function as a network without weights."""

    def __init__(self, answer: Callable[..., object]) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, *inputs: object, **named: object) -> object:
        return self.answer(*inputs, **named)


def test_an_error_of_the_overall_tone_costs_more_than_noise_of_the_same_energy() -> None:
    schedule, latent = mini_schedule(), torch.zeros(2, 4, 16, 16)
    white = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    white -= white.mean((2, 3), keepdim=True)
    tone = torch.ones_like(white) * white.square().mean().sqrt()

    def cost(error: torch.Tensor, weight: float) -> float:
        def network(x: torch.Tensor, timestep: torch.Tensor, context: torch.Tensor) -> SimpleNamespace:
            return SimpleNamespace(sample=error)

        generator = torch.Generator().manual_seed(1)
        losses = prior_losses(Network(network), latent, schedule, CONTEXT, ONES, generator, weight)
        return float(sum(losses.values()))

    nothing = torch.zeros_like(white)
    assert cost(tone, 1.0) - cost(nothing, 1.0) > 5 * (cost(white, 1.0) - cost(nothing, 1.0)) > 0
    assert cost(tone, 0.0) - cost(nothing, 0.0) == pytest.approx(cost(white, 0.0) - cost(nothing, 0.0), rel=0.1)


@pytest.mark.parametrize(("answer", "expected"), [("clean", 0.0), ("fused", 1.0)])
def test_refining_costs_what_it_adds_to_the_fused_estimate(answer: str, expected: float) -> None:
    schedule, variance = mini_schedule(), torch.tensor([0.4, 0.2, 0.1, 0.05])
    latent, error = torch.randn(2, 64, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    reference = latent + error * variance.sqrt().view(1, -1, 1, 1)

    def control(x: torch.Tensor, *_: object, **__: object) -> tuple[None, None]:
        return None, None

    def unet(x: torch.Tensor, timestep: torch.Tensor, context: torch.Tensor, **_: object) -> SimpleNamespace:
        level = schedule.level(timestep).float().view(-1, 1, 1, 1)
        signal, sigma = level.sqrt(), (1 - level).sqrt()
        x0 = latent if answer == "clean" else x / signal
        return SimpleNamespace(sample=(signal * x - x0) / sigma)  # the velocity that stands for x0

    steered = SimpleNamespace(unet=Network(unet), control=control)
    generator = torch.Generator().manual_seed(1)
    losses = control_losses(steered, latent, reference, schedule, CONTEXT, Fusion(variance), generator)  # type: ignore[arg-type]
    assert float(losses["x0"]) == pytest.approx(expected, abs=0.02)


def test_some_photos_stay_clean_so_that_good_ones_are_left_alone() -> None:
    images = blobs(200, 32)
    degraded = GenericDegradation(clean_probability=0.2)(images, generator_of("clean"))
    untouched = (degraded == images).all(3).all(2).all(1).float().mean()
    assert 0.1 < float(untouched) < 0.3
    assert float((fixed_pairs(images) == images).all(3).all(2).all(1).float().mean()) < 0.03


def test_mild_degradations_are_mild_and_sharpening_makes_halos() -> None:
    images = blobs(200, 32)
    mild = GenericDegradation(clean_probability=0, mild_probability=1)(images, generator_of("mild"))
    strong = GenericDegradation(clean_probability=0, mild_probability=0)(images, generator_of("mild"))
    errors = [(degraded - images).square().mean() for degraded in (mild, strong)]
    assert float(errors[0]) < 0.5 * float(errors[1])
    step = torch.cat([torch.full((1, 3, 32, 16), 0.3), torch.full((1, 3, 32, 16), 0.6)], 3)
    sharp = sharpened(step, torch.tensor([1.0]))
    assert float(sharp.max()) > 0.65 and float(sharp.min()) < 0.25
    torch.testing.assert_close(sharp[..., 8], step[..., 8], atol=0.01, rtol=0)


def test_correlated_noise_is_as_strong_as_white_noise() -> None:
    gray = torch.full((64, 3, 64, 64), 0.5)
    sigma = torch.full((64,), 0.05)
    for grain in (None, (0.8, 1.0)):
        noise = add_noise(gray, sigma, generator_of("grain"), grain) - gray
        assert float(noise.std()) == pytest.approx(0.05, rel=0.05)
        beside = float((noise[..., 1:] * noise[..., :-1]).mean() / noise.var())
        assert beside > 0.5 if grain else abs(beside) < 0.02
