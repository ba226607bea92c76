"""What the commands have in common: mistakes on the command line are one line and exit code 2."""

from __future__ import annotations

import argparse
import re
import shlex
from typing import NoReturn


class UsageError(ValueError):
    """An option that can't be used; the message is one line that says what to do."""


class OneLineParser(argparse.ArgumentParser):
    """A parser whose errors are one line and a `UsageError`, not a page of usage."""

    def error(self, message: str) -> NoReturn:
        """Raise what the command prints."""
        raise UsageError(f"{message} (see {self.prog} --help)")


def recorded(program: str, argv: list[str]) -> str:
    """A command as metrics.json and cards tell it: they are published, so of absolute paths only the end is told."""
    return shlex.join([program, *map(without_place, argv)])


def without_place(text: str) -> str:
    """The same without where on this machine it lies: folder=/Users/me/midi becomes folder=.../midi."""
    return re.sub(r"(^|=)(?:[A-Za-z]:)?[\\/](?:[^=]*[\\/])?(?=[^\\/=]+[\\/]?$)", r"\1.../", text)
