"""What of a restored crop is put back: the face and its hair, softly, and nothing of what is around them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from adapt import face_parsing, facexlib_nets
from adapt.errors import AdaptError
from adapt.face_parsing import FaceParser, load_parser
from adapt.faces import Face, paste_back
from adapt.identity import load_identity
from adapt.weights_table import FACEXLIB, place_of
from tests.fake_facexlib import pretend

SKIN, HAIR, NECK = 1, 13, 17


class Halves(nn.Module):
    """Stands for ParseNet: one class on the left half, another on the right; remembers what it was shown."""

    def __init__(self, left: int = SKIN, right: int = NECK, **_: object) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.left, self.right = left, right

    def forward(self, image: Tensor) -> tuple[Tensor, None]:
        self.seen = image
        scores = torch.zeros(1, 19, *image.shape[-2:])
        scores[:, self.left, :, :256] = scores[:, self.right, :, 256:] = 1
        return scores, None


@pytest.mark.parametrize("side", [128, 512, 700])
def test_the_region_is_the_face_and_fades_out(side: int) -> None:
    net = Halves()
    region = FaceParser(net)(torch.full((1, 3, side, side), 0.75))
    assert net.seen.shape == (1, 3, 512, 512) and torch.allclose(net.seen, torch.tensor(0.5))
    assert region.shape == (1, 1, side, side)
    middle = region[0, 0, side // 2]
    assert middle[side // 4] > 0.99 and middle[3 * side // 4] < 0.01
    assert middle[side // 2 - 1 : side // 2 + 1].mean() == pytest.approx(0.5, abs=0.01)
    assert (middle[side // 8 :].diff() < 1e-6).all()  # soft, from one to the other
    assert region[..., : side // 64, :].max() == 0 and region[..., : side // 64].max() == 0  # the edges stay out


def test_hair_belongs_to_the_face() -> None:
    region = FaceParser(Halves(SKIN, HAIR))(torch.zeros(1, 3, 512, 512))
    assert region[..., 60:-60, 60:-60].min() > 0.99


def test_pixels_outside_the_region_stay_exactly_as_they_were() -> None:
    photo, crop = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(0)), torch.zeros(1, 3, 64, 64)
    scale = 512 / 64
    shift = (scale - 1) / 2
    face = Face(0, ((scale, 0.0, shift - 16 * scale), (0.0, scale, shift - 16 * scale)), 1.0)
    region = torch.zeros(1, 1, 64, 64)
    region[..., 20:44, 20:44] = 1
    result = paste_back(photo, crop, face, region=region)
    assert result[..., 40:56, 40:56].max() == 0
    changed = (result != photo).any(1)[0]
    changed[34:62, 34:62] = False
    assert not changed.any()


@pytest.fixture
def fake_facexlib(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    return pretend(monkeypatch, tmp_path, "parsing.parsenet", Halves)


def test_the_parser_is_used_where_its_weights_are(fake_facexlib: Path) -> None:
    assert load_parser() is None
    torch.save({"module.weight": torch.ones(1)}, fake_facexlib / facexlib_nets.PARSER)
    assert isinstance(load_parser(), face_parsing.FaceParser)


def test_weights_are_looked_for_where_they_are_fetched_to(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("ADAPT_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for weights in FACEXLIB:
        place_of(weights).parent.mkdir(parents=True, exist_ok=True)
        place_of(weights).touch()
        assert facexlib_nets.find_weights(weights.file) == place_of(weights)


def test_damaged_weights_are_named(fake_facexlib: Path) -> None:
    (fake_facexlib / facexlib_nets.PARSER).write_bytes(b"not weights")
    with pytest.raises(AdaptError, match=r"parsing_parsenet\.pth: not the weights of facexlib's Halves"):
        load_parser()


def test_a_facexlib_that_cannot_be_imported_is_named(fake_facexlib: Path) -> None:
    (fake_facexlib / facexlib_nets.RECOGNITION).write_bytes(b"weights")
    with pytest.raises(AdaptError, match=r"facexlib cannot be imported .*: repair it with pip"):
        load_identity(torch.device("cpu"))
