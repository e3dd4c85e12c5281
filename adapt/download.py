"""One file over http(s): resumed where it was cut, checked, and in place whole or not at all.

Proxies are taken from the environment (`HTTPS_PROXY`, `NO_PROXY`), as urllib reads them.
"""

from __future__ import annotations

import errno
import http.client
import os
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

from adapt.errors import AdaptError
from restorers.files import sha256_of

BLOCK = 1 << 20
ATTEMPTS = 5
"""How often a cut connection is taken up again within one call."""
SECONDS = 30.0
"""How long a silent server is waited for."""
DISK = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
Progress = Callable[[int, int], None]
"""(bytes that are here, bytes in all or 0) -> None."""


class DownloadError(AdaptError):
    """A file could not be fetched; what has arrived is kept and the next call goes on from there."""


class PlaceError(AdaptError):
    """A file cannot be put where it belongs, wherever it is fetched from."""


def download(url: str, path: Path, check: Callable[[Path], None], progress: Progress | None = None) -> None:
    """Fetches `url` to `path`; a `.part` file beside it holds what has arrived until `check` has passed it.

    Args:
        check: raises when the complete file must not be kept; it is then removed.

    Raises:
        DownloadError: no connection, a refusal, or a connection that keeps breaking.
        PlaceError: another process is at the same file, or the disk refuses it.
        AdaptError: raised by `check`.
    """
    part, tag = _part(path), _tag(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(path.with_name(path.name + ".lock"), timeout=0):
            _fetch_all(url, part, tag, progress)
            try:
                check(part)
            except AdaptError:
                part.unlink()
                tag.unlink(missing_ok=True)
                raise
            part.replace(path)
            tag.unlink(missing_ok=True)
    except Timeout as error:
        raise PlaceError(f"{path}: another process is fetching it; wait for it to end") from error
    except (urllib.error.URLError, http.client.HTTPException) as error:
        raise DownloadError(_reason(error)) from error
    except OSError as error:
        if error.filename is not None or error.errno in DISK:
            raise PlaceError(f"{path}: cannot be written ({error.strerror}); set ADAPT_CACHE") from error
        raise DownloadError(_reason(error)) from error


def is_begun(url: str, path: Path) -> bool:
    """Whether a `download` from `url` to `path` was cut and can go on."""
    return _part(path).is_file() and _version(_tag(path), url) != ""


def forget(path: Path) -> None:
    """Removes what a `download` to `path` that was cut has left."""
    for left in (_part(path), _tag(path)):
        left.unlink(missing_ok=True)


def _part(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def _tag(path: Path) -> Path:
    """Names the version of the file that the part is a piece of, and where it came from, each on a line."""
    return path.with_name(path.name + ".tag")


def _version(tag: Path, url: str) -> str:
    """The version that the part has at `url`; "" when it came from elsewhere, where versions are named otherwise."""
    version, _, origin = tag.read_text(encoding="utf-8").partition("\n") if tag.is_file() else ("", "", "")
    return version if origin.strip() == url else ""


def _fetch_all(url: str, part: Path, tag: Path, progress: Progress | None) -> None:
    """Goes on until the file is complete; a cut that brought nothing new ends the attempts."""
    for attempt in range(ATTEMPTS):
        before = part.stat().st_size if part.exists() else 0
        total = _fetch_rest(url, part, tag, progress)
        here = part.stat().st_size
        if here == total or total == 0:
            return
        if attempt + 1 == ATTEMPTS or here <= before:
            break
    raise http.client.IncompleteRead(b"", total - here)


def _fetch_rest(url: str, part: Path, tag: Path, progress: Progress | None) -> int:
    """Appends what is missing, as far as the connection holds; returns the size of the whole file, 0 when unknown."""
    opened = _opened(url, part, tag)
    if opened is None:
        return part.stat().st_size
    with opened as response:
        resumed = response.status == http.client.PARTIAL_CONTENT
        here = part.stat().st_size if resumed else 0
        if resumed and not response.headers.get("Content-Range", "").startswith(f"bytes {here}-"):
            raise http.client.HTTPException(f"asked for the bytes from {here} on and got others")
        length = response.headers.get("Content-Length")
        total = here + int(length) if length else 0
        version = response.headers.get("ETag") or response.headers.get("Last-Modified") or ""
        tag.write_text(f"{version}\n{url}\n", encoding="utf-8")
        with part.open("ab" if resumed else "wb") as file:
            try:
                while block := response.read(BLOCK):
                    file.write(block)
                    here += len(block)
                    if progress is not None:
                        progress(here, total)
            except (http.client.IncompleteRead, ConnectionError, TimeoutError):
                if not total:
                    raise
            file.flush()
            os.fsync(file.fileno())
    return total


def _opened(url: str, part: Path, tag: Path) -> http.client.HTTPResponse | None:
    """Asks for the rest if it is known to be the same file (`If-Range`), else for all; None if nothing is missing."""
    request = urllib.request.Request(url, headers={"User-Agent": "adapt", "Accept-Encoding": "identity"})
    version = _version(tag, url)
    if part.exists() and part.stat().st_size and version and not version.startswith("W/"):
        request.add_header("Range", f"bytes={part.stat().st_size}-")
        request.add_header("If-Range", version)
    try:
        response: http.client.HTTPResponse = urllib.request.urlopen(request, timeout=SECONDS)
    except urllib.error.HTTPError as error:
        if error.code != http.client.REQUESTED_RANGE_NOT_SATISFIABLE or not request.has_header("Range"):
            raise
        error.close()
        if error.headers.get("Content-Range") == f"bytes */{part.stat().st_size}":  # cut while it was checked
            return None
        part.unlink()  # longer than the file: not a piece of it
        return _opened(url, part, tag)
    return response


def matches(path: Path, sha256: str) -> Callable[[Path], None]:
    """A check for `download`: refuses a file whose hash is not `sha256`; `path` is what the message calls it."""

    def check(arrived: Path) -> None:
        found = sha256_of(arrived)
        if found != sha256:
            raise AdaptError(f"{path.name}: sha256 {found}, expected {sha256}; it was not kept")

    return check


def _reason(error: Exception) -> str:
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answered {error.code} {error.reason}"
    if isinstance(error, urllib.error.URLError):
        return f"no connection: {error.reason}"
    if isinstance(error, http.client.IncompleteRead):
        return f"the connection breaks, {error.expected} bytes are missing"
    return str(error) or type(error).__name__
