"""`adapt pretrain`: trains the mini family on windows of clean photos of any sizes, resumable, on any domain."""

from __future__ import annotations

import hashlib
import json
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from adapt.dataset import square_photos
from adapt.errors import AdaptError, UsageError
from adapt.evaluate import psnr
from adapt.photo_bank import PhotoBank, Windows, draw_pool, load_photos, window_of
from adapt.photos import read_photo, write_photo
from adapt.pretrain_card import card
from adapt.pretrain_jobs import Pretraining, control_job, prior_job, removal_job, restorer_job
from adapt.seeds import generator_of
from adapt.training import TrainingPlan, choose_device, make_accelerator, train
from adapt.workspace import write_json, write_tensors, write_text
from pseudo_targets.downloads import WeightsError
from pseudo_targets.embedded import load_codec, load_removal, load_unet
from pseudo_targets.latents import fit_patch_latents
from pseudo_targets.places import NOWHERE
from pseudo_targets.quality import RANGE, fit_quality, graded_images
from pseudo_targets.tone import tone_of, tone_statistics
from restorers.compact import load_compact
from restorers.degradations import GenericDegradation, resize
from restorers.files import sha256_of

Say = Callable[[str], None]
DEFAULTS = {
    "restorer": TrainingPlan(steps=24000, learning_rate=2e-3, warmup=200),
    "removal": TrainingPlan(steps=2300, learning_rate=5e-4, warmup=200),
    "prior": TrainingPlan(steps=12900, learning_rate=4e-4, warmup=300),
    "control": TrainingPlan(steps=7000, learning_rate=5e-4, warmup=100),
}
"""What the embedded weights were trained with, stages added up."""
FITTED_WINDOWS = 720
"""Windows that closed-form fits see, of few photos fewer."""


@dataclass(frozen=True)
class PretrainOptions:
    """See `adapt pretrain --help`."""

    network: str
    data: tuple[Path, ...]
    output: Path
    validation: tuple[Path, ...]
    size: int
    data_size: int | None
    steps: int | None
    batch: int
    learning_rate: float | None
    seed: int
    device: str
    note: str = ""
    start_from: Path | None = None
    aligned: tuple[Path, ...] = ()
    pool: int = 0


def pretrain(options: PretrainOptions, say: Say) -> None:
    """Trains one network and writes weights, curve, validation images and model card into the output folder.

    Raises:
        UsageError: an option cannot be used; nothing was done.
        AdaptError: no data, or a network that this one builds on is not there yet.
    """
    device = choose_device(options.device)
    _refuse_senseless(options)
    bank, validation, places = _images(options)
    say(f"{sizes_of(bank)} to train on, {len(validation)} to validate, in windows of {options.size} px")
    if options.network == "latents":
        _fit_latents(bank, validation, options.output, say)
        return
    try:
        if options.network == "quality":
            _fit_quality(bank, validation, options.output, say)
            return
        if options.network == "tone":
            _fit_tone(options, say)
            return
        source: Windows = bank
        if options.pool:
            source = draw_pool(bank, options.pool, options.size, options.seed, device)
            say(f"drew {len(source.windows)} of them in advance")
        job = _job(options, source, validation, places, device)
    except (WeightsError, FileNotFoundError) as error:
        raise AdaptError(
            f"adapt pretrain {options.network} builds on networks that --output must hold first (see "
            f"`adapt pretrain --help` for the order): {error}"
        ) from error
    if options.start_from is not None:
        start_from(job, options.start_from)
    origin = Origin(describe(bank, options.note), options.batch, again(options, job.plan))
    run_pretraining(job, options.output, device, origin, say)


def _refuse_senseless(options: PretrainOptions) -> None:
    faults = []
    if options.size < 64 or options.size % 32:
        faults.append(f"--size {options.size}: expected a multiple of 32, 64 or more")
    if options.data_size is not None and options.data_size < options.size:
        faults.append(f"--data-size {options.data_size}: expected --size or more")
    counts = {"--steps": options.steps, "--batch": options.batch}
    for name, count in counts.items():
        if count is not None and count < 1:
            faults.append(f"{name} {count}: expected 1 or more")
    if options.learning_rate is not None and not options.learning_rate > 0:
        faults.append(f"--learning-rate {options.learning_rate:g}: expected more than 0")
    if faults:
        raise UsageError("; ".join(faults))


@dataclass(frozen=True)
class Origin:
    """Where weights come from, for their record and card.

    Attributes:
        data: the training images in words.
        batch: images a step.
        command: what trains them again.
    """

    data: str
    batch: int
    command: str


def again(options: PretrainOptions, plan: TrainingPlan) -> str:
    """The command that repeats a training."""
    given = {"--data": options.data, "--aligned": options.aligned}
    data = " ".join(" ".join((name, *["DIR"] * len(folders))) for name, folders in given.items() if folders)
    parts = [f"adapt pretrain {options.network} {data} --size {options.size} --steps {plan.steps}"]
    if options.data_size is not None:
        parts.append(f"--data-size {options.data_size}")
    parts.append(f"--batch {options.batch} --learning-rate {plan.learning_rate:g} --seed {plan.seed}")
    if options.pool:
        parts.append(f"--pool {options.pool}")
    if options.start_from is not None:
        digest = sha256_of(options.start_from)[:12]
        parts.append(f"--start-from {options.start_from.name} (sha256 {digest})")
    return " ".join(parts)


