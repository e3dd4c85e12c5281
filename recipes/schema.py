"""Every setting of an adaptation. An unknown key is an error; all values are checked before any work starts."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Share = Annotated[float, Field(ge=0, le=1)]
Timestep = Annotated[int, Field(ge=0, le=999)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Windows(_Section):
    """What of the photos takes part: windows at the photos' own pixels, those on faces weighted more."""

    size: Annotated[int, Field(ge=64, multiple_of=32)] = 128
    """Side in pixels, what the prior was trained at; where it is not given it follows --prior."""
    content: Literal["auto", "faces", "photos"] = "auto"
    """Auto looks for faces and takes half of a photo's windows on those it finds; `faces` takes windows on faces alone,
    `photos` looks for none."""
    crops: Literal["auto", "yes", "no"] = "auto"
    """Faces cut out along the template and brought to `size` in place of windows, as networks that know nothing but
    aligned faces need; auto is yes for those and no for all others."""
    held_out: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Share of the photos that only judge, two at least, chosen by content hash."""
    minimum: Annotated[int, Field(ge=4)] = 8
    """Fewer windows than this and the job stops: a camera cannot be learned from less."""
    maximum: Annotated[int, Field(ge=8)] = 192
    """Windows of all photos together, spread evenly over them; of more photos than this the first by content hash."""


Tile = Annotated[int, Field(ge=0, multiple_of=128)]


class Tiles(_Section):
    """Sides in pixels of square tiles that overlap by half; 0 sees the whole at once. Smaller ones take less memory."""

    stage1: Tile = 0
    """What DiffBIR's stage 1 sees at once."""
    denoiser: Tile = 0
    """What the denoiser sees at once, with sampler `diffbir`; its outputs are blended at every step."""
    encode: Tile = 0
    """What the autoencoder encodes at once. Its norms share what all tiles measure."""
    decode: Tile = 0
    """What the autoencoder decodes at once; guidance in `rgb` keeps the activations of one tile."""


class Compute(_Section):
    """How the prior is computed. `auto` values leave a CPU at full precision."""

    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of the denoiser; auto is bf16 on a GPU that computes in it."""
    decoder: Literal["auto", "fp32", "bf16"] = "auto"
    """Of the autoencoder's decoder, but for its last layer; auto is that of the denoiser. It encodes in fp32."""
    channels_last: Literal["auto", "yes", "no"] = "auto"
    """Memory order that convolutions of a GPU prefer; auto is yes there."""
    compile: bool = False
    """Compiles the denoiser with torch.compile: minutes once, then faster."""
    offload: bool = False
    """Keeps only the network in use on the device: text tower, stage 1, denoiser or autoencoder."""

    @model_validator(mode="after")
    def _one_of_both(self) -> Compute:
        if self.compile and self.offload:
            raise ValueError("compile and offload are both on, expected one: what is compiled must stay where it is")
        return self


class Diffbir(_Section):
    """What sampler `diffbir` has beside `calls`, `control_strength` and `guidance_scale`."""

    solver: Literal["spaced", "ddim", "dpm++_2m", "edm_euler", "edm_heun", "edm_dpm++_2m", "edm_dpm++_3m_sde"] = (
        "edm_dpm++_3m_sde"
    )
    """The published choices: `spaced` with 50 calls for versions 1 and 2, `edm_dpm++_3m_sde` with 10 for 2.1."""
    start: Literal["noise", "condition"] = "noise"
    """Starts from noise, or from the noised latent of the stage 1 output (versions 1 and 2)."""
    augmentation: Annotated[int, Field(ge=0, le=999)] = 0
    """Timestep to which the condition is noised; higher invents more. Version 2.1 has learned up to 199."""
    negative_prompt: str = ""
    """What to lead away from."""
    prompt_scale: Annotated[float, Field(ge=1)] = 1.0
    """Classifier-free guidance; 1 is off, anything else takes a second evaluation each call."""
    rescale: bool = False
    """Lets that scale rise late, from 1 to 1 + `prompt_scale`."""


