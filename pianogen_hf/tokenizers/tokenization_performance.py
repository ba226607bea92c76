"""Performance events: note-on, note-off, time shift, velocity.

Oore et al. 2018, "This Time with Feeling" (arXiv 1808.03715), section 3; the 308-event form on 88 keys is that of
Huang et al. 2018, "Music Transformer" (arXiv 1809.04281), appendix A.2.
Here: notes of the key range only, one canonical order of events, and no note is shorter than one step.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from .notes import MAX_WAIT_SEC, Notes, stable_order
from .tokenization_notes import NoteTokenizer

STEPS_PER_SEC = 100
MAX_SHIFT = 100  # steps: one second, the longest single time shift
VELOCITY_BIN = 4
_MAX_WAIT = MAX_WAIT_SEC * STEPS_PER_SEC
_SPECIAL, _NOTE_ON, _NOTE_OFF, _TIME_SHIFT, _VELOCITY = range(5)
_PITCH_BITS, _BIN_BITS = 7, 5


class PerformanceTokenizer(NoteTokenizer):
    """Performance events on a 10 ms grid, with the sustain pedal folded into the notes' lengths.

    Lost: programs and tracks (all notes go to one piano), time finer than 10 ms, velocity finer than 4, the pedal as
    such, keys outside the range, the shorter of two notes that strike one key in the same 10 ms, and what a wait has
    beyond `MAX_WAIT_SEC`.

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
        # The ids of note-offs, then of note-ons, by pitch.
        self._id_of_event = np.concatenate(
            [np.arange(2**_PITCH_BITS) + self._first[kind] - lowest_pitch for kind in (_NOTE_OFF, _NOTE_ON)]
        )

    def _event_names(self) -> list[str]:
        keys = range(self.lowest_pitch, self.highest_pitch + 1)
        on_off = [f"{kind}_{pitch}" for kind in ("NOTE_ON", "NOTE_OFF") for pitch in keys]
        shifts = [f"TIME_SHIFT_{steps}" for steps in range(1, MAX_SHIFT + 1)]
        return on_off + shifts + [f"VELOCITY_{bin_}" for bin_ in range(128 // VELOCITY_BIN)]

    def _encode(self, notes: Notes) -> np.ndarray:
        onset, offset, pitch, velocity_bin = self._quantised(notes)
        # One number for each note-on and note-off holds all there is to say of it. Events stand by step, offs before
        # ons, each by pitch. Steps stay below 2 ** 42 at the slowest tempo that MIDI can hold.
        note_on = (onset << 1 | 1) << _PITCH_BITS | pitch
        keys = np.concatenate([(offset << 1 << _PITCH_BITS | pitch) << _BIN_BITS, note_on << _BIN_BITS | velocity_bin])
        keys = keys.take(stable_order(keys >> (_PITCH_BITS + _BIN_BITS)))  # by pitch they stand already
        event = keys >> _BIN_BITS & (2 << _PITCH_BITS) - 1
        ons = np.flatnonzero(event >= 1 << _PITCH_BITS)
        bins = keys.take(ons) & (2**_BIN_BITS - 1)
        changed = np.ones(len(bins), dtype=bool)
        np.not_equal(bins[1:], bins[:-1], out=changed[1:])
        changes, bins = ons[changed], bins[changed]

        wait = keys >> (1 + _PITCH_BITS + _BIN_BITS)
        wait[1:] -= wait[:-1].copy()
        np.minimum(wait, _MAX_WAIT, out=wait)
        full_shifts = wait // MAX_SHIFT
        rest = wait - full_shifts * MAX_SHIFT
        width = full_shifts + (rest > 0)
        width += 1
        width[changes] += 1
        last = np.cumsum(width) - 1  # the place of each note-on and note-off
        # Whatever is not overwritten below is a full time shift: only long waits leave any. A rest of 0 is overwritten.
        ids = np.full(last[-1] + 1 if len(last) else 0, self._first[_TIME_SHIFT] + MAX_SHIFT - 1)
        ids[last - width + full_shifts + 1] = rest + (self._first[_TIME_SHIFT] - 1)
        ids[last[changes] - 1] = bins + self._first[_VELOCITY]
        ids[last] = self._id_of_event.take(event)
        return ids

    def _quantised(self, notes: Notes) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Onset and offset in steps, pitch and velocity bin, shape (num_kept,): by pitch and onset, none overlap."""
        pitch = notes["pitch"]
        if len(notes) and (pitch.min() < self.lowest_pitch or pitch.max() > self.highest_pitch):
            notes = notes.where((pitch >= self.lowest_pitch) & (pitch <= self.highest_pitch))
        onset_tick, duration_tick = notes["onset_tick"].astype(np.int64), notes.sustained_duration_tick()
        seconds = notes.tick_to_sec(np.stack([onset_tick, onset_tick + duration_tick]))
        onset, offset = np.rint(seconds * STEPS_PER_SEC).astype(np.int64)
        offset = np.maximum(offset, onset + 1)
        # Notes come by onset: a stable sort by pitch leaves the strikes of each key in their order.
        by_key = np.argsort(notes["pitch"], kind="stable")
        strike = onset.take(by_key) << _PITCH_BITS | notes["pitch"].take(by_key)
        double = np.flatnonzero(strike[1:] == strike[:-1])
        if len(double):  # the longest remains; of equally long ones the first in the order of `with_sustain`
            places = np.union1d(double, double + 1)
            rows = by_key[places]
            order = (notes["velocity"], duration_tick, onset_tick, -offset, onset, notes["pitch"])
            by_key[places] = rows[np.lexsort([column[rows] for column in order])]
            by_key, strike = np.delete(by_key, double + 1), np.delete(strike, double + 1)
        onset, pitch = strike >> _PITCH_BITS, strike & (2**_PITCH_BITS - 1)
        offset = offset.take(by_key)
        np.minimum(offset[:-1], onset[1:], out=offset[:-1], where=pitch[1:] == pitch[:-1])
        return onset, offset, pitch, notes["velocity"].take(by_key) // VELOCITY_BIN

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
        # Asked for every id that is generated, so of few operators, each with little to do.
        _, first_on, first_off, first_shift, first_velocity = self._first.tolist()
        last, sounding = int(ids[-1]) if len(ids) else 0, self._sounding(ids)
        last_on, last_off = self._keys_of_this_instant(ids)
        velocities = ids[ids >= first_velocity]

        allowed = np.zeros(len(self._kind), dtype=bool)
        can_start = ~sounding
        can_start[: last_on + 1] = False
        if len(velocities):
            allowed[first_on:first_off] = can_start
        if last < first_velocity:
            if last_on < 0:
                allowed[first_off + last_off + 1 : first_shift] = sounding[last_off + 1 :]
            allowed[first_shift:first_velocity] = last < first_shift or last == first_velocity - 1
            allowed[first_velocity:] = can_start.any()
            allowed[velocities[-1:]] = False
            allowed[self.eos_token_id] = not sounding.any() and (last < first_on or first_off <= last < first_shift)
        if not allowed.any():  # only after ids that no piece has: a velocity where no key is free
            allowed[first_shift:first_velocity] = True
        return allowed

    def _sounding(self, ids: np.ndarray) -> np.ndarray:
        """Which keys are down after these events, bool (num_keys,)."""
        sounding = np.zeros(self.highest_pitch - self.lowest_pitch + 1, dtype=bool)
        keys = ids[ids < self._first[_TIME_SHIFT]]
        # Assignments with repeated indices keep the last one: the latest event of each key.
        sounding[self._value[keys] - self.lowest_pitch] = keys < self._first[_NOTE_OFF]
        return sounding

    def _keys_of_this_instant(self, ids: np.ndarray) -> tuple[int, int]:
        """The latest note-on and note-off since the last time shift, counted from the lowest key; -1 for none."""
        latest = {_NOTE_ON: -1, _NOTE_OFF: -1}
        for index in map(int, ids[::-1]):
            kind = int(self._kind[index])
            if kind == _TIME_SHIFT:
                break
            if latest.get(kind) == -1:
                latest[kind] = index - int(self._first[kind])
        return latest[_NOTE_ON], latest[_NOTE_OFF]
