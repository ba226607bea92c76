"""A note transformer (V8) at work on one piece: it writes note after note among notes that are given.

Nothing here knows ticks or files: a note is (onset in seconds, pitch, velocity, duration in seconds), and all onsets
are on one axis. The model sees a window of what was written and given lately, and of what is given ahead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from pianogen_hf.generation.drawing import choose
from pianogen_hf.models.configuration_note_transformer import NoteTransformerConfig
from pianogen_hf.models.key_finding import log_profile
from pianogen_hf.models.modeling_note_transformer import DURATION, END_CLASS, NUM_PITCHES, PITCH, TIME_SHIFT
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
    key_of_class,
    loudness_class,
    register_class,
    seconds_left_class,
)
from pianogen_hf.models.note_rows import met_order, time_shifts, written_onsets
from pianogen_hf.models.time_classes import NUM_TIME_CLASSES, first_step, middle_step

ONSET = 0  # column of placed notes; the others are those of rows
_AHEAD_SHARE = 0.375  # of the window, for notes that are given ahead
_KEPT_SHARE = 0.5  # of the window, for what was written before, when it is full
KEY_WEIGHT = 0.15  # of the profile of a key that is asked for, times guidance_scale: benchmarks/note_transformer.md
_FAR_SEC = 1e12
_CLASSES = torch.arange(NUM_TIME_CLASSES)
_FIRST_STEPS = first_step(_CLASSES).numpy()
_LAST_STEPS = np.append(_FIRST_STEPS[1:] - 1, 2**40)  # the open class has no last one
MIDDLE_STEPS = middle_step(_CLASSES).numpy()  # what stands for each class of times
_TINY = 1e-4  # what onsets differ by for being floating-point numbers


@dataclass(frozen=True)
class Controls:
    """What is asked of new notes; None where nothing is.

    Attributes:
        density: notes per second.
        register: mean pitch.
        loudness: mean velocity.
        key: class of a key, see `key_class`. Pitches that are rare in it also become less likely, whatever the model
            makes of it: by itself it is seldom clear about the tonic.
        kind: class of a kind of music, 1 for the first of `KINDS`.
        end_sec: when the piece is to have died away.
        gap_end_sec: when what is given continues alone.
        guidance_scale: how much is made of all that is asked but the times, 1 for what the model makes of it by itself:
            classifier-free guidance (Ho and Salimans 2022, arXiv 2207.12598). With any other every row is read twice.
    """

    density: float | None = None
    register: float | None = None
    loudness: float | None = None
    key: int | None = None
    kind: int | None = None
    end_sec: float | None = None
    gap_end_sec: float | None = None
    guidance_scale: float = field(default=1.0, compare=False)  # asks for nothing by itself

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

    @property
    def is_guided(self) -> bool:
        """Whether what is asked is to be held against a model of which nothing is asked."""
        return self.guidance_scale != 1 and bool(self.classes().any())

    def without_guided(self) -> Controls:
        """The times alone."""
        return Controls(end_sec=self.end_sec, gap_end_sec=self.gap_end_sec)

    def at(self, clock: np.ndarray) -> np.ndarray:
        """Classes at written onsets, in seconds, int64, shape (length, num_controls)."""
        values = np.tile(self.classes(), (len(clock), 1))
        for column, end in ((SECONDS_LEFT, self.end_sec), (GAP_LEFT, self.gap_end_sec)):
            if end is not None:
                values[:, column] = seconds_left_class(torch.from_numpy(end - clock)).numpy()
        return values


# Called with the column of a row (`TIME_SHIFT` ...), its logits, float32, shape (num_classes,), and the onset, in
# seconds, of the note that is drawn (of the last one, where the time shift itself is drawn); gives logits. Where it
# leaves nothing of a field, another time is drawn.
Processor = Callable[[int, np.ndarray, float], np.ndarray]


class _NothingLeft(Exception):
    """Nothing of a field may be drawn."""


class NoteModel(Protocol):
    """What a stream asks of a model: `NoteTransformerForCausalLM` has it, and so has the fast engine.

    Attributes:
        config: sizes and the grid of times.
    """

    config: NoteTransformerConfig

    def new_cache(self) -> Any:
        """Room for the rows of one window, `config.max_position_embeddings` of them."""

    def read(self, cache: Any, rows: np.ndarray, is_given: np.ndarray, control_ids: np.ndarray) -> Any:
        """Read rows that follow those in a cache.

        Args:
            cache: what `new_cache` gave; it takes up the rows.
            rows: shape (length, 4).
            is_given: roles, bool, shape (length,).
            control_ids: what is asked of the notes after each row, int64, shape (length, num_controls).

        Returns:
            The last row's hidden state, shape (1, hidden_size), in the model's own form.
        """

    def joined(self, hidden_states: list[Any]) -> Any:
        """What `read` gave for some caches, one under the other, shape (num_states, hidden_size)."""

    def rewind(self, cache: Any, rows: np.ndarray, is_given: np.ndarray) -> None:
        """Let a cache forget all that it took up after its first rows.

        Args:
            cache: what `read` has filled.
            rows: the first rows that it took up, at least one, shape (length, 4).
            is_given: their roles, bool, shape (length,).
        """

    def draw_note(
        self,
        hidden_states: Any,
        written_pitch: int,
        recent_offsets: np.ndarray,
        draw_class: Callable[[int, np.ndarray], int],
    ) -> np.ndarray:
        """Draw one note, or the end.

        Args:
            hidden_states: what `read` or `joined` gave.
            written_pitch: pitch of the note written before, or -1.
            recent_offsets: where the latest rows read end, the latest first, in steps after the onset of the note
                written before, shape (config.num_recent_offsets,).
            draw_class: called with a column (`TIME_SHIFT` ...) and its logits after each hidden state, float32, shape
                (num_states, num_classes), in the order of the columns; gives a class. The last class of a time shift is
                the end; those of a duration are followed by ending together with each of the latest rows.

        Returns:
            A row, shape (4,), float32.
        """


@dataclass
class NoteStream:
    """Writes notes, one at a time.

    The model meets rows in the order in which it met them in training (see `met_order`): a given note helps to predict
    the first written one that begins no more than `lookahead_sec` before it. So where a note is drawn without such
    help, the given one is met, the window read again, and the note drawn anew.

    Args:
        model: what reads and draws notes.
        past: notes that were there before, shape (num, 4), by onset and pitch; they are heard, and stay.
        given: notes among which new ones are written, shape (num, 4), by onset and pitch.
        begin_sec: before this no new note begins.
        is_beginning: whether the past reaches back to the beginning of the piece.
        lookahead_sec: how long before its onset a given note is seen; by default as early as the window has room.
        controls: what is asked of the new notes.
        processors: change logits before anything is drawn from them.
        generator: source of randomness, on the CPU; one number of it per field, see `choose`.

    Attributes:
        written: the new notes.
        clock: onset of the last note written, of the past or anew.
    """

    model: NoteModel
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
        self._cache: Any = None
        self._free_cache: Any = None  # of the same rows, of which nothing is asked
        self._length = 0  # rows in the cache
        self._num_read = 0  # written notes among them, and among what a window left out
        self._hidden_states: Any = None  # of the last row, in the model's own form
        self._offsets = np.zeros(0)  # of the latest rows in the cache, the latest first, in steps
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
        if len(notes) and notes[0, ONSET] - self.lookahead_sec <= self.clock:
            self._cache = None  # the model should have met them earlier

    @torch.inference_mode()
    def write(self, may_end: bool, before_sec: float = math.inf) -> np.ndarray | None:
        """The next note.

        Args:
            may_end: whether the end may be drawn.
            before_sec: the note begins earlier than this.

        Returns:
            Shape (4,); None for the end, or where no note is possible.
        """
        self._read()
        note = self._drawn(may_end, before_sec)
        while self._is_late(note):
            self._meet_given()
            note = self._drawn(may_end, before_sec)
        if note is not None:
            self.written.append(note)
        return note

    def take_back(self) -> None:
        """Forget the last note written; the window is read again."""
        self.written.pop()
        self._cache = None

    def _last_pitch(self) -> int:
        """Pitch of the last note of the past, above which a chord goes on; -1 where there is none."""
        return int(self.past[-1, PITCH]) if len(self.past) else -1

    def _drawn(self, may_end: bool, before_sec: float) -> np.ndarray | None:
        """A note after what the model has met; None for the end, or where no note is possible."""
        before = int(self.written[-1][PITCH]) if self.written else self._last_pitch()
        earliest = max(self.begin_sec, self._last_met() - self.lookahead_sec)
        least = max(math.ceil((earliest - self.clock) * self._rate - _TINY), 1 if before == NUM_PITCHES - 1 else 0)
        most = math.ceil(min((before_sec - self.clock) * self._rate - _TINY, 1e9)) - 1
        refused: list[int] = []  # time shifts at which no pitch is possible
        while True:
            shifts: list[int] = []
            try:
                draw_class = self._draw_class(may_end, (least, most), refused, shifts)
                recent = self._offsets - round(self.clock * self._rate)
                note = self.model.draw_note(self._hidden_states, before, recent, draw_class).astype(np.float64)
            except _NothingLeft:
                if not shifts:
                    return None
                refused += shifts
                continue
            if note[PITCH] >= NUM_PITCHES:
                return None
            steps = min(max(round(note[TIME_SHIFT] * self._rate), least), most)
            note[ONSET] = round(self.clock * self._rate + steps) / self._rate
            return note

    def _draw_class(
        self, may_end: bool, bounds: tuple[int, int], refused: list[int], shifts: list[int]
    ) -> Callable[[int, np.ndarray], int]:
        """What draws the fields of a note; it notes down the class of its time shift in `shifts`."""
        onset = self.clock

        def draw_class(column: int, logits: np.ndarray) -> int:
            nonlocal onset
            scores = logits[0].copy()
            if len(logits) == 2:
                scores = guided(logits[0], logits[1], self.controls.guidance_scale)
            if column == TIME_SHIFT:
                scores[:END_CLASS][~_times_within(*bounds)] = -np.inf
                scores[refused] = -np.inf
                if not may_end:
                    scores[END_CLASS] = -np.inf
            for process in (self._toward_key, *self.processors):
                scores = process(column, scores, onset)
                if not np.isfinite(scores).any():
                    raise _NothingLeft
            drawn = choose(scores, self.generator)
            if column == TIME_SHIFT and drawn < NUM_TIME_CLASSES:
                shifts.append(drawn)
                onset += min(max(int(MIDDLE_STEPS[drawn]), bounds[0]), bounds[1]) / self._rate
            return drawn

        return draw_class

    def _toward_key(self, column: int, scores: np.ndarray, onset: float) -> np.ndarray:
        """The processor of a key that is asked for."""
        if column != PITCH or not self.controls.key:
            return scores
        weight = KEY_WEIGHT * self.controls.guidance_scale
        rarity = weight * log_profile(*key_of_class(self.controls.key))
        return scores + rarity[np.arange(len(scores)) % 12].astype(np.float32)

    def _last_met(self) -> float:
        """Onset of the last given note that the model has met."""
        return float(self.given[self._seen_until - 1, ONSET]) if self._seen_until else -math.inf

    def _is_late(self, note: np.ndarray | None) -> bool:
        """Whether a given note was to be met before a note, or before the end."""
        if self._seen_until >= self._shown:
            return False
        return note is None or bool(self.given[self._seen_until, ONSET] - self.lookahead_sec <= note[ONSET] + _TINY)

    def _meet_given(self) -> None:
        """Let the model meet the next given notes that begin together, before the row that predicts the next note."""
        rows = self.given[self._seen_until : self._shown, ONSET]
        self._seen_until += int(np.searchsorted(rows, rows[0] + _TINY, side="right"))
        self._cache = None
        self._read()

    def _read(self) -> None:
        """Let the model meet what was written since it met something last, or a window from scratch."""
        new = self.written[self._num_read :]
        if self._cache is None or self._runs_out() or self._length + len(new) > self._window:
            self._cache, self._length = self.model.new_cache(), 0
            self._free_cache = self.model.new_cache() if self.controls.is_guided else None
            self._offsets = np.zeros(self.model.config.num_recent_offsets)
            self._feed(*self._whole_window())
        elif new:
            before = self.written[-2][ONSET] if len(self.written) > 1 else self._past_end
            row = new[-1].copy()
            row[TIME_SHIFT] = self.clock - before
            self._feed(row[None], np.zeros(1, dtype=bool), np.full(1, self.clock))
        self._num_read = len(self.written)

    def _feed(self, rows: np.ndarray, is_given: np.ndarray, clock: np.ndarray) -> None:
        """Rows, their roles and the written onset at each of them, for the model to read."""
        self._take_in(rows, is_given, clock)
        self._length += len(rows)
        self._offsets = np.concatenate([self._ends(rows, is_given, clock)[::-1], self._offsets])[: len(self._offsets)]

    def _take_in(self, rows: np.ndarray, is_given: np.ndarray, clock: np.ndarray) -> None:
        """Let the caches take up rows; where it is guided, the second one without what is guided."""
        asked = self._control_ids(clock, self.controls)
        self._hidden_states = self.model.read(self._cache, rows, is_given, asked)
        if self._free_cache is not None:
            free = self._control_ids(clock, self.controls.without_guided())
            free_states = self.model.read(self._free_cache, rows, is_given, free)
            self._hidden_states = self.model.joined([self._hidden_states, free_states])

    def _ends(self, rows: np.ndarray, is_given: np.ndarray, clock: np.ndarray) -> np.ndarray:
        """Where rows end, in steps."""
        return np.rint((clock + np.where(is_given, rows[:, TIME_SHIFT], 0) + rows[:, DURATION]) * self._rate)

    def _runs_out(self) -> bool:
        """Whether there is more to give, and little of what this window may meet still lies ahead."""
        if self._shown == len(self.given):
            return False
        ahead = self._shown - np.searchsorted(self.given[:, ONSET], self.clock)
        return bool(ahead < self._window * _AHEAD_SHARE / 4)

    def _control_ids(self, clock: np.ndarray, controls: Controls) -> np.ndarray:
        """What is asked after each row; of the past, what it was like itself, and no end of a gap that lay ahead."""
        ids = controls.at(clock)
        is_past = clock < self._past_end
        ids[is_past, GAP_LEFT] = 0
        return np.where(is_past[:, None] & (ids > 0) & (self._past_classes > 0), self._past_classes, ids)

    def _whole_window(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A window from scratch: of what was written the latest part, of what is given what lies beside and ahead."""
        written = np.concatenate([self.past, *(note[None] for note in self.written)]).reshape(-1, 4)
        given = self.given
        ahead = int(np.searchsorted(given[:, ONSET], self.clock, side="left"))
        self._shown = min(len(given), ahead + int(self._window * _AHEAD_SHARE))
        in_sight = self.clock + self.lookahead_sec + _TINY
        until = int(np.searchsorted(given[: self._shown, ONSET], in_sight, side="right"))
        until = min(max(until, self._seen_until), self._shown)
        # Latest notes of both roles before the clock, as many as there is room for.
        onsets = np.sort(np.concatenate([written[:, ONSET], given[:ahead, ONSET]]))
        room = num_kept(self.model)
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
        # The note that is written next belongs to them: what is given now is met before the row that predicts it.
        onset, roles = np.append(notes[:, ONSET], _FAR_SEC), np.append(is_given, False)
        order = met_order(onset, roles, max(begin, 1), self.lookahead_sec)[:-1]
        notes, is_given = notes[order], is_given[order]
        onset = notes[:, ONSET].copy()
        notes[:, TIME_SHIFT] = time_shifts(onset, is_given)
        return notes, is_given, written_onsets(onset, is_given)


