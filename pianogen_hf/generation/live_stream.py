"""A note transformer (V8) that listens: what it heard may change at any time, and is read while more of it comes."""

from __future__ import annotations

import math

import numpy as np
import torch

from pianogen_hf.generation.note_stream import ONSET, Controls, NoteModel, NoteStream, num_kept
from pianogen_hf.models.note_rows import met_order, time_shifts, written_onsets

_NO_NOTES = np.zeros((0, 4))
_AHEAD_SHARE = 0.375  # of the window, for notes that are given ahead
_PART = 32  # rows read at a time while somebody plays, so that a hand-over waits for few
_FAR_SEC = 1e12


class LiveStream(NoteStream):
    """A stream for music that is being played.

    Differs from `NoteStream`, whose past is fixed: `hear` puts other notes in its place, such as one note more, or the
    true duration of one that was held. Only rows from the first that differs on are read again. Where somebody's part
    is given as it is played (`lookahead_sec` 0), rows stand in the order in which training shows them.

    A session has no silence before its first note: there the piece begins, and not at 0 on its clock.

    What is asked (`controls`) is asked of new notes; rows that were heard carry no controls, so that turning a knob
    does not cost reading them again.

    Args:
        model: what reads and draws notes.
        generator: source of randomness, on the CPU.

    Attributes:
        helped_from_sec: from here on given notes help to predict written ones.
    """

    def __init__(self, model: NoteModel, generator: torch.Generator | None = None) -> None:
        super().__init__(model, _NO_NOTES, _NO_NOTES, lookahead_sec=0.0, generator=generator)
        self.helped_from_sec = -math.inf
        self._oldest = -math.inf  # onset from which on the window reaches
        self._rows, self._roles = _NO_NOTES, np.zeros(0, dtype=bool)  # in the cache
        self._asked = np.zeros((0, len(model.config.control_sizes)), dtype=np.int64)

    def hear(self, past: np.ndarray, given: np.ndarray = _NO_NOTES, is_beginning: bool = True) -> None:
        """Take these notes for all that was heard so far, and is given.

        Args:
            past: shape (num, 4), by onset and pitch.
            given: shape (num, 4), by onset and pitch.
            is_beginning: whether they reach back to the beginning.
        """
        self.past, self.given, self.is_beginning, self.written = past, given, is_beginning, []
        self._past_end = float(past[-1, ONSET]) if len(past) else self._beginning()

    @torch.inference_mode()
    def read(self) -> bool:
        """Read a part of what was heard and not yet read; whether there is more to read."""
        return self._read_some(_PART)

    def _read(self) -> None:
        self._read_some(self._window)

    def _read_some(self, most: int) -> bool:
        """Read at most so many rows; whether others are left."""
        rows, roles, clock = self._whole_window()
        asked = self._control_ids(clock, self.controls)
        same = self._num_same(rows, roles, asked)
        if same == len(rows) == self._length:
            return False
        same = min(same, len(rows) - 1)  # the last one is always read: from its hidden state notes are drawn
        end = min(same + most, len(rows))
        part = slice(same, end)
        self._rewind(rows[:same], roles[:same])
        self._take_in(rows[part], roles[part], clock[part])
        self._rows, self._roles, self._asked, self._length = rows[:end], roles[:end], asked[:end], end
        offsets = self._ends(rows, roles, clock)[:end]
        number = self.model.config.num_recent_offsets
        self._offsets = np.concatenate([offsets[::-1], np.zeros(number)])[:number]
        return end < len(rows)

    def _rewind(self, rows: np.ndarray, roles: np.ndarray) -> None:
        """Let the caches hold these rows, which they begin with, and no others."""
        for name in ("_cache", "_free_cache"):
            cache = getattr(self, name)
            if name == "_free_cache" and not self.controls.is_guided:
                setattr(self, name, None)
            elif not len(rows) or cache is None:
                setattr(self, name, self.model.new_cache())
            elif len(rows) < self._length:
                self.model.rewind(cache, rows, roles)

    def _num_same(self, rows: np.ndarray, roles: np.ndarray, asked: np.ndarray) -> int:
        """How many rows of the cache need not be read again."""
        if self.controls.is_guided and self._free_cache is None:
            return 0
        size = min(len(rows), self._length)
        differs = (rows[:size] != self._rows[:size]).any(1) | (roles[:size] != self._roles[:size])
        differs |= (asked[:size] != self._asked[:size]).any(1)
        return int(differs.argmax()) if differs.any() else size

    def _control_ids(self, clock: np.ndarray, controls: Controls) -> np.ndarray:
        """What is asked after each row: of what follows the last note that was heard, and of nothing before."""
        return np.where((clock >= self._past_end)[:, None], controls.at(clock), 0)

    def _beginning(self) -> float:
        """Where the row of the beginning lies: at the first note, or where new music begins if that is earlier."""
        return min(
            self.begin_sec, *(float(notes[0, ONSET]) for notes in (self.past, self.given) if len(notes)), math.inf
        )

    def _whole_window(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """The window; its beginning stays where it is for as long as there is room, so that little is read again."""
        written = np.concatenate([self.past, *(note[None] for note in self.written)]).reshape(-1, 4)
        ahead = int(np.searchsorted(self.given[:, ONSET], self.clock, side="left"))
        given = self.given[: ahead + int(self._window * _AHEAD_SHARE)] if math.isinf(self.lookahead_sec) else self.given
        self._seen_until = self._shown = len(given)
        onsets = np.sort(np.concatenate([written[:, ONSET], given[:, ONSET]]))
        self._move(onsets)
        kept, shown = (each[each[:, ONSET] >= self._oldest] for each in (written, given))
        kept = kept if len(kept) else written[-1:]
        if not len(kept) or (self.is_beginning and self._oldest <= onsets[0]):
            begin = np.array([[self._beginning(), self.model.config.bos_token_id, 0.0, 0.0]])
            kept = np.concatenate([begin, kept])
        return self._arranged(kept, shown)

    def _move(self, onsets: np.ndarray) -> None:
        """Begin the window later if it has no more room, and earlier again if notes were taken back."""
        size = len(onsets) - int(np.searchsorted(onsets, self._oldest))
        room = num_kept(self.model)
        if size > self._window - 2 or (size < room // 2 and size < len(onsets)):
            self._oldest = float(onsets[-room]) if len(onsets) > room else -math.inf

    def _arranged(self, kept: np.ndarray, shown: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        notes = np.concatenate([kept, shown])
        roles = np.arange(len(notes)) >= len(kept)
        in_time = np.lexsort([roles, notes[:, ONSET]])
        notes, roles = notes[in_time], roles[in_time]
        begin = max(int((kept[:, ONSET] < self.helped_from_sec).sum()), 1)
        onset = np.append(notes[:, ONSET], _FAR_SEC)  # and the note that is written next
        order = met_order(onset, np.append(roles, False), begin, self.lookahead_sec)[:-1]
        notes, roles = notes[order], roles[order]
        onset = notes[:, ONSET].copy()
        notes[:, ONSET] = time_shifts(onset, roles)
        return notes, roles, written_onsets(onset, roles)


def row_of(note: np.ndarray, before_sec: float) -> list[float]:
    """A drawn note as the row that a model reads: time shift, pitch, velocity, duration."""
    onset, pitch, velocity, duration = note.tolist()
    return [round(onset - before_sec, 2), int(pitch), int(velocity), round(duration, 2)]
