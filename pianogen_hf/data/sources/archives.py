"""Archives of MIDI files, such as Lakh's 178,000: read once, as a stream, into one Arrow file in the cache.

Nothing of an archive is ever written under a name that the archive gives, and no more than one of its files is in
memory, so that neither its size nor what a hostile one holds matters.
"""

from __future__ import annotations

import bz2
import contextlib
import gzip
import lzma
import os
import posixpath
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import filelock
from datasets import Dataset, Features, Value
from datasets.arrow_writer import ArrowWriter
from datasets.utils import tqdm

from pianogen_hf.data.caching import fingerprint_of
from pianogen_hf.errors import DataError
from pianogen_hf.tokenizers.midi import MIDI_SUFFIXES

MAX_BYTES = 16 * 2**20  # of one file, and of what waits to be written; no music needs as much
_MAX_HEADER = 2**20  # bytes; a longer name of a file is no name
_FEATURES = Features(
    {
        "name": Value("string"),  # in the archive; unique, relative, without ..
        "midi": Value("binary"),  # as it stands there
        "error": Value("string"),  # why it was not read; empty if it was
    }
)
_LONG_HEADERS = {  # which tarfile reads into memory whole
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
}
_CACHE_VERSION = 1  # raised when what the Arrow file holds changes
_BLOCK = 2**20
# By the first bytes; tarfile's own way to open a stream checks neither that it ends nor its checksum.
_OPENERS: dict[bytes, Callable[[IO[bytes]], Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\0": lzma.open}
_BROKEN = (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError, ValueError, OverflowError)


class ArchiveError(DataError):
    """An archive that can't be used; the message is one line that says why."""


def archive_rows(archive: Path, cache_dir: str | os.PathLike) -> Path:
    """The Arrow file that holds all MIDI files of a tar archive; read from it if it is not there yet.

    Reading shows how far it is. If it is interrupted, the next call begins again.

    Args:
        archive: .tar, or .tar compressed by gzip, bzip2 or xz.
        cache_dir: where the Arrow file lies.

    Returns:
        Its path: `Dataset.from_file` gives rows of `name`, `midi` and `error`.

    Raises:
        ArchiveError: if it is no such archive, damaged, cut short, or without MIDI files, or if the cache can't be
            written.
    """
    status = archive.stat()
    key = [_CACHE_VERSION, os.path.abspath(archive), status.st_size, status.st_mtime_ns]
    folder = Path(cache_dir).expanduser() / f"archive-{fingerprint_of(key)}"
    rows, partial = folder / "files.arrow", folder / "files.partial"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(folder / "lock"):  # of two runs that want the same archive one reads it
            if not rows.exists():
                _write(archive, partial, rows)
    except OSError as error:
        raise ArchiveError(f"{folder} can't be written: {error.strerror or error}") from error
    return rows


def row_names(rows: Path) -> list[str]:
    """Names of the files in what `archive_rows` wrote, in order."""
    return Dataset.from_file(str(rows))["name"][:]


def _write(archive: Path, partial: Path, rows: Path) -> None:
    """Read the archive into `partial`, which takes its final name when it is whole."""
    taken: Counter[str] = Counter()
    waiting = 0  # bytes
    try:
        with ArrowWriter(features=_FEATURES, path=str(partial), writer_batch_size=100) as writer:
            for name, midi, error in _members(archive):
                taken[name] += 1  # the same name twice is two files: appending to an archive is not replacing
                number = f" ({taken[name]})" if taken[name] > 1 else ""
                writer.write({"name": name + number, "midi": midi, "error": error})
                waiting += len(midi)
                if waiting > MAX_BYTES:
                    writer.write_examples_on_file()
                    waiting = 0
            if not taken:
                raise ArchiveError(f"{archive} holds no MIDI files ({', '.join(MIDI_SUFFIXES)})")
            writer.finalize()
        partial.replace(rows)
    finally:
        partial.unlink(missing_ok=True)


def _members(archive: Path) -> Iterator[tuple[str, bytes, str]]:
    """Name, content and error of everything in the archive that is called a MIDI file."""
    try:
        with archive.open("rb") as file:
            yield from _members_of(file, archive.name, archive.stat().st_size)
    except _BROKEN as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ArchiveError(f"{archive} is no tar archive, or damaged or cut short ({reason}): fetch it anew") from error


def _members_of(file: IO[bytes], name: str, size: int) -> Iterator[tuple[str, bytes, str]]:
    start = file.read(6)
    file.seek(0)
    opener = next((opener for magic, opener in _OPENERS.items() if start.startswith(magic)), None)
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(tqdm(total=size, unit="B", unit_scale=True, desc=f"Reading {name}"))
        counted: Any = _Counted(file, progress.update)
        stream: Any = stack.enter_context(opener(counted)) if opener else counted
        tar: Any = stack.enter_context(tarfile.open(fileobj=stream, mode="r|", tarinfo=_StrictTarInfo))
        while (member := tar.next()) is not None:
            tar.members.clear()  # it would keep them all
            if member.name.lower().endswith(MIDI_SUFFIXES) and not member.isdir():
                yield _safe_name(member.name), *_content(tar, member)
        while stream.read(_BLOCK):  # what follows the archive's end is no music, but its checksum is looked at
            pass


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> tuple[bytes, str]:
    """What a member holds, or why that is not read: links lead elsewhere, devices never end."""
    if not member.isreg():
        return b"", "a link or a device in the archive, not a file"
    if member.size > MAX_BYTES:
        return b"", f"{member.size:,} bytes, which no MIDI file has"
    file = tar.extractfile(member)
    return (file.read() if file else b""), ""


def _safe_name(name: str) -> str:
    """A name below the archive whatever it says; bytes that are no UTF-8 as backslash escapes."""
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return posixpath.normpath(f"/{text}").lstrip("/")


class _StrictTarInfo(tarfile.TarInfo):
    """A header, which must be one.

    tarfile takes a broken header for the end of the archive, which would lose the rest in silence.
    """

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _StrictTarInfo:
        try:
            header = super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if len(buf) == tarfile.BLOCKSIZE and not any(buf):
                raise  # a block of zeros is the end
            raise tarfile.ReadError(str(error)) from error
        if header.type in _LONG_HEADERS and header.size > _MAX_HEADER:
            raise tarfile.ReadError(f"a header of {header.size:,} bytes")
        return header


class _Counted:
    """A file that tells how much of it was read."""

    def __init__(self, file: IO[bytes], update: Callable[[int], Any]) -> None:
        self._file, self._update = file, update

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self._update(len(data))
        return data
