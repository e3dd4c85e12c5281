"""Scores of benchmarks: NIQE of a set of small images, and the columns that are there only with their networks."""

from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor

from adapt import evaluate
from adapt.evaluate import blocks_of, niqe
from adapt.photos import find_photos, read_photo
from benchmarks import oracle_table
from benchmarks.oracle_pairs import Pairs
from benchmarks.oracle_table import mean_lpips, score, show
from restorers.degradations import resize
from tests.tiny import blobs

SAMPLES = Path(__file__).parents[1] / "samples"
needs_basicsr = pytest.mark.skipif(find_spec("basicsr") is None, reason="basicsr is not installed")


def test_the_middle_is_cut_into_as_many_blocks_as_fit() -> None:
    images = torch.rand(2, 3, 128, 128)
    assert torch.equal(blocks_of(images), images[..., 16:112, 16:112])
    large = torch.rand(2, 3, 200, 300)
    blocks = blocks_of(large)
    assert blocks.shape == (12, 3, 96, 96)
    assert torch.equal(blocks[0], large[0, :, 4:100, 6:102])
    assert torch.equal(blocks[4], large[0, :, 100:196, 102:198])
    assert torch.equal(blocks[6], large[1, :, 4:100, 6:102])


def test_every_block_is_seen_once_as_bytes_of_blue_green_red(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(evaluate, "_basicsr_niqe", lambda: lambda pixels, crop_border: seen.append(pixels) or 3)
    images = torch.arange(9.0).view(3, 3, 1, 1).expand(-1, -1, 128, 128) / 255
    assert niqe(images) == 3.0
    (pixels,) = seen
    assert pixels.shape == (96, 3 * 96, 3) and pixels.dtype == "uint8"
    assert pixels[0, [0, 95, 96, 287]].tolist() == [[2, 1, 0], [2, 1, 0], [5, 4, 3], [8, 7, 6]]


@pytest.mark.parametrize(
    ("images", "fault"),
    [
        (torch.rand(1, 3, 128, 128), "got 1 block of 96 px, expected 2 or more"),
        (torch.rand(4, 3, 64, 64), "images of 64 x 64 px, expected sides of 96 px or more"),
    ],
)
def test_too_little_for_a_score_is_refused(images: Tensor, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        niqe(images)


@needs_basicsr
def test_noise_and_blur_make_photos_less_natural() -> None:
    photos = find_photos(SAMPLES).photos[:24]
    clean = torch.cat([resize(read_photo(photo.path), (128, 128), 2) for photo in photos]).clamp(0, 1)
    noisy = (clean + 0.1 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 1)
    blurred = torch.nn.functional.avg_pool2d(clean, 7, 1, 3)
    assert niqe(clean) + 1 < min(niqe(noisy), niqe(blurred))


def distance(image: Tensor, reference: Tensor) -> Tensor:
    """Stands for LPIPS."""
    return (image - reference).square().mean((1, 2, 3))


def test_lpips_is_that_of_one_photo() -> None:
    image, reference = blobs(1), blobs(1, seed=1)
    assert mean_lpips(distance, image, reference) == pytest.approx(float(distance(image, reference)))


def test_photos_of_any_sizes_are_scored_and_seen_smaller() -> None:
    pytest.importorskip("piq")
    photos = [blobs(1, 96), blobs(1, 160)[..., :100]]
    row = score([image * 0.9 for image in photos], Pairs(photos, photos), photos)
    assert row["harm_rate"] == 1 and row["psnr_aligned"] > row["psnr_4"] > 20
    assert "psnr_2" in row and "haarpsi_4" in row
    small = [blobs(1, 40)]
    assert "psnr_2" in (tiny := score(small, Pairs(small, small), small)) and "psnr_4" not in tiny


@pytest.mark.parametrize("there", [True, False])
def test_columns_are_there_with_their_networks(there, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    pytest.importorskip("piq")
    monkeypatch.setattr(oracle_table, "find_spec", lambda name: there or None)
    monkeypatch.setattr(oracle_table, "niqe", lambda images: 4.25)
    test = Pairs(list(blobs(2, 128).split(1)), list(blobs(2, 128, seed=1).split(1)))
    better = [photo.lerp(reference, 0.5) for photo, reference in zip(test.photos, test.references, strict=True)]
    lpips = distance if there else None
    images = {"untouched": test.photos, "ours": better, "oracle": test.references}
    rows = {name: score(image, test, test.photos, lpips) for name, image in images.items()}
    show({"rows": rows, "seconds": {"ours": 12.4}})
    head, _, *lines = capsys.readouterr().out.splitlines()
    assert ("| LPIPS | LPIPS aligned | NIQE | NIQE aligned | seconds |" in head) == ("LPIPS" in head) == there
    assert {line.count("|") for line in lines} == {head.count("|")}
    if there:
        assert rows["oracle"]["lpips"] == 0 < rows["ours"]["lpips"] < rows["untouched"]["lpips"]
        assert lines[0].endswith(f"{rows['untouched']['lpips_aligned']:.4f} | 4.2500 | 4.2500 |  |")
        assert lines[1].endswith("| 12 |")
    else:
        assert not {"lpips", "lpips_aligned", "niqe"} & rows["ours"].keys()


def test_one_test_photo_or_small_ones_have_no_niqe(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("piq")
    monkeypatch.setattr(oracle_table, "find_spec", lambda name: True)
    for images in ([blobs(1, 128)], list(blobs(2, 64).split(1))):
        assert "niqe" not in score(images, Pairs(images, images), images)
