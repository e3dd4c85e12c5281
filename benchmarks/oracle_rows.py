"""The rows of `benchmarks.oracle_gap`: what adaptation is compared with, from the same start, for as many steps.

Every row but the supervised ones sees photos alone. The ones that may open references take them as an argument.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from adapt.clean_bank import colored_in_share
from adapt.cluster import InProcessMapper
from adapt.dataset import Degrade, ImageBank, Lessons
from adapt.errors import UsageError
from adapt.finetune import distance_of, finetune, plan_of
from adapt.generate import TargetTask, Worker, WorkerFactory, start_of
from adapt.job import run_job
from adapt.judge import restore_all, tiles_of
from adapt.options import JobOptions
from adapt.seeds import generator_of, seed_of
from adapt.targets import make_bank
from adapt.training import layout_of, make_accelerator, train
from adapt.windows import padded
from adapt.workspace import read_tensors
from pseudo_targets.camera import CameraFit, fit_camera
from pseudo_targets.embedded import load_quality, load_removal
from pseudo_targets.tone import ToneChange
from recipes.schema import Finetune, Recipe
from restorers.degradations import GenericDegradation
from restorers.parts import merged, pupil_of
from restorers.zoo import LoadedRestorer, load_restorer

CPU = torch.device("cpu")
DT_BFR = (
    "camera.bank=192",  # what the adversary holds for real, as many drawn faces as the default recipe has
    "generation.control_strength=1",  # this prior can be steered
    "generation.filter_factor=2",  # blocks of 8 px, as the default recipe's
    "generation.batch=8",
    "windows.crops=no",  # windows at the photos' pixels, as the other rows
    "finetune.learning_rate=2e-4",
    "finetune.ema_decay=0.99",
    "finetune.perceptual_net=removal",  # LPIPS is not at hand everywhere, and the embedded network is
    "finetune.perceptual=0.1",
    "finetune.discriminator=patch",  # a step of the U-Net takes 50 s where one of the patches takes half a second
)
"""What the recipe `dt_bfr` needs on the embedded prior, without published files and at equal steps, on a CPU; sampler,
kinds of losses and missing gates stay."""


@dataclass(frozen=True)
class Ground:
    """What all rows share: the windows of the job `[N, 3, S, S]`, its recipe, a folder for checkpoints, the start.

    Attributes:
        color: share of the windows whose photos show colour.
    """

    photos: Tensor
    recipe: Recipe
    folder: Path
    restorer: LoadedRestorer
    color: float = 1.0

    @property
    def base(self) -> nn.Module:
        """The network that every row starts from."""
        return self.restorer.module.eval()

    @property
    def steps(self) -> int:
        """What all rounds of the recipe have."""
        return self.recipe.finetune.steps * self.recipe.rounds

    def seed(self, name: str) -> int:
        """Of the draws that a row makes."""
        return seed_of("benchmark", name, self.recipe.seed)


@dataclass(frozen=True)
class Run:
    """A finished adaptation and what its rounds said of themselves."""

    folder: Path
    rounds: tuple[dict[str, object], ...]

    def accepted(self) -> int:
        """How many rounds were kept."""
        return sum(bool(report["judgement"]["accepted"]) for report in self.rounds)  # type: ignore[index]

    def restorer(self) -> LoadedRestorer:
        """What ships."""
        return load_restorer(self.folder / "restorer.safetensors")

    def seconds(self) -> float:
        """What it took when it was done, however often it was started."""
        return float(json.loads((self.folder / "done.json").read_text())["seconds"])


def job_options(photos: Path, folder: Path, recipe: str, overrides: Sequence[str]) -> JobOptions:
    """The whole job on a folder of photos."""
    return JobOptions(
        inputs=photos,
        command="benchmarks.oracle_gap",
        output=folder,
        recipe=recipe,
        overrides=tuple(overrides),
        tracking=False,
        device="cpu",  # as the rows beside it
    )


def dt_bfr_settings(recipe: Recipe) -> tuple[str, ...]:
    """DT-BFR's recipe for the same photos, batch and steps as `recipe`."""
    finetune, windows = recipe.finetune, recipe.windows.model_dump(mode="json")
    same = [f'windows.{name}="{value}"' for name, value in windows.items() if name != "crops"]
    same += [f"finetune.batch={finetune.batch}", f"finetune.accumulate={finetune.accumulate}"]
    return (*DT_BFR, *same, f"finetune.steps={finetune.steps * recipe.rounds}", f"seed={recipe.seed}")


