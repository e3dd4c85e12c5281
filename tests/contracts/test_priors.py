"""Every prior keeps the same promises."""

import pytest
import torch

from pseudo_targets.consistency import LowPassReplacement
from pseudo_targets.diffbir.published import VERSIONS
from pseudo_targets.downloads import PUBLISHED
from pseudo_targets.filters import BlockMean
from pseudo_targets.pixel_prior import PixelPrior
from pseudo_targets.priors import Condition, LatentPrior
from pseudo_targets.sampling import Trajectory, conditional_mean, draw, refine
from pseudo_targets.zoo import PRIORS as NAMED
from tests.diffbir_files import tiny_diffbir
from tests.tiny import PRIORS, blobs

TO_FETCH = {*VERSIONS, *(weights.name for weights in PUBLISHED)}
"""Priors whose weights do not ship: a tiny random one of each kind stands in."""
SHIPPED = {name: load for name, load in NAMED.items() if name not in TO_FETCH} | {"diffbir": tiny_diffbir}
AnyPrior = LatentPrior | PixelPrior


@pytest.fixture(scope="module", params=sorted(PRIORS) + sorted(SHIPPED))
def prior(request: pytest.FixtureRequest) -> AnyPrior:
    return (PRIORS | SHIPPED)[request.param]()


def seeds(*numbers: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(number) for number in numbers]


def strength_of(prior: AnyPrior) -> float:
    return 1.0 if prior.control is not None else 0.0


def test_encode_decode_keep_the_shape_and_nearly_the_image(prior: AnyPrior) -> None:
    image = blobs(2, prior.resolution)
    decoded = prior.decode(prior.encode(image))
    assert decoded.shape == image.shape
    assert prior.encode(image).shape[0] == 2


def test_denoise_gives_a_finite_x0_of_the_latent_shape(prior: AnyPrior) -> None:
    latent = prior.encode(blobs(2, prior.resolution))
    for condition in (None, Condition(latent)) if prior.control is not None else (None,):
        x0 = prior.denoise(latent, torch.tensor([10, 900]), condition)
        assert x0.shape == latent.shape
        assert torch.isfinite(x0).all()


def test_the_condition_matters(prior: AnyPrior) -> None:
    if prior.control is None:
        pytest.skip("an unconditional prior")
    latent = prior.encode(blobs(2, prior.resolution))
    x_t = prior.schedule.q_sample(latent, 500, torch.randn(latent.shape, generator=seeds(1)[0]))
    timestep = torch.tensor([500, 500])
    with_one, with_other = (prior.denoise(x_t, timestep, Condition(c)) for c in (latent, latent.flip(0)))
    assert (with_one - with_other).abs().max() > 1e-4


def test_refine_is_deterministic_and_does_not_depend_on_the_batch(prior: AnyPrior) -> None:
    image, path = blobs(3, prior.resolution), Trajectory(300, 4, strength=strength_of(prior))
    together = refine(prior, image, path, [], seeds(1, 2, 3))
    again = refine(prior, image, path, [], seeds(1, 2, 3))
    alone = refine(prior, image[1:2], path, [], seeds(2))
    assert together.shape == image.shape
    assert together.min() >= 0 and together.max() <= 1
    assert torch.equal(together, again)
    torch.testing.assert_close(together[1:2], alone, atol=1e-4, rtol=0)


def test_the_conditional_mean_does_not_depend_on_the_batch(prior: AnyPrior) -> None:
    image = blobs(3, prior.resolution)
    together = conditional_mean(prior, image, strength_of(prior))
    assert together.shape == image.shape
    assert together.min() >= 0 and together.max() <= 1
    alone = conditional_mean(prior, image[1:2], strength_of(prior))
    torch.testing.assert_close(alone, together[1:2], atol=1e-4, rtol=0)


def test_low_pass_replacement_to_the_end_keeps_the_low_band_of_the_latent(prior: AnyPrior) -> None:
    low_pass = BlockMean(2)
    image = blobs(2, prior.resolution) * 0.5 + 0.25
    latent = prior.encode(image)
    from pseudo_targets.consistency import Reference
    from pseudo_targets.sampling import denoise_with_consistency

    condition = Condition(latent) if prior.control is not None else None
    keep = [LowPassReplacement(low_pass, 400, 0)]
    x = prior.schedule.q_sample(latent, 400, torch.randn(latent.shape, generator=seeds(5)[0]))
    result = denoise_with_consistency(
        prior, x, Trajectory(400, 3), condition, keep, Reference(latent, image), seeds(1, 2)
    )
    torch.testing.assert_close(low_pass(result), low_pass(latent), atol=1e-4, rtol=1e-4)
    assert (result - latent).abs().max() > 1e-3


def test_draws_differ_by_seed_and_repeat_by_seed(prior: AnyPrior) -> None:
    path = Trajectory(len(prior.schedule) - 1, 3)
    first = draw(prior, path, seeds(1, 2))
    assert torch.equal(first, draw(prior, path, seeds(1, 2)))
    assert (first[0] - first[1]).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["patch", "pixel"])
def test_a_prior_without_control_refuses_a_condition(name: str) -> None:
    prior = PRIORS[name]()
    prior.control = None
    latent = prior.encode(blobs(1))
    with pytest.raises(ValueError, match="no IRControlNet"):
        prior.denoise(latent, torch.tensor([5]), Condition(latent))
