"""CrayKH text: a column is 50 ms, a printable character is one sounding pitch, a space ends the column.

The format of carykh's caryCompressionMIDICSV (2017), which fed a character LSTM; the name is that of the V6 model.
Here: several tempos are followed (the original applies one to the whole file), silence before the first note is dropped
at every transposition (the original does so at 0 only), and the decoder is not a semitone off.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from .notes import Notes, stable_order
from .tokenization_notes import NoteTokenizer

US_PER_COLUMN = 50_000
COLUMNS_PER_LINE = 50
TAIL = 24  # the text ends this many columns after the last column that sounds
MAX_COLUMNS = 150_000  # 2 h 5 min: the original's limit, and what keeps a hostile tick from filling the memory
MAX_PROGRAM = 7  # General MIDI 0..7: the piano family
LOWEST_PITCH, HIGHEST_PITCH = 24, 109
_CODE_OF_PITCH = 33 - 22  # character code minus pitch, at transposition 0
_FIRST_CODE, _LAST_CODE = 33, 126  # the printable characters
# Decoded notes stand at 120 quarters a minute on 480 ticks: a column is then 48 ticks, exactly, even in float32.
_TICKS_PER_QUARTER, _TICKS_PER_COLUMN = 480, 48
# One column is what is left of 0 to 150 ms. 75 ms is a middle: the means are 63 ms in MAESTRO, 83 in PiJAMA.
_SHORTEST_TICKS = 72
_DECODED_VELOCITY = 80  # mezzo-forte; the text has no velocities


class CrayKHTokenizer(NoteTokenizer):
    r"""One token per character of the text: a pitch, the space that ends a column, the line break after 50 columns.

    Lines are counted from the file's own column 0, so the first one is short, and line breaks alone stand for the lines
    that are silent before the first note. The text goes on to 24 columns after the last sounding one, which leaves 23
    empty columns behind it.

    Lost: velocities, programs and tracks, the pedal, time finer than 50 ms, drums and all programs above 7, pitches
    outside 24..109 (A0 to B0 of a piano are below), what begins after 2 h 5 min, a strike in a column where its pitch
    sounds already. Decoded notes end one column later than they sound in the text, which is where encoding found their
    release (those of a single column after 75 ms); all have velocity 80.

    Args:
        transposition: semitones added to every character, and taken off again in decoding. The original made texts
            with 0 to 5.
    """

    lost_fields: ClassVar[tuple[str, ...]] = ("velocity", "program", "track", "pedal", "leading silence")
    rest_prefixes: ClassVar[tuple[str, ...]] = (" ", "\n")
    time_step_sec: ClassVar[float] = US_PER_COLUMN / 1e6

    def __init__(self, transposition: int = 0, **kwargs: Any) -> None:
        self.transposition = transposition
        self._code_of_pitch = _CODE_OF_PITCH + transposition
        self._lowest = max(LOWEST_PITCH, _FIRST_CODE - self._code_of_pitch)
        highest = min(HIGHEST_PITCH, _LAST_CODE - self._code_of_pitch)
        self._num_pitches = highest - self._lowest + 1
        self.pitch_range = (self._lowest, highest)
        if self._num_pitches < 1:
            raise ValueError(f"no pitch of {LOWEST_PITCH}..{HIGHEST_PITCH} is printable, transposed by {transposition}")
        super().__init__(transposition=transposition, **{"clean_up_tokenization_spaces": False, **kwargs})
        self._space = self.num_special + self._num_pitches
        self._line_break = self._space + 1

    def _event_names(self) -> list[str]:
        first = self._lowest + self._code_of_pitch
        return [*(chr(first + slot) for slot in range(self._num_pitches)), " ", "\n"]

    def encode_prompt(self, notes: Notes) -> list[int]:
        """`<bos>` and the text up to its last sounding column: the tail marks an end that a prompt does not have."""
        ids = self._encode(notes)
        sounding = np.flatnonzero(ids < self._space)
        return [self.bos_token_id, *ids[: sounding[-1] + 2 if len(sounding) else 0].tolist()]

    def _encode(self, notes: Notes) -> np.ndarray:
        runs = self._sounding_runs(notes)
        if not runs.size:
            return np.zeros(0, dtype=np.int64)
        start, end, slot = runs
        first, beyond = int(start.min()), min(int(end.max()) - 1 + TAIL, MAX_COLUMNS)
        column, token = _cells(start, end - start), np.repeat((slot + self.num_special).astype(np.int32), end - start)
        order = stable_order(column - first)  # by pitch they stand already
        column, token = column.take(order), token.take(order)
        double = np.flatnonzero((column[1:] == column[:-1]) & (token[1:] == token[:-1]))
        if len(double):  # a cell that several runs fill sounds once
            column, token = np.delete(column, double), np.delete(token, double)
        # Before a pitch stand those before it, the spaces of earlier columns, and a break for each 50 of the file's.
        ids = np.full(len(token) + beyond - first + beyond // COLUMNS_PER_LINE, self._space)
        ids[np.arange(len(token)) + (column + column // COLUMNS_PER_LINE - first)] = token
        next_line = np.arange(COLUMNS_PER_LINE, beyond + 1, COLUMNS_PER_LINE)  # some before `first`: silent lines
        spaces = np.maximum(next_line - first, 0)
        ids[np.searchsorted(column, next_line) + spaces + np.arange(len(next_line))] = self._line_break
        return ids

    def _sounding_runs(self, notes: Notes) -> np.ndarray:
        """What sounds, shape (3, num_runs): first column, column after the last, pitch counted from the lowest.

        They come by pitch. Runs of one pitch may overlap.
        """
        strikes = self._strikes(notes)
        alone = _stand_alone(strikes)
        slot, on, off = strikes[:3]
        runs = np.stack([on, np.maximum(on + 1, off - 1), slot])
        if alone.all():
            return runs
        runs = np.concatenate([runs[:, alone], _runs_of_clashes(strikes[:, ~alone])], axis=1)
        return runs.take(stable_order(runs[2]), axis=1)

    def _strikes(self, notes: Notes) -> np.ndarray:
        """The printable notes by pitch, then onset.

        Returns:
            int64 array of shape (6, num_kept): pitch counted from the lowest, columns of onset and offset, ticks of
            onset and offset, track.
        """
        table = notes.table
        rows = np.argsort(table["pitch"], kind="stable")
        pitch = table["pitch"].take(rows)
        printable = slice(*np.searchsorted(pitch, [self._lowest, self._lowest + self._num_pitches]))
        rows, pitch = rows[printable], pitch[printable]
        others = (table["program"] > MAX_PROGRAM) | table["is_drum"]
        if others.any():
            kept = ~others[rows]
            rows, pitch = rows[kept], pitch[kept]
        strikes = np.empty((6, len(rows)), dtype=np.int64)
        slot, on, off, onset_tick, offset_tick, track = strikes
        np.subtract(pitch, self._lowest, out=slot)
        onset_tick[:] = table["onset_tick"].take(rows)
        np.add(onset_tick, table["duration_tick"].take(rows), out=offset_tick)
        track[:] = table["track"].take(rows)
        on[:], off[:] = _columns(notes, strikes[3:5])
        np.minimum(off, MAX_COLUMNS + 1, out=off)
        return strikes if (on < MAX_COLUMNS).all() else strikes[:, on < MAX_COLUMNS]

    def _decode_events(self, ids: np.ndarray) -> Notes:
        column = np.cumsum(ids == self._space) + self._first_column(ids)
        sounds = ids < self._space
        stride = column[-1] + 2 if len(ids) else 1  # more than the columns, so that runs of two pitches never touch
        cells = np.unique((ids[sounds] - self.num_special) * stride + column[sounds])
        begins = np.flatnonzero(np.diff(cells, prepend=-2) != 1)
        slot, onset = np.divmod(cells[begins], stride)
        sounding = np.diff(begins, append=len(cells))
        # The column that encoding took off is free: runs of one pitch are a column apart.
        duration = np.where(sounding == 1, _SHORTEST_TICKS, (sounding + 1) * _TICKS_PER_COLUMN)
        return Notes.from_columns(
            _TICKS_PER_QUARTER,
            onset_tick=onset * _TICKS_PER_COLUMN,
            duration_tick=duration,
            pitch=slot + self._lowest,
            velocity=_DECODED_VELOCITY,
        )

    def _first_column(self, ids: np.ndarray) -> int:
        """The file's own number of the first column in the text, from the silent lines and the short first line."""
        written = np.flatnonzero(ids != self._line_break)
        silent_lines = int(written[0]) if len(written) else len(ids)
        breaks = np.flatnonzero(ids[silent_lines:] == self._line_break)
        if not len(breaks):
            return silent_lines * COLUMNS_PER_LINE
        in_first_line = int((ids[silent_lines:][: breaks[0]] == self._space).sum())
        return silent_lines * COLUMNS_PER_LINE + max(COLUMNS_PER_LINE - in_first_line, 0)

    def _allowed_events(self, ids: np.ndarray) -> np.ndarray:
        allowed = np.zeros(self.vocab_size, dtype=bool)
        pitches = slice(self.num_special, self._space)
        breaks = np.flatnonzero(ids == self._line_break)
        in_line = int((ids[breaks[-1] + 1 if len(breaks) else 0 :] == self._space).sum())
        is_first_line = not len(breaks) or breaks[-1] + 1 == len(breaks)  # no breaks yet but those of silent lines
        if len(ids) and ids[-1] < self._space:  # within a column characters ascend
            allowed[ids[-1] + 1 : self._space + 1] = True
        elif in_line == 0 and is_first_line:  # nothing has sounded yet
            allowed[pitches] = allowed[self._line_break] = True
            allowed[self.eos_token_id] = len(ids) == 0
        elif in_line >= COLUMNS_PER_LINE:
            allowed[self._line_break] = True
        else:
            allowed[pitches] = allowed[self._space] = allowed[self.eos_token_id] = True
            allowed[self._line_break] = is_first_line
        return allowed

    # The text is its tokens, unseparated. Music never looks like `<bos>` and its kin: in a column characters ascend.

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        return list(text)

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        """Text of tokens."""
        return "".join(tokens)


