"""From a recipe's settings to a prior that is placed, steered and sampled as they say."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from adapt.captions import Captioner, load_captioner
from pseudo_targets.compute import Compute, autoencoder_of, prepare
from pseudo_targets.consistency import Consistency, LowPassReplacement, RestorationGuidance
from pseudo_targets.diffbir.prompts import missing_vocabulary, vocabulary_folder
from pseudo_targets.diffbir.published import VERSIONS, version_schedule
from pseudo_targets.diffbir.sampling import Settings, multiple_for, restore
from pseudo_targets.diffbir.texts import Texts, joined, load_texts
from pseudo_targets.dt_bfr import noise_from
from pseudo_targets.filters import BlockMean, CubicLowPass, LowPass
from pseudo_targets.latents import AutoencoderLatents, CodecTiles, TiledLatents
from pseudo_targets.offload import OneAtATime, groups_of
from pseudo_targets.priors import LatentPrior, Prior
from pseudo_targets.schedule import Chain, ScheduleError, ddim_timesteps, respace, spaced_timesteps
from recipes.schema import Compute as ComputeSettings
from recipes.schema import Generation

VARIED_FROM = 400
"""Timestep up to which a face noised to it and denoised freely is still one, in the same place."""
LOW_PASSES: dict[str, Callable[[int], LowPass]] = {"idempotent": BlockMean, "published": CubicLowPass}


def faults_of(prior: str, settings: Generation) -> list[str]:
    """Settings that only DiffBIR's priors have a meaning for, where `prior` is another, and what does not suit them."""
    if prior in VERSIONS:
        words = settings.prompt or settings.caption or settings.diffbir.negative_prompt
        fault = missing_vocabulary(vocabulary_folder()) if words else ""
        return [f"generation.prompt: {fault}"] * bool(fault) + _unsuited(prior, settings)
    asked = {
        "sampler diffbir": settings.sampler == "diffbir",
        f"prompt {settings.prompt!r}": settings.prompt,
        f"caption {settings.caption!r}": settings.caption,
    }
    known = ", ".join(VERSIONS)
    return [
        f"generation.{what}: prior {prior!r} has none; give --prior, one of {known}" for what, on in asked.items() if on
    ]


def _unsuited(prior: str, settings: Generation) -> list[str]:
    """What solver and number of calls cannot do with a version of DiffBIR's prior."""
    solver, faults = settings.diffbir.solver, []
    if settings.sampler != "diffbir":
        return []
    if solver.startswith("edm_") and not VERSIONS[prior].velocity:  # from sigma 1e4 no noise is told
        faults.append(
            f"generation.diffbir.solver {solver}: {prior} predicts noise, expected spaced (recipe diffbir_v2)"
        )
    if solver == "ddim":
        try:
            ddim_timesteps(len(version_schedule(VERSIONS[prior])), settings.calls)
        except ScheduleError as error:
            faults.append(f"generation.{error}")
    return faults


def bank_start(prior: str, asked: int) -> int:
    """Where the clean bank starts: a prior of all photos draws no faces from nothing, but varies those it gets."""
    return min(asked, VARIED_FROM) if prior in VERSIONS else asked


def compute_of(settings: ComputeSettings, device: torch.device) -> Compute:
    """What `auto` means on a device: a GPU takes the fast way, a CPU the exact one."""
    gpu = device.type == "cuda"
    fast = gpu and torch.cuda.is_bf16_supported(including_emulation=False)
    types = {"auto": torch.bfloat16 if fast else torch.float32, "fp32": torch.float32, "bf16": torch.bfloat16}
    denoiser = types[settings.precision]
    return Compute(
        denoiser=denoiser,
        decoder=denoiser if settings.decoder == "auto" else types[settings.decoder],
        channels_last=gpu if settings.channels_last == "auto" else settings.channels_last == "yes",
        compiled=settings.compile,
    )


