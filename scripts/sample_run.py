"""Install the project into `.venv`, adapt a restorer to the photos in `samples/`, print where the report is.

    python3 scripts/sample_run.py

Other arguments go to `adapt`. A finished run returns at once; remove `adapt_runs/samples` to start over.
"""

import subprocess
import sys

if sys.version_info < (3, 10):
    sys.exit("error: adapt needs Python 3.10 or newer; {} is {}".format(sys.executable, sys.version.split()[0]))

import environment

RUN = environment.ROOT / "adapt_runs" / "samples"


def main() -> int:
    """Prepare the environment, run the main job, return its exit status."""
    environment.prepare(None)
    command = [environment.tool("adapt"), "--inputs", environment.ROOT / "samples", "--aligned",
               "--output", RUN, "--recipe", "quick", *sys.argv[1:]]
    status = subprocess.call([str(part) for part in command], cwd=environment.ROOT)
    report = RUN / "report.html"
    if status == 0 and not report.is_file():
        raise environment.SetupError(f"adapt ended well but wrote no {report}")
    if status == 0:
        print(report)
    return status


if __name__ == "__main__":
    sys.exit(environment.run(main))
