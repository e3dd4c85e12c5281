"""DT-BFR's recipe through the work items of a round, with a tiny pixel prior in place of the published one."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from adapt import generate
from adapt.generate import TargetTask, WorkerFactory
from pseudo_targets.dt_bfr import noise_from, released_path, released_pseudo_target
from pseudo_targets.filters import CubicLowPass
from recipes.load import load_recipe
from tests.tiny import blobs, tiny_pixel_prior


class Quality(nn.Module):
    """Says that nothing is good."""

    removal = nn.Identity()

    def __init__(self, folder: object) -> None:
        super().__init__()

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return torch.full((len(image),), -1e6)


@pytest.fixture
def factory(monkeypatch: pytest.MonkeyPatch) -> WorkerFactory:
    monkeypatch.setattr(generate, "load_prior", lambda _: tiny_pixel_prior())
    monkeypatch.setattr(generate, "load_quality", Quality)
    monkeypatch.setattr(generate, "load_identity", lambda _: None)
    recipe = load_recipe("dt_bfr", ("generation.calls=5",))
    return WorkerFactory(nn.Identity(), "ffhq512", recipe.generation, recipe.gate, "cpu")


def test_every_target_is_one_released_draw_and_may_teach(factory: WorkerFactory) -> None:
    photos, prior = blobs(2), tiny_pixel_prior()
    start = factory.generation.start_timesteps[0]
    targets = factory.target_worker()(TargetTask(("a", "b"), photos, start, (1, 2)))
    path = released_path(prior.schedule, 602, 5, CubicLowPass(16), 361)
    noise = noise_from([generate.generator_of("target", seed, 0) for seed in (1, 2)])
    expected = released_pseudo_target(prior, photos, path, noise)
    for target, image in zip(targets, expected, strict=True):
        assert target.accepted, target.reason
        torch.testing.assert_close(target.mean, image)
        torch.testing.assert_close(target.draw, image)
        assert torch.equal(target.confidence, torch.ones(1, 32, 32))


def test_the_few_call_path_takes_the_same_prior(factory: WorkerFactory) -> None:
    settings = factory.generation.model_copy(update={"sampler": "few_calls"})
    few = dataclasses.replace(factory, generation=settings).target_worker()
    targets = few(TargetTask(("a",), blobs(1), 602, (1,)))
    assert torch.isfinite(targets[0].mean).all()


def test_a_recipe_that_steers_is_refused_for_a_prior_without_control(monkeypatch: pytest.MonkeyPatch) -> None:
    from pathlib import Path

    from adapt.console import Narrator
    from adapt.errors import UsageError
    from adapt.options import JobOptions, checked

    facts = {
        "resolution": 512,
        "control": None,
        "aligned_faces": True,
        "weights_sha256": "0" * 64,
        "licence": "S-Lab-1.0",
    }
    prior = SimpleNamespace(**facts)
    monkeypatch.setattr("adapt.options.load_prior", lambda _: prior)
    options = JobOptions(Path(__file__).parent, "", recipe="dt_bfr", prior="ffhq512")
    checked(options, Narrator())
    steered = dataclasses.replace(options, overrides=("generation.control_strength=1",))
    with pytest.raises(UsageError, match="has no IRControlNet, expected 0"):
        checked(steered, Narrator())
    mixed = dataclasses.replace(options, overrides=("generation.realism=0.25",))
    with pytest.raises(UsageError, match="expects no face in one call, expected 1"):
        checked(mixed, Narrator())
