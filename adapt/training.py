"""One training loop for everything: resumable, with EMA, clipping, accumulation, cosine schedule, NaN stop."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Generator, Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from adapt.errors import AdaptError, UsageError
from adapt.seeds import generator_of, seed_of
from adapt.workspace import write_torch

ComputeLosses = Callable[[nn.Module, Generator], dict[str, Tensor]]
OnStep = Callable[[int, dict[str, float]], None]
Evaluate = Callable[[nn.Module], dict[str, float]]
EVALUATIONS = 12  # points of a validation curve


class Stateful(Protocol):
    """Something beside the network that a resumed training must find again, such as a discriminator."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values only."""

    def load_state_dict(self, state: dict[str, Any]) -> Any:
        """Restores what `state_dict` returned."""


@dataclass(frozen=True)
class TrainingPlan:
    """How long and how fast to train; one field, one meaning.

    Attributes:
        steps: optimiser steps.
        learning_rate: peak of the cosine schedule.
        warmup: steps of linear warm-up.
        final_rate: last learning rate as a share of the peak.
        halve_at: steps at which the rate halves; with them there is no cosine and no last rate.
        betas: of AdamW.
        ema_decay: decay of the weight average that is returned.
        clip: largest gradient norm.
        weight_decay: decoupled weight decay.
        accumulate: micro-batches a step; `compute_losses` is called once for each.
        seed: start of every random draw.
        save_seconds: time between two checkpoints.
    """

    steps: int
    learning_rate: float
    warmup: int = 0
    final_rate: float = 0.02
    halve_at: tuple[int, ...] = ()
    betas: tuple[float, float] = (0.9, 0.99)
    ema_decay: float = 0.999
    clip: float = 1.0
    weight_decay: float = 0.0
    accumulate: int = 1
    seed: int = 0
    save_seconds: float = 60.0

    def rate(self, step: int) -> float:
        """Learning rate at `step` as a share of the peak."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        if self.halve_at:
            return 0.5 ** sum(step >= milestone for milestone in self.halve_at)
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.final_rate + (1 - self.final_rate) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


@dataclass(frozen=True)
class Trained:
    """The averaged network and the mean losses of every logged interval (each with its `step`)."""

    module: nn.Module
    losses: tuple[dict[str, float], ...]


def choose_device(name: str) -> torch.device:
    """The device of this name; `auto` is CUDA where there is one, else the CPU.

    Raises:
        UsageError: another name, or CUDA is asked for and not usable here.
    """
    if name not in ("auto", "cpu", "cuda"):
        raise UsageError(f"--device {name}: expected auto, cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda: no CUDA device is usable here; see `adapt doctor`")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(name)


def mixed_precision(device: torch.device) -> str:
    """`"bf16"` where the device computes in it natively, else `"no"`."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "no"
    return "bf16" if device.type == "cpu" and getattr(torch.cpu, "_is_avx512_bf16_supported", bool)() else "no"


def make_accelerator(device: torch.device, precision: str = "auto") -> Accelerator:
    """The accelerator of this process; `precision` is `auto`, `no`, `bf16` or `fp16`."""
    chosen = mixed_precision(device) if precision == "auto" else precision
    if AcceleratorState._shared_state and AcceleratorState().mixed_precision != chosen:
        # Accelerate keeps one state a process and refuses to change it; two trainings may differ in precision.
        AcceleratorState._reset_state()
    return Accelerator(cpu=device.type == "cpu", mixed_precision=chosen)


