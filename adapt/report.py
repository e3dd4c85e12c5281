"""The report of a run: one HTML file that needs nothing else, readable on a phone, in the light and in the dark."""

from __future__ import annotations

import base64
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from torch import Tensor
from torch.nn.functional import interpolate

from adapt.errors import printable
from adapt.photos import write_photo
from adapt.report_charts import COLOURS, loss_charts, score_charts
from adapt.results import Judgement, RoundReport, RunSummary
from adapt.workspace import write_text

PICTURE_SIDE = 320  # pixels; longer sides are reduced
STRIP_SIDE = 1024
JPEG_QUALITY = 90
MOST_REFUSED = 200  # rows; the manifest has them all
# Five colours along viridis (Smith, van der Walt 2015), from no confidence to full.
VIRIDIS = (
    (0.267, 0.005, 0.329),
    (0.229, 0.322, 0.546),
    (0.128, 0.567, 0.551),
    (0.369, 0.789, 0.383),
    (0.993, 0.906, 0.144),
)


@dataclass(frozen=True)
class Verdict:
    """The first words of the report and of the model card.

    Attributes:
        headline: whether the restorer was adapted.
        reason: why, one sentence.
        harm: the harm rate in words: of the last round that was kept, or else of the last one.
    """

    headline: str
    reason: str
    harm: str


def write_report(summary: RunSummary, path: Path) -> None:
    """Writes the report, atomically.

    Raises:
        PhotoError: an example is no image `[3, H, W]`.
        OSError: the file cannot be written.
    """
    write_text(path, render(summary))


def render(summary: RunSummary) -> str:
    """The report as HTML; everything that comes from outside is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        environment.filters.update(
            picture=partial(picture, scratch=scratch, side=PICTURE_SIDE),
            strip=partial(picture, scratch=scratch, side=STRIP_SIDE),
            confidence=confidence_colours,
            duration=duration,
            printable=printable,
        )
        return environment.get_template("report.html.j2").render(
            s=summary,
            verdict=verdict_of(summary),
            losses=loss_charts(summary.rounds),
            scores=score_charts(summary.rounds),
            stages=_stages(summary.rounds),
            refused=summary.refused[:MOST_REFUSED],
            colours=COLOURS,
            files={name: _relative(file, summary.run_dir) for name, file in summary.files.items()},
        )


def verdict_of(summary: RunSummary) -> Verdict:
    """What the run came to, in words."""
    if not summary.rounds:
        return Verdict("Nothing was adapted", "No round was run: the restorer is unchanged.", "not judged")
    kept = [report for report in summary.rounds if report.judgement.accepted]
    judgement = (kept or summary.rounds)[-1].judgement
    reason = printable(judgement.reason)
    reason = reason[:1].upper() + reason[1:] + ("" if reason.endswith(".") else ".")
    if summary.adapted:
        return Verdict("The restorer was adapted to this camera", reason, harm_of(judgement))
    return Verdict("Adaptation does not help here", f"The restorer is unchanged. {reason}", harm_of(judgement))


def harm_of(judgement: Judgement) -> str:
    """The share of held-out photos that got worse, in words."""
    return f"{judgement.harm_rate:.0%}" if judgement.differences else "not judged"


def picture(image: Tensor, scratch: Path, side: int) -> str:
    """An image `[3, H, W]`, float, RGB, `[0, 1]`, as a `data:` address of a JPEG no longer than `side` pixels."""
    image = torch.nan_to_num(image.detach().cpu().float())[None]
    scale = side / max(image.shape[-2:])
    if scale < 1:
        size = [max(1, round(length * scale)) for length in image.shape[-2:]]
        image = interpolate(image, size=size, mode="bilinear", antialias=True)
    file = scratch / "picture.jpg"
    write_photo(file, image, quality=JPEG_QUALITY)
    return "data:image/jpeg;base64," + base64.b64encode(file.read_bytes()).decode("ascii")


def confidence_colours(confidence: Tensor) -> Tensor:
    """A confidence map `[H, W]`, `[1, H, W]` or `[3, H, W]` in `[0, 1]` as colours `[3, H, W]`, dark is none."""
    values = torch.nan_to_num(confidence.detach().cpu().float())
    values = values.reshape(-1, *values.shape[-2:]).mean(0).clamp(0, 1) * (len(VIRIDIS) - 1)  # [H, W]
    table = torch.tensor(VIRIDIS)
    below = values.floor().long().clamp(max=len(VIRIDIS) - 2)
    part = (values - below)[..., None]
    return ((1 - part) * table[below] + part * table[below + 1]).permute(2, 0, 1)  # [3, H, W]


def duration(seconds: float) -> str:
    """`45 s`, `3 min 20 s`, `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def _stages(rounds: Sequence[RoundReport]) -> list[str]:
    """Names of the timed stages in the order in which they first ran."""
    return list(dict.fromkeys(name for report in rounds for name in report.seconds))


def _relative(file: Path, run_dir: Path) -> str:
    return printable(os.path.relpath(file, run_dir))
