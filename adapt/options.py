"""What a user asks the main job for, and whether it can be done: everything that can be wrong, before any work."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from adapt.console import Narrator
from adapt.errors import UsageError, printable
from adapt.lpips import load_lpips
from adapt.prior_setup import faults_of
from adapt.training import choose_device
from pseudo_targets.diffbir.cleaners import Cleaner
from pseudo_targets.downloads import WeightsError, WeightsMissingError
from pseudo_targets.priors import Prior
from pseudo_targets.zoo import UnknownPriorError, load_cleaner, load_prior
from recipes.load import RecipeError, load_recipe
from recipes.schema import Recipe
from restorers.codes import chooses_codes
from restorers.zoo import LoadedRestorer, ZooError, at_input_size, load_restorer


@dataclass(frozen=True)
class JobOptions:
    """The main job as the user asked for it; see `adapt --help`."""

    inputs: Path
    command: str
    output: Path | None = None
    recipe: str = "default"
    overrides: tuple[str, ...] = ()
    aligned: bool = False
    clean: Path | None = None
    restorer: str = "compact"
    non_commercial: bool = False
    prior: str = "mini"
    tracking_uri: str | None = None
    tracking: bool = True
    ray: str | None = None
    device: str = "auto"


class Checked(NamedTuple):
    """What a job that can be done works with; the prior is loaded again where it is needed."""

    recipe: Recipe
    restorer: LoadedRestorer
    prior_sha256: str
    prior_licence: str


def checked(options: JobOptions, narrator: Narrator) -> Checked:
    """The recipe, the restorer and the prior of a job that can be done.

    Raises:
        UsageError: something cannot be; all that is wrong, at once.
    """
    faults = []
    recipe = restorer = prior = None
    try:
        recipe = _teachable(load_recipe(options.recipe, options.overrides), narrator)
    except RecipeError as error:
        faults.append(str(error))
    except WeightsError as error:
        faults.append(f"finetune.perceptual_net lpips: {error}")
    try:
        restorer = at_input_size(load_restorer(options.restorer, non_commercial=options.non_commercial))
        faults += [] if recipe is None else _unfit(recipe, restorer)
    except ZooError as error:
        faults.append(f"--restorer: {error}")
    try:
        prior = load_prior(options.prior)
        if recipe is not None:
            recipe = _with_windows(recipe, prior, restorer)
        faults += [] if recipe is None else _unfit_for(recipe, options.prior, prior)
    except (UnknownPriorError, WeightsError) as error:
        faults.append(f"--prior: {error}")
    faults += _wrong_paths(options)
    if recipe is not None and recipe.finetune.precision == "fp16" and not _on_gpu(options.device):
        faults.append("finetune.precision fp16: a CPU does not train in it, expected auto, no or bf16")
    if faults or recipe is None or restorer is None or prior is None:
        raise UsageError("; ".join(faults))
    return Checked(recipe, restorer, prior.weights_sha256, prior.licence)


def _with_windows(recipe: Recipe, prior: Prior, restorer: LoadedRestorer | None) -> Recipe:
    """The recipe with what of its windows follows from the networks."""
    settings = recipe.windows
    known: dict[str, object] = {}
    if "size" not in settings.model_fields_set:
        known["size"] = prior.resolution
    if settings.crops == "auto":
        needed = prior.aligned_faces or (restorer is not None and restorer.aligned_faces)
        known["crops"] = "yes" if needed else "no"
    return recipe.model_copy(update={"windows": settings.model_copy(update=known)})


def _on_gpu(device: str) -> bool:
    return device == "cuda" or (device == "auto" and torch.cuda.is_available())


def _wrong_paths(options: JobOptions) -> list[str]:
    """Folders and devices that are not there."""
    faults = []
    if not options.inputs.exists():
        faults.append(f"--inputs {printable(options.inputs)}: no such folder")
    if options.clean is not None and not options.clean.exists():
        faults.append(f"--clean {printable(options.clean)}: no such folder")
    if options.clean is not None and options.clean.is_file():
        faults.append(f"--clean {printable(options.clean)}: is a file, expected a folder")
    if options.ray not in (None, "auto", "local") and not _is_address(options.ray):
        faults.append(f"--ray {options.ray}: expected auto, local or HOST:PORT")
    if options.tracking_uri is not None and ":" not in options.tracking_uri:
        faults.append(
            f"--tracking-uri {options.tracking_uri}: expected sqlite:////absolute/mlflow.db, http://HOST:PORT or "
            "another address that MLflow reads"
        )
    try:
        choose_device(options.device)
    except UsageError as error:
        faults.append(str(error))
    return faults


def _is_address(text: str) -> bool:
    host, _, port = text.removeprefix("ray://").rpartition(":")
    return bool(host) and port.isdigit()


def _unfit_for(recipe: Recipe, name: str, prior: Prior) -> list[str]:
    """What the recipe asks of the prior and it cannot do."""
    faults, settings = [], recipe.generation
    if recipe.windows.size != prior.resolution:
        faults.append(f"windows.size {recipe.windows.size}: prior {name!r} works at {prior.resolution} px")
    if getattr(prior, "control", None) is None:
        if settings.control_strength > 0:
            faults.append(
                f"generation.control_strength {settings.control_strength:g}: prior {name!r} has no IRControlNet, "
                "expected 0"
            )
        if settings.realism < 1:  # what it expects at the last timestep does not depend on the photo
            faults.append(
                f"generation.realism {settings.realism:g}: prior {name!r} has no IRControlNet and expects no face in "
                "one call, expected 1"
            )
    return faults + faults_of(name, settings)


def _unfit(recipe: Recipe, restorer: LoadedRestorer) -> list[str]:
    """What the recipe asks of the restorer and it cannot do."""
    settings, name, faults = recipe.finetune, restorer.spec.name, []
    if settings.precision == "fp16" and not restorer.spec.half:
        faults.append(f"finetune.precision fp16: {name} is not known to be safe in it, expected bf16 or no")
    if settings.parts == "decoder" and not restorer.spec.decoder:
        faults.append(f"finetune.parts decoder: it is not known which part of {name} that is, expected all or lora")
    if settings.losses == "codes" and not chooses_codes(restorer.module):
        faults.append(f"finetune.losses codes: {name} predicts no codes, expected image; codes is for CodeFormer")
    return faults


def _teachable(recipe: Recipe, narrator: Narrator) -> Recipe:
    """The recipe with a perceptual network that is here, which is said where it is not the one asked for.

    Raises:
        WeightsError: a file of LPIPS is damaged or another.
    """
    settings = recipe.finetune
    if settings.losses != "image" or not settings.perceptual or settings.perceptual_net != "lpips":
        return recipe
    try:
        load_lpips(torch.device("cpu"))
    except WeightsMissingError as error:
        narrator.say(f"the perceptual loss compares features of the embedded degradation removal: {error}")
        return recipe.model_copy(update={"finetune": settings.model_copy(update={"perceptual_net": "removal"})})
    return recipe


def cleaner_of(options: JobOptions, recipe: Recipe, narrator: Narrator) -> Cleaner | None:
    """The published stage 1 of the prior, if the recipe asks for removal, the prior has one, and its file is here."""
    if recipe.generation.stage1 != "removal":
        return None
    try:
        return load_cleaner(options.prior, recipe.generation.tiles.stage1)
    except WeightsMissingError as error:
        narrator.say(f"stage 1 is the embedded degradation removal: {error}")
        return None
    except WeightsError as error:
        raise UsageError(f"generation.stage1 removal: {error}") from error
