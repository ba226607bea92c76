"""What the commands have in common: a parser whose mistakes are one line, and options that several of them take."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from pianogen_hf.errors import UsageError
from pianogen_hf.folders import CACHE_DIR, check_writable
from pianogen_hf.training.recipe import read_yaml

_SHOWN_UNUSABLE = 20  # files that fit on a screen


class OneLineParser(argparse.ArgumentParser):
    """A parser whose errors are one line and a `UsageError`, not a page of usage."""

    def error(self, message: str) -> NoReturn:
        """Raise what the command prints."""
        raise UsageError(f"{message} (see {self.prog} --help)")


# Options -------------------------------------------------------------------------------------------------------------


DESTINATION_OPTIONS = ("private", "revision", "create_pr", "message", "token", "timeout")


def add_destination_options(parser: argparse.ArgumentParser, message: str) -> None:
    """Options of whatever is pushed; `message` is what the commit is called by default."""
    add = parser.add_argument
    add("--private", action="store_true", help="make it private; refused if it exists and is public")
    add("--revision", metavar="BRANCH", help="push to this branch, made if it is not there (default: main)")
    add("--create_pr", action="store_true", help="open a pull request; needs no right to write there")
    add("--message", default=message, help="what the commit is called (default: %(default)s)")
    add("--token", help="access token, instead of that of `hf auth login` or HF_TOKEN")
    add("--timeout", type=float, default=60.0, metavar="SECONDS", help="how long to wait for an answer (default: 60)")


def check_destination(args: argparse.Namespace) -> None:
    """Refuse what `add_destination_options` took and no push can mean.

    Raises:
        UsageError: with the option.
    """
    if not 0 < args.timeout <= 3600:
        raise UsageError("--timeout must be more than 0 and at most 3600 seconds")
    if args.create_pr and args.revision not in (None, "main"):
        raise UsageError("--create_pr asks for a change of main: leave out --revision")
    if not args.message.strip():
        raise UsageError("--message must say something")


def add_cache_dir(parser: argparse.ArgumentParser) -> None:
    """The option of commands that read what train.py has read."""
    parser.add_argument(
        "--cache_dir", default=CACHE_DIR, help="where train.py keeps what it read (default: %(default)s)"
    )


def check_folders_of_training(argv: Sequence[str], *, output_dir: bool = False) -> None:
    """Refuse folders that can't be written, among options that else are for `parse_arguments`, which brings in torch.

    Args:
        argv: `[CONFIG.yaml] [--option value ...]`.
        output_dir: whether that of training is written to, besides the cache.

    Raises:
        FileError: with the option. ArgumentError: if the YAML file can't be read.
    """
    if not {"-h", "--help"}.isdisjoint(argv):
        return
    folders = {"cache_dir": CACHE_DIR} | ({"output_dir": "runs/model"} if output_dir else {})
    config = read_yaml(argv[0]) if argv and Path(argv[0]).suffix in (".yaml", ".yml") else {}
    parser = OneLineParser(prog="train.py", add_help=False, allow_abbrev=False)
    for name, folder in folders.items():
        parser.add_argument(f"--{name}", default=config.get(name) or folder)
    for name, folder in vars(parser.parse_known_args(argv)[0]).items():
        check_writable(str(folder), f"--{name}")


def count(text: str) -> int:
    """A number such as 5M, 300k or 20_000."""
    match = re.fullmatch(r"(\d[\d_]*(?:\.\d+)?)([kMG]?)", text.strip())
    value = float(match[1].replace("_", "")) * {"": 1, "k": 1e3, "M": 1e6, "G": 1e9}[match[2]] if match else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a number such as 5M or 300k, got {text!r}")
    return round(value)


def positive(text: str) -> int:
    """A whole number of at least 1."""
    return _at_least(text, 1)


def not_negative(text: str) -> int:
    """A whole number of at least 0."""
    return _at_least(text, 0)


def _at_least(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}, got {text!r}")
    return value


def positive_float(text: str) -> float:
    """A finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be more than 0, got {text!r}")
    return value


# Words ---------------------------------------------------------------------------------------------------------------


def say_unusable(unusable: dict[str, str], where: str) -> None:
    """Name some of the files that can't be used, and the file that names them all."""
    for name, reason in list(unusable.items())[:_SHOWN_UNUSABLE]:
        print(f"left out: {name}: {reason}")
    if len(unusable) > _SHOWN_UNUSABLE:
        print(f"... and {len(unusable) - _SHOWN_UNUSABLE} more, all in {where}")
