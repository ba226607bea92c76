"""What held-out pieces cost a model, piece by piece: bits, and the notes and seconds of the piece to divide them by.

Bits per note and per second mean the same for every encoding; nats per id do not. The cost of a piece is that of all
its tokens, the end included, and the notes are those of the piece itself, not those that an encoding keeps.

`scorers.py` has the kinds of models that can be measured. Of a masked model the bits are an upper bound; to what
the tokens cost comes what it takes to say how many there are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from pianogen_hf.errors import PianogenError
from pianogen_hf.evaluation.scorers import END, SCORERS, MemoryScorer, PartsScorer, Totals, Window, batches, cut, walks
from pianogen_hf.models.objectives import objective_of
from pianogen_hf.tokenizers.notes import Notes

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16}
LENGTH = "length"  # the kind of the bits that tell how many tokens a piece has


_VECTORS = ("bits", "notes", "seconds", "predictions", "right", "guesses")  # what there is one of per piece


class LikelihoodError(PianogenError):
    """Pieces that can't be measured; the message is one line that says why."""


@dataclass(frozen=True)
class Likelihood:
    """The cost of pieces, one entry per piece in every array.

    Attributes:
        names: what the pieces are called.
        bits: cost of each piece, float64.
        notes: notes of the piece as it was read, int64.
        seconds: its length, float64.
        predictions: tokens (with continuous notes: rows) that were predicted, the end included, int64.
        right: predictions whose likeliest id was right, float64; of continuous notes, whose likeliest pitch was.
        guesses: predictions that could be right: all of them, but for continuous notes the end, which has no pitch.
        by_kind: the same bits by the kind of what they were spent on ("Pitch", "VELOCITY", "end" ...). Each share is
            the cost of those tokens given *all* before them: no codelength of that field alone.
        window: tokens in a window at most. stride: tokens by which it slides.
        memory: tokens before a window that the model remembers; None without a memory.
        num_orders: random masks per window of a masked model, whose bits are an upper bound; None for other models.
        seed: of these masks.
    """

    names: tuple[str, ...]
    bits: np.ndarray
    notes: np.ndarray
    seconds: np.ndarray
    predictions: np.ndarray
    right: np.ndarray
    guesses: np.ndarray
    by_kind: dict[str, np.ndarray]
    window: int
    stride: int
    num_orders: int | None = None
    seed: int = 0
    memory: int | None = None

    @property
    def bits_per_note(self) -> float:
        """All bits over all notes."""
        return _ratio(self.bits, self.notes)

    @property
    def bits_per_second(self) -> float:
        """All bits over all seconds."""
        return _ratio(self.bits, self.seconds)

    @property
    def nats_per_token(self) -> float:
        """For a diagnosis of one model: it compares with nothing else. Without the bits that tell a length."""
        return _ratio(self.bits - self.by_kind.get(LENGTH, 0.0), self.predictions) * math.log(2)

    @property
    def nats_per_event(self) -> float:
        """Nats per id without the end; with four voices on a grid these are the literature's nats per cell."""
        return _ratio(self._event_bits, self.predictions - 1) * math.log(2)

    @property
    def _event_bits(self) -> np.ndarray:
        return self.bits - self.by_kind.get(LENGTH, 0.0) - self.by_kind.get(END, 0.0)

    @property
    def accuracy(self) -> float:
        """Share of predictions whose likeliest id (of continuous notes: pitch, given the time) was right."""
        return _ratio(self.right, self.guesses)

    def select(self, rows: Sequence[int] | np.ndarray) -> Likelihood:
        """The same of some of the pieces."""
        rows = np.asarray(rows, dtype=np.int64)
        vectors = {name: getattr(self, name)[rows] for name in _VECTORS}
        return replace(
            self,
            names=tuple(self.names[row] for row in rows),
            by_kind={kind: bits[rows] for kind, bits in self.by_kind.items()},
            **vectors,
        )

    def report(self) -> dict[str, Any]:
        """The figures over all pieces, JSON-able."""
        return {
            "pieces": len(self.names),
            "notes": int(self.notes.sum()),
            "bits_per_note": self.bits_per_note,
            "standard_error": standard_error(self.bits, self.notes),
            "bits_per_second": self.bits_per_second,
            "nats_per_token": self.nats_per_token,
            "nats_per_event": self.nats_per_event,
            "nats_per_event_standard_error": standard_error(self._event_bits * math.log(2), self.predictions - 1),
            "accuracy": self.accuracy,
            "tokens_per_note": _ratio(self.predictions, self.notes),
            "bits_per_note_by_kind": {kind: _ratio(bits, self.notes) for kind, bits in sorted(self.by_kind.items())},
            "context": {
                "window": self.window,
                "stride": self.stride,
                **({} if self.memory is None else {"memory": self.memory}),
            },
            "bound": None if self.num_orders is None else {"orders": self.num_orders, "seed": self.seed},
        }

    def per_piece(self) -> dict[str, list[Any]]:
        """The vectors that a paired comparison needs, JSON-able."""
        vectors = {name: getattr(self, name).tolist() for name in ("bits", "notes", "seconds", "predictions")}
        return {"names": list(self.names), **vectors}


