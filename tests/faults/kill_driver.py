"""Runs `adapt` in forked children and kills them with SIGKILL at random moments until enough were hit.

usage: python -m tests.faults.kill_driver KILLS LONGEST ARGUMENTS...

Imports everything once and computes nothing before forking, so a child starts in milliseconds.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import adapt.job  # noqa: F401
from adapt.cli import main


def run_child(arguments: list[str], kill_after: float | None) -> int | None:
    """Exit code of the child, or None when it was killed."""
    child = os.fork()
    if child == 0:
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        os._exit(main(arguments))
    if kill_after is not None:
        deadline = time.monotonic() + kill_after
        while time.monotonic() < deadline:
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.005)
        os.kill(child, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    return None if code == -signal.SIGKILL else code


def drive(kills: int, longest: float, arguments: list[str]) -> int:
    """Kills `kills` children, then lets one finish; starts over when a run finishes before that."""
    moments = random.Random(0)
    output = Path(arguments[arguments.index("--output") + 1])
    hit = 0
    while hit < kills:
        code = run_child(arguments, moments.uniform(0.05, longest))
        if code is None:
            hit += 1
        elif code == 0 and hit < kills:
            shutil.rmtree(output)
        else:
            return code
    return run_child(arguments, None) or 0


if __name__ == "__main__":
    sys.exit(drive(int(sys.argv[1]), float(sys.argv[2]), sys.argv[3:]))
