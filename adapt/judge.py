"""Is the adapted restorer better on photos it never saw? Judged without ground truth, photo by photo."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from adapt.results import Judgement, PairedDifference
from adapt.seeds import generator_of
from pseudo_targets.gating import low_band_difference
from recipes.schema import Judge

Restore = Callable[[Tensor], Tensor]


@torch.no_grad()
def restore_all(restore: Restore, photos: Tensor, batch: int = 16) -> Tensor:
    """Restores `[N, 3, S, S]` in batches, clamped to `[0, 1]`."""
    return torch.cat([restore(part).clamp(0, 1) for part in photos.split(batch)])


def scores_of(restored: Tensor, photos: Tensor, cleanness: Restore) -> dict[str, Tensor]:
    """Scores of each restored photo without ground truth, `[N]`; greater is better.

    `cleanness`: +1 like clean faces, -1 like photos of this camera (`pseudo_targets.quality.fit_cleanness`).
    `agreement`: minus the difference between the low bands of restored photo and photo.
    """
    clean = torch.cat([cleanness(part) for part in restored.split(16)])
    return {"cleanness": clean, "agreement": -low_band_difference(restored, photos)}


def paired_difference(after: Tensor, before: Tensor, seed: int, draws: int = 2000) -> PairedDifference:
    """Mean of `after - before` with the 95 % interval of a bootstrap over photos."""
    difference = (after - before).double()
    index = torch.randint(len(difference), (draws, len(difference)), generator=generator_of("bootstrap", seed))
    means = difference[index].mean(1)
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return PairedDifference(float(difference.mean()), low, high, len(difference))


def judge(
    before: dict[str, Tensor], after: dict[str, Tensor], camera_agreement: float, limits: Judge, seed: int
) -> Judgement:
    """Accepts a round whose photos became better, interval included, and still agree with what was photographed.

    A restorer that undoes what the camera did to contrast must move away from the photos, so agreement may fall as low
    as `camera_agreement`, that of clean faces with what the learned camera makes of them, before `limits` count.
    With `limits.enabled` off every round is accepted.
    """
    differences = {name: paired_difference(after[name], before[name], seed) for name in before}
    harm = float((after["cleanness"] < before["cleanness"]).float().mean())
    gain, agree = differences["cleanness"], differences["agreement"]
    if not limits.enabled:
        reason = f"kept without judging: cleanness {gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"
        return Judgement(differences, harm, True, reason)
    if gain.low <= 0:
        reason = f"not better on held-out photos: cleanness {gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"
        return Judgement(differences, harm, False, reason)
    lowest = min(0.0, camera_agreement - float(before["agreement"].mean())) - limits.low_band_loss
    if agree.mean < lowest:
        reason = f"drifts from the photos: agreement {agree.mean:+.4f}, limit {lowest:+.4f}"
        return Judgement(differences, harm, False, reason)
    if harm > limits.harm:
        reason = f"{harm:.0%} of the held-out photos got worse, limit {limits.harm:.0%}"
        return Judgement(differences, harm, False, reason)
    reason = f"better on held-out photos: cleanness {gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]"
    return Judgement(differences, harm, True, reason)
