"""The gate rejects what cannot be trusted, each with its reason, and measures agreement between draws."""

import pytest
import torch

from pseudo_targets.gating import Thresholds, confidence_map, gate, low_band_difference
from tests.tiny import blobs

LIMITS = Thresholds(low_band=0.05, spread=0.05, quality=20.0, identity=0.5)


def fine(image: torch.Tensor) -> torch.Tensor:
    return torch.full((len(image),), 30.0)


def noisy(image: torch.Tensor, seed: int, sigma: float) -> torch.Tensor:
    return image + sigma * torch.randn(image.shape, generator=torch.Generator().manual_seed(seed))


def test_a_good_target_is_accepted_with_its_scores() -> None:
    photo = blobs(2)
    candidates = torch.stack([noisy(photo, k, 0.005) for k in range(3)])
    for target in gate(photo, photo, candidates.mean(0), candidates, fine, LIMITS):
        assert target.accepted and target.reason == ""
        assert set(target.scores) == {"low_band", "quality", "spread"}
        assert target.mean.shape == (3, 32, 32) and target.confidence.shape == (1, 32, 32)


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda photo: torch.stack([photo.flip(0)] * 2), "disagrees with the photo"),
        (lambda photo: torch.stack([noisy(photo, k, 0.2) for k in range(2)]), "draws disagree"),
    ],
)
def test_bad_targets_are_rejected_with_the_reason(spoil, expected: str) -> None:
    photo = blobs(2)
    candidates = spoil(photo)
    for target in gate(photo, photo, candidates.mean(0), candidates, fine, LIMITS):
        assert not target.accepted
        assert expected in target.reason


def test_a_target_of_low_quality_is_rejected() -> None:
    photo = blobs(1)
    targets = gate(photo, photo, photo, torch.stack([photo] * 2), lambda image: fine(image) - 15, LIMITS)
    assert "still degraded" in targets[0].reason and "15.0 dB" in targets[0].reason


def test_identity_is_judged_when_an_embedding_is_there() -> None:
    photo = blobs(1)
    embeddings = iter([torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])])
    targets = gate(photo, photo, photo, torch.stack([photo] * 2), fine, LIMITS, lambda _: next(embeddings))
    assert "identity drifted" in targets[0].reason
    assert targets[0].scores["identity"] == pytest.approx(0.0)


def test_confidence_falls_where_draws_disagree() -> None:
    candidates = blobs(1).repeat(4, 1, 1, 1, 1)
    candidates[:, :, :, :16] += 0.2 * torch.randn(4, 1, 3, 16, 32, generator=torch.Generator().manual_seed(0))
    confidence = confidence_map(candidates)
    assert confidence[..., :12, :].max() < 0.5 < 0.99 < confidence[..., 20:, :].min()


def test_one_draw_gives_full_confidence() -> None:
    assert torch.equal(confidence_map(blobs(2)[None]), torch.ones(2, 1, 32, 32))


def test_low_band_difference_ignores_tone_and_detail() -> None:
    photo = blobs(1)
    checker = 0.1 * ((torch.arange(32)[:, None] + torch.arange(32)) % 2 * 2 - 1).float()
    assert float(low_band_difference(photo + 0.2 + checker, photo)) < 1e-5
    assert float(low_band_difference(photo.flip(-1), photo)) > 0.05


def test_a_target_that_is_not_finite_is_rejected() -> None:
    photo = blobs(1, 64)
    broken = photo.clone()
    broken[..., 3, 3] = torch.nan
    target = gate(photo, photo, broken, broken[None], fine, LIMITS)[0]
    assert not target.accepted and target.reason.startswith("not finite")
