"""The quality read-out orders images by their distance to the original it never sees."""

import torch

from pseudo_targets.embedded import load_removal
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


def test_cleanness_falls_with_noise_and_with_blur() -> None:
    generator = torch.Generator().manual_seed(3)
    clean = (blobs(120, 64) + 0.1 * torch.randn(120, 3, 64, 64, generator=generator)).clamp(0, 1)
    cleanness, unseen = fit_cleanness(load_removal(), clean[:100]), clean[100:]
    noise = 0.1 * torch.randn(unseen.shape, generator=generator)
    worse = [(unseen + 0.5 * noise).clamp(0, 1), (unseen + noise).clamp(0, 1)]
    scores = [cleanness(images) for images in (unseen, *worse, torch.nn.functional.avg_pool2d(unseen, 3, 1, 1))]
    assert scores[0].mean() > scores[1].mean() > scores[2].mean() > scores[3].mean()
    assert (scores[0] > scores[2]).all() and (scores[0] > scores[3]).all()
