"""Identity embeddings, where a face recognition network is on disk."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from adapt.face_retina import find_weights, installed

WEIGHTS = "recognition_arcface_ir_se50.pth"


def load_identity(device: torch.device) -> Callable[[Tensor], Tensor] | None:
    """facexlib's ArcFace as `[B, 3, S, S]` in `[0, 1]` -> `[B, 512]`, or None when it or its weights are not there.

    Never downloads.
    """
    path = find_weights(WEIGHTS)
    if path is None or not installed():
        return None
    from facexlib.recognition.arcface_arch import Backbone

    net = Backbone(num_layers=50, drop_ratio=0.6, mode="ir_se")
    net.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    net.to(device).eval().requires_grad_(False)

    def embed(image: Tensor) -> Tensor:
        # The inner face of the FFHQ template, at ArcFace's size and range.
        side = image.shape[-1]
        inner = image[..., round(0.18 * side) : round(0.94 * side), round(0.12 * side) : round(0.88 * side)]
        return net(F.interpolate(inner, (112, 112), mode="bilinear", antialias=True) * 2 - 1)

    return embed
