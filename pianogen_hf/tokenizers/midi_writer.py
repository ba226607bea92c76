"""From a note table to the bytes of a MIDI file that reads as the same table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from .midi_channels import CONTROL_CHANGE, NOTE_OFF, NOTE_ON, PROGRAM_CHANGE, SUSTAIN
from .notes import DRUM_CHANNEL, MAX_CHANNEL, Notes, take_rows

LONGEST_WAIT = 2**28 - 1  # ticks: what MIDI's variable-length numbers can hold
# In place of a channel of its own where two notes of one channel can't be told apart: "these notes belong to channel N"
# in a meta event that other programs skip. They play the notes right, as the channel's pedals are written to both.
MARK = b"\x7dpianogen channel "  # 7D: the manufacturer of what is no product
_SEQUENCER_SPECIFIC, _NAME, _PORT, _END, _TEMPO, _TIME_SIGNATURE = 0x7F, 0x03, 0x21, 0x2F, 0x51, 0x58
_RELEASE_VELOCITY = 64
_NO_BYTE = -1
_FIRST, _RELEASE, _STRIKE, _RELEASE_AT_ONCE = range(4)  # order of events of one tick


@dataclass
class _Chunk:
    """What is written to one track chunk: notes and pedals of one channel."""

    name: str
    channel: int  # on which they are written
    home: int  # where they belong
    rows: np.ndarray  # of the note table
    events: list[np.ndarray] = field(default_factory=list)  # rows of (tick, order, place, status, first, second)

    def add(
        self,
        tick: np.ndarray,
        order: int,
        kind: int,
        first: np.ndarray | int,
        second: np.ndarray | int,
        place: np.ndarray | None = None,
        channel: int | None = None,
    ) -> None:
        """Add messages of one kind; those of one tick and order follow `place`, or stand as they come."""
        status = kind | (self.channel if channel is None else channel) & 0x0F
        places = np.arange(len(tick)) if place is None else place
        columns = np.broadcast_arrays(tick, order, places, status, first, second)
        self.events.append(np.stack(columns, axis=1).astype(np.int64))


def midi_bytes(notes: Notes) -> bytes:
    """A type 1 file: tempos and time signatures in a chunk of their own, then a chunk for each track and channel.

    Raises:
        ValueError: if MIDI can't hold it.
    """
    timed = (notes.tempos, notes.time_signatures, notes.pedals, notes.other_pedals)
    if min(int(rows["tick"].min(initial=0)) for rows in timed) < 0:
        raise ValueError("an event before tick 0 can't be written")
    if max(notes.end_tick, *(int(rows["tick"].max(initial=0)) for rows in timed)) > LONGEST_WAIT:
        raise ValueError(f"ticks beyond {LONGEST_WAIT} can't be written: lower ticks_per_quarter or cut the piece")
    chunks = list(_chunks(notes))
    _add_notes(notes, chunks)
    _add_programs(notes, chunks)
    _add_pedals(notes, chunks)
    bodies = [_conductor(notes), *(_body(chunk) for chunk in chunks)]
    header = (
        b"MThd"
        + (6).to_bytes(4, "big")
        + b"".join(number.to_bytes(2, "big") for number in (1, len(bodies), notes.ticks_per_quarter))
    )
    return header + b"".join(b"MTrk" + len(body).to_bytes(4, "big") + body for body in bodies)


# Which note goes where ------------------------------------------------------------------------------------------------


def _chunks(notes: Notes) -> Iterator[_Chunk]:
    """Chunks such that on each channel every release ends the strike it belongs to."""
    table = notes.table
    home = table["channel"].astype(np.int64)
    part = (table["track"].astype(np.int64) << 12 | home) << 1 | table["is_drum"]
    placed: dict[int, list[np.ndarray]] = {}  # notes by the channel on which they are written
    used = set(_distinct(home)) | set(notes.pedals["channel"].tolist()) | set(notes.other_pedals["channel"].tolist())
    for each in _distinct(part):
        track, channel, is_drum = each >> 13, each >> 1 & MAX_CHANNEL, bool(each & 1)
        name = notes.track_names[track] if track < len(notes.track_names) else ""
        for rows in _layers(table, np.flatnonzero(part == each)):
            target = _channel_for(table, rows, channel, is_drum, placed, used)
            used.add(target)
            placed.setdefault(target, []).append(rows)
            yield _Chunk(name, target, channel, rows)


def _distinct(numbers: np.ndarray) -> list[int]:
    """`np.unique` as a list, at once where all are the same."""
    return numbers[:1].tolist() if (numbers == numbers[:1]).all() else np.unique(numbers).tolist()


def _channel_for(
    table: np.ndarray,
    rows: np.ndarray,
    channel: int,
    is_drum: bool,
    placed: dict[int, list[np.ndarray]],
    used: set[int],
) -> int:
    """The channel itself if these notes can share it with those that are there, or else one of its own."""
    if (channel % 16 == DRUM_CHANNEL) == is_drum and _can_share(table, [*placed.get(channel, []), rows]):
        return channel
    for other in range(MAX_CHANNEL + 1):
        if (other % 16 == DRUM_CHANNEL) == is_drum and other not in used:
            return other
    raise ValueError("more notes of one key sound at once than MIDI has channels for")


def _can_share(table: np.ndarray, parts: list[np.ndarray]) -> bool:
    """Whether first-in-first-out pairing gives each strike its own length back, if the parts are tracks in this order.

    That holds when, for each pitch, the offsets rise with the onsets.
    """
    if len(parts) == 1:
        return True  # a layer
    rows = np.concatenate(parts)
    number = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
    pitch, onset, duration = (
        table[name].take(rows).astype(np.int64) for name in ("pitch", "onset_tick", "duration_tick")
    )
    order = np.lexsort((duration, number, onset, pitch))
    pitch, offset = pitch.take(order), (onset + duration).take(order)
    return bool(((pitch[1:] != pitch[:-1]) | (offset[1:] >= offset[:-1])).all())


def _layers(table: np.ndarray, rows: np.ndarray) -> list[np.ndarray]:
    """Split notes so that within a part first-in-first-out pairing gives each strike its own length back.

    Args:
        table: the note table, by onset, pitch, duration.
        rows: which of its rows, ascending; so are those of each layer.
    """
    layers: list[np.ndarray] = []
    pitch, onset, duration = (table[name].take(rows) for name in ("pitch", "onset_tick", "duration_tick"))
    rest = np.argsort(pitch, kind="stable")  # by pitch, then as they stood
    # `reach` is the latest offset so far of the same pitch: running maximum over keys that never mix pitches.
    key = (pitch.astype(np.int64) << 34) + onset + duration
    while True:
        keys = key.take(rest)
        reach = np.maximum.accumulate(keys)
        fits = keys >= reach
        layers.append(rows if fits.all() and not layers else rows.take(np.sort(rest[fits])))
        if fits.all():
            return layers
        rest = rest[~fits]


# What is written ------------------------------------------------------------------------------------------------------


def _add_notes(notes: Notes, chunks: list[_Chunk]) -> None:
    for chunk in chunks:
        rows = take_rows(notes.table, chunk.rows)
        onset, pitch, at_once = rows["onset_tick"].astype(np.int64), rows["pitch"], rows["duration_tick"] == 0
        chunk.add(onset, _STRIKE, NOTE_ON, pitch, rows["velocity"], 2 * np.arange(len(rows)) + 1)
        offset = onset + rows["duration_tick"]
        for order, chosen in ((_RELEASE, ~at_once), (_RELEASE_AT_ONCE, at_once)):
            if chosen.any():
                chunk.add(offset[chosen], order, NOTE_OFF, pitch[chosen], _RELEASE_VELOCITY)


def _add_programs(notes: Notes, chunks: list[_Chunk]) -> None:
    """Name the program of each channel at its beginning, and again wherever it changes."""
    for channel in dict.fromkeys(chunk.channel for chunk in chunks):
        own = [chunk for chunk in chunks if chunk.channel == channel]
        rows = np.concatenate([chunk.rows for chunk in own])
        program = notes["program"].take(rows)
        if (program == program[0]).all():
            own[0].add(np.array([0]), _FIRST, PROGRAM_CHANGE, program[:1], _NO_BYTE)
            continue
        number = np.repeat(np.arange(len(own)), [len(chunk.rows) for chunk in own])
        place = np.concatenate([np.arange(len(chunk.rows)) for chunk in own])
        onset = notes["onset_tick"].take(rows)
        order = np.lexsort((place, number, onset))
        changes = order[np.append(True, np.diff(program.take(order)) != 0)]
        for index, chunk in enumerate(own):
            at = changes[number[changes] == index]
            chunk.add(onset[at].astype(np.int64), _STRIKE, PROGRAM_CHANGE, program[at], _NO_BYTE, 2 * place[at])


def _add_pedals(notes: Notes, chunks: list[_Chunk]) -> None:
    """Write the pedals of each channel once, and again wherever its notes had to move to another."""
    silent: dict[int, _Chunk] = {}  # by port, for channels without notes
    for rows in (notes.pedals, notes.other_pedals):
        for channel in _distinct(rows["channel"]):
            own = take_rows(rows, rows["channel"] == channel)
            first_of = {chunk.channel: chunk for chunk in reversed(chunks) if channel in (chunk.home, chunk.channel)}
            places = [chunk for chunk in first_of.values() if chunk.home == channel]
            controller = own["controller"] if rows is notes.other_pedals else SUSTAIN
            for chunk in places:
                chunk.add(own["tick"], _FIRST, CONTROL_CHANGE, controller, own["value"])
            if channel not in first_of:
                port = channel & ~0x0F
                chunk = silent.setdefault(port, _Chunk("Pedal", port, port, np.zeros(0, dtype=np.int64)))
                chunk.add(own["tick"], _FIRST, CONTROL_CHANGE, controller, own["value"], channel=channel)
    chunks.extend(silent.values())


# Bytes ----------------------------------------------------------------------------------------------------------------


def _conductor(notes: Notes) -> bytes:
    metas = [(tick, _TEMPO, us.to_bytes(3, "big")) for tick, us in notes.tempos.tolist()]
    for tick, numerator, denominator in notes.time_signatures.tolist():
        metas.append((tick, _TIME_SIGNATURE, bytes((numerator, denominator.bit_length() - 1, 24, 8))))
    body, now = bytearray(), 0
    for tick, kind, content in sorted(metas, key=lambda meta: meta[0]):
        body += number_bytes(tick - now) + meta_bytes(kind, content)
        now = tick
    return bytes(body) + b"\0" + meta_bytes(_END, b"")


def meta_bytes(kind: int, content: bytes) -> bytes:
    """A meta event, without the time before it."""
    return bytes((0xFF, kind)) + number_bytes(len(content)) + content


def number_bytes(value: int) -> bytes:
    """A number in MIDI's variable-length form."""
    parts = [value & 0x7F]
    while value := value >> 7:
        parts.append(value & 0x7F | 0x80)
    return bytes(reversed(parts))


