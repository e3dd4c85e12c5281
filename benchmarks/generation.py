"""Time and memory of pseudo targets at DiffBIR's published sizes, beside DiffBIR's own settings on the same machine.

    python -m benchmarks.generation --json generation.json                           on a GPU: 512 px, batch 8
    python -m benchmarks.generation --device cpu --size 128 --batch 1 --calls 1 --reference-steps 1

Weights are random, which does not change speed. *Ours* is one draw a face with a recipe's settings: few calls, one
evaluation a call, a batch of faces; the default recipe's pseudo target takes two draws and one call more. *Reference*
is how DiffBIR runs: 50 ancestral steps with two evaluations each, one image at a time, half precision under autocast,
the condition encoded for both branches. Both encode, decode and fix colours; stage 1 is in neither. *Share of the
ceiling*: arithmetic of UNet and IRControlNet in matrix products, convolutions and attention, by the time of a call, as
a share of the fastest square matrix product measured in the same type.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from adapt.prior_setup import compute_of, placed, sampled_as_diffbir
from adapt.seeds import generator_of
from pseudo_targets.color_fix import wavelet_color_fix
from pseudo_targets.compute import Compute, prepare
from pseudo_targets.diffbir.networks import PUBLISHED, Sizes, build_autoencoder, build_control, build_unet
from pseudo_targets.diffbir.published import VERSIONS, version_schedule
from pseudo_targets.diffbir.sampling import Settings, multiple_for, restore
from pseudo_targets.dt_bfr import noise_from
from pseudo_targets.latents import AutoencoderLatents
from pseudo_targets.priors import Condition, LatentPrior
from pseudo_targets.sampling import Trajectory, refine
from recipes.schema import Generation

VERSION = VERSIONS["diffbir-v2.1"]
START = 300
"""Start timestep of the few-call path; it does not change its speed."""


@dataclass(frozen=True)
class Plan:
    """What is measured.

    Attributes:
        size: side of the faces in pixels.
        batch: faces that ours denoises together.
        settings: ours, as a recipe has them.
        reference_steps: 50 as published.
        repeats: timed runs after one that is not.
    """

    size: int
    batch: int
    settings: Generation
    device: torch.device
    reference_steps: int = 50
    repeats: int = 3


def random_prior(sizes: Sizes, device: torch.device, denoiser: torch.dtype) -> LatentPrior:
    """A prior of these sizes on `device`: built without memory, given its type, then filled with noise."""
    with torch.device("meta"):
        unet = build_unet(sizes)
        control = build_control(unet)
        autoencoder = build_autoencoder(sizes)
    for network in (unet, control):
        nn.Module.to(network, denoiser)
    for network in (unet, control, autoencoder):
        filled(network.to_empty(device=device))
    text = sizes.clip["text_cfg"]
    context = torch.randn(1, text["context_length"], text["width"], device=device)
    prior = LatentPrior(
        AutoencoderLatents(autoencoder),
        unet,
        control,
        version_schedule(VERSION),
        sizes.resolution,
        context,
        "random",
        "none",
        "0" * 64,
    )
    return prior.eval().requires_grad_(False)


@torch.no_grad()
def filled(network: nn.Module) -> nn.Module:
    """Random weights that keep activations near unit variance; norms and biases as they start."""
    for name, parameter in network.named_parameters():
        if parameter.ndim > 1:
            parameter.normal_(std=parameter[0].numel() ** -0.5)
        else:
            parameter.fill_(float(name.endswith("weight")))
    return network


def ours(sizes: Sizes, plan: Plan) -> tuple[Callable[[], object], LatentPrior]:
    """A call that makes a batch of draws behind cleaned faces, as a worker does, and the prior it uses."""
    compute = compute_of(plan.settings.compute, plan.device)
    built = random_prior(sizes, plan.device, compute.denoiser)
    prior, _ = placed(built, None, plan.settings, plan.device)
    if not isinstance(prior, LatentPrior):
        raise TypeError(f"got {type(prior).__name__}, expected a latent prior")
    clean = torch.rand(plan.batch, 3, plan.size, plan.size, device=plan.device)

    def call() -> Tensor:
        generators = [generator_of("benchmark", index) for index in range(plan.batch)]
        if plan.settings.sampler == "diffbir":
            image = sampled_as_diffbir(prior, clean, plan.settings, generators)
        else:
            image = refine(prior, clean, Trajectory(START, plan.settings.calls), (), generators)
        return wavelet_color_fix(image, clean).clamp(0, 1)

    return call, prior


def reference(sizes: Sizes, plan: Plan) -> Callable[[], object]:
    """A call that makes one draw with DiffBIR's own settings."""
    half = torch.float16 if plan.device.type == "cuda" else torch.bfloat16
    prior = prepare(random_prior(sizes, plan.device, half), Compute(half))
    clean = torch.rand(1, 3, plan.size, plan.size, device=plan.device)
    negative = torch.randn_like(prior.context)
    settings = Settings(solver="spaced", steps=plan.reference_steps, guidance=4.0)
    multiple = multiple_for(prior, plan.size, plan.size)

    def call() -> Tensor:
        noise = noise_from([generator_of("benchmark", 0)])
        with torch.autocast(plan.device.type, half):
            prior.encode(clean)  # the condition of the second branch
            image = restore(prior, clean, settings, noise, multiple, negative=negative)
        return wavelet_color_fix(image.float(), clean).clamp(0, 1)

    return call


