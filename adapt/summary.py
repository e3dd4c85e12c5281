"""What a finished run leaves behind: restorer, ONNX, manifest, model card, report."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adapt.gathered import WindowRecord, load_view, load_windows
from adapt.judge import restore_all, served_photos
from adapt.model_card import write_model_card
from adapt.photos import write_photo
from adapt.records import read_camera
from adapt.report import write_report
from adapt.results import Example, RunSummary
from adapt.round_job import Job
from adapt.rounds import Adapted
from adapt.seeds import generator_of
from adapt.targets import read_provenance, read_target
from adapt.workspace import read_tensors, write_jsonl
from pseudo_targets.camera import TonedCamera
from recipes.load import dump_recipe
from restorers.export import ExportError, export_onnx
from restorers.runtime import runtime_of
from restorers.spec import RestorerSpec
from restorers.zoo import is_non_commercial, save_restorer

SHOWN = 12  # examples of each kind in the report
SHOWN_SIDE = 320  # px of a held-out photo there, at its own pixels


def write_outputs(job: Job, adapted: Adapted, inputs: str, command: str, seconds: float) -> RunSummary:
    """Writes everything a user takes away into the run folder and logs it."""
    root = job.workspace.root
    files = {name: root / name for name in ("restorer.safetensors", "restorer.onnx", "model_card.md", "report.html")}
    with job.narrator.stage("export and report", 1) as advance:
        spec = adapted.restorer.spec
        if adapted.changed:
            spec = replace(spec, licence=inherited_licence(spec.licence, licence_parts(job)))
        save_restorer(replace(adapted.restorer, spec=spec), files["restorer.safetensors"])
        try:
            export_onnx(
                adapted.restorer.module,
                files["restorer.onnx"],
                spec.multiple_of,
                spec.minimum,
                name=spec.name,
                licence=spec.licence,
                commercial=spec.commercial,
                tiles=adapted.restorer.tiles,
                aligned_faces=adapted.restorer.aligned_faces,
            )
        except ExportError as error:  # the weights serve all the same
            job.narrator.say(f"no restorer.onnx: {error}")
        write_jsonl(job.workspace.manifest, manifest_rows(job, adapted))
        summary = summarise(job, adapted, spec, inputs, command, seconds)
        write_model_card(summary, files["model_card.md"])
        write_report(summary, files["report.html"])
        grid = root / "held_out.png"
        write_photo(grid, example_grid(summary.held_out_examples))
        for path in (files["report.html"], files["model_card.md"], job.workspace.manifest, grid):
            job.tracker.artifact(path)
        job.tracker.model(files["restorer.safetensors"])
        if files["restorer.onnx"].is_file():
            job.tracker.model(files["restorer.onnx"])
        advance(1)
    return summary


def summarise(job: Job, adapted: Adapted, spec: RestorerSpec, inputs: str, command: str, seconds: float) -> RunSummary:
    """Collects what report and model card say; `spec` is that of the result."""
    gathered, root = job.gathered, job.workspace.root
    accepted, rejected = _target_examples(job, adapted)
    onnx = root / "restorer.onnx"
    return RunSummary(
        inputs=inputs,
        command=command,
        run_dir=root,
        recipe_yaml=dump_recipe(job.recipe),
        photos=gathered.photos,
        faces=gathered.faces,
        windows=len(gathered.windows),
        teaching=len(gathered.teaching()),
        judging=len(gathered.judging()),
        refused=gathered.refused,
        rounds=adapted.rounds,
        held_out_examples=_held_out_examples(job, adapted),
        accepted_examples=accepted,
        rejected_examples=rejected,
        camera_images=_camera_images(job, adapted),
        licences=_licences(job),
        restorer=job.restorer.spec.name,
        prior=job.prior,
        seconds=seconds,
        adapted=adapted.changed,
        commercial=spec.commercial and not is_non_commercial(spec.licence),
        seen_share=job.recipe.finetune.camera_share if job.recipe.camera.enabled else 0.0,
        multiple_of=spec.multiple_of,
        minimum=spec.minimum,
        spandrel_alone=job.restorer.spec.commercial and getattr(job.restorer.module, "plain", True),
        distance_to_base=distance(job.restorer.module, adapted.restorer.module),
        files={"restorer": root / "restorer.safetensors"} | ({"onnx": onnx} if onnx.is_file() else {}),
    )


def distance(base: nn.Module, module: nn.Module) -> float:
    """Length of the change of all weights over the length of the base weights."""
    pairs = list(zip(base.parameters(), module.parameters(), strict=True))
    change = sum(float((b.detach().cpu() - a.detach().cpu()).square().sum()) for a, b in pairs)
    return (change / sum(float(a.detach().square().sum()) for a, _ in pairs)) ** 0.5


def example_grid(examples: tuple[Example, ...]) -> Tensor:
    """Photo, before and after of each example, side by side, one example a row: `[1, 3, N*S, 3*S]`; rims are white."""
    rows = [(example.lq, example.before, example.after) for example in examples]
    height, width = (max(images[0].shape[axis] for images in rows) for axis in (1, 2))

    def framed(image: Tensor) -> Tensor:
        return F.pad(image, (0, width - image.shape[2], 0, height - image.shape[1]), value=1.0)

    return torch.cat([torch.cat([framed(image) for image in images], dim=2) for images in rows], dim=1)[None]


def manifest_rows(job: Job, adapted: Adapted) -> Iterator[dict[str, Any]]:
    """One row for each photo, window and pseudo target."""
    windows = job.gathered.windows
    for photo, sha256 in sorted({(window.photo, window.sha256) for window in windows}):
        yield {"kind": "photo", "path": photo, "sha256": sha256, "state": "used"}
    for refused, reason in job.gathered.refused:
        yield {"kind": "photo", "path": refused, "state": "not used", "reason": reason}
    for window in windows:
        row = asdict(window)
        row["state"] = "held out" if row.pop("held_out") else "teaches"
        yield {"kind": "window", **row}
    for report in adapted.rounds:
        folder = job.workspace.round(report.number) / "targets"
        for window in job.gathered.teaching():
            path = folder / f"{window.id}.safetensors"
            row = {"kind": "target", "window": window.id, "round": report.number}
            if not path.is_file():
                yield {**row, "state": "failed"}
                continue
            target = read_target(path)
            state = {"state": "accepted" if target.accepted else "rejected", "reason": target.reason}
            yield {**row, **state, "scores": target.scores, "provenance": read_provenance(path)}


def _held_out_examples(job: Job, adapted: Adapted) -> tuple[Example, ...]:
    """Held-out photos as they are served before and after, of large ones the middle part at its own pixels."""
    serve = [runtime_of(restorer) for restorer in (job.restorer, adapted.restorer)]
    examples = []
    for view in job.gathered.views[:SHOWN]:
        photo = load_view(job.workspace.root, view)
        before, after = (served_photos(runtime, [photo])[0] for runtime in serve)
        examples.append(Example(view.photo, _middle(photo)[0], _middle(before)[0], _middle(after)[0]))
    return tuple(examples)


def _middle(image: Tensor) -> Tensor:
    top, left = (max(0, length - SHOWN_SIDE) // 2 for length in image.shape[-2:])
    return image[..., top : top + SHOWN_SIDE, left : left + SHOWN_SIDE]


def _target_examples(job: Job, adapted: Adapted) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """Accepted and rejected pseudo targets of the last round."""
    kept: list[Example] = []
    rejected: list[Example] = []
    folder = job.workspace.round(adapted.rounds[-1].number) / "targets"
    for window in job.gathered.teaching():
        path = folder / f"{window.id}.safetensors"
        if not path.is_file() or min(len(kept), len(rejected)) >= SHOWN:
            continue
        target = read_target(path)
        chosen = kept if target.accepted else rejected
        if len(chosen) < SHOWN:
            chosen.append(_target_example(job, adapted, window, path))
    return tuple(kept), tuple(rejected)


def _target_example(job: Job, adapted: Adapted, window: WindowRecord, path: Path) -> Example:
    target = read_target(path)
    photo = load_windows(job.workspace.root, [window])
    before = restore_all(job.restorer.module.cpu().eval(), photo)[0]
    after = restore_all(adapted.restorer.module.cpu().eval(), photo)[0]
    confidence = target.confidence.expand(3, -1, -1)
    example = Example(_title(window), photo[0], before, after, target.mean, confidence, target.reason)
    if target.reason:
        return example
    return replace(example, note=", ".join(f"{name} {score:.3f}" for name, score in target.scores.items()))


def _camera_images(job: Job, adapted: Adapted) -> dict[str, Tensor]:
    """Clean windows and the same ones as the learned camera photographs it, for the last round that has a camera."""
    paths = [job.workspace.round(report.number) / "camera.safetensors" for report in reversed(adapted.rounds)]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        return {}
    camera = read_camera(path)
    if job.clean is not None:
        source, clean = "given", job.clean.windows(4, generator_of("report", job.recipe.seed))
    elif (own := job.workspace.root / "bank" / "photos.safetensors").is_file():
        source, clean = "of the photos, brought down and restored", read_tensors(own)[0]["windows"][:4].float()
    else:
        bank = sorted((job.workspace.root / "bank").glob("*.safetensors"))
        source, clean = "drawn by the prior", read_tensors(bank[0])[0]["faces"][:4].float()
    seen = camera(clean, generator_of("report", job.recipe.seed))
    photos = load_windows(job.workspace.root, job.gathered.teaching()[:4])
    return {
        f"clean windows {source}": torch.cat(list(clean), dim=2),
        f"as the learned camera sees them{_tone_words(camera)}": torch.cat(list(seen), dim=2),
        "photos of the real camera": torch.cat(list(photos), dim=2),
    }


def _tone_words(camera: TonedCamera) -> str:
    """What the camera does to the tone, or nothing."""
    gain, cast = float(camera.tone_gain), float(camera.tone_root.square().sum().div(3).sqrt())
    words = []
    if gain != 1:
        words.append(f"contrast {gain:.0%}")
    if cast > 0:
        words.append(f"colour cast that varies by {cast:.1%} from photo to photo")
    return f" ({', '.join(words)})" if words else ""


def licence_parts(job: Job) -> dict[str, tuple[str, bool]]:
    """What a run is made of: the licence of each, and whether it forbids commercial use."""
    spec, licence = job.restorer.spec, job.prior_licence
    parts = {
        f"restorer {spec.name}": (spec.licence, not spec.commercial),
        f"prior {job.prior}": (licence, is_non_commercial(licence)),
    }
    if job.cleaner is not None:
        parts[f"stage 1 {job.cleaner.name}"] = (job.cleaner.licence, is_non_commercial(job.cleaner.licence))
    return parts


def _licences(job: Job) -> dict[str, str]:
    parts = licence_parts(job)
    lines = {name: licence + (" (no commercial use)" if forbids else "") for name, (licence, forbids) in parts.items()}
    return {**lines, "what you adapted": consequence(parts)}


def inherited_licence(licence: str, parts: dict[str, tuple[str, bool]]) -> str:
    """The licence that ships with what was adapted: the restorer's, and with it those that restrict its use."""
    for name, (other, forbids) in parts.items():
        if (forbids or "openrail" in other.lower()) and other not in licence:
            licence += f"; adapted with {name}: {other}"
    return licence


def consequence(parts: dict[str, tuple[str, bool]]) -> str:
    """What the licences of a run's parts, each with whether it forbids commercial use, mean for its result."""
    forbidding = [name for name, (_, forbids) in parts.items() if forbids]
    restricting = [name for name, (licence, _) in parts.items() if "openrail" in licence.lower()]
    unknown = [name for name, (licence, _) in parts.items() if licence.startswith("unknown")]
    words = []
    if forbidding:
        words.append(f"no commercial use, because of {' and '.join(forbidding)}")
    if restricting:
        words.append(f"the use restrictions of OpenRAIL, which {' and '.join(restricting)} came under, must be kept")
    if unknown:
        words.append(
            f"the licence of {' and '.join(unknown)} is not known: find it out before you use or share the result"
        )
    return "; ".join(words) or "no restriction beyond the licences above"


def _title(window: WindowRecord) -> str:
    return f"{window.photo} #{window.index}" if window.index else window.photo
