"""Errors that a user can mend, of which every message is one line that says what to do.

All derive from `PianogenError`, and a command prints the line and ends with exit code 2. Here are those that several
folders raise; one that a single file raises stands in that file.
"""

from __future__ import annotations

from pianogen_hf.tokenizers.errors import FileError, PianogenError

__all__ = ["ArgumentError", "DataError", "FileError", "PianogenError", "UsageError", "one_line"]


class UsageError(PianogenError):
    """An option of a command that can't be used."""


class ArgumentError(PianogenError):
    """An argument, a recipe or a model that can't be used."""


class DataError(PianogenError):
    """Data that can't be used as asked."""


def one_line(error: BaseException) -> str:
    """The message of an error of another library, as one line."""
    return " ".join(str(error).split())[:300]
