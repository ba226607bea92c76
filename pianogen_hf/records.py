"""What is written down beside models and data: figures as JSON, and the command that made them."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

from pianogen_hf.errors import FileError, one_line
from pianogen_hf.tokenizers.files import write_whole

_NEEDED: Any = object()


def read_json(path: Path, default: Any = _NEEDED) -> Any:
    """What a JSON file holds.

    Args:
        path: the file.
        default: what is given where there is no such file; without it there must be one.

    Raises:
        FileError: if it can't be read, or is no JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        if default is not _NEEDED:
            return default
        raise FileError(f"{path}: {error.strerror}") from error
    except (OSError, ValueError) as error:
        raise FileError(f"{path} can't be read: {one_line(error)}") from error


def write_json(path: Path, value: Any) -> None:
    """Write figures or reports, whole or not at all, in a form that can be compared by line."""
    write_whole(path, (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode())


def change_in_words(change: dict[str, Any]) -> str:
    """A change of options at a step of a run, as one says it: learning_rate 1e-05 (before 0.0003)."""
    values = {name: value for name, value in change.items() if name != "step"}
    return ", ".join(f"{name} {new} (before {old})" for name, (old, new) in values.items())


def recorded(program: str, argv: list[str]) -> str:
    """A command as metrics.json and cards tell it: they are published, so of absolute paths only the end is told."""
    return shlex.join([program, *map(without_place, argv)])


def without_place(text: str) -> str:
    """The same without where on this machine it lies: folder=/Users/me/midi becomes folder=.../midi."""
    return re.sub(r"(^|=)(?:[A-Za-z]:)?[\\/](?:[^=]*[\\/])?(?=[^\\/=]+[\\/]?$)", r"\1.../", text)
