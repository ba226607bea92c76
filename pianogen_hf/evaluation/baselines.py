"""Likelihood baselines without a neural network on the four-voice JSB grid.

A piece is an int array (steps, 4): MIDI pitches of soprano, alto, tenor, bass on a sixteenth grid, -1 for silence.
The measure is joint and note-wise (Huang et al. 2019, "Music Transformer", Table 2, JSB chorales): cells are
predicted once each, step by step and S, A, T, B within a step, given everything before. Costs are natural logarithms.

Both models ask two questions of a cell: does the voice hold its symbol (78 per cent do), and if not, what comes next?

    p(x) = hold                            if x is the voice's symbol one step before
    p(x) = (1 - hold) * p(x | it changes)  otherwise

`HoldBaseline` answers from the metre and a unigram. `BackoffNgram` starts from these answers and refines each with
counts after longer and longer contexts. A neural model that does not beat it has not learned counterpoint.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np

NUM_VOICES = 4
REST = -1
LOWEST_PITCH = 36
NUM_PITCHES = 46  # MIDI pitches 36..81
NUM_SYMBOLS = NUM_PITCHES + 1

STEPS_PER_BEAT = 4
STEPS_PER_BAR = 16

_REST_SYMBOL = NUM_PITCHES
_NOTHING_YET = NUM_SYMBOLS  # stands before the first step; never predicted
_NO_INTERVAL = 99


class GridModel(Protocol):
    """Anything that can price every cell of a piece."""

    def nats(self, piece: np.ndarray) -> np.ndarray:
        """Returns the cost (steps, 4) of every cell in nats."""


class HoldBaseline:
    """Holds with a probability per voice and position in the beat, else draws from the voice's unigram.

    The unigram leaves out the symbol that is not held, so that the two cases exclude each other and the relative
    frequency of holds on the training pieces is its maximum-likelihood probability. All counts are add-one smoothed.
    """

    hold: np.ndarray  # (voice, position in beat)
    unigram: np.ndarray  # (voice, symbol)

    def fit(self, pieces: Sequence[np.ndarray]) -> HoldBaseline:
        """Counts holds and symbols.

        Args:
            pieces: training pieces, each int (steps, 4).

        Raises:
            ValueError: if a piece has another shape or a pitch outside 36..81.
        """
        holds = np.ones((NUM_VOICES, STEPS_PER_BEAT))
        chances = np.full((NUM_VOICES, STEPS_PER_BEAT), 2.0)
        counts = np.ones((NUM_VOICES, NUM_SYMBOLS))
        voices = np.arange(NUM_VOICES)
        for symbols in map(_to_symbols, pieces):
            beat = np.arange(1, len(symbols))[:, None] % STEPS_PER_BEAT
            np.add.at(holds, (voices, beat), symbols[1:] == symbols[:-1])
            np.add.at(chances, (voices, beat), 1)
            np.add.at(counts, (voices, symbols), 1)
        self.hold = holds / chances
        self.unigram = counts / counts.sum(axis=1, keepdims=True)
        return self

    def nats(self, piece: np.ndarray) -> np.ndarray:
        """Returns the cost (steps, 4) of every cell in nats. Raises ValueError as `fit` does."""
        symbols = _to_symbols(piece)
        held = symbols == _previous(symbols, _NOTHING_YET)
        return -np.log(np.where(held, self.hold_probability(symbols), self.change_probability(symbols)))

    def hold_probability(self, symbols: np.ndarray) -> np.ndarray:
        """Probability (steps, 4) that a voice keeps its symbol; zero in the first step."""
        beat = np.arange(len(symbols))[:, None] % STEPS_PER_BEAT
        return np.where(_previous(symbols, _NOTHING_YET) == _NOTHING_YET, 0.0, self.hold[np.arange(NUM_VOICES), beat])

    def change_probability(self, symbols: np.ndarray) -> np.ndarray:
        """Probability (steps, 4) that a voice changes and changes to these symbols; meaningless where it holds."""
        voices = np.arange(NUM_VOICES)
        padded = np.pad(self.unigram, ((0, 0), (0, 1)))  # a last column of zeros for _NOTHING_YET
        target = self.unigram[voices, symbols] / (1 - padded[voices, _previous(symbols, _NOTHING_YET)])
        return (1 - self.hold_probability(symbols)) * target


class BackoffNgram:
    """Two interpolated n-grams, one for holding and one for the new pitch, on top of `HoldBaseline`.

    Each order of context mixes its counts with the order below, which weighs the more, the more different outcomes the
    context has had (Witten and Bell 1991, method C, times a strength):

        p = (count + w * p_lower) / (total + w),  w = strength * different outcomes

    An order adds one feature, so the columns below, read from the right, are the order of backing off. The hold model
    knows the harmony as intervals, which transposition leaves alone; the pitch model is fitted on every transposition
    that stays in range.
    """

    # Chosen, like the columns below and their order, on the validation pieces of the JSB chorales.
    strength = 14.0

    def fit(self, pieces: Sequence[np.ndarray]) -> BackoffNgram:
        """Counts; see `HoldBaseline.fit` for arguments and errors."""
        self._lowest_order = HoldBaseline().fit(pieces)
        grids = [_to_symbols(piece) for piece in pieces]
        self._hold = _InterpolatedCounts(self.strength).fit([_hold_examples(symbols) for symbols in grids])
        shifted = (other for symbols in grids for other in _transpositions(symbols))
        self._pitch = _InterpolatedCounts(self.strength).fit([_pitch_examples(symbols) for symbols in shifted])
        return self

    def nats(self, piece: np.ndarray) -> np.ndarray:
        """Returns the cost (steps, 4) of every cell in nats. Raises ValueError as `fit` does."""
        symbols = _to_symbols(piece)
        low_hold = self._lowest_order.hold_probability(symbols)
        low_pitch = self._lowest_order.change_probability(symbols) / (1 - low_hold)
        held = symbols == _previous(symbols, _NOTHING_YET)
        probability = np.ones(symbols.shape)  # that the first step is no hold is certain
        probability[1:] = self._hold.probability(*_hold_examples(symbols), np.where(held, low_hold, 1 - low_hold)[1:])
        probability[~held] *= self._pitch.probability(*_pitch_examples(symbols), low_pitch[~held])
        return -np.log(probability)


class _InterpolatedCounts:
    """Counts of outcomes after contexts of growing length, kept as sorted 64-bit keys."""

    def __init__(self, strength: float) -> None:
        self.strength = strength

    def fit(self, examples: Sequence[tuple[np.ndarray, np.ndarray]]) -> _InterpolatedCounts:
        """Takes pairs of features (..., orders) and outcomes (...)."""
        features = np.concatenate([pair[0].reshape(-1, pair[0].shape[-1]) for pair in examples])
        outcomes = np.concatenate([pair[1].ravel() for pair in examples])
        self._tables = [_count(context, _extend(context, outcomes)) for context in _contexts(features)]
        return self

    def probability(self, features: np.ndarray, outcomes: np.ndarray, lowest: np.ndarray) -> np.ndarray:
        """Probability of outcomes (...) after features (..., orders), given that of the lowest order (...)."""
        probability = lowest
        for context, (count, total, kinds) in zip(_contexts(features), self._tables, strict=True):
            weight = self.strength * np.maximum(_look_up(kinds, context), 1)
            seen = _look_up(count, _extend(context, outcomes))
            probability = (seen + weight * probability) / (_look_up(total, context) + weight)
        return probability


_Table = tuple[np.ndarray, np.ndarray]  # sorted keys, counts


def _count(context: np.ndarray, continued: np.ndarray) -> tuple[_Table, _Table, _Table]:
    """Counts every continued context, and for every context its cells and its different outcomes."""
    continuations, first, count = np.unique(continued, return_index=True, return_counts=True)
    total = np.unique(context, return_counts=True)
    kinds = np.unique(context[first], return_counts=True)
    return (continuations, count), total, kinds


def _contexts(features: np.ndarray) -> Iterator[np.ndarray]:
    """One key per row and order: order k hashes the first k features."""
    key = np.zeros(features.shape[:-1], np.uint64)
    for order in range(features.shape[-1]):
        key = _extend(key, features[..., order])
        yield key


def _extend(key: np.ndarray, value: np.ndarray) -> np.ndarray:
    """Hashes one more value into 64-bit keys (the finalizer of splitmix64; a million keys collide once in 10^7)."""
    key = (key ^ (value + 1).astype(np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
    key = (key ^ (key >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    key = (key ^ (key >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return key ^ (key >> np.uint64(31))


def _look_up(table: _Table, keys: np.ndarray) -> np.ndarray:
    """Counts of keys, zero for those never seen."""
    known, counts = table
    if not len(known):
        return np.zeros(keys.shape)
    index = np.minimum(np.searchsorted(known, keys), len(known) - 1)
    return np.where(known[index] == keys, counts[index], 0)


def _hold_examples(symbols: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features (steps - 1, 4, orders) and whether the voice holds (steps - 1, 4), without the first step."""
    past = _Past(symbols)
    chord = past.intervals_to_own
    columns = [past.voice * STEPS_PER_BEAT + past.step % STEPS_PER_BEAT, np.minimum(_own(past.age), 16), past.moved]
    columns += [chord[..., other] for other in range(NUM_VOICES)]
    columns += [_interval(_own(past.pitch), _own(past.before)), past.step % STEPS_PER_BAR, past.ages]
    return np.stack(columns, axis=-1)[1:], (symbols[1:] == symbols[:-1]).astype(np.int64)


