"""MIDI files in and out: from a path or bytes to a note table, and back.

What the bytes are stands in `midi_chunks.py`, what they mean in `midi_channels.py`; `midi_reader.py` and
`midi_writer.py` lead from there to `Notes` and back.

It travels with every tokenizer, so that a checkpoint reads and writes MIDI wherever it is loaded.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from .errors import FileError
from .files import write_whole
from .midi_chunks import ChunkEvents, chunk_events
from .midi_reader import file_notes
from .midi_writer import midi_bytes
from .notes import Notes

PIANO_PROGRAMS = range(8)  # General MIDI 0..7: the piano family
MIDI_SUFFIXES = (".mid", ".midi", ".kar", ".rmi")
_CONTAINER_BYTES = 1024  # within which a MIDI file must begin


class MidiError(FileError):
    """A MIDI file that can't be read or written; the message names the file and the reason."""


def read_midi(
    source: str | os.PathLike | bytes, programs: Collection[int] | None = PIANO_PROGRAMS, drums: bool = False
) -> Notes:
    """Read a MIDI file of any type into a note table.

    A file means the same however its messages are divided into tracks: strikes, pedals and programs belong to
    channels (see `midi_channels.py`). Strikes of one key that overlap are paired first in, first out; one that is
    never released ends with the next of its key, with a message that ends all notes, or with the file. Zero-length
    notes are kept. The sequences of a type 2 file follow one another. Tracks of the table are what the file makes of
    them: one per chunk, channel and program.

    Args:
        source: a path, or the file's bytes; a RIFF container (.rmi) is opened.
        programs: General MIDI programs to keep; piano family by default (a channel that names no program counts as
            program 0), None for all.
        drums: whether to keep the drum channel.

    Returns:
        Notes; `excluded_notes` counts what the choice of programs left out, `left_out` everything that was.

    Raises:
        MidiError: if it can't be read, for whatever reason.
    """
    with naming(source):
        return file_notes(*opened(source), programs, drums)


@contextmanager
def naming(source: str | os.PathLike | bytes) -> Iterator[None]:
    """Say in errors which MIDI file could not be read.

    Raises:
        MidiError: in the place of what a file that can't be read raises.
    """
    try:
        yield
    except MidiError:
        raise
    except (ValueError, OverflowError) as error:
        raise MidiError(f"{'MIDI bytes' if isinstance(source, bytes) else source}: {error}") from error


def read_chunks(source: str | os.PathLike | bytes) -> tuple[int, int, list[ChunkEvents]]:
    """The messages of a MIDI file as they stand in its chunks, for schemes whose rules follow them.

    Args:
        source: a path, or the file's bytes.

    Returns:
        Type (0, 1 or 2), division (ticks per quarter, unless it is over 32767) and the events of each track chunk, of
        as many as the header says.

    Raises:
        MidiError: if it can't be read.
    """
    with naming(source):
        data, kind, division, bodies = opened(source)
    declared = int.from_bytes(data[10:12], "big")
    return kind, division, [chunk_events(body) for body in bodies[:declared]]


def _read_bytes(path: str | os.PathLike) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:  # half the time of `Path.read_bytes`
            return file.read()
    except OSError as error:
        raise MidiError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:  # a NUL byte in the name
        raise MidiError(f"{path!r}: {error}") from error


def opened(source: str | os.PathLike | bytes) -> tuple[bytes, int, int, list[bytes]]:
    """The file out of its container, its type and division, and the contents of all track chunks.

    The header's number of them is not asked for: some files have more.

    Args:
        source: a path, or the file's bytes.

    Raises:
        MidiError: if there is no such file. ValueError: if it is no MIDI file, or not all of it.
    """
    data = source if isinstance(source, bytes) else _read_bytes(source)
    if not data:
        raise ValueError("the file is empty")
    # Some programs put a MIDI file into a container: RIFF's stands in its chunk "data".
    begin = data.find(b"MThd", 0, _CONTAINER_BYTES)
    if begin < 0:
        raise ValueError("not a MIDI file (there is no MThd at its beginning)")
    if len(data) < begin + 14:
        raise ValueError("the header has less than 14 bytes")
    kind, division = (int.from_bytes(data[begin + at : begin + at + 2], "big") for at in (8, 12))
    position = begin + 8 + max(int.from_bytes(data[begin + 4 : begin + 8], "big"), 6)
    bodies: list[bytes] = []
    while position + 8 <= len(data):
        chunk, size = data[position : position + 4], int.from_bytes(data[position + 4 : position + 8], "big")
        body = data[position + 8 : position + 8 + size]
        if chunk == b"MTrk":
            if len(body) < size:
                raise ValueError(f"chunk length {size}, but only {len(body)} bytes are left")
            bodies.append(body)
        position += 8 + size
    return data[begin:] if begin else data, kind, division, bodies


def notes_to_midi_bytes(notes: Notes) -> bytes:
    """The notes as a type 1 MIDI file: tempo map, time signatures, pedals, one chunk per track and channel.

    Notes of one channel that MIDI could not tell apart (one inside the other, of one key) get a channel of their own.

    Raises:
        MidiError: if a tick is beyond what MIDI can hold.
    """
    try:
        return midi_bytes(notes)
    except ValueError as error:
        raise MidiError(str(error)) from error


def write_midi(notes: Notes, path: str | os.PathLike) -> None:
    """Write the notes as a type 1 MIDI file; the file appears whole or not at all.

    Raises:
        MidiError: if it can't be written.
    """
    data = notes_to_midi_bytes(notes)
    try:
        write_whole(path, data)
    except FileError as error:
        raise MidiError(str(error)) from error
