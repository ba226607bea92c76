"""Notes <-> rows of real numbers, for the continuous-note model (V5)."""

from __future__ import annotations

import os
from typing import Any, ClassVar

import numpy as np
from transformers import BatchFeature, SequenceFeatureExtractor

from .midi import notes_to_midi_bytes, read_midi
from .notes import MAX_WAIT_SEC, Notes, take_rows
from .notes_encoder import NotesEncoder

TIME_SHIFT, PITCH, VELOCITY, DURATION = range(4)
BEGIN, END = 128, 129  # events that stand in the pitch column, after the MIDI pitches


class ContinuousNotesFeatureExtractor(NotesEncoder, SequenceFeatureExtractor):
    """Rows of (time shift in seconds since the previous onset, pitch, velocity, duration in seconds), float32.

    A piece is a row of `BEGIN`, its notes by onset and pitch, and a row of `END`. Times are rounded to a grid, as
    absolute times, so that errors don't add up. The sustain pedal is folded into the notes' lengths, and of two notes
    that strike one key in the same step the longer one is kept, as performance events do: at 100 steps a second both
    describe the same music, and the bits per note of their models compare.

    Lost: programs and tracks (all notes go to one piano), time finer than a step, the pedal as such, and what follows
    the last note; and of a length, or of the time to the next onset, what it has beyond `MAX_WAIT_SEC`.

    Args:
        sampling_rate: steps per second of the grid; 1000 keeps what a MIDI file written by this package can hold.
        feature_size: fields per note, always 4. padding_value: what fills padding rows.
        **kwargs: as for `SequenceFeatureExtractor`, e.g. `padding_side` ("right" by default; prompts want "left").

    Attributes:
        time_unit: this scheme counts real time.
        lost_fields: what it throws away by design, for reports.
        pitch_range: lowest and highest pitch it can write.

    Raises:
        ValueError: if the rate is not in 1..1000, or another number of fields is asked for.
    """

    model_input_names = ["input_values", "attention_mask"]
    _auto_class = "AutoFeatureExtractor"  # so `save_pretrained` writes code files, too, for who has not this package
    time_unit: ClassVar[str] = "second"
    lost_fields: ClassVar[tuple[str, ...]] = ("program", "track")
    pitch_range: tuple[int, int] = (0, 127)

    def __init__(
        self, sampling_rate: int = 100, feature_size: int = 4, padding_value: float = 0.0, **kwargs: Any
    ) -> None:
        if not 1 <= sampling_rate <= 1000:
            raise ValueError(f"sampling_rate must lie in 1..1000, got {sampling_rate}")
        if feature_size != 4:
            raise ValueError(f"a note has 4 fields, so feature_size must be 4, got {feature_size}")
        super().__init__(feature_size, sampling_rate, padding_value, **kwargs)

    def __call__(self, music: Any, *, is_prompt: bool = False, padding: Any = True, **kwargs: Any) -> BatchFeature:
        """Rows for a model.

        Args:
            music: `Notes`, the path of a MIDI file, its bytes, or a list of these.
            is_prompt: leave out the row of `END`.
            padding: as for `pad`.
            **kwargs: as for `pad`: `max_length`, `truncation`, `return_tensors` ...

        Returns:
            `input_values`, float32 of shape (batch, longest, 4), and `attention_mask`, (batch, longest).

        Raises:
            MidiError: if a file can't be read. TypeError: for anything else.
        """
        pieces = music if isinstance(music, (list, tuple)) else [music]
        encode = self.encode_prompt if is_prompt else self.encode_piece
        features = BatchFeature({"input_values": [encode(_as_notes(piece)) for piece in pieces]})
        return self.pad(features, padding=padding, **kwargs)

    @property
    def time_step_sec(self) -> float:
        """The step of the grid, in seconds."""
        return 1 / self.sampling_rate

    @property
    def beginning(self) -> np.ndarray:
        """The row of `BEGIN`, shape (1, 4)."""
        return _event(BEGIN)

    @property
    def writes_durations(self) -> bool:
        """Every row tells its note's length."""
        return True

    def encode_notes(self, notes: Notes) -> np.ndarray:
        """Rows of the notes alone, shape (num_notes, 4)."""
        onset, duration, pitch, velocity = self._quantised(notes)
        rows = np.zeros((len(onset), 4), dtype=np.float32)
        rows[:, TIME_SHIFT] = np.minimum(np.diff(onset, prepend=0) / self.sampling_rate, MAX_WAIT_SEC)
        rows[:, PITCH], rows[:, VELOCITY] = pitch, velocity
        rows[:, DURATION] = np.minimum(duration / self.sampling_rate, MAX_WAIT_SEC)
        return rows

    def encode_prompt(self, notes: Notes) -> np.ndarray:
        """Rows of music to continue: `BEGIN` and the notes, shape (1 + num_notes, 4)."""
        return np.concatenate([_event(BEGIN), self.encode_notes(notes)])

    def encode_piece(self, notes: Notes) -> np.ndarray:
        """Rows of a whole piece: `BEGIN`, the notes, `END`, shape (num_notes + 2, 4)."""
        return np.concatenate([self.encode_prompt(notes), _event(END)])

    def piece_steps(self, notes: Notes) -> np.ndarray:
        """What chunks are cut from: as `encode_piece`."""
        return self.encode_piece(notes)

    def decode_notes(self, rows: Any) -> Notes:
        """Notes of one piece's rows, which end at the first row of `END`; rows of `BEGIN` are skipped.

        Times keep the model's precision, to 1 ms. A key that is struck while it sounds ends there; of strikes of one
        key in one millisecond the longest is kept.

        Args:
            rows: array, list or tensor of shape (length, 4), without padding.

        Raises:
            ValueError: for another shape, or for numbers that no note has.
        """
        array = _as_array(rows)
        ends = np.flatnonzero(array[:, PITCH] == END)
        array = array[: ends[0]] if len(ends) else array
        array = array[array[:, PITCH] != BEGIN]
        if not np.isfinite(array).all() or (array[:, [TIME_SHIFT, DURATION]] < 0).any():
            raise ValueError("times must be finite and at least 0")
        onset, duration = np.cumsum(array[:, TIME_SHIFT]), np.maximum(array[:, DURATION], 1e-3)
        notes = Notes.from_seconds(onset, duration, np.rint(array[:, PITCH]), np.rint(array[:, VELOCITY]))
        return _one_strike_at_a_time(notes)

    def to_midi(self, music: Any) -> bytes:
        """A MIDI file, as `pathlib.Path("out.mid").write_bytes` wants it.

        Args:
            music: rows of one piece, as for `decode_notes`, or `Notes`.

        Raises:
            ValueError: as for `decode_notes`.
        """
        return notes_to_midi_bytes(music if isinstance(music, Notes) else self.decode_notes(music))

    def seconds_left(self, steps: np.ndarray, stop: int) -> float:
        """From the last onset before row `stop` of a piece until its last note has died away."""
        onset = np.cumsum(steps[:, TIME_SHIFT], dtype=np.float64)
        return float((onset + steps[:, DURATION]).max() - onset[min(stop, len(steps)) - 1])

    def identity(self) -> tuple[str, dict[str, Any], list[Any]]:
        """Class and grid; nothing is learnt."""
        return type(self).__name__, {"sampling_rate": self.sampling_rate}, []

    def config_settings(self) -> dict[str, Any]:
        """The grid, on which the model's probabilities are taken."""
        return {"sampling_rate": self.sampling_rate}

    def model_fault(self, model: Any) -> str | None:
        """What of a model does not fit: it must take its probabilities on the grid of these rows."""
        fault = super().model_fault(model)
        if fault is None and model.config.sampling_rate != self.sampling_rate:
            return f"a grid of {model.config.sampling_rate} steps a second, its feature extractor {self.sampling_rate}"
        return fault

    def _quantised(self, notes: Notes) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Onset and duration in steps, pitch and velocity, shape (num_kept,), by onset in steps, then pitch."""
        notes = notes.with_sustain()
        onset = np.rint(notes.onset_sec * self.sampling_rate).astype(np.int64)
        offset = np.maximum(np.rint(notes.offset_sec * self.sampling_rate).astype(np.int64), onset + 1)
        kept, offset = _cut_at_next_strike(onset, offset, notes["pitch"])
        order = kept[np.lexsort([notes["pitch"][kept], onset[kept]])]
        return onset[order], (offset - onset)[order], notes["pitch"][order], notes["velocity"][order]


def _cut_at_next_strike(onset: np.ndarray, offset: np.ndarray, pitch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the longest note of each key and onset, and all offsets, cut where the same key begins again."""
    order = np.lexsort([-offset, onset, pitch])
    is_double = (np.diff(pitch[order], prepend=-1) == 0) & (np.diff(onset[order], prepend=-1) == 0)
    kept = order[~is_double]
    cut, same_key = offset.copy(), pitch[kept[1:]] == pitch[kept[:-1]]
    cut[kept[:-1][same_key]] = np.minimum(offset[kept[:-1]], onset[kept[1:]])[same_key]
    return kept, cut


def _one_strike_at_a_time(notes: Notes) -> Notes:
    onset = notes["onset_tick"].astype(np.int64)
    kept, offset = _cut_at_next_strike(onset, notes.offset_tick, notes["pitch"])
    table = notes.table.copy()
    table["duration_tick"] = offset - onset
    return Notes(take_rows(table, np.sort(kept)), notes.ticks_per_quarter, notes.tempos)


def _event(event: int) -> np.ndarray:
    row = np.zeros((1, 4), dtype=np.float32)
    row[0, PITCH] = event
    return row


def _as_notes(music: Any) -> Notes:
    if isinstance(music, Notes):
        return music
    if isinstance(music, (str, bytes, os.PathLike)):
        return read_midi(music)
    raise TypeError(f"Notes, a path or the bytes of a MIDI file are wanted, got {type(music).__name__}")


def _as_array(rows: Any) -> np.ndarray:
    """Float64 array of a list, an array or a tensor on any device."""
    if hasattr(rows, "detach"):
        rows = rows.detach().cpu().numpy()
    array = np.asarray(rows, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] != 4:
        raise ValueError(f"rows of 4 fields are wanted, got an array of shape {array.shape}")
    return array


__all__ = ["ContinuousNotesFeatureExtractor"]
