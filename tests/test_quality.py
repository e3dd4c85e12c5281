"""The quality read-out orders images by their distance to the original it never sees."""

import torch

from pseudo_targets.latents import fit_patch_latents
from pseudo_targets.quality import QualityPredictor, fit_cleanness, fit_quality, graded_images
from pseudo_targets.removal import DegradationRemoval
from tests.tiny import blobs


def noisy(image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    sigma = 0.2 * torch.rand(len(image), 1, 1, 1, generator=generator)
    return (image + sigma * torch.randn(image.shape, generator=generator)).clamp(0, 1)


def predictor() -> QualityPredictor:
    torch.manual_seed(0)
    removal = DegradationRemoval(fit_patch_latents(blobs(16), 4, 8), 8, (16, 32)).eval().requires_grad_(False)
    images, decibels = graded_images(blobs(60), noisy, lambda image: image, torch.Generator().manual_seed(0))
    assert len(images) == len(decibels) == 360
    return fit_quality(removal, images, decibels)


def test_unseen_images_are_ordered_by_their_noise() -> None:
    quality = predictor()
    clean = blobs(12, seed=9)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(3))
    means = [float(quality((clean + sigma * noise).clamp(0, 1)).mean()) for sigma in (0.0, 0.03, 0.1, 0.2)]
    assert means == sorted(means, reverse=True)
    assert means[0] - means[-1] > 5


def test_the_prediction_is_one_number_an_image_and_does_not_depend_on_the_batch() -> None:
    quality, images = predictor(), blobs(3, seed=4)
    together = quality(images)
    assert together.shape == (3,)
    torch.testing.assert_close(together[1:2], quality(images[1:2]), atol=1e-3, rtol=0)


def test_graded_images_know_their_distance() -> None:
    clean = blobs(2)
    images, decibels = graded_images(clean, lambda x, _: x * 0, lambda x: x, torch.Generator().manual_seed(0))
    error = (images[:2] - clean).square().mean((1, 2, 3))
    torch.testing.assert_close(decibels[:2], -10 * error.log10())


def test_cleanness_rises_when_the_cameras_fault_is_taken_away() -> None:
    torch.manual_seed(0)
    removal = DegradationRemoval(fit_patch_latents(blobs(16), 4, 8), 8, (16, 32)).eval().requires_grad_(False)
    noise = 0.1 * torch.randn(140, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    cleanness = fit_cleanness(removal, blobs(150), (blobs(120, seed=5) + noise[:120]).clamp(0, 1))
    unseen = blobs(20, seed=8)
    scores = [cleanness((unseen + share * noise[120:]).clamp(0, 1)) for share in (0.0, 0.5, 1.0)]
    assert scores[0].mean() > 0 > scores[2].mean()
    assert (scores[0] > scores[2]).float().mean() > 0.9
    assert (scores[1] > scores[2]).float().mean() > 0.9
