"""The simulated cameras of the benchmarks: photos in range, repeatable, and what they are said to be."""

import sys
from pathlib import Path

import pytest
import torch

from adapt.photos import read_photo, write_photo
from benchmarks import cameras
from tests.tiny import blobs


def photographed(name: str, seed: int) -> torch.Tensor:
    return cameras.CAMERAS[name](blobs(3, 64), torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", cameras.CAMERAS)
def test_photos_repeat_by_seed_and_stay_in_range(name: str) -> None:
    photo, again, other = (photographed(name, seed) for seed in (1, 1, 2))
    assert photo.shape == (3, 3, 64, 64) and photo.min() >= 0 and photo.max() <= 1
    assert torch.equal(photo, again) and not torch.equal(photo, other)
    assert (photo - blobs(3, 64)).abs().mean() > 0.01


def test_infrared_sees_no_colour_and_a_faded_print_little_contrast() -> None:
    gray = photographed("doorbell", 0)
    assert (gray[:, 0] - gray[:, 2]).abs().mean() < 0.01
    clean = torch.stack([torch.zeros(3, 64, 64), torch.ones(3, 64, 64)])
    low, high = cameras.film(clean, torch.Generator().manual_seed(0)).mean((2, 3))
    torch.testing.assert_close(high - low, torch.tensor([0.80, 0.72, 0.62]), atol=0.05, rtol=0)


def test_a_shift_by_a_whole_pixel_moves_the_channel() -> None:
    image = blobs(2, 32)[:, 0]
    torch.testing.assert_close(cameras._moved(image, 1, -2)[:, 5:-5, 5:-5], image[:, 4:-6, 7:-3], atol=1e-5, rtol=0)


def test_a_folder_is_photographed_as_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, face in zip("abc", blobs(3, 64), strict=True):
        write_photo(tmp_path / "clean" / f"{name}.png", face[None])
    write_photo(tmp_path / "split" / "b.jpg", blobs(1, 64))
    options = ["--clean", "clean", "--names", "split", "--output", "out", "--references", "refs", "--size", "32"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["cameras", "doorbell", *options])
    cameras.main()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["b.png"]
    reference = read_photo(tmp_path / "refs" / "b.png")
    assert reference.shape == (1, 3, 32, 32) and torch.equal(reference[:, 0], reference[:, 2])
