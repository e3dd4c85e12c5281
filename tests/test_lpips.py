"""LPIPS from files in the cache, with random weights in the full published layouts."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from adapt.console import Narrator
from adapt.errors import AdaptError, UsageError
from adapt.finetune import distance_of, finetune
from adapt.lpips import Heads, Vgg16, find_lpips, load_lpips
from adapt.options import JobOptions, checked
from adapt.training import make_accelerator
from adapt.weights_cli import import_weights, verify_weights
from adapt.weights_table import LPIPS, LPIPS_HEADS, TABLE, VGG16, chosen
from pseudo_targets.downloads import WeightsError, WeightsMissingError
from pseudo_targets.embedded import load_removal
from recipes.schema import Finetune
from tests.test_finetune import lessons, small
from tests.tiny import blobs

CPU = torch.device("cpu")
# Where torchvision has VGG-16's convolutions, and where LPIPS looks: after the last of each block.
BLOCKS = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache with both files, as a download would leave them; the weights are random."""
    folder = tmp_path_factory.mktemp("published") / "lpips"
    folder.mkdir()
    torch.manual_seed(0)
    vgg, heads = Vgg16(), Heads()
    for layer in vgg.features:
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.normal_(layer.bias, std=0.1)
    classifier = {f"classifier.{index}.weight": torch.zeros(2, 2) for index in (0, 3, 6)}
    torch.save(vgg.state_dict() | classifier, folder / VGG16.file)
    torch.save({name: torch.rand_like(tensor) for name, tensor in heads.state_dict().items()}, folder / "vgg.pth")
    return folder.parent


