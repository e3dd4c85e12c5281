"""`adapt weights list|fetch|verify|import`: published weights in the user's cache, never inside the package."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from adapt.download import PlaceError, download, forget, is_begun, matches
from adapt.errors import AdaptError, UsageError, printable
from adapt.weights_table import (
    SETS,
    TABLE,
    Weights,
    addresses,
    cache_root,
    chosen,
    file_names,
    file_of,
    place_for,
    place_of,
)
from adapt.workspace import write_text
from restorers.downloads import record_of
from restorers.files import atomic_file, sha256_of

Say = Callable[[str], None]
LONGEST = 600
"""Characters of a message that names tensors; another network's file would fill a screen with them."""
EPILOG = """\
examples:
  adapt weights list
  adapt weights fetch diffbir-v2.1
  adapt weights fetch gfpgan-v1.4 swinir-face
  adapt weights import ~/Downloads/codeformer.pth
  adapt weights verify

Files lie in $ADAPT_CACHE (default $XDG_CACHE_HOME/adapt or ~/.cache/adapt): those of DiffBIR in `diffbir` there, of
LPIPS in `lpips`, of facexlib in `facexlib`, all others in `weights`. The name of a DiffBIR prior, sd21-tokenizer,
lpips-vgg and facexlib stand for several files. `adapt regenerate` also needs a prior's stages 1: swinir-face and
swinir-realesrgan for diffbir-v2.1, bsrnet or scunet in place of the second for diffbir-v2, swinir for
diffbir-v1-general. A fetch that was cut goes on where it stopped."""


