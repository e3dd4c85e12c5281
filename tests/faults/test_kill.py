"""kill -9 at random moments, then the same command: the result is that of a run that nobody killed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.end_to_end.runs import content, short_settings, write_blobs

KILLS = 12


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.timeout(900)
def test_killed_runs_finish_with_nothing_lost_or_done_twice(tmp_path: Path) -> None:
    photos = write_blobs(tmp_path / "photos")
    arguments = ["--inputs", str(photos), "--aligned", "--no-tracking", *short_settings(), "--set", "rounds=2"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    drive(0, arguments, whole)
    drive(KILLS, arguments, killed)
    same = sorted(path.relative_to(whole) for path in whole.rglob("*") if path.is_file())
    left = sorted(path.relative_to(killed) for path in killed.rglob("*") if path.is_file() and ".tmp-" not in path.name)
    assert same == left
    for path in same:
        if path.suffix in (".png", ".safetensors", ".jsonl"):
            assert content(whole / path) == content(killed / path), path


def drive(kills: int, arguments: list[str], output: Path) -> None:
    # One thread, so that sums are taken in the same order in every child.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.faults.kill_driver", str(kills), "4.0", *arguments, "--output", str(output)]
    subprocess.run(command, env=environment, cwd=Path(__file__).parents[2], check=True)