def train(
    module: nn.Module,
    compute_losses: ComputeLosses,
    plan: TrainingPlan,
    accelerator: Accelerator,
    checkpoint: Path,
    on_step: OnStep | None = None,
    log_every: int = 25,
    extras: Mapping[str, Stateful] | None = None,
    evaluate: Evaluate | None = None,
    late_losses: ComputeLosses | None = None,
    after_step: Callable[[], None] | None = None,
) -> Trained:
    """Trains a copy of `module` and returns its weight average in eval mode.

    `compute_losses(module, generator)` returns the named terms of the loss of one micro-batch, already weighted; all of
    its randomness comes from the generator, which depends on the seed, the step and the micro-batch alone. A run that
    was killed continues from `checkpoint` and ends with the result it would have had. `evaluate` scores the weight
    average about a dozen times; the scores stand in the entry of that interval. `late_losses` takes the place of
    `compute_losses` in the second half of the steps. `after_step` is called once the network has taken a step, for what
    trains beside it.

    Raises:
        AdaptError: a loss, or in the end a weight, is not finite; the message names it.
    """
    net, optimizer = _prepare(module, plan, accelerator)
    average = AveragedModel(accelerator.unwrap_model(net), multi_avg_fn=get_ema_multi_avg_fn(plan.ema_decay))
    parts: dict[str, Stateful] = {
        "module": accelerator.unwrap_model(net),
        "average": average,
        "optimizer": optimizer,
        **({} if accelerator.scaler is None else {"scaler": accelerator.scaler}),
        **(extras or {}),
    }
    start, history = _resume(checkpoint, parts, accelerator.device)
    running: list[dict[str, float]] = []
    saved = time.monotonic()
    for step in range(start, plan.steps):
        for group in optimizer.param_groups:
            group["lr"] = plan.learning_rate * plan.rate(step)
        losses = late_losses if late_losses is not None and 2 * step >= plan.steps else compute_losses
        terms = _one_step(net, optimizer, losses, plan, accelerator, step)
        average.update_parameters(accelerator.unwrap_model(net))
        if after_step is not None:
            after_step()
        running.append(terms)
        if (step + 1) % log_every == 0 or step + 1 == plan.steps:
            entry = {name: sum(t[name] for t in running) / len(running) for name in running[0]}
            if evaluate is not None and _is_due(step + 1, plan.steps, log_every):
                entry |= evaluate(average.module)
            history.append({"step": step + 1, **entry})
            running = []
        if on_step is not None:
            on_step(step + 1, terms)
        if time.monotonic() - saved > plan.save_seconds and accelerator.is_main_process and not running:
            state = {name: part.state_dict() for name, part in parts.items()}
            write_torch(checkpoint, {**state, "step": step + 1, "history": history})
            saved = time.monotonic()
    _refuse_broken(average.module, plan.steps)
    return Trained(copy.deepcopy(average.module).eval(), tuple(history))


def _refuse_broken(module: nn.Module, steps: int) -> None:
    if not all(bool(parameter.isfinite().all()) for parameter in module.parameters()):
        raise AdaptError(f"weights are not finite after {steps} steps: start again with a lower learning rate")


def _is_due(step: int, steps: int, log_every: int) -> bool:
    """Whether the validation curve has a point at this end of a logged interval."""
    interval = max(log_every, round(steps / EVALUATIONS / log_every) * log_every)
    return step % interval == 0 or step == steps


def layout_of(module: nn.Module) -> torch.memory_format:
    """The memory layout that `module` trains in: channels last is faster, where it works.

    StyleGAN's weights of rank 5 have no such layout, and a GroupNorm that learns behind frozen layers crashes in it.
    """
    if all(parameter.requires_grad and parameter.ndim < 5 for parameter in module.parameters()):
        return torch.channels_last
    return torch.contiguous_format


def _prepare(
    module: nn.Module, plan: TrainingPlan, accelerator: Accelerator
) -> tuple[nn.Module, torch.optim.Optimizer]:
    net = copy.deepcopy(module).train().to(memory_format=layout_of(module))  # type: ignore[call-overload]  # not in its stubs
    parameters = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, plan.learning_rate, weight_decay=plan.weight_decay, betas=plan.betas)
    return accelerator.prepare(net, optimizer)


def _one_step(
    net: nn.Module,
    optimizer: torch.optim.Optimizer,
    compute_losses: ComputeLosses,
    plan: TrainingPlan,
    accelerator: Accelerator,
    step: int,
) -> dict[str, float]:
    terms: dict[str, float] = {}
    for micro in range(plan.accumulate):
        generator = generator_of("train", plan.seed, step, micro, accelerator.process_index)
        torch.manual_seed(seed_of("layers", plan.seed, step, micro))
        with accelerator.autocast():
            losses = compute_losses(net, generator)
        for name, value in losses.items():
            number = float(value.detach())
            if not math.isfinite(number):
                raise AdaptError(
                    f"loss {name!r} became {number} at step {step + 1} of {plan.steps}: training stopped, "
                    "what was kept before stays; start again with a lower learning rate"
                )
            terms[name] = terms.get(name, 0.0) + number / plan.accumulate
        accelerator.backward(sum(losses.values()) / plan.accumulate)
    accelerator.clip_grad_norm_(net.parameters(), plan.clip)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return terms


def _resume(path: Path, parts: dict[str, Stateful], device: torch.device) -> tuple[int, list[dict[str, float]]]:
    if not path.exists():
        return 0, []
    state = torch.load(path, map_location=device, weights_only=True)
    for name, part in parts.items():
        part.load_state_dict(state[name])
    return state["step"], state["history"]
