"""`adapt --prior diffbir-v2.1` from published files in the cache to a restorer, at tiny sizes in the full layouts."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from adapt.cli import main
from pseudo_targets.diffbir import cleaners, networks
from pseudo_targets.downloads import SWINIR_FACE
from tests.diffbir_files import TINY, base_state, control_state, put_files, put_vocabulary
from tests.end_to_end.runs import short_settings, write_blobs
from tests.test_stage1 import tiny_swinir

SIDE = 64
BASE, CONTROL = "sd2.1-base-zsnr-laionaes5.ckpt", "DiffBIR_v2.1.pt"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder; the loaders expect tiny networks in place of those of published size."""
    monkeypatch.setenv("ADAPT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(networks, "PUBLISHED", dataclasses.replace(TINY, resolution=SIDE))
    tiny = {**cleaners.NETWORKS, SWINIR_FACE: (tiny_swinir, 1, cleaners.MULTIPLE)}
    monkeypatch.setattr(cleaners, "NETWORKS", tiny)
    folder = tmp_path / "cache" / "diffbir"
    folder.mkdir(parents=True)
    return folder


def command(tmp_path: Path, *settings: str) -> list[str]:
    photos = write_blobs(tmp_path / "photos", 12)
    words = ["--inputs", str(photos), "--output", str(tmp_path / "run"), "--aligned", "--prior", "diffbir-v2.1"]
    words += ["--no-tracking", "--device", "cpu", *short_settings()]
    for setting in (f"windows.size={SIDE}", "windows.maximum=12", *settings):  # a window of each photo
        words += ["--set", setting]
    return words


def test_a_run_ends_with_a_restorer_and_a_report(tmp_path: Path, cache: Path) -> None:
    put_files(cache)
    weights = tmp_path / "cache" / "weights"
    weights.mkdir()
    torch.save({"state_dict": tiny_swinir().state_dict()}, weights / SWINIR_FACE.file)
    assert main(command(tmp_path, "generation.stage1=removal")) == 0
    for name in ("restorer.safetensors", "restorer.onnx", "report.html", "model_card.md", "manifest.jsonl"):
        assert (tmp_path / "run" / name).is_file()
    assert "DiffBIR" in (tmp_path / "run" / "model_card.md").read_text()
    targets = list((tmp_path / "run" / "rounds" / "1" / "targets").glob("*.safetensors"))
    assert len(targets) == 10  # of 12 faces two are held out
    assert len(list(cache.glob("*.converted.*.safetensors"))) == 2


def test_the_published_sampler_with_guidance_texts_and_offload(tmp_path: Path, cache: Path) -> None:
    put_files(cache)
    put_vocabulary(cache)
    settings = (
        "generation.sampler=diffbir",
        "generation.color_fix=wavelet",
        "generation.guidance_scale=0.1",
        "generation.guidance_space=rgb",
        "generation.prompt=sharp",
        "generation.diffbir.prompt_scale=2",
        "generation.diffbir.negative_prompt=blurry",
        "generation.compute.offload=true",
        "generation.tiles.decode=128",
    )
    assert main(command(tmp_path, *settings)) == 0
    assert (tmp_path / "run" / "restorer.onnx").is_file()
    rows = [json.loads(line) for line in (tmp_path / "run" / "manifest.jsonl").read_text().splitlines()]
    targets = [row for row in rows if row["kind"] == "target"]
    assert len(targets) == 10 and all(row["state"] == "accepted" for row in targets)


def test_a_captioner_that_is_not_here_is_one_line(tmp_path: Path, cache: Path, monkeypatch, capsys) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    put_files(cache)
    message = refusal(tmp_path, capsys, "generation.caption=nobody/none")
    assert "prompts need vocab.json and merges.txt" in message and "adapt weights fetch sd21-tokenizer" in message
    put_vocabulary(cache)
    assert main(command(tmp_path, "generation.caption=nobody/none")) == 1
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("adapt: ")]
    assert "caption 'nobody/none': cannot be loaded" in line


def test_settings_of_another_prior_are_refused(tmp_path: Path, cache: Path, capsys) -> None:
    put_files(cache)
    words = command(tmp_path, "generation.sampler=diffbir", "windows.size=128")
    words[words.index("diffbir-v2.1")] = "mini"
    assert main(words) == 2
    assert "sampler diffbir: prior 'mini' has none" in capsys.readouterr().err


class Payload:
    """Pickled, it would write a file when it is read freely."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.path), "w")


def test_code_in_a_file_is_refused_and_not_run(tmp_path: Path, cache: Path, capsys) -> None:
    put_files(cache)
    torch.save({"state_dict": {**base_state(), "extra": Payload(tmp_path / "ran")}}, cache / BASE)
    assert refusal(tmp_path, capsys).startswith(f"adapt: --prior: {cache / BASE}: holds code")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("name", [BASE, CONTROL])
@pytest.mark.parametrize("kept", [0, 100, 0.5, 0.999])
def test_a_file_that_was_cut_short_is_refused(name: str, kept: float, tmp_path: Path, cache: Path, capsys) -> None:
    put_files(cache)
    whole = (cache / name).read_bytes()
    (cache / name).write_bytes(whole[: int(kept * len(whole)) if kept < 1 else kept])
    assert str(cache / name) in refusal(tmp_path, capsys)


def test_a_stage_1_with_code_or_cut_short_is_refused(tmp_path: Path, cache: Path, capsys) -> None:
    put_files(cache)
    path = cache / SWINIR_FACE.file
    torch.save({"state_dict": {**tiny_swinir().state_dict(), "extra": Payload(tmp_path / "ran")}}, path)
    assert f"{path}: holds code" in refusal(tmp_path, capsys, "generation.stage1=removal")
    assert not (tmp_path / "ran").exists()
    torch.save({"state_dict": tiny_swinir().state_dict()}, path)
    path.write_bytes(path.read_bytes()[:-1000])
    assert str(path) in refusal(tmp_path, capsys, "generation.stage1=removal")


def test_files_of_other_networks_are_refused(tmp_path: Path, cache: Path, capsys) -> None:
    put_files(cache)
    torch.save(base_state(), cache / CONTROL)
    assert "IRControlNet: missing tensors" in refusal(tmp_path, capsys)
    torch.save({"state_dict": control_state()}, cache / BASE)
    assert f"{BASE}: unexpected tensors: input_blocks.0.0.bias" in refusal(tmp_path, capsys)
    torch.save({"step": 3}, cache / BASE)
    assert "no table of tensors" in refusal(tmp_path, capsys)


def test_missing_files_and_faces_of_another_size_are_refused(tmp_path: Path, cache: Path, capsys) -> None:
    message = refusal(tmp_path, capsys)
    assert f"`adapt weights import FILE` with {BASE} and {CONTROL}, or put it into {cache}" in message
    assert "run `adapt weights fetch sd21-zsnr diffbir-v2.1-control`" in message
    put_files(cache)
    assert f"prior 'diffbir-v2.1' works at {SIDE} px" in refusal(tmp_path, capsys, "windows.size=128")


def refusal(tmp_path: Path, capsys, *settings: str) -> str:
    """The one line with which the command ends before any work."""
    capsys.readouterr()
    assert main(command(tmp_path, *settings)) == 2
    assert not (tmp_path / "run").exists()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]