def weights_command(given: list[str]) -> int:
    """`adapt weights ...`; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="adapt weights",
        description="Published weights of priors, restorers and LPIPS: lists, fetches, checks and imports them.",
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
        for weights in chosen(options.names):
            fetch_weights(weights, print)
        return 0
    if options.action == "verify":
        return verify_weights(chosen(options.names) or TABLE, print)
    rows = TABLE if options.name is None else chosen([options.name])
    if options.name is not None and len(rows) > 1:
        raise UsageError(f"--as {options.name}: is several files, expected one of {', '.join(w.name for w in rows)}")
    import_weights(options.file, None if options.name is None else rows[0], TABLE, print)
    return 0


def list_weights(table: Sequence[Weights], say: Say) -> int:
    """A few lines for each row, with every address; returns 0."""
    width = max(len(weights.name) for weights in table)
    for weights in table:
        size = f"{weights.size / 1e6:.0f} MB" if weights.size else "? MB"
        state = "not here" if file_of(weights) is None else "here"
        terms = weights.licence if weights.commercial else f"{weights.licence}, non-commercial"
        say(f"{weights.name:{width}} {state:9} {size:>7}  {terms}; {weights.purpose}")
        for url in addresses(weights):
            say(f"{'':{width}} {url}")
        say(f"{'':{width}} sha256 {weights.sha256}; kept as {weights.folder}/{weights.file}")
    for name, rows in SETS.items():
        say(f"{name:{width}} is {', '.join(weights.name for weights in rows)}")
    say(f"kept in {printable(cache_root())}")
    return 0


def fetch_weights(weights: Weights, say: Say) -> Path:
    """Downloads a file into the cache unless it is there; returns its path.

    The addresses are asked in order; one from which a part has arrived goes first.

    Raises:
        AdaptError: none can be reached or holds the file, or it cannot be written; the message says what to do.
    """
    here = file_of(weights)
    if here is not None:
        say(f"{weights.name}: here already, {printable(here)}")
        return here
    if not weights.commercial:
        say(f"{weights.name}: licence {weights.licence}, not for commercial use")
    faults = []
    for url in sorted(addresses(weights), key=lambda url: not is_begun(url, place_for(weights, url))):
        path = place_for(weights, url)
        try:
            download(url, path, partial(_check, weights=weights, path=path), _progress(path.name))
        except PlaceError:
            raise
        except AdaptError as error:
            faults.append(f"{url} ({error})")
            continue
        for other in {place_for(weights, url) for url in addresses(weights)} - {path}:
            forget(other)
        _record(path)
        say(f"{weights.name}: fetched from {url}, {printable(path)}")
        return path
    raise AdaptError(
        f"{weights.file} could not be fetched from {', nor from '.join(faults)}: fetch it on another machine, then "
        f"`adapt weights import {weights.file}`, or put it at {printable(place_of(weights))}"
    )


def import_weights(file: Path, weights: Weights | None, table: Sequence[Weights], say: Say) -> Path:
    """Copies a file into the cache under its published name; returns the new path.

    Raises:
        UsageError: there is no such file, or nothing in the table is called so or has this hash.
        AdaptError: its hash is wrong, it holds code, or other tensors than it should.
    """
    if not file.is_file():
        raise UsageError(f"{printable(file)}: no such file")
    if weights is None:
        weights = _recognised(file, table)
    path = place_of(weights)
    if file.suffix == ".safetensors" != path.suffix and len(file_names(weights)) > 1:
        path = path.with_suffix(".safetensors")
    _check(file, weights, path)
    try:
        with atomic_file(path) as temporary:
            shutil.copyfile(file, temporary)
    except OSError as error:
        raise AdaptError(f"{printable(path)}: cannot be written ({error.strerror}); set ADAPT_CACHE") from error
    _record(path)
    say(f"{weights.name}: imported, {printable(path)}")
    used = file_of(weights)
    if used is not None and used != path:
        say(f"{weights.name}: {printable(used)} is read in its place; delete the one you do not want")
    return path


def verify_weights(table: Sequence[Weights], say: Say) -> int:
    """Compares every file that is here with its hash; returns 1 when one is not what it should be.

    Where no hash is published, the one from the day the file came into the cache is taken, and the names and shapes of
    its tensors must be those of its network.
    """
    wrong = 0
    for weights in table:
        path = file_of(weights)
        if path is None:
            say(f"{weights.name}: not here")
            continue
        try:
            say(f"{weights.name}: {_verified(path, weights)}")
        except AdaptError as error:
            wrong += 1
            say(f"{weights.name}: {error}: delete {printable(path)} and fetch it again")
    return 1 if wrong else 0


def _verified(path: Path, weights: Weights) -> str:
    """What is known of a file in the cache.

    Raises:
        AdaptError: it is not what it should be.
    """
    record = record_of(path)
    published = weights.sha256 if path.name == weights.file else "unknown"
    kept = record.read_text(encoding="utf-8").strip() if record.is_file() else "unknown"
    expected, digest = kept if published == "unknown" else published, sha256_of(path)
    if expected not in ("unknown", digest):
        raise AdaptError(f"sha256 {digest}, expected {expected}")
    if published != "unknown":
        return "as published"
    known = f"sha256 {digest}; no hash is known to compare it with" if expected == "unknown" else "unchanged"
    fits = _fitting(path, weights, path.suffix) or _fitting_restorer(weights)
    return "; ".join(filter(None, (known, fits)))


def _check(arrived: Path, weights: Weights, path: Path) -> None:
    """Refuses a file, meant for `path`, of another size or hash, with code in it, or with the tensors of another."""
    if path.name == weights.file:
        if weights.sha256 != "unknown":
            matches(path, weights.sha256)(arrived)
        size = arrived.stat().st_size
        if weights.size not in (0, size):
            raise AdaptError(f"{path.name}: {size} bytes, expected {weights.size}; it was not kept")
    _fitting(arrived, weights, path.suffix)


def _fitting(path: Path, weights: Weights, suffix: str) -> str:
    """What names and shapes of the tensors say, on one short line; "" where nothing is known of them."""
    from adapt.lpips import check_part
    from pseudo_targets.downloads import WeightsError
    from pseudo_targets.layouts import FITS, check_layout

    try:
        return FITS if check_part(weights.name, path, suffix) else check_layout(weights.name, path, suffix)
    except WeightsError as error:
        text = str(error)
        raise AdaptError(text if len(text) < LONGEST else f"{text[:LONGEST]} ...") from error


def _fitting_restorer(weights: Weights) -> str:
    """What loading a restorer from the cache, as a run would, says of its file; "" for what is no restorer."""
    from restorers.zoo import RESTORERS, ZooError

    if weights.name not in RESTORERS:
        return ""
    if find_spec("spandrel") is None or (weights.name == "femasr" and find_spec("spandrel_extra_arches") is None):
        return "its network is not checked without spandrel and, for some, spandrel-extra-arches"
    try:
        RESTORERS[weights.name]()
    except ZooError as error:
        raise AdaptError(str(error)) from error
    return "is the network it should be"


def _recognised(file: Path, table: Sequence[Weights]) -> Weights:
    for weights in table:
        if file.name in file_names(weights):
            return weights
    digest = sha256_of(file)
    for weights in table:
        if weights.sha256 == digest:
            return weights
    names = ", ".join(f"{weights.name} ({weights.file})" for weights in table)
    raise UsageError(f"{printable(file)}: not known by name or hash; say what it is with --as NAME, one of {names}")


def _record(path: Path) -> None:
    write_text(record_of(path), sha256_of(path) + "\n")


def _progress(file: str) -> Callable[[int, int], None] | None:
    """A line that is written over, on a terminal only."""
    if not sys.stderr.isatty():
        return None

    def show(here: int, total: int) -> None:
        share = f" of {total / 1e6:.0f}" if total else ""
        print(f"\r{file}: {here / 1e6:.0f}{share} MB", end="\n" if here == total else "", file=sys.stderr, flush=True)

    return show
