"""Folders that are written to: tried before the work whose results are to go there, and moved aside for new work."""

from __future__ import annotations

import os
import tempfile
from itertools import count
from pathlib import Path

from pianogen_hf.errors import FileError

CACHE_DIR = "~/.cache/pianogen_hf"  # where read pieces and chunks are kept for the next run


def check_writable(folder: str | os.PathLike, option: str) -> None:
    """Refuse a folder in which no file can be made. It is not made here, and nothing is left behind.

    Args:
        folder: where files are to go; it need not exist yet.
        option: of the command, which names another folder.

    Raises:
        FileError: in one line that names folder and option.
    """
    path = Path(folder).expanduser().absolute()
    existing = next(each for each in (path, *path.parents) if os.path.exists(each))
    try:
        tempfile.TemporaryFile(dir=existing).close()
    except OSError as error:
        raise FileError(f"{folder} can't be written ({error.strerror}): give another {option}") from error


def moved_aside(folder: Path) -> Path:
    """A folder renamed to the first of NAME.old1, NAME.old2 ... that is free; returns what it is called now."""
    names = (folder.with_name(f"{folder.name}.old{number}") for number in count(1))
    return folder.rename(next(name for name in names if not name.exists()))
