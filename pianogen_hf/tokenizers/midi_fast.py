"""The fast way to read what most files are: each channel in a track chunk of its own, and nothing amiss.

Such a file means to symusic what it means to `midi_reader.py`, and symusic reads it in a third of the time. That it is
such a file is proved by counting: every channel message with two data bytes has exactly three bytes under 128, however
long its time and whether or not its status byte is left out. So if the chunk's bytes under 128 are those of what stands
before the first such message, of the end of the track, and three for each event that symusic returned (two for a note),
then nothing else is in it: no strike without a release, no other channel's pedal, no text between. Channels that lie in
one chunk each have nothing to merge.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import numpy as np
import symusic  # its stubs know the classes only as factories, hence the Any below

from .midi_channels import ALL_NOTES_OFF, ALL_SOUND_OFF
from .midi_chunks import END_OF_TRACK, ChunkEvents, opening_events
from .notes import NOTE_DTYPE

_END = bytes((0xFF, END_OF_TRACK, 0))
_TELLING = {0x21, 0x7F}  # meta events: the port, and what only some programs understand
_FAR = 2**24  # ticks

# How the library lays out a note and a control change in memory (see `_columns`).
NOTE_RECORD = np.dtype(
    {
        "names": ["time", "duration", "pitch", "velocity"],
        "formats": ["<i4", "<i4", "i1", "i1"],
        "offsets": [0, 4, 8, 9],
        "itemsize": 12,
    }
)
CONTROL_RECORD = np.dtype(
    {"names": ["time", "number", "value"], "formats": ["<i4", "u1", "u1"], "offsets": [0, 4, 5], "itemsize": 8}
)
_ENDS_NOTES = np.isin(np.arange(256), (ALL_SOUND_OFF, ALL_NOTES_OFF))
_COUNT_BYTES = 4  # before the records


class PlainTrack(NamedTuple):
    """A chunk with messages.

    Attributes:
        table: `NOTE_DTYPE`, on track 0.
        controls: columns "time", "number", "value" of all control changes.
        chunk: number of the chunk.
        channel: of the notes and the control changes.
        num_bends: how many pitch bends there are.
    """

    table: np.ndarray
    controls: Any
    chunk: int
    channel: int
    num_bends: int


def plain_file(data: bytes, bodies: list[bytes]) -> tuple[list[PlainTrack], list[ChunkEvents]] | None:
    """What the file holds, or None if that is not for sure.

    Args:
        data: a MIDI file, from its header on.
        bodies: the contents of its track chunks.

    Returns:
        The chunks with messages, and what all of them hold before the first message or without any.
    """
    openings = []
    for body in bodies:
        opening = opening_events(body)
        if opening is None or opening[0].end_tick > _FAR or not _TELLING.isdisjoint(opening[0].metas):
            return None
        if opening[2] >= 0 and (not body.endswith(_END) or END_OF_TRACK in opening[0].metas):
            return None
        openings.append(opening)
    channels = [channel for _, _, channel in openings if channel >= 0]
    if len(set(channels)) < len(channels):
        return None
    score = _parsed(data)
    if score is None or len(score.tracks) != len(channels):
        return None
    tracks = []
    sounding = [index for index, (_, _, channel) in enumerate(openings) if channel >= 0]
    for index, track in zip(sounding, score.tracks, strict=True):
        _, begin, channel = openings[index]
        found = _plain_track(track, bodies[index][begin : -len(_END)], index, channel)
        if found is None:
            return None
        tracks.append(found)
    return tracks, [events for events, _, _ in openings]


def _plain_track(track: Any, body: bytes, index: int, channel: int) -> PlainTrack | None:
    controls = _columns(track.controls, CONTROL_RECORD)
    num_events = 2 * len(track.notes) + len(controls["time"]) + len(track.pitch_bends)
    if not _holds_nothing_else(body, num_events):
        return None
    if _ENDS_NOTES.take(controls["number"]).any() or (controls["time"] < 0).any():
        return None
    return PlainTrack(_note_rows(track, channel), controls, index, channel, len(track.pitch_bends))


def _parsed(data: bytes) -> Any:
    try:
        return symusic.Score.from_midi(data)
    except Exception:  # the parser has no error type of its own; whatever is amiss is for the slow way to find out
        return None


def _holds_nothing_else(body: bytes, num_events: int) -> bool:
    """Whether the bytes are those events and a time, and all times are short enough for the library's 32 bits."""
    is_high = np.frombuffer(body, dtype=np.int8) < 0
    num_low = len(body) - np.count_nonzero(is_high)
    # Three high bytes in a row make a time of 2**21 ticks or more. Shorter ones can't pass by the negative numbers.
    return num_low == 3 * num_events + 1 and not (is_high[2:] & is_high[1:-1] & is_high[:-2]).any()


def _note_rows(track: Any, channel: int) -> np.ndarray:
    events = _columns(track.notes, NOTE_RECORD)
    rows = np.zeros(len(events["time"]), dtype=NOTE_DTYPE)
    for field, name in (("onset_tick", "time"), ("duration_tick", "duration"), ("pitch",) * 2, ("velocity",) * 2):
        # To go out of rows and into rows that are not aligned is faster in two steps.
        rows[field] = np.ascontiguousarray(events[name])
    for field, value in (("program", track.program), ("is_drum", track.is_drum), ("channel", channel)):
        if value:  # rows are made of zeros: a lone piano track has nothing to fill in
            rows[field] = value
    return rows


def _columns(events: Any, record: np.dtype) -> Any:
    """The columns of the library's notes or control changes by name, in half the time of their own `numpy()`.

    What the library would pickle is a copy of its memory. That is its own affair and may change, hence the trial.
    """
    return np.frombuffer(events.__getstate__(), record, offset=_COUNT_BYTES) if is_plain(record) else events.numpy()


@cache
def is_plain(record: np.dtype) -> bool:
    """Whether the library's pickles hold events as `record` says, found by trying it."""
    library_class: Any = symusic.Note if record.itemsize == NOTE_RECORD.itemsize else symusic.ControlChange
    kinds = [np.dtype(record[name]) for name in record.names or ()]
    columns = [np.array([number, 100 - number, 127], dtype=kind) for number, kind in enumerate(kinds, start=1)]
    state = library_class.from_numpy(*columns).__getstate__()
    if not isinstance(state, bytes) or len(state) != _COUNT_BYTES + len(columns[0]) * record.itemsize:
        return False
    rows = np.frombuffer(state, record, offset=_COUNT_BYTES)
    return all(np.array_equal(rows[name], column) for name, column in zip(record.names or (), columns, strict=True))
