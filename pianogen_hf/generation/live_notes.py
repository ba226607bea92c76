"""What is played in a session, by whom: notes as they come in from a keyboard, and all of them as one piece.

Messages are those of MIDI 1.0, as bytes: (status, data, data). Times are seconds since the session began.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count

import numpy as np

from pianogen_hf.tokenizers.notes import DRUM_CHANNEL, NOTE_DTYPE, PEDAL_DOWN, PEDAL_DTYPE, Notes

NOTE_OFF, NOTE_ON, CONTROL = 0x80, 0x90, 0xB0  # statuses, to which a channel is added
SUSTAIN, ALL_SOUND_OFF, ALL_NOTES_OFF = 64, 120, 123  # controllers
PLAYER, MODEL, LOOP = range(3)  # voices; LOOP is a phrase of the player's that comes again
VOICES = ("player", "model", "loop")
_TICKS_PER_QUARTER = 500  # at 120 quarters a minute a tick is a millisecond

Message = tuple[int, int, int]
_numbers = count()


@dataclass(slots=True, eq=False)
class LiveNote:
    """A note of a session.

    Attributes:
        voice: one of `VOICES`, by number.
        onset: in seconds.
        pitch: 0..127.
        velocity: 1..127.
        offset: when the key came up, or will; None while the player holds it.
        end: when it died away: with the pedal that is later; None while nobody knows.
        turn: number of the phrase or answer that it is part of.
        is_sent: whether it sounds, or has sounded.
        row: as the model wrote it: time shift, pitch, velocity, duration; None for others.
        number: tells it from all others.
    """

    voice: int
    onset: float
    pitch: int
    velocity: int
    offset: float | None = None
    end: float | None = None
    turn: int = 0
    is_sent: bool = False
    row: list[float] | None = None
    number: int = field(default_factory=_numbers.__next__)

    def finish(self, sec: float) -> None:
        """End it, unless it has ended before."""
        self.offset = sec if self.offset is None else min(self.offset, sec)
        self.end = sec if self.end is None else min(self.end, sec)


def checked_message(values: Sequence[int]) -> Message:
    """A message of a channel; those of two bytes get a third.

    Raises:
        ValueError: if it is none.
    """
    if not 2 <= len(values) <= 3 or not all(type(value) is int for value in values):
        raise ValueError("a MIDI message is a list of 2 or 3 whole numbers")
    status, first, second = (*values, 0)[:3]
    if not 0x80 <= status < 0xF0 or not (0 <= first < 128 and 0 <= second < 128):
        raise ValueError(f"{list(values)} is no MIDI message of a channel")
    return status, first, second


class Keyboard:
    """What the player holds and has played.

    Attributes:
        notes: all notes, in the order in which they began.
        pedals: (seconds, value, channel) of the sustain pedal.
        held: notes whose key is down, by channel and pitch.
        last_event: when something began or ended last.
    """

    def __init__(self) -> None:
        self.notes: list[LiveNote] = []
        self.pedals: list[tuple[float, int, int]] = []
        self.held: dict[tuple[int, int], LiveNote] = {}
        self.last_event = 0.0
        self._ringing: dict[tuple[int, int], LiveNote] = {}  # by the pedal alone
        self._down: set[int] = set()  # channels whose pedal is down

    def receive(self, message: Message, sec: float) -> LiveNote | None:
        """Take a message; the note that it began, if any."""
        kind, channel = message[0] & 0xF0, message[0] & 0x0F
        if channel == DRUM_CHANNEL:
            return None
        if kind == NOTE_ON and message[2] > 0:
            return self._strike(channel, message[1], message[2], sec)
        if kind in (NOTE_ON, NOTE_OFF):
            self._release((channel, message[1]), sec)
        elif kind == CONTROL and message[1] == SUSTAIN:
            self._move_pedal(channel, message[2], sec)
        elif kind == CONTROL and message[1] in (ALL_SOUND_OFF, ALL_NOTES_OFF):
            self.release_all(sec)
        return None

    def release_all(self, sec: float) -> None:
        """End all notes, and lift the pedal: what happens when the keyboard is gone."""
        for key in list(self.held):
            self._release(key, sec)
        for channel in sorted(self._down):
            self._move_pedal(channel, 0, sec)

    def clear(self) -> None:
        """Forget all, but for keys that are down: their notes are to end, too."""
        self.notes, self.pedals = list(self.held.values()), []

    def _strike(self, channel: int, pitch: int, velocity: int, sec: float) -> LiveNote:
        self._release((channel, pitch), sec)
        if (channel, pitch) in self._ringing:
            self._ringing.pop((channel, pitch)).end = sec
        note = LiveNote(PLAYER, sec, pitch, velocity, is_sent=True)
        self.held[channel, pitch] = note
        self.notes.append(note)
        self.last_event = sec
        return note

    def _release(self, key: tuple[int, int], sec: float) -> None:
        note = self.held.pop(key, None)
        if note is None:
            return
        note.offset, self.last_event = sec, sec
        if key[0] in self._down:
            self._ringing[key] = note
        else:
            note.end = sec

    def _move_pedal(self, channel: int, value: int, sec: float) -> None:
        self.pedals.append((sec, value, channel))
        if value >= PEDAL_DOWN:
            self._down.add(channel)
        elif channel in self._down:
            self._down.remove(channel)
            self.last_event = sec
            for key in [each for each in self._ringing if each[0] == channel]:
                self._ringing.pop(key).end = sec


def heard_notes(notes: Iterable[LiveNote], until_sec: float, open_sec: float | None = None) -> Notes:
    """Notes as they sounded, for a feature extractor: pedal folded in, on a grid of 1 ms.

    Args:
        notes: of any voices.
        until_sec: when what still sounds is taken to end.
        open_sec: how long it is taken to last, instead.
    """
    rows = [(note.onset, _end_of(note, until_sec, open_sec), note.pitch, note.velocity) for note in notes]
    onset, end, pitch, velocity = np.array(rows, dtype=np.float64).reshape(-1, 4).T
    return Notes.from_seconds(onset, np.maximum(end - onset, 0.001), pitch.astype(int), velocity.astype(int))


def _end_of(note: LiveNote, until_sec: float, open_sec: float | None) -> float:
    if note.end is not None:
        return note.end
    return until_sec if open_sec is None else note.onset + open_sec


def as_piece(notes: Iterable[LiveNote], pedals: Iterable[tuple[float, int, int]], until_sec: float) -> Notes:
    """A session as a piece: a track and a channel for each voice, the first event at the beginning.

    Args:
        notes: of any voices; those that were not sent are left out.
        pedals: of the player: (seconds, value, channel).
        until_sec: now, when what still sounds ends.
    """
    sent = [note for note in notes if note.is_sent]
    pedals = list(pedals) if sent else []
    origin = min([note.onset for note in sent] + [pedal[0] for pedal in pedals], default=0.0)
    table = np.zeros(len(sent), NOTE_DTYPE)
    for row, note in zip(table, sent, strict=True):
        end = until_sec if note.offset is None else note.offset
        onset, offset = (round(1000 * (sec - origin)) for sec in (note.onset, end))
        row["onset_tick"], row["duration_tick"] = onset, max(offset - onset, 1)
        row["pitch"], row["velocity"], row["track"], row["channel"] = note.pitch, note.velocity, note.voice, note.voice
    rows = [(round(1000 * (sec - origin)), value, PLAYER) for sec, value, _ in pedals]
    return Notes(table, _TICKS_PER_QUARTER, pedals=np.array(rows, dtype=PEDAL_DTYPE), track_names=VOICES)


def as_live(piece: Notes, begin_sec: float) -> tuple[list[LiveNote], list[tuple[float, int, int]]]:
    """A piece as the player's notes and pedals, as if it had been played from `begin_sec` on."""
    ends = piece.with_sustain().offset_sec
    columns = piece.onset_sec, piece["pitch"], piece["velocity"], piece.offset_sec, ends
    notes = [
        LiveNote(PLAYER, begin_sec + onset, pitch, velocity, begin_sec + offset, begin_sec + end, is_sent=True)
        for onset, pitch, velocity, offset, end in zip(*(column.tolist() for column in columns), strict=True)
    ]
    moments = piece.tick_to_sec(piece.pedals["tick"]) + begin_sec
    return notes, list(zip(moments.tolist(), piece.pedals["value"].tolist(), [0] * len(moments), strict=True))
