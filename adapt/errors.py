"""Errors that a user can act on, and the paths they name."""

from __future__ import annotations

import os
from pathlib import Path


class AdaptError(Exception):
    """A job failed for a reason the user can act on; the message is one line: what, got, expected, what to do.

    `adapt` prints it without a traceback and exits with code 1.
    """


class UsageError(AdaptError):
    """The command itself cannot be carried out as given; `adapt` exits with code 2."""


def printable(path: Path | str) -> str:
    """A path as one line of valid UTF-8 text: undecodable bytes and control characters appear as escapes."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
