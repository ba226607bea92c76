"""Folders that are written to: tried before the work, held against other processes, and moved aside for new work."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import filelock
import psutil

from pianogen_hf.errors import FileError

CACHE_DIR = "~/.cache/pianogen_hf"  # where read pieces and chunks are kept for the next run
_FULL_BYTES = 2**16  # a disk with less is full
_STALE_SEC = 300.0  # after which a lock of another machine that nobody has kept young is nobody's


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


def disk_is_full(error: BaseException, folder: Path) -> bool:
    """Whether an error in writing below a folder comes from a full disk, which some libraries do not say."""
    said = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or "No space left" in str(error)
    return said or shutil.disk_usage(folder).free < _FULL_BYTES


def moved_aside(folder: Path) -> Path:
    """A folder renamed to the first of NAME.old1, NAME.old2 ... that is free; returns what it is called now."""
    names = (folder.with_name(f"{folder.name}.old{number}") for number in count(1))
    return folder.rename(next(name for name in names if not name.exists()))


class FolderLock:
    """Holds a folder against other processes that would write into it, for as long as a `with` block lasts.

    The system frees the lock of a process that has ended in whatever way. On file systems that several machines share
    it may not know of the others: who holds the folder is written beside the lock and kept young, and what nobody has
    kept young is stale.

    Args:
        path: of the lock; a second file beside it tells who holds it.
        folder: as the message calls it.
        option: of the command, which names another folder.
    """

    def __init__(self, path: Path, folder: str | os.PathLike, option: str) -> None:
        self.path, self.folder, self.option = path.absolute(), folder, option
        self._holder = self.path.with_name(f"{self.path.name}.json")
        self._lock = filelock.FileLock(self.path)
        self._made: list[Path] = []
        self._ended = threading.Event()

    def __enter__(self) -> FolderLock:
        """Take the lock.

        Raises:
            FileError: if another process has it, with its number and machine.
        """
        self._made = _make_folders(self.path.parent)
        self._acquire()
        self._ended = threading.Event()
        threading.Thread(target=self._keep_young, args=(self._ended,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        """Give it back; folders that were made for it alone go, too."""
        self._ended.set()
        self._holder.unlink(missing_ok=True)
        self._lock.release()
        self.path.unlink(missing_ok=True)
        for folder in self._made:
            with contextlib.suppress(OSError):  # something else lies there
                folder.rmdir()

    @contextlib.contextmanager
    def set_aside(self) -> Iterator[None]:
        """Give it back for a moment in which the folder that holds it is renamed."""
        self.__exit__()
        yield
        self.__enter__()

    def _acquire(self) -> None:
        try:
            self._lock.acquire(timeout=0)
        except filelock.Timeout:
            if not self._is_of_the_dead():
                raise self._refusal() from None
            self.path.unlink(missing_ok=True)  # a worker has outlived the process that it worked for
            self._lock.acquire(timeout=0)
        host = self._read_holder().get("host")
        if host not in (None, socket.gethostname()) and self._age() < _STALE_SEC:
            self._lock.release()
            raise self._refusal()
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%d %H:%M:%S")}
        self._holder.write_text(json.dumps(holder), encoding="utf-8")

    def _read_holder(self) -> dict[str, Any]:
        try:
            return dict(json.loads(self._holder.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError):
            return {}

    def _is_of_the_dead(self) -> bool:
        holder = self._read_holder()
        return holder.get("host") == socket.gethostname() and not psutil.pid_exists(int(holder["pid"]))

    def _age(self) -> float:
        """Seconds since somebody kept it young, by the clock of the file system."""
        with tempfile.NamedTemporaryFile(dir=self.path.parent) as now:
            return os.stat(now.name).st_mtime - self._holder.stat().st_mtime

    def _keep_young(self, ended: threading.Event) -> None:
        while not ended.wait(_STALE_SEC / 5):
            with contextlib.suppress(OSError):
                os.utime(self._holder)

    def _refusal(self) -> FileError:
        holder = self._read_holder()
        is_known = holder.keys() >= {"pid", "host"}
        who = "process {pid} on {host}, since {since}".format_map(holder) if is_known else "unknown"
        return FileError(f"{self.folder} is in use ({who}): let that end, or give another {self.option}")


def _make_folders(folder: Path) -> list[Path]:
    """Make a folder and those above it; returns those that were made, the innermost first."""
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing
