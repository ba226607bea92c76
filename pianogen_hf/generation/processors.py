"""What may be drawn: functions from logits of one field of a note to logits, for a `NoteStream`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from pianogen_hf.generation.drawing import nucleus
from pianogen_hf.generation.new_notes import GenerationError
from pianogen_hf.generation.note_stream import Processor
from pianogen_hf.models.modeling_note_transformer import END_CLASS, NUM_PITCHES, PITCH, TIME_SHIFT
from pianogen_hf.models.time_classes import NUM_TIME_CLASSES, first_step

_FIRST_STEPS = first_step(torch.arange(NUM_TIME_CLASSES)).numpy()
_NEAR_SEC = 0.03  # strikes of one key that lie nearer to each other than this are one


def warped(temperature: float = 1.0, top_p: float = 1.0) -> Processor:
    """Temperature, then nucleus, of every field.

    Args:
        temperature: divides the logits; 0 leaves the likeliest alone.
        top_p: the likeliest classes are left that together have this probability.

    Raises:
        GenerationError: if one is out of range.
    """
    if not 0 <= temperature < float("inf") or not 0 < top_p <= 1:
        raise GenerationError("temperature must be at least 0, and top_p above 0 and at most 1")

    def process(column: int, scores: np.ndarray, onset: float) -> np.ndarray:
        if temperature == 0:
            return np.where(scores == scores.max(), np.float32(0), np.float32(-np.inf))
        scores = scores / np.float32(temperature)
        if top_p < 1:
            scores[~nucleus(np.exp(scores - scores.max())[None], top_p)[0]] = -np.inf
        return scores

    return process


def pitches_within(low: int, high: int) -> Processor:
    """Pitches from `low` to `high`, both included."""
    pitch = np.arange(NUM_PITCHES)
    return _pitches(lambda onset: (pitch >= low) & (pitch <= high))


def beside(given: np.ndarray, side: str) -> Processor:
    """Pitches below (or above) all given notes that sound, or the nearest of them where none does.

    To be asked before anything that leaves the likeliest alone, as `not_sounding` is.

    Args:
        given: shape (num, 4), by onset: (onset in seconds, pitch, velocity, duration in seconds).
        side: "below" or "above".
    """
    pitch, offset = np.arange(NUM_PITCHES), given[:, 0] + given[:, 3]

    def allowed(onset: float) -> np.ndarray:
        sounding = given[(given[:, 0] <= onset + _NEAR_SEC) & (offset > onset)]
        if not len(sounding):
            sounding = given[[int(np.abs(given[:, 0] - onset).argmin())]]
        return pitch < sounding[:, 1].min() if side == "below" else pitch > sounding[:, 1].max()

    return _pitches(allowed)


def not_sounding(kept: np.ndarray) -> Processor:
    """No key that a kept note holds, or strikes at the same moment: a second strike would end the first."""
    pitch, offset = kept[:, 1].astype(np.int64), kept[:, 0] + kept[:, 3]

    def allowed(onset: float) -> np.ndarray:
        mask = np.ones(NUM_PITCHES, dtype=bool)
        mask[pitch[(kept[:, 0] <= onset + _NEAR_SEC) & (offset > onset)]] = False
        return mask

    return _pitches(allowed)


def at_onsets(onset_sec: np.ndarray, sampling_rate: int) -> Processor:
    """Only notes that begin at certain times, as exactly as the classes of time shifts have it.

    Args:
        onset_sec: these times, not falling, shape (num,).
        sampling_rate: steps a second.
    """

    def process(column: int, scores: np.ndarray, onset: float) -> np.ndarray:
        if column != TIME_SHIFT:
            return scores
        steps = np.rint((onset_sec - onset) * sampling_rate)
        allowed = np.arange(len(scores)) == END_CLASS
        allowed[np.searchsorted(_FIRST_STEPS, steps[steps >= 0], side="right") - 1] = True
        return np.where(allowed, scores, np.float32(-np.inf))

    return process


def _pitches(allowed: Callable[[float], np.ndarray]) -> Processor:
    """Only the pitches that are allowed at an onset."""

    def process(column: int, scores: np.ndarray, onset: float) -> np.ndarray:
        return np.where(allowed(onset), scores, np.float32(-np.inf)) if column == PITCH else scores

    return process
