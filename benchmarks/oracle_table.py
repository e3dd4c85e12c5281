"""Scores of the rows of `benchmarks.oracle_gap`, what they close of the gap, and the table."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor

from adapt.evaluate import BLOCK, align_tone, haarpsi, niqe, psnr, ssim
from adapt.identity import load_identity
from adapt.lpips import Lpips
from benchmarks.oracle_pairs import Pairs
from pseudo_targets.gating import low_band_difference

SCORES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"psnr": psnr, "ssim": ssim, "haarpsi": haarpsi}
LEAST_GAIN = {"psnr": 0.1, "ssim": 0.002, "haarpsi": 0.01, "identity": 0.01, "lpips": -0.005, "niqe": -0.1}
"""What the oracle must gain for a share of it to mean something; of negative ones lower is better."""
SMALLER = (2, 4)
"""How many times smaller results are scored too, as most people see them."""
LEAST_SIDE = 16
"""Side in px that HaarPSI needs."""
OPTIONAL = {
    "identity": "identity",
    "lpips": "LPIPS",
    "lpips_aligned": "LPIPS aligned",
    "niqe": "NIQE",
    "niqe_aligned": "NIQE aligned",
}
"""Columns whose networks need not be here."""
Row = dict[str, float]
Closed = dict[str, float | None]


def score(restored: list[Tensor], test: Pairs, untouched: list[Tensor], lpips: Lpips | None = None) -> Row:
    """Means over the test photos, each at its own size.

    Scores plain, with the tone aligned and at half and a quarter of the size; low band against the photo; harm rate.
    """
    result = _scores(restored, test, lpips)
    aligned = [align_tone(image, reference) for image, reference in zip(restored, test.references, strict=True)]
    result |= {f"{name}_aligned": value for name, value in _scores(aligned, test, lpips).items()}
    shortest = min(min(image.shape[-2:]) for image in restored)
    for factor in (factor for factor in SMALLER if shortest >= LEAST_SIDE * factor):
        small = [F.avg_pool2d(image, factor) for image in restored]
        clean = [F.avg_pool2d(image, factor) for image in test.references]
        result |= {f"{name}_{factor}": _mean(measure, small, clean) for name, measure in SCORES.items()}
    worse = [
        float(psnr(image, reference)) < float(psnr(before, reference))
        for image, before, reference in zip(restored, untouched, test.references, strict=True)
    ]
    return result | {"harm_rate": sum(worse) / len(worse)}


def _mean(measure: Callable[[Tensor, Tensor], Tensor], images: list[Tensor], references: list[Tensor]) -> float:
    return statistics.fmean(float(measure(*pair)) for pair in zip(images, references, strict=True))


def _scores(images: list[Tensor], test: Pairs, lpips: Lpips | None) -> Row:
    result = {name: _mean(measure, images, test.references) for name, measure in SCORES.items()}
    result["low_band"] = _mean(low_band_difference, images, test.photos)
    embed = load_identity(images[0].device)
    if embed is not None:

        def likeness(image: Tensor, reference: Tensor) -> Tensor:
            return torch.cosine_similarity(embed(image), embed(reference))

        result["identity"] = _mean(likeness, images, test.references)
    if lpips is not None:
        result["lpips"] = _mean(partial(mean_lpips, lpips), images, test.references)
    alike = len({image.shape for image in images}) == 1
    if find_spec("basicsr") is not None and alike and len(images) > 1 and min(images[0].shape[-2:]) >= BLOCK:
        result["niqe"] = niqe(torch.cat(images))
    return result


@torch.no_grad()
def mean_lpips(lpips: Lpips, image: Tensor, reference: Tensor) -> float:
    """Of one image `[1, 3, H, W]`."""
    return float(lpips(image.clamp(0, 1), reference).mean())


def gap_closed(rows: dict[str, Row], row: str, suffix: str = "") -> Closed:
    """(row - untouched) / (oracle - untouched) for every score there is; None where the oracle gains too little."""
    result: Closed = {}
    for name, least in LEAST_GAIN.items():
        if name + suffix not in rows["oracle"]:
            continue
        value, low, high = (rows[which][name + suffix] for which in (row, "untouched", "oracle"))
        result[name] = (value - low) / (high - low) if (high - low) / least >= 1 else None
    return result


def summary(results: list[dict[str, object]]) -> dict[str, object]:
    """Means over seeds with their standard error, and the shares of the gap that are closed."""
    tables: list[dict[str, Row]] = [result["rows"] for result in results]  # type: ignore[misc]
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
        "oracle_gain": {key: rows["oracle"][key] - value for key, value in rows["untouched"].items()},
        "harm_rate": rows["ours"]["harm_rate"],
        "seconds": results[0]["seconds"],
        "seeds": [result["seed"] for result in results],
        "recipe": results[0]["recipe"],
        "runs": results,
    }


def show(result: dict[str, object]) -> None:
    """Prints the table in Markdown; seconds are those of the first seed."""
    rows: dict[str, Row] = result["rows"]  # type: ignore[assignment]
    seconds: dict[str, object] = result["seconds"]  # type: ignore[assignment]
    scores = ["PSNR", "SSIM", "HaarPSI", "gap closed"]
    more = {key: title for key, title in OPTIONAL.items() if all(key in row for row in rows.values())}
    titles = [*scores, *(f"{name} aligned" for name in scores)]
    smaller = [factor for factor in SMALLER if all(f"psnr_{factor}" in row for row in rows.values())]
    titles += [f"PSNR / SSIM / HaarPSI at 1/{factor}" for factor in smaller]
    titles += ["low band", "harm", *more.values(), "seconds"]
    print("| row | " + " | ".join(titles) + " |")
    print("|---|" + "--:|" * len(titles))
    for name, row in rows.items():
        cells = [name]
        for suffix in ("", "_aligned"):
            closed = gap_closed(rows, name, suffix)
            cells += [f"{row['psnr' + suffix]:.2f}", f"{row['ssim' + suffix]:.4f}", f"{row['haarpsi' + suffix]:.4f}"]
            cells += [" / ".join(_percent(closed[score]) for score in SCORES)]
        for factor in smaller:
            small = [row[f"{name}_{factor}"] for name in SCORES]
            cells.append(f"{small[0]:.2f} / {small[1]:.4f} / {small[2]:.4f}")
        cells += [f"{row['low_band']:.4f}", f"{row['harm_rate']:.0%}", *(f"{row[key]:.4f}" for key in more)]
        spent = seconds.get(name.rstrip("*"))
        cells += ["" if spent is None else f"{spent:.0f}"]
        print("| " + " | ".join(cells) + " |")


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"
