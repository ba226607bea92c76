"""MIDI files in and out. The only file that knows the MIDI library (symusic).

It travels with every tokenizer, so that a checkpoint reads and writes MIDI wherever it is loaded.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from functools import cache
from typing import Any

import numpy as np
import symusic  # its stubs know the classes only as factories, hence the Any below

from .errors import FileError
from .files import write_whole
from .notes import NOTE_DTYPE, PEDAL_DTYPE, TEMPO_DTYPE, TIME_SIGNATURE_DTYPE, Notes, join_rows, take_rows

# How the library lays out a note and a control change in memory (see `_columns`).
_NOTE_RECORD = np.dtype(
    {
        "names": ["time", "duration", "pitch", "velocity"],
        "formats": ["<i4", "<i4", "i1", "i1"],
        "offsets": [0, 4, 8, 9],
        "itemsize": 12,
    }
)
_CONTROL_RECORD = np.dtype(
    {"names": ["time", "number", "value"], "formats": ["<i4", "u1", "u1"], "offsets": [0, 4, 5], "itemsize": 8}
)
_COUNT_BYTES = 4  # before the records

PIANO_PROGRAMS = range(8)  # General MIDI 0..7: the piano family
MIDI_SUFFIXES = (".mid", ".midi", ".kar")
_SUSTAIN = 64
_CONTROLLER = re.compile(b"[\xb0-\xbf]")
MAX_TICK = 2**28 - 1  # the longest delta time that MIDI's variable-length numbers can hold


class MidiError(FileError):
    """A MIDI file that can't be read or written; the message names the file and the reason."""


def read_midi(
    source: str | os.PathLike | bytes, programs: Collection[int] | None = PIANO_PROGRAMS, drums: bool = False
) -> Notes:
    """Read a MIDI file of type 0, 1 or 2 into a note table.

    Overlapping strikes of one key are paired first in, first out; a strike that is never released is left out, as it
    has no length. Zero-length notes are kept. Tracks are what the file makes of them: one per chunk, channel and
    program, and one for each chunk that holds pedal and no notes.

    Args:
        source: a path, or the file's bytes.
        programs: General MIDI programs to keep; piano family by default (a channel that names no program counts as
            program 0), None for all.
        drums: whether to keep the drum channel.

    Returns:
        Notes; `excluded_notes` counts what the choice of programs left out.

    Raises:
        MidiError: if it can't be read, for whatever reason.
    """
    name = "MIDI bytes" if isinstance(source, bytes) else str(source)
    data = source if isinstance(source, bytes) else _read_bytes(source)
    score = _parse(data, name)
    kept: list[tuple[int, Any]] = []
    names: list[str] = []
    excluded = 0
    for track in score.tracks:
        if (track.is_drum and drums) or (not track.is_drum and (programs is None or track.program in programs)):
            kept.append((len(names), track))
            names.append(_track_name(track))
        else:
            excluded += len(track.notes)
    pedals = [_pedal_rows(index, track) for index, track in kept]
    for chunk in _silent_chunk_pedals(data) if kept or not score.tracks else ():
        chunk["track"] = len(names)
        pedals.append(chunk)
        names.append("Pedal")
    try:
        return Notes(
            _concatenate([_note_rows(index, track) for index, track in kept], NOTE_DTYPE),
            score.ticks_per_quarter,
            _rows(score.tempos.numpy(), TEMPO_DTYPE, tick="time", us_per_quarter="mspq"),
            _time_signatures(score),
            _concatenate(pedals, PEDAL_DTYPE),
            tuple(names),
            excluded,
        )
    except (ValueError, OverflowError) as error:
        raise MidiError(f"{name}: {error}") from error


def _read_bytes(path: str | os.PathLike) -> bytes:
    try:
        with open(path, "rb", buffering=0) as file:  # half the time of `Path.read_bytes`
            return file.read()
    except OSError as error:
        raise MidiError(f"{path}: {error.strerror or error}") from error
    except ValueError as error:  # a NUL byte in the name
        raise MidiError(f"{path!r}: {error}") from error


def _parse(data: bytes, name: str) -> Any:
    if not data:
        raise MidiError(f"{name}: the file is empty")
    if not data.startswith(b"MThd"):
        raise MidiError(f"{name}: not a MIDI file (it does not begin with MThd)")
    try:
        return symusic.Score.from_midi(data)
    except Exception as error:  # the parser has no error type of its own: whatever it raises means "can't be read"
        reason = " ".join(str(error).removeprefix("MiniMidi:").split()).removesuffix(": iostream error")
        raise MidiError(f"{name}: {reason or type(error).__name__}") from error


def _track_name(track: Any) -> str:
    try:
        return str(track.name)
    except UnicodeDecodeError:  # names are bytes of no declared encoding; music is not lost for a name
        return ""


