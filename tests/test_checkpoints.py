"""Checkpoints are read as tensors only, and fit a network name by name."""

import os
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from pseudo_targets.checkpoints import CheckpointError, load_strictly, read_checkpoint


def net(width: int = 3) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(OrderedDict(first=nn.Linear(2, width), second=nn.Linear(width, 1)))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".ckpt"])
def test_every_format_gives_the_tensors(tmp_path: Path, suffix: str) -> None:
    state, path = net().state_dict(), tmp_path / f"weights{suffix}"
    save_file(state, path) if suffix == ".safetensors" else torch.save(state, path)
    read = read_checkpoint(path)
    assert list(read) == list(state) or set(read) == set(state)
    assert all(torch.equal(read[name], state[name]) for name in state)


def test_wrapper_and_prefix_are_taken_off(tmp_path: Path) -> None:
    state, path = net().state_dict(), tmp_path / "weights.ckpt"
    torch.save({"state_dict": {f"module.{name}": t for name, t in state.items()}, "epoch": 3}, path)
    assert set(read_checkpoint(path)) == set(state)


def test_loading_fills_a_network_on_the_meta_device_in_float32() -> None:
    state = {name: tensor.half() for name, tensor in net().state_dict().items()}
    with torch.device("meta"):
        empty = nn.Sequential(OrderedDict(first=nn.Linear(2, 3), second=nn.Linear(3, 1)))
    filled = load_strictly(empty, state, Path("x.pth"))
    assert not filled.training
    for name, parameter in filled.named_parameters():
        assert parameter.dtype == torch.float32 and not parameter.requires_grad
        assert torch.equal(parameter, state[name].float())


def test_every_fault_is_named_at_once() -> None:
    state = dict(net(4).state_dict())
    del state["second.bias"]
    state["third.weight"] = torch.zeros(1)
    with pytest.raises(CheckpointError) as caught:
        load_strictly(net(), state, Path("other.pth"))
    message = str(caught.value)
    assert "other.pth" in message and "\n" not in message
    assert "missing second.bias" in message
    assert "unexpected third.weight" in message
    assert "first.weight has shape (4, 2), expected (3, 2)" in message
    assert "first.bias has shape" in message and "second.weight has shape" in message


class Payload:
    """Pickled, it would make a folder when it is read freely."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.folder),)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path) -> None:
    path, made = tmp_path / "weights.pth", tmp_path / "made"
    torch.save({"weight": torch.zeros(2), "extra": Payload(made)}, path)
    with pytest.raises(CheckpointError, match="holds code") as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)
    assert not made.exists()


@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_damaged_missing_and_foreign_files_are_one_line(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    with pytest.raises(CheckpointError, match="no such file"):
        read_checkpoint(path)
    path.write_bytes(b"half a file")
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match="suffix"):
        read_checkpoint(tmp_path / "weights.zip")


def test_a_table_of_other_things_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save({"step": 3}, path)
    with pytest.raises(CheckpointError, match="no table of tensors"):
        read_checkpoint(path)
