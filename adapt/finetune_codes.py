"""Teaches a copy of CodeFormer the codes of clean faces in place of their pixels."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Generator, Tensor, nn

from adapt.dataset import Lessons, draw_batch
from adapt.finetune import plan_of
from adapt.losses import code_losses
from adapt.training import OnStep, Trained, train
from recipes.schema import Finetune
from restorers.codes import CodePredictor, codes_of
from restorers.published import PublishedRestorer


def finetune_codes(
    restorer: PublishedRestorer,
    teacher: PublishedRestorer,
    lessons: Lessons,
    settings: Finetune,
    accelerator: Accelerator,
    checkpoint: Path,
    seed: int,
    on_step: OnStep | None = None,
) -> Trained:
    """Trains a copy of `restorer` on `lessons`; see `adapt.training.train` for resuming and errors.

    The right codes of a clean face are those that `teacher`, the network before any adaptation, finds for it: a code
    book and its encoder belong together, and only a fixed pair gives the same answer throughout.
    """
    judge = copy.deepcopy(teacher).to(accelerator.device).eval().requires_grad_(False)

    def losses(net: nn.Module, generator: Generator) -> dict[str, Tensor]:
        with torch.no_grad(), torch.autocast(accelerator.device.type, enabled=False):
            batch = draw_batch(lessons, settings, generator, accelerator.device)
            numbers, codes = codes_of(judge, batch.sharp)
        scores, features = net(batch.lq)
        entropy, distance = code_losses(scores, features, numbers, codes)
        return {"code entropy": settings.code_entropy * entropy, "code distance": settings.code_distance * distance}

    predictor = CodePredictor(copy.deepcopy(restorer))
    trained = train(predictor, losses, plan_of(settings, seed), accelerator, checkpoint, on_step)
    return replace(trained, module=trained.module.get_submodule("restorer"))
