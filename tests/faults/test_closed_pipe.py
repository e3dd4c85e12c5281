"""Output that nobody reads any more, as with `adapt weights list | head`, ends the command without a traceback."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize("command", [["weights", "list"], ["recipes"]])
def test_a_reader_that_goes_away_is_no_error(command: list[str]) -> None:
    program = [sys.executable, "-m", "adapt.cli", *command]
    with subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        error = process.stderr.read().decode()
        assert (process.wait(timeout=120), error) == (1, "")
