"""Null-space projection and guidance by an estimated degradation, against closed forms."""

import pytest
import torch
from torch import Tensor

from pseudo_targets.consistency import ConsistencyError, LowPassReplacement, Reference
from pseudo_targets.filters import BlockMean
from pseudo_targets.known_degradation import (
    BlockAverage,
    BlurEstimate,
    EstimatedDegradationGuidance,
    Gray,
    InTurn,
    LinearDegradation,
    Mask,
    NullSpaceProjection,
    estimate_gain,
)


def picture(seed: int, side: int = 8) -> Tensor:
    return torch.rand(2, 3, side, side, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def none_of(image: Tensor) -> Reference:
    """The corrections of this module do not look at the reference."""
    return Reference(torch.full_like(image, torch.nan), torch.full_like(image, torch.nan))


HALF = (torch.arange(8) % 3 > 0).double().view(1, 1, 1, 8).expand(1, 1, 8, 8)
KNOWN = {
    "blocks": BlockAverage(4),
    "gray": Gray(),
    "mask": Mask(HALF),
    "gray blocks": InTurn(Gray(), BlockAverage(4)),
    "blocks in turn": InTurn(BlockAverage(2), BlockAverage(4)),
}


@pytest.mark.parametrize("name", KNOWN)
def test_the_pseudo_inverse_is_one(name: str) -> None:
    """All four conditions of Moore and Penrose; A and A+ as matrices over one small image."""
    known: LinearDegradation = KNOWN[name]
    basis = torch.eye(3 * 8 * 8, dtype=torch.float64).view(-1, 3, 8, 8)
    a = known.apply(basis).flatten(1).T
    measured = torch.eye(len(a), dtype=torch.float64).view(-1, *known.apply(basis[:1]).shape[1:])
    plus = known.invert(measured).flatten(1).T
    torch.testing.assert_close(a @ plus @ a, a)
    torch.testing.assert_close(plus @ a @ plus, plus)
    torch.testing.assert_close((a @ plus).T, a @ plus)
    torch.testing.assert_close((plus @ a).T, plus @ a)


@pytest.mark.parametrize("name", KNOWN)
def test_projection_holds_the_measurement_and_leaves_the_null_space(name: str) -> None:
    known, x0, truth = KNOWN[name], picture(0), picture(1)
    project = NullSpaceProjection(known, known.apply(truth))
    result = project(x0, none_of(x0), 500)
    torch.testing.assert_close(known.apply(result), known.apply(truth))
    torch.testing.assert_close(
        result - known.invert(known.apply(result)), x0 - known.invert(known.apply(x0))
    )
    torch.testing.assert_close(project(result, none_of(x0), 0), result)
    torch.testing.assert_close(project(truth, none_of(x0), 0), truth)


def test_projection_onto_blocks_is_the_low_pass_replacement() -> None:
    x0, truth = picture(0), picture(1)
    projected = NullSpaceProjection(BlockAverage(4), BlockAverage(4).apply(truth))(x0, none_of(x0), 5)
    replaced = LowPassReplacement(BlockMean(4), 999, 0)(x0, Reference(truth, truth), 5)
    torch.testing.assert_close(projected, replaced)


def test_windows_and_settings() -> None:
    y = picture(0)
    project = NullSpaceProjection(Gray(), y, start=600, end=100)
    guide = EstimatedDegradationGuidance(estimate_gain, y, lambda x: x, 1.0, start=600, end=100)
    for correct in (project, guide):
        assert [t for t in (99, 100, 600, 601) if correct.active(t)] == [100, 600]
    assert not EstimatedDegradationGuidance(estimate_gain, y, lambda x: x, 0.0).active(5)
    with pytest.raises(ConsistencyError, match="end <= start"):
        NullSpaceProjection(Gray(), y, start=1, end=2)
    with pytest.raises(ConsistencyError, match="scale >= 0"):
        EstimatedDegradationGuidance(estimate_gain, y, lambda x: x, -1.0)
    with pytest.raises(ConsistencyError, match="odd"):
        BlurEstimate(4)
    with torch.inference_mode(), pytest.raises(ConsistencyError, match="inference_mode"):
        guide(y, none_of(y), 500)


def test_gain_and_offset_are_found_exactly() -> None:
    image = picture(0)
    gain = torch.tensor([[0.3, 0.5, 0.7], [1.1, 0.2, 0.9]], dtype=torch.float64).view(2, 3, 1, 1)
    measured = gain * image + 0.1 * gain.flip(0)
    torch.testing.assert_close(estimate_gain(image, measured)(image), measured)
    other = picture(3)
    torch.testing.assert_close(estimate_gain(image, measured)(other), gain * other + 0.1 * gain.flip(0))
    flat = torch.full_like(image, 0.4)
    torch.testing.assert_close(estimate_gain(flat, measured)(flat), measured.mean((2, 3), keepdim=True).expand_as(flat))


@pytest.mark.parametrize("side", [1, 3, 5])
def test_the_kernel_of_a_blur_is_found(side: int) -> None:
    image = picture(0)
    true = torch.rand(2, side, side, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    true = true / true.sum((1, 2), keepdim=True)
    estimate = BlurEstimate(side, ridge=0)
    measured = estimate._blurred(image, true)
    torch.testing.assert_close(estimate.kernel(image, measured), true)
    torch.testing.assert_close(estimate(image, measured)(image), measured)
    with_ridge = BlurEstimate(side).kernel(image, measured)
    torch.testing.assert_close(with_ridge, true, atol=1e-3, rtol=0)


def test_guidance_is_the_gradient_with_the_fitted_degradation_held() -> None:
    """For a decoder D(z) = (z + 1) / 2 and y = g x + o: z moves by -scale n / 4 * 2 g (g x + o - y) / n / 2."""
    x0, measured = 2 * picture(0) - 1, 0.5 * picture(1) + 0.1
    guide = EstimatedDegradationGuidance(estimate_gain, measured, lambda z: (z + 1) / 2, 0.8)
    image = (x0 + 1) / 2
    degrade = estimate_gain(image, measured)
    gain = degrade(torch.ones_like(image)) - degrade(torch.zeros_like(image))
    expected = x0 - 0.8 / 4 * gain * (degrade(image) - measured)
    result = guide(x0, none_of(x0), 5)
    torch.testing.assert_close(result, expected)
    assert not result.requires_grad


def test_guidance_undoes_half_of_the_difference_where_the_degradation_is_known_to_be_none() -> None:
    x0, measured = picture(0), picture(1)
    guide = EstimatedDegradationGuidance(lambda image, photo: lambda x: x, measured, lambda z: z, 1.0)
    torch.testing.assert_close(guide(x0, none_of(x0), 5), (x0 + measured) / 2)


@pytest.mark.parametrize("estimate", [estimate_gain, BlurEstimate(3)], ids=["gain", "blur"])
def test_guidance_lowers_the_distance_and_rests_where_it_is_zero(estimate: object) -> None:
    truth, x0 = picture(0), picture(0) + 0.2 * picture(1)
    measured = 0.6 * truth + 0.1 if estimate is estimate_gain else BlurEstimate(3)._blurred(
        truth, torch.full((2, 3, 3), 1 / 9, dtype=torch.float64)
    )
    guide = EstimatedDegradationGuidance(estimate, measured, lambda z: z, 0.5)

    def distance(x: Tensor) -> float:
        return float((estimate(x, measured)(x) - measured).square().mean())

    after = guide(x0, none_of(x0), 5)
    assert distance(after) < distance(x0)
    if estimate is estimate_gain:
        torch.testing.assert_close(guide(truth, none_of(truth), 5), truth)


def test_guidance_does_not_depend_on_the_batch() -> None:
    x0, measured = picture(0), picture(1)
    together = EstimatedDegradationGuidance(BlurEstimate(3), measured, lambda z: z, 0.5)(x0, none_of(x0), 5)
    alone = EstimatedDegradationGuidance(BlurEstimate(3), measured[1:], lambda z: z, 0.5)(x0[1:], none_of(x0), 5)
    torch.testing.assert_close(together[1:], alone)
