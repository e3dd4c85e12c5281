"""The `adapt` command.

    adapt --inputs my_camera_faces/                                  fit a restorer to the camera that took these photos
    adapt restore photo.jpg --restorer adapt_runs/... --output out/  use it
    adapt regenerate photo.jpg --prior diffbir-v2.1 --output out/    a published prior on whole photos, slow
    adapt weights list | fetch NAME | verify | import FILE           published weights of priors and restorers
    adapt recipes | adapt doctor | adapt pretrain ...                see `adapt COMMAND --help`

Exit codes: 0 done, 1 the job failed, 2 the command cannot be carried out as given. Errors are one line.
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from adapt.errors import AdaptError, UsageError, printable

if TYPE_CHECKING:
    from adapt.restore import RestoreSummary

# In the order they build on each other.
NETWORKS = ("latents", "restorer", "removal", "prior", "control", "quality", "tone")

NON_COMMERCIAL_HELP = "allow restorers whose licence forbids commercial use (see: adapt weights list)"

MAIN_EPILOG = """\
examples:
  adapt --inputs my_camera_faces/
  adapt --inputs scans/ --aligned --recipe quick --set finetune.steps=300
  adapt --inputs faces/ --clean clean_faces/ --ray auto

other commands: adapt restore | regenerate | recipes | weights | doctor | pretrain   (each has --help)
The same command continues a run that was stopped."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    # Offline is the normal case: no library may look for a network on its own.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    given = list(sys.argv[1:] if arguments is None else arguments)
    commands: dict[str, Callable[[list[str]], int]] = {
        "restore": restore_command,
        "regenerate": regenerate_command,
        "recipes": recipes_command,
        "weights": weights_command,
        "doctor": doctor_command,
        "pretrain": pretrain_command,
    }
    command = commands.get(given[0]) if given else None
    try:
        try:
            if command is None and given and not given[0].startswith("-"):
                raise UsageError(_no_command(given[0], list(commands)))
            return command(given[1:]) if command else adapt_command(given)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:  # whoever read the output has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the flush at exit fails again
        return 1
    except UsageError as error:
        return _failed(error, 2)
    except AdaptError as error:
        return _failed(error, 1)
    except KeyboardInterrupt:
        goes_on = command in (None, pretrain_command, weights_command)
        return _failed("stopped; run the same command to continue" if goes_on else "stopped", 1)
    except SystemExit:  # of argparse; what follows would import torch to show a help text
        raise
    except _surroundings() as error:
        return _failed(_trouble(error), 1)


def _adapt_parser() -> argparse.ArgumentParser:
    parser = _parser("adapt", "Fits a small, fast restorer to the camera that took your photos.", MAIN_EPILOG)
    parser.add_argument(
        "--inputs", type=Path, required=True, metavar="DIR", help="folder of photos, searched recursively"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="run folder (default: adapt_runs/<name>-<key>)")
    parser.add_argument(
        "--recipe", default="default", metavar="NAME", help="preset or YAML file (default: default; see: adapt recipes)"
    )
    parser.add_argument("--set", action="append", default=[], metavar="A.B=VALUE", help="override one setting")
    parser.add_argument(
        "--content",
        choices=("auto", "faces", "photos"),
        help="faces: learn from faces alone; photos: look for none (default: faces weigh more where there are any)",
    )
    parser.add_argument("--aligned", action="store_true", help="each photo is one aligned square face: find nothing")
    parser.add_argument(
        "--clean", type=Path, metavar="DIR", help="8 or more clean photos to learn from in place of the photos' own"
    )
    parser.add_argument(
        "--restorer",
        default="compact",
        metavar="NAME|FILE",
        help="restorer to adapt (default: compact; see: adapt weights list)",
    )
    parser.add_argument("--non-commercial", action="store_true", help=NON_COMMERCIAL_HELP)
    parser.add_argument(
        "--prior", default="mini", metavar="NAME|DIR", help="diffusion prior, or what pretrain left (default: mini)"
    )
    parser.add_argument("--tracking-uri", metavar="URI", help="MLflow server (default: a database in the run folder)")
    parser.add_argument("--no-tracking", action="store_true", help="do not log to MLflow")
    parser.add_argument("--ray", metavar="auto|local|ADDRESS", help="spread generation over a Ray cluster")
    parser.add_argument(
        "--device",
        default="auto",
        metavar="auto|cpu|cuda",
        help="where to compute (default: auto, CUDA if it is there)",
    )
    return parser


