"""The judge accepts what is cleaner and still agrees, with honest intervals."""

import pytest
import torch

from adapt.judge import judge, paired_difference, scores_of, served_photos, size_class, tiles_of
from pseudo_targets.camera import LearnedCamera
from recipes.schema import Judge
from restorers.runtime import RuntimeRestorer
from tests.tiny import blobs


def verdict(gain: torch.Tensor, agreement: float = 0.0, harm: float = 0.4):
    before = {"cleanness": torch.zeros(20), "agreement": torch.zeros(20)}
    after = {"cleanness": gain, "agreement": torch.full((20,), agreement)}
    return judge(before, after, Judge(low_band_loss=0.01, harm=harm), seed=0)


def test_a_clear_gain_is_accepted() -> None:
    result = verdict(torch.linspace(0.01, 0.03, 20))
    assert result.accepted and result.harm_rate == 0
    assert 0.01 < result.differences["cleanness"].low < 0.02 < result.differences["cleanness"].high < 0.03


def test_photographed_targets_must_gain_for_sure_and_cleanness_may_fall_a_little() -> None:
    zero, sure = torch.zeros(20), torch.full((20,), 0.02)
    unsure = torch.tensor([0.03, -0.025] * 10)
    for cleanness, photographed, accepted in (
        (unsure, sure, True),
        (-sure, sure, True),
        (-5 * sure, sure, False),
        (sure, unsure, False),
        (sure, -sure, False),
    ):
        before = {"cleanness": zero, "agreement": zero, "photographed": zero}
        after = {"cleanness": cleanness, "agreement": zero, "photographed": photographed}
        assert judge(before, after, Judge(harm=0.5, gain=0), seed=0).accepted == accepted


def test_a_gain_that_errors_of_the_camera_could_explain_is_not_accepted() -> None:
    zero = torch.zeros(20)
    for gain, accepted in ((0.29, False), (0.31, True)):
        before = {"cleanness": zero, "agreement": zero, "photographed": zero}
        result = judge(before, {**before, "photographed": zero + gain}, Judge(), seed=0)
        assert result.accepted == accepted and ("less than 0.3 dB" in result.reason) != accepted


def test_windows_of_no_photo_have_no_say_of_their_own() -> None:
    before = {name: torch.zeros(20) for name in ("cleanness", "agreement", "photographed")}
    change = torch.cat([torch.full((16,), 1.0), torch.full((4,), -0.1)])
    for group, accepted in (("", True), ("below 192 px", False)):
        groups = ["below 384 px"] * 16 + [group] * 4
        assert judge(before, {**before, "photographed": change}, Judge(), seed=0, groups=groups).accepted == accepted


def test_noise_is_no_gain() -> None:
    result = verdict(torch.tensor([0.01, -0.01] * 10))
    assert not result.accepted and "not better" in result.reason


def test_a_gain_bought_by_drift_is_rolled_back() -> None:
    result = verdict(torch.full((20,), 0.02), agreement=-0.02)
    assert not result.accepted and "drifts" in result.reason


def test_what_undoes_a_loss_of_contrast_agrees_better() -> None:
    clean = blobs(4)
    camera = LearnedCamera(clean.shape[-1])
    camera.tone_gain.fill_(0.6)
    camera.tone_offset.fill_(0.2)
    photos = 0.6 * clean + 0.2
    undone, left = (
        scores_of(image.split(1), photos.split(1), lambda x: torch.ones(len(x)), camera) for image in (clean, photos)
    )
    assert float(undone["agreement"].min()) > -1e-4
    assert (left["agreement"] < undone["agreement"] - 0.01).all()


def test_a_gain_that_harms_many_is_rolled_back() -> None:
    values = torch.cat([torch.full((12,), 0.1), torch.full((8,), -0.001)])
    result = verdict(values, harm=0.3)
    assert result.harm_rate == pytest.approx(0.4)
    assert not result.accepted and "got worse" in result.reason


