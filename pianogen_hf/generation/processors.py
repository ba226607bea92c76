"""What may be drawn: functions from logits of one field of a note to logits, for a `NoteStream`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from transformers import TopPLogitsWarper

from pianogen_hf.generation.new_notes import GenerationError
from pianogen_hf.generation.note_stream import Processor
from pianogen_hf.models.modeling_note_transformer import NUM_PITCHES, PITCH

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
    nucleus = TopPLogitsWarper(top_p)

    def process(column: int, scores: torch.Tensor, onset: float) -> torch.Tensor:
        if temperature == 0:
            return torch.where(scores == scores.max(), 0.0, -torch.inf)
        scores = scores / temperature
        return nucleus(None, scores[None])[0] if top_p < 1 else scores

    return process


def pitches_within(low: int, high: int) -> Processor:
    """Pitches from `low` to `high`, both included."""
    pitch = torch.arange(NUM_PITCHES)
    return _pitches(lambda onset: (pitch >= low) & (pitch <= high))


def beside(given: np.ndarray, side: str) -> Processor:
    """Pitches below (or above) all given notes that sound, or the nearest of them where none does.

    To be asked before anything that leaves the likeliest alone, as `not_sounding` is.

    Args:
        given: shape (num, 4), by onset: (onset in seconds, pitch, velocity, duration in seconds).
        side: "below" or "above".
    """
    pitch, offset = torch.arange(NUM_PITCHES), given[:, 0] + given[:, 3]

    def allowed(onset: float) -> torch.Tensor:
        sounding = given[(given[:, 0] <= onset + _NEAR_SEC) & (offset > onset)]
        if not len(sounding):
            sounding = given[[int(np.abs(given[:, 0] - onset).argmin())]]
        return pitch < sounding[:, 1].min() if side == "below" else pitch > sounding[:, 1].max()

    return _pitches(allowed)


def not_sounding(kept: np.ndarray) -> Processor:
    """No key that a kept note holds, or strikes at the same moment: a second strike would end the first."""
    pitch, offset = kept[:, 1].astype(np.int64), kept[:, 0] + kept[:, 3]

    def allowed(onset: float) -> torch.Tensor:
        mask = torch.ones(NUM_PITCHES, dtype=torch.bool)
        mask[pitch[(kept[:, 0] <= onset + _NEAR_SEC) & (offset > onset)]] = False
        return mask

    return _pitches(allowed)


def _pitches(allowed: Callable[[float], torch.Tensor]) -> Processor:
    """Only the pitches that are allowed at an onset."""

    def process(column: int, scores: torch.Tensor, onset: float) -> torch.Tensor:
        if column != PITCH:
            return scores
        return scores.masked_fill(~allowed(onset).to(scores.device), -torch.inf)

    return process
