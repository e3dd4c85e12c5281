"""The recipes of the FFHQ-512 prior as a command, with a tiny network of its kind in its place."""

import json
from functools import partial
from pathlib import Path

import pytest

from adapt.cli import main
from adapt.targets import read_target
from pseudo_targets import zoo
from pseudo_targets.downloads import FFHQ512
from restorers.zoo import ZooError, load_restorer
from tests.end_to_end.runs import short_settings, write_blobs
from tests.tiny import tiny_pixel_prior


@pytest.mark.parametrize(
    ("recipe", "camera", "draws"), [("dt_bfr", False, 1), ("dt_bfr_few", True, 4)], ids=["released", "few"]
)
def test_the_command_adapts_with_the_pixel_prior(
    recipe: str, camera: bool, draws: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(zoo.PRIORS, "ffhq512", partial(tiny_pixel_prior, 64, FFHQ512.licence))
    monkeypatch.setenv("ADAPT_CACHE", str(tmp_path / "cache"))
    run = tmp_path / "run"
    command = ["--inputs", str(write_blobs(tmp_path / "photos")), "--aligned", "--output", str(run)]
    command += ["--recipe", recipe, "--prior", "ffhq512", *short_settings(), "--set", "windows.size=64"]
    command += ["--set", "generation.calls=2", "--set", f"generation.candidates={draws}"]
    command += ["--set", "finetune.discriminator=patch", "--set", "judge.enabled=false"]
    assert main(command) == 0
    targets = [read_target(path) for path in sorted(run.glob("rounds/1/targets/*.safetensors"))]
    assert targets and (run / "rounds/1/camera.safetensors").is_file() == camera
    report = json.loads((run / "rounds/1/round.json").read_text(encoding="utf-8"))
    assert report["judgement"]["accepted"]
    spread = {bool(target.scores["spread"] > 0) for target in targets}
    assert spread == {draws > 1}  # one draw has none
    assert "no commercial use, because of prior ffhq512" in (run / "report.html").read_text(encoding="utf-8")
    with pytest.raises(ZooError, match="adapted with prior ffhq512"):
        load_restorer(run / "restorer.safetensors")
