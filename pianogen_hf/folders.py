"""Folders that are written to, tried before the work whose results are to go there."""

from __future__ import annotations

import os
import tempfile
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