def _cells(first: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Columns of all cells of runs, one run after the other, int32 (length.sum(),)."""
    before = np.cumsum(length) - length  # cells of earlier runs
    begin = (first - before).astype(np.int32)  # where it overflows, so does what it is added to
    return np.repeat(begin, length) + np.arange(length.sum(), dtype=np.int32)


def _columns(notes: Notes, ticks: np.ndarray) -> np.ndarray:
    """Columns (int64) in which ticks fall.

    With one tempo this is the original's own arithmetic in float32, which puts a few ticks beside a column's edge into
    another column than exact division does; otherwise it is the exact count of 50 ms.
    """
    us_per_quarter = notes.tempos["us_per_quarter"]
    if (us_per_quarter == us_per_quarter[0]).all():
        quarters_per_column = np.float32(US_PER_COLUMN) / np.float32(us_per_quarter[0])
        ticks_per_column = quarters_per_column * np.float32(notes.ticks_per_quarter)
        return (ticks.astype(np.float32) / ticks_per_column).astype(np.int64)
    starts = notes.tempos["tick"].astype(np.int64)
    # Times in microseconds times ticks per quarter are whole numbers: no rounding can cross a column's edge.
    starts_time = np.concatenate([[0], np.cumsum(np.diff(starts) * us_per_quarter[:-1])])
    row = np.searchsorted(starts, ticks, side="right") - 1
    return (starts_time[row] + (ticks - starts[row]) * us_per_quarter[row]) // (US_PER_COLUMN * notes.ticks_per_quarter)


def _stand_alone(strikes: np.ndarray) -> np.ndarray:
    """Which strikes (as `_strikes` gives them) neither overlap another of their pitch nor share its first column."""
    slot, on, _, onset_tick, offset_tick, _ = strikes
    key = slot << 33  # ticks stay below 2 ** 32, so one running maximum serves all pitches
    reach = np.maximum.accumulate(key + offset_tick)
    same_cell = (slot[1:] == slot[:-1]) & (on[1:] == on[:-1])
    meets_last = (key[1:] + onset_tick[1:] < reach[:-1]) | same_cell
    alone = np.ones(len(slot), dtype=bool)
    alone[1:] &= ~meets_last
    alone[:-1] &= ~meets_last
    return alone


def _runs_of_clashes(strikes: np.ndarray) -> np.ndarray:
    """Runs of strikes that meet others of their pitch, event by event as the original takes them: track after track.

    A note-on in a cell that is filled or holds an open strike is dropped. A note-off closes the latest open strike of
    its pitch, whichever note it belongs to; so of crossing notes the union sounds.

    Args:
        strikes: as `_strikes` gives them.

    Returns:
        As `_sounding_runs`.
    """
    slot, on, off, onset_tick, offset_tick, track = strikes
    # At one tick a release comes before a strike, but for the release of a note without length.
    turn = np.concatenate([np.ones_like(slot), np.where(onset_tick < offset_tick, 0, 2)])
    order = np.lexsort([turn, np.concatenate([onset_tick, offset_tick]), np.tile(track, 2), np.tile(slot, 2)])
    first, last = int(on.min()), int(off.max())
    events = np.stack([np.tile(slot, 2), np.concatenate([on, off]) - first, np.arange(2 * len(slot)) < len(slot)])
    open_strikes: list[int] = []
    filled, runs, last_pitch = bytearray(), [], -1
    for pitch, column, is_on in events[:, order].T.tolist():
        if pitch != last_pitch:
            filled, open_strikes, last_pitch = bytearray(last - first + 2), [], pitch
        if is_on and not filled[column]:
            filled[column] = True
            open_strikes.append(column)
        elif not is_on and open_strikes:
            start = open_strikes.pop()
            end = max(column - 1, start + 1)
            filled[start:end] = b"\1" * (end - start)
            runs.append((start + first, end + first, pitch))
    return np.array(runs, dtype=np.int64).T
