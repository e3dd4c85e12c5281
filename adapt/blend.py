"""How far to go from the restorer before all rounds to the finetuned one: a straight line between their weights.

Finetuning fits the clean bank, whose faces are smoother than real ones, and takes more of the camera's changes for
certain than it should. An average of old and new weights keeps most of the gain and loses most of the harm (Wortsman
et al. 2022, "Robust fine-tuning of zero-shot models"). Where on the line to stop is seen on the photos' own pseudo
targets, photographed by the learned camera: there the truth is known, and the faces are those of the photos.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from adapt.judge import photographed_score

SHARES = (0.25, 0.5, 0.75, 1.0)
"""Stops on the way from the old weights (0) to the new ones (1)."""
NEARLY_ALL = 0.9
"""Share of the best stop's gain that is enough."""


def blend(old: nn.Module, new: nn.Module, share: float) -> nn.Module:
    """A copy of `new` in eval mode whose weights lie at `share` of the way from `old` to `new`."""
    start, mixed = old.state_dict(), copy.deepcopy(new)
    weights = {
        name: torch.lerp(start[name].to(end), end, share) if end.is_floating_point() else end
        for name, end in new.state_dict().items()
    }
    mixed.load_state_dict(weights)
    return mixed.eval()


def best_share(old: nn.Module, new: nn.Module, photos: Tensor, clean: Tensor) -> float:
    """The smallest share of `SHARES` that brings nearly all of what the best one brings on photographed targets.

    The photographed targets are the learned camera's, not the real one's: what hardly counts for them is settled in
    favour of the restorer that is known to be sound.

    Args:
        photos: `[N, 3, S, S]`, what the learned camera makes of `clean`.
        clean: `[N, 3, S, S]`, draws of the photos' pseudo targets.
    """
    before = float(photographed_score(old, photos, clean).mean())
    gains = [float(photographed_score(blend(old, new, share), photos, clean).mean()) - before for share in SHARES]
    enough = min(NEARLY_ALL * max(gains), max(gains))
    return next(share for share, gain in zip(SHARES, gains, strict=True) if gain >= enough)
