"""Whole photos through DiffBIR's two stages: background, faces in it, enlargement; tiny networks from files."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor

from adapt import prior_photos
from adapt.cli import main
from adapt.errors import UsageError
from adapt.faces import Face
from adapt.photos import read_photo, write_photo
from adapt.prior_photos import PriorRestorer, load_prior_restorer, restore_with_prior
from pseudo_targets.diffbir import cleaners, networks
from pseudo_targets.downloads import BSRNET, SCUNET_PSNR, SWINIR_FACE, SWINIR_REALESRGAN
from recipes.load import load_recipe
from tests.diffbir_files import TINY, base_state, control_state, put_files
from tests.test_stage1 import TINY as TINY_CLEANERS
from tests.tiny import blobs

NAME, SIDE, CPU = "diffbir-v2.1", 64, torch.device("cpu")
SETTINGS = load_recipe("diffbir", ("generation.calls=2",)).generation


class Finder:
    """One upright face of 64 px whose upper left corner is at (40, 30)."""

    name = "stub"

    def __init__(self, count: int) -> None:
        self.count = count

    def find(self, image: Tensor) -> list[Face]:
        scale = 512 / 64
        shift = (scale - 1) / 2
        matrix = ((scale, 0.0, shift - 40 * scale), (0.0, scale, shift - 30 * scale))
        return [Face(index, matrix, 1.0) for index in range(self.count)]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Priors of versions 2 and 2.1 with their stages 1, tiny."""
    monkeypatch.setenv("ADAPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(networks, "PUBLISHED", dataclasses.replace(TINY, resolution=SIDE))
    built = {weights: (TINY_CLEANERS[weights], *rest) for weights, (_, *rest) in cleaners.NETWORKS.items()}
    monkeypatch.setattr(cleaners, "NETWORKS", built)
    monkeypatch.setattr(prior_photos, "load_finder", lambda **_: Finder(1))
    folder = tmp_path / "cache" / "diffbir"
    folder.mkdir(parents=True)
    put_files(folder)
    torch.save({"state_dict": base_state()}, folder / "v2-1_512-ema-pruned.ckpt")
    torch.save(control_state(), folder / "v2.pth")
    for weights in (SWINIR_FACE, SWINIR_REALESRGAN, BSRNET):
        torch.save(TINY_CLEANERS[weights]().state_dict(), folder / weights.file)
    return folder


def photo(height: int = 120, width: int = 150) -> Tensor:
    return blobs(1, 160)[..., :height, :width].contiguous()


def with_finder(restorer: PriorRestorer, count: int) -> PriorRestorer:
    return dataclasses.replace(restorer, finder=Finder(count))


def test_faces_are_put_into_a_background_that_is_refined_too() -> None:
    restorer, image = load_prior_restorer(NAME, SETTINGS, CPU), photo()
    result, background = restorer(image), with_finder(restorer, 0)(image)
    assert result.shape == image.shape and result.min() >= 0 and result.max() <= 1
    assert torch.equal(result, restorer(image))
    assert not torch.allclose(background, image, atol=1e-2)
    changed = (result - background).abs().amax((0, 1))
    assert changed[45:80, 55:90].max() > 1e-3
    changed[30:94, 40:104] = 0
    assert changed.max() == 0


def test_a_face_is_cleaned_by_the_network_for_faces_and_refined() -> None:
    restorer, image = load_prior_restorer(NAME, SETTINGS, CPU), photo()
    seen: dict[str, list[tuple[int, ...]]] = {"faces": [], "rest": []}
    for name, sizes in seen.items():
        cleaner = getattr(restorer, name)
        cleaner.register_forward_pre_hook(lambda _, inputs, sizes=sizes: sizes.append(tuple(inputs[0].shape[-2:])))
    restorer(image)
    assert seen == {"faces": [(SIDE, SIDE)], "rest": [(120, 150)]}
    assert (restorer.faces.name, restorer.rest.name) == (SWINIR_FACE.name, SWINIR_REALESRGAN.name)


def test_faces_are_restored_together_and_each_as_if_alone() -> None:
    restorer, image = load_prior_restorer(NAME, SETTINGS, CPU), photo()
    sizes: list[int] = []
    restorer.faces.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    crops = torch.cat([image[..., :64, :64], image[..., 20:84, 30:94]])
    together = restorer.refined(restorer.cleaned(restorer.faces, crops), crops, [1, 2])
    alone = [restorer.refined(restorer.cleaned(restorer.faces, crops[i : i + 1]), crops, [i + 1]) for i in range(2)]
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-4, rtol=1e-4)
    sizes.clear()
    with_finder(restorer, 11)(image)
    assert sizes == [8, 3]


