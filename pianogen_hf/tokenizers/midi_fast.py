"""The fast way to read what most files are: tracks that have nothing to merge, and nothing amiss.

Such a file means to symusic what it means to `midi_reader.py`, and symusic reads it in a third of the time. That it is
such a file is proved by counting: every channel message with two data bytes has exactly three bytes under 128, however
long its time and whether or not its status byte is left out. So if the chunk's bytes under 128 are those of what stands
before the first strike, of the end of the track, and three for each event that symusic returned (two for a note),
then nothing else is in it: no strike without a release, no pedal of another channel, no text between. Channels in a
chunk of their own have nothing to merge, nor have chunks of one channel that hold no key at a time, such as two hands.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import symusic  # its stubs know the classes only as factories, hence the Any below

from .midi_channels import ALL_NOTES_OFF, ALL_SOUND_OFF
from .midi_chunks import END_OF_TRACK, ChunkEvents, Opening
from .midi_writer import MARK
from .notes import NOTE_DTYPE

_END = bytes((0xFF, END_OF_TRACK, 0))
_PORT, _SEQUENCER_SPECIFIC = 0x21, 0x7F  # kinds of meta events
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
        channel: of the notes and the control changes. program: of the notes.
        num_bends: how many pitch bends there are.
    """

    table: np.ndarray
    controls: Any
    chunk: int
    channel: int
    program: int
    num_bends: int


def plain_file(
    data: bytes, bodies: list[bytes], openings: Sequence[Opening | None]
) -> tuple[list[PlainTrack], list[ChunkEvents]] | None:
    """What the file holds, or None if that is not for sure.

    Args:
        data: a MIDI file, from its header on.
        bodies: the contents of its track chunks.
        openings: what `opening_events` gives for each.

    Returns:
        The chunks with messages, and what all of them hold before the first strike or without any.
    """
    plain_openings: list[Opening] = []
    for body, opening in zip(bodies, openings, strict=True):
        if opening is None or opening.events.end_tick > _FAR or _tells(opening.events):
            return None
        if not opening.is_whole and (not body.endswith(_END) or END_OF_TRACK in opening.events.metas):
            return None
        plain_openings.append(opening)
    score = _parsed(data)
    found = [] if score is None else [track for track in score.tracks if len(track.notes)]
    if len(found) != sum(not opening.is_whole for opening in plain_openings):
        return None
    tracks = []
    for index, opening in enumerate(plain_openings):
        if not opening.is_whole:
            plain = _plain_track(found.pop(0), bodies[index], opening, index)
        elif opening.channel >= 0:
            plain = _track_without_notes(opening, index)
        else:
            continue
        if plain is None:
            return None
        tracks.append(plain)
    by_channel: dict[int, list[PlainTrack]] = {}
    for plain in tracks:
        by_channel.setdefault(plain.channel, []).append(plain)
    if not all(len(each) == 1 or _keep_apart(each, plain_openings) for each in by_channel.values()):
        return None
    return tracks, [opening.events for opening in plain_openings]


def _tells(events: ChunkEvents) -> bool:
    """Whether it says something that symusic does not hear: another port, or whose channel another one stands for."""
    ports, own = (events.metas.get(kind, ()) for kind in (_PORT, _SEQUENCER_SPECIFIC))
    return any(content != b"\0" for _, content in ports) or any(content.startswith(MARK) for _, content in own)


def _keep_apart(tracks: list[PlainTrack], openings: list[Opening]) -> bool:
    """Whether the chunks of one channel have nothing to merge: one program, and no key that is held in two of them.

    Of a strike and a release of one time the order is then no matter: first in, first out.
    """
    programs = {program for track in tracks for program in openings[track.chunk].programs}
    with_notes = [track for track in tracks if len(track.table)]
    if programs and not (len(programs) == 1 and all(openings[track.chunk].programs for track in with_notes)):
        return False
    if len(with_notes) < 2:
        return True
    onset, length, pitch = (
        np.concatenate([track.table[name] for track in with_notes]).astype(np.int64)
        for name in ("onset_tick", "duration_tick", "pitch")
    )
    onset += pitch << 40
    order = np.argsort(onset)
    onset, offset = onset.take(order), (onset + length).take(order)
    return bool(length.all() and (onset[1:] >= np.maximum.accumulate(offset)[:-1]).all())


def _plain_track(track: Any, body: bytes, opening: Opening, index: int) -> PlainTrack | None:
    controls = _columns(track.controls, CONTROL_RECORD)
    num_events = 2 * len(track.notes) + len(controls["time"]) + len(track.pitch_bends) - len(opening.controls)
    if not _holds_nothing_else(body[opening.size : -len(_END)], num_events):
        return None
    if _ENDS_NOTES.take(controls["number"]).any() or (controls["time"] < 0).any():
        return None
    rows = _note_rows(track, opening.channel)
    return PlainTrack(rows, controls, index, opening.channel, track.program, len(track.pitch_bends))


def _track_without_notes(opening: Opening, index: int) -> PlainTrack | None:
    time, number, value = np.array(opening.controls, dtype=np.int64).reshape(-1, 3).T
    if _ENDS_NOTES.take(number).any():
        return None
    controls = {"time": time, "number": number, "value": value}
    return PlainTrack(np.zeros(0, NOTE_DTYPE), controls, index, opening.channel, 0, 0)


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
