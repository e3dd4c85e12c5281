"""Identity embeddings, where a face recognition network is on disk."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapt.facexlib_nets import RECOGNITION, load_net, usable


def load_identity(device: torch.device) -> Callable[[Tensor], Tensor] | None:
    """facexlib's ArcFace as `[B, 3, S, S]` in `[0, 1]` -> `[B, 512]`, or None when it or its weights are not there.

    Raises:
        AdaptError: they are there and cannot be used.
    """
    if not usable(RECOGNITION):
        return None
    net = load_net(_arcface, RECOGNITION).to(device)

    def embed(image: Tensor) -> Tensor:
        # The inner face of the FFHQ template, at ArcFace's size and range.
        side = image.shape[-1]
        inner = image[..., round(0.18 * side) : round(0.94 * side), round(0.12 * side) : round(0.88 * side)]
        return net(F.interpolate(inner, (112, 112), mode="bilinear", antialias=True) * 2 - 1)

    return embed


def _arcface() -> nn.Module:
    from facexlib.recognition.arcface_arch import Backbone

    return Backbone(num_layers=50, drop_ratio=0.6, mode="ir_se")
