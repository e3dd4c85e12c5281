"""How much of what true pairs would give does adaptation give without any?

    python -m benchmarks.oracle_gap --adapt DIR --test DIR --references DIR [--recipe R] [--set A.B=V] [--json OUT]

Rows: the untouched restorer, the adapted one, and the supervised oracle: the same network finetuned for the same number
of steps on true pairs. References (one flat folder, a reference bears its photo's stem) are read for scoring and by the
oracle alone, after adaptation has ended.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from adapt.evaluate import align_tone, haarpsi, psnr, ssim
from adapt.job import JobOptions, run_job
from adapt.judge import restore_all
from adapt.photos import find_photos, read_photo
from adapt.training import TrainingPlan, make_accelerator, train
from recipes.load import load_recipe
from recipes.schema import Recipe
from restorers.degradations import resize
from restorers.zoo import load_restorer

SCORES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"psnr": psnr, "ssim": ssim, "haarpsi": haarpsi}


@dataclass(frozen=True)
class Pairs:
    """Photos and their references, `[N, 3, S, S]`."""

    photos: Tensor
    references: Tensor


def load_pairs(photos: Path, references: Path, size: int) -> Pairs:
    """Reads every photo of a folder and the reference with its stem."""
    by_stem = {photo.path.stem: photo.path for photo in find_photos(references).photos}
    found = find_photos(photos).photos
    images = [resize(read_photo(photo.path), (size, size), 2) for photo in found]
    clean = [resize(read_photo(by_stem[photo.path.stem]), (size, size), 2) for photo in found]
    return Pairs(torch.cat(images).clamp(0, 1), torch.cat(clean).clamp(0, 1))


def score(restored: Tensor, references: Tensor) -> dict[str, float]:
    """Mean of every score, plain and after gain and offset were fitted to the reference."""
    aligned = align_tone(restored, references)
    plain = {name: float(measure(restored, references).mean()) for name, measure in SCORES.items()}
    return plain | {f"{name}_aligned": float(measure(aligned, references).mean()) for name, measure in SCORES.items()}


def train_oracle(module: nn.Module, pairs: Pairs, recipe: Recipe, steps: int, folder: Path) -> nn.Module:
    """The same network, steps, batch and schedule on true pairs."""
    settings = recipe.finetune

    def losses(net: nn.Module, generator: Generator) -> dict[str, Tensor]:
        index = torch.randint(len(pairs.photos), (settings.batch,), generator=generator)
        photos = pairs.photos[index].contiguous(memory_format=torch.channels_last)
        return {"pixel": (net(photos).float() - pairs.references[index]).abs().mean()}

    plan = TrainingPlan(
        steps, settings.learning_rate, settings.warmup, ema_decay=settings.ema_decay, clip=settings.clip
    )
    accelerator = make_accelerator(torch.device("cpu"), settings.precision)
    return train(module, losses, plan, accelerator, folder / "oracle.pt").module


def gap_closed(rows: dict[str, dict[str, float]], row: str, suffix: str = "") -> dict[str, float]:
    """(row - untouched) / (oracle - untouched) for every score."""
    low, high = rows["untouched"], rows["oracle"]
    names = [name + suffix for name in SCORES]
    return {name.removesuffix(suffix): (rows[row][name] - low[name]) / (high[name] - low[name]) for name in names}


def measure(options: argparse.Namespace, folder: Path) -> dict[str, object]:
    """Adapts, trains the oracle, scores all rows on the test photos."""
    recipe = load_recipe(options.recipe, tuple(options.set))
    started = time.monotonic()
    run = run_job(
        JobOptions(
            inputs=options.adapt,
            command="benchmarks.oracle_gap",
            output=folder / "run",
            recipe=options.recipe,
            overrides=tuple(options.set),
            aligned=True,
            tracking=False,
        )
    )
    seconds = time.monotonic() - started
    rounds = [json.loads(path.read_text()) for path in sorted(run.glob("rounds/*/round.json"))]
    accepted = [report for report in rounds if report["judgement"]["accepted"]]
    base = load_restorer("compact").module
    teach = load_pairs(options.adapt, options.references, recipe.faces.size)
    test = load_pairs(options.test, options.references, recipe.faces.size)
    oracle = train_oracle(base, teach, recipe, recipe.finetune.steps * max(1, len(accepted)), folder)
    nets = {"untouched": base, "adapted": load_restorer(run / "restorer.safetensors").module, "oracle": oracle}
    restored = {name: restore_all(net.eval(), test.photos) for name, net in nets.items()}
    rows = {name: score(images, test.references) for name, images in restored.items()}
    rows["photo"] = score(test.photos, test.references)
    worse = psnr(restored["adapted"], test.references) < psnr(restored["untouched"], test.references)
    return {
        "rows": rows,
        "oracle_gap_closed": gap_closed(rows, "adapted"),
        "oracle_gap_closed_aligned": gap_closed(rows, "adapted", "_aligned"),
        "harm_rate": float(worse.float().mean()),
        "seconds": {
            "total": seconds,
            **{f"round {report['number']} {k}": v for report in rounds for k, v in report["seconds"].items()},
        },
        "accepted_rounds": len(accepted),
        "judgements": [report["judgement"] for report in rounds],
        "recipe": recipe.model_dump(mode="json"),
    }


def show(result: dict[str, object]) -> None:
    """Prints the table."""
    rows: dict[str, dict[str, float]] = result["rows"]  # type: ignore[assignment]
    print(f"{'row':10} {'PSNR':>7} {'SSIM':>7} {'HaarPSI':>8}   {'aligned:':>8} {'PSNR':>7} {'SSIM':>7} {'HaarPSI':>8}")
    for name in ("photo", "untouched", "adapted", "oracle"):
        r = rows[name]
        print(
            f"{name:10} {r['psnr']:7.3f} {r['ssim']:7.4f} {r['haarpsi']:8.4f}   {'':8} "
            f"{r['psnr_aligned']:7.3f} {r['ssim_aligned']:7.4f} {r['haarpsi_aligned']:8.4f}"
        )
    for key in ("oracle_gap_closed", "oracle_gap_closed_aligned"):
        closed: dict[str, float] = result[key]  # type: ignore[assignment]
        print(f"{key}: " + ", ".join(f"{name} {value:.0%}" for name, value in closed.items()))
    print(f"harm rate {result['harm_rate']:.0%}, accepted rounds {result['accepted_rounds']}")


def main() -> None:
    """Runs the benchmark from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--adapt", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--references", type=Path, required=True)
    parser.add_argument("--recipe", default="default")
    parser.add_argument("--set", action="append", default=[])
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", type=Path, help="folder for the run (default: a temporary one)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        result = measure(options, options.work or Path(temporary))
    show(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
