"""Windows of a photo: where they lie, that they differ, what is kept of photos that are smaller than one."""

import pytest
import torch

from adapt.faces import aligned_face
from adapt.windows import Window, choose_windows, cut, face_box, padded
from tests.tiny import blobs


def photo(height: int, width: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.nn.functional.interpolate(blobs(1, 64, seed), (height, width), mode="bicubic").clamp(0.05, 0.95)
    return (coarse + 0.02 * torch.randn(coarse.shape, generator=generator)).clamp(0, 1)


@pytest.mark.parametrize("size", [(128, 128), (300, 200), (700, 900)])
def test_windows_lie_within_the_photo_on_the_grid_of_jpeg(size: tuple[int, int]) -> None:
    chosen = choose_windows(photo(*size), [], 128, 12)
    assert chosen and len(set(chosen)) == len(chosen)
    for window in chosen:
        assert window.top % 16 == window.left % 16 == 0
        assert 0 <= window.top <= size[0] - 128 and 0 <= window.left <= size[1] - 128


def test_the_same_photo_gives_the_same_windows() -> None:
    image = photo(500, 600, 3)
    assert choose_windows(image, [], 128, 6) == choose_windows(image.clone(), [], 128, 6)


def test_few_windows_see_both_what_is_flat_and_what_is_detailed() -> None:
    image = photo(512, 512, 1)
    image[..., :256] = 0.5  # half of it is flat
    image[..., 300:, 300:] += 0.3 * torch.rand(1, 3, 212, 212, generator=torch.Generator().manual_seed(5)) - 0.15
    deviations = [float(cut(image, window, 128).std()) for window in choose_windows(image.clamp(0, 1), [], 128, 5)]
    assert min(deviations) < 0.02 and max(deviations) > 0.08


def test_what_is_clipped_teaches_nothing() -> None:
    image = photo(512, 512, 2)
    image[..., :300, :] = 1.0
    for window in choose_windows(image, [], 128, 8):
        assert float((cut(image, window, 128) > 0.98).float().mean()) <= 0.5
    assert len(choose_windows(torch.ones(1, 3, 300, 300), [], 128, 4)) == 4  # there is nothing better


def test_a_small_face_gets_a_window_around_it() -> None:
    size = 40.0
    scale = 512 / size
    face = aligned_face(512, 512)
    face = type(face)(0, ((scale, 0.0, -500 * scale), (0.0, scale, -333 * scale)), 0.9)
    top, left, bottom, right = face_box(face)
    assert (bottom - top) == pytest.approx(0.6 * size) and (top + bottom) / 2 == pytest.approx(352.5, abs=0.6)
    chosen = choose_windows(photo(700, 900), [face], 128, 2)
    inside = [w for w in chosen if 0 < (top + bottom) / 2 - w.top < 128 and 0 < (left + right) / 2 - w.left < 128]
    assert [window.face for window in inside] == [True] and len(chosen) == 2
    only = choose_windows(photo(700, 900), [face], 128, 4, only_faces=True)
    assert only[0] == inside[0] and all(window.face for window in only)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 3), (100, 127), (60, 500)])
def test_smaller_photos_are_mirrored_at_their_edges(size: tuple[int, int]) -> None:
    image = torch.rand(1, 3, *size)
    grown = padded(image, 128)
    assert grown.shape[-2] == max(128, size[0]) and grown.shape[-1] == max(128, size[1])
    assert torch.equal(grown[..., : size[0], : size[1]], image)
    assert cut(image, Window(0, 0, False), 128).shape == (1, 3, 128, 128)
