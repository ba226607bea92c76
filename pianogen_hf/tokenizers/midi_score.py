"""Scores: a MIDI file as lists of events, for schemes that keep more of it than a note table does.

A track is a list of tuples, name and tick first, as in Peter Billam's MIDI.py, on whose scores SkyTNT's models were
trained: ("note", tick, length in ticks, channel, pitch, velocity), ("patch_change", tick, channel, program),
("control_change", tick, channel, controller, value), ("set_tempo", tick, microseconds per quarter), ("time_signature",
tick, numerator, power of two) and ("key_signature", tick, sharps or negative flats, 1 for minor). All else is left out.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from .midi import MidiError, naming, opened
from .midi_channels import CONTROL_CHANGE, NOTE_OFF, NOTE_ON, PROGRAM_CHANGE, SUSTAIN, merged, strikes
from .midi_chunks import ChunkEvents, chunk_events
from .midi_reader import OTHER_PEDALS, all_messages, channel_homes, one_after_another, time_base
from .midi_writer import LONGEST_WAIT, message_bytes, meta_bytes, number_bytes
from .notes import (
    DRUM_CHANNEL,
    NOTE_DTYPE,
    OTHER_PEDAL_DTYPE,
    PEDAL_DTYPE,
    TEMPO_DTYPE,
    TIME_SIGNATURE_DTYPE,
    Notes,
)

Event = tuple  # name, tick, and what it is
NUM_CHANNELS = 16
_TEMPO, _TIME_SIGNATURE, _KEY_SIGNATURE, _END_OF_TRACK = 0x51, 0x58, 0x59, 0x2F
_RELEASE, _CONTROL, _STRIKE = range(3)  # order of messages of one tick
_NO_BYTE = -1
_SLOWEST = 2**24 - 1  # microseconds per quarter that a MIDI file can hold


@dataclass
class Score:
    """Events of a MIDI file.

    Attributes:
        ticks_per_quarter: ticks in one quarter note.
        tracks: events of each track chunk, empty ones included.
    """

    ticks_per_quarter: int
    tracks: list[list[Event]]


# Reading --------------------------------------------------------------------------------------------------------------


def read_score(source: str | os.PathLike | bytes) -> Score:
    """Read a MIDI file as this package does: what is said of `read_midi` holds here, and no instrument is left out.

    Channels of further ports get a free one of the 16, as long as there is one.

    Raises:
        MidiError: if it can't be read.
    """
    with naming(source):
        _, kind, division, bodies = opened(source)
        ticks_per_quarter, us_per_quarter = time_base(division)
        if not ticks_per_quarter:
            raise ValueError("a quarter has 0 ticks")
        chunks = [chunk_events(body) for body in bodies]
        if kind == 2 and len(chunks) > 1:
            chunks = one_after_another(chunks)
        tracks = _merged_tracks(chunks)
        for track, chunk in zip(tracks, chunks, strict=True):
            metas = _metas(chunk)
            track += metas if us_per_quarter is None else [each for each in metas if each[0] == "key_signature"]
        if us_per_quarter is not None and tracks:  # frames of a film: no tempo of the file has a say in it
            tracks[0].append(("set_tempo", 0, us_per_quarter))
        for track in tracks:
            track.sort(key=lambda event: event[1])
        return Score(ticks_per_quarter, tracks)


def read_score_by_track(source: str | os.PathLike | bytes) -> Score:
    """Read a MIDI file as MIDI.py does: each track for itself, notes in the order in which they end.

    Of strikes of one key that overlap in a track, the first one ends first; one that is never released ends with its
    track, after all others.

    Raises:
        MidiError: if it can't be read.
    """
    with naming(source):
        _, _, division, bodies = opened(source)
        if not division:
            raise ValueError("a quarter has 0 ticks")
        return Score(division, [_track_by_itself(chunk_events(body)) for body in bodies])


def _track_by_itself(chunk: ChunkEvents) -> list[Event]:
    track = _metas(chunk)
    sounding: dict[tuple[int, int], list[Event]] = {}
    columns = (chunk.tick, chunk.status, chunk.first, chunk.second)
    for tick, status, first, second in zip(*(column.tolist() for column in columns), strict=True):
        kind, channel = status & 0xF0, status & 0x0F
        key = channel, first
        if kind == NOTE_ON and second:
            sounding.setdefault(key, []).append((tick, second))
        elif kind in (NOTE_ON, NOTE_OFF):
            if sounding.get(key):
                begin, velocity = sounding[key].pop(0)
                track.append(("note", begin, tick - begin, *key, velocity))
        elif kind == CONTROL_CHANGE:
            track.append(("control_change", tick, *key, second))
        elif kind == PROGRAM_CHANGE:
            track.append(("patch_change", tick, *key))
    for key, strikes_left in sounding.items():
        track += [("note", begin, chunk.end_tick - begin, *key, velocity) for begin, velocity in strikes_left]
    return track


def _metas(chunk: ChunkEvents) -> list[Event]:
    """Tempos and signatures; those cut short say nothing."""
    events: list[Event] = []
    for tick, content in chunk.metas.get(_TEMPO, ()):
        if len(content) >= 3:
            events.append(("set_tempo", tick, int.from_bytes(content[:3], "big")))
    for tick, content in chunk.metas.get(_TIME_SIGNATURE, ()):
        if len(content) >= 2:
            events.append(("time_signature", tick, content[0], content[1]))
    for tick, content in chunk.metas.get(_KEY_SIGNATURE, ()):
        if len(content) >= 2:
            sharps = int.from_bytes(content[:1], "big", signed=True)
            events.append(("key_signature", tick, sharps, content[1]))
    return events


def _merged_tracks(chunks: list[ChunkEvents]) -> list[list[Event]]:
    """Notes, controllers and programs of each chunk; strikes and releases are paired across chunks."""
    messages = merged(all_messages(chunks))
    struck = strikes(messages, max((chunk.end_tick for chunk in chunks), default=0))
    homes = channel_homes(chunks, messages)
    channel = np.array([homes.get(each, each) for each in messages.channel.tolist()], dtype=np.int64)
    used = dict.fromkeys(channel.tolist())
    numbers = sixteen_channels((each, each % NUM_CHANNELS == DRUM_CHANNEL) for each in used)
    tracks: list[list[Event]] = [[] for _ in chunks]
    places = messages.tick, messages.chunk, channel, messages.first, messages.second
    for tick, chunk, at, pitch, velocity, release in zip(
        *(column[struck.row].tolist() for column in places), struck.release.tolist(), strict=True
    ):
        number = numbers[at, at % NUM_CHANNELS == DRUM_CHANNEL]
        tracks[chunk].append(("note", tick, release - tick, number, pitch, velocity))
    # What stands on a channel that stands for another is a copy.
    is_own = channel == messages.channel if homes else np.ones(len(channel), dtype=bool)
    rows = np.flatnonzero(is_own & np.isin(messages.kind, (CONTROL_CHANGE, PROGRAM_CHANGE)))
    for kind, tick, chunk, at, first, second in zip(
        *(column[rows].tolist() for column in (messages.kind, *places)), strict=True
    ):
        number = numbers[at, at % NUM_CHANNELS == DRUM_CHANNEL]
        is_program = kind == PROGRAM_CHANGE
        tracks[chunk].append(
            ("patch_change", tick, number, first) if is_program else ("control_change", tick, number, first, second)
        )
    return tracks


def sixteen_channels(channels: Iterable[tuple[int, bool]]) -> dict[tuple[int, bool], int]:
    """A number of 0..15 for each channel, given with whether it plays drums: its own where that is free.

    Drums go to channel 9 and nothing else does. Where there are more than 15 others, the last ones share.
    """
    channels = list(channels)
    numbers = {each: DRUM_CHANNEL for each in channels if each[1]}
    others = [each for each in channels if not each[1]]
    numbers |= {each: each[0] for each in others if each[0] < NUM_CHANNELS and each[0] != DRUM_CHANNEL}
    free = [number for number in range(NUM_CHANNELS) if number != DRUM_CHANNEL and number not in numbers.values()]
    for each in others:
        if each not in numbers:
            numbers[each] = free.pop(0) if free else NUM_CHANNELS - 1
    return numbers


# Notes ----------------------------------------------------------------------------------------------------------------


def score_of_notes(notes: Notes) -> Score:
    """Tempos and time signatures as the first track, then a track for each that has notes, with programs and pedals."""
    table = notes.table
    pedals = [*_pedal_events(notes)]
    channels = [*zip(table["channel"].tolist(), table["is_drum"].tolist(), strict=True)]
    drums = {channel for channel, is_drum in channels if is_drum}
    numbers = sixteen_channels(dict.fromkeys([*channels, *((each[2], each[2] in drums) for each in pedals)]))
    conductor: list[Event] = [("set_tempo", *row) for row in notes.tempos.tolist()]
    conductor += [
        ("time_signature", tick, numerator, denominator.bit_length() - 1)
        for tick, numerator, denominator in notes.time_signatures.tolist()
    ]
    tracks: dict[int, list[Event]] = {track: [] for track in sorted(set(table["track"].tolist()))}
    home: dict[int, int] = {}  # of each channel the first track, which tells its programs and pedals
    for track, channel in zip(table["track"].tolist(), channels, strict=True):
        home[numbers[channel]] = min(track, home.get(numbers[channel], track))
    program: dict[int, int] = {}
    for row, kind in zip(table.tolist(), channels, strict=True):
        onset, duration, pitch, velocity, own_program, _, track, _ = row
        number = numbers[kind]
        if program.get(number) != own_program:
            tracks[home[number]].append(("patch_change", onset if number in program else 0, number, own_program))
            program[number] = own_program
        tracks[track].append(("note", onset, duration, number, pitch, velocity))
    for tick, value, played_on, controller in pedals:
        number = numbers[played_on, played_on in drums]
        own = tracks[home[number]] if number in home else conductor
        own.append(("control_change", tick, number, controller, value))
    return Score(notes.ticks_per_quarter, [conductor, *tracks.values()])


def _pedal_events(notes: Notes) -> Iterable[tuple[int, int, int, int]]:
    """Tick, value, channel and controller of each pedal event."""
    yield from ((*row, SUSTAIN) for row in notes.pedals.tolist())
    yield from notes.other_pedals.tolist()


def notes_of_score(score: Score) -> Notes:
    """The note table of a score; controllers that are no pedals, and key signatures, have no place in it."""
    notes: list[tuple] = []
    programs: list[tuple[int, int, int]] = []
    others: list[Event] = []
    for index, track in enumerate(score.tracks):
        for event in track:
            if event[0] == "note" and event[5]:  # a strike without velocity is a release
                notes.append((*event[1:], index))
            elif event[0] == "patch_change":
                programs.append(event[1:])
            elif event[0] != "note":
                others.append(event)
    table = np.zeros(len(notes), dtype=NOTE_DTYPE)
    names = ("onset_tick", "duration_tick", "channel", "pitch", "velocity", "track")
    for name, column in zip(names, np.array(notes, dtype=np.int64).reshape(-1, len(names)).T, strict=True):
        table[name] = column
    table["is_drum"] = table["channel"] == DRUM_CHANNEL
    table["program"] = _programs(table, programs)
    used, table["track"] = np.unique(table["track"], return_inverse=True)
    tempos = [(tick, min(us, _SLOWEST)) for _, tick, us in _named(others, "set_tempo")]
    signatures = [(tick, numerator, 2**power) for _, tick, numerator, power in _named(others, "time_signature")]
    pedals = [(tick, value, channel) for _, tick, channel, number, value in _controls(others, (SUSTAIN,))]
    rest = [(tick, value, channel, number) for _, tick, channel, number, value in _controls(others, OTHER_PEDALS)]
    return Notes(
        table,
        score.ticks_per_quarter,
        np.array(tempos, dtype=TEMPO_DTYPE),
        np.array(signatures, dtype=TIME_SIGNATURE_DTYPE),
        np.array(pedals, dtype=PEDAL_DTYPE),
        ("",) * len(used),
        other_pedals=np.array(rest, dtype=OTHER_PEDAL_DTYPE),
    )


def _named(events: list[Event], name: str) -> list[Event]:
    return [event for event in events if event[0] == name]


def _controls(events: list[Event], controllers: tuple[int, ...]) -> list[Event]:
    return [event for event in events if event[0] == "control_change" and event[3] in controllers]


def _by_tick(events: Iterable[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    return sorted(events, key=lambda event: event[0])


def _programs(table: np.ndarray, changes: list[tuple[int, int, int]]) -> np.ndarray:
    """The program of each note: the latest change of its channel, one at its own tick included."""
    found = np.zeros(len(table), dtype=np.int64)
    for channel in {each[1] for each in changes}:
        ticks, _, programs = np.array(_by_tick(each for each in changes if each[1] == channel), dtype=np.int64).T
        rows = np.flatnonzero(table["channel"] == channel)
        place = np.searchsorted(ticks, table["onset_tick"][rows], side="right")
        found[rows] = np.append(0, programs)[place]
    return found


# Writing --------------------------------------------------------------------------------------------------------------


def score_to_midi(score: Score) -> bytes:
    """A type 1 MIDI file of the score, a chunk for each track.

    Raises:
        MidiError: if a tick is beyond what MIDI can hold.
    """
    ends = [event[1] + (event[2] if event[0] == "note" else 0) for track in score.tracks for event in track]
    if max(ends, default=0) > LONGEST_WAIT:
        raise MidiError(f"ticks beyond {LONGEST_WAIT} can't be written: cut the piece")
    bodies = [_track_bytes(track) for track in score.tracks] or [_track_bytes([])]
    numbers = (1, len(bodies), score.ticks_per_quarter)
    header = b"MThd" + (6).to_bytes(4, "big") + b"".join(number.to_bytes(2, "big") for number in numbers)
    return header + b"".join(b"MTrk" + len(body).to_bytes(4, "big") + body for body in bodies)


def _track_bytes(track: list[Event]) -> bytes:
    """Meta events among the messages, each of one tick after the releases of that tick."""
    parts: list[tuple[int, bytes]] = []
    rows: list[tuple[int, ...]] = []
    for place, (name, tick, *values) in enumerate(track):
        if name == "note":
            length, channel, pitch, velocity = values
            rows.append((tick, _STRIKE, place, NOTE_ON | channel, pitch, velocity))
            # A note without length, of which decoding makes none, would else end before it begins.
            rows.append((tick + length, _RELEASE if length else _STRIKE, place, NOTE_OFF | channel, pitch, 64))
        elif name == "patch_change":
            rows.append((tick, _CONTROL, place, PROGRAM_CHANGE | values[0], values[1], _NO_BYTE))
        elif name == "control_change":
            rows.append((tick, _CONTROL, place, CONTROL_CHANGE | values[0], *values[1:]))
        else:
            parts.append((tick, _meta(name, values)))
    return _joined(parts, rows)


def _meta(name: str, values: list[int]) -> bytes:
    if name == "set_tempo":
        return meta_bytes(_TEMPO, min(values[0], _SLOWEST).to_bytes(3, "big"))
    if name == "time_signature":
        return meta_bytes(_TIME_SIGNATURE, bytes((*values[:2], 24, 8)))
    return meta_bytes(_KEY_SIGNATURE, values[0].to_bytes(1, "big", signed=True) + bytes(values[1:2]))


def _joined(metas: list[tuple[int, bytes]], rows: list[tuple[int, ...]]) -> bytes:
    """The body of a chunk: between two meta events stand the messages of the time between them."""
    messages = np.array(sorted(rows), dtype=np.int64).reshape(-1, 6)
    body, now, begin = bytearray(), 0, 0
    for tick, content in sorted(metas, key=lambda each: each[0]):
        stop = int(np.searchsorted(messages[:, 0], tick))
        now, begin = _add(body, messages[begin:stop], now), stop
        body += number_bytes(tick - now) + content
        now = tick
    _add(body, messages[begin:], now)
    return bytes(body) + b"\0" + meta_bytes(_END_OF_TRACK, b"")


def _add(body: bytearray, messages: np.ndarray, now: int) -> int:
    """Add messages after tick `now` and return the tick of the last one."""
    if not len(messages):
        return now
    end = int(messages[-1, 0])
    messages = messages.copy()
    messages[:, 0] -= now
    body += message_bytes(messages)
    return end


__all__ = ["Event", "Score", "notes_of_score", "read_score", "read_score_by_track", "score_of_notes", "score_to_midi"]
