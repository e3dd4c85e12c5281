"""Captions from any image-to-text pipeline, stubbed; nothing is downloaded."""

from __future__ import annotations

import sys

import pytest
import torch
from PIL import Image

from adapt.captions import QUESTION, CaptionError, caption_in, captioner_of, load_captioner
from tests.tiny import blobs


class Pipeline:
    """Tells the size of a picture, as a pipeline of one of the two tasks would."""

    def __init__(self, task: str) -> None:
        self.task, self.seen = task, []

    def __call__(self, picture=None, text=None, max_new_tokens=0, generate_kwargs=None):
        assert max_new_tokens > 0 and generate_kwargs == {"do_sample": False}
        if text is not None:
            (turn,) = text
            asked = {part["type"]: part for part in turn["content"]}
            assert asked["text"]["text"] == QUESTION
            picture = asked["image"]["image"]
        assert isinstance(picture, Image.Image)
        self.seen.append(picture)
        answer = f"a face of\n {picture.width} px "
        if self.task == "image-to-text":
            return [{"generated_text": answer}]
        return [{"generated_text": [*text, {"role": "assistant", "content": answer}]}]


@pytest.mark.parametrize("task", ["image-to-text", "image-text-to-text"])
def test_each_photo_is_described_alone_and_on_one_line(task: str) -> None:
    pipeline = Pipeline(task)
    photos = blobs(2, 32)
    assert captioner_of(pipeline, "stub")(photos) == ["a face of 32 px"] * 2
    pixels = torch.tensor(list(pipeline.seen[1].getdata())).T.reshape(3, 32, 32) / 255
    torch.testing.assert_close(pixels, photos[1], rtol=0, atol=0.5 / 255 + 1e-6)


@pytest.mark.parametrize(
    "answer",
    ["words", [{"generated_text": " words"}], {"text": "words"}, [[{"content": [{"type": "text", "text": "words"}]}]]],
)
def test_the_words_are_found_in_every_shape_of_answer(answer) -> None:
    assert caption_in(answer) == "words"


@pytest.mark.parametrize("answer", [None, [], 3, {"label": "cat"}])
def test_an_answer_without_words_is_refused(answer) -> None:
    with pytest.raises(CaptionError, match="expected generated_text"):
        caption_in(answer)


def test_a_pipeline_that_fails_is_one_line() -> None:
    def broken(*_, **__):
        raise ValueError("no\nimage model")

    with pytest.raises(CaptionError, match=r"caption 'stub': cannot describe a photo \(no\)") as error:
        captioner_of(broken, "stub")(blobs(1))
    assert "\n" not in str(error.value)


def test_a_model_that_is_not_here_is_one_line(monkeypatch, tmp_path) -> None:
    pytest.importorskip("transformers")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for model in ("nobody/no-captioner", str(tmp_path)):
        with pytest.raises(CaptionError, match="cannot be loaded") as error:
            load_captioner(model, torch.device("cpu"))
        assert "\n" not in str(error.value) and model in str(error.value)


def test_without_transformers_it_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(CaptionError, match=r"pip install 'adapt-restorer\[diffbir\]'"):
        load_captioner("any", torch.device("cpu"))
