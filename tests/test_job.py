"""What the main job knows a run by, what it keeps between stages, and what it refuses before it makes a folder."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from torch import nn

from adapt.cli import main
from adapt.console import Narrator
from adapt.errors import AdaptError
from adapt.generate import PriorShelf
from adapt.job import run_key
from adapt.options import JobOptions
from adapt.workspace import fingerprint
from pseudo_targets.embedded import WEIGHTS
from pseudo_targets.zoo import family_of, load_prior
from restorers.files import sha256_of
from tests.end_to_end.runs import write_blobs
from tests.tiny import tiny_patch_prior

ROOT = Path(__file__).parents[1]


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    write_blobs(tmp_path / "photos", 9)
    return tmp_path / "photos"


@pytest.fixture
def networks(tmp_path: Path) -> Path:
    """A family as `adapt pretrain` leaves it."""
    folder = tmp_path / "networks"
    folder.mkdir()
    for path in (*WEIGHTS.glob("*.safetensors"), WEIGHTS / "sha256.json"):
        shutil.copyfile(path, folder / path.name)
    return folder


def test_a_run_is_known_by_the_photos_that_are_used(photos: Path) -> None:
    known = fingerprint(photos)
    (photos / ".DS_Store").write_text("hidden")
    (photos / "notes.txt").write_text("no photo")
    assert fingerprint(photos) == known
    (photos / "more").mkdir()
    (photos / "more" / "manifest.jsonl").write_text("of another program")
    shutil.copyfile(next(photos.glob("*.png")), photos / "more" / "x.png")
    assert fingerprint(photos) != known


def test_a_linked_photo_counts_with_what_it_points_to(photos: Path, tmp_path: Path) -> None:
    target = tmp_path / "elsewhere.png"
    shutil.copyfile(next(photos.glob("*.png")), target)
    (photos / "link.png").symlink_to(target)
    known = fingerprint(photos)
    target.write_bytes(target.read_bytes() + b"0")
    assert fingerprint(photos) != known


def test_a_run_is_known_by_its_networks(photos: Path, networks: Path) -> None:
    options = JobOptions(photos, "adapt", aligned=True, prior=str(networks))
    known = run_key(options)
    assert run_key(options) == known
    shutil.copyfile(networks / "tone.safetensors", networks / "more.safetensors")  # as another network would be
    digests = json.loads((networks / "sha256.json").read_text()) | {"more": sha256_of(networks / "more.safetensors")}
    (networks / "sha256.json").write_text(json.dumps(digests))
    assert run_key(options) != known


def test_what_pretrain_leaves_is_a_prior_with_its_own_licence(networks: Path) -> None:
    prior = load_prior(str(networks))
    assert prior.weights_sha256 == load_prior("mini").weights_sha256
    assert (prior.licence, load_prior("mini").licence) == ("your own training", "Apache-2.0")
    assert family_of(str(networks)) == networks and family_of("mini") == family_of("ffhq512") == WEIGHTS


def test_a_shelf_keeps_a_prior_until_it_is_cleared_and_travels_empty() -> None:
    shelf, placed = PriorShelf(), []

    def place() -> tuple[nn.Module, None]:
        placed.append(tiny_patch_prior())
        return placed[-1], None

    assert shelf.take(place)[0] is shelf.take(place)[0] is placed[0]
    assert copy.deepcopy(shelf).take(place)[0] is placed[1]  # by the same protocol as pickling
    shelf.clear()
    assert shelf.take(place)[0] is placed[2]


@pytest.mark.parametrize(
    ("given", "fault"),
    [
        (["--ray", "foo"], "--ray foo: expected auto, local or HOST:PORT"),
        (["--tracking-uri", "foo"], "--tracking-uri foo: expected sqlite:"),
        (["--device", "tpu"], "--device tpu: expected auto, cpu or cuda"),
        (["--set", "finetune.precision=fp16", "--device", "cpu"], "a CPU does not train in it"),
        (["--clean", __file__], "is a file, expected a folder"),
    ],
)
def test_wrong_options_are_refused_before_a_folder_is_made(photos, tmp_path, monkeypatch, capsys, given, fault) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["--inputs", str(photos), "--aligned", *given]) == 2
    assert fault in capsys.readouterr().err
    assert not (tmp_path / "adapt_runs").exists()


def test_an_empty_folder_leaves_none_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert main(["--inputs", "empty"]) == 1
    assert not (tmp_path / "adapt_runs").exists()


def test_a_misspelt_command_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["restor", "x.jpg", "--output", "y"]) == 2
    assert capsys.readouterr().err == "adapt: 'restor' is no command: did you mean 'restore'?\n"


def test_an_output_below_a_file_is_one_line(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--inputs", str(photos), "--aligned", "--output", str(photos / "00.png" / "run")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "choose another --output" in error


@pytest.mark.parametrize(
    ("trouble", "line"),
    [
        (OSError(28, "No space left on device", "run/x"), "run/x: No space left on device; check the folder"),
        (MemoryError(), "out of memory: lower --set finetune.batch"),
        (AdaptError("as it is"), "as it is"),
    ],
)
def test_what_fails_around_a_job_is_one_line(photos, monkeypatch, capsys, trouble, line) -> None:
    def fail(_: JobOptions) -> None:
        raise trouble

    monkeypatch.setattr("adapt.job.run_job", fail)
    assert main(["--inputs", str(photos)]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"adapt: {line}") and error.count("\n") == 1


def test_seconds_of_stages_outlive_the_process(tmp_path: Path) -> None:
    for _ in range(2):
        narrator = Narrator(kept=tmp_path / "seconds.json")
        with narrator.stage("nap", 1):
            time.sleep(0.05)
    assert narrator.seconds["nap"] == json.loads((tmp_path / "seconds.json").read_text())["nap"] >= 0.1


def test_a_help_text_needs_no_torch() -> None:
    program = (
        "import sys; from adapt.cli import main\n"
        "try: main(['--help'])\n"
        "except SystemExit: print('torch' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    assert said.startswith("usage: adapt") and said.endswith("\nFalse\n")


def test_few_clean_photos_are_refused_before_anything_is_generated(photos, tmp_path: Path, capsys) -> None:
    clean = write_blobs(tmp_path / "clean", 3)
    assert main(["--inputs", str(photos), "--aligned", "--clean", str(clean), "--output", str(tmp_path / "run")]) == 1
    assert "3 clean photos, expected at least 8" in capsys.readouterr().err
    assert not (tmp_path / "run" / "rounds").exists()
