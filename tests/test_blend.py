"""The blend lies between two networks, and stops where photographed targets are restored best."""

import torch
from torch import Tensor, nn

from adapt.blend import SHARES, best_share, blend


class Gain(nn.Module):
    """Multiplies by one weight."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, image: Tensor) -> Tensor:
        return self.weight * image


def test_weights_lie_between_and_the_sources_stay() -> None:
    old, new = Gain(1.0), Gain(2.0)
    assert blend(old, new, 0.25).weight.item() == 1.25
    assert blend(old, new, 1.0).weight.item() == 2.0
    assert old.weight.item() == 1.0 and new.weight.item() == 2.0


def test_it_stops_where_restoration_is_best() -> None:
    clean = 0.4 * torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    for share in SHARES:
        assert best_share(Gain(1.0), Gain(2.0), clean / (1 + share), clean) == share


def test_it_stops_early_where_more_brings_little() -> None:
    clean = 0.4 * torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert best_share(Gain(1.0), Gain(2.0), clean / 1.8, clean) == 0.75
    noisy = clean / 1.9 + 0.1 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    assert best_share(Gain(1.0), Gain(2.0), noisy, clean) < 1


def test_without_a_gain_it_goes_the_way_that_loses_least() -> None:
    clean = 0.4 * torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert best_share(Gain(1.0), Gain(2.0), clean, clean) == 0.25