def test_version_2_enlarges_with_a_network_that_sees_the_photo_as_it_is() -> None:
    settings = load_recipe("diffbir_v2", ("generation.calls=2",)).generation
    restorer = load_prior_restorer("diffbir-v2", settings, CPU, upscale=2)
    shapes: list[tuple[int, ...]] = []
    restorer.rest.net.register_forward_pre_hook(lambda _, inputs: shapes.append(tuple(inputs[0].shape[-2:])))
    assert restorer(photo(50, 70)).shape == (1, 3, 100, 140)
    assert shapes == [(50, 70)] and restorer.rest.name == BSRNET.name


def test_a_small_photo_is_refined_at_the_priors_resolution_and_comes_back_at_its_size() -> None:
    restorer = with_finder(load_prior_restorer(NAME, SETTINGS, CPU), 0)
    sizes: list[tuple[int, ...]] = []
    restorer.rest.register_forward_pre_hook(lambda _, inputs: sizes.append(tuple(inputs[0].shape[-2:])))
    assert restorer(photo(32, 48)).shape == (1, 3, 32, 48)
    assert sizes == [(64, 96)]


def test_an_aligned_face_is_one_image_and_needs_no_finder() -> None:
    restorer, image = load_prior_restorer(NAME, SETTINGS, CPU, aligned=True), photo(64, 64)
    assert restorer.rest is None and restorer.finder is None
    whole = restorer(image)
    expected = restorer.refined(restorer.cleaned(restorer.faces, image), image, [0])
    assert torch.equal(whole, expected.clamp(0, 1))
    assert restorer(photo(40, 40)).shape == (1, 3, 40, 40)


class Bright(torch.nn.Module):
    """Stage 1 that overshoots."""

    def forward(self, image: Tensor, size: tuple[int, int] | None = None) -> Tensor:
        return image + 0.6


