"""How far to go from the restorer one has to the one that was finetuned: a straight line between their weights.

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


def blend(old: nn.Module, new: nn.Module, share: float) -> nn.Module:
    """A copy of `new` in eval mode whose weights lie at `share` of the way from `old` to `new`."""
    start = old.state_dict()
    mixed = copy.deepcopy(new)
    mixed.load_state_dict(
        {name: torch.lerp(start[name].to(end), end, share) for name, end in new.state_dict().items()}
    )
    return mixed.eval()


def best_share(old: nn.Module, new: nn.Module, photos: Tensor, clean: Tensor) -> float:
    """The share of `SHARES` with the highest mean PSNR on photographed targets.

    Args:
        photos: `[N, 3, S, S]`, what the learned camera makes of `clean`.
        clean: `[N, 3, S, S]`, draws of the photos' pseudo targets.
    """

    return max(SHARES, key=lambda share: float(photographed_score(blend(old, new, share), photos, clean).mean()))
