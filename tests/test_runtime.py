import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from restorers.compact import Compact
from restorers.export import export_onnx
from restorers.runtime import RuntimeFailure, RuntimeRestorer, load_runtime, pad
from restorers.spec import RestorerSpec
from restorers.zoo import LoadedRestorer, save_restorer


def picture(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def restorer(forward, **changes) -> RuntimeRestorer:
    facts = {"name": "fake", "multiple_of": 8, "minimum": 64, **changes}
    return RuntimeRestorer(forward, **facts)


def darker(image: Tensor) -> Tensor:
    return image / 2


def small_compact() -> Compact:
    torch.manual_seed(0)
    return Compact((4, 8, 8, 8)).eval()


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    module = small_compact()
    spec = RestorerSpec("night", 1, 8, 64, "Apache-2.0", "test")
    save_restorer(LoadedRestorer(module, spec), folder / "restorer.safetensors")
    return folder


@pytest.fixture(scope="module")
def run_folder_with_onnx(run_folder):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    export_onnx(small_compact(), run_folder / "restorer.onnx", 8, 64, name="night")
    return run_folder


@pytest.mark.parametrize("shape", [(1, 3, 64, 64), (2, 3, 65, 127), (3, 3, 1, 1), (1, 3, 5, 300), (1, 3, 31, 32)])
def test_any_size_comes_back_at_its_own_size(shape):
    seen = []

    def forward(image: Tensor) -> Tensor:
        seen.append(tuple(image.shape[-2:]))
        return image / 2

    image = picture(*shape)
    torch.testing.assert_close(restorer(forward)(image), image / 2)
    assert all(side % 8 == 0 and side >= 64 for size in seen for side in size)


def test_padding_reflects_where_it_can_and_repeats_where_it_cannot():
    image = picture(1, 3, 60, 3)
    padded = pad(image, 8, 8)
    assert padded.shape == (1, 3, 64, 8)
    torch.testing.assert_close(padded[..., 60:, :3], image[..., 55:59, :].flip(-2))
    torch.testing.assert_close(padded[..., :60, 3:5], image[..., :2].flip(-1))
    torch.testing.assert_close(padded[..., 5:], padded[..., 4:5].expand(-1, -1, -1, 3))


def test_padding_leaves_allowed_sizes_alone():
    image = picture(1, 3, 64, 72)
    assert pad(image, 8, 64) is image


@pytest.mark.parametrize("size", [(200, 296), (96, 400), (203, 131)])
def test_tiles_give_what_the_whole_image_gives(size):
    kernel = torch.full((3, 1, 9, 9), 1 / 81)

    def blur(image: Tensor) -> Tensor:  # sees 4 px around: inside the quarter of the overlap that is thrown away
        return F.conv2d(image, kernel, padding=4, groups=3)

    image = picture(2, 3, *size)
    whole = restorer(blur, max_pixels=1 << 20)(image)
    tiled = restorer(blur, max_pixels=96 * 96, overlap=32)(image)
    torch.testing.assert_close(tiled, whole)


def test_tiles_stay_within_the_pixel_budget_and_cover_everything():
    seen = []

    def forward(image: Tensor) -> Tensor:
        seen.append(tuple(image.shape))
        return image

    image = picture(1, 3, 333, 257)
    torch.testing.assert_close(restorer(forward, max_pixels=128 * 128, overlap=32)(image), image)
    assert len(seen) > 4
    assert all(count * height * width <= 128 * 128 for count, _, height, width in seen)


def test_a_network_that_must_see_all_is_not_tiled():
    seen = []

    def forward(image: Tensor) -> Tensor:
        seen.append(tuple(image.shape))
        return image

    restorer(forward, max_pixels=64 * 64, tiles=False)(picture(1, 3, 256, 256))
    assert seen == [(1, 3, 256, 256)]


def test_large_batches_are_cut():
    counts = []

    def forward(image: Tensor) -> Tensor:
        counts.append(image.shape[0])
        return image / 2

    image = picture(7, 3, 64, 64)
    torch.testing.assert_close(restorer(forward, max_pixels=3 * 64 * 64)(image), image / 2)
    assert counts == [3, 3, 1]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_an_output_that_is_not_finite_is_an_error_and_never_an_image(value):
    def broken(image: Tensor) -> Tensor:
        restored = image.clone()
        restored[..., 3, 3] = value
        return restored

    with pytest.raises(RuntimeFailure, match="not finite"):
        restorer(broken)(picture(1, 3, 64, 64))


def test_an_output_of_another_size_is_an_error():
    with pytest.raises(RuntimeFailure, match="expected the same size"):
        restorer(lambda image: image[..., ::2, ::2])(picture(1, 3, 64, 64))


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 1, 64, 64), (0, 3, 64, 64), (1, 3, 0, 64)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(RuntimeFailure, match="expected \\[B, 3, H, W\\]"):
        restorer(darker)(torch.zeros(shape))


