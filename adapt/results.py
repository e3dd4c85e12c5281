"""What the stages of an adaptation return: small frozen records, no behaviour."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from torch import Tensor


@dataclass(frozen=True)
class PairedDifference:
    """Adapted minus untouched over the held-out photos, with a bootstrap interval of the mean."""

    mean: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Judgement:
    """The verdict on one round, reached without ground truth.

    Attributes:
        differences: score name -> paired difference, positive is better for every score.
        harm_rate: share of held-out photos that got worse, 0 to 1; of their photographed targets, where there are any.
        accepted: whether the round's restorer replaces the one before it.
        reason: one sentence that says why.
    """

    differences: dict[str, PairedDifference]
    harm_rate: float
    accepted: bool
    reason: str


@dataclass(frozen=True)
class RoundReport:
    """One round: what was generated, what was kept, how training went, how it was judged.

    `blend`: how far the restorer went from the first one to the finetuned one, 0 to 1 (`adapt.blend`).
    """

    number: int
    targets: int
    accepted_targets: int
    rejections: dict[str, int]
    losses: tuple[dict[str, float], ...]
    judgement: Judgement
    seconds: dict[str, float]
    blend: float = 1.0


@dataclass(frozen=True)
class Example:
    """One window or photo for the report's grids; images are float32 `[3, H, W]`, RGB, `[0, 1]`."""

    title: str
    lq: Tensor
    before: Tensor
    after: Tensor
    pseudo_target: Tensor | None = None
    confidence: Tensor | None = None
    note: str = ""


@dataclass(frozen=True)
class RunSummary:
    """Everything the report, the model card and the last lines of the command say."""

    inputs: str
    command: str
    run_dir: Path
    recipe_yaml: str
    photos: int
    faces: int
    windows: int
    teaching: int
    judging: int
    refused: tuple[tuple[str, str], ...]
    rounds: tuple[RoundReport, ...]
    held_out_examples: tuple[Example, ...]
    accepted_examples: tuple[Example, ...]
    rejected_examples: tuple[Example, ...]
    camera_images: dict[str, Tensor]
    licences: dict[str, str]
    restorer: str
    prior: str
    seconds: float
    adapted: bool
    distance_to_base: float
    commercial: bool = True
    """Whether the result may be used commercially."""
    seen_share: float = 1.0
    """Share of the training pairs that were clean windows seen through the learned camera."""
    multiple_of: int = 1
    """What the sides of an image must be multiples of in the ONNX file."""
    minimum: int = 1
    """Shortest side of an image there."""
    spandrel_alone: bool = True
    """Whether the weights file, opened by spandrel, gives images in `[0, 1]` of the input's size without more."""
    files: dict[str, Path] = field(default_factory=dict)