class Generation(_Section):
    """Stage 1 and stage 2."""

    stage1: Literal["restorer", "removal"] = "restorer"
    """What cleans the photo before the prior refines it: the current restorer, or the prior's degradation removal. That
    is DiffBIR's published one for faces (`adapt weights fetch swinir-face`) or else the embedded one."""
    sampler: Literal["few_calls", "dt_bfr", "diffbir"] = "few_calls"
    """Few calls with the constraint on each predicted clean image; DT-BFR's released chain (ancestral, the prior's
    learned variance, constraint on the noisy sample), for which `eta` and guidance have no meaning; or DiffBIR's own,
    from noise, for its priors, for which `eta` and start timesteps have no meaning."""
    start: Literal["severity", "fixed"] = "severity"
    """Start timestep chosen for each photo from its estimated severity, or `start_timesteps[0]` for all."""
    start_timesteps: Annotated[tuple[Timestep, ...], Field(min_length=1)] = (100, 200, 300)
    """Start timesteps from mild to severe; higher invents more."""
    severity_limits: tuple[float, ...] = (0.03, 0.06)
    """What degradation removal changes (root mean square) where the next start timestep begins."""
    calls: Annotated[int, Field(ge=1, le=250)] = 10
    """Network calls for each draw."""
    candidates: Annotated[int, Field(ge=1, le=16)] = 2
    """Draws a photo; their spread is the confidence."""
    realism: Share = 0.25
    """The target: 1 is the mean of the draws, 0 what the prior expects in one call; between, a mixture of both."""
    eta: Share = 1.0
    """1 samples ancestrally, 0 deterministically."""
    control_strength: Annotated[float, Field(ge=0, le=2)] = 1.0
    """Strength of the IRControlNet."""
    filter: Literal["idempotent", "published", "none"] = "idempotent"
    """Low-pass filter of the constraint: block mean (exact), DT-BFR's cubic filter, or no constraint."""
    filter_factor: Annotated[int, Field(ge=1)] = 2
    """Block side of the filter in latent pixels; larger leaves more to the prior."""
    end_timestep: Annotated[int, Field(ge=0)] = 100
    """The constraint acts from the start down to this timestep."""
    guidance_scale: Annotated[float, Field(ge=0)] = 0.0
    """DiffBIR's region-adaptive restoration guidance; 0 is off."""
    guidance_space: Literal["latent", "rgb"] = "latent"
    """Where guidance compares."""
    guidance_loss: Literal["wmse", "mse"] = "wmse"
    """The squared error as it is, or weighted against detail."""
    guidance_window: tuple[int, int] = (1001, -1)
    """Guidance acts where timestep + 1 lies below the first and above the second."""
    guidance_repeat: Annotated[int, Field(ge=1)] = 1
    """Gradient steps of guidance at each timestep."""
    color_fix: Literal["none", "wavelet", "adain"] = "none"
    """Takes the colours of the stage 1 output after sampling."""
    prompt: str = ""
    """Words that steer a DiffBIR prior; needs the tokenizer's files in the cache."""
    caption: str = ""
    """Model id or folder of a transformers image-to-text model that describes each photo for the prompt; "" is none."""
    batch: Annotated[int, Field(ge=1)] = 8
    """Faces denoised together; does not change the result."""
    diffbir: Diffbir = Diffbir()
    """Settings of sampler `diffbir`."""
    tiles: Tiles = Tiles()
    """For images whose activations do not fit."""
    compute: Compute = Compute()
    """Precision, compilation and placement of the prior."""

    @model_validator(mode="after")
    def _a_limit_between_starts(self) -> Generation:
        needed, got = len(self.start_timesteps) - 1, len(self.severity_limits)
        if self.start == "severity" and got < needed:
            raise ValueError(f"severity_limits has {got}, expected {needed}: one between each two of start_timesteps")
        return self

    @model_validator(mode="after")
    def _released(self) -> Generation:
        if self.sampler == "dt_bfr" and self.guidance_scale:
            raise ValueError(f"guidance_scale is {self.guidance_scale:g}, expected 0: sampler dt_bfr has no guidance")
        if self.sampler != "diffbir" and self.tiles.denoiser:
            raise ValueError(
                f"tiles.denoiser is {self.tiles.denoiser}, expected 0: sampler {self.sampler} has no tiles"
            )
        return self

    @model_validator(mode="after")
    def _room_for_calls(self) -> Generation:
        first = self.start_timesteps[0] if self.start == "fixed" else min(self.start_timesteps)
        most = {"few_calls": first + 1, "dt_bfr": first}.get(self.sampler)
        if most is not None and self.calls > most:
            raise ValueError(f"calls is {self.calls}, expected {most} at most: a path starts at timestep {first}")
        return self


