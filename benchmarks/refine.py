"""What does refining add to stage 1, and what does it cost? Generic degradations of faces the prior never saw.

    python -m benchmarks.refine --validation DIR [--every N] [--short] [--json OUT] [--picture PNG]

Fidelity (PSNR, SSIM, HaarPSI against the clean face; the low band's distance to stage 1) and realism (KID of the
results against the clean faces, in the features of degradation removal), over start timestep, guidance scale and calls.
`mean` rows average several draws; realism 0 is what the prior expects in one call, and rows between mix both, as the
recipe's pseudo targets do.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from adapt.dataset import load_clean
from adapt.evaluate import haarpsi, psnr, ssim
from adapt.judge import restore_all
from adapt.photos import write_photo
from adapt.pretrain_jobs import fixed_pairs, sheet_of
from adapt.prior_setup import consistencies
from adapt.seeds import generator_of
from benchmarks.prior import features, kid
from pseudo_targets.embedded import load_mini, load_removal
from pseudo_targets.gating import low_band_difference
from pseudo_targets.priors import Prior
from pseudo_targets.sampling import Trajectory, conditional_mean, refine
from recipes.load import load_recipe
from recipes.schema import Generation
from restorers.zoo import load_restorer


@dataclass(frozen=True)
class Row:
    """One setting of the sampler."""

    start: int
    calls: int
    guidance_scale: float
    draws: int = 1
    realism: float = 1.0


def default_draw(settings: Generation) -> Row:
    """One draw as the recipe makes them for a photo of middling severity."""
    return Row(settings.start_timesteps[1], settings.calls, settings.guidance_scale)


def rows_of(settings: Generation, short: bool) -> list[Row]:
    """The recipe's own settings; unless `short`, each axis around them too."""
    start, calls, guidance = settings.start_timesteps[1], settings.calls, settings.guidance_scale
    targets = [Row(s, calls, guidance, settings.candidates, settings.realism) for s in settings.start_timesteps]
    own = [*targets, Row(999, 1, guidance, 1, 0.0)]
    if short:
        return own
    starts = [Row(s, calls, guidance) for s in sorted({50, 100, 200, 300, 500, 999, *settings.start_timesteps})]
    means = [Row(s, calls, guidance, 4) for s in settings.start_timesteps]
    mixtures = [Row(start, calls, guidance, 4, realism) for realism in (0.25, 0.5, 0.75)]
    scales = [Row(start, calls, scale) for scale in (0.05, 0.2, 0.5)]
    lengths = [Row(start, n, guidance) for n in (8, 12, 20, 150)]
    return [*own, *starts, *means, *mixtures, *scales, *lengths]


def name_of(row: Row) -> str:
    """The row in words."""
    if not row.realism:
        return "expected (1 call)"
    name = f"start {row.start}, {row.calls} calls, guidance {row.guidance_scale:g}"
    name += f", mean of {row.draws}" if row.draws > 1 else ""
    return name + (f", realism {row.realism:g}" if row.realism < 1 else "")


def refined(prior: Prior, reference: Tensor, settings: Generation, row: Row) -> Tensor:
    """The mean of `row.draws` refinements of every image, mixed with what the prior expects."""
    changed = settings.model_copy(update={"guidance_scale": row.guidance_scale})
    keep = consistencies(changed, prior, row.start)
    trajectory = Trajectory(row.start, row.calls, settings.eta, settings.control_strength)
    mean = torch.zeros_like(reference)
    for first in range(0, len(reference), 16):
        part = slice(first, min(first + 16, len(reference)))
        for number in range(row.draws if row.realism else 0):
            generators = [generator_of("benchmark refine", index, number) for index in range(part.start, part.stop)]
            mean[part] += refine(prior, reference[part], trajectory, keep, generators) / row.draws
        if row.realism < 1:
            throughout = consistencies(changed, prior, len(prior.schedule) - 1)
            expected = conditional_mean(prior, reference[part], settings.control_strength, throughout)
            mean[part] = torch.lerp(expected, mean[part], row.realism)
    return mean


def measure(options: argparse.Namespace) -> tuple[list[dict[str, object]], Tensor]:
    """One dict a row, and a sheet: photos, stage 1, refined, clean."""
    settings = load_recipe(options.recipe, ()).generation
    clean = load_clean(options.validation, 128).images.float()[:: options.every]
    lq = fixed_pairs(clean)
    stage1 = restore_all(load_restorer("compact").module.eval(), lq)
    prior, removal = load_mini(), load_removal()
    wanted = features(removal, clean)
    center, scale = wanted.mean(0), wanted.std(0) + 1e-6
    wanted = (wanted - center) / scale

    def scores(image: Tensor) -> dict[str, object]:
        found = (features(removal, image) - center) / scale
        return {
            "psnr": float(psnr(image, clean).mean()),
            "ssim": float(ssim(image, clean).mean()),
            "haarpsi": float(haarpsi(image, clean).mean()),
            "low_band": float(low_band_difference(image, stage1).mean()),
            "kid": kid(found, wanted)["mean"],
        }

    rows: list[dict[str, object]] = [{"row": "degraded", **scores(lq)}, {"row": "stage 1", **scores(stage1)}]
    shown: Sequence[Tensor] = (lq, stage1)
    for row in rows_of(settings, options.short):
        started = time.monotonic()
        images = refined(prior, stage1, settings, row)
        seconds = (time.monotonic() - started) / len(clean)
        rows.append({"row": name_of(row), **scores(images), "s": seconds})
        show(rows[-1:])
        if row in (Row(999, 1, settings.guidance_scale, 1, 0.0), default_draw(settings)):
            shown = (*shown, images)
    return rows, sheet_of(*shown, clean)


def show(rows: Sequence[dict[str, object]]) -> None:
    """Prints rows of the table in Markdown."""
    for row in rows:
        fidelity = f"{row['psnr']:.2f} | {row['ssim']:.4f} | {row['haarpsi']:.4f} | {row['low_band']:.4f}"
        print(f"| {row['row']} | {fidelity} | {row['kid']:.2f} | {row.get('s', 0):.2f} |", flush=True)


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--validation", type=Path, required=True)
    parser.add_argument("--recipe", default="default")
    parser.add_argument("--every", type=int, default=1, help="take one validation face in this many")
    parser.add_argument("--short", action="store_true", help="the recipe's own settings alone")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    rows, sheet = measure(options)
    print("| row | PSNR | SSIM | HaarPSI | low band | KID | s a face |")
    show(rows)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=2) + "\n")
    if options.picture:
        write_photo(options.picture, sheet)


if __name__ == "__main__":
    main()
