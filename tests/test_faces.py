"""Faces: geometry, cutting out and pasting back, both finders."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adapt import face_fallback, face_nets, face_retina, faces, facexlib_nets
from adapt.errors import AdaptError, UsageError
from adapt.faces import FFHQ_TEMPLATE, Face, align, aligned_face, invert, native_size, paste_back
from tests.end_to_end.runs import SHARED
from tests.fake_facexlib import pretend

needs_faces = pytest.mark.skipif(not (SHARED / "val").is_dir(), reason="no folder of sample faces (ADAPT_SHARED)")


def face_at(x: float, y: float, side: float, degrees: float = 0.0) -> Face:
    """A face whose crop is centred at (x, y) and `side` px wide in the photo."""
    scale, angle = 512 / side, math.radians(degrees)
    a, b = scale * math.cos(angle), scale * math.sin(angle)
    return Face(0, ((a, b, 255.5 - a * x - b * y), (-b, a, 255.5 + b * x - a * y)), 1.0)


def smooth_photo(height: int, width: int, seed: int = 0, detail: int = 12) -> Tensor:
    noise = torch.rand(1, 3, detail, detail, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(noise, (height, width), mode="bicubic", align_corners=False).clamp(0, 1)


def psnr(a: Tensor, b: Tensor) -> float:
    return float(-10 * torch.log10(((a - b) ** 2).mean()))


# Geometry ------------------------------------------------------------------------------------------------------------


def test_similarity_recovers_a_known_transform() -> None:
    face = face_at(301.25, 97.5, 143.0, 21.0)
    inverse = torch.tensor(invert(face.matrix), dtype=torch.float64)
    points = FFHQ_TEMPLATE.double() @ inverse[:, :2].T + inverse[:, 2]
    assert torch.allclose(
        torch.tensor(faces.similarity_from_points(points)), torch.tensor(face.matrix), atol=1e-3, rtol=1e-5
    )
    assert native_size(face) == pytest.approx(143.0)


@pytest.mark.parametrize("points", [torch.ones(5, 2), torch.full((5, 2), math.nan)])
def test_similarity_refuses_points_without_extent(points: Tensor) -> None:
    with pytest.raises(ValueError, match="five points"):
        faces.similarity_from_points(points)


def test_crops_of_all_sizes_show_the_same_square() -> None:
    photo, face = smooth_photo(200, 260), face_at(120.3, 88.1, 150, 12)
    small = align(photo, face, 64)
    large = F.interpolate(align(photo, face, 256), (64, 64), mode="area")
    assert psnr(small, large) > 45


def test_an_aligned_photo_is_its_own_crop() -> None:
    photo = smooth_photo(64, 64)
    face = aligned_face(64, 64)
    assert native_size(face) == pytest.approx(64)
    assert torch.allclose(align(photo, face, 64), photo, atol=1e-5)
    halved = F.avg_pool2d(photo, 2)
    assert torch.allclose(align(photo, face, 32), halved, atol=1e-5)


def test_a_photo_that_is_not_square_is_not_aligned() -> None:
    with pytest.raises(AdaptError, match=r"300 x 200.*square"):
        aligned_face(300, 200)


def test_shrinking_does_not_alias() -> None:
    stripes = (torch.arange(256) % 2).float().expand(1, 3, 256, 256)
    crop = align(stripes, face_at(127.5, 127.5, 200), 32)
    assert (crop - 0.5).abs().max() < 0.1


@pytest.mark.parametrize("shape", [(3, 8, 8), (2, 3, 8, 8), (1, 1, 8, 8), (1, 3, 0, 8)])
def test_anything_but_one_photo_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="expected \\[1, 3"):
        align(torch.zeros(shape), aligned_face(8, 8), 8)


# Pasting back --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("degrees", [0.0, 17.0, -33.0])
def test_round_trip_at_native_size_keeps_the_photo(degrees: float) -> None:
    photo, face = smooth_photo(180, 220, detail=40), face_at(100.4, 90.7, 96, degrees)
    back = paste_back(photo, align(photo, face, 96), face)
    assert psnr(back, photo) > 42


def test_only_the_crop_changes_and_the_photo_itself_does_not() -> None:
    photo, face = smooth_photo(160, 200), face_at(90.2, 70.9, 60, 25)
    before = photo.clone()
    back = paste_back(photo, torch.ones(1, 3, 48, 48), face)
    assert torch.equal(photo, before)
    ys, xs = torch.meshgrid(torch.arange(160.0), torch.arange(200.0), indexing="ij")
    (a, b, x0), (c, d, y0) = face.matrix
    u, v = a * xs + b * ys + x0, c * xs + d * ys + y0
    outside = (u < -0.5) | (u > 511.5) | (v < -0.5) | (v > 511.5)
    assert torch.equal(back[..., outside], photo[..., outside])
    middle = (u - 255.5).abs().maximum((v - 255.5).abs()) < 512 * 0.39
    assert torch.allclose(back[..., middle], torch.ones(()), atol=1e-5)
    step = (back - photo)[..., ~outside].abs()
    assert step.min() < 0.05  # fades in


def test_a_face_over_the_edge_or_beyond_it() -> None:
    photo = smooth_photo(80, 80)
    over = face_at(5, 75, 60)
    assert psnr(paste_back(photo, align(photo, over, 60), over), photo) > 42
    assert torch.equal(paste_back(photo, torch.ones(1, 3, 16, 16), face_at(500, 500, 60)), photo)


def test_a_larger_restored_crop_is_filtered() -> None:
    photo, face = torch.full((1, 3, 100, 100), 0.5), face_at(49.5, 49.5, 50)
    stripes = (torch.arange(400) % 2).float().expand(1, 3, 400, 400)
    assert (paste_back(photo, stripes, face) - 0.5).abs().max() < 0.1


# Non-maximum suppression ---------------------------------------------------------------------------------------------


def squares(*rows: tuple[float, float, float]) -> Tensor:
    return torch.tensor([(x, y, math.log(side), 0.0) for x, y, side in rows])


def test_suppression_keeps_the_best_of_each_place() -> None:
    found = squares((50, 50, 40), (52, 50, 40), (150, 50, 40), (51, 49, 44))
    kept = face_nets.suppress(found, torch.tensor([0.6, 0.9, 0.7, 0.8]), 0.3)
    assert kept.tolist() == [1, 2]


def test_suppression_drops_parts_of_a_face_but_not_neighbours() -> None:
    found = squares((50, 50, 80), (52, 56, 20), (115, 50, 80))
    assert face_nets.suppress(found, torch.tensor([0.9, 0.8, 0.7]), 0.3).tolist() == [0, 2]


def test_suppression_of_nothing() -> None:
    assert face_nets.suppress(torch.zeros(0, 4), torch.zeros(0), 0.3).tolist() == []


def test_overlap_is_intersection_over_union() -> None:
    shared = face_nets.overlap(squares((0, 0, 2), (1, 0, 2), (9, 9, 2)))
    assert shared[0].tolist() == pytest.approx([1, 1 / 3, 0])


def test_placements_compose_like_transforms() -> None:
    square = torch.tensor([[30.0, 40.0, math.log(64.0), 0.4]])
    placement = torch.tensor([[0.1, -0.2, 0.3, -0.25]])
    inner = face_nets.square_to_matrix(face_nets.compose(square, placement), 64)
    template = (FFHQ_TEMPLATE + 0.5) / 512 - 0.5
    outer = face_nets.square_to_matrix(square, 64)
    in_view = face_nets.placed_points(placement, template)[0] * 64 + 31.5
    direct = template * 64 + 31.5
    assert torch.allclose(
        direct @ inner[0, :, :2].T + inner[0, :, 2], in_view @ outer[0, :, :2].T + outer[0, :, 2], atol=1e-3
    )


# facexlib ------------------------------------------------------------------------------------------------------------


class FakeRetina(nn.Module):
    """Stands in for facexlib's RetinaFace: reports one face at known points and remembers what it was shown."""

    def __init__(self, network_name: str = "", half: bool = False, device: torch.device | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.rows = torch.zeros(0, 15)

    def detect_faces(self, image, conf_threshold):  # type: ignore[no-untyped-def]
        self.seen = image
        return self.rows.numpy()


def row(points: Tensor, score: float) -> Tensor:
    return torch.cat([points.amin(0), points.amax(0), torch.tensor([score]), points.flatten()]).float()


def test_facexlib_gets_bgr_and_its_landmarks_become_matrices() -> None:
    detector = FakeRetina()
    face = face_at(70, 60, 80, -10)
    inverse = torch.tensor(invert(face.matrix))
    points = FFHQ_TEMPLATE @ inverse[:, :2].T + inverse[:, 2]
    tiny = (points - points.mean(0)) * 0.1 + 20
    detector.rows = torch.stack([row(tiny, 0.99), row(points, 0.98)])
    photo = torch.zeros(1, 3, 120, 160)
    photo[:, 0], photo[:, 2] = 1.0, 0.25  # red and some blue
    found = face_retina.FacexlibFinder(detector).find(photo)
    assert detector.seen.shape == (120, 160, 3)
    assert detector.seen.dtype.name == "float32"
    assert detector.seen[0, 0].tolist() == pytest.approx([63.75, 0, 255])
    assert [f.index for f in found] == [0]  # the tiny one is below the minimum
    assert found[0].score == pytest.approx(0.98)
    assert torch.allclose(torch.tensor(found[0].matrix), torch.tensor(face.matrix), atol=1e-2)


def test_large_photos_are_shrunk_for_facexlib_and_faces_scaled_back() -> None:
    detector = FakeRetina()
    face = face_at(700, 600, 800)
    inverse = torch.tensor(invert(face.matrix))
    points = FFHQ_TEMPLATE @ inverse[:, :2].T + inverse[:, 2]
    detector.rows = row((points + 0.5) / 2 - 0.5, 1.0)[None]
    found = face_retina.FacexlibFinder(detector).find(torch.zeros(1, 3, 1280, 1600))
    assert detector.seen.shape == (640, 800, 3)
    assert native_size(found[0]) == pytest.approx(800, rel=1e-4)
    assert torch.allclose(torch.tensor(found[0].matrix), torch.tensor(face.matrix), atol=2e-2)


def test_no_faces_for_facexlib() -> None:
    assert face_retina.FacexlibFinder(FakeRetina()).find(torch.zeros(1, 3, 50, 50)) == []


@pytest.fixture
def fake_facexlib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    return pretend(monkeypatch, tmp_path, "detection.retinaface", FakeRetina)


def test_auto_takes_facexlib_only_with_its_weights(fake_facexlib: Path) -> None:
    assert faces.load_finder().name == "bundled"
    with pytest.raises(AdaptError, match=r"detection_Resnet50_Final\.pth not found"):
        faces.load_finder("facexlib")
    torch.save({"module.weight": torch.ones(1)}, fake_facexlib / facexlib_nets.DETECTOR)
    assert faces.load_finder().name == "facexlib"
    assert faces.load_finder("bundled").name == "bundled"


def test_broken_facexlib_weights_are_named_and_auto_goes_on(fake_facexlib: Path) -> None:
    (fake_facexlib / facexlib_nets.DETECTOR).write_bytes(b"not weights")
    with pytest.raises(AdaptError, match=r"detection_Resnet50_Final\.pth: not the weights"):
        faces.load_finder("facexlib")
    assert faces.load_finder().name == "bundled"


def test_unknown_finder() -> None:
    with pytest.raises(UsageError, match="expected auto, facexlib or bundled"):
        faces.load_finder("haar")


# Bundled finder ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundled() -> face_fallback.BundledFinder:
    return face_fallback.BundledFinder.load()


def test_weights_are_checked(tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    with pytest.raises(AdaptError, match="missing"):
        face_fallback.BundledFinder.load(other)
    other.write_bytes(b"x" * 100)
    with pytest.raises(AdaptError, match="sha256"):
        face_fallback.BundledFinder.load(other)
    assert face_fallback.WEIGHTS.stat().st_size <= 2 * 2**20


@pytest.mark.parametrize("size", [(1, 1), (2, 700), (33, 20), (300, 200)])
def test_plain_photos_of_any_shape_hold_no_face(bundled: face_fallback.BundledFinder, size: tuple[int, int]) -> None:
    assert bundled.find(torch.full((1, 3, *size), 0.5)) == []


def some_faces(count: int) -> list[Tensor]:
    from adapt.photos import read_photo

    paths = [path for name in ("congress*", "london*") for path in sorted((SHARED / "val").glob(name))]  # portraits
    return [read_photo(path) for path in paths[:: len(paths) // count][:count]]


@needs_faces
def test_bundled_finder_finds_and_aligns_several_faces(bundled: face_fallback.BundledFinder) -> None:
    photo = torch.full((1, 3, 400, 600), 0.45)
    true = [face_at(150, 180, 220, 12), face_at(430, 120, 110, -15), face_at(450, 310, 60)]
    for crop, face in zip(some_faces(3), true, strict=True):
        photo = paste_back(photo, crop, face)
    found = bundled.find(photo)
    assert [face.index for face in found] == [0, 1, 2]
    corners = torch.tensor([[0.0, 0.0, 1], [511, 0, 1], [0, 511, 1], [511, 511, 1]])
    for seen, face in zip(found, true, strict=True):
        there = corners @ torch.tensor(invert(seen.matrix)).T - corners @ torch.tensor(invert(face.matrix)).T
        assert there.norm(dim=1).max() < 0.15 * native_size(face)
    assert bundled.find(photo) == found


@needs_faces
def test_bundled_finder_accepts_faces_that_are_aligned_already(bundled: face_fallback.BundledFinder) -> None:
    crops = some_faces(8)
    found = [[native_size(face) / crop.shape[-1] for face in bundled.find(crop)] for crop in crops]
    assert sum(len(sides) == 1 and 0.8 < sides[0] < 1.25 for sides in found) >= 7


@pytest.mark.parametrize(("as_diffbir", "sizes", "confidence"), [(False, [320, 640], 0.97), (True, [640, 1280], 0.8)])
def test_diffbir_looks_for_smaller_and_less_sure_faces(as_diffbir: bool, sizes: list[int], confidence: float) -> None:
    seen: list[tuple[int, float]] = []

    class Detector:
        def detect_faces(self, image, conf_threshold):  # type: ignore[no-untyped-def]
            seen.append((min(image.shape[:2]), conf_threshold))
            return np.zeros((0, 15), np.float32)

    for side in (320, 1280):
        face_retina.FacexlibFinder(Detector(), as_diffbir).find(torch.rand(1, 3, side, side + 32))
    assert seen == [(side, confidence) for side in sizes]