class Gate(_Section):
    """Limits that a pseudo target must keep to be used."""

    low_band: Annotated[float, Field(gt=0)] = 0.06
    """Largest difference of the low bands of target and photo, tone removed."""
    spread: Annotated[float, Field(gt=0)] = 0.05
    """Largest mean standard deviation between the draws."""
    quality: float = 24.0
    """Smallest quality of the target, in dB of predicted PSNR; with the embedded prior asked only where
    most windows show whole faces, as what predicts it knows no others."""
    identity: Annotated[float, Field(ge=-1, le=1)] = 0.3
    """Smallest identity similarity to the cleaned photo, where an identity network is there."""


class Camera(_Section):
    """The learned camera and the clean faces it photographs."""

    enabled: bool = True
    """Without it only the photos and their pseudo targets teach."""
    form: Literal["auto", "pairs", "pipeline"] = "auto"
    """How it is learned: from pairs of pseudo target and photo, which show any camera as far as the targets are right;
    or as a pipeline of the steps that cameras take (`restorers.photo_pipeline`), whose settings are looked for until
    simulated photos look like the photos. A pipeline sees blur and noise that targets keep, and misses what is none of
    its steps. Auto takes pairs where the prior knows the windows; elsewhere it learns both and takes the pipeline where
    its photos lie within a standard deviation of the real ones and nearer than those of pairs."""
    settings: Annotated[int, Field(ge=16)] = 300
    """Settings of a pipeline that are tried in each of four generations."""
    steps: Annotated[int, Field(ge=1)] = 300
    """Optimiser steps of the mean response, learned from pairs."""
    clean_side: Literal["auto", "mean", "draw"] = "auto"
    """What of a pseudo target the camera is fitted on: its mean, or one draw, which has detail of its own. A draw is
    better where the prior knows what it draws; the embedded one knows whole faces, and auto takes a draw there."""
    spectrum_match: bool = True
    """Matches the camera's output to the photos' power spectrum without pairs."""
    tone: bool = True
    """Learns what the camera does to contrast and colour, where it does more than sets of clean faces differ by."""
    bank: Annotated[int, Field(ge=16)] = 192
    """Clean windows (with --clean: a quarter of those taken at most)."""
    bank_from: Literal["auto", "photos", "prior"] = "auto"
    """Where they come from: drawings of the prior, which are clean; or the photos themselves, brought down two to four
    times and restored, which are of their content, cost nothing and keep some of the defects. Auto draws faces where
    most photos show faces, and elsewhere what small photos cannot give."""
    bank_calls: Annotated[int, Field(ge=1, le=250)] = 20
    """Network calls for each drawn face."""
    bank_start: Timestep = 999
    """999 draws faces from nothing; below, they are variations of the pseudo targets noised to this timestep. DiffBIR's
    priors know more than faces and start at 400 at most."""

    @model_validator(mode="after")
    def _room_for_calls(self) -> Camera:
        if self.bank_calls > self.bank_start + 1:
            raise ValueError(
                f"bank_calls is {self.bank_calls}, expected {self.bank_start + 1} at most: the bank starts at timestep "
                f"{self.bank_start}"
            )
        return self