@pytest.fixture
def cache(published: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """That cache, not to be written to."""
    monkeypatch.setenv("ADAPT_CACHE", str(published))
    return published / "lpips"


@pytest.fixture
def empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache with nothing in it but the folder of these files."""
    monkeypatch.setenv("ADAPT_CACHE", str(tmp_path))
    (tmp_path / "lpips").mkdir()
    return tmp_path / "lpips"


@torch.no_grad()
def test_equal_images_have_no_distance_and_each_pair_has_its_own(cache: Path) -> None:
    net, images, others = load_lpips(CPU), blobs(3, 48), blobs(3, 48, seed=1)
    assert torch.equal(net(images, images), torch.zeros(3))
    distances = net(images, others)
    assert distances.shape == (3,) and (distances > 0).all()
    torch.testing.assert_close(distances[1:2], net(images[1:2], others[1:2]))
    torch.testing.assert_close(distances, net(others, images))
    assert (net(images, images.lerp(others, 0.2)) < distances).all()


@torch.no_grad()
def test_it_is_the_published_formula(cache: Path) -> None:
    tensors, heads = torch.load(cache / VGG16.file), torch.load(cache / LPIPS_HEADS.file)
    mean, spread = (torch.tensor(values).view(3, 1, 1) for values in ((-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)))
    a, b = blobs(2, 50), blobs(2, 50, seed=1)
    x, expected = (torch.cat([a, b]) * 2 - 1 - mean) / spread, torch.zeros(2)
    for index, block in enumerate(BLOCKS):
        x = F.max_pool2d(x, 2) if index else x
        for layer in block:
            weight, bias = tensors[f"features.{layer}.weight"], tensors[f"features.{layer}.bias"]
            x = F.conv2d(x, weight, bias, padding=1).clamp(min=0)
        unit = x / x.square().sum(1, keepdim=True).sqrt()
        weighted = (unit[:2] - unit[2:]).square() * heads[f"lin{index}.model.1.weight"].view(1, -1, 1, 1)
        expected += weighted.sum(1).mean((1, 2))
    torch.testing.assert_close(load_lpips(CPU)(a, b), expected, rtol=1e-4, atol=1e-6)


def test_it_leads_the_image_to_its_target_and_keeps_its_weights(cache: Path) -> None:
    net, target = load_lpips(CPU), blobs(1)
    image = blobs(1, seed=1).requires_grad_()
    before = net(image, target)
    before.sum().backward()
    assert not any(parameter.requires_grad for parameter in net.parameters()) and not net.training
    with torch.no_grad():
        assert net(image - 0.05 * image.grad / image.grad.abs().max(), target) < before
    flat = torch.zeros(1, 3, 32, 32, requires_grad=True)
    net(flat, target).sum().backward()
    assert flat.grad.isfinite().all()


def test_it_names_the_least_side(cache: Path) -> None:
    with pytest.raises(ValueError, match="12 x 40 px, expected sides of 16 px or more"):
        load_lpips(CPU)(torch.rand(1, 3, 12, 40), torch.rand(1, 3, 12, 40))


def test_its_files_are_those_of_torchvision_and_of_the_lpips_package() -> None:
    torchvision = pytest.importorskip("torchvision")
    with torch.device("meta"):
        theirs, ours = torchvision.models.vgg16().state_dict(), Vgg16().state_dict()
    assert {name: part.shape for name, part in ours.items()} == {
        name: part.shape for name, part in theirs.items() if not name.startswith("classifier.")
    }
    widths = (64, 128, 256, 512, 512)
    expected = {f"lin{index}.model.1.weight": (1, width, 1, 1) for index, width in enumerate(widths)}
    assert {name: tuple(part.shape) for name, part in Heads().state_dict().items()} == expected


def test_one_name_stands_for_both_files() -> None:
    assert chosen(["lpips-vgg"]) == [VGG16, LPIPS_HEADS] == list(LPIPS)


@pytest.mark.parametrize("here", [None, VGG16, LPIPS_HEADS])
def test_a_missing_file_is_no_score_and_one_line_for_training(here, published: Path, empty: Path) -> None:
    if here is not None:
        shutil.copyfile(published / "lpips" / here.file, empty / here.file)
    assert find_lpips(CPU) is None
    with pytest.raises(WeightsMissingError, match="run `adapt weights fetch lpips-vgg`") as caught:
        load_lpips(CPU)
    message = str(caught.value)
    assert "\n" not in message
    assert {weights for weights in LPIPS if weights.url in message} == set(LPIPS) - {here}


def without_a_head(tensors: dict[str, Tensor]) -> None:
    del tensors["lin3.model.1.weight"]


def with_another_head(tensors: dict[str, Tensor]) -> None:
    tensors["lin5.model.1.weight"] = torch.zeros(1, 512, 1, 1)


def with_the_widths_of_alexnet(tensors: dict[str, Tensor]) -> None:
    tensors["lin1.model.1.weight"] = torch.zeros(1, 192, 1, 1)


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (without_a_head, "missing lin3.model.1.weight"),
        (with_another_head, "unexpected lin5.model.1.weight"),
        (with_the_widths_of_alexnet, r"lin1.model.1.weight has shape \(1, 192, 1, 1\), expected \(1, 128, 1, 1\)"),
    ],
)
def test_another_layout_is_refused_wherever_it_is_met(
    change: Callable[[dict[str, Tensor]], None], fault: str, published: Path, empty: Path, tmp_path: Path
) -> None:
    shutil.copyfile(published / "lpips" / VGG16.file, empty / VGG16.file)
    tensors = torch.load(published / "lpips" / LPIPS_HEADS.file)
    change(tensors)
    torch.save(tensors, empty / LPIPS_HEADS.file)
    for load in (load_lpips, find_lpips):
        with pytest.raises(WeightsError, match=fault) as caught:
            load(CPU)
        assert "\n" not in str(caught.value)
    save_file(tensors, tmp_path / "vgg.safetensors")  # as safetensors no hash is known to refuse it by
    with pytest.raises(AdaptError, match=fault):
        import_weights(tmp_path / "vgg.safetensors", None, TABLE, lambda _: None)
    assert not (empty / "vgg.safetensors").exists()


def test_other_bytes_than_the_published_ones_are_found(cache: Path) -> None:
    said: list[str] = []
    assert verify_weights(LPIPS, said.append) == 1
    assert all(f"expected {weights.sha256}" in line for weights, line in zip(LPIPS, said, strict=True))


def test_safetensors_are_imported_and_read(published: Path, empty: Path, tmp_path: Path) -> None:
    shutil.copyfile(published / "lpips" / VGG16.file, empty / VGG16.file)
    save_file(torch.load(published / "lpips" / LPIPS_HEADS.file), tmp_path / "vgg.safetensors")
    import_weights(tmp_path / "vgg.safetensors", None, TABLE, lambda _: None)
    said: list[str] = []
    assert verify_weights([LPIPS_HEADS], said.append) == 0
    assert said == ["lpips-vgg-heads: unchanged; names and shapes fit"]
    assert find_lpips(CPU) is not None


def test_the_restorer_learns_from_it(cache: Path, tmp_path: Path) -> None:
    settings = Finetune(steps=1, batch=2, perceptual=0.4, perceptual_net="lpips")
    distance = distance_of(settings, load_removal(), CPU)
    nets = []
    for weight in (0.0, 0.4):
        asked = settings.model_copy(update={"perceptual": weight})
        path = tmp_path / f"{weight}.pt"
        done = finetune(small(), lessons(), asked, distance, make_accelerator(CPU, "no"), path, seed=1)
        assert done.losses[0].get("perceptual", 0.0) >= weight * 1e-3
        nets.append(done.module)
    first, second = (torch.cat([part.flatten() for part in net.parameters()]) for net in nets)
    assert not torch.equal(first, second)


def test_a_weight_of_nothing_needs_no_files(empty: Path) -> None:
    distance_of(Finetune(perceptual=0, perceptual_net="lpips"), load_removal(), CPU)
    with pytest.raises(WeightsMissingError):
        distance_of(Finetune(perceptual_net="lpips"), load_removal(), CPU)


def taught_with(*overrides: str) -> str:
    """The perceptual network that a job with these settings teaches with."""
    options = JobOptions(inputs=Path(__file__).parent, command="", overrides=overrides)
    return checked(options, Narrator())[0].finetune.perceptual_net


def test_a_job_says_what_is_missing_and_goes_on_with_its_own(empty: Path, capsys: pytest.CaptureFixture) -> None:
    asked = "finetune.perceptual_net=lpips"
    assert taught_with(asked) == "removal"
    (said,) = capsys.readouterr().out.splitlines()
    assert "degradation removal" in said and "adapt weights fetch lpips-vgg" in said
    assert taught_with(asked, "finetune.perceptual=0") == "lpips"
    assert capsys.readouterr().out == ""


def test_a_job_takes_the_files_and_refuses_damaged_ones(cache: Path, empty: Path, monkeypatch) -> None:
    asked = "finetune.perceptual_net=lpips"
    monkeypatch.setenv("ADAPT_CACHE", str(cache.parent))
    assert taught_with(asked) == "lpips"
    monkeypatch.setenv("ADAPT_CACHE", str(empty.parent))
    shutil.copyfile(cache / VGG16.file, empty / VGG16.file)
    (empty / LPIPS_HEADS.file).write_bytes(b"PK\x03\x04 cut off")
    with pytest.raises(UsageError, match=r"finetune\.perceptual_net lpips: .*vgg\.pth: damaged"):
        taught_with(asked)