def adapt(options: JobOptions) -> Run:
    """Runs the job; references are not among its arguments."""
    run = run_job(options)
    reports = (json.loads(path.read_text()) for path in sorted(run.glob("rounds/*/round.json")))
    return Run(run, tuple(reports))


def bank_of(ground: Ground, run: Run) -> Tensor:
    """The clean windows that a run has made; one that ended before it made any gets drawn ones here."""
    settings, generation = ground.recipe.camera, ground.recipe.generation
    files = sorted((run.folder / "bank").glob("*.safetensors"))
    files = [path for path in files if path.stem not in ("apart", "judging")]
    if files:
        made = {path.stem: torch.cat([t.float() for t in read_tensors(path)[0].values()]) for path in files}
        own = made.pop("photos", None)
        drawn = torch.cat([*made.values()]) if made else own[:0]
        lacking = settings.bank - len(drawn)  # the photos' own windows teach where too few were drawn
        return torch.cat([own[:lacking], drawn]) if lacking > 0 and own is not None else drawn[: settings.bank]
    sources = restore_all(ground.base, ground.photos)
    factory = WorkerFactory(ground.base, "mini", generation, ground.recipe.gate, "cpu")
    path, seed = (settings.bank_start, settings.bank_calls), seed_of("bank", ground.recipe.seed)
    folder = ground.folder / "bank"
    return make_bank(settings.bank, sources, path, folder, factory, InProcessMapper(), seed, lambda done: None)


def teach(ground: Ground, lessons: Lessons, settings: Finetune, name: str) -> nn.Module:
    """The base restorer finetuned on `lessons` for the common number of steps."""
    settings = settings.model_copy(update={"steps": ground.steps})
    accelerator, seed = make_accelerator(CPU, settings.precision), ground.seed(name)
    path = _checkpoint(ground, name, lessons.bank.images, lessons.photos, lessons.means, *_shot(ground, lessons.camera))
    distance, pupil = distance_of(settings, load_removal(), CPU), _pupil(ground)
    trained = finetune(pupil, lessons, settings, distance, accelerator, path, seed, base=ground.base)
    return merged(trained.module, ground.base)


def _pupil(ground: Ground) -> nn.Module:
    settings = ground.recipe.finetune
    return pupil_of(ground.restorer, settings.parts, settings.rank, generator_of("lora", ground.recipe.seed))


def _checkpoint(ground: Ground, name: str, *data: Tensor) -> Path:
    """Where a row's training is kept: another recipe or other images begin anew."""
    key = hashlib.sha256(ground.recipe.model_dump_json().encode())
    for tensor in data:
        key.update(tensor.contiguous().numpy().tobytes())
    return ground.folder / f"{name}-{key.hexdigest()[:8]}.pt"


def _shot(ground: Ground, camera: Degrade | None) -> list[Tensor]:
    """One image through the camera, which tells it from others."""
    return [] if camera is None else [camera(ground.photos[:1], Generator().manual_seed(0))]


def generic_steps(ground: Ground, bank: Tensor) -> nn.Module:
    """As many more steps on generic degradations of the same clean bank."""
    return through_camera(ground, bank, GenericDegradation(), "generic")


def self_distilled(ground: Ground, bank: Tensor) -> nn.Module:
    """The restorer's own outputs as targets."""
    own = restore_all(ground.base.eval(), ground.photos)
    lessons = replace(_lessons(ground, bank, None), means=own, draws=own)
    settings = ground.recipe.finetune.model_copy(update={"camera_share": 0.0})
    return teach(ground, lessons, settings, "self_distilled")


def through_camera(ground: Ground, bank: Tensor, camera: Degrade, name: str) -> nn.Module:
    """Clean faces seen through a given camera, all of each batch."""
    settings = ground.recipe.finetune.model_copy(update={"camera_share": 1.0})
    return teach(ground, _lessons(ground, bank, camera), settings, name)