def test_bytes_and_nan_are_refused():
    with pytest.raises(RuntimeFailure, match="uint8"):
        restorer(darker)(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    with pytest.raises(RuntimeFailure, match="not finite"):
        restorer(darker)(torch.full((1, 3, 64, 64), float("nan")))


def test_the_result_is_clamped_keeps_dtype_and_leaves_the_input_alone():
    image = picture(1, 3, 64, 64).double()
    before = image.clone()
    restored = restorer(lambda x: x * 4 - 1)(image)
    assert restored.dtype == torch.float64
    assert float(restored.min()) == 0.0
    assert float(restored.max()) == 1.0
    assert torch.equal(image, before)


def test_the_result_can_be_used_in_training():
    weight = torch.ones((), requires_grad=True)
    (restorer(darker)(picture(1, 3, 64, 64)) * weight).sum().backward()
    assert weight.grad is not None


def test_weights_give_what_the_module_gives(run_folder):
    serve = load_runtime(run_folder / "restorer.safetensors")
    assert (serve.name, serve.multiple_of, serve.minimum, serve.backend) == ("night", 8, 64, "torch")
    image = picture(2, 3, 64, 96)
    with torch.inference_mode():
        expected = small_compact()(image).clamp(0, 1)
    torch.testing.assert_close(serve(image), expected)


def test_onnx_gives_what_the_weights_give(run_folder_with_onnx):
    serve = load_runtime(run_folder_with_onnx)
    assert (serve.name, serve.multiple_of, serve.minimum, serve.backend) == ("night", 8, 64, "onnxruntime")
    weights = load_runtime(run_folder_with_onnx / "restorer.safetensors")
    for shape in ((1, 3, 64, 64), (3, 3, 70, 131), (1, 3, 9, 1)):
        image = picture(*shape)
        torch.testing.assert_close(serve(image), weights(image), atol=1e-5, rtol=0)


def test_a_name_of_the_zoo_is_looked_up():
    with pytest.raises(RuntimeFailure, match="did you mean 'compact'"):
        load_runtime(Path("compcat"))


def test_a_folder_without_a_restorer_is_named(tmp_path):
    with pytest.raises(RuntimeFailure, match=r"neither restorer\.onnx nor restorer\.safetensors"):
        load_runtime(tmp_path)


@pytest.mark.parametrize("name", ["x.onnx", "x.safetensors", "x.pth"])
def test_missing_and_damaged_files_are_refused(tmp_path, name):
    if name.endswith(".onnx"):
        pytest.importorskip("onnxruntime")
    with pytest.raises(RuntimeFailure, match="no such file"):
        load_runtime(tmp_path / name)
    (tmp_path / name).write_bytes(b"not a network at all")
    with pytest.raises(RuntimeFailure, match=name):
        load_runtime(tmp_path / name)


def test_an_onnx_file_of_another_origin_is_refused(tmp_path, run_folder_with_onnx):
    onnx = pytest.importorskip("onnx")
    model = onnx.load(str(run_folder_with_onnx / "restorer.onnx"))
    del model.metadata_props[:]
    onnx.save(model, str(tmp_path / "other.onnx"))
    with pytest.raises(RuntimeFailure, match="lacks the size rules"):
        load_runtime(tmp_path / "other.onnx")


def test_serving_imports_nothing_heavy(run_folder_with_onnx):
    program = (
        "import sys, torch; from pathlib import Path; from restorers.runtime import load_runtime\n"
        f"load_runtime(Path({str(run_folder_with_onnx)!r}))(torch.rand(1, 3, 64, 64))\n"
        f"load_runtime(Path({str(run_folder_with_onnx / 'restorer.safetensors')!r}))(torch.rand(1, 3, 64, 64))\n"
        "heavy = {'diffusers', 'ray', 'mlflow', 'spandrel', 'torchvision', 'onnx', 'onnxscript'} & sys.modules.keys()\n"
        "sys.exit(' '.join(sorted(heavy)) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr


def test_an_onnx_file_keeps_what_its_licence_forbids(tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    export_onnx(small_compact(), tmp_path / "restorer.onnx", 8, 64, name="night", licence="S-Lab-1.0")
    for place in (tmp_path, tmp_path / "restorer.onnx"):
        with pytest.raises(RuntimeFailure, match=r"S-Lab-1\.0.*--non-commercial"):
            load_runtime(place)
        assert load_runtime(place, non_commercial=True).backend == "onnxruntime"


def test_an_onnx_file_keeps_that_its_licence_is_unknown_but_forbids(tmp_path):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    export_onnx(small_compact(), tmp_path / "x.onnx", 8, 64, licence="unknown (local FeMaSR file)", commercial=False)
    with pytest.raises(RuntimeFailure, match="--non-commercial"):
        load_runtime(tmp_path / "x.onnx")


def test_what_torch_refuses_is_a_failure_of_the_runtime(run_folder, monkeypatch):
    def fail(self, image):
        raise RuntimeError("not enough memory: you tried to allocate 9 bytes\nmore")

    served = load_runtime(run_folder / "restorer.safetensors")
    monkeypatch.setattr(Compact, "forward", fail)
    with pytest.raises(RuntimeFailure, match=r"night failed on \(1, 3, 64, 64\): not enough memory: .* 9 bytes$"):
        served(picture(1, 3, 64, 64))


def test_a_network_of_one_size_gets_few_small_images_at_once():
    seen = []

    def forward(image: Tensor) -> Tensor:
        seen.append(len(image))
        return image

    restorer(forward, tiles=False, max_pixels=1 << 20, least_pixels=512 * 512)(picture(6, 3, 64, 64))
    assert seen == [4, 2]
