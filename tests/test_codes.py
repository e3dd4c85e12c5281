"""CodeFormer learns the codes of clean faces: the right parts, the right codes, the released losses."""

import copy
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from adapt.console import Narrator
from adapt.dataset import ImageBank, Lessons
from adapt.generate import PriorShelf
from adapt.losses import code_losses
from adapt.options import _unfit
from adapt.round_job import Job
from adapt.stages import teach
from adapt.workspace import Workspace
from recipes.load import RecipeError, load_recipe
from restorers.codes import LEARNS, CodePredictor, chooses_codes, codes_of
from restorers.zoo import LoadedRestorer, load_restorer
from tests.restorer_files import laid_down
from tests.tiny import blobs


@pytest.fixture(scope="module")
def codeformer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoadedRestorer]:
    with pytest.MonkeyPatch.context() as patch:
        yield laid_down("codeformer", tmp_path_factory.mktemp("weights"), patch)


def test_the_predictor_scores_the_codes_that_the_network_itself_chooses(codeformer: LoadedRestorer) -> None:
    module = codeformer.module
    image = blobs(2, 64)
    with torch.no_grad():
        scores, features = CodePredictor(copy.deepcopy(module))(image)
        _, expected = module.net(image * 2 - 1)
    torch.testing.assert_close(scores, expected)
    assert features.shape == (2, 256, 16, 16)


def test_the_codes_of_an_image_are_the_nearest_in_the_book(codeformer: LoadedRestorer) -> None:
    image = blobs(2, 64)
    numbers, codes = codes_of(codeformer.module, image)
    with torch.no_grad():
        _, features = CodePredictor(copy.deepcopy(codeformer.module))(image)
        expected, _, found = codeformer.module.net.quantize(features)
    assert torch.equal(numbers.flatten(), found["min_encoding_indices"].flatten())
    torch.testing.assert_close(codes, expected, atol=1e-5, rtol=0)


def test_the_losses_are_cross_entropy_and_squared_distance() -> None:
    scores, numbers = torch.randn(2, 4, 8), torch.randint(8, (2, 4))
    features, codes = torch.randn(2, 3, 2, 2), torch.randn(2, 3, 2, 2)
    entropy, distance = code_losses(scores, features, numbers, codes)
    torch.testing.assert_close(entropy, F.cross_entropy(scores.flatten(0, 1), numbers.flatten()))
    torch.testing.assert_close(distance, (features - codes).square().mean())


def test_what_predicts_codes_learns_and_book_generator_and_fusion_stay(
    codeformer: LoadedRestorer, tmp_path: Path
) -> None:
    photos = blobs(4, 64)
    bank = ImageBank(photos)
    lessons = Lessons(bank, bank, None, photos * 0.5, photos, photos, torch.ones(4, 1, 64, 64))
    overrides = ("finetune.steps=12", "finetune.batch=4", "finetune.learning_rate=1e-3")
    before = copy.deepcopy(codeformer.module.state_dict())
    job = SimpleNamespace(
        recipe=load_recipe("dt_bfr_codeformer", overrides),
        device=torch.device("cpu"),
        quality=SimpleNamespace(removal=nn.Identity()),
        restorer=codeformer,
        base=codeformer,
        narrator=Narrator(),
        workspace=Workspace(tmp_path),
        shelf=PriorShelf(),
    )
    module, history = teach(cast(Job, job), 1, lessons)
    assert set(history[-1]) == {"step", "code entropy", "code distance"}
    assert all(torch.equal(tensor, before[name]) for name, tensor in codeformer.module.state_dict().items())
    moved = {name.split(".")[1] for name, tensor in module.state_dict().items() if not tensor.equal(before[name])}
    assert moved == set(LEARNS)
    right, _ = codes_of(codeformer.module, photos)
    with torch.no_grad():
        wrong_before, wrong_after = (
            F.cross_entropy(CodePredictor(copy.deepcopy(net))(photos * 0.5)[0].transpose(1, 2), right)
            for net in (codeformer.module, module)
        )
    assert wrong_after < wrong_before


def test_networks_without_codes_are_refused_before_any_work() -> None:
    compact = load_restorer("compact")
    assert not chooses_codes(compact.module)
    faults = _unfit(load_recipe("dt_bfr_codeformer"), compact)
    assert faults == ["finetune.losses codes: compact predicts no codes, expected image; codes is for CodeFormer"]
    with pytest.raises(RecipeError, match="parts is lora, expected default"):
        load_recipe("dt_bfr_codeformer", ("finetune.parts=lora",))
