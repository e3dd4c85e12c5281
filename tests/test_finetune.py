"""Finetuning: batches are composed in the recipe's shares, every loss term acts, a killed run resumes."""

import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch

from adapt.adversary import Adversary
from adapt.dataset import CleanFolder, Degrade, ImageBank, Lessons, draw_batch, load_clean, open_clean
from adapt.errors import AdaptError
from adapt.finetune import finetune, plan_of
from adapt.losses import harm_loss, perceptual_loss, pixel_loss
from adapt.photos import read_photo, write_photo
from adapt.training import make_accelerator, train
from recipes.schema import Finetune
from restorers.compact import Compact
from tests.tiny import blobs

CPU = torch.device("cpu")


def darken(image: torch.Tensor, _: torch.Generator) -> torch.Tensor:
    return image * 0.5


def features(image: torch.Tensor) -> list[torch.Tensor]:
    return [image, torch.nn.functional.avg_pool2d(image, 4)]


distance = partial(perceptual_loss, features=features)


def lessons(camera=darken) -> Lessons:
    photos = torch.full((6, 3, 32, 32), 0.9)
    confidence = torch.full((6, 1, 32, 32), 0.5)
    bank = ImageBank(blobs(10))
    return Lessons(bank, bank, camera, photos, blobs(6, seed=2), blobs(6, seed=3), confidence)


