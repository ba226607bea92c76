"""Guards while notes are written: no run of pitches twice, and none that is a copy of other pieces."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch

from pianogen_hf.generation.note_stream import NoteStream, Processor
from pianogen_hf.models.modeling_note_transformer import DURATION, END_CLASS, NUM_PITCHES, PITCH, TIME_SHIFT
from pianogen_hf.models.time_classes import NUM_TIME_CLASSES, first_step
from pianogen_hf.tokenizers.notes import Notes

_ONSET = 0
_FIRST_STEPS = first_step(torch.arange(NUM_TIME_CLASSES)).numpy()
_TIMES, _MORE = 1.25, 2  # how many new notes there may be: times those that went, and some more
_LONGEST_MEMORY = 4096  # notes: what was said so long ago may be said again
_LIKELY = 1e-4  # what is less probable is not drawn often enough to be looked up


Guard = Callable[[NoteStream], Processor]


class CopyIndex(Protocol):
    """What is asked of an index of pieces that are not to be copied; `RunIndex` of the audit has it."""

    def audit(self, piece: Notes) -> Any:
        """What of a piece stands in these pieces: `longest_run`, in notes, and its `train_piece`."""


def no_repeats(stream: NoteStream, size: int) -> Processor:
    """No `size` pitches in a row that were written or given before in this order, unless nothing else is left.

    Args:
        stream: whose notes are meant.
        size: pitches, at least 2.
    """

    def process(column: int, scores: np.ndarray, onset: float) -> np.ndarray:
        return _without(scores, _said_before(_latest(stream)[:, PITCH], size)) if column == PITCH else scores

    return process


def no_copies(stream: NoteStream, index: CopyIndex, max_run: int) -> Processor:
    """No more than `max_run` notes in a row that stand in pieces of an index, in any key, unless nothing else is left.

    Args:
        stream: whose notes are meant; those of a prompt are no copy by the model, but a run may begin in them.
        index: of the pieces.
        max_run: notes in a row that are no copy yet.
    """

    def process(column: int, scores: np.ndarray, onset: float) -> np.ndarray:
        if column != PITCH or len(stream.written) == 0:
            return scores
        rows = _latest(stream)[-max_run:]
        if len(rows) < max_run or _longest_run(index, rows) < max_run:  # nothing that goes on can be too long
            return scores
        weights = np.exp(scores - scores.max())
        likely = np.flatnonzero(weights > _LIKELY * weights.sum())
        copied = [pitch for pitch in likely if _longest_run(index, _with(rows, onset, int(pitch))) > max_run]
        return _without(scores, np.array(copied, dtype=np.int64))

    return process


def no_crowd(stream: NoteStream, onset_sec: np.ndarray) -> Processor:
    """At any time hardly more new notes than there were: a quarter more, and two.

    Args:
        stream: whose notes are meant.
        onset_sec: when the notes began that the new ones stand for, not falling, shape (num,), at least one.
    """

    def process(column: int, scores: np.ndarray, onset: float) -> np.ndarray:
        if column != TIME_SHIFT:
            return scores
        needed = math.ceil((len(stream.written) - _MORE) / _TIMES)  # so many must have begun before another one may
        if needed < 1:
            return scores
        if needed > len(onset_sec):
            return np.where(np.arange(len(scores)) == END_CLASS, scores, np.float32(-np.inf))
        steps = (float(onset_sec[needed - 1]) - onset) * stream.model.config.sampling_rate
        is_early = np.append(_FIRST_STEPS, np.inf) < np.floor(steps)
        left = np.where(is_early, np.float32(-np.inf), scores)
        return left if np.isfinite(left).any() else scores

    return process


def _latest(stream: NoteStream) -> np.ndarray:
    """The latest notes of the past and written, shape (num, 4)."""
    rows = [*stream.past[-_LONGEST_MEMORY:], *stream.written]
    return np.array(rows[-_LONGEST_MEMORY:]).reshape(-1, 4)


def _said_before(pitch: np.ndarray, size: int) -> np.ndarray:
    """Pitches that followed the last `size - 1` when these were said before, shape (num,)."""
    pitch, known = pitch.astype(np.int64), size - 1
    if len(pitch) <= known:
        return pitch[:0]
    windows = np.lib.stride_tricks.sliding_window_view(pitch[:-1], known)
    places = np.flatnonzero((windows == pitch[len(pitch) - known :]).all(axis=1))
    return pitch[places + known]


def _without(scores: np.ndarray, pitches: np.ndarray) -> np.ndarray:
    left = np.where(np.isin(np.arange(NUM_PITCHES), pitches), np.float32(-np.inf), scores)
    return left if np.isfinite(left).any() else scores


def _with(rows: np.ndarray, onset: float, pitch: int) -> np.ndarray:
    row = rows[-1].copy()
    row[_ONSET], row[PITCH] = onset, pitch
    return np.concatenate([rows, row[None]])


def _longest_run(index: CopyIndex, rows: np.ndarray) -> int:
    onset = rows[:, _ONSET] - rows[0, _ONSET]
    return int(index.audit(Notes.from_seconds(onset, rows[:, DURATION], rows[:, PITCH])).longest_run)
