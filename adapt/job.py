"""The main job from options to files: checks everything first, then gathers, adapts, exports and reports."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import replace
from pathlib import Path

import torch
from filelock import FileLock, Timeout

from adapt.cluster import InProcessMapper, Mapper, RayMapper
from adapt.console import Narrator
from adapt.dataset import CleanFolder, open_clean
from adapt.errors import AdaptError, UsageError, printable
from adapt.faces import load_finder
from adapt.facexlib_nets import DETECTOR, RECOGNITION, usable
from adapt.gather import gather
from adapt.gathered import Gathered
from adapt.options import Checked, JobOptions, checked, cleaner_of
from adapt.round_job import Job
from adapt.rounds import Adapted, adapt
from adapt.summary import consequence, licence_parts, write_outputs
from adapt.tracking import NullTracker, Tracker, default_uri, ui_command
from adapt.training import choose_device
from adapt.workspace import Workspace, fingerprint, write_json, write_text
from pseudo_targets.diffbir.cleaners import Cleaner
from pseudo_targets.embedded import embedded_sha256, load_quality
from pseudo_targets.zoo import PRIORS, family_of
from recipes.load import dump_recipe
from recipes.schema import Recipe

FEWEST_CLEAN = 8
"""Of `--clean`; fewer photos would teach themselves alone."""


def run_job(options: JobOptions, narrator: Narrator | None = None) -> Path:
    """Runs, continues or recalls the adaptation; returns the run folder.

    Raises:
        UsageError: an option or setting cannot be used; nothing was done.
        AdaptError: the job failed; what was finished is kept and the same command continues.
    """
    narrator = narrator or Narrator()
    if options.prior not in PRIORS and Path(options.prior).is_dir():  # workers of a cluster stand in other folders
        options = replace(options, prior=str(Path(options.prior).resolve()))
    asked = checked(options, narrator)
    cleaner = cleaner_of(options, asked.recipe, narrator)
    key = _key(options, asked, cleaner)
    root = options.output or Path("adapt_runs") / f"{options.inputs.resolve().name or 'photos'}-{key}"
    workspace = Workspace(root)
    _refuse_foreign_folder(root, key)
    if workspace.done.is_file():
        narrator.say(f"already finished; {_ending(workspace)}")
        return root
    _make_folder(root)
    try:
        with FileLock(root / ".lock", timeout=0):
            _run(options, asked, cleaner, key, workspace, narrator)
    except Timeout as error:
        raise AdaptError(
            f"{printable(root)}: another adapt process works on this run; wait for it, or choose another --output"
        ) from error
    narrator.say(_ending(workspace))
    return root


def run_key(options: JobOptions) -> str:
    """What `run_job` knows a run by; equal for the same photos, settings and weights.

    Raises:
        UsageError: an option or setting cannot be used.
    """
    narrator = Narrator()
    asked = checked(options, narrator)
    return _key(options, asked, cleaner_of(options, asked.recipe, narrator))


def _run(
    options: JobOptions,
    asked: Checked,
    cleaner: Cleaner | None,
    key: str,
    workspace: Workspace,
    narrator: Narrator,
) -> None:
    started, recipe, restorer = time.monotonic(), asked.recipe, asked.restorer
    for leftover in workspace.root.rglob(".tmp-*"):  # of a process that was killed while writing
        leftover.unlink()
    device = choose_device(options.device)
    write_json(workspace.root / "command.json", {"command": options.command, "key": key})
    write_text(workspace.root / "recipe.yaml", dump_recipe(recipe))
    gathered = _gather(options, recipe, workspace, narrator)
    clean = _clean(options, recipe, narrator)
    uri = options.tracking_uri or default_uri(workspace.root)
    with _tracker(options, workspace, uri) as tracker:
        tracker.params({"recipe": recipe.model_dump(), "restorer": options.restorer, "prior": options.prior})
        mapper = _mapper(options, device)
        job = Job(
            recipe,
            gathered,
            restorer,
            restorer,
            options.prior,
            load_quality(family_of(options.prior)),
            clean,
            workspace,
            mapper,
            tracker,
            narrator,
            device,
            cleaner,
            asked.prior_licence,
        )
        parts = licence_parts(job)
        if any(forbids for _, forbids in parts.values()):
            narrator.say(f"licence of the result: {consequence(parts)}")
        adapted: Adapted = adapt(job)
        # A run that was stopped has spent more than this process knows of.
        known = sum(sum(report.seconds.values()) for report in adapted.rounds)
        seconds = max(time.monotonic() - started, known)
        write_outputs(job, adapted, printable(options.inputs), options.command, seconds)
    write_json(
        workspace.done,
        {
            "adapted": any(report.judgement.accepted for report in adapted.rounds),
            "seconds": round(seconds, 1),
            "tracking": options.tracking,
            "tracking_uri": options.tracking_uri,
        },
    )


def _gather(options: JobOptions, recipe: Recipe, workspace: Workspace, narrator: Narrator) -> Gathered:
    settings = recipe.windows
    finder = None if options.aligned or settings.content == "photos" else load_finder()
    with narrator.stage("photos", None) as advance:
        gathered = gather(
            options.inputs, workspace.root, settings, finder, lambda done, _: advance(done), options.aligned
        )
    what = "faces" if settings.crops == "yes" else f"windows of {settings.size} px"
    narrator.say(
        f"found {gathered.photos} photos, {gathered.faces} faces: of {len(gathered.windows)} {what} "
        f"{len(gathered.teaching())} teach, {len(gathered.judging())} judge; {len(gathered.refused)} photos not used"
    )
    for path, reason in gathered.refused[:5]:
        narrator.say(f"  not used: {path}: {reason}")
    if len(gathered.refused) > 5:
        narrator.say(f"  ... {len(gathered.refused) - 5} more; {workspace.manifest.name} will name them")
    for path, note in gathered.notes[-5:]:  # what concerns the whole folder comes last
        narrator.say(f"  note: {path}: {note}")
    return gathered


def _key(options: JobOptions, asked: Checked, cleaner: Cleaner | None) -> str:
    """What makes two runs the same: the photos, the recipe and every network that has a part in it."""
    parts = [
        fingerprint(options.inputs),
        asked.recipe.model_dump_json(),
        str(options.aligned),
        "" if options.clean is None else fingerprint(options.clean),
        asked.restorer.spec.sha256,
        options.prior,
        asked.prior_sha256,
        embedded_sha256(family_of(options.prior)),
        # Where facexlib is here it finds the faces, and identity is one of the gate's limits.
        str([usable(DETECTOR), usable(RECOGNITION)]),
    ]
    if cleaner is not None:
        parts.append(cleaner.weights_sha256)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]


def _refuse_foreign_folder(root: Path, key: str) -> None:
    record = root / "command.json"
    if root.exists() and not root.is_dir():
        raise UsageError(f"--output {printable(root)}: is a file, expected a folder")
    if record.is_file():
        if _key_in(record) != key:
            raise UsageError(
                f"--output {printable(root)}: holds a run of other photos or settings; choose another folder"
            )
    elif root.is_dir() and any(not path.name.startswith(".") for path in root.iterdir()):
        raise UsageError(f"--output {printable(root)}: is not empty and holds no run; choose another folder")


def _key_in(record: Path) -> str | None:
    try:
        values = json.loads(record.read_text(encoding="utf-8"))
    except ValueError:  # another program's
        return None
    return values.get("key") if isinstance(values, dict) else None


def _make_folder(root: Path) -> None:
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"{printable(root)}: the run's folder cannot be made: {error.strerror}; choose another --output"
        ) from error


def _clean(options: JobOptions, recipe: Recipe, narrator: Narrator) -> CleanFolder | None:
    if options.clean is None:
        return None
    with narrator.stage("clean photos", None) as advance:
        whole = recipe.windows.crops == "yes"
        clean = open_clean(options.clean, recipe.windows.size, lambda done, _: advance(done), whole)
    if len(clean.photos) < FEWEST_CLEAN:
        raise AdaptError(
            f"--clean {printable(options.clean)}: {len(clean.photos)} clean photos, expected at least {FEWEST_CLEAN}: "
            "add some, or leave --clean out"
        )
    return clean


def _mapper(options: JobOptions, device: torch.device) -> Mapper:
    if options.ray is None:
        return InProcessMapper()
    return RayMapper(options.ray, gpus_per_worker=1.0 if device.type == "cuda" else 0.0)


def _tracker(options: JobOptions, workspace: Workspace, uri: str) -> Tracker:
    if not options.tracking:
        return NullTracker()
    from adapt.tracking_mlflow import MlflowTracker

    saved = workspace.root / "mlflow_run.txt"
    resume = saved.read_text(encoding="utf-8").strip() if saved.is_file() else None
    key = str(workspace.root.resolve())
    tracker = MlflowTracker(uri, "adapt", workspace.root.name, resume_id=resume, key=key)
    write_text(saved, f"{tracker.run_id}\n")
    return tracker


def _ending(workspace: Workspace) -> str:
    record = json.loads(workspace.done.read_text(encoding="utf-8"))
    unchanged = "adaptation does not help here: the restorer is unchanged"
    onnx = " (and .onnx)" if (workspace.root / "restorer.onnx").is_file() else ""
    lines = [
        "the restorer was adapted to this camera" if record["adapted"] else unchanged,
        f"restorer: {printable(workspace.root / 'restorer.safetensors')}{onnx}",
        f"report: {printable((workspace.root / 'report.html').resolve())}",
    ]
    if record["tracking"]:  # the folder may have been moved since
        lines.append(f"runs: {ui_command(record['tracking_uri'] or default_uri(workspace.root))}")
    return "\n".join(lines)