def adapt_command(given: list[str]) -> int:
    """`adapt --inputs DIR`: the main job."""
    options = _adapt_parser().parse_args(given)
    from adapt.job import run_job
    from adapt.options import JobOptions

    run_job(
        JobOptions(
            inputs=options.inputs,
            output=options.output,
            recipe=options.recipe,
            overrides=(*([f"windows.content={options.content}"] if options.content else []), *options.set),
            aligned=options.aligned,
            clean=options.clean,
            restorer=options.restorer,
            non_commercial=options.non_commercial,
            prior=options.prior,
            tracking_uri=options.tracking_uri,
            tracking=not options.no_tracking,
            ray=options.ray,
            device=options.device,
            command=_command_line(given),
        )
    )
    return 0


def restore_command(given: list[str]) -> int:
    """`adapt restore`: uses a restorer on photos; imports no diffusion."""
    epilog = "example:\n  adapt restore party/*.jpg --restorer adapt_runs/webcam-1a2b3c4d --output restored/"
    parser = _parser("adapt restore", "Restores photos at their own pixels, from edge to edge.", epilog)
    parser.add_argument("photos", type=Path, nargs="+", metavar="PHOTO", help="photos or folders")
    parser.add_argument(
        "--restorer",
        type=Path,
        metavar="RUN|FILE|NAME",
        help="run folder, .safetensors or .onnx, or a published one's name (default: embedded)",
    )
    parser.add_argument("--non-commercial", action="store_true", help=NON_COMMERCIAL_HELP)
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="where the restored photos go")
    parser.add_argument("--aligned", action="store_true", help="each photo is one aligned square face")
    overwrite = "replace files that --output holds (default: the new ones get names like x-2.jpg)"
    parser.add_argument("--overwrite", action="store_true", help=overwrite)
    options = parser.parse_args(given)
    from adapt.restore import restore_from_files

    summary = restore_from_files(
        options.photos, options.restorer, options.output, options.aligned, options.non_commercial, options.overwrite
    )
    faces = sum(photo.faces for photo in summary.restored)
    for photo in summary.restored:
        if photo.shrunk > 1:
            why = f"worked on at 1/{photo.shrunk} of its size, as it was enlarged far beyond its detail"
            print(f"{printable(photo.source)}: {why}")
    what = f"{faces} faces in {len(summary.restored)} photos" if faces else f"{len(summary.restored)} photos"
    return _tell(summary, f"restored {what} -> {printable(options.output)}")


def regenerate_command(given: list[str]) -> int:
    """`adapt regenerate`: a DiffBIR prior on whole photos."""
    from adapt.prior_photos import restore_with_prior

    summary = restore_with_prior(given)
    return _tell(summary, f"regenerated {len(summary.restored)} photos")


