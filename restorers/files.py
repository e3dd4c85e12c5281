"""Files that are either complete or absent."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Yields a temporary file beside `path` and, when the block succeeds, puts it in place in one step.

    Missing folders are made. When the block fails, `path` is left as it was and the temporary file is removed.

    Raises:
        OSError: the folder or the file cannot be made, or the disk refuses.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".tmp-{uuid.uuid4().hex}{path.suffix}"
    temporary.touch(exist_ok=False)
    mode = temporary.stat().st_mode  # what the umask gives; safetensors makes files that only their owner can read
    try:
        yield temporary
        with temporary.open("r+b") as written:
            os.fsync(written.fileno())
        temporary.chmod(mode)
        temporary.replace(path)
    finally:
        with suppress(OSError):  # it is in place already, or the error that is under way says more
            temporary.unlink()


def sha256_of(path: Path) -> str:
    """Hash of a file's bytes, in hexadecimal, read piece by piece."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
