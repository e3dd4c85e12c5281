"""The model card of an adapted restorer, in Markdown."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from adapt.errors import printable
from adapt.report import harm_of, verdict_of
from adapt.results import RunSummary
from adapt.workspace import write_text

FITTED = """\
- It is fitted to one camera. On photos of another kind expect no gain over the restorer it started from, or a loss.
"""
LIMITS = """\
- The scores were reached without ground truth: they say that photos look cleaner and still agree with what was
  photographed, not that each detail is true.
- Restored detail is partly invented. Do not use it to identify people or as evidence.
- It inherits what its base restorer and its prior saw too little of: faces of an age, skin tone or pose that is rare in
  their training images may be restored worse. Their own model cards say what they were trained on."""


def write_model_card(summary: RunSummary, path: Path) -> None:
    """Writes the card, atomically.

    Raises:
        OSError: the file cannot be written.
    """
    write_text(path, model_card(summary))


def model_card(summary: RunSummary) -> str:
    """The card as Markdown; names from outside cannot break out of their line."""
    verdict = verdict_of(summary)
    kept = sum(report.judgement.accepted for report in summary.rounds)
    change = f"{summary.distance_to_base:.2%} of their norm" if summary.adapted else "none"
    place = _text(Path(summary.inputs).name or summary.inputs)
    sections = [
        f"# {_text(summary.restorer)}, {'fitted to' if summary.adapted else 'unchanged by'} {place}",
        f"**{verdict.headline}.** {_text(verdict.reason)}",
        "## What it is",
        _table(
            ("", ""),
            [
                ("base restorer", _text(summary.restorer)),
                ("prior that made the pseudo targets", _text(summary.prior)),
                ("rounds kept", f"{kept} of {len(summary.rounds)}"),
                ("change of the weights", change),
                ("image", "RGB, float32, 0 to 1, `[batch, 3, height, width]`; same size in and out"),
            ],
        ),
        "## Data",
        f"{summary.photos} photos from `{_code(summary.inputs)}`, with {summary.faces} faces: of {summary.windows} "
        f"windows {summary.teaching} taught, {summary.judging} were held out to judge; {len(summary.refused)} photos "
        "were not used. "
        + _lessons(summary),
        "## Camera",
        _camera(summary),
        "## Scores",
        _scores(summary),
        "## Limits",
        (FITTED if summary.adapted else "") + LIMITS,
        "## Licences",
        _table(("part", "licence"), [(_text(name), _text(licence)) for name, licence in summary.licences.items()]),
        "## How to load it",
        _loading(summary),
        "## How to make it again",
        f"```\n{_code(summary.command)}\n```",
    ]
    return "\n\n".join(sections) + "\n"


def _lessons(summary: RunSummary) -> str:
    if not summary.adapted:
        return "The photos have no labels. Nothing that was learned from them was kept."
    if not summary.seen_share:
        return "The photos have no labels: the restorer learned from pseudo targets that the prior made of them."
    also = "" if summary.seen_share == 1 else " and from the pseudo targets themselves"
    return (
        "The photos have no labels. The camera was learned from them and from the pseudo targets that the prior made "
        f"of them, and the restorer learned from clean windows seen through it{also}."
    )


def _camera(summary: RunSummary) -> str:
    if not summary.camera_images:
        return "No camera was learned in this run."
    names = ", ".join(_text(name) for name in summary.camera_images)
    return (
        "A model of the camera, either its mean response and noise or the steps it takes, was learned and made "
        f"{summary.seen_share:.0%} of the training pairs. The report shows it: {names}."
    )


def _scores(summary: RunSummary) -> str:
    rows = [
        (
            str(report.number),
            "kept" if report.judgement.accepted else "rolled back",
            _text(name),
            f"{d.mean:+.4f}",
            f"{d.low:+.4f} to {d.high:+.4f}",
            str(d.count),
            harm_of(report.judgement),
        )
        for report in summary.rounds
        for name, d in report.judgement.differences.items()
    ]
    if not rows:
        return "No round was judged."
    head = ("round", "verdict", "score", "difference", "95% interval", "photos", "harm rate")
    return (
        "Paired differences on held-out photos, each round against the restorer before it, without ground truth; above "
        "zero is better. *Photographed*: PSNR in dB on the held-out photos' pseudo targets once the learned camera has "
        "photographed them; the harm rate is the share for which it (without a camera: cleanness) falls.\n\n"
        + _table(head, rows)
    )


def _loading(summary: RunSummary) -> str:
    def name(kind: str, default: str) -> str:
        file = summary.files.get(kind)
        return _code(os.path.relpath(file, summary.run_dir)) if file else default

    weights, allowed = name("restorer", "restorer.safetensors"), "" if summary.commercial else " --non-commercial"
    return f"""\
On the command line:

```
adapt restore PHOTOS --restorer {weights} --output restored{allowed}
```

{_spandrel(weights) if summary.spandrel_alone else _runtime(weights, summary.commercial)}

{_onnx(name("onnx", ""), summary.multiple_of, summary.minimum)}"""


def _spandrel(weights: str) -> str:
    return f"""\
With spandrel (`pip install spandrel`), and so in the programs built on it:

```python
from spandrel import ModelLoader

restorer = ModelLoader().load_from_file({weights!r})
restored = restorer(image)  # [1, 3, H, W], RGB, 0 to 1
```"""


def _runtime(weights: str, commercial: bool) -> str:
    allowed = "" if commercial else ", non_commercial=True"
    return f"""\
In Python, with `adapt` installed:

```python
from pathlib import Path

from restorers.runtime import load_runtime

restored = load_runtime(Path({weights!r}){allowed})(image)  # [B, 3, H, W], RGB, 0 to 1
```

spandrel opens the file too, where it knows the network; its output is the network's own, whose value range, size and \
noise are left to the caller."""


def _onnx(file: str, multiple_of: int, minimum: int) -> str:
    if not file:
        return "There is no ONNX file: this network could not be exported."
    return f"""\
With onnxruntime, without torch. H and W must be multiples of {multiple_of} and at least {minimum} (the file's \
metadata say so): pad by mirroring and cut the result. `load_runtime` does that, and restores large images in tiles.

```python
import onnxruntime

session = onnxruntime.InferenceSession({file!r})
(restored,) = session.run(None, {{session.get_inputs()[0].name: image}})  # numpy float32 [1, 3, H, W], RGB, 0 to 1
```"""


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, tuple("---" for _ in head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _text(value: str) -> str:
    """One line in which Markdown and HTML find nothing to act on."""
    line = printable(value).replace("\\", "\\\\").replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    for sign in "|`*_[]":
        line = line.replace(sign, "\\" + sign)
    return line


def _code(value: str) -> str:
    """One line that cannot end the code it stands in."""
    return printable(value).replace("`", "'")
