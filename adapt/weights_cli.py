"""`adapt weights list|fetch|verify|import`: published weights in the user's cache, never inside the package."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from adapt.download import DownloadError, download, matches
from adapt.errors import AdaptError, UsageError
from adapt.photos import printable
from adapt.workspace import write_text
from pseudo_targets import downloads as priors
from restorers import downloads as restorers
from restorers.files import atomic_file, sha256_of

Say = Callable[[str], None]
EPILOG = """\
examples:
  adapt weights list
  adapt weights fetch ffhq512
  adapt weights import ~/Downloads/codeformer.pth
  adapt weights verify

Files lie in $ADAPT_CACHE/weights (default ~/.cache/adapt/weights). A fetch that was cut goes on where it stopped."""


class Weights(Protocol):
    """One row of the table; the fields are explained in `restorers.downloads.PublishedWeights`."""

    @property
    def name(self) -> str: ...
    @property
    def file(self) -> str: ...
    @property
    def purpose(self) -> str: ...
    @property
    def licence(self) -> str: ...
    @property
    def url(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def sha256(self) -> str: ...
    @property
    def commercial(self) -> bool: ...


def _joined(*rows: Weights) -> tuple[Weights, ...]:
    """Each name once: some files are both a restorer and stage 1 of a prior."""
    return tuple({weights.name: weights for weights in rows}.values())


TABLE = _joined(*priors.PUBLISHED, *priors.CLEANERS, *restorers.PUBLISHED)


def weights_command(given: list[str]) -> int:
    """`adapt weights ...`; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="adapt weights",
        description="Published weights of priors and restorers: lists, fetches, checks and imports them.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", required=True, metavar="list|fetch|verify|import")
    actions.add_parser("list", help="what there is, its licence, and what is here")
    fetch = actions.add_parser("fetch", help="download into the cache")
    fetch.add_argument("names", nargs="+", metavar="NAME")
    verify = actions.add_parser("verify", help="compare files in the cache with their hashes")
    verify.add_argument("names", nargs="*", metavar="NAME")
    bring = actions.add_parser("import", help="take a file that was downloaded by other means")
    bring.add_argument("file", type=Path, metavar="FILE")
    bring.add_argument("--as", dest="name", metavar="NAME", help="what it is (default: told by its file name or hash)")
    options = parser.parse_args(given)
    if options.action == "list":
        return list_weights(TABLE, print)
    if options.action == "fetch":
        for weights in [chosen(name) for name in options.names]:
            fetch_weights(weights, print)
        return 0
    if options.action == "verify":
        return verify_weights([chosen(name) for name in options.names] or TABLE, print)
    import_weights(options.file, None if options.name is None else chosen(options.name), TABLE, print)
    return 0


def chosen(name: str) -> Weights:
    """The row of `TABLE` with this name.

    Raises:
        UsageError: there is none.
    """
    for weights in TABLE:
        if weights.name == name:
            return weights
    raise UsageError(f"weights {name!r}: unknown, expected one of {', '.join(weights.name for weights in TABLE)}")


def place_of(weights: Weights) -> Path:
    """Where its file belongs, whether it is there or not."""
    return restorers.cache_folder() / weights.file


def list_weights(table: tuple[Weights, ...], say: Say) -> int:
    """One line for each row; returns 0."""
    for weights in table:
        size = f"{weights.size / 1e6:.0f} MB" if weights.size else "? MB"
        state = "here" if place_of(weights).is_file() else "not here"
        terms = weights.licence if weights.commercial else f"{weights.licence}, non-commercial"
        say(f"{weights.name:20} {state:9} {size:>7}  {terms}; {weights.purpose}")
        say(f"{'':20} {weights.url}")
        say(f"{'':20} sha256 {weights.sha256}")
    say(f"kept in {printable(restorers.cache_folder())}")
    return 0


