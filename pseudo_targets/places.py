"""Where on a face a window of a photo lies: what tells the mini prior the scale and the place of what it draws.

A prior that learns windows of all scales and is not told which one it sees draws parts of faces and textures where
whole faces are asked for (Patch Diffusion, Wang et al. 2023, section 3.1, tells its denoiser size and position). A
place is `(span, x, y)`: side and centre of the window as shares of the side of the face's aligned crop. Windows of
other content have none, which stands as NaN.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

WHOLE = (1.0, 0.5, 0.5)
"""The place of a whole aligned face."""
NOWHERE = (math.nan, math.nan, math.nan)
"""The place of a window that lies on no face."""
SMALLEST = 0.25
"""The smallest span that the embedded prior was taught: 128 px of a face of 512 px."""
OCTAVES = 5
WIDTH = 64


def place_context(places: Tensor) -> Tensor:
    """The prompt `[B, 1, 64]` that says a place: sines and cosines of scale and position; zeros where there is none.

    Args:
        places: `[B, 3]`, `(span, x, y)` or NaN.
    """
    known = ~places.isnan().any(1, keepdim=True)
    span, centre = places[:, :1].nan_to_num(1.0), places[:, 1:].nan_to_num(0.5)
    values = torch.cat([span.log2() / 2, centre - 0.5], 1)  # [B, 3], about -1..0 and -0.5..0.5
    angles = (values[:, :, None] * math.pi * 2.0 ** torch.arange(OCTAVES, device=places.device)).flatten(1)
    words = torch.cat([torch.ones_like(span), values, angles.sin(), angles.cos()], 1)
    context = torch.zeros(len(places), WIDTH, device=places.device)
    context[:, : words.shape[1]] = torch.where(known, words, 0.0)
    return context[:, None]


def nearest_known(span: float, x: float, y: float) -> tuple[float, float, float]:
    """The place most like this one that the prior was taught; NaN where the window is hardly on the face's crop."""
    kept = min(1.0, max(SMALLEST, span))
    # A larger window than the crop shows more than a face, and one that reaches far beyond its edge something else.
    centre = [min(max(value, kept / 2), 1 - kept / 2) for value in (x, y)]
    beyond = max(abs(value - inside) for value, inside in zip((x, y), centre, strict=True))
    return (kept, *centre) if span <= 1.25 and beyond <= span / 4 else NOWHERE  # type: ignore[return-value]
