import dataclasses
import subprocess
import sys

import pytest
import torch
from safetensors.torch import save_file

from restorers import zoo
from restorers.compact import Compact, ResidualBlock, compact_from_state
from restorers.downloads import PUBLISHED, SWINIR_GAN
from restorers.files import sha256_of
from restorers.spec import RestorerSpec
from restorers.zoo import LoadedRestorer, ZooError, _known_of, is_non_commercial, load_restorer, save_restorer

IMAGE = torch.rand(1, 3, 64, 72, generator=torch.Generator().manual_seed(0))


def small_compact() -> Compact:
    torch.manual_seed(0)
    return Compact((4, 8, 8, 8)).eval()


def saved(path, **changes):
    facts = {"name": "night", "scale": 1, "multiple_of": 8, "minimum": 64, "licence": "Apache-2.0", "source": "test"}
    restorer = LoadedRestorer(small_compact(), RestorerSpec(**{**facts, **changes}))
    save_restorer(restorer, path)
    return restorer


def test_the_embedded_restorer_loads_by_name():
    if not zoo.EMBEDDED_COMPACT.is_file():
        pytest.skip("the embedded weights are not in this checkout")
    loaded = load_restorer("compact")
    assert loaded.spec.name == "compact"
    assert loaded.spec.commercial
    assert len(loaded.spec.sha256) == 64
    assert not loaded.module.training


def test_missing_embedded_weights_say_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(zoo, "EMBEDDED_COMPACT", tmp_path / "compact.safetensors")
    with pytest.raises(ZooError, match="reinstall"):
        load_restorer("compact")


@pytest.mark.parametrize("name", ["compct", "Compact", "compact2"])
def test_an_unknown_name_gets_a_suggestion(name):
    with pytest.raises(ZooError, match="did you mean 'compact'"):
        load_restorer(name)


def test_a_name_like_nothing_lists_the_known_ones():
    with pytest.raises(ZooError, match="Known names: compact") as caught:
        load_restorer("zzz")
    assert "did you mean" not in str(caught.value)


@pytest.mark.parametrize("name", ["absent.safetensors", "folder/absent"])
def test_a_missing_file_is_not_taken_for_a_name(name):
    with pytest.raises(ZooError, match="no such file"):
        load_restorer(name)


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(ZooError, match="is a folder"):
        load_restorer(tmp_path)


def test_save_and_load_keep_output_name_licence_and_source(tmp_path):
    original = saved(tmp_path / "x.safetensors")
    loaded = load_restorer(tmp_path / "x.safetensors")
    assert isinstance(loaded.module, Compact)
    assert (loaded.spec.name, loaded.spec.licence, loaded.spec.source) == ("night", "Apache-2.0", "test")
    assert loaded.spec.commercial
    with torch.inference_mode():
        assert torch.equal(loaded.module(IMAGE), original.module(IMAGE))
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.safetensors"]


def test_half_precision_files_run_in_float32(tmp_path):
    halves = {name: tensor.half() for name, tensor in small_compact().state_dict().items()}
    save_file(halves, tmp_path / "h.safetensors")
    module = load_restorer(tmp_path / "h.safetensors").module
    assert {parameter.dtype for parameter in module.parameters()} == {torch.float32}


@pytest.mark.parametrize("wrapper", [None, "params_ema", "state_dict"])
def test_torch_files_are_read_as_plain_tensors(tmp_path, wrapper):
    state = small_compact().state_dict()
    torch.save({wrapper: state} if wrapper else state, tmp_path / "x.pth")
    loaded = load_restorer(tmp_path / "x.pth")
    assert loaded.spec.name == "x"
    assert "unknown" in loaded.spec.licence
    with torch.inference_mode():
        assert torch.equal(loaded.module(IMAGE), small_compact()(IMAGE))


