"""MidiTok's REMI in array arithmetic: the same ids, some hundred times as fast.

MidiTok 3.1 (Fradet et al. 2021, arXiv 2310.17202) makes an object of every event, and a string of every object. Here
each step of its encoder is one operation on columns of notes: resample, quantise, sort, drop doubles, count bars.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np

from .notes import Notes

_ZERO = np.zeros(1, dtype=np.int64)
_NOTE_IDS = 3  # pitch, velocity, duration
_BELOW_HALF = np.nextafter(0.5, 0)  # added to a number, then cut, it rounds halves up and never anything else
_ID_BITS = 12  # of one id in a sort key; the time, which ends at 100,000 quarters, has what three ids leave
# What puts other events into the stream, or these in another order.
_UNSUPPORTED_FLAGS = (
    "use_chords",
    "use_rests",
    "use_programs",
    "use_pitch_intervals",
    "use_key_signatures",
    "use_sustain_pedals",
    "use_pitch_bends",
    "use_control_changes",
    "program_changes",
    "one_token_stream_for_programs",
)
_UNSUPPORTED_PARAMS = ("max_bar_embedding", "use_bar_end_tokens", "add_trailing_bars")


class _Metre(NamedTuple):
    """Stretches of one time signature; all arrays have shape (num_stretches,), all times are resampled ticks."""

    ticks_per_quarter: int
    start: np.ndarray  # first tick
    first_bar: np.ndarray  # number of the bar that begins there
    ticks_per_bar: np.ndarray
    ticks_per_position: np.ndarray
    duration_row: np.ndarray  # which row of the encoder's table of durations holds
    signature_id: np.ndarray
    resampling: np.ndarray | None  # MidiTok's resampling factors, where beats of several sizes meet

    def stretch(self, time: np.ndarray) -> np.ndarray | int:
        """The stretch of each time."""
        return np.searchsorted(self.start, time, side="right") - 1 if len(self.start) > 1 else 0


class _Rows(NamedTuple):
    """Notes, tempos and time signatures in the order of the stream; arrays of shape (num_rows,)."""

    time: np.ndarray
    is_signature: np.ndarray  # empty, as is the next, where there are only notes
    is_note: np.ndarray


class RemiEncoder:
    """Ids of notes exactly as a given `miditok.REMI` writes them, with tempos and time signatures if it has them.

    Args:
        library: the MidiTok tokenizer; learnt byte pairs don't matter here.

    Raises:
        ValueError: if this tokenizer writes what is not covered (see `covers`).
    """

    def __init__(self, library: Any) -> None:
        if not self.covers(library):
            raise ValueError("this configuration of REMI is not covered")
        self._library = library
        config, vocab = library.config, library.vocab
        self._use_tempos, self._use_signatures = config.use_tempos, config.use_time_signatures
        self._resolution = config.max_num_pos_per_beat
        self._bar = vocab["Bar_None"]
        # The ids of each kind are consecutive (see `covers`), so the first of them says all.
        first_pitch, first_velocity, first_duration = (vocab[names[0]] for names in _note_names(library))
        self._first_position = vocab["Position_0"]
        self._pitch_offset = first_pitch - config.pitch_range[0]
        self._velocity_ids = first_velocity + _closest(library.velocities, np.arange(128))
        bins = _duration_ticks(library)
        self._duration_rows = {ticks_per_beat: row for row, ticks_per_beat in enumerate(bins)}
        self._longest = max(int(each[-1]) for each in bins.values())
        lengths = np.arange(self._longest + 1)
        self._duration_ids = np.array([first_duration + _closest(each, lengths) for each in bins.values()])
        self._signature_ids = {
            metre: vocab.get("TimeSig_{}/{}".format(*metre), -1) for metre in library.time_signatures
        }
        tempo_names = _tempo_names(library) if self._use_tempos else []
        self._tempo_ids = np.array([vocab[name] for name in tempo_names], dtype=np.int64)
        row = self._duration_rows.get(self._resolution, 0)
        start, bar_size, one, row_of_all = (np.array([each]) for each in (0, 4 * self._resolution, 1, row))
        self._common_time = _Metre(self._resolution, start, start, bar_size, one, row_of_all, -one, None)

    @staticmethod
    def covers(library: Any) -> bool:
        """Whether a MidiTok tokenizer writes bars, positions and notes of three ids, tempos and signatures at most."""
        config = library.config
        return (
            type(library).__name__ == "REMI"
            and config.use_velocities
            and 0 in config.use_note_duration_programs
            and not any(getattr(config, flag) for flag in _UNSUPPORTED_FLAGS)
            and not any(config.additional_params.get(name) for name in _UNSUPPORTED_PARAMS)
            and not library.attribute_controls
            and all(_are_consecutive(names, library.vocab) for names in _note_names(library))
            and all(_ascends(bins) for bins in (library.velocities, *_duration_ticks(library).values()))
            and len(library.vocab) < 2**_ID_BITS
            and _has_every_beat(library)
            and (not config.use_tempos or all(name in library.vocab for name in _tempo_names(library)))
        )

    def encode(self, notes: Notes) -> np.ndarray | None:
        """MidiTok's ids of the piece, int64 (num_ids,); None if it is empty, which is for MidiTok to answer."""
        if not len(notes):
            return None
        metre = self._metre(notes)
        time, note_ids = self._note_rows(notes, metre)
        if not len(time):
            return None
        rows, meta_ids = self._with_meta_rows(time, notes, metre)
        return self._stream(rows, note_ids, meta_ids, metre)

    # Time signatures -------------------------------------------------------------------------------------------------

    def _metre(self, notes: Notes) -> _Metre:
        if not self._use_signatures:
            return self._common_time
        resolution = self._resolution
        signatures = self._known_signatures(notes)
        ticks_per_quarter = int(resolution * max(each.denominator for each in signatures) / 4)
        for each in signatures if notes.ticks_per_quarter != ticks_per_quarter else ():
            each.time = int(each.time * (ticks_per_quarter / notes.ticks_per_quarter))
        self._library._preprocess_time_signatures(signatures, ticks_per_quarter)
        start = np.array([each.time for each in signatures])
        ticks_per_beat = np.array([ticks_per_quarter * 4 // each.denominator for each in signatures])
        ticks_per_bar = ticks_per_beat * [each.numerator for each in signatures]
        resampling = None
        if len({each.denominator for each in signatures}) > 1:
            score = SimpleNamespace(
                time_signatures=signatures, ticks_per_quarter=ticks_per_quarter, end=lambda: int(start[-1])
            )
            resampling = self._library._get_score_resampling_factor(score)
        return _Metre(
            ticks_per_quarter,
            start,
            np.concatenate([[0], np.cumsum(np.diff(start) // ticks_per_bar[:-1])]),
            ticks_per_bar,
            ticks_per_beat // resolution,
            np.array([self._duration_rows[ticks] for ticks in ticks_per_beat.tolist()]),
            np.array([self._signature_ids[each.numerator, each.denominator] for each in signatures]),
            resampling,
        )

    def _known_signatures(self, notes: Notes) -> list[SimpleNamespace]:
        """The piece's time signatures that are in the vocabulary, up to the last onset; one at 0 at least."""
        rows = notes.time_signatures[notes.time_signatures["tick"] <= notes["onset_tick"][-1]].tolist()
        rows = [row for row in rows if row[1:] in self._signature_ids]
        if not rows or rows[0][0] != 0:
            rows.insert(0, (0, 4, 4))
        return [SimpleNamespace(time=time, numerator=over, denominator=under) for time, over, under in rows]

    # Notes and tempos ------------------------------------------------------------------------------------------------

    def _resampled(self, ticks: np.ndarray, notes: Notes, metre: _Metre) -> np.ndarray:
        """Ticks in the encoder's own, coarse ticks; of two the later, as symusic rounds."""
        if notes.ticks_per_quarter == metre.ticks_per_quarter:
            return ticks.astype(np.int64)
        scaled = ticks * (metre.ticks_per_quarter / notes.ticks_per_quarter)
        scaled += _BELOW_HALF
        return scaled.astype(np.int64)

    def _onsets(self, ticks: np.ndarray, notes: Notes, metre: _Metre) -> np.ndarray:
        """Times of events, resampled and laid on the grid of the beat where they fall; `ticks` ascend."""
        time = self._resampled(ticks, notes, metre)
        return time if metre.resampling is None else self._library._adjust_time_to_tpb(time, metre.resampling)

    def _note_rows(self, notes: Notes, metre: _Metre) -> tuple[np.ndarray, list[np.ndarray]]:
        """Times of the notes that are written, shape (num_kept,), in the stream's order; the three ids of each."""
        onset, duration, pitch, velocity = self._columns(notes)
        time = self._onsets(onset, notes, metre)
        row = metre.duration_row[metre.stretch(time)]
        length = np.minimum(self._resampled(duration, notes, metre), self._longest)
        length_ids = self._duration_ids[row, length] if row.ndim else self._duration_ids[row].take(length)
        pitch_ids, velocity_ids = pitch + self._pitch_offset, self._velocity_ids.take(velocity)
        if not self._library.config.remove_duplicated_notes:
            return time, [pitch_ids, velocity_ids, length_ids]
        # One number holds all that MidiTok sorts by: ids rise with what they stand for.
        key = time
        for each in (pitch_ids, length_ids, velocity_ids):
            key <<= _ID_BITS
            key |= each
        key.sort(kind="stable")  # three times as fast: they are in order but for notes that fall on one position
        strike = key >> 2 * _ID_BITS
        written = np.flatnonzero(strike[1:] != strike[:-1])
        if len(written) < len(key) - 1:  # the first of several strikes, the shortest, is written
            written = np.concatenate([_ZERO, written + 1])
            key, strike = key.take(written), strike.take(written)
        mask = 2**_ID_BITS - 1
        return strike >> _ID_BITS, [strike & mask, key & mask, key >> _ID_BITS & mask]

    def _columns(self, notes: Notes) -> list[np.ndarray]:
        """Onset, duration, pitch and velocity of the notes in range, in the order in which symusic reads them."""
        columns = [notes[name] for name in ("onset_tick", "duration_tick", "pitch", "velocity")]
        low, high = self._library.config.pitch_range
        if np.minimum.reduce(columns[2]) < low or np.maximum.reduce(columns[2]) > high:
            in_range = (columns[2] >= low) & (columns[2] <= high)
            columns = [column[in_range] for column in columns]
        if not self._library.config.remove_duplicated_notes:  # otherwise they are sorted later
            order = np.lexsort([columns[3], columns[1], columns[2], columns[0]])
            columns = [column[order] for column in columns]
        return columns

    def _with_meta_rows(self, time: np.ndarray, notes: Notes, metre: _Metre) -> tuple[_Rows, np.ndarray]:
        """All rows in their order, and the ids of those that are no notes: at one time signature, tempo, notes."""
        if not (self._use_tempos or self._use_signatures):
            return _Rows(time, time[:0], time[:0]), time[:0]
        meta = [(metre.start, metre.signature_id)] if self._use_signatures else []
        meta += [self._tempo_rows(notes, metre)] if self._use_tempos else []
        meta_time, meta_ids = (np.concatenate(columns) for columns in zip(*meta, strict=True))
        kind = np.zeros(len(meta_time) + len(time), dtype=np.int8)  # 0: note, 1: time signature, 2: tempo
        kind[: len(meta_time)] = 2
        kind[: len(metre.start) if self._use_signatures else 0] = 1
        all_times = np.concatenate([meta_time, time])
        order = np.argsort(all_times, kind="stable")
        kind = kind[order]
        return _Rows(all_times[order], kind == 1, kind == 0), meta_ids[np.argsort(meta_time, kind="stable")]

    def _tempo_rows(self, notes: Notes, metre: _Metre) -> tuple[np.ndarray, np.ndarray]:
        """Times and ids of the tempos that are written: the last of each time, and only what changes."""
        tempos = notes.tempos[notes.tempos["tick"] <= notes["onset_tick"][-1]]
        time = self._onsets(tempos["tick"], notes, metre)
        tempo = _closest(self._library._tempos_mspq, tempos["us_per_quarter"])
        last = np.append(time[1:] != time[:-1], True)
        time, tempo = time[last], tempo[last]
        if self._library.config.delete_equal_successive_tempo_changes:
            changes = np.append(True, tempo[1:] != tempo[:-1])
            time, tempo = time[changes], tempo[changes]
        return time, self._tempo_ids[tempo]

    # The stream ------------------------------------------------------------------------------------------------------

    def _stream(self, rows: _Rows, note_ids: list[np.ndarray], meta_ids: np.ndarray, metre: _Metre) -> np.ndarray:
        """The ids: before each row the bars that have begun since the last, the position if it is a new one."""
        time, is_signature, is_note = rows
        only_notes = not len(is_note)
        new_bars, position = self._places(time, metre)
        has_position = np.empty(len(time), dtype=bool)
        has_position[0] = True
        np.not_equal(time[1:], time[:-1], out=has_position[1:])
        size: np.ndarray | int = _NOTE_IDS
        if not only_notes:
            has_position[1:] |= is_signature[:-1]  # after a time signature MidiTok says the position anew
            has_position &= ~is_signature
            size = np.where(is_note, _NOTE_IDS, 1)
        # Each bar says its signature, but for one that is announced by the row of its own.
        signatures = new_bars - is_signature if self._use_signatures else new_bars[:0]
        before = new_bars + signatures if self._use_signatures else new_bars
        begin = np.cumsum(before + has_position + size)
        ids = np.full(begin[-1], self._bar)  # whatever is not overwritten below begins a bar
        begin -= size
        new = np.flatnonzero(has_position)
        ids[begin.take(new) - 1] = position.take(new)
        if not only_notes:
            ids[begin[~is_note]] = meta_ids
        place = begin if only_notes else begin[is_note]
        for column in note_ids:
            ids[place] = column
            place = place + 1
        if self._use_signatures:
            # Before a signature's own row stand bars of the signature it ends.
            holds = metre.signature_id[np.maximum(metre.stretch(time) - is_signature, 0)]
            within = np.arange(signatures.sum()) - np.repeat(np.cumsum(signatures) - signatures, signatures)
            first = np.repeat(begin - has_position - before, signatures)
            ids[first + 2 * within + 1] = np.repeat(holds, signatures)
        return ids

    def _places(self, time: np.ndarray, metre: _Metre) -> tuple[np.ndarray, np.ndarray]:
        """Of each row, how many bars have begun since the last, and the id of its position in the bar."""
        stretch = metre.stretch(time)
        ticks_per_bar = metre.ticks_per_bar[stretch]
        since_start = time - metre.start[stretch] if len(metre.start) > 1 else time
        bar = since_start // ticks_per_bar  # with a product four times as fast as `divmod`
        position = (since_start - bar * ticks_per_bar) // metre.ticks_per_position[stretch] + self._first_position
        bar += metre.first_bar[stretch]
        new_bars = bar + 1
        new_bars[1:] -= bar[:-1] + 1
        return new_bars, position


def _closest(bins: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Index of the bin nearest to each value, of two the higher; `bins` ascend."""
    above = np.minimum(np.searchsorted(bins, values), len(bins) - 1)
    below = np.maximum(above - 1, 0)
    return np.where(np.abs(values - bins[below]) < np.abs(values - bins[above]), below, above)


def _note_names(library: Any) -> list[list[str]]:
    """The events of a note by kind: pitches, velocities, durations in the order of their lengths."""
    low, high = library.config.pitch_range
    durations = [".".join(map(str, length)) for length in library.durations]
    pairs = (("Pitch", range(low, high + 1)), ("Velocity", library.velocities), ("Duration", durations))
    return [[f"{kind}_{value}" for value in values] for kind, values in pairs]


def _are_consecutive(names: list[str], vocab: dict[str, int]) -> bool:
    ids = [vocab.get(name, -1) for name in names]
    return ids[0] >= 0 and ids == list(range(ids[0], ids[0] + len(ids)))


def _ascends(bins: np.ndarray) -> bool:
    return bool((np.diff(bins) > 0).all())


def _duration_ticks(library: Any) -> dict[int, np.ndarray]:
    """Lengths that can be written, in ticks, by ticks per beat; MidiTok has useless rows for beats that can't occur."""
    return {ticks: bins for ticks, bins in library._tpb_to_time_array.items() if ticks > 0}


def _has_every_beat(library: Any) -> bool:
    """Whether durations are known for whatever signatures meet in a piece; MidiTok forgets half notes beside 16ths."""
    units = {unit for _, unit in library.time_signatures}
    beats = {library.config.max_num_pos_per_beat * finer // coarser for finer in units for coarser in units}
    return {ticks for ticks in beats if ticks >= library.config.max_num_pos_per_beat} <= _duration_ticks(library).keys()


def _tempo_names(library: Any) -> list[str]:
    """The event of each tempo that MidiTok chooses from; it rounds them to whole microseconds per quarter first."""
    return [f"Tempo_{round(60_000_000 / int(us), 2)}" for us in library._tempos_mspq]
