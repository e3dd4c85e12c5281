"""How much of what true pairs would give does adaptation give without any?

    python -m benchmarks.oracle_gap --adapt DIR --test DIR --references DIR [--recipe R] [--set A.B=V] [--json OUT]
        [--seeds N] [--rows all|ROW,...] [--ablations all|NAME,...] [--clean DIR] [--camera MODULE:FUNCTION]

`ours` is the whole job; every other row starts from the same restorer and takes as many steps as all rounds of the
recipe have, kept or rolled back, but for the ablations, which are of the first round alone; with `--clean` one of them
has faces of that folder for its bank. References (one flat folder, a reference bears its photo's stem) are read after
adaptation has ended, for the scores and by the rows marked with a star alone. Photos and references have their own
sizes, and every row is scored as `adapt restore` serves it: at the photo's own pixels, and at half and a quarter of
them. *Harm rate*: share of test photos with a lower PSNR than untouched.
LPIPS is a column where `adapt weights fetch lpips-vgg` has brought its files, NIQE (of the test photos as one set)
where `basicsr` is installed; for both, lower is better.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from adapt.console import Narrator
from adapt.errors import AdaptError, UsageError
from adapt.judge import served_photos
from adapt.lpips import find_lpips
from adapt.options import JobOptions, checked
from adapt.photos import photo_files
from adapt.workspace import write_json
from benchmarks import oracle_rows as rows_of
from benchmarks.ablations import ABLATIONS, CLEAN, CLEAN_ABLATION, Ablation, prepare
from benchmarks.oracle_pairs import (
    Pairs,
    check_folders,
    references_of,
    references_of_windows,
    scored_photos,
    taught_windows,
)
from benchmarks.oracle_rows import Ground, Run
from benchmarks.oracle_table import score, show, summary
from restorers.runtime import runtime_of
from restorers.zoo import load_restorer

Made = TypeVar("Made")
ROWS = ("generic", "self_distilled", "targets", "dt_bfr", "true_pair_camera", "true_camera")
"""Rows that can be left out; photo, untouched, ours and oracle are always there."""
ALWAYS = ("photo", "untouched", "ours", "oracle")


def check(options: argparse.Namespace) -> None:
    """Refuses at once what would only show after hours of work.

    Raises:
        UsageError, AdaptError: what cannot be used, and what to do.
    """
    if find_spec("piq") is None:
        raise UsageError("piq is not installed, which the scores need: install the extra `scores`")
    check_folders(options.references, options.adapt, options.test)
    if options.clean is not None:
        photo_files(options.clean)
    if options.camera:
        rows_of.given_camera(options.camera)
    if options.seeds < 1:
        raise UsageError(f"--seeds {options.seeds}: expected 1 or more")
    if options.json is not None:
        options.json.parent.mkdir(parents=True, exist_ok=True)


def measure(options: argparse.Namespace, folder: Path, seed: int) -> dict[str, object]:
    """Adapts, trains what it is compared with, scores all rows on the test photos, for one seed."""
    overrides = (*options.set, f"seed={seed}")
    whole = rows_of.job_options(options.adapt, folder / "ours", options.recipe, overrides)
    recipe = checked(whole, Narrator()).recipe
    lpips = find_lpips(torch.device("cpu"))  # first, so that a damaged file is no surprise at the end
    seconds: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Made]) -> Made:
        started = time.monotonic()
        made = work()
        # A job that was finished before tells what it took then.
        seconds[name] = runs[name].seconds() if name in runs else time.monotonic() - started
        print(f"seed {seed}: {name}, {seconds[name]:.0f} s", flush=True)
        return made

    runs: dict[str, Run] = {}

    def adapted(name: str, job: JobOptions) -> nn.Module:
        runs[name] = rows_of.adapt(job)
        return runs[name].restorer().module

    def served(net: nn.Module, images: list[Tensor]) -> list[Tensor]:
        """What `adapt restore` makes of photos with this network."""
        return served_photos(runtime_of(replace(ground.restorer, module=net.eval())), images)

    nets = {"ours": timed("ours", lambda: adapted("ours", whole))}
    photos, windows = taught_windows(runs["ours"].folder)
    color = sum(window.color for window in windows) / len(windows)
    ground = Ground(photos, recipe, folder, load_restorer("compact"), color)
    bank = rows_of.bank_of(ground, runs["ours"])
    if "generic" in options.rows:
        nets["generic"] = timed("generic", lambda: rows_of.generic_steps(ground, bank))
    if "self_distilled" in options.rows:
        nets["self_distilled"] = timed("self_distilled", lambda: rows_of.self_distilled(ground, bank))
    if "dt_bfr" in options.rows:
        job = rows_of.job_options(options.adapt, folder / "dt_bfr", "dt_bfr", rows_of.dt_bfr_settings(recipe))
        nets["dt_bfr"] = timed("dt_bfr", partial(adapted, "dt_bfr", job))
    for name, change in _changes(options).items():
        clean = options.clean if name == CLEAN else None
        job = prepare(replace(whole, output=folder / name, clean=clean), runs["ours"].folder, change)
        nets[name] = timed(name, partial(adapted, name, job))
    tested, paths = scored_photos(options.test)
    images = {"photo": tested, "untouched": served(ground.base, tested)}
    if "targets" in options.rows:
        images["targets"] = timed("targets", lambda: rows_of.targets_of(ground, tested))
    # Up to here nothing has looked at a reference.
    teach = references_of_windows(windows, options.adapt, options.references, recipe.windows.size)
    if "true_pair_camera" in options.rows:
        nets["true_pair_camera*"] = timed("true_pair_camera", lambda: rows_of.true_pairs(ground, teach, bank))
    if "true_camera" in options.rows and options.camera:
        given = rows_of.given_camera(options.camera)
        nets["true_camera*"] = timed("true_camera", lambda: rows_of.through_camera(ground, bank, given, "true_camera"))
    nets["oracle"] = timed("oracle", lambda: rows_of.oracle(ground, teach))
    images |= {name: served(net, tested) for name, net in nets.items()}
    test = Pairs(tested, references_of(paths, options.references))
    stages = {f"round {report['number']}": report["seconds"] for report in runs["ours"].rounds}
    return {
        "seed": seed,
        "rows": {name: score(image, test, images["untouched"], lpips) for name, image in images.items()},
        "seconds": {**seconds, "ours by stage": stages},
        "accepted_rounds": {name: run.accepted() for name, run in runs.items()},
        "judgements": [report["judgement"] for report in runs["ours"].rounds],
        "recipe": recipe.model_dump(mode="json"),
    }


def _changes(options: argparse.Namespace) -> dict[str, Ablation]:
    """The ablations that are asked for, with the row they are measured against."""
    names = options.ablations
    if options.clean is not None and "one round" not in names:
        names = ("one round", *names)
    changes = {name: ABLATIONS[name] for name in names}
    return changes if options.clean is None else {**changes, CLEAN: CLEAN_ABLATION}


def _names(known: tuple[str, ...]) -> Callable[[str], tuple[str, ...]]:
    def parse(text: str) -> tuple[str, ...]:
        given = tuple(name.strip() for name in text.split(",") if name.strip())
        names = known if text == "all" else tuple(name for name in given if name not in ALWAYS)
        unknown = sorted(set(names) - set(known))
        if unknown:
            raise argparse.ArgumentTypeError(f"got {', '.join(unknown)}, expected some of: {', '.join(known)}")
        return names

    return parse


def main() -> None:
    """Runs the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapt", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--references", type=Path, required=True)
    parser.add_argument("--recipe", default="default")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--seeds", type=int, default=1, help="repeat with seeds 0 to N - 1")
    parser.add_argument("--clean", type=Path, help="clean photos for the ablation of the bank")
    parser.add_argument("--rows", type=_names(ROWS), default=ROWS)
    parser.add_argument("--ablations", type=_names(tuple(ABLATIONS)), default=())
    parser.add_argument("--camera", help="the true camera, if there is a simulator: module:function")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", type=Path, help="folder for the runs, which go on there (default: a temporary one)")
    options = parser.parse_args()
    try:
        check(options)
        with tempfile.TemporaryDirectory() as temporary:
            folder = options.work or Path(temporary)
            results = []
            for seed in range(options.seeds):
                results.append(measure(options, folder / f"seed{seed}", seed))
                result = summary(results)
                if options.json:  # a later seed that fails takes nothing away
                    write_json(options.json, result)
    except AdaptError as error:
        parser.error(str(error))
    show(result)


if __name__ == "__main__":
    main()