def num_kept(model: Any) -> int:
    """How many of the latest notes a window from scratch holds."""
    return max(int(model.config.max_position_embeddings * _KEPT_SHARE) - 1, 1)


def guided(asked: np.ndarray, free: np.ndarray, guidance_scale: float) -> np.ndarray:
    """Logits that differ from the free ones by more, or less, than those of a model that was asked for something do.

    Args:
        asked: logits of a model that was asked, shape (num_classes,).
        free: logits of the same model, of which nothing is asked.
        guidance_scale: 1 leaves `asked`, 0 is `free`.
    """
    possible = np.isfinite(asked) & np.isfinite(free)
    scores = np.full_like(asked, -np.inf)
    scores[possible] = free[possible] + np.float32(guidance_scale) * (asked[possible] - free[possible])
    return scores


def _times_within(least: int, most: int) -> np.ndarray:
    """Which classes of time shifts hold a number of steps from `least` to `most`, bool, shape (num_classes,)."""
    return (least <= _LAST_STEPS) & (most >= _FIRST_STEPS) & (least <= most)


def written_until(
    stream: NoteStream, end_sec: float, may_end_sec: float = math.inf, num_notes: float = math.inf
) -> Iterator[np.ndarray]:
    """Notes of a stream, as they are written.

    Args:
        stream: what writes.
        end_sec: a note that would begin then or later is taken back, and is the last; but the first begins earlier.
        may_end_sec: the model may end earlier if it has come so far.
        num_notes: the most notes that are written.
    """
    while len(stream.written) < num_notes:
        note = stream.write(stream.clock >= may_end_sec, math.inf if stream.written else end_sec)
        if note is None:
            return
        if note[ONSET] >= end_sec:
            stream.take_back()
            return
        yield note
