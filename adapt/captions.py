"""Captions of photos for a prior that texts steer: any image-to-text model that transformers can run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adapt.errors import AdaptError
from adapt.photos import to_picture

Captioner = Callable[[Tensor], list[str]]
"""Photos `[B, 3, H, W]` in `[0, 1]` -> a caption each."""

QUESTION = "Describe this photo in one short sentence."
GREEDY = {"max_new_tokens": 64, "generate_kwargs": {"do_sample": False}}
"""The same photo has the same caption, and a text tower reads 77 tokens with the prompt."""
# transformers has renamed the task; the newer one takes a question.
TASKS = ("image-text-to-text", "image-to-text")


class CaptionError(AdaptError):
    """Photos cannot be captioned; the message names the model and the reason."""


def load_captioner(model: str, device: torch.device) -> Captioner:
    """A captioner by model id or folder; ids are looked up in Hugging Face's cache unless `HF_HUB_OFFLINE=0`.

    Raises:
        CaptionError: transformers is not installed, or the model is not here or not one that describes images.
    """
    try:
        import transformers
        from transformers.pipelines import PIPELINE_REGISTRY
    except ImportError as error:
        raise CaptionError("captions need transformers: pip install 'adapt-restorer[diffbir]'") from error
    known = PIPELINE_REGISTRY.get_supported_tasks()
    task = next(task for task in TASKS if task in known)
    try:
        pipeline = transformers.pipeline(task, model=model, device=device)
    except (OSError, ValueError, KeyError, ImportError) as error:
        here = "" if Path(model).is_dir() else "; name a folder, or fetch it first with HF_HUB_OFFLINE=0"
        raise CaptionError(f"caption {model!r}: cannot be loaded ({_first_line(error)}){here}") from error
    return captioner_of(pipeline, model)


def captioner_of(pipeline: Callable[..., Any], model: str) -> Captioner:
    """Wraps a pipeline that takes pictures and returns `generated_text` for each."""
    asks = getattr(pipeline, "task", TASKS[0]) == TASKS[0]

    def describe(photos: Tensor) -> list[str]:
        pictures = [to_picture(photo) for photo in photos.cpu()]
        try:
            if asks:
                return [caption_in(pipeline(text=_chat(picture), **GREEDY)) for picture in pictures]
            return [caption_in(pipeline(picture, **GREEDY)) for picture in pictures]
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            raise CaptionError(f"caption {model!r}: cannot describe a photo ({_first_line(error)})") from error

    return describe


def caption_in(answer: Any) -> str:
    """The words of a pipeline's answer on one line.

    Raises:
        CaptionError: it is no answer of an image-to-text pipeline.
    """
    while answer and isinstance(answer, (dict, list, tuple)):
        if isinstance(answer, dict):
            answer = next((answer[key] for key in ("generated_text", "content", "text") if key in answer), None)
        else:
            answer = answer[-1]  # of a chat the last turn is the model's
    if not isinstance(answer, str):
        raise CaptionError(f"got {type(answer).__name__} from the captioner, expected generated_text")
    return " ".join(answer.split())


def _chat(picture: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": QUESTION}]}]


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
