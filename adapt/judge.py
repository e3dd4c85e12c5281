"""Is the adapted restorer better on photos it never saw? Judged without ground truth, photo by photo."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from adapt.results import Judgement, PairedDifference
from adapt.seeds import generator_of
from pseudo_targets.camera import LearnedCamera
from pseudo_targets.gating import low_band_difference
from recipes.schema import Judge

Restore = Callable[[Tensor], Tensor]

PIXELS_AT_ONCE = 16 * 128 * 128
"""As a network that enlarges inside needs gigabytes for each megapixel."""


@torch.no_grad()
def restore_all(restore: Restore, photos: Tensor) -> Tensor:
    """Restores `[N, 3, S, S]` in batches, clamped to `[0, 1]`, where the photos lie; a network may lie elsewhere."""
    batch = max(1, PIXELS_AT_ONCE // (photos.shape[-2] * photos.shape[-1]))
    place = next(restore.parameters(), photos).device if isinstance(restore, nn.Module) else photos.device
    return torch.cat([restore(part.to(place)).clamp(0, 1).to(photos.device) for part in photos.split(batch)])


def scores_of(restored: Tensor, photos: Tensor, cleanness: Restore, camera: LearnedCamera | None) -> dict[str, Tensor]:
    """Scores of each restored photo without ground truth, `[N]`; greater is better.

    `cleanness`: minus the distance from clean faces (`pseudo_targets.quality.fit_cleanness`).
    `agreement`: minus the difference between the low bands of photo and restored photo, the latter with the contrast
    that the learned camera would give it, as what undoes a loss of contrast must differ from the photo.
    """
    seen = restored if camera is None else camera.toned(restored)
    clean = torch.cat([cleanness(part) for part in restored.split(16)])
    return {"cleanness": clean, "agreement": -low_band_difference(seen, photos)}


@torch.no_grad()
def photographed_score(restore: Restore, seen: Tensor, clean: Tensor) -> Tensor:
    """PSNR in dB, `[N]`, of what a restorer makes of clean faces `[N, 3, S, S]` that the learned camera has `seen`."""
    return -10 * (restore_all(restore, seen) - clean).square().mean((1, 2, 3)).clamp(min=1e-10).log10()


def paired_difference(after: Tensor, before: Tensor, seed: int, draws: int = 2000) -> PairedDifference:
    """Mean of `after - before` with the 95 % interval of a bootstrap over photos."""
    difference = (after - before).double()
    index = torch.randint(len(difference), (draws, len(difference)), generator=generator_of("bootstrap", seed))
    means = difference[index].mean(1)
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return PairedDifference(float(difference.mean()), low, high, len(difference))


def judge(before: dict[str, Tensor], after: dict[str, Tensor], limits: Judge, seed: int) -> Judgement:
    """Accepts a round whose photos became better, interval included, and still agree with what was photographed.

    With `limits.enabled` off every round is accepted.
    """
    differences = {name: paired_difference(after[name], before[name], seed) for name in before}
    # Where the truth is known, as it is for photographed targets, better and worse are what that says.
    telling = "photographed" if "photographed" in after else "cleanness"
    harm = float((after[telling] < before[telling]).float().mean())
    agree = differences["agreement"]
    gains = {name: difference for name, difference in differences.items() if name != "agreement"}
    found = ", ".join(f"{name} {gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]" for name, gain in gains.items())
    if not all(math.isfinite(difference.mean) for difference in differences.values()):
        return Judgement(differences, harm, False, f"the new restorer gives no finite scores: {found}")
    if not limits.enabled:
        return Judgement(differences, harm, True, f"kept without judging: {found}")
    if gains[telling].count < 2:
        return Judgement(differences, harm, False, f"one held-out photo cannot judge: {found}")
    if gains[telling].low <= 0:
        return Judgement(differences, harm, False, f"not better on held-out photos: {found}")
    # Nearness to clean faces ranks small changes wrongly, as smoother is not always worse; it speaks of large ones.
    if gains["cleanness"].mean < -limits.cleanness_loss:
        return Judgement(differences, harm, False, f"further from clean faces: {found}")
    if agree.mean < -limits.low_band_loss:
        reason = f"drifts from the photos: agreement {agree.mean:+.4f}, limit {-limits.low_band_loss:+.4f}"
        return Judgement(differences, harm, False, reason)
    if harm > limits.harm:
        reason = f"{harm:.0%} of the held-out photos got worse, limit {limits.harm:.0%}"
        return Judgement(differences, harm, False, reason)
    return Judgement(differences, harm, True, f"better on held-out photos: {found}")