def placed(
    prior: Prior, cleaner: nn.Module | None, settings: Generation, device: torch.device
) -> tuple[Prior, nn.Module | None]:
    """Prior and published stage 1 set up as the recipe says: on `device`, or brought there when they are used."""
    if not isinstance(prior, LatentPrior):
        on_device = prior.to(device) if isinstance(prior, nn.Module) else prior
        return on_device, None if cleaner is None else cleaner.to(device)
    tiles = CodecTiles(settings.tiles.encode, settings.tiles.decode)
    if isinstance(prior.codec, AutoencoderLatents) and tiles != CodecTiles():
        prior.codec = TiledLatents(prior.codec, tiles)
    prepare(prior, compute_of(settings.compute, device))
    if not settings.compute.offload:
        return prior.to(device), None if cleaner is None else cleaner.to(device)
    if autoencoder_of(prior) is None and isinstance(prior.codec, nn.Module):
        prior.codec.to(device)
    if prior.fusion is not None:
        prior.fusion.to(device)
    prior.context = prior.context.to(device)
    # A copy: what brings it to the device must not stay on the job's own.
    cleaner = copy.deepcopy(cleaner)
    OneAtATime({**groups_of(prior), **({} if cleaner is None else {"stage1": [cleaner]})}, device)
    return prior, cleaner


def consistencies(settings: Generation, prior: Prior, start: int, chain: Chain | None = None) -> list[Consistency]:
    """The corrections a recipe asks for, for a path from `start`; `chain` is that of a published ancestral path."""
    result: list[Consistency] = []
    if settings.filter != "none":
        low_pass = LOW_PASSES[settings.filter](settings.filter_factor)
        result.append(LowPassReplacement(low_pass, start, min(settings.end_timestep, start)))
    if settings.guidance_scale:
        result.append(
            RestorationGuidance(
                prior.decode,
                settings.guidance_scale,
                settings.guidance_space,
                settings.guidance_loss,
                *settings.guidance_window,
                settings.guidance_repeat,
                chain=chain,
            )
        )
    return result


@dataclass(frozen=True, eq=False)
class PriorTexts:
    """The texts that steer a DiffBIR prior.

    Attributes:
        embed: prompts -> contexts.
        prompt: the user's words, after the caption.
        negative_prompt: what to lead away from.
        caption: describes photos, or None.
    """

    embed: Texts
    prompt: str
    negative_prompt: str
    caption: Captioner | None

    def positive(self, photos: Tensor) -> Tensor:
        """Contexts `[B, tokens, width]` of photos `[B, 3, S, S]`."""
        captions = [""] * len(photos) if self.caption is None else self.caption(photos)
        words = [joined(caption, self.prompt) for caption in captions]
        return self.embed([*words, self.negative_prompt])[: len(words)]  # all at once, as the tower is large


def negative_of(texts: PriorTexts | None, settings: Generation) -> Tensor | None:
    """The context to lead away from, `[1, tokens, width]`; None where guidance over prompts is off."""
    return None if texts is None or settings.diffbir.prompt_scale == 1 else texts.embed([texts.negative_prompt])


def texts_for(prior: str, settings: Generation, device: torch.device) -> PriorTexts | None:
    """The texts a recipe asks for; None where there are none beside the empty prompt, which the prior brings along."""
    guided = settings.sampler == "diffbir" and settings.diffbir.prompt_scale != 1
    if not (settings.prompt or settings.caption or guided):
        return None
    # Next to a prior that waits for its turn there is no room for a captioner.
    place = torch.device("cpu") if settings.compute.offload else device
    captioner = load_captioner(settings.caption, place) if settings.caption else None
    embed = load_texts(prior, device, many=captioner is not None)
    return PriorTexts(embed, settings.prompt, settings.diffbir.negative_prompt, captioner)


def sampled_as_diffbir(
    prior: Prior,
    reference: Tensor,
    settings: Generation,
    generators: Sequence[Generator],
    positive: Tensor | None = None,
    negative: Tensor | None = None,
) -> Tensor:
    """One draw of DiffBIR's own sampler behind each reference `[B, 3, S, S]`; about `[0, 1]`, not clamped.

    Raises:
        TypeError: the prior has no latent space.
    """
    if not isinstance(prior, LatentPrior):
        raise TypeError(f"got {type(prior).__name__}, expected a latent prior")
    own, steps = settings.diffbir, len(prior.schedule)
    tile = settings.tiles.denoiser // int(prior.codec.patch)  # type: ignore[attr-defined]
    plan = Settings(
        solver=own.solver,
        steps=settings.calls,
        guidance=own.prompt_scale,
        rescale=own.rescale,
        strength=settings.control_strength,
        start=own.start,
        augmentation=own.augmentation,
        tile=tile,
    )
    chain = respace(prior.schedule, spaced_timesteps(steps, [settings.calls])) if own.solver == "spaced" else None
    keep = consistencies(settings, prior, steps - 1, chain)
    height, width = reference.shape[-2:]
    multiple = multiple_for(prior, height, width, tile)
    return restore(prior, reference, plan, noise_from(generators), multiple, positive, negative, keep)
