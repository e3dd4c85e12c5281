"""The two small nets behind the bundled face finder, and the geometry they share.

Both look at gray images only: old photographs have no colour, and one channel makes the first layers cheap.
`FaceProposals` scores every 8th pixel of an image for "the centre of a face whose crop is about 28 to 76 px wide".
`FaceAligner` looks at one 64 px view and says how it must move to sit on the FFHQ template, and whether it is a face.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

STRIDE = 8
"""Pixels between neighbouring proposals."""
REFERENCE_SIDE = 46.0
"""Crop side in px that `FaceProposals` calls scale 0; the geometric middle of its range."""
ANGLE_UNIT = 0.5
"""Radians to one unit of the predicted angle."""
VIEW = 64
"""Side in px of the view that `FaceAligner` reads."""


def _block(inputs: int, outputs: int, kernel: int, stride: int) -> nn.Sequential:
    """Convolution, batch normalisation, ReLU; keeps the size up to the stride."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


class FaceProposals(nn.Module):
    """Fully convolutional face proposals at one scale; a pyramid of images gives the others.

    `[B,1,H,W]` gray in [0,1] -> `[B,5,ceil(H/8),ceil(W/8)]`: face logit, centre offset x and y (unit: 8 px),
    log(side / 46 px), angle (unit: 0.5 rad). The pixel at `8 * i + 3.5` is the centre of cell i.
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            _block(1, 12, 5, 2),
            _block(12, 24, 3, 2),
            _block(24, 40, 3, 2),
            _block(40, 64, 3, 1),
            _block(64, 64, 3, 1),
            _block(64, 64, 3, 1),
        )
        self.head = nn.Conv2d(64, 5, 1)
        # Start from "no face anywhere": faces are rare, and the focal loss is unstable from 50/50.
        self.head.bias = nn.Parameter(torch.tensor([-3.0, 0.0, 0.0, 0.0, 0.0]))

    def forward(self, gray: Tensor) -> Tensor:
        """See the class; raises nothing beyond torch's own shape errors."""
        return self.head(self.features((gray - 0.5) / 0.25))


class FaceAligner(nn.Module):
    """`[B,1,64,64]` gray view in [0,1] -> `[B,5]`: face logit, shift x and y (unit: view side), log scale, angle (rad).

    The four numbers place the FFHQ crop inside the view: its centre, its side over the view's side, its rotation.
    """

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            _block(1, 16, 5, 2),
            _block(16, 24, 3, 1),
            _block(24, 48, 3, 2),
            _block(48, 48, 3, 1),
            _block(48, 64, 3, 2),
            _block(64, 64, 3, 1),
            _block(64, 96, 3, 2),
            nn.Flatten(),
            nn.Linear(96 * 16, 64),
            nn.ReLU(),
        )
        self.head = nn.Linear(64, 5)
        nn.init.zeros_(self.head.bias)

    def forward(self, view: Tensor) -> Tensor:
        """See the class; each view is brought to mean 0 and spread 1 first, so exposure does not matter."""
        mean = view.mean((1, 2, 3), keepdim=True)
        spread = view.std((1, 2, 3), keepdim=True)
        return self.head(self.features((view - mean) / (spread + 0.02)))


def placed_points(placement: Tensor, template: Tensor) -> Tensor:
    """Template points `[5,2]` (unit square centred at 0) under `[B,4]` (x, y, log scale, angle) -> `[B,5,2]`."""
    x, y, log_scale, angle = placement.unbind(-1)
    c, s = torch.exp(log_scale) * torch.cos(angle), torch.exp(log_scale) * torch.sin(angle)
    rotation = torch.stack([torch.stack([c, -s], -1), torch.stack([s, c], -1)], -2)  # [B,2,2]
    return template @ rotation.transpose(-1, -2) + torch.stack([x, y], -1)[:, None]


def compose(square: Tensor, placement: Tensor) -> Tensor:
    """Move squares by placements found inside them: both `[N,4]`, squares are (centre x, y in px, log side, angle)."""
    x, y, log_side, angle = square.unbind(-1)
    dx, dy, log_scale, turn = placement.unbind(-1)
    side = torch.exp(log_side)
    c, s = side * torch.cos(angle), side * torch.sin(angle)
    return torch.stack([x + c * dx - s * dy, y + s * dx + c * dy, log_side + log_scale, angle + turn], -1)


def square_to_matrix(square: Tensor, size: int) -> Tensor:
    """Crop pixels of a `size` px crop -> photo pixels, `[N,2,3]`; pixel centres are at integers on both sides."""
    x, y, log_side, angle = square.unbind(-1)
    scale = torch.exp(log_side) / size
    c, s = scale * torch.cos(angle), scale * torch.sin(angle)
    half = (size - 1) / 2
    return torch.stack(
        [torch.stack([c, -s, x - half * (c - s)], -1), torch.stack([s, c, y - half * (s + c)], -1)], -2
    )


def overlap(squares: Tensor) -> Tensor:
    """Intersection over union of upright squares, `[N,4]` -> `[N,N]`; rotation is ignored, as box detectors do."""
    half = torch.exp(squares[:, 2]) / 2
    low, high = squares[:, :2] - half[:, None], squares[:, :2] + half[:, None]
    inner = (torch.minimum(high[:, None], high[None]) - torch.maximum(low[:, None], low[None])).clamp(min=0).prod(-1)
    area = (2 * half) ** 2
    return inner / (area[:, None] + area[None] - inner)


def suppress(squares: Tensor, scores: Tensor, limit: float) -> Tensor:
    """Greedy non-maximum suppression: indices of the kept squares, best score first.

    A square goes when it overlaps a better one by more than `limit` (intersection over union), or when its centre
    lies on the face in the middle of a better one (a mouth, an eye or an ear taken for a small face).
    """
    order = torch.argsort(scores, descending=True, stable=True)
    shared = overlap(squares)
    distance = torch.cdist(squares[:, :2], squares[:, :2])
    inside = distance < torch.exp(squares[:, 2])[:, None] * 0.35
    gone = torch.zeros(len(squares), dtype=torch.bool)
    kept: list[int] = []
    for i in order.tolist():
        if not gone[i]:
            kept.append(i)
            gone |= (shared[i] > limit) | inside[i]
    return torch.tensor(kept, dtype=torch.long)


def gray_pyramid(image: Tensor, smallest: int, longest: int) -> list[tuple[Tensor, float]]:
    """Halved gray copies of `[1,3,H,W]`: pairs of `[1,1,h,w]` and the factor from photo to copy, largest first.

    The first copy is at most `longest` px on its long side; the last is the last one at least `smallest` px on it.
    """
    weights = image.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    gray = (image * weights).sum(1, keepdim=True)
    height, width = gray.shape[-2:]
    factor = min(1.0, longest / max(height, width))
    levels: list[tuple[Tensor, float]] = []
    while max(height, width) * factor >= smallest or not levels:
        shape = (max(1, math.floor(height * factor + 0.5)), max(1, math.floor(width * factor + 0.5)))
        if shape != tuple(gray.shape[-2:]):
            gray = F.interpolate(gray, shape, mode="bilinear", antialias=True, align_corners=False)
        levels.append((gray, factor))
        factor /= 2
    return levels
