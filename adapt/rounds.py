"""The loop: photos -> pseudo targets -> learned camera -> better restorer -> judged on photos it never saw.

Every stage leaves its result on disk and reads it back, so a run that was killed continues with what is there and a
finished stage costs nothing.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from adapt.cluster import Mapper
from adapt.console import Narrator
from adapt.dataset import ImageBank
from adapt.finetune import Lessons, finetune
from adapt.gather import Gathered, load_crops
from adapt.generate import WorkerFactory, start_of
from adapt.judge import judge, restore_all, scores_of
from adapt.results import Judgement, PairedDifference, RoundReport
from adapt.seeds import seed_of
from adapt.targets import TargetSet, make_bank, make_targets
from adapt.tracking import Tracker
from adapt.training import make_accelerator
from adapt.workspace import Workspace, read_tensors, write_json, write_tensors
from pseudo_targets.bank import is_gray
from pseudo_targets.camera import CameraFit, LearnedCamera, fit_camera
from pseudo_targets.quality import QualityPredictor
from recipes.schema import Recipe
from restorers.degradations import GenericDegradation, luma
from restorers.zoo import LoadedRestorer, load_file, save_restorer

FEWEST_TARGETS = 4  # a camera cannot be fitted on fewer pairs


@dataclass(frozen=True)
class Job:
    """One adaptation: what goes in, what it works with, where it reports to."""

    recipe: Recipe
    gathered: Gathered
    restorer: LoadedRestorer
    prior: str
    quality: QualityPredictor
    clean: ImageBank | None
    workspace: Workspace
    mapper: Mapper
    tracker: Tracker
    narrator: Narrator
    device: torch.device


@dataclass(frozen=True)
class Adapted:
    """The best restorer after all rounds, and how it came about."""

    restorer: LoadedRestorer
    rounds: tuple[RoundReport, ...]


def adapt(job: Job) -> Adapted:
    """Runs rounds until one is not better on held-out photos, or the recipe's number is reached."""
    current, reports = job.restorer, []
    for number in range(1, job.recipe.rounds + 1):
        with job.tracker.child(f"round {number}") as tracker:
            report = run_round(replace(job, restorer=current, tracker=tracker), number)
        reports.append(report)
        job.narrator.say(summary_line(report))
        if not report.judgement.accepted:
            break
        current = load_file(job.workspace.round(number) / "restorer.safetensors")
    return Adapted(current, tuple(reports))


def run_round(job: Job, number: int) -> RoundReport:
    """One round on `job.restorer`; a finished one is read back."""
    folder = job.workspace.round(number)
    record = folder / "round.json"
    if record.is_file():
        return read_report(record)
    narrator = Narrator(job.narrator.console)
    job = replace(job, narrator=narrator)
    photos = load_crops(job.workspace.root, job.gathered.teaching())
    targets = generate(job, number, photos)
    kept = targets.accepted()
    losses: tuple[dict[str, float], ...] = ()
    if len(kept) < FEWEST_TARGETS:
        made = len(targets.targets)
        reason = f"only {len(kept)} of {made} pseudo targets could be trusted, {FEWEST_TARGETS} are needed"
        verdict = Judgement({}, 0.0, False, reason)
    else:
        lessons = learn_camera(job, number, targets, photos)
        module, losses = teach(job, number, lessons)
        save_restorer(replace(job.restorer, module=module), folder / "restorer.safetensors")
        verdict = judge_round(job, module, number)
    rejections: dict[str, int] = {}
    refused = [target.reason.split(":")[0] for target in targets.targets if not target.accepted]
    for reason in refused + [failure for _, failure in targets.failures]:
        rejections[reason] = rejections.get(reason, 0) + 1
    report = RoundReport(number, len(targets.targets), len(kept), rejections, losses, verdict, dict(narrator.seconds))
    log(job.tracker, report)
    write_json(record, asdict(report))
    (folder / "finetune.pt").unlink(missing_ok=True)
    return report


def generate(job: Job, number: int, photos: Tensor) -> TargetSet:
    """Stage 1, stage 2 and gate for all faces that may teach."""
    faces = job.gathered.teaching()
    settings = job.recipe.generation
    removal = job.quality.removal.cpu()
    starts = [start_of(photo, removal, settings) for photo in photos]
    provenance = {
        "round": str(number),
        "prior": job.prior,
        "restorer_sha256": state_sha256(job.restorer.module),
        "recipe_sha256": hashlib.sha256(job.recipe.model_dump_json().encode()).hexdigest(),
    }
    with job.narrator.stage("pseudo targets", len(faces)) as advance:
        folder = job.workspace.round(number) / "targets"
        seed = (job.recipe.seed, number)
        return make_targets(faces, photos, starts, folder, factory(job), job.mapper, seed, provenance, advance)


