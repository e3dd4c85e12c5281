"""What every restorer must do, whatever its network: each name of the zoo, and files of two layouts."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from adapt.dataset import ImageBank, Lessons
from adapt.finetune import finetune
from adapt.training import make_accelerator
from recipes.schema import Finetune
from restorers import published, zoo
from restorers.compact import Compact
from restorers.export import export_onnx
from restorers.parts import merged, pupil_of
from restorers.runtime import load_runtime
from restorers.spec import RestorerSpec
from restorers.zoo import LoadedRestorer, at_input_size, load_restorer, save_restorer
from tests.restorer_files import NETS, laid_down, nafnet
from tests.tiny import blobs

FILES = ("compact file", "published file")
CUT_FROM_THE_IMAGE = ("femasr",)
"""Networks that let no gradient through to their input."""
NO_FLOAT16 = ("swinir", "swinir-gan", "nafnet", "gfpgan-v1.4", "restoreformer", "codeformer", "x")
"""Networks that spandrel does not call safe in float16; `x` is the NAFNet of a local file."""
UNUSED = ("attn.0.norm2", "attn_1.norm2")
"""Weights that RestoreFormer's published layout holds and its network does not use."""
SAME_NETWORK = ("swinir-gan", "bsrnet", "realesrgan", "published file")
"""Their stand-ins are those of `swinir`, `bsrgan` and `nafnet` in other files; one export of each network is enough."""
CODES = ("restoreformer", "codeformer", "femasr")
"""Networks that choose from a code book: a rounding difference can choose another code."""


@pytest.fixture(scope="module", params=[*zoo.RESTORERS, *FILES])
def restorer(request, tmp_path_factory) -> Iterator[LoadedRestorer]:
    folder = tmp_path_factory.mktemp("weights")
    with pytest.MonkeyPatch.context() as patch:
        if request.param in NETS:
            yield laid_down(request.param, folder, patch)
        else:
            yield from_file(request.param, folder)


def from_file(kind: str, folder: Path) -> LoadedRestorer:
    torch.manual_seed(0)
    if kind == "compact file":
        spec = RestorerSpec("random", 1, 8, 64, "Apache-2.0", "test")
        save_restorer(LoadedRestorer(Compact((4, 8, 8, 8)), spec), folder / "x.safetensors")
        return load_restorer(folder / "x.safetensors")
    if kind == "published file":
        pytest.importorskip("spandrel", reason="spandrel is not installed")
        net = nafnet()
        for name, parameter in net.named_parameters():
            if name.endswith(("beta", "gamma")):  # zero at the start of training: the blocks would do nothing
                torch.nn.init.normal_(parameter, std=0.2)
        torch.save({"params": net.state_dict()}, folder / "x.pth")
        return load_restorer(folder / "x.pth")
    if kind == "compact" and not zoo.EMBEDDED_COMPACT.is_file():
        pytest.skip("the embedded weights are not in this checkout")
    return load_restorer(kind)


