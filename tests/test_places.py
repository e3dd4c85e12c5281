"""Places of windows on faces: what they say, and that windows drawn for training know theirs."""

import math

import pytest
import torch

from adapt.photo_bank import PhotoBank, draw_pool
from adapt.seeds import generator_of
from pseudo_targets.places import NOWHERE, WHOLE, nearest_known, place_context


def test_no_place_is_the_empty_prompt_and_places_differ() -> None:
    told = place_context(torch.tensor([NOWHERE, WHOLE, (0.25, 0.5, 0.5), (0.25, 0.6, 0.5)]))
    assert told.shape == (4, 1, 64) and not told[0].any()
    apart = torch.cdist(told[1:, 0], told[1:, 0]) + torch.eye(3)
    assert float(apart.min()) > 0.1


def test_windows_of_other_sizes_get_the_nearest_place_that_was_taught() -> None:
    assert nearest_known(1.1, 0.52, 0.5) == WHOLE
    assert nearest_known(0.1, 0.5, 0.5) == (0.25, 0.5, 0.5)
    assert nearest_known(0.5, 0.2, 0.5) == (0.5, 0.25, 0.5)
    assert all(math.isnan(value) for value in nearest_known(0.5, -0.3, 0.5) + nearest_known(2.0, 0.5, 0.5))


@pytest.mark.parametrize("pooled", [False, True])
def test_windows_know_where_on_the_face_they_lie_also_mirrored(pooled: bool) -> None:
    ramp = torch.arange(256).to(torch.uint8).expand(3, 256, 256).contiguous()  # a column's brightness is its number
    other = torch.full((3, 100, 200), 7, dtype=torch.uint8)
    bank = PhotoBank([[ramp], [other]], [True, False])
    source = draw_pool(bank, 256, 64, 3, torch.device("cpu")) if pooled else bank
    windows, places = source.draw_placed(200, 64, generator_of("places"))
    known = ~places.isnan().any(1)
    assert 0.35 < float(known.float().mean()) < 0.65
    assert float((windows[~known] * 255 - 7).abs().max()) < 1
    flipped = windows[known][..., 0].mean((1, 2)) > windows[known][..., -1].mean((1, 2))
    assert 0.3 < float(flipped.float().mean()) < 0.7
    centre = (windows[known].mean((1, 2, 3)) * 255 + 0.5) / 256
    torch.testing.assert_close(torch.where(flipped, 1 - centre, centre), places[known][:, 1], atol=0.01, rtol=0)
    spans = (windows[known].amax((1, 2, 3)) - windows[known].amin((1, 2, 3))) * 255 / 256
    torch.testing.assert_close(spans, places[known][:, 0], atol=0.02, rtol=0)


def test_a_pool_is_the_same_however_many_processes_draw_it(monkeypatch: pytest.MonkeyPatch) -> None:
    bank = PhotoBank([[torch.randint(256, (3, 80, 90), dtype=torch.uint8)]])
    pools = []
    for cores in (1, 2):
        monkeypatch.setattr("adapt.photo_bank.os.cpu_count", lambda cores=cores: cores)
        pools.append(draw_pool(bank, 300, 64, 1, torch.device("cpu")))
    assert torch.equal(pools[0].windows, pools[1].windows) and len(pools[0].windows) == 512