def piece_likelihood(
    model: Any,
    encoder: Any,
    pieces: Iterable[tuple[str, Notes]],
    window: int,
    stride: int,
    *,
    batch_size: int = 16,
    precision: str = "float32",
    num_orders: int = 8,
    seed: int = 0,
    with_memory: bool = False,
    on_progress: Callable[[int, int], None] | None = None,
) -> Likelihood:
    """Measure pieces with a model, on the device it is on, without dropout.

    Every id after the first is predicted once. With `stride` below `window - 1` windows overlap, and what an earlier
    one predicted is context in the next. What is measured is what `train.py` measures, with `num_orders` = 1 and
    `seed` = 0 for a masked model, too.

    Args:
        model: a causal model of tokens, `ContinuousNotesForCausalLM` or `PianoEncoderForMaskedLM`.
        encoder: its tokenizer or feature extractor.
        pieces: names and notes.
        window: tokens in a window at most, at least 2.
        stride: tokens by which windows slide, 1..window - 1; of a grid tokenizer, whole rows.
        batch_size: windows at a time.
        precision: "float32", or "bfloat16" for autocast; probabilities are summed up in float32 or better either way.
        num_orders: random masks per window, for a masked model.
        seed: of these masks.
        with_memory: whether a model with a memory goes through the windows of a piece in their order, and remembers
            those before; `stride` is then `window - 1`.
        on_progress: called with the windows done and all of them.

    Returns:
        See [`Likelihood`].

    Raises:
        LikelihoodError: if there is no piece, one can't be encoded, or window or stride can't be.
    """
    _check_context(model, window, stride)
    if num_orders < 1:
        raise LikelihoodError(f"a masked model is measured with one random mask at least, not {num_orders}")
    pieces = list(pieces)
    if not pieces:
        raise LikelihoodError("there are no pieces to measure")
    if with_memory and (getattr(model.config, "memory_length", None) is None or stride != window - 1):
        raise LikelihoodError(
            "only a model with a memory remembers, from one window to the next that begins at its end"
        )
    scorer = SCORERS[objective_of(model)](model, encoder, num_orders, seed)
    if with_memory:
        scorer = MemoryScorer(model, encoder)
    encoded = [_encode(encoder, name, notes) for name, notes in pieces]
    windows = [
        Window(row, name, rows[start:stop], start, first)
        for row, ((name, _), rows) in enumerate(zip(pieces, encoded, strict=True))
        for start, stop, first in cut(len(rows), window, stride)
    ]
    totals = Totals(len(pieces), scorer.kinds)
    was_training, num_done = model.training, 0
    model.eval()
    try:
        for batch in walks(windows, batch_size) if with_memory else batches(windows, batch_size):
            with torch.inference_mode(), _autocast(model, precision):
                totals.add(batch, *scorer.score(batch))
            num_done += len(batch)
            if on_progress is not None:
                on_progress(num_done, len(windows))
    finally:
        model.train(was_training)
    predictions = np.array([len(rows) - 1 for rows in encoded])
    if isinstance(scorer, PartsScorer):
        predictions = np.array([scorer.num_predicted[row] for row in range(len(pieces))])
    by_kind = totals.by_kind()
    if scorer.is_bound:
        by_kind[LENGTH] = np.log2(predictions) + np.log2(predictions + 1)
    return Likelihood(
        tuple(name for name, _ in pieces),
        np.sum(list(by_kind.values()), axis=0),
        np.array([len(notes) for _, notes in pieces]),
        np.array([notes.end_sec for _, notes in pieces]),
        predictions,
        right=totals.right,
        guesses=predictions - scorer.num_unguessed,
        by_kind=by_kind,
        window=window,
        stride=stride,
        num_orders=num_orders if scorer.is_bound else None,
        seed=seed,
        memory=model.config.memory_length if with_memory else None,
    )