def test_without_judging_every_round_is_kept_and_scored() -> None:
    scores = {"cleanness": torch.zeros(20), "agreement": torch.zeros(20)}
    worse = {"cleanness": torch.full((20,), -0.1), "agreement": torch.full((20,), -0.5)}
    result = judge(scores, worse, Judge(enabled=False), seed=0)
    assert result.accepted and result.harm_rate == 1
    assert result.differences["cleanness"].mean < 0 and "without judging" in result.reason


def test_the_interval_covers_the_mean_and_repeats() -> None:
    a, b = torch.randn(30, generator=torch.Generator().manual_seed(1)), torch.zeros(30)
    first = paired_difference(a, b, seed=3)
    assert first == paired_difference(a, b, seed=3)
    assert first.low < first.mean < first.high and first.count == 30


def test_scores_fall_with_cleanness_and_with_drift() -> None:
    photos = blobs(4)
    good = scores_of(photos.split(1), photos.split(1), lambda image: torch.full((len(image),), 30.0), None)
    bad = scores_of(photos.flip(-1).split(1), photos.split(1), lambda image: torch.full((len(image),), 20.0), None)
    assert (good["cleanness"] > bad["cleanness"]).all()
    assert (good["agreement"] > bad["agreement"]).all()


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_scores_that_are_no_numbers_are_no_gain(broken: float) -> None:
    gain = torch.full((20,), 0.02)
    gain[3] = broken
    result = verdict(gain)
    assert not result.accepted and "no finite scores" in result.reason


def test_one_photo_cannot_judge() -> None:
    zero, gain = torch.zeros(1), torch.full((1,), 0.5)
    result = judge({"cleanness": zero, "agreement": zero}, {"cleanness": gain, "agreement": zero}, Judge(), seed=0)
    assert not result.accepted and "one held-out photo" in result.reason


def judged(photographed: torch.Tensor, smaller: float = 0.0, groups: tuple[str, ...] = ()):
    zero = torch.zeros(len(photographed))
    before = dict.fromkeys(("cleanness", "agreement", "photographed", "photographed at 1/2"), zero)
    after = {**before, "photographed": photographed, "photographed at 1/2": zero + smaller}
    return judge(before, after, Judge(), seed=0, groups=groups)


def test_a_gain_that_is_a_loss_when_seen_smaller_is_rolled_back() -> None:
    gain = torch.full((20,), 0.3)
    assert judged(gain, 0.1).accepted
    result = judged(gain, -0.1)
    assert not result.accepted and "worse when seen smaller" in result.reason


def test_a_round_that_harms_photos_of_one_size_is_rolled_back() -> None:
    gain = torch.cat([torch.full((16,), 0.5), torch.full((4,), -0.2)])
    classes = tuple(size_class(side) for side in [100] * 16 + [2000] * 4)
    assert judged(gain).accepted and judged(gain, groups=(size_class(100),) * 20).accepted
    result = judged(gain, groups=classes)
    assert not result.accepted and "worse on photos of 1536 px and more" in result.reason


def test_photos_of_any_size_are_judged_as_they_are_served() -> None:
    photos = [blobs(1, 200, 1)[..., :150], blobs(1, 64, 2), blobs(1, 300, 3)]
    seen: list[tuple[int, ...]] = []

    def serve(image: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(image.shape))
        return image

    restored = served_photos(RuntimeRestorer(serve, name="same", multiple_of=1, minimum=1), photos)
    assert [image.shape for image in restored] == [photo.shape for photo in photos]
    assert seen[0] == (1, 3, 200, 150) and seen[1] == (1, 3, 64, 64)
    scores = scores_of(restored, photos, lambda image: image.mean((1, 2, 3)), None)
    assert scores["cleanness"].shape == scores["agreement"].shape == (3,)
    assert tiles_of(photos[2]).shape == (4, 3, 128, 128)