def _columns(events: Any, record: np.dtype) -> Any:
    """The columns of the library's notes or control changes by name, in half the time of their own `numpy()`.

    What the library would pickle is a copy of its memory. That is its own affair and may change, hence the trial.
    """
    return np.frombuffer(events.__getstate__(), record, offset=_COUNT_BYTES) if _is_plain(record) else events.numpy()


@cache
def _is_plain(record: np.dtype) -> bool:
    """Whether the library's pickles hold events as `record` says, found by trying it."""
    library_class: Any = symusic.Note if record is _NOTE_RECORD else symusic.ControlChange
    kinds = [np.dtype(record[name]) for name in record.names or ()]
    columns = [np.array([number, 100 - number, 127], dtype=kind) for number, kind in enumerate(kinds, start=1)]
    state = library_class.from_numpy(*columns).__getstate__()
    if not isinstance(state, bytes) or len(state) != _COUNT_BYTES + len(columns[0]) * record.itemsize:
        return False
    rows = np.frombuffer(state, record, offset=_COUNT_BYTES)
    return all(np.array_equal(rows[name], column) for name, column in zip(record.names or (), columns, strict=True))


def _rows(columns: Any, dtype: np.dtype, **fields: str) -> np.ndarray:
    """A structured array whose `fields` are filled from the library's columns by name."""
    rows = np.zeros(len(columns["time"]), dtype=dtype)
    for field, column in fields.items():
        rows[field] = columns[column]
    return rows


def _concatenate(parts: list[np.ndarray], dtype: np.dtype) -> np.ndarray:
    return join_rows(parts) if parts else np.zeros(0, dtype)


def _note_rows(index: int, track: Any) -> np.ndarray:
    events = _columns(track.notes, _NOTE_RECORD)
    # To go out of rows and into rows that are not aligned is faster in two steps.
    columns = {name: np.ascontiguousarray(events[name]) for name in _NOTE_RECORD.names or ()}
    rows = _rows(columns, NOTE_DTYPE, onset_tick="time", duration_tick="duration", pitch="pitch", velocity="velocity")
    for field, value in (("program", track.program), ("is_drum", track.is_drum), ("track", index)):
        if value:  # rows are made of zeros: a lone piano track has nothing to fill in
            rows[field] = value
    return rows


def _pedal_rows(index: int, track: Any) -> np.ndarray:
    controls = _columns(track.controls, _CONTROL_RECORD)
    sustain = controls["number"] == _SUSTAIN
    rows = _rows(controls, PEDAL_DTYPE, tick="time", value="value")
    if not sustain.all():
        rows = take_rows(rows, sustain)
    if index:
        rows["track"] = index
    return rows


def _silent_chunk_pedals(data: bytes) -> Iterator[np.ndarray]:
    """Pedal rows of each chunk that holds pedal but no notes, which the library leaves out.

    Sequenced piano music often keeps its pedal in such a chunk, on the channel of the notes.
    """
    position = 14  # after the header
    while position + 8 <= len(data):
        kind, size = data[position : position + 4], int.from_bytes(data[position + 4 : position + 8])
        begin, position = position + 8, position + 8 + size
        # A byte 0xB0..0xBF must stand somewhere in a chunk that holds a controller: most silent chunks have none.
        if kind == b"MTrk" and _CONTROLLER.search(data, begin, position):
            rows = _pedal_before_any_note(data[begin:position])
            if rows:
                yield np.array(rows, dtype=PEDAL_DTYPE)


def _pedal_before_any_note(body: bytes) -> list[tuple[int, int, int]]:
    """(tick, value, 0) of each sustain event of a chunk's events; nothing if the chunk has a note-on."""
    rows: list[tuple[int, int, int]] = []
    position = tick = status = 0
    try:
        while position < len(body):
            delta, position = _variable_length(body, position)
            tick += delta
            if body[position] & 0x80:
                status, position = body[position], position + 1
            if status in (0xFF, 0xF0, 0xF7):  # meta events carry one byte more before their length
                size, position = _variable_length(body, position + (status == 0xFF))
                position += size
                continue
            if status & 0xF0 == 0x90:
                return []
            if status & 0xF0 == 0xB0 and body[position] == _SUSTAIN:
                rows.append((tick, body[position + 1], 0))
            position += 1 if status & 0xF0 in (0xC0, 0xD0) else 2
    except IndexError:  # cut short: what stands before the cut is good
        pass
    return rows


def _variable_length(body: bytes, position: int) -> tuple[int, int]:
    """A number in MIDI's variable-length form and the position after it."""
    value = 0
    while True:
        byte = body[position]
        value, position = (value << 7) | (byte & 0x7F), position + 1
        if not byte & 0x80:
            return value, position


