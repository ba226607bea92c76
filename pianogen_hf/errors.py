"""Errors that a user can mend, of which every message is one line that says what to do.

All derive from `PianogenError`, and `reports_errors` turns them into the line and exit code 2. Here are those that
several folders raise; one that a single file raises stands in that file.
"""

from __future__ import annotations

import difflib
import errno
import functools
import os
import sys
from collections.abc import Callable, Collection
from typing import ParamSpec

from pianogen_hf.tokenizers.errors import FileError, PianogenError

__all__ = [
    "ArgumentError",
    "DataError",
    "FileError",
    "PianogenError",
    "UsageError",
    "did_you_mean",
    "one_line",
    "reports_errors",
]

_Options = ParamSpec("_Options")


class UsageError(PianogenError):
    """An option of a command that can't be used."""


class ArgumentError(PianogenError):
    """An argument, a recipe or a model that can't be used."""


class DataError(PianogenError):
    """Data that can't be used as asked."""


def one_line(error: BaseException) -> str:
    """The message of an error of another library, as one line."""
    return " ".join(str(error).split())[:300]


def did_you_mean(name: str, known: Collection[str], otherwise: str) -> str:
    """What an unknown name may have meant, to follow it in a message; `otherwise` where it resembles none."""
    near = difflib.get_close_matches(name, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; {otherwise}"


def reports_errors(interrupted: str | None = None) -> Callable[[Callable[_Options, int]], Callable[_Options, int]]:
    """Let a command end in one line and an exit code: 2 after an error that a user can mend, 130 after Ctrl-C.

    Args:
        interrupted: what holds after Ctrl-C, for example "nothing was written"; None where there is nothing to say.
    """

    def decorate(command: Callable[_Options, int]) -> Callable[_Options, int]:
        @functools.wraps(command)
        def run(*args: _Options.args, **kwargs: _Options.kwargs) -> int:
            try:
                return command(*args, **kwargs)
            except (PianogenError, OSError) as error:
                _say(f"error: {_line_of(error)}")
                return 2
            except KeyboardInterrupt:
                _say(f"interrupted: {interrupted}" if interrupted else "interrupted")
                return 130

        return run

    return decorate


def _say(line: str) -> None:
    """Print it to stderr; under a launcher all processes meet the same error, and one says so."""
    if os.environ.get("RANK", "0") == "0":
        print(line, file=sys.stderr)


def _line_of(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):  # whose name it has is no matter
        return f"{os.strerror(error.errno)}: make room, and repeat the command"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    return str(error) if isinstance(error, PianogenError) else one_line(error)
