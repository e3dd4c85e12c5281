"""Embeddings of prompts for a prior, each computed once; the text tower is on the device while there are new ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pseudo_targets.diffbir import networks, published
from pseudo_targets.diffbir.networks import Sizes
from pseudo_targets.diffbir.prompts import embed, token_ids, vocabulary_folder

if TYPE_CHECKING:
    from transformers import CLIPTextModel


KEPT = 256
"""Embeddings that are not computed again; captions of thousands of photos would fill a memory."""


class Texts:
    """Prompts -> context `[B, tokens, width]`.

    Args:
        tower: loads the text tower; called when there are new prompts.
        folder: holds the vocabulary.
        sizes: of the tower.
        device: where embeddings are computed and go; the latest `KEPT` wait in main memory.
        many: there will be new prompts again and again: keep the tower in main memory between them.
    """

    def __init__(
        self,
        tower: Callable[[], CLIPTextModel],
        folder: Path,
        sizes: Sizes,
        device: torch.device | None = None,
        many: bool = False,
    ) -> None:
        self.tower, self.folder, self.sizes, self.device, self.many = tower, folder, sizes, device, many
        self.known: dict[str, Tensor] = {}
        self.waiting: CLIPTextModel | None = None

    def __call__(self, prompts: Sequence[str]) -> Tensor:
        """The embeddings, in the order of `prompts`.

        Raises:
            WeightsError: a prompt has words and the vocabulary is not there, or the tower cannot be loaded.
        """
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self.known]
        if new:
            ids = token_ids(new, self.folder, self.sizes).to(self.device)
            tower = self.waiting or self.tower()
            contexts = embed(tower.to(self.device), ids).cpu()
            self.waiting = tower.to("cpu") if self.many else None
            self.known.update(zip(new, contexts, strict=True))
        result = torch.stack([self.known[prompt] for prompt in prompts]).to(self.device)
        for oldest in list(self.known)[:-KEPT]:
            del self.known[oldest]
        return result


def load_texts(name: str, device: torch.device, many: bool = False) -> Texts:
    """The prompts of a version of DiffBIR, from its files in the cache; `many` as in `Texts`."""
    return Texts(lambda: published.load_text_tower(name), vocabulary_folder(), networks.PUBLISHED, device, many)


def joined(*parts: str) -> str:
    """Caption and prompt as one, as DiffBIR joins them; empty parts are left out."""
    return ", ".join(part for part in parts if part)
