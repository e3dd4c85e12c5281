"""The training loop: resumes to the same weights, stops at NaN with the loss named, clips, accumulates."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from adapt.errors import AdaptError, UsageError
from adapt.training import TrainingPlan, choose_device, make_accelerator, mixed_precision, train

CPU = torch.device("cpu")


def losses(net: nn.Module, generator: torch.Generator) -> dict[str, torch.Tensor]:
    x = torch.randn(8, 4, generator=generator)
    return {"fit": (net(x) - x.sum(1, keepdim=True)).square().mean()}


def linear() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(4, 1)


class Killed(BaseException):
    """Stands for a process that dies."""


@pytest.mark.parametrize("killed_at", [3, 10, 19])
def test_a_killed_training_ends_where_an_uninterrupted_one_ends(tmp_path: Path, killed_at: int) -> None:
    plan = TrainingPlan(steps=20, learning_rate=0.05, warmup=3, ema_decay=0.8, save_seconds=0)
    accelerator = make_accelerator(CPU, "no")
    whole = train(linear(), losses, plan, accelerator, tmp_path / "a.pt", log_every=2)

    def die(step: int, _: dict[str, float]) -> None:
        if step == killed_at:
            raise Killed

    with pytest.raises(Killed):
        train(linear(), losses, plan, accelerator, tmp_path / "b.pt", die, log_every=2)
    steps: list[int] = []
    rest = train(
        linear(), losses, plan, accelerator, tmp_path / "b.pt", lambda step, _: steps.append(step), log_every=2
    )
    assert len(steps) < 20 if killed_at > 3 else len(steps) <= 20
    assert rest.losses == whole.losses
    for a, b in zip(whole.module.parameters(), rest.module.parameters(), strict=True):
        assert torch.equal(a, b)


def test_training_fits_and_leaves_the_given_module_alone(tmp_path: Path) -> None:
    module = linear()
    before = module.weight.detach().clone()
    done = train(module, losses, TrainingPlan(200, 0.05, ema_decay=0.9), make_accelerator(CPU, "no"), tmp_path / "c.pt")
    assert torch.equal(module.weight, before)
    assert torch.allclose(done.module.weight, torch.ones(1, 4), atol=0.1)
    assert done.losses[-1]["fit"] < done.losses[0]["fit"]


def test_a_loss_that_is_not_finite_stops_and_is_named(tmp_path: Path) -> None:
    def bad(net: nn.Module, generator: torch.Generator) -> dict[str, torch.Tensor]:
        return {**losses(net, generator), "perceptual": torch.tensor(float("nan"), requires_grad=True)}

    with pytest.raises(AdaptError, match="'perceptual' became nan at step 1"):
        train(linear(), bad, TrainingPlan(5, 0.1), make_accelerator(CPU, "no"), tmp_path / "d.pt")


def test_gradients_are_clipped(tmp_path: Path) -> None:
    def huge(net: nn.Module, generator: torch.Generator) -> dict[str, torch.Tensor]:
        return {"fit": 1e6 * losses(net, generator)["fit"]}

    done = train(linear(), huge, TrainingPlan(50, 0.01, clip=1.0), make_accelerator(CPU, "no"), tmp_path / "e.pt")
    assert all(torch.isfinite(p).all() for p in done.module.parameters())
    assert (done.module.weight - linear().weight).abs().max() < 1.0


def test_a_rate_that_halves_knows_no_cosine() -> None:
    plan = TrainingPlan(40000, 1e-4, halve_at=(35000, 38000))
    assert [plan.rate(step) for step in (0, 34999, 35000, 37999, 38000, 39999)] == [1, 1, 0.5, 0.5, 0.25, 0.25]


@pytest.mark.parametrize("steps", [6, 7])
def test_late_losses_take_over_in_the_second_half(tmp_path: Path, steps: int) -> None:
    def late(net: nn.Module, generator: torch.Generator) -> dict[str, torch.Tensor]:
        return {"fit": 0 * losses(net, generator)["fit"]}

    args = (TrainingPlan(steps, 0.001), make_accelerator(CPU, "no"), tmp_path / "h.pt")
    done = train(linear(), losses, *args, log_every=1, late_losses=late)
    assert [entry["fit"] > 0 for entry in done.losses] == [2 * step < steps for step in range(steps)]


def test_accumulation_calls_the_loss_once_a_micro_batch(tmp_path: Path) -> None:
    calls = []

    def counted(net: nn.Module, generator: torch.Generator) -> dict[str, torch.Tensor]:
        calls.append(generator.initial_seed())
        return losses(net, generator)

    train(linear(), counted, TrainingPlan(3, 0.1, accumulate=4), make_accelerator(CPU, "no"), tmp_path / "f.pt")
    assert len(calls) == 12
    assert len(set(calls)) == 12


def test_the_schedule_warms_up_and_falls_to_its_final_rate() -> None:
    plan = TrainingPlan(steps=100, learning_rate=1.0, warmup=10, final_rate=0.1)
    assert [plan.rate(0), plan.rate(9)] == [0.1, 1.0]
    assert plan.rate(100) == pytest.approx(0.1)


def test_the_validation_curve_has_about_a_dozen_points_and_ends_with_the_result(tmp_path: Path) -> None:
    def evaluate(net: nn.Module) -> dict[str, float]:
        return {"sum": sum(float(p.detach().sum()) for p in net.parameters())}

    plan = TrainingPlan(steps=49, learning_rate=0.05)
    done = train(linear(), losses, plan, make_accelerator(CPU, "no"), tmp_path / "a.pt", log_every=2, evaluate=evaluate)
    scored = [row for row in done.losses if "sum" in row]
    assert [row["step"] for row in scored] == [*range(4, 49, 4), 49]
    assert scored[-1]["sum"] == pytest.approx(evaluate(done.module)["sum"])
    assert scored[0]["sum"] != scored[-1]["sum"]


def test_weights_that_are_not_finite_are_no_result(tmp_path: Path) -> None:
    def losses(net: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
        # A finite loss with an infinite slope at 0.
        return {"root": (next(net.parameters()) * 0).abs().sqrt().sum()}

    plan = TrainingPlan(steps=1, learning_rate=1e-2)
    with pytest.raises(AdaptError, match="weights are not finite after 1 steps"):
        train(nn.Linear(2, 2), losses, plan, make_accelerator(torch.device("cpu"), "no"), tmp_path / "x.pt")


@pytest.mark.parametrize("name", ["cuda", "tpu"])
def test_a_device_that_is_not_here_is_named(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match=f"--device {name}"):
        choose_device(name)


def test_an_old_gpu_trains_in_full_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    # By default torch counts emulation, which has no convolutions there.
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert mixed_precision(torch.device("cuda")) == "no"