def _pitch_examples(symbols: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Features (changes, orders) and new symbols (changes,) of the cells that do not hold."""
    past = _Past(symbols)
    # The shortest context names the symbol that the voice leaves: it never comes back, so no probability is lost on it.
    columns = [past.voice * (_NOTHING_YET + 1) + _own(past.pitch)]
    columns += [past.pitch[..., other] for other in range(NUM_VOICES)]
    columns += [past.step % STEPS_PER_BEAT, past.moved, _own(past.before)]
    columns += [past.before[..., other] for other in (0, 3, 1, 2)]  # the outer voices say most
    changes = symbols != _previous(symbols, _NOTHING_YET)
    return np.stack(columns, axis=-1)[changes], symbols[changes]


class _Past:
    """What is known when a voice is decided: arrays (steps, voice, other voice), for others as recent as allowed."""

    def __init__(self, symbols: np.ndarray) -> None:
        steps = np.arange(len(symbols))[:, None]
        starts = np.maximum.accumulate(np.where(symbols != _previous(symbols, _NOTHING_YET), steps, 0), axis=0)
        before = np.take_along_axis(symbols, np.maximum(starts - 1, 0), axis=0)
        self.step, self.voice = np.broadcast_arrays(steps, np.arange(NUM_VOICES))
        self.pitch = _latest(symbols, _NOTHING_YET)
        self.before = _latest(np.where(starts > 0, before, _NOTHING_YET), _NOTHING_YET)  # the symbol before this one
        self.age = _latest(steps - starts + 1, 0)  # steps since it began, this one included
        self.moved = (self.age == 1) @ (1 << np.arange(NUM_VOICES))
        self.ages = np.minimum(self.age, 5) @ 6 ** np.arange(NUM_VOICES)
        self.intervals_to_own = _interval(self.pitch, _own(self.pitch)[..., None])


def _latest(values: np.ndarray, first: int) -> np.ndarray:
    """Per step, voice and other voice: this step's value if the other was decided already, else the last step's."""
    decided = np.tri(NUM_VOICES, k=-1, dtype=bool)
    return np.where(decided, values[:, None, :], _previous(values, first)[:, None, :])


def _own(latest: np.ndarray) -> np.ndarray:
    """The entries (steps, 4) of a voice about itself."""
    return np.diagonal(latest, axis1=1, axis2=2)


def _previous(values: np.ndarray, first: int) -> np.ndarray:
    """Values one step earlier, `first` in the first step."""
    return np.concatenate([np.full((1, NUM_VOICES), first), values])[: len(values)]


def _interval(upper: np.ndarray, lower: np.ndarray) -> np.ndarray:
    """Semitones between two symbols, or a constant if one of them is no pitch."""
    return np.where((upper < NUM_PITCHES) & (lower < NUM_PITCHES), upper - lower, _NO_INTERVAL)


def _transpositions(symbols: np.ndarray) -> Iterator[np.ndarray]:
    """The piece in every key that keeps it inside the 46 pitches."""
    sounding = symbols[symbols < NUM_PITCHES]
    lowest, highest = (sounding.min(), sounding.max()) if len(sounding) else (0, NUM_PITCHES - 1)
    for shift in range(-lowest, NUM_PITCHES - highest):
        yield np.where(symbols < NUM_PITCHES, symbols + shift, symbols)


def _to_symbols(piece: np.ndarray) -> np.ndarray:
    """Pitches to 0..45 and rests to 46."""
    piece = np.asarray(piece)
    if piece.ndim != 2 or piece.shape[1] != NUM_VOICES:
        raise ValueError(f"a piece is an array (steps, {NUM_VOICES}), not {piece.shape}")
    symbols = np.where(piece == REST, _REST_SYMBOL, piece - LOWEST_PITCH)
    if np.any((symbols < 0) | (symbols > _REST_SYMBOL) | (piece == LOWEST_PITCH + NUM_PITCHES)):
        raise ValueError(f"pitches are {LOWEST_PITCH}..{LOWEST_PITCH + NUM_PITCHES - 1} or {REST} for silence")
    return symbols


def piece_nats(model: GridModel, pieces: Sequence[np.ndarray]) -> np.ndarray:
    """Total cost (pieces,) of each piece in nats: the vector that a paired comparison of two models needs."""
    return np.array([model.nats(piece).sum() for piece in pieces])


def nats_per_cell(model: GridModel, pieces: Sequence[np.ndarray]) -> float:
    """Mean cost over all cells of all pieces, rests included. Raises ValueError if there is no cell."""
    cells = sum(np.size(piece) for piece in pieces)
    if not cells:
        raise ValueError("no cells to average over")
    return float(piece_nats(model, pieces).sum() / cells)


def count_notes(piece: np.ndarray) -> int:
    """Notes of a piece (steps, 4): runs of one pitch in one voice, as the grid cannot tell a repeat from a hold."""
    symbols = _to_symbols(piece)
    return int(np.sum((symbols != _previous(symbols, _NOTHING_YET)) & (symbols != _REST_SYMBOL)))


def bits_per_note(total_nats: float, num_notes: int) -> float:
    """Cost in bits over the notes of the reference. Raises ValueError if it has none."""
    if num_notes <= 0:
        raise ValueError("the reference has no notes")
    return total_nats / math.log(2) / num_notes


def grid_baselines(
    train: Sequence[np.ndarray], evaluated: Sequence[np.ndarray], num_notes: int
) -> dict[str, dict[str, float]]:
    """Both baselines fitted on train pieces and measured on others.

    Args:
        train: training pieces, each int (steps, 4).
        evaluated: the pieces to measure on.
        num_notes: notes in the reference of these pieces.

    Returns:
        Per baseline its `bits_per_note` and `nats_per_cell`.
    """
    models: dict[str, HoldBaseline | BackoffNgram] = {
        "hold and unigram": HoldBaseline(),
        "backoff n-gram": BackoffNgram(),
    }
    scores = {}
    for name, model in models.items():
        total = float(piece_nats(model.fit(train), evaluated).sum())
        cells = sum(piece.size for piece in evaluated)
        scores[name] = {"bits_per_note": bits_per_note(total, num_notes), "nats_per_cell": total / cells}
    return scores
