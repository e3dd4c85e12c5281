"""Train the bundled face finder: `python -m adapt.pretrain_faces --data FACES --backgrounds PHOTOS --out FILE`.

FACES holds square photos of faces aligned to the FFHQ template, PHOTOS holds photos without faces. Two phases:
`FaceProposals` first; then `FaceAligner`, whose negatives include what the proposals mistake for faces. A checkpoint
beside FILE makes the same command continue where it stopped; each step draws its data from (seed, phase, step), so a
resumed training sees what an uninterrupted one would.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.random import Generator
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from adapt.face_nets import ANGLE_UNIT, REFERENCE_SIDE, STRIDE, VIEW, FaceAligner, FaceProposals, placed_points
from adapt.face_synthesis import FacePool, Gray, Placement, background, degrade, load_pool, paste
from adapt.faces import FFHQ_TEMPLATE
from restorers.files import atomic_file

CANVAS = 128
SAVE_EVERY = 200
"""Steps between checkpoints."""
NEAREST, SMALLEST, LARGEST, FARTHEST = 18.0, 28.0, 76.0, 115.0
"""Crop sides in px: proposals fire between the middle two, stay silent outside the outer two, may do either between."""


@dataclass(frozen=True)
class Plan:
    """How long to train; the defaults take about a quarter of an hour on one CPU core."""

    proposal_steps: int = 2600
    aligner_steps: int = 2600
    proposal_batch: int = 16
    aligner_batch: int = 64
    learning_rate: float = 2e-3
    seed: int = 0


def _random_placements(rng: Generator) -> list[Placement]:
    """One to three faces that do not cover one another, mostly of the sizes that proposals answer for."""
    placements: list[Placement] = []
    for _ in range(int(rng.integers(1, 4))):
        low, high = [(SMALLEST, LARGEST), (LARGEST, 220.0), (8.0, SMALLEST)][int(rng.choice(3, p=[0.8, 0.12, 0.08]))]
        side = float(np.exp(rng.uniform(math.log(low), math.log(high))))
        x, y = rng.uniform(0.05 * CANVAS, 0.95 * CANVAS, 2)
        at = Placement(float(x), float(y), side, float(np.clip(rng.normal(0, 0.22), -0.75, 0.75)))
        if all(max(abs(at.x - o.x), abs(at.y - o.y)) > 0.55 * (at.side + o.side) for o in placements):
            placements.append(at)
    return placements


def proposal_sample(rng: Generator, pool: FacePool) -> tuple[Gray, Gray]:
    """A degraded canvas `[128,128]` and its labels `[6,16,16]`: target (1, 0, or -1 to ignore), then the 4 numbers
    of `FaceProposals`, then the weight of the regression."""
    canvas = background(rng, pool, CANVAS)
    placements = _random_placements(rng) if rng.random() < 0.85 else []
    for _ in range(int(rng.integers(0, 3))):
        side = float(np.exp(rng.uniform(math.log(20), math.log(120))))
        x, y = rng.uniform(0, CANVAS, 2)
        canvas = paste(rng, pool, canvas, Placement(float(x), float(y), side, float(rng.normal(0, 0.4))), face=False)
    for number, at in enumerate(placements):
        canvas = paste(rng, pool, canvas, at, face=True, wide=number == 0)
    return degrade(rng, canvas), proposal_labels(placements)


def proposal_labels(placements: list[Placement]) -> Gray:
    """See `proposal_sample`; pure."""
    cells = CANVAS // STRIDE
    ys, xs = np.mgrid[0:cells, 0:cells].astype(np.float32) * STRIDE + (STRIDE - 1) / 2
    labels = np.zeros((6, cells, cells), np.float32)
    for at in placements:
        distance = np.maximum(np.abs(xs - at.x), np.abs(ys - at.y))
        if not NEAREST < at.side < FARTHEST:
            continue
        labels[0][distance < max(0.3 * at.side, STRIDE)] = -1
        if SMALLEST <= at.side <= LARGEST:
            hit = distance <= max(0.14 * at.side, STRIDE / 2)
            values = (
                (at.x - xs) / STRIDE,
                (at.y - ys) / STRIDE,
                np.full_like(xs, math.log(at.side / REFERENCE_SIDE)),
                np.full_like(xs, at.angle / ANGLE_UNIT),
            )
            labels[0][hit] = 1
            for channel, value in enumerate(values, start=1):
                labels[channel][hit] = value[hit]
            labels[5][hit] = 1
    return labels


def proposal_loss(output: Tensor, labels: Tensor) -> Tensor:
    """Focal loss (Lin et al. 2017, eq. 5, gamma 2, alpha 0.5) on the face logit, smooth L1 on the geometry."""
    target = labels[:, 0]
    plain = F.binary_cross_entropy_with_logits(output[:, 0], target.clamp(min=0), reduction="none")
    positives = labels[:, 5].sum().clamp(min=1)
    face = ((1 - torch.exp(-plain)) ** 2 * plain * (target >= 0)).sum() / positives
    geometry = F.smooth_l1_loss(output[:, 1:], labels[:, 1:5], reduction="none", beta=0.2).sum(1)
    return face * 2 + (geometry * labels[:, 5]).sum() / positives


def aligner_sample(rng: Generator, pool: FacePool, mined: Tensor) -> tuple[Gray, Gray]:
    """A degraded view `[64,64]` and its label `[6]`: face or not, the 4 numbers of `FaceAligner`, regression weight."""
    kind = rng.choice(4, p=[0.6, 0.15, 0.1, 0.15])  # face, face far off, background, mistaken proposal
    if kind == 3 and len(mined):
        view: Gray = (mined[int(rng.integers(len(mined)))].float() / 255).numpy()
        return degrade(rng, view[:, :: int(rng.choice([-1, 1]))]), np.zeros(6, np.float32)
    canvas = background(rng, pool, VIEW)
    if rng.random() < 0.3:
        x, y, side = rng.uniform((0, 0, 16), VIEW)
        at = Placement(float(x), float(y), float(side), float(rng.normal(0, 0.4)))
        canvas = paste(rng, pool, canvas, at, face=False)
    if kind >= 2:
        return degrade(rng, canvas), np.zeros(6, np.float32)
    if kind == 0:
        spread = 1.0 if rng.random() < 0.5 else 0.25
        dx, dy, grow = rng.normal(0, [0.1, 0.1, 0.18]) * spread
        turn = rng.normal(0, 0.25) * spread
    else:
        away, towards = rng.uniform(0.3, 0.9), rng.uniform(0, 2 * np.pi)
        dx, dy = (away * np.cos(towards), away * np.sin(towards)) if rng.random() < 0.5 else rng.normal(0, 0.1, 2)
        grow = float(rng.choice([-1, 1])) * rng.uniform(0.7, 1.2) if abs(dx) + abs(dy) < 0.4 else rng.normal(0, 0.3)
        turn = rng.normal(0, 0.4)
    middle = (VIEW - 1) / 2
    at = Placement(middle + VIEW * float(dx), middle + VIEW * float(dy), VIEW * math.exp(grow), float(turn))
    face = float(kind == 0)
    label = np.array([face, dx, dy, grow, turn, face], np.float32)
    return degrade(rng, paste(rng, pool, canvas, at, face=True)), label


def aligner_loss(output: Tensor, labels: Tensor, template: Tensor) -> Tensor:
    """Cross entropy on the face logit; mean distance of the 5 template points, in eye distances."""
    face = F.binary_cross_entropy_with_logits(output[:, 0], labels[:, 0])
    eyes = float((template[0] - template[1]).norm())
    error = (placed_points(output[:, 1:], template) - placed_points(labels[:, 1:5], template)).norm(dim=-1) / eyes
    return face + 3 * (error.mean(1) * labels[:, 5]).sum() / labels[:, 5].sum().clamp(min=1)


def mine(net: FaceProposals, pool: FacePool, seed: int, count: int = 1500) -> Tensor:
    """Views `uint8 [count,64,64]` of face-free canvases where the proposals fire most."""
    rng = np.random.default_rng((seed, 2))
    views = np.zeros((count, VIEW, VIEW), np.uint8)
    net.eval()
    for i in range(count):
        canvas = background(rng, pool, CANVAS)
        with torch.no_grad():
            output = net(torch.from_numpy(canvas)[None, None])[0]
        best = int(output[0].argmax())
        _, dx, dy, log_side, _ = output.flatten(1)[:, best].tolist()
        row, column = divmod(best, output.shape[-1])
        half = int(np.clip(REFERENCE_SIDE * math.exp(np.clip(log_side, -1, 1)) / 2, 12, 60))
        x, y = (int((cell + off) * STRIDE + STRIDE / 2) for cell, off in ((column, dx), (row, dy)))
        padded = np.pad(canvas, CANVAS // 2, mode="reflect")
        y, x = (int(np.clip(v, 0, CANVAS - 1)) + CANVAS // 2 for v in (y, x))
        piece = torch.from_numpy(padded[y - half : y + half, x - half : x + half])[None, None]
        views[i] = (F.interpolate(piece, (VIEW, VIEW), mode="bilinear", antialias=True)[0, 0] * 255).numpy().round()
    return torch.from_numpy(views)


def _fit(
    name: str, net: nn.Module, steps: int, rate: float, loss_at: Callable[[int], Tensor], checkpoint: Path
) -> None:
    """AdamW with a one-cycle schedule; saves net, optimiser and step every `SAVE_EVERY` steps and goes on from them."""
    optimiser = torch.optim.AdamW(net.parameters(), rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps + 1, pct_start=0.1)
    first = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        net.load_state_dict(state["net"])
        optimiser.load_state_dict(state["optimiser"])
        schedule.load_state_dict(state["schedule"])
        first = state["step"]
    net.train()
    mean, start = 0.0, time.monotonic()
    for step in range(first, steps):
        loss = loss_at(step)
        if not torch.isfinite(loss):
            raise FloatingPointError(f"{name}: loss is {loss.item()} at step {step}")
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimiser.step()
        schedule.step()
        mean = loss.item() if step == first else mean + 0.02 * (loss.item() - mean)
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
            print(f"{name} step {step + 1}/{steps} loss {mean:.4f} {time.monotonic() - start:.0f} s", flush=True)
            state = {"net": net.state_dict(), "optimiser": optimiser.state_dict(), "step": step + 1}
            partial = checkpoint.with_suffix(".partial")
            torch.save(state | {"schedule": schedule.state_dict()}, partial)
            partial.replace(checkpoint)
    net.eval()


def train(pool: FacePool, plan: Plan, out: Path) -> None:
    """Train both nets and write their weights, half precision, to `out` (safetensors)."""
    torch.manual_seed(plan.seed)
    template = (FFHQ_TEMPLATE + 0.5) / 512 - 0.5
    proposals, aligner = FaceProposals(), FaceAligner()

    def batch(phase: int, step: int, size: int, draw: Callable[[Generator], tuple[Gray, Gray]]) -> list[Tensor]:
        rng = np.random.default_rng((plan.seed, phase, step))
        pairs = [draw(rng) for _ in range(size)]
        return [torch.from_numpy(np.stack(column)) for column in zip(*pairs, strict=True)]

    def proposal_step(step: int) -> Tensor:
        images, labels = batch(0, step, plan.proposal_batch, lambda rng: proposal_sample(rng, pool))
        return proposal_loss(proposals(images[:, None]), labels)

    checkpoint = out.with_suffix(".proposals.ckpt")
    _fit("proposals", proposals, plan.proposal_steps, plan.learning_rate, proposal_step, checkpoint)
    mined = mine(proposals, pool, plan.seed)

    def aligner_step(step: int) -> Tensor:
        views, labels = batch(1, step, plan.aligner_batch, lambda rng: aligner_sample(rng, pool, mined))
        return aligner_loss(aligner(views[:, None]), labels, template)

    checkpoint = out.with_suffix(".aligner.ckpt")
    _fit("aligner", aligner, plan.aligner_steps, plan.learning_rate, aligner_step, checkpoint)
    nets = (("proposals", proposals), ("aligner", aligner))
    tensors = {f"{name}.{key}": value.contiguous() for name, net in nets for key, value in net.state_dict().items()}
    halved = {key: value.half() if value.is_floating_point() else value for key, value in tensors.items()}
    with atomic_file(out) as temporary:
        save_file(halved, temporary)


def main() -> None:
    """Parse the command line of the module docstring and train."""
    parser = argparse.ArgumentParser(prog="python -m adapt.pretrain_faces", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder of aligned square face photos")
    parser.add_argument("--backgrounds", type=Path, required=True, help="folder of photos without faces")
    parser.add_argument("--out", type=Path, required=True, help="safetensors file to write")
    parser.add_argument("--proposal-steps", type=int, default=Plan.proposal_steps)
    parser.add_argument("--aligner-steps", type=int, default=Plan.aligner_steps)
    parser.add_argument("--seed", type=int, default=Plan.seed)
    given = parser.parse_args()
    plan = Plan(given.proposal_steps, given.aligner_steps, seed=given.seed)
    train(load_pool(given.data, given.backgrounds, given.seed), plan, given.out)


if __name__ == "__main__":
    main()
