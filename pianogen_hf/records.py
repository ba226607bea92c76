"""What is written down beside models and data: figures as JSON, and the command that made them."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

from pianogen_hf.tokenizers.files import write_whole


def write_json(path: Path, value: Any) -> None:
    """Write figures or reports, whole or not at all, in a form that can be compared by line."""
    write_whole(path, (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode())


def recorded(program: str, argv: list[str]) -> str:
    """A command as metrics.json and cards tell it: they are published, so of absolute paths only the end is told."""
    return shlex.join([program, *map(without_place, argv)])


def without_place(text: str) -> str:
    """The same without where on this machine it lies: folder=/Users/me/midi becomes folder=.../midi."""
    return re.sub(r"(^|=)(?:[A-Za-z]:)?[\\/](?:[^=]*[\\/])?(?=[^\\/=]+[\\/]?$)", r"\1.../", text)