def test_a_pickle_that_runs_code_is_refused(tmp_path):
    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"params": Payload()}, tmp_path / "evil.pth")
    with pytest.raises(ZooError, match=r"evil\.pth: holds code .* only plain tensors are read$"):
        load_restorer(tmp_path / "evil.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"PK\x03\x04 cut off", b"half a file"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_damaged_files_are_refused(tmp_path, content, suffix):
    path = tmp_path / f"bad{suffix}"
    path.write_bytes(content)
    with pytest.raises(ZooError, match="bad"):
        load_restorer(path)


def test_a_table_without_tensors_is_refused(tmp_path):
    torch.save({"epoch": 3}, tmp_path / "x.pth")
    with pytest.raises(ZooError, match="no table of tensors"):
        load_restorer(tmp_path / "x.pth")


def test_onnx_files_are_pointed_to_the_runtime(tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"")
    with pytest.raises(ZooError, match="runtime"):
        load_restorer(tmp_path / "x.onnx")


def test_an_unknown_layout_is_refused(tmp_path):
    pytest.importorskip("spandrel")
    save_file({"layer.weight": torch.zeros(3)}, tmp_path / "x.safetensors")
    with pytest.raises(ZooError, match="no restorer that spandrel knows"):
        load_restorer(tmp_path / "x.safetensors")


def test_a_compact_file_with_tensors_missing_is_refused(tmp_path):
    pytest.importorskip("spandrel")
    state = small_compact().state_dict()
    del state["m_body.0.res.2.weight"]
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(ZooError, match=r"x\.safetensors"):
        load_restorer(tmp_path / "x.safetensors")


@pytest.mark.parametrize(
    ("licence", "expected"),
    [("CC-BY-NC-4.0", True), ("S-Lab-1.0", True), ("Non-commercial use", True), ("Apache-2.0", False), ("MIT", False)],
)
def test_non_commercial_licences_are_recognised(licence, expected):
    assert is_non_commercial(licence) is expected


def test_a_non_commercial_base_stays_flagged_after_saving(tmp_path):
    saved(tmp_path / "a.safetensors", licence="CC-BY-NC-SA-4.0")
    saved(tmp_path / "b.safetensors", licence="ask the author", commercial=False)
    for name in ("a", "b"):
        path = tmp_path / f"{name}.safetensors"
        assert not load_restorer(path, non_commercial=True).spec.commercial
        with pytest.raises(ZooError, match=r"safetensors: its licence \(.*forbids commercial use.*--non-commercial"):
            load_restorer(path)


def test_a_published_file_is_known_by_its_name_or_its_hash(tmp_path, monkeypatch):
    state = small_compact().state_dict()
    torch.save(state, tmp_path / SWINIR_GAN.file)
    torch.save(state, tmp_path / "renamed.pth")
    torch.save(state, tmp_path / "other.pth")
    hashed = dataclasses.replace(SWINIR_GAN, file="elsewhere.pth", sha256=sha256_of(tmp_path / "renamed.pth"))
    monkeypatch.setattr("restorers.downloads.PUBLISHED", (*PUBLISHED, hashed))
    monkeypatch.setenv("ADAPT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "cache" / "weights").mkdir(parents=True)
    torch.save({**state, "more": torch.zeros(1)}, tmp_path / "pinned.pth")  # no hash is published, but it was fetched
    record = tmp_path / "cache" / "weights" / f"{SWINIR_GAN.file}.sha256"
    record.write_text(sha256_of(tmp_path / "pinned.pth") + "\n")
    assert _known_of(tmp_path / "pinned.pth", sha256_of(tmp_path / "pinned.pth"))["commercial"] == "no"
    assert _known_of(tmp_path / "face_swinir_v1.ckpt", "")["licence"] == "S-Lab-1.0"
    for name in (SWINIR_GAN.file, "renamed.pth"):
        with pytest.raises(ZooError, match="forbids commercial use"):
            load_restorer(tmp_path / name)
        assert load_restorer(tmp_path / name, non_commercial=True).spec.licence == SWINIR_GAN.licence


def test_compact_files_need_no_spandrel(tmp_path):
    saved(tmp_path / "x.safetensors")
    program = (
        "import sys; from restorers.zoo import load_restorer\n"
        f"load_restorer({str(tmp_path / 'x.safetensors')!r})\n"
        "sys.exit('spandrel' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], timeout=240, check=False).returncode == 0


@pytest.mark.parametrize("name", ["m_head.weight", "m_up1.0.weight", "m_up2.0.weight", "m_up3.0.weight"])
def test_a_compact_state_without_a_tensor_is_a_value_error(name):
    state = small_compact().state_dict()
    del state[name]
    with pytest.raises(ValueError, match=f"tensor {name} is missing"):
        compact_from_state(state)


def test_blocks_that_are_left_out_come_back_as_left_out(tmp_path):
    saved(tmp_path / "x.safetensors")
    original, read = small_compact(), load_restorer(tmp_path / "x.safetensors").module
    for module in (original, read):
        present = [block.present for name, block in module.named_modules() if isinstance(block, ResidualBlock)]
        assert present == [False] * 4 + [True, False] + [True, True] + [True, False] * 2 + [False] * 2
    torch.testing.assert_close(read(IMAGE), original(IMAGE))


def test_blocks_that_are_left_out_learn_nothing():
    module = small_compact()
    module(IMAGE).sum().backward()
    assert all(p.grad is None and not p.any() for p in module.m_down1[0].parameters())
    assert all(p.grad is not None for p in module.m_body.parameters())


def test_full_depth_at_every_level():
    module = Compact((4, 8, 8, 8), (2,) * 7).eval()
    again = compact_from_state(module.state_dict())
    assert all(block.present for block in again.modules() if isinstance(block, ResidualBlock))
    assert torch.equal(again(IMAGE), module(IMAGE))