def fetch_weights(weights: Weights, say: Say) -> Path:
    """Downloads a file into the cache unless it is there; returns its path.

    Raises:
        AdaptError: it cannot be reached, its hash is wrong, or it holds code; the message says what to do.
    """
    path = place_of(weights)
    if path.is_file():
        say(f"{weights.name}: here already, {printable(path)}")
        return path
    if not weights.commercial:
        say(f"{weights.name}: licence {weights.licence}, not for commercial use")
    try:
        download(weights.url, path, lambda arrived: _check(arrived, weights), _progress(weights.file))
    except DownloadError as error:
        raise AdaptError(
            f"{weights.file} could not be fetched from {weights.url} ({error}): fetch it on another machine, then "
            f"`adapt weights import {weights.file}`, or put it at {printable(path)}"
        ) from error
    _record(path)
    say(f"{weights.name}: fetched, {printable(path)}")
    return path


def import_weights(file: Path, weights: Weights | None, table: tuple[Weights, ...], say: Say) -> Path:
    """Copies a file into the cache under its published name; returns the new path.

    Raises:
        UsageError: there is no such file, or nothing in the table is called so or has this hash.
        AdaptError: its hash is wrong, or it holds code.
    """
    if not file.is_file():
        raise UsageError(f"{printable(file)}: no such file")
    if weights is None:
        weights = _recognised(file, table)
    _check(file, weights)
    path = place_of(weights)
    try:
        with atomic_file(path) as temporary:
            shutil.copyfile(file, temporary)
    except OSError as error:
        raise AdaptError(f"{printable(path)}: cannot be written ({error.strerror}); set ADAPT_CACHE") from error
    _record(path)
    say(f"{weights.name}: imported, {printable(path)}")
    return path


def verify_weights(table: list[Weights] | tuple[Weights, ...], say: Say) -> int:
    """Compares every file that is here with its hash; returns 1 when one differs.

    Where no hash is published, the one from the day the file came into the cache is taken.
    """
    wrong = 0
    for weights in table:
        path = place_of(weights)
        if not path.is_file():
            say(f"{weights.name}: not here")
            continue
        record = restorers.record_of(path)
        kept = record.read_text(encoding="utf-8").strip() if record.is_file() else "unknown"
        expected = weights.sha256 if weights.sha256 != "unknown" else kept
        found = sha256_of(path)
        if expected == "unknown":
            say(f"{weights.name}: sha256 {found}; no hash is known to compare it with")
        elif found == expected:
            say(f"{weights.name}: as published" if weights.sha256 != "unknown" else f"{weights.name}: unchanged")
        else:
            wrong += 1
            say(f"{weights.name}: sha256 {found}, expected {expected}: delete {printable(path)} and fetch it again")
    return 1 if wrong else 0


def _check(path: Path, weights: Weights) -> None:
    """Refuses a file of another hash, and one that is more than tensors."""
    from pseudo_targets.checkpoints import CheckpointError, read_checkpoint

    if weights.sha256 != "unknown":
        matches(Path(weights.file), weights.sha256)(path)
    try:
        read_checkpoint(path, Path(weights.file).suffix)
    except CheckpointError as error:
        raise AdaptError(str(error)) from error


def _recognised(file: Path, table: tuple[Weights, ...]) -> Weights:
    for weights in table:
        if weights.file == file.name:
            return weights
    digest = sha256_of(file)
    for weights in table:
        if weights.sha256 == digest:
            return weights
    names = ", ".join(f"{weights.name} ({weights.file})" for weights in table)
    raise UsageError(f"{printable(file)}: not known by name or hash; say what it is with --as NAME, one of {names}")


def _record(path: Path) -> None:
    write_text(restorers.record_of(path), sha256_of(path) + "\n")


def _progress(file: str) -> Callable[[int, int], None] | None:
    """A line that is written over, on a terminal only."""
    if not sys.stderr.isatty():
        return None

    def show(here: int, total: int) -> None:
        share = f" of {total / 1e6:.0f}" if total else ""
        print(f"\r{file}: {here / 1e6:.0f}{share} MB", end="\n" if here == total else "", file=sys.stderr, flush=True)

    return show
