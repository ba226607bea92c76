"""Performance events: note-on, note-off, time shift, velocity.

Oore et al. 2018, "This Time with Feeling" (arXiv 1808.03715), section 3; the 308-event form on 88 keys is that of
Huang et al. 2018, "Music Transformer" (arXiv 1809.04281), appendix A.2.
Here: notes of the key range only, one canonical order of events, and no note is shorter than one step.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from .notes import Notes
from .tokenization_notes import NoteTokenizer

STEPS_PER_SEC = 100
MAX_SHIFT = 100  # steps: one second, the longest single time shift
VELOCITY_BIN = 4
_SPECIAL, _NOTE_ON, _NOTE_OFF, _TIME_SHIFT, _VELOCITY = range(5)
_PITCH_BITS, _BIN_BITS = 7, 5


class PerformanceTokenizer(NoteTokenizer):
    """Performance events on a 10 ms grid, with the sustain pedal folded into the notes' lengths.

    Lost: programs and tracks (all notes go to one piano), time finer than 10 ms, velocity finer than 4, the pedal as
    such, keys outside the range, and the shorter of two notes that strike one key in the same 10 ms.

    Args:
        lowest_pitch: lowest key. highest_pitch: highest key. 0..127 makes the 388 events of Oore et al.; 21..108, the
            88 keys of a piano, makes the 308 of the Music Transformer, and is the default.
    """

    lost_fields: ClassVar[tuple[str, ...]] = ("program", "track")
    rest_prefixes: ClassVar[tuple[str, ...]] = ("TIME_SHIFT",)
    time_step_sec: ClassVar[float] = 1 / STEPS_PER_SEC
    velocity_step: ClassVar[float] = VELOCITY_BIN

    def __init__(self, lowest_pitch: int = 21, highest_pitch: int = 108, **kwargs: Any) -> None:
        if not 0 <= lowest_pitch <= highest_pitch <= 127:
            raise ValueError(f"pitches must satisfy 0 <= lowest <= highest <= 127, got {lowest_pitch}..{highest_pitch}")
        self.lowest_pitch, self.highest_pitch = lowest_pitch, highest_pitch
        self.pitch_range = (lowest_pitch, highest_pitch)
        super().__init__(lowest_pitch=lowest_pitch, highest_pitch=highest_pitch, **kwargs)
        keys = highest_pitch - lowest_pitch + 1
        sizes = [self.num_special, keys, keys, MAX_SHIFT, 128 // VELOCITY_BIN]
        self._first = np.cumsum([0, *sizes[:-1]])  # the first id of each kind
        self._kind = np.repeat(np.arange(5), sizes)
        offset = np.array([0, lowest_pitch, lowest_pitch, 1, 0])
        self._value = np.arange(len(self._kind)) - self._first[self._kind] + offset[self._kind]

    def _event_names(self) -> list[str]:
        keys = range(self.lowest_pitch, self.highest_pitch + 1)
        on_off = [f"{kind}_{pitch}" for kind in ("NOTE_ON", "NOTE_OFF") for pitch in keys]
        shifts = [f"TIME_SHIFT_{steps}" for steps in range(1, MAX_SHIFT + 1)]
        return on_off + shifts + [f"VELOCITY_{bin_}" for bin_ in range(128 // VELOCITY_BIN)]

    def _encode(self, notes: Notes) -> np.ndarray:
        onset, offset, pitch, velocity_bin = self._quantised(notes)
        # One number for each note-on and note-off holds all there is to say of it, and sorts as events stand: by step,
        # offs before ons, each by pitch. Steps stay below 2 ** 42 at the slowest tempo that MIDI can hold.
        note_on = (onset << 1 | 1) << _PITCH_BITS | pitch
        keys = np.concatenate([(offset << 1 << _PITCH_BITS | pitch) << _BIN_BITS, note_on << _BIN_BITS | velocity_bin])
        keys.sort()
        is_on = (keys >> (_PITCH_BITS + _BIN_BITS) & 1).astype(bool)

        wait = np.diff(keys >> (1 + _PITCH_BITS + _BIN_BITS), prepend=0)
        full_shifts = wait // MAX_SHIFT
        rest = wait - full_shifts * MAX_SHIFT
        ons = np.flatnonzero(is_on)
        bins = keys[ons] & (2**_BIN_BITS - 1)
        changes = ons[np.diff(bins, prepend=-1) != 0]
        width = full_shifts + 1
        width += rest > 0
        width[changes] += 1

        end = np.cumsum(width)
        # Whatever is not overwritten below is a full time shift: only long waits leave any.
        ids = np.full(end[-1] if len(end) else 0, self._first[_TIME_SHIFT] + MAX_SHIFT - 1)
        row_pitch = keys >> _BIN_BITS & (2**_PITCH_BITS - 1)
        ids[end - 1] = row_pitch + np.where(is_on, *(self._first[[_NOTE_ON, _NOTE_OFF]] - self.lowest_pitch))
        ids[end[changes] - 2] = self._first[_VELOCITY] + (keys[changes] & (2**_BIN_BITS - 1))
        waits = np.flatnonzero(rest)
        ids[(end - width + full_shifts)[waits]] = rest[waits] + (self._first[_TIME_SHIFT] - 1)
        return ids

    def _quantised(self, notes: Notes) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Onset and offset in steps, pitch and velocity bin, shape (num_kept,): no two notes of a key overlap."""
        pitch = notes["pitch"]
        if len(notes) and (pitch.min() < self.lowest_pitch or pitch.max() > self.highest_pitch):
            notes = notes.where((pitch >= self.lowest_pitch) & (pitch <= self.highest_pitch))
        notes = notes.with_sustain()
        onset = np.rint(notes.onset_sec * STEPS_PER_SEC).astype(np.int64)
        offset = np.maximum(np.rint(notes.offset_sec * STEPS_PER_SEC).astype(np.int64), onset + 1)
        # Notes come by onset: a stable sort by pitch leaves the strikes of each key in their order.
        by_key = np.argsort(notes["pitch"], kind="stable")
        columns = [column[by_key] for column in (onset, offset, notes["pitch"], notes["velocity"] // VELOCITY_BIN)]
        onset, offset, pitch, velocity_bin = columns
        same_key = pitch[1:] == pitch[:-1]
        double = same_key & (onset[1:] == onset[:-1])
        if double.any():
            longest_first = np.lexsort([-offset, onset, pitch])
            keep = longest_first[np.append(True, ~double)]
            onset, offset, pitch, velocity_bin = (column[keep] for column in columns)
            same_key = pitch[1:] == pitch[:-1]
        offset[:-1][same_key] = np.minimum(offset[:-1], onset[1:])[same_key]
        return onset, offset, pitch, velocity_bin

    def _decode_events(self, ids: np.ndarray) -> Notes:
        kind, value = self._kind[ids], self._value[ids]
        step = np.cumsum(np.where(kind == _TIME_SHIFT, value, 0))
        velocity_row = np.maximum.accumulate(np.where(kind == _VELOCITY, np.arange(len(ids)), -1))
        keys = np.flatnonzero((kind == _NOTE_ON) | (kind == _NOTE_OFF))
        keys = keys[np.argsort(value[keys], kind="stable")]
        # A note ends with the next event of its key, be it a note-off or another strike, or with the last event.
        end = np.full(len(keys), step[-1] if len(ids) else 0)
        same_key = value[keys[1:]] == value[keys[:-1]]
        end[:-1][same_key] = step[keys[1:]][same_key]
        is_on = kind[keys] == _NOTE_ON
        rows, end = keys[is_on], end[is_on]
        velocity = np.where(velocity_row >= 0, value[velocity_row] * VELOCITY_BIN + VELOCITY_BIN // 2, 64)
        duration = np.maximum(end - step[rows], 1)
        return Notes.from_seconds(step[rows] / STEPS_PER_SEC, duration / STEPS_PER_SEC, value[rows], velocity[rows])

    def _allowed_events(self, ids: np.ndarray) -> np.ndarray:
        kind, value = self._kind[ids], self._value[ids]
        last_kind = kind[-1] if len(ids) else _SPECIAL
        shifts = np.flatnonzero(kind == _TIME_SHIFT)
        this_instant = slice(shifts[-1] + 1 if len(shifts) else 0, None)
        ons_now = value[this_instant][kind[this_instant] == _NOTE_ON]
        offs_now = value[this_instant][kind[this_instant] == _NOTE_OFF]
        velocities = value[kind == _VELOCITY]
        sounding = self._sounding(kind, value)
        pitches = np.arange(self.lowest_pitch, self.highest_pitch + 1)

        can_start = ~sounding & (pitches > (ons_now[-1] if len(ons_now) else -1))
        can_stop = sounding & (pitches > (offs_now[-1] if len(offs_now) else -1)) & (len(ons_now) == 0)
        by_kind = [np.zeros(size, dtype=bool) for size in np.bincount(self._kind)]
        by_kind[_NOTE_ON] = can_start & (len(velocities) > 0)
        if last_kind != _VELOCITY:
            by_kind[_NOTE_OFF] = can_stop
            by_kind[_VELOCITY][:] = can_start.any()
            by_kind[_VELOCITY][velocities[-1:]] = False
            by_kind[_TIME_SHIFT][:] = last_kind != _TIME_SHIFT or value[-1] == MAX_SHIFT
            by_kind[_SPECIAL][self.eos_token_id] = not sounding.any() and last_kind in (_SPECIAL, _NOTE_OFF)
        allowed = np.concatenate(by_kind)
        if not allowed.any():  # only after ids that no piece has: a velocity where no key is free
            allowed[self._kind == _TIME_SHIFT] = True
        return allowed

    def _sounding(self, kind: np.ndarray, value: np.ndarray) -> np.ndarray:
        """Which keys are down after these events, bool (num_keys,)."""
        sounding = np.zeros(self.highest_pitch - self.lowest_pitch + 1, dtype=bool)
        keys = (kind == _NOTE_ON) | (kind == _NOTE_OFF)
        # Assignments with repeated indices keep the last one: the latest event of each key.
        sounding[value[keys] - self.lowest_pitch] = kind[keys] == _NOTE_ON
        return sounding
