"""One adaptation as its stages see it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from adapt.cluster import Mapper
from adapt.console import Narrator
from adapt.dataset import CleanFolder
from adapt.gathered import Gathered, WindowRecord
from adapt.generate import PriorShelf, WorkerFactory
from adapt.tracking import Tracker
from adapt.workspace import Workspace
from pseudo_targets.diffbir.cleaners import Cleaner
from pseudo_targets.quality import QualityPredictor
from pseudo_targets.zoo import PRIORS
from recipes.schema import Recipe
from restorers.zoo import LoadedRestorer

WHOLE_FACE = 192
"""Side in px of photos below which a window on a face shows the whole of it, as the embedded prior knows faces."""
FOLDERS = {"pseudo targets": "targets", "targets to judge by": "judged"}


@dataclass(frozen=True)
class Job:
    """One adaptation: what goes in, what it works with, where it reports to.

    `base` is the restorer before all rounds, `restorer` the current one.
    """

    recipe: Recipe
    gathered: Gathered
    base: LoadedRestorer
    restorer: LoadedRestorer
    prior: str
    quality: QualityPredictor
    clean: CleanFolder | None
    workspace: Workspace
    mapper: Mapper
    tracker: Tracker
    narrator: Narrator
    device: torch.device
    cleaner: Cleaner | None = None
    """Published stage 1 of the prior, where the recipe asks for one and its file is here."""
    prior_licence: str = ""
    shelf: PriorShelf = field(default_factory=PriorShelf)


def prior_knows(job: Job, windows: Sequence[WindowRecord]) -> bool:
    """Whether the prior has learned from images like most of `windows`.

    The embedded family has from whole faces alone; published priors have from photos, or get crops of faces.
    """
    embedded = job.prior == "mini" or job.prior not in PRIORS  # or what `adapt pretrain` left in a folder
    whole = sum(window.face and window.side < WHOLE_FACE for window in windows)
    return not embedded or job.recipe.windows.crops == "yes" or 2 * whole > len(windows)


def factory(job: Job) -> WorkerFactory:
    """What a worker needs to generate for this job."""
    settings, module, limits = job.recipe.generation, job.restorer.module.cpu(), job.recipe.gate
    if not prior_knows(job, job.gathered.windows):  # quality is predicted by what has learned from such windows alone
        limits = limits.model_copy(update={"quality": -math.inf})
    return WorkerFactory(module, job.prior, settings, limits, job.device.type, job.cleaner, job.shelf)