def recipes_command(given: list[str]) -> int:
    """`adapt recipes [NAME]`: lists presets, or prints one in full."""
    epilog = "example:\n  adapt recipes default"
    parser = _parser("adapt recipes", "Lists recipes, or prints one with every value.", epilog)
    parser.add_argument("name", nargs="?", help="preset or YAML file to print in full")
    options = parser.parse_args(given)
    from recipes.load import PRESETS, RecipeError, dump_recipe, load_recipe, preset_names

    if options.name is None:
        for name in preset_names():
            lines = (PRESETS / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
            comments = [line[2:] for line in lines if line.startswith("# ")]
            print(f"{name:17} {' '.join(comments[1:])}")
        return 0
    try:
        print(dump_recipe(load_recipe(options.name)), end="")
    except RecipeError as error:
        raise UsageError(str(error)) from error
    return 0


def weights_command(given: list[str]) -> int:
    """`adapt weights list|fetch|verify|import`: published weights in the user's cache."""
    from adapt.weights_cli import weights_command as run

    return run(given)


def doctor_command(given: list[str]) -> int:
    """`adapt doctor`: what is installed, what is missing, how to get it."""
    parser = _parser("adapt doctor", "Shows what is installed and what is missing.", "example:\n  adapt doctor")
    parser.parse_args(given)
    from adapt.doctor import examine

    return examine(print)


def _pretrain_parser() -> argparse.ArgumentParser:
    epilog = (
        "example:\n"
        "  adapt pretrain all --data pets/ --output weights/\n"
        f"all is {', '.join(NETWORKS)}, in this order; each can be asked for alone.\n"
        "tone takes images of one folder whose names agree up to the last underscore for one set, as a camera's are.\n"
        "The same command continues a training that was stopped."
    )
    parser = _parser("adapt pretrain", "Trains the networks of the embedded family on windows of clean photos.", epilog)
    parser.add_argument("network", choices=("all", *NETWORKS))
    parser.add_argument(
        "--data",
        type=Path,
        nargs="+",
        default=[],
        metavar="DIR",
        help="thousands of clean photos, --size or more on both sides; several folders count alike",
    )
    parser.add_argument(
        "--aligned",
        type=Path,
        nargs="+",
        default=[],
        metavar="DIR",
        help="more of them, of aligned faces: the prior learns where on a face a window lies",
    )
    parser.add_argument(
        "--validation",
        type=Path,
        nargs="+",
        default=[],
        metavar="DIR",
        help="held-out clean photos (default: 1 in 32 of --data)",
    )
    parser.add_argument(
        "--output", type=Path, default=Path("weights"), metavar="DIR", help="where weights and curves go"
    )
    parser.add_argument("--size", type=int, default=128, help="side in pixels of the windows (default 128)")
    parser.add_argument(
        "--data-size", type=int, metavar="PX", help="bring larger photos down to this shorter side (default: keep them)"
    )
    parser.add_argument("--steps", type=int, help="optimiser steps (default: what the embedded weights had)")
    parser.add_argument("--batch", type=int, default=16, help="images a step (default 16)")
    parser.add_argument(
        "--learning-rate", type=float, help="peak learning rate (default: what the embedded weights had)"
    )
    parser.add_argument(
        "--pool",
        type=int,
        default=0,
        metavar="N",
        help="draw N windows in advance, for a GPU (default: as they are needed)",
    )
    parser.add_argument("--start-from", type=Path, metavar="FILE", help="weights to go on from (default: none)")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--device", default="auto", metavar="auto|cpu|cuda")
    parser.add_argument("--note", default="", help="what the images are and under what licence, for the model card")
    return parser


def pretrain_command(given: list[str]) -> int:
    """`adapt pretrain`: trains the mini family."""
    parser = _pretrain_parser()
    options = parser.parse_args(given)
    if options.network == "all" and options.start_from is not None:
        parser.error("--start-from is the weights of one network: name it in place of `all`")
    if not options.data and not options.aligned:
        parser.error("the following arguments are required: --data or --aligned")
    from adapt.pretrain import PretrainOptions, pretrain

    for network in NETWORKS if options.network == "all" else (options.network,):
        folders = {name: tuple(getattr(options, name)) for name in ("data", "aligned", "validation")}
        pretrain(PretrainOptions(**{**vars(options), **folders, "network": network}), print)
    return 0


def _parser(name: str, description: str, epilog: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog=name, description=description, epilog=epilog, formatter_class=argparse.RawDescriptionHelpFormatter
    )


def _command_line(given: list[str]) -> str:
    import shlex

    return "adapt " + " ".join(shlex.quote(os.fsencode(word).decode("utf-8", "backslashreplace")) for word in given)


def _tell(summary: RestoreSummary, line: str) -> int:
    """Prints what became of the photos; returns the exit code."""
    for photo, reason in summary.failed:
        print(f"not restored: {printable(photo)}: {reason}", file=sys.stderr)
    for photo in summary.without_faces:
        print(f"no face found: {printable(photo)}", file=sys.stderr)
    print(line)
    return summary.exit_code


def _surroundings() -> tuple[type[Exception], ...]:
    """What fails around a job and not in it; asked for when something has failed, as torch takes long to import."""
    import torch
    from safetensors import SafetensorError

    from pseudo_targets.downloads import WeightsError

    return OSError, MemoryError, SafetensorError, WeightsError, torch.OutOfMemoryError


def _trouble(error: Exception) -> str:
    reason = " ".join((getattr(error, "strerror", None) or str(error)).split())
    if isinstance(error, MemoryError) or "OutOfMemory" in type(error).__name__:
        return "out of memory: lower --set finetune.batch or generation.batch, or choose --device cpu"
    if not isinstance(error, OSError):
        return reason
    name = "" if error.filename is None else f"{printable(error.filename)}: "
    return f"{name}{reason}; check the folder, its permissions and free space"


def _no_command(word: str, commands: list[str]) -> str:
    close = difflib.get_close_matches(word, commands, 1)
    hint = f"did you mean {close[0]!r}?" if close else f"expected --inputs DIR or one of {', '.join(commands)}"
    return f"{word!r} is no command: {hint}"


def _failed(error: object, code: int) -> int:
    text = str(error).encode("utf-8", "backslashreplace").decode()
    print(f"adapt: {text}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
