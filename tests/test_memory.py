"""A batch of faces at 512 px through the published networks fits into 8 GB: live tensors counted on the meta device."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pseudo_targets.compute import Compute, prepare
from pseudo_targets.diffbir.networks import PUBLISHED, build_autoencoder, build_control, build_unet
from pseudo_targets.diffbir.published import VERSIONS, version_schedule
from pseudo_targets.latents import AutoencoderLatents
from pseudo_targets.offload import groups_of
from pseudo_targets.priors import Condition, LatentPrior, denoiser_output

BUDGET = 8e9
SIDE, BATCH = 512, 8


class Live(TorchDispatchMode):
    """Counts the bytes of what operations have made and still lives."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self.sizes:
                    self.sizes[storage._cdata] = storage.nbytes()
                    weakref.finalize(storage, self.sizes.pop, storage._cdata, None)
        self.peak = max(self.peak, sum(self.sizes.values()))
        return result


@pytest.fixture
def prior(monkeypatch: pytest.MonkeyPatch) -> LatentPrior:
    # Fused attention keeps its output only; on the meta device torch would count the plain form.
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda query, *_, **__: torch.empty_like(query))
    schedule = version_schedule(VERSIONS["diffbir-v2.1"])
    with torch.device("meta"):
        unet = build_unet(PUBLISHED)
        codec = AutoencoderLatents(build_autoencoder(PUBLISHED))
        built = LatentPrior(
            codec, unet, build_control(unet), schedule, SIDE, torch.empty(1, 77, 1024), "meta", "none", "0" * 64
        )
    prepare(built, Compute(torch.bfloat16, torch.bfloat16))
    return built.eval().requires_grad_(False)


def peak(call: Callable[[], object]) -> int:
    with Live() as live:
        call()
    return live.peak


def weights(networks: list[nn.Module]) -> int:
    return sum(p.numel() * p.element_size() for network in networks for p in network.parameters())


def test_a_batch_at_512_px_fits_into_8_gb(prior: LatentPrior) -> None:
    groups = groups_of(prior)
    x = torch.empty(BATCH, 4, SIDE // 8, SIDE // 8, device="meta")
    times = torch.zeros(BATCH, dtype=torch.long, device="meta")
    context = prior.context.expand(BATCH, -1, -1)
    with torch.no_grad():
        denoise = peak(lambda: denoiser_output(prior.unet, prior.control, x, times, context, Condition(x)))
        codec = max(
            peak(lambda: prior.encode(torch.empty(BATCH, 3, SIDE, SIDE, device="meta"))), peak(lambda: prior.decode(x))
        )
    held = {name: weights(networks) for name, networks in groups.items()}
    assert 2.2e9 < held["denoiser"] < 2.8e9
    # All at once, and with offload one after the other.
    assert held["denoiser"] + held["codec"] + max(denoise, codec) < BUDGET
    assert max(held["denoiser"] + denoise, held["codec"] + codec) < 0.6 * BUDGET
    # The count sees what a call needs at least: the samples of the widest layer of the batch.
    assert denoise > BATCH * 640 * (SIDE // 8) ** 2 * 2


def test_guidance_through_the_decoder_fits_too(prior: LatentPrior) -> None:
    def gradient() -> object:
        with torch.enable_grad():
            z = torch.empty(1, 4, SIDE // 8, SIDE // 8, device="meta", requires_grad=True)
            return torch.autograd.grad(prior.decode(z).sum(), z)

    used = peak(gradient)
    assert used + weights([network for networks in groups_of(prior).values() for network in networks]) < BUDGET
    prior.codec.autoencoder.disable_gradient_checkpointing()
    assert used < 0.7 * peak(gradient)
