"""Files that are written whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from .errors import FileError


def write_whole(path: str | os.PathLike, data: bytes) -> None:
    """Write a file under another name in the same folder and rename it, so that nobody sees half of it.

    Raises:
        FileError: if the folder can't be written to.
    """
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=target.parent, prefix=f".{target.name[:32]}-", delete=False) as file:
            try:
                file.write(data)
                file.close()
                os.chmod(file.name, 0o666 & ~_umask())  # a temporary file is private; a result follows the user's mask
                os.replace(file.name, target)
            except BaseException:
                os.unlink(file.name)  # the disk is full, or somebody pressed Ctrl-C
                raise
    except OSError as error:
        raise FileError(f"{target}: {error.strerror or error}") from error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