def true_pairs(ground: Ground, references: Tensor, bank: Tensor) -> nn.Module:
    """The bank seen through our camera model, fitted on true pairs: what a perfect clean side would give."""
    settings = ground.recipe.camera
    plan = CameraFit(settings.steps, spectrum_match=settings.spectrum_match)
    faces, tone = colored_in_share(ground.color, bank), _true_tone(references, ground.photos)
    camera = fit_camera(references, ground.photos, faces, plan, ground.seed("true pairs"), tone=tone)
    return through_camera(ground, bank, camera, "true_pair_camera")


def _true_tone(references: Tensor, photos: Tensor) -> ToneChange:
    """Gain and offsets that explain the photos best, and the covariance of what they leave in each photo's means."""
    clean, seen = F.avg_pool2d(references, 4), F.avg_pool2d(photos, 4)
    means = clean.mean((0, 2, 3)), seen.mean((0, 2, 3))
    centred, wanted = (image - mean.view(1, 3, 1, 1) for image, mean in zip((clean, seen), means, strict=True))
    gain = (centred * wanted).sum() / centred.square().sum().clamp(min=1e-8)
    left = wanted.mean((2, 3)) - gain * centred.mean((2, 3))
    values, vectors = torch.linalg.eigh(torch.cov(left.T))
    return ToneChange(gain, means[1] - gain * means[0], vectors * values.clamp(min=0).sqrt())


def given_camera(name: str) -> Degrade:
    """A simulator `module:function` that takes clean images `[B, 3, S, S]` and a generator.

    Raises:
        UsageError: there is none of this name.
    """
    module, _, function = name.partition(":")
    try:
        camera: Degrade = getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"--camera {name}: {error}; expected MODULE:FUNCTION, as benchmarks.cameras:film") from error
    return camera


def oracle(ground: Ground, references: Tensor) -> nn.Module:
    """The same network, steps, batch and schedule on true pairs."""
    settings, pupil = ground.recipe.finetune.model_copy(update={"steps": ground.steps}), _pupil(ground)
    layout = layout_of(pupil)

    def losses(net: nn.Module, generator: Generator) -> dict[str, Tensor]:
        index = torch.randint(len(ground.photos), (settings.batch,), generator=generator)
        photos = ground.photos[index].contiguous(memory_format=layout)
        return {"pixel": (net(photos).float() - references[index]).abs().mean()}

    accelerator, plan = make_accelerator(CPU, settings.precision), plan_of(settings, ground.seed("oracle"))
    trained = train(pupil, losses, plan, accelerator, _checkpoint(ground, "oracle", ground.photos, references))
    return merged(trained.module, ground.base)


def targets_of(ground: Ground, photos: Sequence[Tensor]) -> list[Tensor]:
    """Pseudo targets of photos `[1, 3, H, W]`, window by window: diffusion at test time in place of a restorer."""
    settings, quality, size = ground.recipe.generation, load_quality(), ground.recipe.windows.size
    factory = WorkerFactory(ground.base, "mini", settings, ground.recipe.gate, "cpu")
    worker = Worker(factory)
    found = []
    for index, photo in enumerate(photos):
        height, width = photo.shape[-2:]
        large = padded(photo, size)
        large = F.pad(large, (0, -large.shape[-1] % size, 0, -large.shape[-2] % size), mode="reflect")
        tiles, rows = tiles_of(large, size), large.shape[-2] // size
        means = []
        for number, tile in enumerate(tiles):
            seed = ground.seed(f"test target {index} {number}")
            task = TargetTask((str(number),), tile[None], start_of(tile, quality.removal, settings), (seed,))
            means.append(worker.targets(task)[0].mean)
        whole = torch.stack(means).unflatten(0, (rows, -1)).permute(2, 0, 3, 1, 4).flatten(3).flatten(1, 2)
        found.append(whole[None, :, :height, :width])
    return found


def _lessons(ground: Ground, bank: Tensor, camera: Degrade | None) -> Lessons:
    photos = ground.photos
    clean = ImageBank(colored_in_share(ground.color, bank))
    return Lessons(clean, clean, camera, photos, photos, photos, torch.ones_like(photos[:, :1]))