def _time_signatures(score: Any) -> np.ndarray:
    rows = _rows(
        score.time_signatures.numpy(),
        TIME_SIGNATURE_DTYPE,
        tick="time",
        numerator="numerator",
        denominator="denominator",
    )
    usable = np.minimum(rows["numerator"], rows["denominator"]) > 0
    return rows if usable.all() else take_rows(rows, usable)


def notes_to_midi_bytes(notes: Notes) -> bytes:
    """The notes as a type 1 MIDI file: tempo map, time signatures, pedal, one chunk per track and program.

    Strikes of one key that MIDI could not tell apart (one inside the other, or of no length) get a chunk of their own.

    Raises:
        MidiError: if a tick is beyond what MIDI can hold.
    """
    if max(notes.end_tick, *(int(rows["tick"].max(initial=0)) for rows in (notes.tempos, notes.pedals))) > MAX_TICK:
        raise MidiError(f"ticks beyond {MAX_TICK} can't be written: lower ticks_per_quarter or cut the piece")
    score: Any = symusic.Score(notes.ticks_per_quarter)
    score.tempos.extend([symusic.Tempo(int(tick), mspq=int(us)) for tick, us in notes.tempos.tolist()])
    score.time_signatures.extend([symusic.TimeSignature(*row) for row in notes.time_signatures.tolist()])
    # Without any track the library writes tempos and signatures out of order; an empty one mends that.
    for track in list(_library_tracks(notes)) or [symusic.Track()]:
        score.tracks.append(track)
    return score.dumps_midi()


def _library_tracks(notes: Notes) -> Iterator[Any]:
    # One number for each track, program and drums or not; a track that holds nothing but pedal is written as well.
    parts = (notes["track"].astype(np.int64) << 8) | (notes["program"] << 1) | notes["is_drum"]
    silent = np.setdiff1d(_distinct(notes.pedals["track"]), _distinct(notes["track"])).astype(np.int64) << 8
    pedal_written: set[int] = set()
    for part in np.union1d(_distinct(parts), silent).tolist():
        track, program, is_drum = part >> 8, part >> 1 & 127, bool(part & 1)
        name = notes.track_names[track] if track < len(notes.track_names) else ""
        for layer in _layers(take_rows(notes.table, parts == part)):
            library_track: Any = symusic.Track(name, program, is_drum)
            library_track.notes = symusic.Note.from_numpy(
                layer["onset_tick"].astype(np.int32),
                layer["duration_tick"].astype(np.int32),
                layer["pitch"].astype(np.int8),
                layer["velocity"].astype(np.int8),
            )
            if track not in pedal_written:
                pedal_written.add(track)
                library_track.controls = _library_pedal(take_rows(notes.pedals, notes.pedals["track"] == track))
            yield library_track


def _distinct(numbers: np.ndarray) -> np.ndarray:
    """`np.unique`, at once where all are the same."""
    return numbers[:1] if (numbers == numbers[:1]).all() else np.unique(numbers)


def _library_pedal(pedals: np.ndarray) -> Any:
    number = np.full(len(pedals), _SUSTAIN, dtype=np.uint8)
    return symusic.ControlChange.from_numpy(pedals["tick"].astype(np.int32), number, pedals["value"].astype(np.uint8))


def _layers(rows: np.ndarray) -> list[np.ndarray]:
    """Split notes so that within a part first-in-first-out pairing gives each strike its own length back.

    That holds when, for each pitch, the offsets rise with the onsets and no note has zero length beside another.

    Args:
        rows: notes of one part, by onset, pitch, duration, as they stand in a note table; so are those of each layer.
    """
    layers: list[np.ndarray] = []
    rest = np.argsort(rows["pitch"], kind="stable")  # by pitch, then as they stood
    while True:
        pitch, onset, duration = (rows[name].take(rest) for name in ("pitch", "onset_tick", "duration_tick"))
        offset = onset.astype(np.int64) + duration
        fits = np.ones(len(rest), dtype=bool)
        same = pitch[1:] == pitch[:-1]
        # `reach` is the latest offset so far of the same pitch: running maximum over keys that never mix pitches.
        key = pitch.astype(np.int64) << 32
        reach = np.maximum.accumulate(key + offset)
        fits[1:] = ~same | (key[1:] + offset[1:] >= reach[:-1])
        touching = same & (onset[1:] <= offset[:-1])
        fits[1:] &= ~(touching & ((duration[1:] == 0) | (duration[:-1] == 0)))
        if fits.all() and not layers:
            return [rows]
        layers.append(take_rows(rows, np.sort(rest[fits])))
        if fits.all():
            return layers
        rest = rest[~fits]


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
