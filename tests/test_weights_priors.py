"""The files of the DiffBIR priors under `adapt weights`: mirrors, folders, and whether a file is what its name says."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file
from torch import Tensor

from adapt.cli import main
from adapt.download import PlaceError
from adapt.errors import AdaptError, UsageError
from adapt.weights_cli import fetch_weights, import_weights, list_weights, verify_weights
from adapt.weights_table import TABLE, Weights, chosen, file_of, place_of
from pseudo_targets.checkpoints import read_checkpoint, read_layout
from pseudo_targets.diffbir import cleaners, networks
from pseudo_targets.diffbir.published import VERSIONS, load_diffbir
from pseudo_targets.downloads import (
    DIFFBIR,
    DIFFBIR_V1_FACE_FULL,
    DIFFBIR_V2_CONTROL,
    DIFFBIR_V21_CONTROL,
    SD21_BASE,
    SD21_MERGES,
    SD21_VOCABULARY,
    SD21_ZSNR,
    SETS,
    SWINIR_FACE,
    PublishedWeights,
)
from restorers.downloads import record_of
from tests.diffbir_files import TINY, base_state, control_state, put_files, put_vocabulary, whole_state
from tests.test_stage1 import tiny_swinir
from tests.weights_server import CONTENT, Server, dead_url, own_cache, serving


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder; tiny networks are expected in place of those of published size."""
    monkeypatch.setattr(networks, "PUBLISHED", TINY)
    monkeypatch.setattr(cleaners, "NETWORKS", {SWINIR_FACE: (tiny_swinir, 1, cleaners.MULTIPLE)})
    return own_cache(tmp_path / "cache", monkeypatch)


def quiet(_: str) -> None:
    """Says nothing."""


def content(state: dict[str, Tensor]) -> bytes:
    return save({name: tensor.contiguous() for name, tensor in state.items()})


def row_at(url: str, *mirrors: str, weights: PublishedWeights = DIFFBIR_V2_CONTROL) -> PublishedWeights:
    """The row with other addresses; what a server of these tests holds is not the published file."""
    return dataclasses.replace(weights, url=url, mirrors=mirrors)


def open_row(weights: Weights) -> Weights:
    """The row without what is known of the published file, which the tiny ones of these tests are not."""
    return dataclasses.replace(weights, sha256="unknown", size=0)


OPEN = tuple(map(open_row, TABLE))


def served(server: Server, name: str) -> str:
    return server.url.replace("tiny.safetensors", name)


def test_sets_are_the_files_of_the_priors() -> None:
    for name, version in VERSIONS.items():
        assert SETS[name] == (version.base, version.control)
    assert {weights for rows in SETS.values() for weights in rows} <= set(DIFFBIR)
    assert not set(SETS) & {weights.name for weights in TABLE}
    assert chosen(["diffbir-v1", "diffbir-v2"]) == [*SETS["diffbir-v1"], DIFFBIR_V2_CONTROL]


def test_the_list_has_every_file_with_its_addresses_folder_and_state(cache: Path) -> None:
    (cache / "diffbir").mkdir(parents=True)
    (cache / "diffbir" / "v2.safetensors").write_bytes(CONTENT)
    said: list[str] = []
    list_weights(TABLE, said.append)
    text = "\n".join(said)
    for weights in DIFFBIR:
        assert all(url in text for url in (weights.url, *weights.mirrors))
        assert f"kept as {weights.folder}/{weights.file}" in text
    assert [line.split()[0] for line in said if " here " in line and "not here" not in line] == ["diffbir-v2-control"]
    assert any(line.split() == ["diffbir-v2.1", "is", "sd21-zsnr,", "diffbir-v2.1-control"] for line in said)


def test_a_dead_mirror_is_passed_over_and_the_one_taken_is_named(server: Server, cache: Path) -> None:
    server.content = content(control_state())
    dead, live = dead_url(), served(server, "v2.safetensors")
    said: list[str] = []
    path = fetch_weights(row_at(dead, live), said.append)
    assert path == cache / "diffbir" / "v2.safetensors"
    assert path.read_bytes() == server.content
    assert said == [f"diffbir-v2-control: fetched from {live}, {path}"]
    assert verify_weights([DIFFBIR_V2_CONTROL], said.append) == 0
    assert said[-1] == "diffbir-v2-control: unchanged; names and shapes fit"


def test_a_mirror_with_another_file_is_passed_over(server: Server, cache: Path) -> None:
    with serving() as wrong:
        server.content = content(control_state())
        rows = row_at(served(wrong, "v2.safetensors"), served(server, "v2.safetensors"))
        assert fetch_weights(rows, quiet).read_bytes() == server.content
    assert sorted(path.name for path in (cache / "diffbir").iterdir() if path.suffix != ".lock") == [
        "v2.safetensors",
        "v2.safetensors.sha256",
    ]


