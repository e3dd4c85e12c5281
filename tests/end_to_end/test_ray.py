"""`--ray` changes where generation happens and nothing else."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.end_to_end.runs import content, short_settings, write_blobs


@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="ray is not installed")
@pytest.mark.timeout(600)
def test_a_run_over_ray_equals_a_run_in_process(tmp_path: Path) -> None:
    photos = write_blobs(tmp_path / "photos")
    common = [sys.executable, "-m", "adapt", "--inputs", str(photos), "--aligned", "--no-tracking", *short_settings()]
    # One thread, so that sums are taken in the same order everywhere.
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    for name, extra in (("plain", []), ("ray", ["--ray", "auto"])):
        command = [*common, "--output", str(tmp_path / name), *extra]
        subprocess.run(command, env=environment, cwd=Path(__file__).parents[2], check=True)
    plain, ray = tmp_path / "plain", tmp_path / "ray"
    targets = sorted((plain / "rounds/1/targets").iterdir())
    assert len(targets) == 10
    for path in [*targets, plain / "restorer.safetensors", *sorted((plain / "bank").iterdir())]:
        assert content(path) == content(ray / path.relative_to(plain)), path.name