def _check_context(model: Any, window: int, stride: int) -> None:
    longest = getattr(model.config, "max_position_embeddings", None)
    if window < 2 or not 1 <= stride < window:
        raise LikelihoodError(
            f"a window of {window} tokens can't slide by {stride}: give window >= 2, 1 <= stride < window"
        )
    if longest is not None and window > longest:
        raise LikelihoodError(f"a window of {window} tokens is more than the {longest} that the model is made for")


def _encode(encoder: Any, name: str, notes: Notes) -> np.ndarray:
    try:
        return np.asarray(encoder.encode_piece(notes))
    except ValueError as error:
        raise LikelihoodError(f"{name} can't be encoded: {error}") from error


def _autocast(model: Any, precision: str) -> AbstractContextManager:
    if precision not in PRECISIONS:
        raise LikelihoodError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")
    dtype = PRECISIONS[precision]
    return nullcontext() if dtype is None else torch.autocast(model.device.type, dtype=dtype)


# Comparing ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PairedDifference:
    """How much one model costs more than another on the same pieces.

    Attributes:
        difference: bits per note of the first less those of the second.
        low: lower end of the 95 % interval. high: its upper end.
        pieces: how many.
    """

    difference: float
    low: float
    high: float
    pieces: int


def paired_bootstrap(
    bits_a: Sequence[float] | np.ndarray,
    notes_a: Sequence[int] | np.ndarray,
    bits_b: Sequence[float] | np.ndarray,
    notes_b: Sequence[int] | np.ndarray,
    seed: int = 0,
    n: int = 10_000,
) -> PairedDifference:
    """Bits per note of model a less those of model b, with an interval from resampling pieces (Efron 1979).

    A piece that is drawn is drawn for both models, so that what makes it hard for both does not widen the interval.

    Args:
        bits_a: cost of each piece for the first model, shape (pieces,).
        notes_a: notes of each piece.
        bits_b: cost of the same pieces, in the same order, for the second model.
        notes_b: notes of each piece.
        seed: of the draws.
        n: draws.

    Raises:
        LikelihoodError: if the vectors are of unequal length, hold fewer than two pieces or a piece without notes.
    """
    columns = np.stack(_equally_long(bits_a, notes_a, bits_b, notes_b))
    generator = np.random.default_rng(seed)
    pieces = columns.shape[1]
    differences = []
    for size in _parts(n, max(1, 10**7 // pieces)):
        counts = generator.multinomial(pieces, np.full(pieces, 1 / pieces), size=size)  # (size, pieces)
        drawn = columns @ counts.T  # (4, size)
        differences.append(drawn[0] / drawn[1] - drawn[2] / drawn[3])
    low, high = np.quantile(np.concatenate(differences), [0.025, 0.975])
    whole = columns.sum(1)
    return PairedDifference(float(whole[0] / whole[1] - whole[2] / whole[3]), float(low), float(high), pieces)


def standard_error(bits: Sequence[float] | np.ndarray, notes: Sequence[float] | np.ndarray) -> float | None:
    """Of bits per note as an estimate for further pieces of the kind; None of fewer than two pieces.

    The ratio of two sums over pieces, to first order (Cochran 1977, "Sampling Techniques", section 2.11).
    """
    bits, notes = np.asarray(bits, dtype=np.float64), np.asarray(notes, dtype=np.float64)
    if len(bits) < 2 or not notes.sum():
        return None
    residuals = bits - notes * (bits.sum() / notes.sum())
    return float(np.sqrt(len(bits) / (len(bits) - 1) * np.sum(residuals**2)) / notes.sum())


def _ratio(values: Any, units: np.ndarray) -> float:
    total = float(np.sum(units))
    return float(np.sum(values)) / total if total else math.nan


def _equally_long(*columns: Any) -> list[np.ndarray]:
    arrays = [np.asarray(column, dtype=np.float64) for column in columns]
    if len({array.shape for array in arrays}) > 1 or arrays[0].ndim != 1 or len(arrays[0]) < 2:
        raise LikelihoodError("two models are compared on the same pieces, two at least")
    if min(arrays[1].min(), arrays[3].min()) <= 0:
        raise LikelihoodError("every piece of a comparison needs a note")
    return arrays


def _parts(total: int, largest: int) -> Iterator[int]:
    for first in range(0, total, largest):
        yield min(largest, total - first)
