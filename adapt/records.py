"""What a round leaves on disk and in the tracker, and how it is read back."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from torch import nn

from adapt.camera_match import PipelineCamera
from adapt.results import Judgement, PairedDifference, RoundReport
from adapt.tracking import Tracker
from adapt.workspace import read_tensors, write_tensors
from pseudo_targets.camera import LearnedCamera, TonedCamera


def write_camera(path: Path, camera: TonedCamera) -> None:
    """Writes a camera of either form."""
    write_tensors(path, camera.state_dict(), {"size": str(camera.size)})


def read_camera(path: Path) -> TonedCamera:
    """Reads what `write_camera` wrote."""
    tensors, metadata = read_tensors(path)
    size = int(metadata["size"])
    simulated = "table" in tensors
    camera = PipelineCamera(size, len(tensors["table"])) if simulated else LearnedCamera(size)
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
    blend = {"blend": report.blend, "harm_rate": verdict.harm_rate}
    tracker.log(report.number, {**scores, **counts, **seconds, **blend})


def summary_line(report: RoundReport) -> str:
    """One line that says what a round did."""
    verdict = report.judgement
    word = "accepted" if verdict.accepted else "rolled back"
    way = "" if report.blend == 1 else f", {report.blend:.0%} of the way to the finetuned weights"
    return (
        f"round {report.number}: {report.accepted_targets} of {report.targets} targets kept{way}, {word}: "
        f"{verdict.reason} ({sum(report.seconds.values()):.0f} s)"
    )
