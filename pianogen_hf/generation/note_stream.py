"""A note transformer (V8) at work on one piece: it writes note after note among notes that are given.

Nothing here knows ticks or files: a note is (onset in seconds, pitch, velocity, duration in seconds), and all onsets
are on one axis. The model sees a window of what was written and given lately, and of what is given ahead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache

from pianogen_hf.models.modeling_note_transformer import END_CLASS, GIVEN, NUM_PITCHES, PITCH, TIME_SHIFT, WRITTEN
from pianogen_hf.models.note_controls import (
    CONTROLS,
    DENSITY,
    GAP_LEFT,
    KEY,
    KIND,
    LOUDNESS,
    REGISTER,
    SECONDS_LEFT,
    control_values,
    density_class,
    loudness_class,
    register_class,
    seconds_left_class,
)
from pianogen_hf.models.note_rows import met_order, time_shifts, written_onsets
from pianogen_hf.models.time_classes import NUM_TIME_CLASSES, first_step, num_steps

ONSET = 0  # column of placed notes; the others are those of rows
_AHEAD_SHARE = 0.375  # of the window, for notes that are given ahead
_KEPT_SHARE = 0.5  # of the window, for what was written before, when it is full


@dataclass(frozen=True)
class Controls:
    """What is asked of new notes; None where nothing is.

    Attributes:
        density: notes per second.
        register: mean pitch.
        loudness: mean velocity.
        key: class of a key, see `key_class`.
        kind: class of a kind of music, 1 for the first of `KINDS`.
        end_sec: when the piece is to have died away.
        gap_end_sec: when what is given goes on alone.
    """

    density: float | None = None
    register: float | None = None
    loudness: float | None = None
    key: int | None = None
    kind: int | None = None
    end_sec: float | None = None
    gap_end_sec: float | None = None

    def classes(self) -> np.ndarray:
        """Classes of all controls but the times, int64, shape (num_controls,)."""
        values = np.zeros(len(CONTROLS), dtype=np.int64)
        for column, value, class_of in (
            (DENSITY, self.density, density_class),
            (REGISTER, self.register, register_class),
            (LOUDNESS, self.loudness, loudness_class),
        ):
            values[column] = 0 if value is None else class_of(value)
        values[KEY], values[KIND] = self.key or 0, self.kind or 0
        return values

    def at(self, clock: np.ndarray) -> np.ndarray:
        """Classes at written onsets, in seconds, int64, shape (length, num_controls)."""
        values = np.tile(self.classes(), (len(clock), 1))
        for column, end in ((SECONDS_LEFT, self.end_sec), (GAP_LEFT, self.gap_end_sec)):
            if end is not None:
                values[:, column] = seconds_left_class(torch.from_numpy(end - clock)).numpy()
        return values


# Called with the column of a row (`TIME_SHIFT` ...), its logits, shape (num_classes,), and the onset, in seconds,
# of the note that is drawn (of the last one, where the time shift itself is drawn); gives logits.
Processor = Callable[[int, torch.Tensor, float], torch.Tensor]


@dataclass
class NoteStream:
    """Writes notes, one at a time.

    Args:
        model: a `NoteTransformerForCausalLM`.
        past: notes that were there before, shape (num, 4), by onset and pitch; they are heard, and stay.
        given: notes among which new ones are written, shape (num, 4), by onset and pitch.
        begin_sec: before this no new note begins.
        is_beginning: whether the past reaches back to the beginning of the piece.
        lookahead_sec: how long before its onset a given note is seen; by default as early as the window has room.
        controls: what is asked of the new notes.
        processors: change logits before anything is drawn from them.
        generator: source of randomness.

    Attributes:
        written: the new notes.
        clock: onset of the last note written, of the past or anew.
    """

    model: Any
    past: np.ndarray
    given: np.ndarray
    begin_sec: float = 0.0
    is_beginning: bool = True
    lookahead_sec: float = math.inf
    controls: Controls = Controls()
    processors: tuple[Processor, ...] = ()
    generator: torch.Generator | None = None
    written: list[np.ndarray] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._rate = self.model.config.sampling_rate
        self._window = int(self.model.config.max_position_embeddings)
        self._past_classes = control_values(self.past, self.past[:, ONSET])
        self._past_end = float(self.past[-1, ONSET]) if len(self.past) else 0.0
        self._cache: DynamicCache | None = None
        self._length = 0  # rows in the cache
        self._seen_until = 0  # given notes that the model has met
        self._shown = len(self.given)  # given notes that this window may meet

    @property
    def clock(self) -> float:
        """Onset of the last note, in seconds; 0 where there is none."""
        return float(self.written[-1][ONSET]) if self.written else self._past_end

    def give(self, notes: np.ndarray) -> None:
        """Add given notes, shape (num, 4), not earlier than those given before."""
        self.given = np.concatenate([self.given, notes])
        self._shown = len(self.given)

    @torch.inference_mode()
    def write(self, may_end: bool) -> np.ndarray | None:
        """The next note, shape (4,); None for the end, which is drawn only where it may be."""
        hidden_states = self._read()
        before = self.written[-1][PITCH] if self.written else self._last_pitch()
        row = (
            self.model.heads.sample(
                hidden_states, torch.tensor([int(before)], device=hidden_states.device), self._draw_class(may_end)
            )[0]
            .cpu()
            .numpy()
        )
        if row[PITCH] >= NUM_PITCHES:
            return None
        note = row.astype(np.float64)
        note[ONSET] = round((self.clock + float(row[TIME_SHIFT])) * self._rate) / self._rate
        self.written.append(note)
        return note

    def take_back(self) -> None:
        """Forget the last note written; the window is read again."""
        self.written.pop()
        self._cache = None

    def _last_pitch(self) -> int:
        """Pitch of the last note of the past, above which a chord goes on; -1 where there is none."""
        return int(self.past[-1, PITCH]) if len(self.past) else -1

    def _draw_class(self, may_end: bool) -> Callable[[int, torch.Tensor], torch.Tensor]:
        onset = self.clock

        def draw_class(column: int, logits: torch.Tensor) -> torch.Tensor:
            nonlocal onset
            scores = logits[0].clone()
            if column == TIME_SHIFT:
                if not may_end:
                    scores[END_CLASS] = -torch.inf
                least = round((self.begin_sec - self.clock) * self._rate)
                scores[: _classes_below(least)] = -torch.inf
            for process in self.processors:
                scores = process(column, scores, onset)
            drawn = torch.multinomial(torch.softmax(scores, -1), 1, generator=self.generator)
            if column == TIME_SHIFT and int(drawn) < NUM_TIME_CLASSES:
                onset += float(first_step(drawn) + num_steps(drawn) // 2) / self._rate
            return drawn

        return draw_class

    def _read(self) -> torch.Tensor:
        """Let the model meet what it has not met yet; hidden state of the last row, shape (1, hidden_size)."""
        if self._runs_out():
            self._cache = None
        rows, is_given, clock = self._unread()
        if self._cache is not None and self._length + len(rows) > self._window:
            self._cache = None
            rows, is_given, clock = self._unread()
        if self._cache is None:
            self._cache, self._length = DynamicCache(config=self.model.config), 0
        device = self.model.device
        outputs = self.model.model(
            input_values=torch.from_numpy(rows.astype(np.float32))[None].to(device),
            token_type_ids=torch.from_numpy(np.where(is_given, GIVEN, WRITTEN))[None].to(device),
            control_ids=torch.from_numpy(self._control_ids(clock))[None].to(device),
            past_key_values=self._cache,
            use_cache=True,
        )
        self._length += len(rows)
        return outputs.last_hidden_state[:, -1]

    def _runs_out(self) -> bool:
        """Whether there is more to give, and little of what this window may meet still lies ahead."""
        if self._shown == len(self.given):
            return False
        ahead = self._shown - np.searchsorted(self.given[:, ONSET], self.clock)
        return bool(ahead < self._window * _AHEAD_SHARE / 4)

    def _control_ids(self, clock: np.ndarray) -> np.ndarray:
        """What is asked after each row; of the past, what it was like itself."""
        ids = self.controls.at(clock)
        is_past = clock < self._past_end
        return np.where(is_past[:, None] & (ids > 0) & (self._past_classes > 0), self._past_classes, ids)

    def _unread(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows that the model has not met, their roles, and the written onset at each of them."""
        return self._whole_window() if self._cache is None else self._new_rows()

    def _new_rows(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Given notes that come into sight with the last note written, and that note, which predicts the next."""
        row, before = self.written[-1].copy(), self.written[-2][ONSET] if len(self.written) > 1 else self._past_end
        row[TIME_SHIFT] = self.clock - before
        until = int(np.searchsorted(self.given[: self._shown, ONSET], self.clock + self.lookahead_sec, side="right"))
        given = self.given[self._seen_until : max(until, self._seen_until)].copy()
        given[:, TIME_SHIFT] = given[:, ONSET] - before
        self._seen_until += len(given)
        rows = np.concatenate([given, row[None]])
        return rows, np.arange(len(rows)) < len(given), np.append(np.full(len(given), before), self.clock)

    def _whole_window(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A window from scratch: of what was written the latest part, of what is given what lies beside and ahead."""
        written = np.concatenate([self.past, *(note[None] for note in self.written)]).reshape(-1, 4)
        given = self.given
        ahead = int(np.searchsorted(given[:, ONSET], self.clock, side="left"))
        self._shown = min(len(given), ahead + int(self._window * _AHEAD_SHARE))
        until = int(np.searchsorted(given[: self._shown, ONSET], self.clock + self.lookahead_sec, side="right"))
        # Latest notes of both roles before the clock, as many as there is room for.
        onsets = np.sort(np.concatenate([written[:, ONSET], given[:ahead, ONSET]]))
        room = max(int(self._window * _KEPT_SHARE) - 1, 1)
        oldest = onsets[-room] if len(onsets) > room else -math.inf
        kept = written[written[:, ONSET] >= oldest]
        shown = given[np.searchsorted(given[:, ONSET], oldest) : until]
        self._seen_until = until
        begins = len(kept) == len(written) and self.is_beginning
        begin_row = np.array([[0.0, self.model.config.bos_token_id, 0.0, 0.0]])
        if begins or not len(kept):
            kept = np.concatenate([begin_row, kept])
        return self._arranged(kept, shown)

    def _arranged(self, kept: np.ndarray, shown: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        notes = np.concatenate([kept, shown])
        is_given = np.arange(len(notes)) >= len(kept)
        in_time = np.lexsort([is_given, notes[:, ONSET]])
        notes, is_given = notes[in_time], is_given[in_time]
        begin = int((kept[:, ONSET] < self.begin_sec).sum())  # without given notes, as far as it was there before
        order = met_order(notes[:, ONSET], is_given, max(begin, 1), self.lookahead_sec)
        notes, is_given = notes[order], is_given[order]
        onset = notes[:, ONSET].copy()
        notes[:, TIME_SHIFT] = time_shifts(onset, is_given)
        return notes, is_given, written_onsets(onset, is_given)


def _classes_below(steps: int) -> int:
    """How many classes of time shifts hold nothing but less than so many steps."""
    if steps <= 0:
        return 0
    classes = torch.arange(NUM_TIME_CLASSES - 1)
    return int((first_step(classes) + num_steps(classes) <= steps).sum())


def written_until(
    stream: NoteStream, end_sec: float, may_end_sec: float = math.inf, num_notes: float = math.inf
) -> Iterator[np.ndarray]:
    """Notes of a stream, as they are written.

    Args:
        stream: what writes.
        end_sec: a note that would begin then or later is taken back, and is the last.
        may_end_sec: the model may end earlier if it has come so far.
        num_notes: the most notes that are written.
    """
    while len(stream.written) < num_notes:
        note = stream.write(may_end=stream.clock >= may_end_sec)
        if note is None:
            return
        if note[ONSET] >= end_sec:
            stream.take_back()
            return
        yield note
