"""The loop: photos -> pseudo targets -> learned camera -> better restorer -> judged on photos it never saw.

Every stage leaves its result on disk and reads it back, so a run that was killed continues with what is there and a
finished stage costs nothing.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, replace

from adapt.camera_stage import learn_camera
from adapt.console import Narrator
from adapt.gather import FEWEST_TARGETS
from adapt.records import log, read_report, summary_line
from adapt.results import Judgement, RoundReport
from adapt.round_job import Job
from adapt.stages import generate, judge_round, settle, teach
from adapt.workspace import write_json
from restorers.zoo import LoadedRestorer, load_file, save_restorer


@dataclass(frozen=True)
class Adapted:
    """The best restorer after all rounds, and how it came about."""

    restorer: LoadedRestorer
    rounds: tuple[RoundReport, ...]

    @property
    def changed(self) -> bool:
        """Whether a round was kept; otherwise the restorer is the one that was given."""
        return any(report.judgement.accepted for report in self.rounds)


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
    narrator = Narrator(job.narrator.console, folder / "seconds.json")
    job = replace(job, narrator=narrator)
    targets = generate(job, number, job.gathered.teaching(), "pseudo targets")
    kept, made = targets.accepted, len(job.gathered.teaching())
    losses: tuple[dict[str, float], ...] = ()
    share = 1.0
    if len(kept) < FEWEST_TARGETS:
        reason = f"only {len(kept)} of {made} pseudo targets could be trusted, {FEWEST_TARGETS} are needed"
        verdict = Judgement({}, 0.0, False, reason)
    else:
        lessons = learn_camera(job, number, kept)
        module, losses = teach(job, number, lessons)
        module, share = settle(job, number, lessons, module)
        save_restorer(replace(job.restorer, module=module), folder / "restorer.safetensors")
        verdict = judge_round(job, module, number, lessons)
    rejections = dict(Counter(targets.refused))
    seconds = dict(narrator.seconds)
    report = RoundReport(number, made, len(kept), rejections, losses, verdict, seconds, share)
    log(job.tracker, report)
    write_json(record, asdict(report))
    for name in ("finetune.pt", "seconds.json"):  # of a round that is under way
        (folder / name).unlink(missing_ok=True)
    return report
