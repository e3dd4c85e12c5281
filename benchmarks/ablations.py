"""Ablations of `benchmarks.oracle_gap`: the first round again, with one thing changed; row `one round` is the measure.

What a change cannot touch is copied from the first round of `ours` instead of being made again, so that a row differs
by what it names and by nothing else.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from adapt.job import run_key
from adapt.options import JobOptions
from adapt.workspace import write_json

BANK = ("bank",)
TARGETS = (*BANK, "rounds/1/targets", "rounds/1/judged")
CAMERA = (*TARGETS, "rounds/1/camera.safetensors")
ROUND = (*CAMERA, "rounds/1/restorer.safetensors", "rounds/1/round.json")


@dataclass(frozen=True)
class Ablation:
    """Settings that differ from the recipe, and what of the run of `ours` stays valid."""

    settings: tuple[str, ...]
    keeps: tuple[str, ...]


def _first_round(keeps: tuple[str, ...], *settings: str) -> Ablation:
    return Ablation(("rounds=1", *settings), keeps)


ABLATIONS: dict[str, Ablation] = {
    "one round": _first_round(ROUND),
    "without gate": _first_round(BANK, "gate.low_band=9", "gate.spread=9", "gate.quality=-99", "gate.identity=-1"),
    "without camera": _first_round(TARGETS, "camera.enabled=false"),
    "without tone": _first_round(TARGETS, "camera.tone=false"),
    "without spectrum match": _first_round(TARGETS, "camera.spectrum_match=false"),
    "camera as a pipeline": _first_round(TARGETS, "camera.form=pipeline"),
    "camera by pairs": _first_round(TARGETS, "camera.form=pairs"),
    "without blend": _first_round(CAMERA, "finetune.blend=false"),
    "without perceptual loss": _first_round(CAMERA, "finetune.perceptual=0"),
    "without harm loss": _first_round(CAMERA, "finetune.harm=0"),
    "a quarter photos by confidence": _first_round(CAMERA, "finetune.camera_share=0.75"),
    "a quarter photos without confidence": _first_round(
        CAMERA, "finetune.camera_share=0.75", "finetune.confidence=false"
    ),
    "fixed start": _first_round(BANK, "generation.start=fixed", "generation.start_timesteps=[200]"),
    "published filter": _first_round(BANK, "generation.filter=published"),
    "one draw": _first_round(BANK, "generation.realism=1", "generation.candidates=1"),
    "mean of four draws": _first_round(BANK, "generation.realism=1", "generation.candidates=4"),
    "mean of eight draws": _first_round(BANK, "generation.realism=1", "generation.candidates=8"),
    "drawn bank": _first_round(TARGETS[1:], "camera.bank_from=prior"),
    "bank of photos brought down": _first_round(TARGETS[1:], "camera.bank_from=photos"),
    "bank of 64": _first_round(TARGETS[1:], "camera.bank=64"),
    "three rounds": Ablation(("rounds=3",), (*ROUND, "rounds/2")),
}
CLEAN = "bank of --clean"
CLEAN_ABLATION = _first_round(TARGETS[1:])


def prepare(options: JobOptions, ours: Path, ablation: Ablation) -> JobOptions:
    """The options of an ablation's run, in whose folder lies what it shares with the run `ours`."""
    changed = replace(options, overrides=(*options.overrides, *ablation.settings))
    if changed.output is None or changed.output.is_dir():
        return changed
    part = changed.output.with_name(f"{changed.output.name}.part")
    if part.is_dir():  # of a copy that was killed
        shutil.rmtree(part)
    part.mkdir(parents=True)
    write_json(part / "command.json", {"command": changed.command, "key": run_key(changed)})
    for name in ablation.keeps:
        source, target = ours / name, part / name
        if source.is_dir():
            shutil.copytree(source, target)
        elif source.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)
    part.rename(changed.output)
    return changed
