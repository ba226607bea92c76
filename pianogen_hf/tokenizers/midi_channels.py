"""What the messages of a MIDI file mean: strikes with their lengths, pedals, programs.

In MIDI all state belongs to a channel, and a file's tracks are no more than a way to write its messages down: a pedal
in one track holds the notes of every track on its channel, and a key struck in one may be released in another. So the
tracks are merged first, as a player does (in the order of time, of one time in the order of tracks), and everything
follows from the merged messages; a file means the same however it is divided into tracks.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from .notes import stable_order

NOTE_OFF, NOTE_ON, CONTROL_CHANGE, PROGRAM_CHANGE = 0x80, 0x90, 0xB0, 0xC0
SUSTAIN = 64
ALL_SOUND_OFF, ALL_NOTES_OFF = 120, 123  # controllers


@dataclass
class Messages:
    """Columns of channel messages, each of shape (num_messages,).

    Attributes:
        tick: time. kind: status byte without the channel. channel: 16 times the port, plus the channel.
        first: first data byte. second: second data byte, or 0. chunk: index of the track chunk.
    """

    tick: np.ndarray
    kind: np.ndarray
    channel: np.ndarray
    first: np.ndarray
    second: np.ndarray
    chunk: np.ndarray

    def __len__(self) -> int:
        return len(self.tick)

    def take(self, rows: np.ndarray) -> Messages:
        """The messages that an index array picks."""
        return Messages(*(getattr(self, each.name).take(rows) for each in fields(self)))

    def where(self, mask: np.ndarray) -> Messages:
        """The messages that a mask picks."""
        return self.take(np.flatnonzero(mask))


@dataclass
class Strikes:
    """Notes as columns of shape (num_strikes,), by onset.

    Attributes:
        row: index of the note-on among the messages. release: tick of the end.
        num_endless: how many were never released, and end with the next strike of their key, with a message that ends
            all notes, or with the file.
    """

    row: np.ndarray
    release: np.ndarray
    num_endless: int


def merged(messages: Messages) -> Messages:
    """The messages by time; those of one time in the order they had, which is by chunk."""
    if (messages.chunk[:1] == messages.chunk[-1:]).all():
        return messages
    return messages.take(np.argsort(messages.tick, kind="stable"))


def strikes(messages: Messages, end_tick: int) -> Strikes:
    """Pair note-ons with what ends them.

    Strikes of one key of one channel are paired first in, first out. Where one of them is never released, that can't
    be right for those that sounded with it: there each ends with the next strike or release of its key.

    Args:
        messages: merged ones.
        end_tick: where the file ends, and with it what still sounds.
    """
    rows = np.flatnonzero(messages.kind < CONTROL_CHANGE)
    kind = messages.kind.take(rows)
    is_on = (kind == NOTE_ON) & (messages.second.take(rows) > 0)
    if (kind > NOTE_ON).any():
        rows, is_on = rows.compress(kind <= NOTE_ON), is_on.compress(kind <= NOTE_ON)
    key = messages.channel.take(rows).astype(np.int64)
    key <<= 7
    key |= messages.first.take(rows)
    order = stable_order(key)
    rows, key, is_on = rows.take(order), key.take(order), is_on.take(order)
    odd = _odd_keys(messages, rows, key, is_on)
    even = ~np.isin(key, odd) if len(odd) else slice(None)
    ons, offs = rows[even][is_on[even]], rows[even][~is_on[even]]
    if not len(odd):
        return Strikes(ons, messages.tick.take(offs), 0)
    row, release, num_endless = [ons], [messages.tick.take(offs)], 0
    for each in odd.tolist():
        chosen = key == each
        releases = releases_of(messages)
        releases = releases[messages.channel[releases] == each >> 7]
        struck, ends, endless = _pair_one_key(messages.tick, rows[chosen], is_on[chosen], releases, end_tick)
        row.append(np.array(struck, dtype=np.int64))
        release.append(np.array(ends, dtype=np.int64))
        num_endless += endless
    return Strikes(np.concatenate(row), np.concatenate(release), num_endless)


def releases_of(messages: Messages) -> np.ndarray:
    """Rows of the messages that end all notes of a channel."""
    return np.flatnonzero((messages.kind == CONTROL_CHANGE) & np.isin(messages.first, (ALL_SOUND_OFF, ALL_NOTES_OFF)))


def _odd_keys(messages: Messages, rows: np.ndarray, key: np.ndarray, is_on: np.ndarray) -> np.ndarray:
    """Keys with a strike or a release too many, or that sound when all notes of their channel are ended."""
    if not len(key):
        return key
    sounding = np.add.accumulate(is_on * 2 - 1)
    last = np.flatnonzero(key[1:] != key[:-1])
    odd = key[:0]
    if sounding[-1] or sounding.take(last).any() or sounding.min() < 0:
        begins = np.append(0, last + 1)
        before = np.append(0, sounding.take(last))
        lowest = np.minimum.reduceat(sounding, begins) - before
        odd = key.take(begins[(np.append(before[1:], sounding[-1]) != before) | (lowest < 0)])
    for release in releases_of(messages).tolist():
        # Between a strike and the release of its key: struck more often before than released before.
        begun = rows < release
        strikes_left = np.where(begun & (key >> 7 == messages.channel[release]), is_on * 2 - 1, 0)
        if strikes_left.any():
            kinds, numbers = np.unique(key, return_inverse=True)
            odd = np.union1d(odd, kinds[np.bincount(numbers, strikes_left) > 0])
    return odd


def _pair_one_key(
    tick: np.ndarray, rows: np.ndarray, is_on: np.ndarray, releases: np.ndarray, end_tick: int
) -> tuple[list[int], list[int], int]:
    """Rows of the strikes of one key, where each ends, and how many were never released."""
    events: list[tuple[int, int, bool | None]] = [
        (row, int(tick[row]), bool(on)) for row, on in zip(rows.tolist(), is_on.tolist(), strict=True)
    ]
    events += [(row, int(tick[row]), None) for row in releases.tolist()]
    struck: list[int] = []
    ends: list[int] = []
    together: list[tuple[int, int, bool]] = []  # strikes and releases since the key last was silent
    sounding = num_endless = 0

    def end_all(at: int) -> None:
        nonlocal sounding, num_endless
        num_endless += sounding
        for index, (row, begin, on) in enumerate(together):
            if on:
                after = index + 1
                while after < len(together) and together[after][2] and together[after][1] == begin:
                    after += 1  # struck twice at once
                struck.append(row)
                ends.append(together[after][1] if after < len(together) else at)
        together.clear()
        sounding = 0

    for row, at, on in sorted(events, key=lambda event: event[0]):
        if on is None:
            end_all(at)
        elif on or sounding:
            together.append((row, at, on))
            sounding += 1 if on else -1
            if not sounding:
                struck += [row for row, _, on in together if on]
                ends += [at for _, at, on in together if not on]
                together.clear()
    end_all(max(end_tick, events[-1][1] if events else 0))
    return struck, ends, num_endless


def programs_at(messages: Messages, rows: np.ndarray) -> np.ndarray:
    """The program of the channel of each of these messages at its time, int64 of the shape of `rows`."""
    found = np.zeros(len(rows), dtype=np.int64)
    changes = np.flatnonzero(messages.kind == PROGRAM_CHANGE)
    if not len(changes):
        return found
    channel = messages.channel.take(rows)
    for each in np.unique(messages.channel.take(changes)).tolist():
        own = changes[messages.channel[changes] == each]
        values = np.append(0, messages.first.take(own))
        if len(own) == 1 and len(rows) and own[0] < rows.min():  # one program for all, as a rule
            found[channel == each] = values[1]
            continue
        chosen = np.flatnonzero(channel == each)
        found[chosen] = values.take(np.searchsorted(own, rows.take(chosen)))
    return found
