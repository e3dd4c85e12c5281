"""`adapt doctor`: what is installed, which accelerator, which weights, what is missing and how to get it."""

from __future__ import annotations

import platform
import re
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, requires, version

import torch

from adapt.errors import AdaptError
from adapt.faces import load_finder
from adapt.training import mixed_precision
from adapt.weights_table import TABLE, file_of
from pseudo_targets.downloads import WeightsError
from pseudo_targets.embedded import load_mini, load_quality
from restorers.zoo import ZooError, load_restorer

DISTRIBUTION = "adapt-restorer"
EXTRAS = {
    "ray": "generation on a cluster (--ray): pip install 'ray[tune]'",
    "facexlib": "a stronger face finder and identity scores: pip install facexlib",
    "transformers": "DiffBIR's published priors: pip install transformers",
    "spandrel": "published restorers as --restorer FILE: pip install spandrel",
    "spandrel-extra-arches": "CodeFormer and FeMaSR, not for commercial use: pip install spandrel-extra-arches",
    "pillow-heif": "HEIC photos: pip install pillow-heif",
}


def examine(say: Callable[[str], None]) -> int:
    """Prints the state of the installation; returns 0 when the main job can run, else 1."""
    say(f"python {platform.python_version()} on {platform.platform()} ({sys.executable})")
    healthy = True
    for name in _needed():
        found = _version(name)
        healthy &= found is not None
        say(f"  {name:21} {found or f'MISSING, needed: pip install {name}'}")
    for name, purpose in EXTRAS.items():
        say(f"  {name:21} {_version(name) or f'not installed, optional: {purpose}'}")
    say(_accelerator())
    for what, load in (("prior mini", load_mini), ("removal and quality", load_quality), ("restorer", _compact)):
        try:
            load()
            say(f"weights {what}: embedded, checked")
        except (WeightsError, ZooError) as error:
            healthy = False
            say(f"weights {what}: {error}")
    try:
        say(f"face finder: {load_finder().name}")
    except AdaptError as error:
        healthy = False
        say(f"face finder: {error}")
    here = [weights.name for weights in TABLE if file_of(weights) is not None]
    say(f"published weights: {', '.join(here) or 'none'} here; see `adapt weights list`")
    say("ready: adapt --inputs DIR" if healthy else "not ready: see the lines above")
    return 0 if healthy else 1


def _needed() -> list[str]:
    """What the package requires, extras left out."""
    try:
        required = requires(DISTRIBUTION) or []
    except PackageNotFoundError:
        return []  # run from its folder, not installed: what it needs stands nowhere
    return [re.split(r"[^\w.-]", line)[0] for line in required if "extra ==" not in line]


def _compact() -> object:
    return load_restorer("compact")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _accelerator() -> str:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name = torch.cuda.get_device_name() if device.type == "cuda" else f"CPU, {torch.get_num_threads()} threads"
    return f"accelerator: {name}; finetuning in {mixed_precision(device).replace('no', 'float32')}"
