"""`adapt pretrain`: the whole family from a folder of images, in the documented order, loadable afterwards."""

import json
from pathlib import Path

import pytest
import torch

from adapt.cli import main
from adapt.photos import write_photo
from pseudo_targets.embedded import WeightsError, load_mini, load_quality, load_removal
from restorers.compact import load_compact
from tests.tiny import blobs


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pretrain")
    for index, image in enumerate(blobs(40, 64)):
        write_photo(folder / "data" / f"{index}.png", image[None])
    for network in ("latents", "restorer", "removal", "prior", "control", "quality"):
        arguments = ["--data", str(folder / "data"), "--output", str(folder / "weights")]
        assert main(["pretrain", network, *arguments, "--size", "64", "--steps", "2", "--batch", "2"]) == 0
    return folder / "weights"


def test_every_network_loads_and_runs(trained: Path) -> None:
    image = blobs(1, 64)
    assert load_compact(trained / "compact.safetensors")(image).shape == image.shape
    assert load_removal(trained)(image).shape == image.shape
    assert load_quality(trained)(image).shape == (1,)
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
