"""How far to go from the restorer before all rounds to the finetuned one: a straight line between their weights.

Finetuning fits the clean bank, whose faces are smoother than real ones, and takes more of the camera's changes for
certain than it should. An average of old and new weights keeps most of the gain and loses most of the harm (Wortsman
et al. 2022, "Robust fine-tuning of zero-shot models"). Where on the line to stop is seen on the photos' own first
pseudo targets, photographed by the learned camera (`adapt.stages.known_clean`): there the truth is known, and the
faces are those of the photos.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from adapt.judge import photographed_score

SHARES = tuple(step / 8 for step in range(1, 9))
"""Stops on the way from the old weights (0) to the new ones (1)."""
LOSS = 3.0
"""How many dB gained by other photos make up for one dB that a photo loses."""


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
    """The share of `SHARES` that is worth most on photographed targets, where losses count `LOSS` times.

    Args:
        photos: `[N, 3, S, S]`, what the learned camera makes of `clean`.
        clean: `[N, 3, S, S]`, draws of the photos' pseudo targets.
    """
    before = photographed_score(old, photos, clean)
    changes = {share: photographed_score(blend(old, new, share), photos, clean) - before for share in SHARES}
    return max(SHARES, key=lambda share: _worth(changes[share]))


def _worth(change: Tensor) -> float:
    """What changes in dB `[N]` are worth together."""
    return float((change.clamp(min=0) + LOSS * change.clamp(max=0)).mean())
