"""The bundled face finder: our own small nets, no download, no torchvision, no OpenCV detector.

Proposals over an image pyramid, then three looks of the aligner at each, then non-maximum suppression.
`weights/face_fallback.md` says what the nets were trained on and how good they are.
"""

from __future__ import annotations

import hashlib
import math
from pathlib import Path

import torch
from safetensors.torch import load
from torch import Tensor
from torch.nn import functional as F

from adapt.errors import AdaptError
from adapt.face_nets import (
    ANGLE_UNIT,
    REFERENCE_SIDE,
    STRIDE,
    VIEW,
    FaceAligner,
    FaceProposals,
    compose,
    gray_pyramid,
    square_to_matrix,
    suppress,
)
from adapt.faces import TEMPLATE_SIDE, Face, Matrix, check_photo, invert, number_faces

WEIGHTS = Path(__file__).parent / "weights" / "face_fallback.safetensors"
WEIGHTS_SHA256 = "7d499c870db500360be05588d5adf10bcaa2fbd9de2754cf4c97651c2c74f81f"

LONGEST = 1024
"""Larger photos are searched at this long side, so their smallest findable face grows with them."""
SMALLEST_LEVEL = 24
PROPOSAL_SCORE = 0.3
MOST_PROPOSALS = 64
LOOKS = 3
FACE_SCORE = 0.6


class BundledFinder:
    """Finds faces that look roughly at the camera and stand roughly upright (up to about 40 degrees)."""

    name = "bundled"

    def __init__(self, proposals: FaceProposals, aligner: FaceAligner) -> None:
        self._proposals = proposals.eval()
        self._aligner = aligner.eval()

    @classmethod
    def load(cls, path: Path = WEIGHTS, sha256: str | None = WEIGHTS_SHA256) -> BundledFinder:
        """Read the nets from `path`; `AdaptError` when the file is missing or is not the one this code was made for.

        `sha256=None` accepts any file, for nets trained anew.
        """
        if not path.is_file():
            raise AdaptError(f"{path}: weights of the bundled face finder are missing; install the package again")
        content = path.read_bytes()
        found = hashlib.sha256(content).hexdigest()
        if sha256 is not None and found != sha256:
            raise AdaptError(f"{path}: sha256 is {found[:12]}…, expected {sha256[:12]}…; install the package again")
        tensors = load(content)
        proposals, aligner = FaceProposals(), FaceAligner()
        for name, net in (("proposals.", proposals), ("aligner.", aligner)):
            net.load_state_dict({key[len(name) :]: value for key, value in tensors.items() if key.startswith(name)})
        return cls(proposals, aligner)

    @torch.no_grad()
    def find(self, image: Tensor) -> list[Face]:
        """See `FaceFinder.find`."""
        check_photo(image)
        levels = gray_pyramid(image.detach().float().cpu(), SMALLEST_LEVEL, LONGEST)
        shape = (image.shape[-2], image.shape[-1])
        squares, scores = self._propose(levels, shape)
        squares, certainty = self._refine(levels, squares, shape)
        # Each net is fooled by other things, so both have a say: half the false faces of the aligner alone.
        scores = torch.sqrt(scores * certainty)
        sure = scores >= FACE_SCORE
        squares, scores = squares[sure], scores[sure]
        kept = suppress(squares, scores, 0.3)
        matrices = square_to_matrix(squares[kept].double(), TEMPLATE_SIDE).tolist()
        return number_faces([(_to_crop(m), score) for m, score in zip(matrices, scores[kept].tolist(), strict=True)])

    def _refine(
        self, levels: list[tuple[Tensor, float]], squares: Tensor, shape: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """The squares moved onto their faces, and the aligner's score of each."""
        scores = squares.new_zeros(len(squares))
        if len(squares) == 0:
            return squares, scores
        for _ in range(LOOKS):
            output = self._aligner(_views(levels, squares, shape))
            squares, scores = compose(squares, output[:, 1:].clamp(-0.7, 0.7)), torch.sigmoid(output[:, 0])
        return squares, scores

    def _propose(self, levels: list[tuple[Tensor, float]], shape: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """Squares `[N,4]` (centre x, y in photo px, log side, angle) and scores `[N]`, N <= `MOST_PROPOSALS`."""
        squares, logits = [], []
        for gray, factor in levels:
            output = self._proposals(gray)[0]
            rows, columns = torch.nonzero(output[0] > math.log(PROPOSAL_SCORE / (1 - PROPOSAL_SCORE)), as_tuple=True)
            logit, dx, dy, log_side, angle = output[:, rows, columns]
            x = (columns + dx) * STRIDE + STRIDE / 2
            y = (rows + dy) * STRIDE + STRIDE / 2
            height, width = gray.shape[-2:]
            x, y = x * shape[1] / width - 0.5, y * shape[0] / height - 0.5
            side = log_side.clamp(-1, 1) + math.log(REFERENCE_SIDE / factor)
            squares.append(torch.stack([x, y, side, angle * ANGLE_UNIT], -1))
            logits.append(logit)
        found, scores = torch.cat(squares), torch.cat(logits)
        best = torch.argsort(scores, descending=True, stable=True)[:1000]
        kept = best[suppress(found[best], scores[best], 0.5)[:MOST_PROPOSALS]]
        return found[kept], torch.sigmoid(scores[kept])


def _views(levels: list[tuple[Tensor, float]], squares: Tensor, shape: tuple[int, int]) -> Tensor:
    """The squares as gray views `[N,1,64,64]`, each from the pyramid level nearest to its scale."""
    height, width = shape
    matrices = square_to_matrix(squares, VIEW)
    ys, xs = torch.meshgrid(torch.arange(VIEW) * 1.0, torch.arange(VIEW) * 1.0, indexing="ij")
    points = torch.stack([xs, ys, torch.ones_like(xs)], -1)  # [64,64,3]
    grid = torch.einsum("nij,hwj->nhwi", matrices, points)
    grid = (2 * grid + 1) / torch.tensor([width, height]) - 1
    finest = levels[0][1]
    wanted = torch.round(squares[:, 2] / math.log(2) + math.log2(finest / VIEW)).clamp(0, len(levels) - 1).long()
    views = grid.new_zeros(len(squares), 1, VIEW, VIEW)
    for number, (gray, _) in enumerate(levels):
        own = wanted == number
        if own.any():
            source = gray.expand(int(own.sum()), -1, -1, -1)
            views[own] = F.grid_sample(source, grid[own], mode="bilinear", padding_mode="border", align_corners=False)
    return views


def _to_crop(to_photo: list[list[float]]) -> Matrix:
    (a, b, x), (c, d, y) = to_photo
    return invert(((a, b, x), (c, d, y)))
