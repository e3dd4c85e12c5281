"""Discriminators: what they score, and that restorer and discriminator never train each other by accident."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from adapt.adversary import Adversary, PatchDiscriminator, UNetDiscriminator
from tests.tiny import blobs

CPU = torch.device("cpu")


def gen(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A narrow U-Net in the adversary: at its published width 30 steps take minutes."""
    kinds = {"patch": PatchDiscriminator, "unet": lambda: UNetDiscriminator(8)}
    monkeypatch.setattr("adapt.adversary.DISCRIMINATORS", kinds)


@pytest.mark.parametrize("sides", [(64, 64), (65, 71), (100, 67)])
def test_the_u_net_scores_every_pixel_of_any_side(sides: tuple[int, int]) -> None:
    assert UNetDiscriminator(4)(torch.rand(2, 3, *sides)).shape == (2, 1, *sides)


def test_the_u_net_has_its_published_size() -> None:
    with torch.device("meta"):
        net = UNetDiscriminator()
    assert sum(parameter.numel() for parameter in net.parameters()) == 4_376_897
    normalised = {name for name, layer in net.named_modules() if hasattr(layer, "parametrizations")}
    layers = {name for name, layer in net.named_modules() if isinstance(layer, nn.Conv2d)}
    assert layers - normalised == {"first", "last"}


@torch.no_grad()
def test_what_was_seen_on_the_way_down_is_added_on_the_way_up() -> None:
    torch.manual_seed(0)
    net, image = UNetDiscriminator(4).eval(), blobs(1, 64)
    whole = net(image)
    for layer in net.up:
        layer.register_forward_hook(lambda _, __, output: torch.zeros_like(output))  # nothing comes from the depth
    shallow = F.leaky_relu(net.first(image), 0.2)
    for layer in net.refine:
        shallow = F.leaky_relu(layer(shallow), 0.2)
    torch.testing.assert_close(net(image), net.last(shallow))
    assert not torch.allclose(net(image), whole)


@pytest.mark.parametrize(("form", "kind"), [("hinge", "patch"), ("logistic", "patch"), ("logistic", "unet")])
def test_it_tells_real_from_restored_and_its_state_round_trips(form: str, kind: str) -> None:
    adversary = Adversary(CPU, 2e-3, 0, form, kind)
    real, fake = blobs(8), torch.rand(8, 3, 32, 32, generator=gen(0))
    for _ in range(30):
        adversary.learn(fake, real)
        adversary.step()
    assert adversary.net(real).mean() > adversary.net(fake).mean() + 0.5
    copy = Adversary(CPU, 2e-3, 1, form, kind)
    copy.load_state_dict(adversary.state_dict())
    torch.testing.assert_close(copy.net.eval()(real), adversary.net.eval()(real))
    assert all(p.grad is None or not p.requires_grad for p in adversary.net.parameters())


def test_micro_batches_add_up_to_the_gradient_of_the_whole_batch() -> None:
    real, fake = blobs(4), torch.rand(4, 3, 32, 32, generator=gen(0))
    whole, parts = (Adversary(CPU, 2e-3, 0, "logistic") for _ in range(2))
    for adversary in (whole, parts):
        adversary.net.eval()  # spectral norms stay as they are
    before = [parameter.clone() for parameter in parts.net.parameters()]
    whole.learn(fake, real)
    for half in (slice(0, 2), slice(2, 4)):
        parts.learn(fake[half], real[half], share=0.5)
    for a, b, old in zip(whole.net.parameters(), parts.net.parameters(), before, strict=True):
        torch.testing.assert_close(a.grad, b.grad)
        assert torch.equal(b, old)  # no step yet
    parts.step()
    assert any(not torch.equal(b, old) for b, old in zip(parts.net.parameters(), before, strict=True))


def test_it_gives_the_restorer_the_gradient_of_its_form_and_keeps_none() -> None:
    for form, expected in (("hinge", lambda s: -s.mean()), ("logistic", lambda s: (1 + (-s).exp()).log().mean())):
        adversary = Adversary(CPU, 2e-3, 0, form)
        adversary.net.eval().requires_grad_(False)
        fake = blobs(2).requires_grad_()
        torch.testing.assert_close(adversary.loss(fake), expected(adversary.net(fake)))
        adversary.loss(fake).backward()
        assert fake.grad is not None and fake.grad.abs().sum() > 0
        assert all(parameter.grad is None for parameter in adversary.net.parameters())
