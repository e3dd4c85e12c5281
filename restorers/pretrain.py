"""Training signal of the compact restorer on generic degradations."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

Degrade = Callable[[Tensor, Generator], Tensor]
"""`(clean [B, 3, H, W] in [0, 1], generator) -> degraded`, same shape and range."""


def restoration_losses(module: nn.Module, clean: Tensor, degrade: Degrade, generator: Generator) -> dict[str, Tensor]:
    """L1 distance and L1 distance of neighbouring differences between the restored and the clean image.

    The second term is the first-order part of a gradient-domain loss; it sharpens edges without a discriminator.
    """
    with torch.no_grad(), torch.autocast(clean.device.type, enabled=False):
        lq = degrade(clean, generator)
    restored = module(lq)
    error = restored - clean
    across = error[..., 1:] - error[..., :-1]
    down = error[..., 1:, :] - error[..., :-1, :]
    return {"l1": F.l1_loss(restored, clean), "gradient": 0.25 * (across.abs().mean() + down.abs().mean())}
