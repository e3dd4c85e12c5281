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


def test_what_a_photo_loses_counts_twice() -> None:
    clean = 0.4 * torch.rand(9, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    # Two of three photos gain up to a weight of 1.5, one loses from a weight of 1.1 on.
    worst = torch.tensor([1.5, 1.5, 1.1]).repeat(3).view(-1, 1, 1, 1)
    grain = 0.02 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))
    assert best_share(Gain(1.0), Gain(2.0), clean / 1.5 + grain, clean) == 0.5
    assert best_share(Gain(1.0), Gain(2.0), clean / worst + grain, clean) < 0.5


def test_without_a_gain_it_goes_the_way_that_loses_least() -> None:
    clean = 0.4 * torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    assert best_share(Gain(1.0), Gain(2.0), clean, clean) == SHARES[0]