class Finetune(_Section):
    """How the restorer learns."""

    steps: Annotated[int, Field(ge=1)] = 500
    """Optimiser steps a round."""
    batch: Annotated[int, Field(ge=1)] = 8
    """Images a micro-batch."""
    accumulate: Annotated[int, Field(ge=1)] = 1
    """Micro-batches a step."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    """Peak of the cosine schedule."""
    final_rate: Share = 0.02
    """Last learning rate as a share of the peak."""
    halve_at: tuple[int, ...] = ()
    """Steps at which the learning rate halves; with them there is no cosine, and `final_rate` means nothing."""
    betas: tuple[Share, Share] = (0.9, 0.99)
    """Of AdamW."""
    warmup: Annotated[int, Field(ge=0)] = 20
    """Steps of linear warm-up."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.99
    """Decay of the weight average that ships."""
    clip: Annotated[float, Field(gt=0)] = 1.0
    """Largest gradient norm."""
    camera_share: Share = 1.0
    """Share of each batch drawn as clean faces seen through the learned camera; what is left are the photos."""
    mirror: Literal["none", "clean", "all"] = "clean"
    """What is mirrored half of the time: nothing; clean faces, before the camera sees them; or photos and their targets
    too, for cameras that know no left and right."""
    confidence: bool = True
    """Weights the pixels of a photo's pseudo target by how well its draws agree there."""
    parts: Literal["default", "all", "decoder", "lora"] = "default"
    """What trains: all but what the network's authors froze; everything; from the deepest features on; or low-rank
    updates of every layer, which are merged into the weights."""
    rank: Annotated[int, Field(ge=1)] = 8
    """Rank of the updates with `parts` lora."""
    losses: Literal["image", "codes"] = "image"
    """What is compared with the target: images, or, for CodeFormer, the codes that its transformer predicts."""
    code_entropy: Annotated[float, Field(ge=0)] = 0.5
    """Weight of the cross-entropy of predicted codes, with `losses` codes."""
    code_distance: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the squared distance of the features to the right codes, with `losses` codes."""
    pixel: Annotated[float, Field(ge=0)] = 1.0
    """Weight of L1."""
    perceptual: Annotated[float, Field(ge=0)] = 0.1
    """Weight of the perceptual distance."""
    perceptual_net: Literal["removal", "lpips"] = "removal"
    """What that compares: features of the embedded degradation removal, or LPIPS on VGG-16, whose files `adapt weights
    fetch lpips-vgg` brings; without them the run says so and compares the features. Both are means over the batch; a
    weight fits one of them, as their sizes differ."""
    harm: Annotated[float, Field(ge=0)] = 0.04
    """Weight of each dB of PSNR that a face seen through the camera loses against the restorer before all rounds."""
    adversarial: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the loss of a discriminator whose real images are the clean bank."""
    discriminator: Literal["patch", "unet"] = "patch"
    """A small one that scores patches, or Real-ESRGAN's U-Net of width 64, which scores pixels and is far slower."""
    adversarial_form: Literal["hinge", "logistic"] = "hinge"
    """Loss of the discriminator; the logistic one is DT-BFR's."""
    adversarial_betas: tuple[Share, Share] = (0.5, 0.99)
    """Of the discriminator's AdamW."""
    blend: bool = True
    """Goes only as far from the first weights to the finetuned ones as helps to restore photographed targets."""
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"
    """Mixed precision; auto uses bf16 where the device computes in it."""

    @model_validator(mode="after")
    def _codes(self) -> Finetune:
        if self.losses == "codes" and self.parts != "default":
            raise ValueError(f"parts is {self.parts}, expected default: losses codes says itself what trains")
        return self


class Judge(_Section):
    """When a round counts as better."""

    enabled: bool = True
    """Without it every round that gives finite scores is kept; the scores are reported all the same."""
    low_band_loss: Annotated[float, Field(ge=0)] = 0.004
    """How much the low bands of restored photo and photo may move apart."""
    gain: Annotated[float, Field(ge=0)] = 0.3
    """Smallest gain on photographed windows, in dB, where the prior does not know the photos' windows: the camera
    learned there errs, and less is not told from its errors."""
    cleanness_loss: Annotated[float, Field(ge=0)] = 0.05
    """How far restored photos may move away from clean faces, in standard deviations among these."""
    harm: Share = 0.4
    """Largest share of held-out photos that may get worse."""


class Recipe(_Section):
    """A whole adaptation."""

    name: str = "default"
    """Name of the preset this came from."""
    rounds: Annotated[int, Field(ge=1, le=10)] = 2
    """Rounds at most; a round that is not better is rolled back and ends the job."""
    seed: int = 0
    """Start of every random draw."""
    windows: Windows = Windows()
    generation: Generation = Generation()
    gate: Gate = Gate()
    camera: Camera = Camera()
    finetune: Finetune = Finetune()
    judge: Judge = Judge()