def pictures(restorer: LoadedRestorer, count: int, seed: int = 0) -> Tensor:
    """Smooth random colour fields with a little noise, at the smallest allowed size, not square."""
    spec = restorer.spec
    height = -(-max(spec.minimum, 32) // spec.multiple_of) * spec.multiple_of
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    size = (height, height + 2 * spec.multiple_of)
    smooth = torch.nn.functional.interpolate(coarse, size, mode="bicubic")
    return (smooth + 0.02 * torch.randn(smooth.shape, generator=generator)).clamp(0, 1)


def test_spec_is_complete(restorer):
    spec = restorer.spec
    assert spec.name
    assert spec.licence
    assert spec.source
    assert len(spec.sha256) == 64
    assert spec.scale in (1, 4)
    assert spec.multiple_of >= 1
    assert spec.minimum >= 1


def test_image_in_image_out(restorer):
    image = pictures(restorer, 1)
    before = image.clone()
    with torch.inference_mode():
        restored = restorer.module(image)
    assert restored.shape == (1, 3, *(side * restorer.spec.scale for side in image.shape[-2:]))
    assert restored.dtype == torch.float32
    assert bool(torch.isfinite(restored).all())
    assert restored.std() > 0
    assert not torch.equal(restored, image)
    assert torch.equal(image, before)


def test_deterministic(restorer):
    image = pictures(restorer, 1)
    with torch.inference_mode():
        assert torch.equal(restorer.module(image), restorer.module(image))


def test_a_batch_of_two_is_two_batches_of_one(restorer):
    image = pictures(restorer, 2)
    with torch.inference_mode():
        together = restorer.module(image)
        apart = torch.cat([restorer.module(image[:1]), restorer.module(image[1:])])
    torch.testing.assert_close(together, apart, atol=5e-5, rtol=1e-5)


def test_gradient_reaches_the_image_and_every_weight_that_trains(restorer):
    image = pictures(restorer, 1).requires_grad_()
    restorer.module.zero_grad()
    restorer.module(image).square().mean().backward()
    if restorer.spec.name not in CUT_FROM_THE_IMAGE:
        assert image.grad is not None
        assert float(image.grad.abs().sum()) > 0
    trained = {name: p for name, p in restorer.module.named_parameters() if p.requires_grad}
    if restorer.spec.trains:
        assert {name.split(".")[1] for name in trained} == set(restorer.spec.trains)
    else:
        assert len(trained) > len(list(restorer.module.parameters())) / 3
    for name, parameter in trained.items():
        if any(part in name for part in UNUSED):
            continue
        assert parameter.grad is not None, name
        assert bool(torch.isfinite(parameter.grad).all()), name
        assert float(parameter.grad.abs().sum()) > 0, name
    restorer.module.zero_grad()


def test_one_step_of_finetuning_moves_what_trains_and_nothing_else(restorer, tmp_path):
    kept = at_input_size(restorer)
    side = pictures(kept, 1).shape[-2]
    photos, clean, sure = blobs(2, side), blobs(2, side, seed=1), torch.ones(2, 1, side, side)
    bank = ImageBank(clean)
    lessons = Lessons(bank, bank, None, photos, clean, clean, sure)
    settings = Finetune(steps=1, batch=2, learning_rate=1e-3, warmup=0, ema_decay=0.5)
    before = {name: tensor.clone() for name, tensor in kept.module.named_parameters()}
    cpu = make_accelerator(torch.device("cpu"))
    trained = finetune(kept.module, lessons, settings, torch.nn.functional.l1_loss, cpu, tmp_path / "state", 0)
    for name, tensor in trained.module.named_parameters():
        assert torch.isfinite(tensor).all(), name
        if not tensor.requires_grad:
            assert torch.equal(tensor, before[name]), name
    moved = [not torch.equal(tensor, before[name]) for name, tensor in trained.module.named_parameters()]
    assert any(moved)


@pytest.mark.parametrize("parts", ["all", "decoder", "lora"])
def test_the_chosen_parts_train_and_the_rest_stays(restorer, parts):
    if parts == "decoder" and not restorer.spec.decoder:
        assert restorer.spec.name == "realesr-general-x4v3"  # one body, which is neither
        return
    pupil = pupil_of(restorer, parts, 2, torch.Generator().manual_seed(0))
    image = pictures(restorer, 1)
    with torch.no_grad():
        assert torch.equal(pupil(image), restorer.module(image))
    pupil(image).square().mean().backward()
    for parameter in pupil.parameters():
        if parameter.requires_grad and parameter.grad is not None:
            parameter.data -= 0.1 * parameter.grad / (parameter.grad.norm() + 1e-9)
    before, after = restorer.module.state_dict(), merged(pupil, restorer.module).state_dict()
    assert list(after) == list(before)
    moved = {name.removeprefix("net.") for name in before if not torch.equal(after[name], before[name])}
    assert moved
    if parts == "decoder":
        assert all(name.startswith(restorer.spec.decoder) for name in moved)
    if parts == "lora":
        assert all(name.endswith("weight") for name in moved)


def test_save_and_load_give_the_same_output(restorer, tmp_path):
    save_restorer(restorer, tmp_path / "saved.safetensors")
    again = load_restorer(tmp_path / "saved.safetensors", non_commercial=True)
    image = pictures(restorer, 1)
    with torch.inference_mode():
        assert torch.equal(again.module(image), restorer.module(image))
    assert (again.spec.name, again.spec.licence, again.spec.commercial) == (
        restorer.spec.name,
        restorer.spec.licence,
        restorer.spec.commercial,
    )
    assert (again.spec.scale, again.spec.multiple_of, again.spec.minimum) == (
        restorer.spec.scale,
        restorer.spec.multiple_of,
        restorer.spec.minimum,
    )


def test_spandrel_reads_the_saved_file_and_gives_the_same_output(restorer, tmp_path):
    spandrel = pytest.importorskip("spandrel", reason="spandrel is not installed")
    save_restorer(restorer, tmp_path / "saved.safetensors")
    if restorer.spec.name in ("codeformer", "femasr"):
        pytest.importorskip("spandrel_extra_arches").install(ignore_duplicates=True)
    model = spandrel.ModelLoader("cpu").load_from_file(tmp_path / "saved.safetensors")
    if model.architecture.id in published.FIXED_SIDE:  # spandrel leaves range and size to its caller
        saved, ours = model.model.state_dict(), restorer.module.net.state_dict()
        assert all(torch.equal(saved[name], ours[name]) for name in ours)
        return
    image = pictures(restorer, 1)
    with torch.inference_mode():
        expected = restorer.module(image).clamp(0, 1)
    torch.testing.assert_close(model(image), expected, atol=1e-5, rtol=0)


def test_bfloat16_stays_finite_and_close(restorer):
    image = pictures(restorer, 1)
    with torch.inference_mode():
        exact = restorer.module(image)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = restorer.module(image)
    assert bool(torch.isfinite(rounded).all())
    if restorer.spec.name not in CODES:
        assert float((rounded.float() - exact).abs().mean()) < 0.03 * float(exact.std())


def test_float16_is_allowed_only_where_its_range_is_kept(restorer):
    """Computing in it takes minutes on a CPU; what it cannot hold are numbers beyond its range."""
    if not restorer.spec.half:
        assert restorer.spec.name in NO_FLOAT16
        return
    largest = []
    hooks = [
        layer.register_forward_hook(lambda _, __, out: largest.append(float(out.abs().max())))
        for layer in restorer.module.modules()
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear)
    ]
    with torch.inference_mode():
        restorer.module(pictures(restorer, 1))
    for hook in hooks:
        hook.remove()
    assert 0 < max(largest) < torch.finfo(torch.float16).max


@pytest.mark.parametrize(
    "restorer", [name for name in (*zoo.RESTORERS, *FILES) if name not in SAME_NETWORK], indirect=True
)
def test_export_agrees_and_serves_what_torch_serves(restorer, tmp_path):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    spec = restorer.spec
    path = tmp_path / "restorer.onnx"
    kept = at_input_size(restorer)  # served networks keep the size
    parity = export_onnx(kept.module, path, spec.multiple_of, spec.minimum, name=spec.name, tiles=restorer.tiles)
    assert parity.max_abs_difference <= 1e-4
    save_restorer(kept, tmp_path / "saved.safetensors")
    image = pictures(restorer, 2)[..., :-3, :-5]
    torch_runtime = load_runtime(tmp_path / "saved.safetensors", non_commercial=True)
    torch.testing.assert_close(load_runtime(path)(image), torch_runtime(image), atol=1e-4, rtol=0)
