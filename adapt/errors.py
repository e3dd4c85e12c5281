"""Errors that a user can act on."""


class AdaptError(Exception):
    """A job failed for a reason the user can act on; the message is one line: what, got, expected, what to do.

    `adapt` prints it without a traceback and exits with code 1.
    """


class UsageError(AdaptError):
    """The command itself cannot be carried out as given; `adapt` exits with code 2."""
