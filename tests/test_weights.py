"""Published weights: the table, a resumable download from a server on this machine, hashes, import, offline."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

from adapt import weights_table
from adapt.cli import main
from adapt.download import download
from adapt.errors import AdaptError, UsageError
from adapt.facexlib_nets import load_net
from adapt.lpips import load_lpips
from adapt.weights_cli import fetch_weights, import_weights, list_weights, verify_weights
from adapt.weights_table import TABLE, addresses, file_names
from pseudo_targets import downloads as priors
from pseudo_targets.diffbir.cleaners import load_diffbir_cleaner
from pseudo_targets.pixel_prior import load_ffhq512
from pseudo_targets.zoo import PRIORS, load_prior
from restorers import downloads as restorers
from restorers.downloads import PublishedWeights
from restorers.zoo import ZooError, load_restorer
from tests.weights_server import CONTENT, DIGEST, Server, dead_url, own_cache, serving


@pytest.fixture
def server() -> Iterator[Server]:
    with serving() as running:
        yield running


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return own_cache(tmp_path / "cache", monkeypatch) / "weights"


def row(url: str, sha256: str = DIGEST, file: str = "tiny.safetensors") -> PublishedWeights:
    size = 0 if sha256 == "unknown" else len(CONTENT)
    return PublishedWeights("tiny", file, "a test", "MIT", url, size, sha256)


def quiet(_: str) -> None:
    """Says nothing."""


def test_the_table_is_well_formed_and_joined_from_both_packages() -> None:
    assert len({weights.name for weights in TABLE}) == len({weights.file for weights in TABLE}) == len(TABLE)
    for weights in TABLE:
        assert all(url.startswith("https://") for url in addresses(weights))
        assert {Path(url).name for url in addresses(weights)} <= set(file_names(weights))
        assert weights.url.endswith(f"/{weights.file}")
        assert weights.sha256 == "unknown" or len(bytes.fromhex(weights.sha256)) == 32
        assert weights.licence and weights.purpose
    assert {weights.name for weights in priors.PUBLISHED} <= set(PRIORS)
    own = (*weights_table.LPIPS, *weights_table.FACEXLIB)
    listed = (*priors.PUBLISHED, *priors.DIFFBIR, *priors.CLEANERS, *restorers.PUBLISHED, restorers.SWINIR_FACE, *own)
    rows = {dataclasses.astuple(weights) for weights in listed}
    assert rows == {dataclasses.astuple(weights) for weights in TABLE}  # what both packages list, they list alike


def test_both_packages_describe_and_keep_weights_alike(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ours, theirs = (dataclasses.fields(module.PublishedWeights) for module in (priors, restorers))
    assert [(f.name, f.type, f.default) for f in ours] == [(f.name, f.type, f.default) for f in theirs]
    assert priors.cache_folder() == restorers.cache_folder()
    monkeypatch.delenv("ADAPT_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert priors.cache_folder() == restorers.cache_folder() == tmp_path / "adapt" / "weights"


def test_fetch_puts_the_whole_file_in_place_once(server: Server, cache: Path) -> None:
    path = fetch_weights(row(server.url), quiet)
    assert path == cache / "tiny.safetensors"
    assert path.read_bytes() == CONTENT
    assert not list(cache.glob("*.part")) + list(cache.glob("*.tag"))
    fetch_weights(row(server.url), quiet)
    assert server.ranges == [None]


def test_a_cut_download_goes_on_where_it_stopped(server: Server) -> None:
    server.cuts = 2
    assert fetch_weights(row(server.url), quiet).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=60000-", "bytes=120000-"]


def test_a_later_call_goes_on_where_an_earlier_one_gave_up(
    server: Server, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adapt.download.ATTEMPTS", 1)
    server.cuts = 1
    with pytest.raises(AdaptError, match="bytes are missing"):
        fetch_weights(row(server.url), quiet)
    assert not (cache / "tiny.safetensors").exists()
    assert (cache / "tiny.safetensors.part").stat().st_size == 60_000
    assert fetch_weights(row(server.url), quiet).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=60000-"]


def test_a_file_that_changed_meanwhile_is_fetched_anew(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapt.download.ATTEMPTS", 1)
    server.cuts = 1
    with pytest.raises(AdaptError):
        fetch_weights(row(server.url), quiet)
    server.etag = '"two"'
    assert fetch_weights(row(server.url), quiet).read_bytes() == CONTENT


def test_a_part_longer_than_the_file_is_dropped(server: Server, cache: Path) -> None:
    cache.mkdir(parents=True)
    (cache / "tiny.safetensors.part").write_bytes(b"x" * (len(CONTENT) + 1))
    (cache / "tiny.safetensors.tag").write_text(f"{server.etag}\n{server.url}\n")
    assert fetch_weights(row(server.url), quiet).read_bytes() == CONTENT


def test_a_whole_file_whose_check_was_cut_is_not_fetched_again(server: Server, cache: Path) -> None:
    def cut(_: Path) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        download(server.url, cache / "tiny.safetensors", cut)
    server.ranges.clear()
    download(server.url, cache / "tiny.safetensors", lambda _: None)
    assert (cache / "tiny.safetensors").read_bytes() == CONTENT
    assert server.ranges == [f"bytes={len(CONTENT)}-"] and not list(cache.glob("*.tag"))


def test_a_wrong_hash_is_refused_and_nothing_is_kept(server: Server, cache: Path) -> None:
    with pytest.raises(AdaptError, match=f"sha256 {DIGEST}, expected {'0' * 64}"):
        fetch_weights(row(server.url, "0" * 64), quiet)
    assert not [path for path in cache.iterdir() if path.suffix != ".lock"]


def test_a_download_goes_through_the_proxy_of_the_environment(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("urllib.request._opener", None)  # the first download of a process reads the environment
    monkeypatch.setenv("http_proxy", server.url.rpartition("/")[0])
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    elsewhere = "http://weights.invalid/tiny.safetensors"
    assert fetch_weights(row(elsewhere), quiet).read_bytes() == CONTENT
    assert server.asked == [elsewhere]


@pytest.mark.parametrize(
    ("load", "weights"),
    [
        *((partial(load_restorer, weights.name), weights) for weights in restorers.PUBLISHED if weights.commercial),
        (load_ffhq512, priors.FFHQ512),
        (partial(load_prior, "diffbir-v2.1"), priors.SD21_ZSNR),
        (partial(load_diffbir_cleaner, "diffbir-v2.1"), priors.SWINIR_FACE),
        (partial(load_lpips, torch.device("cpu")), weights_table.VGG16),
        (partial(load_net, torch.nn.Identity, "parsing_parsenet.pth"), weights_table.FACEXLIB[1]),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_loader_names_the_file_its_place_and_how_to_bring_it(load, weights, cache: Path) -> None:
    with pytest.raises((ZooError, priors.WeightsError, AdaptError)) as caught:
        load()
    message = str(caught.value)
    assert "\n" not in message and weights.file in message
    assert "adapt weights fetch " in message and "adapt weights import " in message
    assert str(weights_table.place_of(weights).parent) in message


def test_offline_is_one_line_with_file_place_and_import(cache: Path) -> None:
    url = dead_url()
    with pytest.raises(AdaptError) as caught:
        fetch_weights(row(url), quiet)
    message = str(caught.value)
    assert "\n" not in message
    assert "no connection" in message and url in message
    assert str(cache / "tiny.safetensors") in message
    assert "adapt weights import tiny.safetensors" in message


def test_a_refusal_of_the_server_is_named(server: Server) -> None:
    server.content = b""
    with pytest.raises(AdaptError, match="the server answered 416"):
        fetch_weights(row(server.url), quiet)


class Payload:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.folder),)


def test_a_pickle_with_code_is_refused_and_not_run(server: Server, tmp_path: Path, cache: Path) -> None:
    bad, made = tmp_path / "bad.pth", tmp_path / "made"
    torch.save({"weight": Payload(made)}, bad)
    server.content = bad.read_bytes()
    weights = row(server.url, "unknown", "bad.pth")
    for action in (lambda: fetch_weights(weights, quiet), lambda: import_weights(bad, weights, (weights,), quiet)):
        with pytest.raises(AdaptError, match="holds code") as caught:
            action()
        assert "\n" not in str(caught.value)
    assert not made.exists() and not (cache / "bad.pth").exists()


def test_import_tells_a_file_by_name_by_hash_or_by_what_is_said(tmp_path: Path, cache: Path) -> None:
    weights = row("https://example.org/tiny.safetensors")
    for name in ("tiny.safetensors", "renamed.safetensors"):
        source = tmp_path / name
        source.write_bytes(CONTENT)
        assert import_weights(source, None, (weights,), quiet) == cache / "tiny.safetensors"
        assert (cache / "tiny.safetensors").read_bytes() == CONTENT
        (cache / "tiny.safetensors").unlink()
    other = tmp_path / "other.safetensors"
    other.write_bytes(save({"weight": torch.zeros(3)}))
    with pytest.raises(UsageError, match="--as NAME, one of tiny"):
        import_weights(other, None, (weights,), quiet)
    with pytest.raises(AdaptError, match="sha256"):
        import_weights(other, weights, (weights,), quiet)
    with pytest.raises(AdaptError, match=f"bytes, expected {len(CONTENT)}"):
        import_weights(other, dataclasses.replace(weights, sha256="unknown"), (weights,), quiet)
    import_weights(other, dataclasses.replace(weights, sha256="unknown", size=0), (weights,), quiet)
    with pytest.raises(UsageError, match="no such file"):
        import_weights(tmp_path / "nothing.pth", None, (weights,), quiet)


@pytest.mark.parametrize("known", [True, False])
def test_verify_finds_a_changed_file(tmp_path: Path, cache: Path, known: bool) -> None:
    weights = row("https://example.org/tiny.safetensors", DIGEST if known else "unknown")
    said: list[str] = []
    assert verify_weights([weights], said.append) == 0
    source = tmp_path / "tiny.safetensors"
    source.write_bytes(CONTENT)
    import_weights(source, None, (weights,), quiet)
    assert verify_weights([weights], said.append) == 0
    (cache / "tiny.safetensors").write_bytes(CONTENT[:-1] + b"?")
    assert verify_weights([weights], said.append) == 1
    assert [line.split(": ")[1] for line in said[:2]] == ["not here", "as published" if known else "unchanged"]
    assert "expected" in said[2]


def test_list_shows_licence_address_and_what_is_here(capsys: pytest.CaptureFixture[str]) -> None:
    said: list[str] = []
    list_weights(TABLE, said.append)
    text = "\n".join(said)
    for weights in TABLE:
        assert all(url in text for url in addresses(weights))
        assert f"sha256 {weights.sha256}; kept as {weights.folder}/{weights.file}" in text and weights.licence in text
    assert main(["weights", "list"]) == 0
    assert "ffhq512" in capsys.readouterr().out


def test_the_command_answers_mistakes_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert main(["weights", "fetch", "ffhq"]) == 2
    assert "unknown, expected one of" in capsys.readouterr().err
    monkeypatch.setattr(weights_table, "TABLE", (row(dead_url()),))
    assert main(["weights", "fetch", "tiny"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("adapt: ") and error.count("\n") == 1
    assert main(["weights", "import", str(tmp_path / "none.pth")]) == 2