def start_from(job: Pretraining, path: Path) -> None:
    """Fills a network with weights trained before.

    Raises:
        AdaptError: the file is missing or of another shape.
    """
    try:
        tensors = {name: tensor.float() for name, tensor in load_file(path).items()}
        kept = {name: tensor for name, tensor in job.module.state_dict().items() if name.startswith(job.elsewhere)}
        job.module.load_state_dict({**tensors, **kept})
    except (OSError, SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[-1].strip()
        raise AdaptError(f"--start-from {path}: expected weights of this network and size, got: {reason}") from error


def _images(options: PretrainOptions) -> tuple[PhotoBank, Tensor, Tensor]:
    """What to train on, and validation windows, one of each photo, with their places."""
    bank = load_photos(options.data, options.size, options.data_size, options.aligned)
    if options.validation:
        return bank, *_windows(load_photos(options.validation, options.size), options.size)
    if len(bank) < 2:
        folder = (*options.data, *options.aligned)[0]
        raise AdaptError(f"--data {folder}: 1 image, expected 2 or more, as one of 32 validates; add images")
    held_out = PhotoBank([group[::32] for group in bank.groups], bank.aligned)
    rest = [[photo for index, photo in enumerate(group) if index % 32] for group in bank.groups]
    return PhotoBank(rest, bank.aligned), *_windows(held_out, options.size)


def _windows(bank: PhotoBank, side: int) -> tuple[Tensor, Tensor]:
    """A window `[3, side, side]` of each photo, the same in every run, and their places `[N, 3]`."""
    photos = [(photo, faces) for group, faces in zip(bank.groups, bank.aligned, strict=True) for photo in group]
    windows, places = [], []
    for number, (photo, faces) in enumerate(photos):
        window, place = window_of(photo, side, generator_of("validation window", number))
        windows.append(window)
        places.append(place if faces else NOWHERE)
    return torch.stack(windows), torch.tensor(places)


def sizes_of(bank: PhotoBank) -> str:
    """How many photos there are, and of which sizes."""
    sides = [min(photo.shape[-2:]) for photo in bank.photos()]
    return f"{len(bank)} images of {min(sides)} to {max(sides)} px on the shorter side"


def describe(bank: PhotoBank, note: str) -> str:
    """The training data in words: how many images, what they are, a hash of their content."""
    digest = hashlib.sha256()
    for photo in bank.photos():
        digest.update(photo.numpy().tobytes())
    groups = "" if len(bank.groups) == 1 else f", in {len(bank.groups)} folders that count alike"
    return f"{sizes_of(bank)}{groups}{f' ({note})' if note else ''}, content {digest.hexdigest()[:16]}"


def run_pretraining(job: Pretraining, output: Path, device: torch.device, origin: Origin, say: Say) -> None:
    """Trains, writes `<name>.safetensors` (half precision), `.json` (plan, curve, scores), `.png` (sheet) and `.md`.

    A killed run continues with the same command; a finished one is left as it is.
    """
    output.mkdir(parents=True, exist_ok=True)
    if _is_done(output, job.name, origin):
        say(f"{job.name} is trained already: {output / job.name}.safetensors")
        return
    accelerator = make_accelerator(device)
    started = time.monotonic()

    def report(step: int, terms: dict[str, float]) -> None:
        if step % 100 == 0 or step == job.plan.steps:
            text = " ".join(f"{name} {value:.4f}" for name, value in terms.items())
            say(f"{job.name} step {step}/{job.plan.steps} {text} {time.monotonic() - started:.0f} s")

    checkpoint = output / f"{job.name}.checkpoint.pt"
    done = train(
        job.module.to(device),
        job.losses,
        job.plan,
        accelerator,
        checkpoint,
        report,
        log_every=100,
        evaluate=job.evaluate,
        late_losses=job.late_losses,
    )
    module = done.module.cpu()
    half = {name: tensor.half() for name, tensor in module.state_dict().items() if not name.startswith(job.elsewhere)}
    write_tensors(output / f"{job.name}.safetensors", half, job.metadata)
    module.load_state_dict({name: tensor.float() for name, tensor in half.items()}, strict=False)
    validation = job.validate(module)
    write_photo(output / f"{job.name}.png", validation.sheet)
    record = {
        "plan": asdict(job.plan),
        "precision": accelerator.mixed_precision,
        "parameters": sum(tensor.numel() for tensor in half.values()),
        "hardware": hardware_of(device),
        **asdict(origin),
        "scores": validation.scores,
        "losses": list(done.losses),
    }
    write_json(output / f"{job.name}.json", record)
    write_text(output / f"{job.name}.md", card(job.name, record))
    _list_digests(output)
    say(f"{job.name} validation {json.dumps(record['scores'])}")


def hardware_of(device: torch.device) -> str:
    """What a network was trained on, in words."""
    where = f"{torch.get_num_threads()} threads" if device.type == "cpu" else torch.cuda.get_device_name(device)
    return f"{device.type}, {platform.machine()}, {where}"


def _is_done(output: Path, name: str, origin: Origin) -> bool:
    """Whether this training has left its record, and its weights are still what they were."""
    record, digests, weights = (output / file for file in (f"{name}.json", "sha256.json", f"{name}.safetensors"))
    if not (record.is_file() and digests.is_file() and weights.is_file()):
        return False
    written = json.loads(record.read_text(encoding="utf-8"))
    known = json.loads(digests.read_text(encoding="utf-8")).get(name)
    return {key: written.get(key) for key in asdict(origin)} == asdict(origin) and sha256_of(weights) == known


def _job(
    options: PretrainOptions, bank: Windows, validation: Tensor, places: Tensor, device: torch.device
) -> Pretraining:
    default = DEFAULTS[options.network]
    plan = TrainingPlan(
        steps=options.steps or default.steps,
        learning_rate=options.learning_rate or default.learning_rate,
        warmup=default.warmup,
        seed=options.seed,
    )
    if options.network == "restorer":
        return restorer_job(bank, validation, plan, options.batch, device)
    codec = load_codec(options.output)
    if options.network == "removal":
        return removal_job(bank, validation, codec, plan, options.batch, device)
    if options.network == "prior":
        return prior_job(bank, validation, places, codec, plan, options.batch, device)
    restorer = load_compact(options.output / "compact.safetensors")
    cleaners = (load_removal(options.output), restorer, restorer, restorer)  # mostly what refining will start from
    unet = load_unet(options.output)
    return control_job(bank, validation, places, codec, unet, cleaners, plan, options.batch, device)


def _fitted(bank: PhotoBank) -> int:
    return min(FITTED_WINDOWS, 4 * len(bank))


def _fit_latents(bank: PhotoBank, validation: Tensor, output: Path, say: Say) -> None:
    windows = bank.draw_windows(_fitted(bank), validation.shape[-1], generator_of("latents"))
    codec = fit_patch_latents(windows, patch=4, channels=16)
    tensors = {"basis": codec.basis, "mean": codec.mean}
    write_tensors(output / "latents.safetensors", tensors, {"scaling": str(codec.scaling)})
    score = float(psnr(codec.decode(codec.encode(validation)), validation).mean())
    write_json(output / "latents.json", {"patch": codec.patch, "channels": codec.channels, "scores": {"psnr": score}})
    _list_digests(output)
    say(f"latents: {codec.patch} px patches, {codec.channels} channels, reconstruction {score:.2f} dB")


def _fit_quality(bank: PhotoBank, validation: Tensor, output: Path, say: Say) -> None:
    removal, restorer = load_removal(output), load_compact(output / "compact.safetensors")
    degrade = GenericDegradation(clean_probability=0)
    clean = bank.draw_windows(_fitted(bank), validation.shape[-1], generator_of("quality windows"))
    images, decibels = graded_images(clean, degrade, restorer, generator_of("quality"))
    quality = fit_quality(removal, images, decibels)
    names = ("mean", "scale", "weight", "bias")
    write_tensors(output / "quality.safetensors", {name: getattr(quality, name) for name in names})
    seen, known = graded_images(validation, degrade, restorer, generator_of("quality validation"))
    predicted = torch.cat([quality(part) for part in seen.split(16)])
    score = float(torch.corrcoef(torch.stack([predicted, known.clamp(*RANGE)]))[0, 1])
    write_json(output / "quality.json", {"images": len(images), "scores": {"correlation": score}})
    _list_digests(output)
    say(f"quality: correlation with the true PSNR of held-out images {score:.3f}")


def _fit_tone(options: PretrainOptions, say: Say) -> None:
    # Images of one folder whose names are alike up to the last underscore are a set.
    photos = [photo for folder in (*options.data, *options.aligned) for photo in square_photos(folder)]
    names = [(photo.path.parent, photo.path.stem.rpartition("_")[0]) for photo in photos]
    order = {name: number for number, name in enumerate(dict.fromkeys(names))}
    tones = torch.cat([tone_of(resize(read_photo(p.path), (options.size,) * 2, 2).clamp(0, 1)) for p in photos])
    known = tone_statistics(tones, torch.tensor([order[name] for name in names]))
    write_tensors(options.output / "tone.safetensors", dict(vars(known)))
    record = {"images": len(photos), "sets": len(order), **{name: v.tolist() for name, v in vars(known).items()}}
    write_json(options.output / "tone.json", record)
    _list_digests(options.output)
    say(f"tone: {len(photos)} images in {len(order)} sets, known {json.dumps(record)}")


def _list_digests(output: Path) -> None:
    digests = {path.stem: sha256_of(path) for path in sorted(output.glob("*.safetensors"))}
    write_json(output / "sha256.json", digests)
