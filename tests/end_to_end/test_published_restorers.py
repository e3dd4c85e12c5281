"""`adapt --inputs DIR --restorer FILE` with files of several architectures, as a download leaves them."""

from pathlib import Path

import pytest
import torch
from torch import nn

from adapt.cli import main
from adapt.photos import read_photo, write_photo
from restorers import rewrites
from restorers.runtime import load_runtime
from restorers.zoo import load_file, read_state
from tests import restorer_files
from tests.end_to_end.runs import SHARED, write_blobs

pytest.importorskip("spandrel", reason="spandrel is not installed")

RECIPE = """\
rounds: 1
generation: {candidates: 1, calls: 1}
camera: {steps: 4, bank: 16}
gate: {low_band: 9, spread: 9, quality: -99}  # blobs are no faces, nor is what a random network makes of one
finetune: {steps: 2, batch: 2, camera_share: 0.5, parts: PARTS}
judge: {enabled: false}
"""
FILES = {
    "general_swinir_v1.ckpt": (restorer_files.swinir, "state_dict", "lora"),
    "RealESRGAN_x4plus.pth": (restorer_files.rrdb, "params_ema", "decoder"),
    "NAFNet-SIDD-width64.pth": (restorer_files.nafnet, "params", "default"),
}
"""File -> its network, the key it keeps the tensors under, and what trains here."""


WEBCAM = SHARED / "cameras" / "webcam" / "adapt"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parts of a few photos of a webcam where they are at hand, else blobs; small, as these networks are slow."""
    folder = tmp_path_factory.mktemp("photos")
    if not WEBCAM.is_dir():
        return write_blobs(folder, 8)
    for photo in sorted(WEBCAM.iterdir())[:8]:
        write_photo(folder / photo.with_suffix(".png").name, read_photo(photo)[..., 64:192, 64:192])
    return folder


def download(folder: Path, name: str) -> Path:
    """Lays down a small random network under the published file's name, wrapper and tensor names."""
    torch.manual_seed(0)
    build, wrapper, _ = FILES[name]
    state = restorer_files.published_state(build())
    torch.save({wrapper: state}, folder / name)
    return folder / name


def adapt(photos: Path, restorer: Path, folder: Path) -> int:
    (folder / "tiny.yaml").write_text(RECIPE.replace("PARTS", FILES[restorer.name][2]))
    command = ["--inputs", str(photos), "--aligned", "--no-tracking", "--recipe", str(folder / "tiny.yaml")]
    return main([*command, "--restorer", str(restorer), "--clean", str(photos), "--output", str(folder / "run")])


@pytest.mark.parametrize("name", FILES)
def test_a_downloaded_file_is_adapted_saved_exported_and_serves(name: str, photos: Path, tmp_path: Path) -> None:
    weights = download(tmp_path, name)
    assert adapt(photos, weights, tmp_path) == 0
    run = tmp_path / "run"
    before, after = read_state(weights)[0], read_state(run / "restorer.safetensors")[0]
    assert after.keys() == before.keys()  # the published names, which other programs read
    assert any(not torch.equal(after[key], before[key]) for key in before)
    assert (run / "rounds/1/camera.safetensors").is_file()
    adapted = load_file(run / "restorer.safetensors")
    assert (adapted.spec.name, adapted.spec.scale) == (weights.stem, 1)
    photo = read_photo(next((run / "windows").iterdir()))
    served = load_runtime(run / "restorer.onnx")(photo)
    assert served.shape == photo.shape
    torch.testing.assert_close(served, load_runtime(run / "restorer.safetensors")(photo), atol=1e-4, rtol=0)


class Undecided(nn.Module):
    """Takes the place of a block in an export and cannot be exported: what it does depends on what it sees."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, tokens: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        result: torch.Tensor = self.block(tokens, size) if tokens.sum() > 0 else tokens
        return result


def test_a_network_that_cannot_be_exported_ends_well_without_the_file_and_says_so(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for kind in rewrites.REWRITES:
        monkeypatch.setitem(rewrites.REWRITES, kind, Undecided)
    assert adapt(photos, download(tmp_path, "general_swinir_v1.ckpt"), tmp_path) == 0
    run, said = tmp_path / "run", " ".join(capsys.readouterr().out.split())
    assert "no restorer.onnx" in said
    assert "(and .onnx)" not in said
    assert not (run / "restorer.onnx").exists()
    assert "restorer.onnx" not in (run / "report.html").read_text()
    assert "restorer.onnx" not in (run / "model_card.md").read_text()
    assert load_runtime(run)(read_photo(next((run / "windows").iterdir()))).isfinite().all()
