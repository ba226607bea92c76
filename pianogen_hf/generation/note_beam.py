"""Beam search over the notes of a note transformer (V8).

A hypothesis is a stream with the sum of the log-probabilities of all fields it has drawn. Each step lengthens every
hypothesis by its likeliest next notes, found by a beam over the fields of the note; the best of all live on. Finished
hypotheses are kept aside, and all are compared by their score divided by the number of steps to the power of
`length_penalty`, as beam search in transformers does it.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from pianogen_hf.generation.note_stream import ONSET, NoteStream
from pianogen_hf.models.modeling_note_transformer import END_CLASS

_NUM_FIELDS = 4


@dataclass(frozen=True)
class Until:
    """When a stream has written enough; see `written_until`.

    Attributes:
        begin_sec: where it begins.
        end_sec: notes begin earlier than this.
        may_end_sec: from where on the model may end.
        num_notes: the most notes.
    """

    begin_sec: float
    end_sec: float
    may_end_sec: float = math.inf
    num_notes: float = math.inf

    def share(self, stream: NoteStream) -> float:
        """How much of it is written."""
        if math.isfinite(self.num_notes):
            return len(stream.written) / self.num_notes
        return (stream.clock - self.begin_sec) / (self.end_sec - self.begin_sec)


@dataclass(frozen=True)
class _Hypothesis:
    stream: NoteStream
    score: float = 0.0
    num_steps: int = 0

    def rank(self, length_penalty: float) -> float:
        return self.score / max(self.num_steps, 1) ** length_penalty


@dataclass(frozen=True)
class _Candidate:
    """A next note of a hypothesis: the classes of its fields, or the end."""

    parent: _Hypothesis
    classes: tuple[int, ...]
    score: float
    is_end: bool


class _Stop(Exception):
    """Enough is known of a field."""


@torch.inference_mode()
def beam_search(
    stream: NoteStream,
    until: Until,
    num_beams: int,
    length_penalty: float = 1.0,
    num_results: int = 1,
    on_note: Callable[[NoteStream], None] | None = None,
) -> list[list[np.ndarray]]:
    """The new notes of the best hypotheses, best first.

    Args:
        stream: where to begin; nothing is written to it.
        until: when a hypothesis is finished.
        num_beams: how many are kept side by side.
        length_penalty: exponent of the number of steps by which scores are divided.
        num_results: how many are wanted, at most `num_beams`; there may be fewer.
        on_note: called with the stream of the best unfinished hypothesis after each step.
    """
    live, finished = [_Hypothesis(stream)], list[_Hypothesis]()
    while live and len(finished) < max(num_beams, num_results):
        candidates = [each for hypothesis in live for each in _next_notes(hypothesis, until, num_beams)]
        candidates.sort(key=lambda each: -each.score)
        live = []
        for candidate in candidates[: 2 * num_beams]:  # half of them may be ends
            if len(live) == num_beams:
                break
            grown, is_over = _grown(candidate, until)
            if not is_over:
                live.append(grown)
            elif grown.stream.written:
                finished.append(grown)
        if live and on_note is not None:
            on_note(live[0].stream)
    best = sorted([*finished, *live], key=lambda each: -each.rank(length_penalty))
    return [each.stream.written for each in best[:num_results] if each.stream.written]


def _next_notes(parent: _Hypothesis, until: Until, width: int) -> list[_Candidate]:
    """The likeliest next notes of a hypothesis, or the end, by a beam over fields."""
    partial: list[tuple[tuple[int, ...], float]] = [((), 0.0)]
    found: list[_Candidate] = []
    for column in range(_NUM_FIELDS):
        longer = []
        for classes, score in partial:
            log_probs = _field_log_probs(parent.stream, until, classes)
            if log_probs is None:  # nothing may come after this
                continue
            for each in np.argsort(-log_probs)[:width].tolist():
                if np.isfinite(log_probs[each]):
                    longer.append(((*classes, each), score + float(log_probs[each])))
        longer.sort(key=lambda each: -each[1])
        partial = longer[:width]
        if column == 0:
            ends = [each for each in partial if each[0][0] == END_CLASS]
            found = [_Candidate(parent, classes, parent.score + score, True) for classes, score in ends]
            partial = [each for each in partial if each[0][0] != END_CLASS]
    return found + [_Candidate(parent, classes, parent.score + score, False) for classes, score in partial]


def _field_log_probs(stream: NoteStream, until: Until, classes: tuple[int, ...]) -> np.ndarray | None:
    """Log-probabilities of the next field, given the classes of those before it; None where none is possible."""
    seen: list[np.ndarray] = []

    def process(column: int, scores: np.ndarray, onset: float) -> np.ndarray:
        if column < len(classes):
            return _only(scores, classes[column])
        largest = scores.max()
        seen.append(scores - (largest + math.log(np.exp(scores - largest).sum())))
        raise _Stop

    usual = stream.processors
    stream.processors = (*usual, process)
    try:
        _write(stream, until)
    except _Stop:
        return seen[0]
    finally:
        stream.processors = usual
    return None


def _write(stream: NoteStream, until: Until) -> np.ndarray | None:
    """The next note, as `written_until` asks for it."""
    return stream.write(stream.clock >= until.may_end_sec, math.inf if stream.written else until.end_sec)


def _only(scores: np.ndarray, chosen: int) -> np.ndarray:
    return np.where(np.arange(len(scores)) == chosen, scores, np.float32(-np.inf))


def _grown(candidate: _Candidate, until: Until) -> tuple[_Hypothesis, bool]:
    """A hypothesis with its next note, and whether it is finished."""
    parent = candidate.parent
    grown = replace(parent, score=candidate.score, num_steps=parent.num_steps + 1)
    if candidate.is_end:
        return grown, True
    stream = _forked(parent.stream)

    def process(column: int, scores: np.ndarray, onset: float) -> np.ndarray:
        return _only(scores, candidate.classes[column])

    usual = stream.processors
    stream.processors = (*usual, process)
    note = _write(stream, until)
    stream.processors = usual
    if note is None:
        return grown, True
    if note[ONSET] >= until.end_sec:
        stream.take_back()
        return replace(grown, stream=stream), True
    return replace(grown, stream=stream), len(stream.written) >= until.num_notes


def _forked(stream: NoteStream) -> NoteStream:
    """A stream that continues from where another one is; they share what never changes."""
    shared = (stream.model, stream.past, stream.given, stream.processors, stream.generator, stream.controls)
    return copy.deepcopy(stream, {id(each): each for each in shared})