def test_what_stage_1_overshoots_reaches_the_prior_and_the_colour_fix(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []

    def spy(*arguments: object) -> Tensor:
        seen.append(float(arguments[1].max()))
        return arguments[1]

    monkeypatch.setattr(prior_photos, "sampled_as_diffbir", spy)
    restorer = load_prior_restorer(NAME, SETTINGS, CPU, aligned=True)
    bright = dataclasses.replace(restorer, faces=Bright())
    assert bright(photo(64, 64)).max() == 1 and seen[0] > 1.2
    assert bright.refined(torch.full((1, 3, 64, 64), 1.3), photo(64, 64), [0]).min() > 1.2


def test_guidance_acts_through_tiles() -> None:
    image, changed = photo(130, 128), []
    for space in ("latent", "rgb"):
        tiled = ("generation.calls=2", "generation.tiles.denoiser=128", f"generation.guidance_space={space}")
        plain, guided = (load_recipe("diffbir", (*tiled, f"generation.guidance_scale={scale}")) for scale in (0, 0.5))
        results = [
            with_finder(load_prior_restorer(NAME, recipe.generation, CPU), 0)(image) for recipe in (plain, guided)
        ]
        assert results[1].isfinite().all()
        changed.append(results[1])
        assert not torch.allclose(*results, atol=1e-4)
    assert not torch.allclose(*changed, atol=1e-4)


def test_noise_has_a_stage_1_of_its_own(cache: Path) -> None:
    torch.save(TINY_CLEANERS[SCUNET_PSNR]().state_dict(), cache / SCUNET_PSNR.file)
    settings = load_recipe("diffbir_v2", ("generation.calls=2",)).generation
    restorer = load_prior_restorer("diffbir-v2", settings, CPU, content="noise")
    assert restorer.rest.name == SCUNET_PSNR.name
    assert restorer(photo(64, 64)).shape == (1, 3, 64, 64)


def test_tiles_change_little_and_another_seed_much() -> None:
    image, once = photo(130, 128), SETTINGS.model_copy(update={"calls": 1})
    tiled = load_recipe("diffbir", ("generation.calls=1", "generation.tiles.denoiser=128")).generation
    plain = with_finder(load_prior_restorer(NAME, once, CPU), 0)(image)
    in_tiles = with_finder(load_prior_restorer(NAME, tiled, CPU), 0)(image)
    other = with_finder(load_prior_restorer(NAME, once, CPU, seed=1), 0)(image)
    assert 0 < (in_tiles - plain).square().mean() < (other - plain).square().mean()


def test_the_command_writes_photos(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_photo(tmp_path / "photo.png", photo())
    words = [str(tmp_path / "photo.png"), "--prior", NAME, "--output", str(tmp_path / "out"), "--device", "cpu"]
    assert main(["regenerate", *words, "--set", "generation.calls=1", "--upscale", "0.5"]) == 0
    said = capsys.readouterr()
    assert "regenerated 1 photos" in said.out
    assert said.err == "stage 1 swinir-face: its licence (S-Lab-1.0) forbids commercial use\n"
    assert read_photo(tmp_path / "out" / "photo.png").shape == (1, 3, 60, 75)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--prior", "mini"], "prior 'mini' has none"),
        (["--prior", NAME, "--upscale", "0"], "--upscale 0: expected more than 0"),
        (["--prior", NAME, "--set", "generation.caller=1"], "unknown key"),
        (["--prior", "diffbir-v1", "--aligned"], "import FILE. with .*v1_face.pth"),
        (["--prior", "diffbir-v1"], "knows aligned faces alone, expected --aligned"),
        (["--prior", "diffbir-v1-general"], "import FILE. with .*v1_general.pth"),
        (["--prior", "diffbir-v2", "--recipe", "diffbir"], "diffbir-v2 predicts noise, expected spaced"),
        (["--prior", NAME, "--set", "generation.diffbir.solver=ddim", "--set", "generation.calls=3"], "3 calls would"),
        (["--prior", NAME, "--set", "generation.prompt=sharp"], "prompts need vocab.json"),
    ],
)
def test_what_cannot_be_done_is_one_line(words: list[str], reason: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=reason) as error:
        restore_with_prior(["photo.png", "--output", str(tmp_path / "out"), "--device", "cpu", *words])
    assert "\n" not in str(error.value)


def test_a_missing_stage_1_says_how_to_get_it(cache: Path) -> None:
    (cache / SWINIR_REALESRGAN.file).unlink()
    with pytest.raises(UsageError, match=f"adapt weights fetch {SWINIR_REALESRGAN.name}"):
        load_prior_restorer(NAME, SETTINGS, CPU)
    assert load_prior_restorer(NAME, SETTINGS, CPU, aligned=True).rest is None


def test_a_photo_that_the_device_has_no_memory_for_is_named_and_the_others_go_on(tmp_path, monkeypatch, capsys) -> None:
    write_photo(tmp_path / "in" / "large.png", photo(64, 96))
    write_photo(tmp_path / "in" / "small.png", photo(64, 64))
    drawn = PriorRestorer.refined

    def refined(self: PriorRestorer, clean: Tensor, *given: object) -> Tensor:
        if clean.shape[-1] > 64:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return drawn(self, clean, *given)

    monkeypatch.setattr(PriorRestorer, "refined", refined)
    asked = ["--prior", NAME, "--output", str(tmp_path / "out"), "--set", "generation.calls=2", "--device", "cpu"]
    assert main(["regenerate", str(tmp_path / "in"), *asked]) == 0
    assert "large.png: out of memory at 96 x 64 px: try --set generation.tiles" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["small.png"]


def test_a_cleaner_for_noise_sees_the_photo_at_the_size_that_was_asked_for(cache: Path) -> None:
    torch.save(TINY_CLEANERS[SCUNET_PSNR]().state_dict(), cache / SCUNET_PSNR.file)
    settings = load_recipe("diffbir_v2", ("generation.sampler=diffbir", "generation.calls=2")).generation
    restorer = load_prior_restorer("diffbir-v2", settings, CPU, upscale=1.5, content="noise")
    seen: list[tuple[int, ...]] = []
    restorer.rest.net.register_forward_pre_hook(lambda _, inputs: seen.append(tuple(inputs[0].shape[-2:])))
    assert with_finder(restorer, 0)(photo(24, 32)).shape == (1, 3, 36, 48)
    assert seen == [(36, 48)]
