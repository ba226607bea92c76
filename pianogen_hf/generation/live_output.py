"""The way out of a live session: notes are sent when their time comes, and what was begun is always ended."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable
from itertools import count
from typing import Protocol

from pianogen_hf.generation.live_notes import (
    ALL_NOTES_OFF,
    CONTROL,
    NOTE_OFF,
    NOTE_ON,
    SUSTAIN,
    LiveNote,
    Message,
)

_OFF, _ON = range(2)  # at one moment a key comes up before it goes down again
_KEPT_DELAYS = 10_000


class OutPort(Protocol):
    """Where messages go; mido's ports are wrapped to be one."""

    def send(self, message: Message) -> None:
        """Send three bytes. Any exception says that the port is lost."""


class Output:
    """Sends what is scheduled.

    A note that is due is sent, unless it is later than `max_late_sec`: then it is left out and counted. The end of a
    note that was sent is never left out: when a port fails, it is owed, and paid to the port that takes its place.

    Args:
        port: where to; None for a session that only a page sounds.
        channel: 0..15.
        max_late_sec: bound of how late a note may begin.

    Attributes:
        error: what the port said when it failed; None while it works.
        num_sent: notes that were sent.
        num_dropped: notes that were too late, or came while there was no port.
        delays: seconds by which each of the latest notes was late.
    """

    def __init__(self, port: OutPort | None, channel: int = 0, max_late_sec: float = 0.05) -> None:
        self.port, self.channel, self.max_late_sec = port, channel, max_late_sec
        self.error: str | None = None
        self.num_sent = self.num_dropped = 0
        self.delays: deque[float] = deque(maxlen=_KEPT_DELAYS)
        self._heap: list[tuple[float, int, int, LiveNote]] = []
        self._order = count()
        self._sounding: dict[tuple[int, int], LiveNote | None] = {}  # by channel and pitch; None: the player's own
        self._waiting: set[int] = set()  # ids of notes whose time has not come

    @property
    def is_sounding(self) -> bool:
        """Whether anything was begun and has not ended."""
        return bool(self._sounding)

    @property
    def is_empty(self) -> bool:
        """Whether nothing is to come."""
        return not self._waiting

    def schedule(self, note: LiveNote) -> None:
        """Send a note, and its end, when their times come. Its `offset` must be known."""
        self._waiting.add(id(note))
        heapq.heappush(self._heap, (note.onset, _ON, next(self._order), note))

    def next_sec(self) -> float | None:
        """When something is due next; None if nothing is."""
        return self._heap[0][0] if self._heap else None

    def send_due(self, now: float) -> list[LiveNote]:
        """Send whatever is due; the notes that began or were left out."""
        begun = []
        while self._heap and self._heap[0][0] <= now:
            _, kind, _, note = heapq.heappop(self._heap)
            if kind == _OFF:
                self._end(note)
            elif id(note) in self._waiting:
                self._waiting.remove(id(note))
                self._begin(note, now)
                begun.append(note)
        return begun

    def cancel(self, notes: Iterable[LiveNote]) -> list[LiveNote]:
        """Send none of these that has not begun; those."""
        cancelled = [note for note in notes if id(note) in self._waiting]
        gone = {id(note) for note in cancelled}
        self._waiting -= gone
        self._heap = [entry for entry in self._heap if id(entry[3]) not in gone]
        heapq.heapify(self._heap)
        return cancelled

    def silence(self, now: float, of_player: bool = False) -> None:
        """End what sounds, and forget what is to come.

        Args:
            now: seconds since the session began.
            of_player: whether also to end what was forwarded.
        """
        self._heap, self._waiting = [], set()
        for (channel, pitch), note in list(self._sounding.items()):
            if note is not None or of_player:
                self._send_off(channel, pitch, now)

    def panic(self, now: float) -> None:
        """End what sounds one by one, lift the pedal, and tell all that listens to end all notes."""
        channels = sorted({self.channel, *(channel for channel, _ in self._sounding)})
        self.silence(now, of_player=True)
        for channel in channels:
            for controller in (SUSTAIN, ALL_NOTES_OFF):
                self._send((CONTROL | channel, controller, 0))

    def forward(self, message: Message, now: float) -> None:
        """Send a message of the player's at once; a note of it that sounds is in the books, too."""
        kind, channel, pitch = message[0] & 0xF0, message[0] & 0x0F, message[1]
        if kind == NOTE_ON and message[2] > 0:
            self._send_off(channel, pitch, now)
            self._sounding[channel, pitch] = None
            self._send(message)
        elif kind in (NOTE_ON, NOTE_OFF):
            self._send_off(channel, pitch, now)
        else:
            self._send(message)

    def replace_port(self, port: OutPort, now: float) -> None:
        """Go on with another port, which first ends what the old one could not."""
        self.port, self.error = port, None
        self.panic(now)

    def _begin(self, note: LiveNote, now: float) -> None:
        late = now - note.onset
        if late > self.max_late_sec or self.error is not None:
            self.num_dropped += 1
            return
        self._send_off(self.channel, note.pitch, now)  # of the same key, if it sounds
        self._sounding[self.channel, note.pitch] = note
        if not self._send((NOTE_ON | self.channel, note.pitch, note.velocity)):
            note.finish(now)
            return
        note.is_sent = True
        self.num_sent += 1
        self.delays.append(late)
        assert note.offset is not None
        heapq.heappush(self._heap, (max(note.offset, now), _OFF, next(self._order), note))

    def _end(self, note: LiveNote) -> None:
        if self._sounding.get((self.channel, note.pitch)) is note:
            self._send_off(self.channel, note.pitch)

    def _send_off(self, channel: int, pitch: int, now: float | None = None) -> None:
        """End a key if it sounds; it stays in the books if the port can't be told."""
        if (channel, pitch) not in self._sounding:
            return
        note = self._sounding[channel, pitch]
        if note is not None and now is not None:
            note.finish(now)
        if self._send((NOTE_OFF | channel, pitch, 0)):
            del self._sounding[channel, pitch]

    def _send(self, message: Message) -> bool:
        """Send a message; False if the port is lost."""
        if self.error is not None:
            return False
        try:
            if self.port is not None:
                self.port.send(message)
        except Exception as error:  # every library has its own
            self.error = " ".join(str(error).split()) or type(error).__name__
            return False
        return True
