import json

import pytest
import torch
from torch import Tensor, nn

from restorers import export
from restorers.compact import Compact
from restorers.export import ExportError, export_onnx
from restorers.runtime import load_runtime
from tests.restorer_files import laid_down

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


class Half(nn.Module):
    """The smallest network with a size rule: one strided step down and one up."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Conv2d(3, 4, 2, stride=2)
        self.up = nn.ConvTranspose2d(4, 3, 2, stride=2)

    def forward(self, image: Tensor) -> Tensor:
        return self.up(self.down(image).relu()) + image


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    torch.manual_seed(0)
    module = Compact((4, 8, 8, 8)).train()
    path = tmp_path_factory.mktemp("export") / "new" / "restorer.onnx"
    parity = export_onnx(module, path, 8, 64, name="small", licence="Apache-2.0")
    return module, path, parity


def test_agrees_with_torch_at_several_sizes(exported):
    _, path, parity = exported
    assert parity.path == path
    assert parity.max_abs_difference <= 1e-4
    assert len(parity.shapes) >= 3
    assert any(count >= 2 for count, _, _ in parity.shapes)
    assert any(height != width for _, height, width in parity.shapes)


def test_runs_at_sizes_that_the_export_did_not_see(exported):
    module, path, _ = exported
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    image = torch.rand(5, 3, 72, 136, generator=torch.Generator().manual_seed(1))
    restored = torch.from_numpy(session.run(None, {"image": image.numpy()})[0])
    with torch.inference_mode():
        torch.testing.assert_close(restored, module(image), atol=1e-4, rtol=0)


def test_file_is_self_contained_and_carries_the_size_rules(exported):
    _, path, _ = exported
    assert [entry.name for entry in path.parent.iterdir()] == ["restorer.onnx"]
    facts = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).get_modelmeta()
    assert facts.custom_metadata_map == {
        "name": "small",
        "licence": "Apache-2.0",
        "commercial": "yes",
        "multiple_of": "8",
        "minimum": "64",
        "tiles": "yes",
        "aligned_faces": "no",
    }, json.dumps(facts.custom_metadata_map)


def test_stored_noise_is_an_input_that_need_not_be_given(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        restorer = laid_down("gfpgan-v1.4", tmp_path, patch)
    export_onnx(restorer.module, tmp_path / "x.onnx", restorer.spec.multiple_of, restorer.spec.minimum)
    session = onnxruntime.InferenceSession(str(tmp_path / "x.onnx"), providers=["CPUExecutionProvider"])
    assert [entry.name for entry in session.get_inputs()] == ["image"]
    stored = {name: noise for name, noise in restorer.module.named_buffers() if ".noises." in name}
    assert stored and {entry.name for entry in session.get_overridable_initializers()} == set(stored)
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    before = session.run(None, {"image": image.numpy()})[0]
    for noise in stored.values():
        noise.normal_(generator=torch.Generator().manual_seed(1))
    given = {name: noise.numpy() for name, noise in stored.items()}
    restored = torch.from_numpy(session.run(None, {"image": image.numpy(), **given})[0])
    with torch.inference_mode():
        torch.testing.assert_close(restored, restorer.module(image), atol=1e-4, rtol=0)
    assert (restored - torch.from_numpy(before)).abs().max() > 0.01
    assert torch.equal(load_runtime(tmp_path / "x.onnx")(image), torch.from_numpy(before).clamp(0, 1))


def test_leaves_the_module_as_it_was(exported):
    module, _, _ = exported
    assert module.training
    as_built = [parameter.requires_grad for parameter in Compact((4, 8, 8, 8)).parameters()]
    assert [parameter.requires_grad for parameter in module.parameters()] == as_built
    assert any(as_built)


def test_a_file_that_differs_is_not_written(tmp_path, monkeypatch):
    path = tmp_path / "restorer.onnx"
    path.write_bytes(b"the file of an earlier round")
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    with pytest.raises(ExportError, match="differs from torch"):
        export_onnx(Half(), path, 2, 8)
    assert path.read_bytes() == b"the file of an earlier round"
    assert [entry.name for entry in tmp_path.iterdir()] == ["restorer.onnx"]


def test_nan_weights_are_refused(tmp_path):
    module = Half()
    with torch.no_grad():
        module.up.weight[0, 0, 0, 0] = float("nan")
    with pytest.raises(ExportError, match="inf"):
        export_onnx(module, tmp_path / "restorer.onnx", 2, 8)
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_cannot_be_exported_is_named(tmp_path):
    class Stubborn(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return image * 2 if float(image.mean()) > 0.5 else image

    with pytest.raises(ExportError, match="Stubborn cannot be exported"):
        export_onnx(Stubborn(), tmp_path / "restorer.onnx", 2, 8)
    assert list(tmp_path.iterdir()) == []
