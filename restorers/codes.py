"""Networks that restore by choosing codes from a book (CodeFormer, Zhou et al. 2022): what they predict, what is right.

CodeFormer's choice passes no gradient, so a loss on its images reaches neither encoder nor transformer. Both learn from
the codes of the clean image instead, as in its second stage of training; code book, generator and fusion stay.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from restorers.published import PublishedRestorer

LEARNS = ("encoder", "position_emb", "feat_emb", "ft_layers", "idx_pred_layer")
"""The parts of the network that learn to predict codes."""


def chooses_codes(module: nn.Module) -> bool:
    """Whether `module` is a restorer that predicts codes of a book, as CodeFormer does."""
    return isinstance(module, PublishedRestorer) and all(hasattr(module.net, part) for part in (*LEARNS, "quantize"))


class CodePredictor(nn.Module):
    """Image `[B, 3, H, W]` in `[0, 1]` -> (scores of the codes `[B, T, N]`, features `[B, C, h, w]`), T = h * w.

    Args:
        restorer: a network for which `chooses_codes` holds; it is shared, and what must not learn is frozen.
    """

    def __init__(self, restorer: PublishedRestorer) -> None:
        super().__init__()
        self.restorer = restorer
        for name, parameter in restorer.net.named_parameters():
            parameter.requires_grad_(name.split(".")[0] in LEARNS)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        net: Any = self.restorer.net
        features = _features(self.restorer, image)
        tokens = net.feat_emb(features.flatten(2).permute(2, 0, 1))  # T, B, width
        place = net.position_emb[:, None].expand(-1, len(image), -1)
        for layer in net.ft_layers:
            tokens = layer(tokens, query_pos=place)
        return net.idx_pred_layer(tokens).transpose(0, 1), features


@torch.no_grad()
def codes_of(restorer: PublishedRestorer, image: Tensor) -> tuple[Tensor, Tensor]:
    """The codes nearest to a clean image's features: their numbers `[B, T]`, and themselves `[B, C, h, w]`."""
    features = _features(restorer, image)
    book: Tensor = restorer.net.quantize.embedding.weight  # type: ignore[union-attr, assignment]
    tokens = features.flatten(2).transpose(1, 2)  # B, T, C
    numbers = torch.cdist(tokens.float(), book.float().expand(len(image), -1, -1)).argmin(2)
    return numbers, book[numbers].transpose(1, 2).reshape(features.shape)


def _features(restorer: PublishedRestorer, image: Tensor) -> Tensor:
    net: Any = restorer.net
    features = restorer.resampled(image) * 2 - 1
    for block in net.encoder.blocks:
        features = block(features)
    return features