def _body(chunk: _Chunk) -> bytes:
    head = [(_NAME, chunk.name.encode())] if chunk.name else []
    if chunk.channel >= 16:
        head.append((_PORT, bytes((chunk.channel >> 4,))))
    if chunk.channel != chunk.home:
        head.append((_SEQUENCER_SPECIFIC, MARK + b"%d" % chunk.home))
    metas = b"".join(b"\0" + meta_bytes(*each) for each in head)
    return metas + message_bytes(np.concatenate(chunk.events)) + b"\0" + meta_bytes(_END, b"")


def message_bytes(rows: np.ndarray) -> bytes:
    """The bytes of channel messages, given as rows of (tick, order, place, status, first, second or -1)."""
    rows = rows.take(np.lexsort((rows[:, 2], rows[:, 1], rows[:, 0])), axis=0)
    tick, _, _, status, first, second = rows.T
    wait = np.diff(tick, prepend=0)
    shifts = np.array([21, 14, 7, 0])
    parts = wait[:, None] >> shifts
    is_written = np.ones((len(rows), 7), dtype=bool)
    is_written[:, :3] = parts[:, :3] > 0
    is_written[1:, 4] = status[1:] != status[:-1]  # running status
    is_written[:, 6] = second != _NO_BYTE
    table = np.empty((len(rows), 7), dtype=np.uint8)
    table[:, :4] = parts & 0x7F
    table[:, :3] |= 0x80
    table[:, 4], table[:, 5], table[:, 6] = status, first, second & 0x7F
    return table[is_written].tobytes()
