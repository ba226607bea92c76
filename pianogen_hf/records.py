"""What is written down beside models and data: figures as JSON, the command that made them, and both as text."""

from __future__ import annotations

import json
import math
import re
import shlex
from pathlib import Path
from typing import Any

from pianogen_hf.errors import FileError, one_line
from pianogen_hf.tokenizers.files import write_whole

NOT_MEASURED, NOT_RECORDED = "not measured", "not recorded"
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


def read_map(path: Path) -> dict[str, Any]:
    """What a JSON file holds that must be a map; empty where there is no such file.

    Raises:
        FileError: if it can't be read, or holds something else.
    """
    value = read_json(path, default={})
    if not isinstance(value, dict):
        raise FileError(f"{path} must hold a JSON map")
    return value


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


def code(value: Any) -> str:
    """Any name as code on one line: file names may hold what Markdown or HTML takes for its own."""
    return f"`{' '.join(str(value).replace('`', chr(39)).split())}`"


def number(value: Any) -> float | None:
    """The value, if it is a number that can have been measured."""
    is_measured = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return value if is_measured else None


def fixed(value: Any, digits: int) -> str:
    """With so many digits after the point."""
    return NOT_MEASURED if number(value) is None else f"{value:.{digits}f}"


def digits(value: Any) -> str:
    """A whole number."""
    return NOT_MEASURED if number(value) is None else f"{value:,}"
