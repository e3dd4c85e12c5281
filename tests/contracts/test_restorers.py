"""What every restorer must do, whatever its network: each name of the zoo, and files of two layouts."""

import pytest
import torch
from torch import Tensor

from restorers import zoo
from restorers.compact import Compact
from restorers.export import export_onnx
from restorers.runtime import load_runtime
from restorers.spec import RestorerSpec
from restorers.zoo import LoadedRestorer, load_restorer, save_restorer

FILES = ("compact file", "published file")


@pytest.fixture(scope="module", params=[*zoo.RESTORERS, *FILES])
def restorer(request, tmp_path_factory) -> LoadedRestorer:
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    if request.param == "compact file":
        spec = RestorerSpec("random", 1, 8, 64, "Apache-2.0", "test")
        save_restorer(LoadedRestorer(Compact((4, 8, 8, 8)), spec), folder / "x.safetensors")
        return load_restorer(folder / "x.safetensors")
    if request.param == "published file":
        nafnet = pytest.importorskip("spandrel.architectures.NAFNet", reason="spandrel is not installed").NAFNet
        net = nafnet(img_channel=3, width=4, middle_blk_num=1, enc_blk_nums=[1, 1], dec_blk_nums=[1, 1])
        for name, parameter in net.named_parameters():
            if name.endswith(("beta", "gamma")):  # zero at the start of training: the blocks would do nothing
                torch.nn.init.normal_(parameter, std=0.2)
        torch.save({"params": net.state_dict()}, folder / "x.pth")
        return load_restorer(folder / "x.pth")
    if request.param == "compact" and not zoo.EMBEDDED_COMPACT.is_file():
        pytest.skip("the embedded weights are not in this checkout")
    return load_restorer(request.param)


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
    assert spec.scale == 1
    assert spec.multiple_of >= 1
    assert spec.minimum >= 1


def test_image_in_image_out(restorer):
    image = pictures(restorer, 1)
    before = image.clone()
    with torch.inference_mode():
        restored = restorer.module(image)
    assert restored.shape == image.shape
    assert restored.dtype == torch.float32
    assert bool(torch.isfinite(restored).all())
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
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-5)


def test_gradient_reaches_the_image_and_every_weight_that_trains(restorer):
    image = pictures(restorer, 1).requires_grad_()
    restorer.module.zero_grad()
    restorer.module(image).square().mean().backward()
    assert image.grad is not None
    assert float(image.grad.abs().sum()) > 0
    trained = {name: p for name, p in restorer.module.named_parameters() if p.requires_grad}
    assert len(trained) > len(list(restorer.module.parameters())) / 3
    for name, parameter in trained.items():
        assert parameter.grad is not None, name
        assert bool(torch.isfinite(parameter.grad).all()), name
        assert float(parameter.grad.abs().sum()) > 0, name
    restorer.module.zero_grad()


def test_save_and_load_give_the_same_output(restorer, tmp_path):
    save_restorer(restorer, tmp_path / "saved.safetensors")
    again = load_restorer(tmp_path / "saved.safetensors")
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
    model = spandrel.ModelLoader("cpu").load_from_file(tmp_path / "saved.safetensors")
    image = pictures(restorer, 1)
    with torch.inference_mode():
        expected = restorer.module(image).clamp(0, 1)
    torch.testing.assert_close(model(image), expected, atol=1e-5, rtol=0)


def test_export_agrees_and_serves_what_torch_serves(restorer, tmp_path):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    spec = restorer.spec
    path = tmp_path / "restorer.onnx"
    parity = export_onnx(restorer.module, path, spec.multiple_of, spec.minimum, name=spec.name, tiles=restorer.tiles)
    assert parity.max_abs_difference <= 1e-4
    save_restorer(restorer, tmp_path / "saved.safetensors")
    image = pictures(restorer, 2)[..., :-3, :-5]
    torch.testing.assert_close(
        load_runtime(path)(image), load_runtime(tmp_path / "saved.safetensors")(image), atol=1e-4, rtol=0
    )