def timed_ours(sizes: Sizes, plan: Plan) -> tuple[float, float, float]:
    """Seconds of a call, its peak memory, and the seconds of one evaluation of the denoiser."""
    call, prior = ours(sizes, plan)
    seconds, memory = timed(call, plan)
    latent = torch.randn(plan.batch, 4, *(plan.size // patch_of(sizes),) * 2, device=plan.device)
    times = torch.full((plan.batch,), 500)
    evaluation, _ = timed(lambda: prior.denoise(latent, times, Condition(latent)), plan)
    return seconds, memory, evaluation


def timed(call: Callable[[], object], plan: Plan) -> tuple[float, float]:
    """Median seconds of a call, and its peak memory in GiB (on a CPU that of the process so far)."""
    call()
    if plan.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    times = []
    for _ in range(plan.repeats):
        started = time.perf_counter()
        call()
        synchronise(plan.device)
        times.append(time.perf_counter() - started)
    return statistics.median(times), peak_memory(plan.device)


def peak_memory(device: torch.device) -> float:
    """GiB."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def synchronise(device: torch.device) -> None:
    """Waits for the device."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def call_flops(sizes: Sizes, size: int, batch: int) -> int:
    """Floating point operations of one evaluation of IRControlNet and UNet, counted without computing it."""
    with torch.device("meta"):
        unet = build_unet(sizes)
        control = build_control(unet)
        latent = torch.empty(batch, unet.config.in_channels, *(size // patch_of(sizes),) * 2)
        context = torch.empty(batch, 77, unet.config.cross_attention_dim)
        times = torch.empty(batch, dtype=torch.long)
    counter = FlopCounterMode(display=False)
    # In its plain form attention is matrix products, which are counted everywhere.
    with counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
        down, middle = control(latent, times, context, latent, return_dict=False)
        unet(latent, times, context, down_block_additional_residuals=down, mid_block_additional_residual=middle)
    return counter.get_total_flops()


def patch_of(sizes: Sizes) -> int:
    """Pixels along the side of a latent."""
    return 2 ** (len(sizes.vae["ddconfig"]["ch_mult"]) - 1)


@torch.no_grad()
def ceiling(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of the fastest square matrix product."""
    sides = (4096, 8192, 16384) if device.type == "cuda" else (512, 1024, 2048)
    best = 0.0
    for side in sides:
        a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
        repeats = 10 if device.type == "cuda" else 3
        a @ b
        synchronise(device)
        started = time.perf_counter()
        for _ in range(repeats):
            a @ b
        synchronise(device)
        best = max(best, 2 * side**3 * repeats / (time.perf_counter() - started))
    return best


@torch.no_grad()
def measure(plan: Plan, sizes: Sizes = PUBLISHED) -> dict[str, object]:
    """All numbers; the networks of ours are gone before those of the reference are made."""
    torch.manual_seed(0)
    dtype = compute_of(plan.settings.compute, plan.device).denoiser
    seconds, memory, evaluation = timed_ours(sizes, plan)
    gc.collect()
    flops, most = call_flops(sizes, plan.size, plan.batch), ceiling(plan.device, dtype)
    theirs, their_memory = timed(reference(sizes, plan), plan)
    gpu = plan.device.type == "cuda"
    return {
        "ours": {
            "images_per_second": plan.batch / seconds,
            "seconds_per_image": seconds / plan.batch,
            "peak_memory_gib": memory,
            "batch": plan.batch,
            "calls": plan.settings.calls,
            "sampler": plan.settings.sampler,
            "type": str(dtype).removeprefix("torch."),
            "compute": plan.settings.compute.model_dump(),
            "tiles": plan.settings.tiles.model_dump(),
        },
        "reference": {
            "images_per_second": 1 / theirs,
            "seconds_per_image": theirs,
            "peak_memory_gib": their_memory,
            "steps": plan.reference_steps,
        },
        "speedup": theirs * plan.batch / seconds,
        "denoiser": {
            "operations": flops,
            "seconds": evaluation,
            "operations_per_second": flops / evaluation,
            "ceiling": most,
            "share_of_ceiling": flops / evaluation / most,
        },
        "size": plan.size,
        "repeats": plan.repeats,
        "device": torch.cuda.get_device_name() if gpu else platform.processor() or platform.machine(),
        "torch": torch.__version__,
    }


def table(result: dict[str, object]) -> str:
    """The numbers as two tables."""
    rows = ["| | images/s | s an image | peak memory |", "|---|--:|--:|--:|"]
    for name in ("ours", "reference"):
        row: dict[str, float] = result[name]  # type: ignore[assignment]
        speed, seconds, memory = (row[key] for key in ("images_per_second", "seconds_per_image", "peak_memory_gib"))
        rows.append(f"| {name} | {speed:.3g} | {seconds:.3g} | {memory:.1f} GiB |")
    inside: dict[str, float] = result["denoiser"]  # type: ignore[assignment]
    rows.append(f"\n{result['speedup']:.1f} times as fast as the reference; inside the denoiser ")
    rows[-1] += f"{inside['operations_per_second'] / 1e12:.3g} of {inside['ceiling'] / 1e12:.3g} TFLOP/s, "
    rows[-1] += f"{inside['share_of_ceiling']:.0%} ({result['device']})"
    return "\n".join(rows)


def plan_of(options: argparse.Namespace) -> Plan:
    """The plan that the command line asks for."""
    chosen = options.device
    device = torch.device(chosen if chosen != "auto" else "cuda" if torch.cuda.is_available() else "cpu")
    compute = {"precision": options.precision, "compile": options.compile, "offload": options.offload}
    tiles = {"encode": options.tile, "decode": options.tile}
    settings = Generation.model_validate(
        {"sampler": options.sampler, "calls": options.calls, "compute": compute, "tiles": tiles, "filter": "none"}
    )
    return Plan(options.size, options.batch, settings, device, options.reference_steps, options.repeats)


def main() -> None:
    """Measures, prints tables, writes JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="file for the results")
    parser.add_argument("--size", type=int, default=512, help="side in pixels, a multiple of 64 (default 512)")
    parser.add_argument("--batch", type=int, default=8, help="faces that ours denoises together (default 8)")
    parser.add_argument("--calls", type=int, default=10, help="network calls of ours (default 10)")
    parser.add_argument("--reference-steps", type=int, default=50, help="steps of the reference (default 50)")
    parser.add_argument("--repeats", type=int, default=3, help="timed runs of each (default 3)")
    parser.add_argument("--sampler", choices=("few_calls", "diffbir"), default="few_calls")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto")
    parser.add_argument("--compile", action="store_true", help="torch.compile the denoiser")
    parser.add_argument("--offload", action="store_true", help="only the network in use on the device")
    parser.add_argument("--tile", type=int, default=0, help="side of the autoencoder's tiles (default: whole)")
    parser.add_argument("--device", default="auto", metavar="auto|cpu|cuda")
    options = parser.parse_args()
    result = measure(plan_of(options))
    print(table(result))
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
