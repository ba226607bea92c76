"""What the commands have in common: mistakes on the command line are one line and exit code 2."""

from __future__ import annotations

import argparse
from typing import NoReturn


class UsageError(ValueError):
    """An option that can't be used; the message is one line that says what to do."""


class OneLineParser(argparse.ArgumentParser):
    """A parser whose errors are one line and a `UsageError`, not a page of usage."""

    def error(self, message: str) -> NoReturn:
        """Raise what the command prints."""
        raise UsageError(f"{message} (see {self.prog} --help)")
