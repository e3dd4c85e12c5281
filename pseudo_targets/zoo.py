"""Priors by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from functools import partial
from pathlib import Path

from pseudo_targets.diffbir.cleaners import CLEANERS, Cleaner, load_diffbir_cleaner
from pseudo_targets.diffbir.published import load_diffbir
from pseudo_targets.embedded import WEIGHTS, load_mini
from pseudo_targets.pixel_prior import load_ffhq512
from pseudo_targets.priors import Prior


class UnknownPriorError(ValueError):
    """No prior bears this name."""


PRIORS: dict[str, Callable[[], Prior]] = {
    "mini": load_mini,
    "ffhq512": load_ffhq512,
    "diffbir-v1": partial(load_diffbir, "diffbir-v1"),
    "diffbir-v1-general": partial(load_diffbir, "diffbir-v1-general"),
    "diffbir-v2": partial(load_diffbir, "diffbir-v2"),
    "diffbir-v2.1": partial(load_diffbir, "diffbir-v2.1"),
}


def load_cleaner(prior: str, tile: int = 0) -> Cleaner | None:
    """The published stage 1 of a prior for faces; None for a prior that was published without one.

    Args:
        tile: side in pixels of the tiles it sees; 0 sees images whole.

    Raises:
        WeightsMissingError: its file is not on this machine.
        WeightsError: the file is damaged or another network's.
    """
    return load_diffbir_cleaner(prior, tile=tile) if prior in CLEANERS else None


def family_of(prior: str) -> Path:
    """The folder of the networks that know clean images as a prior does: its own, or the embedded ones."""
    return WEIGHTS if prior in PRIORS else Path(prior)


def load_prior(name: str) -> Prior:
    """Loads a prior of `PRIORS`, or the one that `adapt pretrain` left in a folder.

    Raises:
        UnknownPriorError: unknown name.
        WeightsError: its weights are not on this machine, damaged, or another network's.
    """
    if name not in PRIORS and Path(name).is_dir():
        return load_mini(Path(name))
    if name not in PRIORS:
        close = difflib.get_close_matches(name, PRIORS, 1)
        hint = f"did you mean {close[0]!r}? " if close else ""
        raise UnknownPriorError(f"unknown prior {name!r}: {hint}known: {', '.join(PRIORS)}; or a pretrained folder")
    return PRIORS[name]()
