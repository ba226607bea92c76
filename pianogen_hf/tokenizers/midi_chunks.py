"""The bytes of a MIDI track chunk as columns of messages, without a loop over messages where the chunk is well formed.

Standard MIDI Files 1.0 (RP-001): a chunk is a row of events, each after the time since the one before it. A channel
message leaves its status byte out where that repeats (running status), so where an event begins depends on all that
stands before it. What makes it a matter of whole columns nevertheless: only status bytes, and all but the last byte of
a long time, are over 127, and from one of these "high" bytes to the next the number of low ones tells which of the two
the next is (see `_roles`). Meta events and messages of other sizes alone are gone through one by one, and a chunk in
which anything is amiss is read again byte after byte, as leniently as players do.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

END_OF_TRACK, TEMPO = 0x2F, 0x51  # kinds of meta events
TEXTS = {1: "texts", 5: "lyrics", 6: "markers", 7: "cue points"}  # kinds with content of their own
_META, _SYSEX, _SYSEX_END = 0xFF, 0xF0, 0xF7
_SINGLE = range(0xC0, 0xE0)  # program change and channel pressure: one data byte, others have two
_IS_SPECIAL = np.isin(np.arange(256), [*_SINGLE, *range(0xF0, 0x100)])
_CONTROL_CHANGE, _PROGRAM_CHANGE = 0xB0, 0xC0
_SHORT = 2**7  # bytes, which are sooner read than laid out in columns
# Tempo events one after another: some files have thousands.
_ONE_TEMPO = re.compile(rb"([\x80-\xff]{0,3}[\x00-\x7f])\xff\x51\x03([\x00-\xff]{3})")
_TEMPO_RUN = re.compile(rb"(?:[\x80-\xff]{0,3}[\x00-\x7f]\xff\x51\x03[\x00-\xff]{3})+")
_WIRE_BYTES = {0xF1: 1, 0xF2: 2, 0xF3: 1}  # data bytes of system messages that have no place in a file


Metas = dict[int, list[tuple[int, bytes]]]  # meta events by kind: time in ticks, content


@dataclass
class ChunkEvents:
    """What a track chunk holds.

    Attributes:
        tick: time of each channel message, int64 (num_messages,), in the order of the chunk.
        status: kind and channel of each, uint8 (num_messages,).
        first: first data byte of each, uint8 (num_messages,).
        second: second data byte, 0 where there is none.
        metas: the meta events, by kind.
        end_tick: time of the last event.
        num_clipped: data bytes over 127, which are read as 127.
        num_lost_bytes: bytes at the end of which no event could be made.
    """

    tick: np.ndarray
    status: np.ndarray
    first: np.ndarray
    second: np.ndarray
    metas: Metas = field(default_factory=dict)
    end_tick: int = 0
    num_clipped: int = 0
    num_lost_bytes: int = 0


class _IrregularChunk(Exception):
    """The chunk is not well formed."""


def chunk_events(body: bytes) -> ChunkEvents:
    """The events of a track chunk, header excluded."""
    if len(body) < _SHORT:
        return lenient_events(body)
    try:
        return _regular_events(body)
    except (_IrregularChunk, IndexError):
        return lenient_events(body)


def variable_length(body: bytes, position: int) -> tuple[int, int]:
    """A number in MIDI's variable-length form and the position after it.

    Raises:
        IndexError: if it is cut short.
    """
    value = 0
    while True:
        byte = body[position]
        value, position = (value << 7) | (byte & 0x7F), position + 1
        if not byte & 0x80:
            return value, position


# One event after another ---------------------------------------------------------------------------------------------


def lenient_events(body: bytes) -> ChunkEvents:
    """As `chunk_events`, without a fast way: what is amiss is clipped or skipped, and counted."""
    reader = _LenientReader(body)
    reader.run()
    columns = np.array(reader.messages, dtype=np.int64).reshape(-1, 4).T
    status, first, second = (column.astype(np.uint8) for column in columns[1:])
    lost = body[reader.good :]
    ended = END_OF_TRACK in reader.metas
    num_lost = 0 if ended and not lost.strip(b"\0") else len(lost)  # some programs fill chunks up
    return ChunkEvents(columns[0], status, first, second, reader.metas, reader.tick, reader.num_clipped, num_lost)


class Opening(NamedTuple):
    """What stands in a chunk before its first strike.

    Attributes:
        events: the meta events.
        size: in bytes.
        channel: of all messages, or -1 where there is none.
        programs: that the channel is given.
        controls: tick, number and value of each control change.
        is_whole: whether nothing follows.
    """

    events: ChunkEvents
    size: int
    channel: int
    programs: tuple[int, ...]
    controls: list[tuple[int, int, int]]
    is_whole: bool


def opening_events(body: bytes) -> Opening | None:
    """The opening of a chunk; None where the chunk is not plain so far."""
    metas: Metas = {}
    statuses: list[int] = []
    programs: list[int] = []
    controls: list[tuple[int, int, int]] = []
    position = tick = status = 0
    try:
        while True:
            position, wait, status, specials = _special_events(body, position, status)
            for at, code, content in specials:
                if code < 0x80:
                    metas.setdefault(code, []).append((tick + at, content))
                elif code & 0xF0 == _PROGRAM_CHANGE:
                    statuses.append(code)
                    programs.append(content[0])
                else:
                    return None
            before, tick = position, tick + wait
            position, tick, status = _control_changes(body, position, tick, status, controls)
            if status:
                statuses.append(status)
            if position == before:  # the end, or a strike
                break
    except (IndexError, _IrregularChunk):
        return None
    channels = {each & 0x0F for each in statuses}
    if len(channels) > 1:
        return None
    nothing = np.zeros(0, dtype=np.uint8)
    events = ChunkEvents(nothing, nothing, nothing, nothing, metas, tick)
    return Opening(events, position, min(channels, default=-1), tuple(programs), controls, position == len(body))


def _control_changes(
    body: bytes, position: int, tick: int, running: int, found: list[tuple[int, int, int]]
) -> tuple[int, int, int]:
    """Go through control changes; the position and tick after them, and the status of what follows or runs on.

    Raises:
        _IrregularChunk: if one has a data byte over 127, or a message is of another channel. IndexError: if one is cut
            short.
    """
    while position < len(body):
        wait, place = body[position], position + 1
        if wait > 127:
            wait, place = variable_length(body, position)
        status = body[place]
        status, place = (status, place + 1) if status > 127 else (running, place)
        if not 0x80 <= status < 0xF0:
            return position, tick, running
        if running and (status ^ running) & 0x0F:
            raise _IrregularChunk
        if status & 0xF0 != _CONTROL_CHANGE:
            return position, tick, status
        number, value = body[place], body[place + 1]
        if number > 127 or value > 127:
            raise _IrregularChunk
        tick += wait
        found.append((tick, number, value))
        position, running = place + 2, status
    return position, tick, running


class _LenientReader:
    """Events of a chunk, up to the byte from which nothing can be made of it (`good`)."""

    def __init__(self, body: bytes) -> None:
        self.body, self.good, self.tick, self.running, self.num_clipped = body, 0, 0, 0, 0
        self.messages: list[tuple[int, int, int, int]] = []
        self.metas: Metas = {}

    def run(self) -> None:
        try:
            while self.good < len(self.body):
                self.good = self.event(self.good)
        except (IndexError, _IrregularChunk):  # cut short, or a data byte of no message
            pass

    def event(self, position: int) -> int:
        """Read one event and return the position after it."""
        delta, position = variable_length(self.body, position)
        tick = self.tick + delta
        status = self.body[position]
        if status & 0x80:
            position += 1
        else:
            status = self.running
        if 0x80 <= status < 0xF0:
            position = self._message(tick, status, position)
        elif status in (_META, _SYSEX, _SYSEX_END):
            position = self._long_event(tick, status, position)
        elif status:
            position += _WIRE_BYTES.get(status, 0)
        else:
            raise _IrregularChunk
        self.tick = tick
        return position

    def _message(self, tick: int, status: int, position: int) -> int:
        first = self.body[position]
        second = 0 if status in _SINGLE else self.body[position + 1]
        self.num_clipped += (first > 127) + (second > 127)
        self.messages.append((tick, status, min(first, 127), min(second, 127)))
        self.running = status
        return position + (1 if status in _SINGLE else 2)

    def _long_event(self, tick: int, status: int, position: int) -> int:
        kind = self.body[position]
        length, position = variable_length(self.body, position + (status == _META))
        if position + length > len(self.body):
            raise _IrregularChunk
        if status == _META:
            self.metas.setdefault(kind, []).append((tick, self.body[position : position + length]))
            if kind == END_OF_TRACK:
                self.running = 0  # some files go on, but none without saying how
        return position + length


# Whole columns -------------------------------------------------------------------------------------------------------


class _Stretch(NamedTuple):
    """Bytes that hold nothing but channel messages with two data bytes."""

    begin: int
    end: int
    wait: int  # ticks that other events before it took
    first_high: int  # which of the high bytes lie in it
    last_high: int


def _special_events(body: bytes, position: int, running: int) -> tuple[int, int, int, list[tuple[int, int, bytes]]]:
    """Go through events that are not channel messages with two data bytes.

    Args:
        body: the chunk.
        position: where to begin.
        running: the status that a message without one has, or 0.

    Returns:
        The position of the first other event, the ticks up to there, the status that runs on, and each event: ticks
        since the beginning, the kind of meta event or the status byte, content.

    Raises:
        _IrregularChunk: if the bytes are not well formed. IndexError: if they end too soon.
    """
    found = []
    size, wait = len(body), 0
    while position < size:
        delta, place = body[position], position + 1
        if delta > 127:
            delta, place = variable_length(body, position)
        status = body[place]
        if status == _META:
            kind, length, place = body[place + 1], body[place + 2], place + 3
            if kind == TEMPO and (run := _TEMPO_RUN.match(body, position)):
                for time, content in _ONE_TEMPO.findall(body, position, run.end()):
                    wait += time[0] if len(time) == 1 else variable_length(time, 0)[0]
                    found.append((wait, kind, content))
                position = run.end()
                continue
            if length > 127:
                length, place = variable_length(body, place - 1)
            position, wait = place + length, wait + delta
            if position > size or kind > 127:
                raise _IrregularChunk
            found.append((wait, kind, body[place:position]))
            if kind == END_OF_TRACK:
                running = 0  # some files go on, but none without saying how
        elif status in (_SYSEX, _SYSEX_END):
            length, place = variable_length(body, place + 1)
            position, wait = place + length, wait + delta
            if position > size:
                raise _IrregularChunk
        else:
            if status > 127:
                place += 1
            else:
                status = running
            if status not in _SINGLE:
                if not 0x80 <= status < 0xF0:
                    raise _IrregularChunk
                break
            if body[place] > 127:
                raise _IrregularChunk
            running, position, wait = status, place + 1, wait + delta
            found.append((wait, status, body[place:position]))
    return position, wait, running, found


def _regular_events(body: bytes) -> ChunkEvents:
    array = np.frombuffer(body, dtype=np.uint8)
    high = np.flatnonzero(array.view(np.int8) < 0)
    stretches, specials, wait = _Cutter(body, array, high).cut()
    tick, status, data, ends = _messages(array, high, stretches)
    first, second = array.take(data), array[1:].take(data)
    before, rows = [0, *tick[[end - 1 for end in ends]].tolist()], [0, *ends]
    metas: Metas = {}
    singles: list[tuple[int, int, int, int]] = []
    for index, events in specials:
        for at, code, content in events:
            if code < 0x80:
                metas.setdefault(code, []).append((before[index] + at, content))
            else:
                singles.append((rows[index], before[index] + at, code, content[0]))
    if singles:
        at_row, *columns = zip(*singles, strict=True)
        tick, status, first = (
            np.insert(column, at_row, values) for column, values in zip((tick, status, first), columns, strict=True)
        )
        second = np.insert(second, at_row, 0)
    return ChunkEvents(tick, status, first, second, metas, before[-1] + wait)


class _Cutter:
    """Cuts a chunk at every event that is not a channel message with two data bytes."""

    def __init__(self, body: bytes, array: np.ndarray, high: np.ndarray) -> None:
        self.body, self.high = body, high
        candidates = np.flatnonzero(_IS_SPECIAL.take(array.take(high)))  # their status bytes, and parts of long times
        self.numbers, self.places = candidates.tolist(), high.take(candidates).tolist()
        # Where the role of a high byte differs from that of the one before it (see `_roles`).
        self.changes = np.flatnonzero((high[1:] - high[:-1]) % 3 != 1) + 1
        self.next = 0

    def cut(self) -> tuple[list[_Stretch], list[tuple[int, list[tuple[int, int, bytes]]]], int]:
        """The stretches, the events before each or after the last, and the ticks from the last stretch to the end."""
        stretches: list[_Stretch] = []
        specials = []
        position = running = 0
        while True:
            position, wait, running, events = _special_events(self.body, position, running)
            specials.append((len(stretches), events))
            if position == len(self.body):
                return stretches, specials, wait
            stretches.append(self._stretch(position, wait))
            position, running = stretches[-1].end, 0x80

    def _stretch(self, begin: int, wait: int) -> _Stretch:
        """From a message with two data bytes to the next event that is none."""
        first_high = int(np.searchsorted(self.high, begin))
        while self.next < len(self.places) and self.places[self.next] < begin:
            self.next += 1
        for index in range(self.next, len(self.places)):
            if self._is_status(self.numbers[index], first_high, begin):
                end, last_high = self.places[index] - 1, self.numbers[index]
                while end > begin and self.body[end - 1] & 0x80:  # its time may be a long one
                    end, last_high = end - 1, last_high - 1
                if end <= begin:
                    raise _IrregularChunk
                self.next = index
                return _Stretch(begin, end, wait, first_high, last_high)
        self.next = len(self.places)
        return _Stretch(begin, len(self.body), wait, first_high, len(self.high))

    def _is_status(self, number: int, first_high: int, begin: int) -> bool:
        """Whether a high byte is a status byte, if all is well from the beginning of the stretch on."""
        latest = int(np.searchsorted(self.changes, number, side="right")) - 1
        change = int(self.changes[latest]) if latest >= 0 else 0
        if change > first_high:
            return int(self.high[change] - self.high[change - 1]) % 3 == 2
        return int(self.high[first_high] - begin) % 3 == 1


def _messages(
    array: np.ndarray, high: np.ndarray, stretches: list[_Stretch]
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[int]]:
    """Ticks, statuses, and the places of the data of all messages in the stretches; how many there are up to each."""
    if not stretches:
        nothing = np.zeros(0, dtype=np.int64)
        return nothing, nothing.astype(np.uint8), nothing, []
    mark, gap, heads = _marks(high, stretches)
    is_status = _roles(gap, heads)
    count = gap + is_status
    count -= 1
    count //= 3
    ends = np.add.accumulate(count)
    total = int(ends[-1])
    begins = ends - count
    byte = array.take(mark)
    running = np.maximum.accumulate(np.arange(len(mark)) * is_status)  # the latest status byte of each
    if not total or (count < is_status).any() or begins[running > 0][:1].tolist() != [0]:
        raise _IrregularChunk  # a status without its data, or a message before any status
    status = np.repeat(byte.take(running), count)
    data = np.repeat(mark + 2 - is_status - 3 * begins, count)
    data += np.arange(0, 3 * total, 3)
    last_of_time = data - 1
    last_of_time[begins[is_status]] -= 1
    delta = array.take(last_of_time).astype(np.int64)
    np.add.at(delta, begins, _long_times(byte, gap, is_status, heads, [each.wait for each in stretches]))
    return np.add.accumulate(delta), status, data, ends.take([*heads[1:] - 1, -1]).tolist()


def _marks(high: np.ndarray, stretches: list[_Stretch]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """High bytes of the stretches, how far each is from the next (or the end), and which is the head of each stretch.

    A stretch begins like what follows a part of a time, so a head that is such a part is thought just before it.
    """
    parts: list[np.ndarray | list[int]] = []
    tails = []
    size = 0
    for each in stretches:
        parts += [[each.begin - 1], high[each.first_high : each.last_high]]
        size += 1 + each.last_high - each.first_high
        tails.append(size - 1)
    mark = np.concatenate(parts)
    gap = np.empty_like(mark)
    np.subtract(mark[1:], mark[:-1], out=gap[:-1])
    gap[tails] = [each.end for each in stretches] - mark.take(tails)
    return mark, gap, np.array([0, *tails[:-1]]) + (np.arange(len(tails)) > 0)


def _roles(gap: np.ndarray, heads: np.ndarray) -> np.ndarray:
    """Which high bytes are status bytes; the others are part of a long time.

    After a status byte stand two data bytes and any number of messages of three low bytes (time, data, data); then,
    if the next high byte is a status, too, the last byte of its time. After a part of a time it is two bytes less. So
    the number of low bytes tells what follows: counted in threes, one rest says "the same again", and the two others
    "a status at last" and "now part of a time", which take turns where all is well. A stretch ends where a message
    would begin, as if the next were part of a time.

    Args:
        gap: distance of each high byte to the next, or to the end of its stretch.
        heads: the first of each stretch, a part of a time.

    Raises:
        _IrregularChunk: if what the numbers tell can't be.
    """
    rest = gap % 3
    changes = np.flatnonzero(rest != 1)
    kinds = rest.take(changes)
    turns = np.zeros(len(gap) + 1, dtype=bool)
    turns[changes + 1] = True
    is_status = np.logical_xor.accumulate(turns)
    if kinds[1::2].any() or (kinds[::2] != 2).any() or is_status[-1] or is_status.take(heads).any():
        raise _IrregularChunk
    return is_status[:-1]


def _long_times(
    byte: np.ndarray, gap: np.ndarray, is_status: np.ndarray, heads: np.ndarray, waits: list[int]
) -> np.ndarray:
    """What each high byte adds to the time of the message after it."""
    value = (byte & 0x7F).astype(np.int64)
    value[is_status] = 0
    followed = np.flatnonzero(gap == 1)  # by another part of the same time
    if len(followed) and followed[-1] + 1 < len(gap):
        shift = np.full(len(gap), 7)
        for _ in range(3):
            shift[followed] = shift[followed + 1] + 7
        shift[heads] = 7
        if shift.max() > 21:
            raise _IrregularChunk  # MIDI's numbers have four bytes
        value <<= shift
    else:
        value <<= 7
    value[heads] = waits
    return value
