"""How much of what true pairs would give does adaptation give without any?

    python -m benchmarks.oracle_gap --adapt DIR --test DIR --references DIR [--recipe R] [--set A.B=V] [--json OUT]
        [--seeds N] [--rows all|ROW,...] [--ablations all|NAME,...] [--clean DIR] [--camera MODULE:FUNCTION]

`ours` is the whole job; every other row starts from the same restorer and takes as many steps as all rounds of the
recipe have, kept or rolled back, but for the ablations, which are of the first round alone; with `--clean` one of them
has faces of that folder for its bank. References (one flat folder, a reference bears its photo's stem) are read after
adaptation has ended, for the scores and by the rows marked with a star alone. *Harm rate*: share of test photos with a
lower PSNR than untouched.
LPIPS is a column where `adapt weights fetch lpips-vgg` has brought its files, NIQE (of the test photos as one set)
where `basicsr` is installed; for both, lower is better.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor, nn

from adapt.evaluate import BLOCK, align_tone, haarpsi, niqe, psnr, ssim
from adapt.identity import load_identity
from adapt.judge import restore_all
from adapt.lpips import Lpips, find_lpips
from adapt.options import JobOptions
from adapt.photos import find_photos, read_photo
from benchmarks import oracle_rows as rows_of
from benchmarks.ablations import ABLATIONS, CLEAN, CLEAN_ABLATION, prepare
from benchmarks.oracle_rows import DT_BFR, Ground, Run
from pseudo_targets.gating import low_band_difference
from recipes.load import load_recipe
from restorers.degradations import resize
from restorers.zoo import load_restorer

SCORES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"psnr": psnr, "ssim": ssim, "haarpsi": haarpsi}
ROWS = ("generic", "self_distilled", "targets", "dt_bfr", "true_pair_camera", "true_camera")
"""Rows that can be left out; photo, untouched, ours and oracle are always there."""
OPTIONAL = {"lpips": "LPIPS", "lpips_aligned": "LPIPS aligned", "niqe": "NIQE"}
"""Columns whose networks need not be here."""


@dataclass(frozen=True)
class Pairs:
    """Photos and their references, `[N, 3, S, S]`."""

    photos: Tensor
    references: Tensor


def load_photos(folder: Path, size: int) -> Tensor:
    """Every photo of a folder, `[N, 3, size, size]`."""
    images = [resize(read_photo(photo.path), (size, size), 2) for photo in find_photos(folder).photos]
    return torch.cat(images).clamp(0, 1)


def load_pairs(photos: Path, references: Path, size: int) -> Pairs:
    """Reads every photo of a folder and the reference with its stem."""
    by_stem = {photo.path.stem: photo.path for photo in find_photos(references).photos}
    found = find_photos(photos).photos
    clean = [resize(read_photo(by_stem[photo.path.stem]), (size, size), 2) for photo in found]
    return Pairs(load_photos(photos, size), torch.cat(clean).clamp(0, 1))


def score(restored: Tensor, test: Pairs, untouched: Tensor, lpips: Lpips | None = None) -> dict[str, float]:
    """Means over the test photos: scores plain and with the tone aligned, low band against the photo, harm rate."""
    aligned = align_tone(restored, test.references)
    result = {name: float(measure(restored, test.references).mean()) for name, measure in SCORES.items()}
    result |= {f"{name}_aligned": float(measure(aligned, test.references).mean()) for name, measure in SCORES.items()}
    result["low_band"] = float(low_band_difference(restored, test.photos).mean())
    worse = psnr(restored, test.references) < psnr(untouched, test.references)
    result["harm_rate"] = float(worse.float().mean())
    embed = load_identity(restored.device)
    if embed is not None:
        result["identity"] = float(torch.cosine_similarity(embed(restored), embed(test.references)).mean())
    if lpips is not None:
        result["lpips"] = mean_lpips(lpips, restored, test.references)
        result["lpips_aligned"] = mean_lpips(lpips, aligned, test.references)
    if find_spec("basicsr") is not None and len(restored) > 1 and restored.shape[-1] >= BLOCK:
        result["niqe"] = niqe(restored)
    return result


@torch.no_grad()
def mean_lpips(lpips: Lpips, images: Tensor, references: Tensor) -> float:
    """A few images at a time: the activations of VGG-16 are large."""
    pairs = zip(images.clamp(0, 1).split(8), references.split(8), strict=True)
    return float(torch.cat([lpips(image, reference) for image, reference in pairs]).mean())


def gap_closed(rows: dict[str, dict[str, float]], row: str, suffix: str = "") -> dict[str, float]:
    """(row - untouched) / (oracle - untouched) for every score."""
    low, high = rows["untouched"], rows["oracle"]
    names = [name + suffix for name in SCORES]
    return {name.removesuffix(suffix): (rows[row][name] - low[name]) / (high[name] - low[name]) for name in names}


def measure(options: argparse.Namespace, folder: Path, seed: int) -> dict[str, object]:
    """Adapts, trains what it is compared with, scores all rows on the test photos, for one seed."""
    overrides = (*options.set, f"seed={seed}")
    recipe = load_recipe(options.recipe, overrides)
    lpips = find_lpips(torch.device("cpu"))  # first, so that a damaged file is no surprise at the end
    seconds: dict[str, float] = {}

    def timed(name: str, work: Callable[[], nn.Module]) -> nn.Module:
        started = time.monotonic()
        net = work()
        seconds[name] = time.monotonic() - started
        print(f"seed {seed}: {name}, {seconds[name]:.0f} s", flush=True)
        return net

    runs: dict[str, Run] = {}

    def adapted(name: str, job: JobOptions) -> nn.Module:
        runs[name] = rows_of.adapt(job)
        return runs[name].restorer()

    whole = rows_of.job_options(options.adapt, folder / "ours", options.recipe, overrides)
    nets = {"ours": timed("ours", lambda: adapted("ours", whole))}
    steps = recipe.finetune.steps * recipe.rounds
    photos = load_photos(options.adapt, recipe.faces.size)
    ground = Ground(photos, recipe, folder, load_restorer("compact").module, steps)
    bank = runs["ours"].bank()
    if "generic" in options.rows:
        nets["generic"] = timed("generic", lambda: rows_of.generic_steps(ground, bank))
    if "self_distilled" in options.rows:
        nets["self_distilled"] = timed("self_distilled", lambda: rows_of.self_distilled(ground, bank))
    if "dt_bfr" in options.rows:
        settings = (*DT_BFR, f"finetune.steps={steps}", f"seed={seed}")
        job = rows_of.job_options(options.adapt, folder / "dt_bfr", "dt_bfr", settings)
        nets["dt_bfr"] = timed("dt_bfr", partial(adapted, "dt_bfr", job))
    changes = {name: ABLATIONS[name] for name in options.ablations}
    if options.clean is not None:
        changes[CLEAN] = CLEAN_ABLATION
    for name, change in changes.items():
        clean = options.clean if name == CLEAN else None
        job = prepare(replace(whole, output=folder / name, clean=clean), runs["ours"].folder, change)
        nets[name] = timed(name, partial(adapted, name, job))
    teach, test = (load_pairs(where, options.references, recipe.faces.size) for where in (options.adapt, options.test))
    if "true_pair_camera" in options.rows:
        camera = rows_of.camera_of_true_pairs(ground, teach.references, bank)
        nets["true_pair_camera*"] = timed(
            "true_pair_camera", lambda: rows_of.through_camera(ground, bank, camera, "true_pair_camera")
        )
    if "true_camera" in options.rows and options.camera:
        given = rows_of.given_camera(options.camera)
        nets["true_camera*"] = timed("true_camera", lambda: rows_of.through_camera(ground, bank, given, "true_camera"))
    nets["oracle"] = timed("oracle", lambda: rows_of.oracle(ground, teach.references))
    images = {name: restore_all(net.eval(), test.photos) for name, net in {"untouched": ground.base, **nets}.items()}
    images["photo"] = test.photos
    if "targets" in options.rows:
        images["targets"] = rows_of.targets_of(ground, test.photos)
    stages = {f"round {report['number']}": report["seconds"] for report in runs["ours"].rounds}
    return {
        "seed": seed,
        "rows": {name: score(image, test, images["untouched"], lpips) for name, image in images.items()},
        "seconds": {**seconds, "ours by stage": stages},
        "accepted_rounds": {name: run.accepted() for name, run in runs.items()},
        "judgements": [report["judgement"] for report in runs["ours"].rounds],
        "recipe": recipe.model_dump(mode="json"),
    }


def summary(results: list[dict[str, object]]) -> dict[str, object]:
    """Means over seeds with their standard error, and the shares of the gap that are closed."""
    tables: list[dict[str, dict[str, float]]] = [result["rows"] for result in results]  # type: ignore[misc]
    rows = {
        name: {key: statistics.fmean(table[name][key] for table in tables) for key in tables[0][name]}
        for name in tables[0]
    }
    deviations = {
        name: {key: statistics.stdev(table[name][key] for table in tables) for key in tables[0][name]}
        for name in tables[0]
        if len(tables) > 1
    }
    errors = {name: {key: value / len(tables) ** 0.5 for key, value in row.items()} for name, row in deviations.items()}
    return {
        "rows": rows,
        "standard_errors": errors,
        "oracle_gap_closed": gap_closed(rows, "ours"),
        "oracle_gap_closed_aligned": gap_closed(rows, "ours", "_aligned"),
        "harm_rate": rows["ours"]["harm_rate"],
        "seconds": results[0]["seconds"],
        "seeds": [result["seed"] for result in results],
        "recipe": results[0]["recipe"],
        "runs": results,
    }


def show(result: dict[str, object]) -> None:
    """Prints the table in Markdown."""
    rows: dict[str, dict[str, float]] = result["rows"]  # type: ignore[assignment]
    scores = ["PSNR", "SSIM", "HaarPSI", "gap closed"]
    more = {key: title for key, title in OPTIONAL.items() if all(key in row for row in rows.values())}
    titles = [*scores, *(f"{name} aligned" for name in scores), "low band", "harm", *more.values()]
    print("| row | " + " | ".join(titles) + " |")
    print("|---|" + "--:|" * len(titles))
    for name, row in rows.items():
        cells = [name]
        for suffix in ("", "_aligned"):
            closed = gap_closed(rows, name, suffix)
            cells += [f"{row['psnr' + suffix]:.2f}", f"{row['ssim' + suffix]:.4f}", f"{row['haarpsi' + suffix]:.4f}"]
            cells += [" / ".join(f"{value:.0%}" for value in closed.values())]
        cells += [f"{row['low_band']:.4f}", f"{row['harm_rate']:.0%}", *(f"{row[key]:.4f}" for key in more)]
        print("| " + " | ".join(cells) + " |")


def _names(known: tuple[str, ...]) -> Callable[[str], tuple[str, ...]]:
    def parse(text: str) -> tuple[str, ...]:
        names = known if text == "all" else tuple(name for name in text.split(",") if name)
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
    parser.add_argument("--clean", type=Path, help="clean faces for the ablation of the drawn bank")
    parser.add_argument("--rows", type=_names(ROWS), default=ROWS)
    parser.add_argument("--ablations", type=_names(tuple(ABLATIONS)), default=())
    parser.add_argument("--camera", help="the true camera, if there is a simulator: module:function")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", type=Path, help="folder for the runs, which go on there (default: a temporary one)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.work or Path(temporary)
        result = summary([measure(options, folder / f"seed{seed}", seed) for seed in range(options.seeds)])
    show(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