def gen(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def small() -> Compact:
    torch.manual_seed(0)
    return Compact((4, 4, 8, 8), (2,) * 7)


def test_a_batch_holds_the_shares_of_the_recipe() -> None:
    batch = draw_batch(lessons(), Finetune(batch=8, camera_share=0.5), gen(0))
    assert batch.lq.shape == batch.target.shape == (8, 3, 32, 32)
    torch.testing.assert_close(batch.lq[:4], batch.target[:4] * 0.5)  # bank through the camera
    assert (batch.lq[4:] == 0.9).all()  # the photos themselves
    assert (batch.confidence[:4] == 1).all() and (batch.confidence[4:] == 0.5).all()
    trusting = draw_batch(lessons(), Finetune(batch=8, camera_share=0.5, confidence=False), gen(0))
    assert (trusting.confidence == 1).all() and torch.equal(trusting.lq, batch.lq)


def test_without_a_camera_only_photos_teach() -> None:
    batch = draw_batch(lessons(camera=None), Finetune(batch=8), gen(0))
    assert batch.lq.shape == (8, 3, 32, 32) and (batch.lq == 0.9).all()


def test_batches_repeat_by_seed() -> None:
    settings = Finetune(batch=8)
    first, again, other = (draw_batch(lessons(), settings, gen(seed)) for seed in (1, 1, 2))
    assert torch.equal(first.lq, again.lq) and not torch.equal(first.lq, other.lq)


def test_it_learns_to_undo_the_camera(tmp_path: Path) -> None:
    settings = Finetune(steps=150, batch=8, learning_rate=3e-3, perceptual=0.0, ema_decay=0.9)
    done = finetune(small(), lessons(), settings, distance, make_accelerator(CPU, "no"), tmp_path / "f.pt", seed=1)
    assert done.losses[-1]["pixel"] < 0.5 * done.losses[0]["pixel"]
    clean = blobs(4, seed=9)
    with torch.no_grad():
        assert (done.module(clean * 0.5) - clean).abs().mean() < (clean * 0.5 - clean).abs().mean()


@pytest.mark.parametrize(
    "weights", [{"perceptual": 0.5}, {"adversarial": 0.1}, {"perceptual": 0.5, "adversarial": 0.1}]
)
def test_optional_terms_are_logged_and_move_the_weights(tmp_path: Path, weights: dict[str, float]) -> None:
    plain = Finetune(steps=4, batch=4, perceptual=0.0)
    accelerator = make_accelerator(CPU, "no")
    base = finetune(small(), lessons(), plain, distance, accelerator, tmp_path / "a.pt", seed=1)
    more = plain.model_copy(update=weights)
    extra = finetune(small(), lessons(), more, distance, accelerator, tmp_path / "b.pt", seed=1)
    assert set(extra.losses[0]) == {"step", "pixel", *weights}
    pairs = zip(base.module.parameters(), extra.module.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)


def test_the_adversary_takes_one_step_for_each_of_the_restorer_whatever_the_micro_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    for name in ("learn", "step"):
        method = getattr(Adversary, name)
        monkeypatch.setattr(Adversary, name, lambda *args, m=method, n=name: calls.append(n) or m(*args))
    settings = Finetune(steps=2, batch=2, accumulate=3, perceptual=0.0, adversarial=0.1)
    finetune(small(), lessons(), settings, distance, make_accelerator(CPU, "no"), tmp_path / "a.pt", seed=1)
    assert calls == 2 * ["learn", "learn", "learn", "step"]


def test_a_killed_training_with_an_adversary_ends_where_an_uninterrupted_one_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adapt.finetune.plan_of", lambda *args: replace(plan_of(*args), save_seconds=0))
    monkeypatch.setattr("adapt.finetune.train", partial(train, log_every=1))
    settings = Finetune(steps=6, batch=2, perceptual=0.0, adversarial=0.1, accumulate=2)
    args = (small(), lessons(), settings, distance, make_accelerator(CPU, "no"))
    whole = finetune(*args, tmp_path / "a.pt", seed=1)

    def die(step: int, _: dict[str, float]) -> None:
        if step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        finetune(*args, tmp_path / "b.pt", seed=1, on_step=die)
    assert torch.load(tmp_path / "b.pt", weights_only=True)["step"] == 3
    rest = finetune(*args, tmp_path / "b.pt", seed=1)
    assert rest.losses == whole.losses


@pytest.mark.parametrize(("mirror", "photos", "clean"), [("none", 0, 0), ("clean", 0, 1), ("all", 1, 1)])
def test_what_is_mirrored_is_what_the_recipe_says(mirror: str, photos: int, clean: int) -> None:
    side = torch.cat([torch.ones(3, 32, 16), torch.zeros(3, 32, 16)], -1)[None]
    bank = ImageBank(side)
    taught = Lessons(bank, bank, lambda image, _: image, side, side, side, side[:, :1])
    batch = draw_batch(taught, Finetune(batch=64, camera_share=0.5, mirror=mirror), gen(0))
    for rows, mirrored in ((slice(0, 32), clean), (slice(32, 64), photos)):
        turned = (batch.lq[rows, 0, 0, 0] == 0).float().mean()
        assert 0.2 < turned < 0.8 if mirrored else turned == 0
        assert torch.equal(batch.lq[rows], batch.target[rows]) and torch.equal(batch.lq[rows], batch.sharp[rows])
    assert torch.equal(batch.confidence[32:], batch.lq[32:, :1])


def test_clean_photos_are_read_as_they_are_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, image in enumerate(blobs(5)):
        write_photo(tmp_path / f"{number}.png", image[None])
    folder, bank = open_clean(tmp_path, 32), load_clean(tmp_path, 32)
    torch.testing.assert_close(folder.draw(20, gen(0)), bank.draw(20, gen(0)), atol=1e-3, rtol=0)  # half precision
    assert len({round(image.mean().item(), 4) for image in folder.draw(60, gen(1))}) == 5
    gray = replace(folder, gray=True).draw(2, gen(0))
    assert torch.equal(gray[:, 0], gray[:, 1]) and torch.equal(gray[:, 1], gray[:, 2])
    read: list[str] = []
    monkeypatch.setattr(CleanFolder, "_window", lambda self, photo, _: read.append(photo.path.name) or blobs(1))
    folder.draw(2, gen(0))
    assert len(read) == 2


def test_windows_of_clean_photos_are_their_own_pixels(tmp_path: Path) -> None:
    for number in range(3):
        write_photo(tmp_path / f"{number}.png", torch.rand(1, 3, 60, 90, generator=gen(number)))
    write_photo(tmp_path / "small.png", torch.rand(1, 3, 60, 30))
    clean = open_clean(tmp_path, 32)
    assert len(clean.photos) == 3
    windows = clean.windows(7, gen(0))
    photos = [read_photo(photo.path) for photo in clean.photos]
    for number, window in enumerate(windows):
        places = photos[number % 3].unfold(2, 32, 1).unfold(3, 32, 1)  # [1, 3, 29, 59, 32, 32]
        assert bool((places == window[None, :, None, None]).all((1, 4, 5)).any())
    with pytest.raises(AdaptError, match="0 square photos"):
        open_clean(tmp_path, 32, whole=True)


def test_what_became_worse_counts_and_what_became_better_does_not() -> None:
    target = torch.full((2, 3, 4, 4), 0.5)
    after = (target + torch.tensor([0.2, 0.01]).view(2, 1, 1, 1)).requires_grad_()
    loss = harm_loss(after, target + 0.1, target)
    assert loss.item() == pytest.approx(0.5 * 20 * math.log10(2), rel=1e-4)  # half the batch lost 6 dB
    loss.backward()
    assert (after.grad[0] > 0).all() and (after.grad[1] == 0).all()


class Lightened(torch.nn.Module):
    """Undoes `darken`."""

    def forward(self, lq: torch.Tensor) -> torch.Tensor:
        return 2 * lq


def test_harm_is_counted_against_the_base_where_the_truth_is_known(tmp_path: Path) -> None:
    def terms(camera: Degrade | None, weight: float, base: torch.nn.Module) -> dict[str, float]:
        settings = Finetune(steps=1, batch=4, perceptual=0.0, camera_share=0.5, harm=weight)
        path = tmp_path / f"{camera is None} {weight} {type(base).__name__}.pt"
        args = (distance, make_accelerator(CPU, "no"), path, 1)
        return finetune(small(), lessons(camera), settings, *args, base=base).losses[0]

    assert terms(darken, 0.5, Lightened())["harm"] == pytest.approx(0.5 * terms(darken, 1.0, Lightened())["harm"])
    assert terms(darken, 1.0, Lightened())["harm"] > 10  # dB
    assert terms(darken, 1.0, small())["harm"] == 0  # the first step changes nothing yet
    assert "harm" not in terms(darken, 0.0, Lightened()) and "harm" not in terms(None, 1.0, Lightened())


class Gain(torch.nn.Module):
    """One factor, which cannot be right for dark and for well lit photos."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = torch.nn.Parameter(torch.ones(1))

    def forward(self, lq: torch.Tensor) -> torch.Tensor:
        return self.gain * lq


def test_a_few_photos_are_not_harmed_for_the_gain_of_most(tmp_path: Path) -> None:
    def mostly_dark(image: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        dark = torch.rand(len(image), 1, 1, 1, generator=generator) < 0.75
        return torch.where(dark, 0.5 * image, image)

    def gain(harm: float) -> float:
        settings = Finetune(steps=150, batch=8, perceptual=0.0, ema_decay=0.5, learning_rate=1e-2, harm=harm)
        args = (distance, make_accelerator(CPU, "no"), tmp_path / f"{harm}.pt", 1)
        return finetune(Gain(), lessons(mostly_dark), settings, *args, base=Gain()).module.gain.item()

    assert gain(0.0) > 1.2 > 1.05 > gain(0.04)


def test_the_recipe_says_what_judges_restored_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used: list[tuple[str, str]] = []

    class Spy(Adversary):
        def __init__(self, *arguments: object) -> None:
            used.append(arguments[3:])
            super().__init__(*arguments)

    monkeypatch.setattr("adapt.finetune.Adversary", Spy)
    chosen = {"discriminator": "unet", "adversarial_form": "logistic", "adversarial_betas": (0.9, 0.999)}
    settings = Finetune(steps=1, batch=2, adversarial=0.1, **chosen)
    finetune(small(), lessons(), settings, distance, make_accelerator(CPU, "no"), tmp_path / "a.pt", seed=1)
    assert used == [("logistic", "unet", (0.9, 0.999))]


def test_a_distance_of_each_image_is_averaged_over_the_batch(tmp_path: Path) -> None:
    def each(restored: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return torch.arange(1.0, 5.0) + 0 * restored.sum()

    settings = Finetune(steps=1, batch=4, perceptual=0.4)
    done = finetune(small(), lessons(), settings, each, make_accelerator(CPU, "no"), tmp_path / "a.pt", seed=1)
    assert done.losses[0]["perceptual"] == pytest.approx(0.4 * 2.5)


def test_pixel_loss_is_weighted_by_confidence() -> None:
    a, b = torch.zeros(1, 3, 2, 2), torch.ones(1, 3, 2, 2)
    confidence = torch.tensor([[1.0, 0.0], [0.5, 0.5]]).view(1, 1, 2, 2)
    assert float(pixel_loss(a, b, confidence)) == pytest.approx(0.5)


def test_perceptual_loss_is_zero_for_equal_images_and_reaches_the_image() -> None:
    image = blobs(2).requires_grad_()
    assert float(perceptual_loss(image, image.detach(), features)) == pytest.approx(0, abs=1e-6)
    perceptual_loss(image, blobs(2, seed=5), features).backward()
    assert image.grad is not None and image.grad.abs().sum() > 0
