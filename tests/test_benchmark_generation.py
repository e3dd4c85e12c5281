"""The benchmark of generation, with tiny networks on a CPU."""

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import generation
from benchmarks.generation import Plan, call_flops, filled, measure, random_prior, table
from pseudo_targets.diffbir.networks import PUBLISHED
from recipes.schema import Compute, Generation
from tests.diffbir_files import TINY

CPU = torch.device("cpu")


@pytest.mark.parametrize("sampler", ["few_calls", "diffbir"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_number_is_there_and_makes_sense(sampler: str, precision: str) -> None:
    settings = Generation(sampler=sampler, calls=2, filter="none", compute=Compute(precision=precision))
    result = measure(Plan(32, 2, settings, CPU, reference_steps=2, repeats=1), TINY)
    ours, reference, inside = result["ours"], result["reference"], result["denoiser"]
    assert ours["type"] == {"fp32": "float32", "bf16": "bfloat16"}[precision]
    for row in (ours, reference):
        assert row["images_per_second"] == pytest.approx(1 / row["seconds_per_image"])
        assert row["peak_memory_gib"] > 0
    assert result["speedup"] == pytest.approx(ours["images_per_second"] / reference["images_per_second"])
    assert inside["operations_per_second"] == pytest.approx(inside["operations"] / inside["seconds"])
    assert inside["share_of_ceiling"] == pytest.approx(inside["operations_per_second"] / inside["ceiling"])
    assert json.loads(json.dumps(result)) == result
    assert "times as fast as the reference" in table(result)


def test_operations_grow_with_the_batch_and_are_those_of_the_published_networks() -> None:
    assert call_flops(TINY, 32, 4) == 4 * call_flops(TINY, 32, 1)
    # 24234 G multiply-adds in 50 steps are reported for DiffBIR at 512 px, all networks included.
    assert 0.85 < call_flops(PUBLISHED, 512, 1) / (2 * 24234e9 / 50) < 1.15


def test_random_networks_keep_finite_activations() -> None:
    prior = random_prior(TINY, CPU, torch.bfloat16)
    assert {p.dtype for p in prior.unet.parameters()} == {torch.bfloat16}
    latent = prior.encode(torch.rand(1, 3, 32, 32))
    x0 = prior.denoise(latent, torch.tensor([500]), None)
    assert torch.isfinite(x0).all() and x0.std() > 0
    norm = filled(torch.nn.GroupNorm(1, 4))
    assert norm.weight.eq(1).all() and norm.bias.eq(0).all()


def test_the_command_writes_what_it_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(generation, "measure", lambda plan: measure(plan, TINY))
    path = tmp_path / "generation.json"
    words = ["generation", "--json", str(path), "--device", "cpu", "--size", "32", "--batch", "1", "--calls", "1"]
    monkeypatch.setattr(sys, "argv", [*words, "--reference-steps", "1", "--repeats", "1", "--offload"])
    generation.main()
    result = json.loads(path.read_text())
    assert (result["size"], result["ours"]["calls"], result["reference"]["steps"]) == (32, 1, 1)
    assert result["ours"]["compute"]["offload"]
    assert "| reference |" in capsys.readouterr().out