def test_the_mirror_that_gave_a_part_goes_on_first(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapt.download.ATTEMPTS", 1)
    server.content, server.cuts, server.cut = content(control_state()), 1, 1000
    with serving() as other:
        other.content = b""  # answers 416
        row = row_at(served(other, "v2.safetensors"), served(server, "v2.safetensors"))
        with pytest.raises(AdaptError, match="bytes are missing"):
            fetch_weights(row, quiet)
        other.content = server.content
        fetch_weights(row, quiet)
        assert (server.ranges, len(other.ranges)) == ([None, "bytes=1000-"], 1)


def test_a_part_from_another_address_is_not_gone_on_with(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapt.download.ATTEMPTS", 1)
    server.content, server.cuts, server.cut = content(control_state()), 1, 1000
    with serving() as other:
        other.content = server.content
        row = row_at(served(server, "v2.safetensors"), served(other, "v2.safetensors"))
        assert fetch_weights(row, quiet).read_bytes() == server.content
        assert other.ranges == [None]


def test_a_part_under_the_other_name_is_removed(server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapt.download.ATTEMPTS", 1)
    server.content, server.cuts, server.cut = content(control_state()), 1, 1000
    fetch_weights(row_at(served(server, "v2.pth"), served(server, "v2.safetensors")), quiet)
    assert {path.name for path in (cache / "diffbir").iterdir() if path.suffix != ".lock"} == {
        "v2.safetensors",
        "v2.safetensors.sha256",
    }


def test_when_every_mirror_fails_one_line_says_what_to_do(server: Server, cache: Path) -> None:
    addresses = (dead_url(), served(server, "v2-1_512-ema-pruned.safetensors"))  # the second holds another file
    with pytest.raises(AdaptError) as caught:
        fetch_weights(row_at(*addresses, weights=SD21_BASE), quiet)
    text = str(caught.value)
    assert "\n" not in text
    for part in (SD21_BASE.file, *addresses, "no connection", "unexpected tensors: weight"):
        assert part in text
    assert f"`adapt weights import {SD21_BASE.file}`" in text
    assert f"put it at {cache / 'diffbir' / SD21_BASE.file}" in text


def test_fetch_takes_a_set_and_asks_for_what_is_missing(
    cache: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (cache / "diffbir").mkdir(parents=True)
    put_files(cache / "diffbir")
    assert main(["weights", "fetch", "diffbir-v2.1"]) == 0
    assert [line.split(",")[0] for line in capsys.readouterr().out.splitlines()] == [
        "sd21-zsnr: here already",
        "diffbir-v2.1-control: here already",
    ]
    assert main(["weights", "import", str(cache / "x.pth"), "--as", "diffbir-v2.1"]) == 2
    assert "is several files, expected one of sd21-zsnr" in capsys.readouterr().err


def test_import_puts_each_file_where_the_loader_looks(tmp_path: Path, cache: Path) -> None:
    put_files(tmp_path)
    put_vocabulary(tmp_path)
    for weights in (*SETS["diffbir-v2.1"], *SETS["sd21-tokenizer"]):
        source = tmp_path / weights.folder.removeprefix("diffbir").strip("/") / weights.file
        path = import_weights(source, None, OPEN, quiet)
        assert path == cache / weights.folder / weights.file == place_of(weights)
        assert path.read_bytes() == source.read_bytes()
    assert load_diffbir("diffbir-v2.1").name == "diffbir-v2.1"
    said: list[str] = []
    assert verify_weights([open_row(weights) for weights in SETS["diffbir-v2.1"]], quiet) == 0
    assert verify_weights([open_row(weights) for weights in SETS["sd21-tokenizer"]], said.append) == 0
    assert said == ["sd21-vocab: unchanged; is the tokenizer's", "sd21-merges: unchanged; is the tokenizer's"]


def test_a_file_that_is_not_the_published_one_is_refused(tmp_path: Path, cache: Path) -> None:
    torch.save(control_state(), tmp_path / DIFFBIR_V2_CONTROL.file)  # names and shapes fit
    with pytest.raises(AdaptError, match=rf"v2\.pth: sha256 .*, expected {DIFFBIR_V2_CONTROL.sha256}; it was not kept"):
        import_weights(tmp_path / DIFFBIR_V2_CONTROL.file, None, TABLE, quiet)
    assert not place_of(DIFFBIR_V2_CONTROL).exists()


def test_import_knows_the_safetensors_of_a_published_name(tmp_path: Path, cache: Path) -> None:
    control = tmp_path / "DiffBIR_v2.1.safetensors"
    save_file(control_state(), control)
    said: list[str] = []
    path = import_weights(control, None, TABLE, said.append)
    assert path == cache / "diffbir" / control.name
    assert file_of(DIFFBIR_V21_CONTROL) == path
    elsewhere = tmp_path / "renamed.safetensors"
    control.rename(elsewhere)
    assert import_weights(elsewhere, DIFFBIR_V21_CONTROL, TABLE, said.append) == path
    torch.save(control_state(), place_of(DIFFBIR_V21_CONTROL))
    import_weights(elsewhere, DIFFBIR_V21_CONTROL, TABLE, said.append)
    assert said[-1].startswith(f"diffbir-v2.1-control: {place_of(DIFFBIR_V21_CONTROL)} is read in its place")
    save_file({"weight": torch.zeros(1)}, tmp_path / "codeformer.safetensors")
    with pytest.raises(UsageError, match="not known by name or hash"):  # restorers are held to the published file
        import_weights(tmp_path / "codeformer.safetensors", None, TABLE, quiet)


@pytest.mark.parametrize(
    ("weights", "state", "fault"),
    [
        (DIFFBIR_V2_CONTROL, base_state, "IRControlNet: missing tensors"),
        (SD21_ZSNR, control_state, "unexpected tensors: input_blocks.0.0.bias"),
        (DIFFBIR_V1_FACE_FULL, base_state, "IRControlNet: missing tensors"),
        (SWINIR_FACE, control_state, "not the weights of"),
    ],
)
def test_a_file_of_another_network_is_refused(weights, state, fault, tmp_path: Path, cache: Path) -> None:
    file = tmp_path / weights.file
    torch.save({"state_dict": state()}, file)
    with pytest.raises(AdaptError, match=fault) as caught:
        import_weights(file, None, OPEN, quiet)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 700
    assert not place_of(weights).exists()
    place_of(weights).parent.mkdir(parents=True)
    file.rename(place_of(weights))  # put there by hand
    said: list[str] = []
    assert verify_weights([open_row(weights)], said.append) == 1
    assert fault in said[0] and said[0].endswith(f": delete {place_of(weights)} and fetch it again")


def test_whole_files_and_stage_1_fit(cache: Path) -> None:
    folder = cache / "diffbir"
    folder.mkdir(parents=True)
    torch.save({"state_dict": whole_state(), "global_step": 3}, folder / DIFFBIR_V1_FACE_FULL.file)
    torch.save({"state_dict": tiny_swinir().state_dict()}, folder / SWINIR_FACE.file)  # beside the prior
    said: list[str] = []
    assert verify_weights([open_row(DIFFBIR_V1_FACE_FULL), open_row(SWINIR_FACE)], said.append) == 0
    assert [line.split("; ")[-1] for line in said] == ["names and shapes fit"] * 2


def test_without_transformers_the_rest_is_checked(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cache / "diffbir").mkdir(parents=True)
    put_files(cache / "diffbir")
    monkeypatch.setattr("pseudo_targets.layouts.find_spec", lambda _: None)
    said: list[str] = []
    assert verify_weights([SD21_ZSNR], said.append) == 0
    assert said[0].endswith("those of the text tower are not checked without transformers")


@pytest.mark.parametrize(
    ("weights", "text"),
    [
        (SD21_VOCABULARY, "no json"),
        (SD21_VOCABULARY, json.dumps({"<|endoftext|>": 5})),
        (SD21_VOCABULARY, "[]"),
        (SD21_MERGES, ""),
        (SD21_MERGES, "#version: 0.2\na b c\n"),
        (SD21_MERGES, b"#version\xff"),
    ],
)
def test_files_of_another_tokenizer_are_refused(weights, text, tmp_path: Path) -> None:
    file = tmp_path / weights.file
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(AdaptError, match=str(file)):
        import_weights(file, None, OPEN, quiet)
    assert not place_of(weights).exists()


def test_a_layout_is_that_of_the_checkpoint_without_values(tmp_path: Path) -> None:
    torch.save({"state_dict": {f"module.{name}": value for name, value in control_state().items()}}, tmp_path / "a.pth")
    save_file(control_state(), tmp_path / "a.safetensors")
    for name in ("a.pth", "a.safetensors"):
        layout, tensors = read_layout(tmp_path / name), read_checkpoint(tmp_path / name)
        assert {name: value.shape for name, value in layout.items()} == {n: t.shape for n, t in tensors.items()}
        assert all(value.is_meta for value in layout.values())


def test_a_file_that_cannot_be_written_is_no_fault_of_the_mirror(server: Server, cache: Path) -> None:
    cache.write_text("a file where the folder should be")
    with pytest.raises(PlaceError, match=r"v2\.pth: cannot be written \(.*\); set ADAPT_CACHE"):
        fetch_weights(row_at(server.url), quiet)
    assert server.ranges == []


def test_verify_loads_a_restorer_without_a_published_hash(cache: Path) -> None:
    pytest.importorskip("spandrel")
    (weights,) = chosen(["swinir-gan"])
    place_of(weights).parent.mkdir(parents=True)
    torch.save({"state_dict": tiny_swinir().state_dict()}, place_of(weights))
    said: list[str] = []
    assert verify_weights([weights], said.append) == 0
    assert said[0].endswith("is the network it should be")
    record_of(place_of(weights)).unlink()
    torch.save({"weight": torch.zeros(1)}, place_of(weights))
    assert verify_weights([weights], said.append) == 1
    assert "no restorer that spandrel knows" in said[1]
