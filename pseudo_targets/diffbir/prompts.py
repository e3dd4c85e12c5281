"""Prompts to token ids and to the embeddings that steer the networks.

OpenCLIP pads with id 0 and keeps the end token last when it cuts a long prompt. The empty prompt needs no vocabulary;
any other needs Stable Diffusion 2's tokenizer files in the cache.
"""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from pseudo_targets.diffbir import files
from pseudo_targets.diffbir.networks import Sizes
from pseudo_targets.downloads import SETS, WeightsError

if TYPE_CHECKING:
    from transformers import CLIPTextModel

TOKENIZER_FILES = tuple(weights.file for weights in SETS["sd21-tokenizer"])


def vocabulary_folder() -> Path:
    """Where Stable Diffusion 2.1's `tokenizer` folder lies in the cache."""
    return files.cache_folder() / "tokenizer"


def empty_prompt(sizes: Sizes) -> Tensor:
    """Token ids of the empty prompt, int64 `[1, 77]`."""
    return _framed([], sizes)


def token_ids(prompts: Sequence[str], folder: Path, sizes: Sizes) -> Tensor:
    """Token ids, int64 `[len(prompts), 77]`, with the vocabulary in `folder`.

    Raises:
        WeightsError: the vocabulary is not there although a prompt has words, or transformers is not installed.
    """
    if not any(prompts):
        return empty_prompt(sizes).expand(len(prompts), -1)
    fault = missing_vocabulary(folder)
    if fault:
        raise WeightsError(fault)
    try:
        from transformers import CLIPTokenizer
    except ImportError as error:
        raise WeightsError("prompts need transformers: pip install 'adapt-restorer[diffbir]'") from error
    tokenizer = CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
    # Entities are resolved twice, as captions taken from web pages were when the tower was trained.
    words = [html.unescape(html.unescape(prompt)).strip() for prompt in prompts]
    return torch.cat([_framed(tokenizer(text, add_special_tokens=False)["input_ids"], sizes) for text in words])


def missing_vocabulary(folder: Path) -> str:
    """What to say when `folder` does not hold the tokenizer's files, or damaged ones; "" when it does."""
    absent = [name for name in TOKENIZER_FILES if not (folder / name).is_file()]
    if not absent:
        return _damaged_vocabulary(folder)
    return (
        f"prompts need {' and '.join(absent)} in {folder}: run `adapt weights fetch sd21-tokenizer`, "
        "`adapt weights import FILE`, or copy the `tokenizer` folder of Stable Diffusion 2.1"
    )


def _damaged_vocabulary(folder: Path) -> str:
    # Read here, as the tokenizer's own reader raises what no one can catch but with everything else.
    vocabulary, merges = (folder / name for name in ("vocab.json", "merges.txt"))
    try:
        known = json.loads(vocabulary.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = None
    if not isinstance(known, dict) or not all(isinstance(number, int) for number in known.values()):
        return f"{vocabulary}: is damaged or no vocabulary; run `adapt weights fetch sd21-tokenizer` again"
    try:
        lines = merges.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError):
        lines = ["unreadable"]
    pairs = [line.split() for line in lines if line and not line.startswith("#version")]
    if not all(len(pair) == 2 and "".join(pair) in known for pair in pairs):
        return f"{merges}: is damaged or of another vocabulary; run `adapt weights fetch sd21-tokenizer` again"
    return ""


@torch.no_grad()
def embed(tower: CLIPTextModel, ids: Tensor) -> Tensor:
    """Token ids `[B, 77]` -> context `[B, 77, width]` (penultimate block, final norm)."""
    return tower(input_ids=ids).last_hidden_state


def _framed(ids: Sequence[int], sizes: Sizes) -> Tensor:
    """Start and end token around the ids, cut or padded with 0 to the tower's length; `[1, length]`."""
    shape = sizes.clip["text_cfg"]
    start, end, length = shape["vocab_size"] - 2, shape["vocab_size"] - 1, shape["context_length"]
    row = torch.zeros(1, length, dtype=torch.long)
    kept = [start, *ids[: length - 2], end]
    row[0, : len(kept)] = torch.tensor(kept)
    return row
