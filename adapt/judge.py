"""Is the adapted restorer better on photos it never saw? Judged without ground truth, photo by photo."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapt.restore import restore_whole
from adapt.results import Judgement, PairedDifference
from adapt.seeds import generator_of
from adapt.windows import padded
from adapt.working_scale import shrink_factor
from pseudo_targets.camera import TonedCamera
from pseudo_targets.gating import low_band_difference
from recipes.schema import Judge
from restorers.runtime import RuntimeRestorer

Restore = Callable[[Tensor], Tensor]

WINDOW = 128
"""Side in px of the windows in which cleanness is measured."""
SIZES = (192, 384, 768, 1536)
"""Limits of the classes of photos by their shorter side in px."""
FEWEST_OF_A_SIZE = 4
"""Photographed windows of a size class from which on it has a say."""
UNSEEN = 0.02
"""A loss in dB that nobody sees."""
PIXELS_AT_ONCE = 16 * 128 * 128
"""As a network that enlarges inside needs gigabytes for each megapixel."""


@torch.no_grad()
def restore_all(restore: Restore, photos: Tensor) -> Tensor:
    """Restores `[N, 3, S, S]` in batches, clamped to `[0, 1]`, where the photos lie; a network may lie elsewhere."""
    batch = max(1, PIXELS_AT_ONCE // (photos.shape[-2] * photos.shape[-1]))
    place = next(restore.parameters(), photos).device if isinstance(restore, nn.Module) else photos.device
    return torch.cat([restore(part.to(place)).clamp(0, 1).to(photos.device) for part in photos.split(batch)])


SMALLER = (2, 4)
"""How many times smaller results are also looked at: what people see who do not zoom in."""


def scores_of(
    restored: Sequence[Tensor], photos: Sequence[Tensor], cleanness: Restore, camera: TonedCamera | None
) -> dict[str, Tensor]:
    """Scores of each restored photo `[1, 3, H, W]`, of any sizes, without ground truth, `[N]`; greater is better.

    `cleanness`: minus the distance from clean windows (`pseudo_targets.quality.fit_cleanness`), mean over windows.
    `agreement`: minus the difference between the low bands of photo and restored photo, the latter with the contrast
    that the learned camera would give it, as what undoes a loss of contrast must differ from the photo.
    """
    clean, agree = [], []
    for image, photo in zip(restored, photos, strict=True):
        seen = image if camera is None else camera.toned(image)
        agree.append(-low_band_difference(seen, photo))
        clean.append(torch.cat([cleanness(part) for part in tiles_of(image).split(16)]).mean()[None])
    return {"cleanness": torch.cat(clean), "agreement": torch.cat(agree)}


def served_photos(serve: RuntimeRestorer, photos: Sequence[Tensor]) -> list[Tensor]:
    """Photos `[1, 3, H, W]` of any sizes, or aligned faces for what knows nothing else, as `adapt restore` does it."""
    return [restore_whole(photo, serve, 1 if serve.aligned_faces else shrink_factor(photo)) for photo in photos]


def tiles_of(image: Tensor, size: int = WINDOW) -> Tensor:
    """`[1, 3, H, W]` cut into `[N, 3, size, size]` without overlap; rims that fill no tile are left out."""
    image = padded(image, size)
    rows, columns = image.shape[-2] // size, image.shape[-1] // size
    part = image[0, :, : rows * size, : columns * size]
    return part.unflatten(1, (rows, size)).unflatten(3, (columns, size)).permute(1, 3, 0, 2, 4).flatten(0, 1)


@torch.no_grad()
def photographed_scores(serve: Restore, seen: Tensor, clean: Tensor) -> dict[str, Tensor]:
    """PSNR in dB, `[N]`, of what is served for clean windows `[N, 3, S, S]` that the learned camera has `seen`, as they
    are and brought down by `SMALLER`."""
    restored = restore_all(serve, seen)
    scores = {"photographed": _psnr(restored, clean)}
    for factor in SMALLER:
        down = partial(F.avg_pool2d, kernel_size=factor)
        scores[f"photographed at 1/{factor}"] = _psnr(down(restored), down(clean))
    return scores


@torch.no_grad()
def photographed_score(restore: Restore, seen: Tensor, clean: Tensor) -> Tensor:
    """PSNR in dB, `[N]`, of what `restore` makes of clean windows `[N, 3, S, S]` that the learned camera has `seen`."""
    return _psnr(restore_all(restore, seen), clean)


def _psnr(image: Tensor, clean: Tensor) -> Tensor:
    return -10 * (image - clean).square().mean((1, 2, 3)).clamp(min=1e-10).log10()


def size_class(side: int) -> str:
    """The kind of photo by its shorter side in px: what folders hold differs by more than a factor."""
    return next((f"below {limit} px" for limit in SIZES if side < limit), f"{SIZES[-1]} px and more")


def paired_difference(after: Tensor, before: Tensor, seed: int, draws: int = 2000) -> PairedDifference:
    """Mean of `after - before` with the 95 % interval of a bootstrap over photos."""
    difference = (after - before).double()
    index = torch.randint(len(difference), (draws, len(difference)), generator=generator_of("bootstrap", seed))
    means = difference[index].mean(1)
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return PairedDifference(float(difference.mean()), low, high, len(difference))


def judge(
    before: dict[str, Tensor], after: dict[str, Tensor], limits: Judge, seed: int, groups: Sequence[str] = ()
) -> Judgement:
    """Accepts a round whose photos became better, interval included, and still agree with what was photographed.

    A round that harms photos of one size, or what is seen at a smaller scale, is not accepted either. With
    `limits.enabled` off every round is accepted.

    Args:
        groups: the size class of each photographed window, "" where it belongs to no photo.
    """
    differences = {name: paired_difference(after[name], before[name], seed) for name in before}
    # Where the truth is known, as it is for photographed targets, that says what is better and what is worse.
    telling = "photographed" if "photographed" in after else "cleanness"
    harm = float((after[telling] < before[telling]).float().mean())
    agree = differences["agreement"]
    gains = {name: difference for name, difference in differences.items() if name in ("cleanness", "photographed")}
    found = ", ".join(f"{name} {gain.mean:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]" for name, gain in gains.items())
    if not all(math.isfinite(difference.mean) for difference in differences.values()):
        return Judgement(differences, harm, False, f"the new restorer gives no finite scores: {found}")
    if not limits.enabled:
        return Judgement(differences, harm, True, f"kept without judging: {found}")
    if gains[telling].count < 2:
        return Judgement(differences, harm, False, f"one held-out photo cannot judge: {found}")
    if gains[telling].low <= 0:
        return Judgement(differences, harm, False, f"not better on held-out photos: {found}")
    for name, difference in differences.items():
        if name.startswith("photographed at") and difference.mean < -UNSEEN:
            return Judgement(differences, harm, False, f"worse when seen smaller: {name} {difference.mean:+.3f} dB")
    if telling == "photographed" and gains[telling].mean < limits.gain:
        return Judgement(differences, harm, False, f"hardly better, less than {limits.gain:g} dB: {found}")
    for group in sorted(set(groups) - {""}):
        change = (after[telling] - before[telling])[torch.tensor([other == group for other in groups])]
        if len(change) >= FEWEST_OF_A_SIZE and float(change.mean()) < -UNSEEN:
            return Judgement(differences, harm, False, f"worse on photos of {group}: {float(change.mean()):+.3f} dB")
    # Nearness to clean windows ranks small changes wrongly, as smoother is not always worse; it speaks of large ones.
    if gains["cleanness"].mean < -limits.cleanness_loss:
        return Judgement(differences, harm, False, f"further from clean windows: {found}")
    if agree.mean < -limits.low_band_loss:
        reason = f"drifts from the photos: agreement {agree.mean:+.4f}, limit {-limits.low_band_loss:+.4f}"
        return Judgement(differences, harm, False, reason)
    if harm > limits.harm:
        reason = f"{harm:.0%} of the held-out photos got worse, limit {limits.harm:.0%}"
        return Judgement(differences, harm, False, reason)
    return Judgement(differences, harm, True, f"better on held-out photos: {found}")
