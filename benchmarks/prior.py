"""Is the prior a good one? Draws from nothing, compared with faces it never saw and with those it learned from.

    python -m benchmarks.prior --train DIR --validation DIR [--weights DIR] [--count N] [--output DIR]

KID in the features of degradation removal (a fixed network), the spread of the skin's tone, the search for memorised
training faces, and two sheets: `draws.png`, and `neighbours.png` with the nearest training face under each draw (it
shows training photos, so it stays where it was written).
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import cv2
import numpy as np
import piq
import torch
import torch.nn.functional as F
from torch import Tensor

from adapt.dataset import load_clean
from adapt.photos import write_photo
from adapt.seeds import generator_of
from pseudo_targets.embedded import WEIGHTS, load_mini, load_removal
from pseudo_targets.removal import DegradationRemoval
from pseudo_targets.sampling import Trajectory, draw

CALLS = 20
SHOWN = 32
CHEEKS = (slice(66, 86), (slice(36, 50), slice(78, 92)))  # rows, columns of both cheeks of an aligned 128 px face


@torch.no_grad()
def features(removal: DegradationRemoval, images: Tensor) -> Tensor:
    """Mean and log deviation of every encoder channel, `[N, D]`."""
    rows = []
    for part in images.split(64):
        maps = removal.features(part)
        rows.append(torch.cat([m.mean((2, 3)) for m in maps] + [(m.std((2, 3)) + 1e-3).log() for m in maps], 1))
    return torch.cat(rows)


def kid(first: Tensor, second: Tensor) -> dict[str, float]:
    """Kernel distance (Binkowski et al. 2018) of 100 subsets of 79 images: mean and standard deviation."""
    torch.manual_seed(0)
    side = min(len(first), len(second)) // 2
    metric = piq.KID()
    values = [
        float(metric(first[torch.randperm(len(first))[:side]], second[torch.randperm(len(second))[:side]]))
        for _ in range(100)
    ]
    return {"mean": float(np.mean(values)), "deviation": float(np.std(values))}


def tone_angles(images: Tensor) -> Tensor:
    """Individual typology angle of the cheeks in degrees, `[N]`: high is light skin (Chardon et al. 1991)."""
    rows, columns = CHEEKS
    angles = []
    for image in images:
        lab = cv2.cvtColor(np.ascontiguousarray(image.permute(1, 2, 0).numpy()), cv2.COLOR_RGB2LAB)
        skin = np.concatenate([lab[rows, part].reshape(-1, 3) for part in columns])
        lightness, _, yellow = np.median(skin, axis=0)
        angles.append(np.degrees(np.arctan2(lightness - 50, yellow)))
    return torch.tensor(np.array(angles))


def nearest(images: Tensor, train: Tensor) -> tuple[Tensor, Tensor]:
    """Distance to, and index of, the nearest training face or its mirror image, compared at 32 px without the mean."""

    def small(x: Tensor) -> Tensor:
        flat = F.avg_pool2d(x.float(), x.shape[-1] // 32).flatten(1)
        return flat - flat.mean(1, keepdim=True)

    known = small(train)
    both = torch.cat([known, small(train.flip(-1))])
    distance = torch.cdist(small(images), both) / known.shape[1] ** 0.5
    value, index = distance.min(1)
    return value, index % len(train)


def measure(options: argparse.Namespace) -> dict[str, object]:
    """All numbers; writes the sheets."""
    train, val = (load_clean(folder, 128).images.float() for folder in (options.train, options.validation))
    prior, removal = load_mini(options.weights), load_removal(options.weights)
    started = time.monotonic()
    generators = [generator_of("benchmark draw", index) for index in range(options.count)]
    parts = [
        draw(prior, Trajectory(len(prior.schedule) - 1, CALLS), generators[first : first + 32])
        for first in range(0, options.count, 32)
    ]
    draws, seconds = torch.cat(parts), time.monotonic() - started
    seen = features(removal, train)
    center, scale = seen.mean(0), seen.std(0) + 1e-6
    real, made = (((features(removal, x) - center) / scale) for x in (val, draws))
    known = (seen - center) / scale
    far_val, _ = nearest(val, train)
    far_draws, index = nearest(draws, train)
    limit = float(far_val.quantile(0.01))
    options.output.mkdir(parents=True, exist_ok=True)
    write_photo(options.output / "draws.png", grid(draws[:SHOWN]))
    closest = far_draws.argsort()[:16]
    write_photo(options.output / "neighbours.png", grid(torch.cat([draws[closest], train[index[closest]]])))
    angles = {name: tone_angles(x) for name, x in (("training", train), ("validation", val), ("draws", draws))}
    return {
        "draws": options.count,
        "calls": CALLS,
        "seconds_per_draw": seconds / options.count,
        "kid": {"draws_validation": kid(made, real), "training_validation": kid(known, real)},
        "tone_angle": {name: {"mean": float(a.mean()), "deviation": float(a.std())} for name, a in angles.items()},
        "nearest_training_face": {
            "draws": {"median": float(far_draws.median()), "smallest": float(far_draws.min())},
            "validation": {"median": float(far_val.median()), "smallest": float(far_val.min())},
            "draws_below_first_percentile_of_validation": float((far_draws < limit).float().mean()),
        },
    }


def grid(images: Tensor, columns: int = 8) -> Tensor:
    """`[N, 3, S, S]` -> one image `[1, 3, rows * S, columns * S]`."""
    rows = [torch.cat(list(row), dim=2) for row in images.split(columns)]
    return torch.cat(rows, dim=1)[None]


def main() -> None:
    """Measures, prints, writes JSON and sheets."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--validation", type=Path, required=True)
    parser.add_argument("--weights", type=Path, default=WEIGHTS)
    parser.add_argument("--count", type=int, default=256)
    parser.add_argument("--output", type=Path, default=Path("runs/prior"))
    options = parser.parse_args()
    result = measure(options)
    text = json.dumps(result, indent=2)
    (options.output / "prior.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