def learn_camera(job: Job, number: int, targets: TargetSet, photos: Tensor) -> Lessons:
    """Draws the clean bank and fits the camera on the accepted pairs."""
    folder, settings, kept = job.workspace.round(number), job.recipe.camera, targets.accepted()
    position = {face.id: index for index, face in enumerate(job.gathered.teaching())}
    lq = photos[[position[targets.faces[index].id] for index in kept]]
    chosen = [targets.targets[index] for index in kept]
    means = torch.stack([target.mean for target in chosen])
    bank = clean_bank(job, means).to(job.device)
    lq, means = lq.to(job.device), means.to(job.device)
    draws = torch.stack([target.draw for target in chosen]).to(job.device)
    confidence = torch.stack([target.confidence for target in chosen]).to(job.device)
    if is_gray(lq):
        bank = luma(bank).expand(-1, 3, -1, -1).contiguous()
    camera = None
    if settings.enabled:
        with job.narrator.stage("camera", settings.steps) as advance:
            plan = CameraFit(settings.steps, spectrum_match=settings.spectrum_match)
            path = folder / "camera.safetensors"
            if not path.is_file():
                fitted = fit_camera(means, lq, bank, plan, seed_of("camera", job.recipe.seed, number), advance)
                write_tensors(path, fitted.state_dict(), {"size": str(fitted.size)})
            camera = read_camera(path).to(job.device)
            advance(settings.steps)
    return Lessons(ImageBank(bank.cpu()), camera, GenericDegradation(), lq, means, draws, confidence)


def clean_bank(job: Job, sources: Tensor) -> Tensor:
    """The user's clean faces, or faces drawn by the prior once a run."""
    settings = job.recipe.camera
    if job.clean is not None:
        return job.clean.images[: max(settings.bank, 16) * 4].float()
    with job.narrator.stage("clean bank", settings.bank) as advance:
        seed = seed_of("bank", job.recipe.seed)
        path = (settings.bank_start, settings.bank_calls)
        return make_bank(
            settings.bank, sources, path, job.workspace.root / "bank", factory(job), job.mapper, seed, advance
        )


def teach(job: Job, number: int, lessons: Lessons) -> tuple[nn.Module, tuple[dict[str, float], ...]]:
    """Finetunes a copy of the current restorer."""
    settings = job.recipe.finetune
    accelerator = make_accelerator(job.device, settings.precision)
    removal = job.quality.removal.to(accelerator.device)
    with job.narrator.stage("finetune", settings.steps) as advance:
        trained = finetune(
            job.restorer.module.to(accelerator.device),
            lessons,
            settings,
            removal.features,
            accelerator,
            job.workspace.round(number) / "finetune.pt",
            seed_of("finetune", job.recipe.seed, number),
            lambda step, _: advance(step),
        )
    return trained.module.cpu(), trained.losses


def judge_round(job: Job, module: nn.Module, number: int) -> Judgement:
    """Compares the new restorer with the one before it on the held-out photos."""
    held = load_crops(job.workspace.root, job.gathered.judging())
    quality = job.quality.cpu()
    before, after = (
        scores_of(restore_all(restore, held), held, quality) for restore in (job.restorer.module.cpu().eval(), module)
    )
    return judge(before, after, job.recipe.judge, seed_of("judge", job.recipe.seed, number))


def factory(job: Job) -> WorkerFactory:
    """What a worker needs to generate for this job."""
    module = job.restorer.module.cpu()
    return WorkerFactory(module, job.prior, job.recipe.generation, job.recipe.gate, job.device.type)


def read_camera(path: Path) -> LearnedCamera:
    """Reads a learned camera."""
    tensors, metadata = read_tensors(path)
    camera = LearnedCamera(int(metadata["size"]))
    camera.load_state_dict(tensors)
    return camera.eval().requires_grad_(False)


def read_report(path: Path) -> RoundReport:
    """Reads a finished round."""
    values = json.loads(path.read_text(encoding="utf-8"))
    verdict = values.pop("judgement")
    differences = {name: PairedDifference(**value) for name, value in verdict.pop("differences").items()}
    losses = tuple(values.pop("losses"))
    return RoundReport(**values, losses=losses, judgement=Judgement(differences, **verdict))


def state_sha256(module: nn.Module) -> str:
    """Hash of all weights of a network."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def log(tracker: Tracker, report: RoundReport) -> None:
    """Sends a round's numbers to the tracker."""
    for entry in report.losses:
        tracker.log(int(entry["step"]), {f"loss/{name}": value for name, value in entry.items() if name != "step"})
    verdict = report.judgement
    scores = {f"judge/{name}": difference.mean for name, difference in verdict.differences.items()}
    counts = {"targets": float(report.targets), "accepted_targets": float(report.accepted_targets)}
    seconds = {f"seconds/{name.replace(' ', '_')}": value for name, value in report.seconds.items()}
    tracker.log(report.number, {**scores, **counts, **seconds, "harm_rate": verdict.harm_rate})


def summary_line(report: RoundReport) -> str:
    """One line that says what a round did."""
    verdict = report.judgement
    word = "accepted" if verdict.accepted else "rolled back"
    return (
        f"round {report.number}: {report.accepted_targets} of {report.targets} targets kept, {word}: {verdict.reason}"
        f" ({sum(report.seconds.values()):.0f} s)"
    )
