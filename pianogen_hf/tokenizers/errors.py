"""The root of the errors that a user can mend. It stands here because these files travel in checkpoints."""

from __future__ import annotations


class PianogenError(ValueError):
    """What a user can mend; the message is one line that says what to do."""


class FileError(PianogenError):
    """A file that can't be read or written."""
