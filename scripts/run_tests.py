"""Install the development set into `.venv` and run all tests. Arguments go to pytest.

    python3 scripts/run_tests.py
    python3 scripts/run_tests.py tests/test_layering.py -x
    python3 scripts/run_tests.py --non-commercial             # CodeFormer and FeMaSR too; installs their code
"""

import os
import subprocess
import sys

if sys.version_info < (3, 10):
    sys.exit("error: adapt needs Python 3.10 or newer; {} is {}".format(sys.executable, sys.version.split()[0]))

import environment

NON_COMMERCIAL = "--non-commercial"
MOST_WORKERS = 4  # each holds torch and diffusers, close to a gigabyte


def main() -> int:
    """Prepare the environment, run pytest, return its exit status."""
    python = environment.prepare("dev")
    arguments = sys.argv[1:]
    if NON_COMMERCIAL in arguments:
        arguments.remove(NON_COMMERCIAL)
        python = environment.prepare("non-commercial")
    workers = min(MOST_WORKERS, os.cpu_count() or 1)
    # One thread a worker: the workers already fill the cores.
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
    command = [str(python), "-m", "pytest", "-n", str(workers), *arguments]
    return subprocess.call(command, cwd=environment.ROOT, env=variables)


if __name__ == "__main__":
    sys.exit(environment.run(main))
