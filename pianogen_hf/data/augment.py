"""Augmentation: transposition, loudness, tempo. For the train split only, after the split, never for what is evaluated.

Transposition and time stretch as in "This Time with Feeling" (Oore et al. 2018, arXiv 1808.03715), which stretches by
up to 5 % either way; the velocity offset is an addition.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np

from pianogen_hf.errors import DataError
from pianogen_hf.tokenizers.notes import Notes

_MAX_US_PER_QUARTER = 2**24 - 1  # three bytes in a MIDI file


@dataclass(frozen=True)
class Augmentation:
    """What may be done to a train piece; both ends of every range belong to it.

    Attributes:
        transpose: lowest (at most 0) and highest (at least 0) transposition in semitones. A version with a note beyond
            the tokenizer's pitch range is dropped.
        velocity: lowest and highest number that is added to all velocities of a piece; they are clipped to 1..127.
        stretch: lowest and highest factor for all seconds of a piece; 1.05 plays it 5 % slower. Beats stay: tokenizers
            that count real time see it, those that count score time don't.

    Raises:
        DataError: for a range that is upside down, or a stretch that is not positive.
    """

    transpose: tuple[int, int] = (0, 0)
    velocity: tuple[int, int] = (0, 0)
    stretch: tuple[float, float] = (1.0, 1.0)

    def __post_init__(self) -> None:
        if not self.transpose[0] <= 0 <= self.transpose[1]:
            raise DataError(f"transpose must reach from at most 0 to at least 0, got {self.transpose}")
        if not self.velocity[0] <= self.velocity[1]:
            raise DataError(f"velocity must be lowest and highest offset, got {self.velocity}")
        if not 0 < self.stretch[0] <= self.stretch[1] < float("inf"):
            raise DataError(f"stretch must be lowest and highest positive factor, got {self.stretch}")

    @property
    def is_drawn(self) -> bool:
        """Whether versions differ in anything but transposition, so that chance decides about them."""
        return self.velocity != (0, 0) or self.stretch != (1.0, 1.0)

    def all(self, notes: Notes, pitch_range: tuple[int, int] = (0, 127), seed: int = 0) -> Iterator[Notes]:
        """The piece as it is, and every other transposition in range with an offset and a stretch of its own.

        Where there is no other transposition to carry them, offset and stretch make one copy in the piece's own key.
        Offset and stretch depend on nothing but the seed, the piece's notes and the transposition: neither on other
        pieces nor on the order or the process in which they are made.

        Args:
            notes: the piece.
            pitch_range: lowest and highest pitch that the tokenizer can write.
            seed: at least 0.
        """
        for semitones in self._transpositions(notes, pitch_range):
            if semitones == 0:
                yield notes
            if semitones != 0 or (self.is_drawn and self.transpose == (0, 0)):
                generator = np.random.default_rng([seed, _content(notes), semitones + 128])
                yield self._altered(notes.transposed(semitones), generator)

    def draw(self, notes: Notes, pitch_range: tuple[int, int], generator: np.random.Generator) -> Notes:
        """One version by chance: every transposition in range, offset and stretch alike.

        Args:
            notes: the piece.
            pitch_range: lowest and highest pitch that the tokenizer can write.
            generator: where chance comes from.
        """
        choices = self._transpositions(notes, pitch_range)
        semitones = choices[generator.integers(len(choices))]
        return self._altered(notes.transposed(semitones) if semitones else notes, generator)

    def _transpositions(self, notes: Notes, pitch_range: tuple[int, int]) -> list[int]:
        """Those that keep every note in range, and 0, even for a piece that leaves the range itself."""
        pitch = notes["pitch"][~notes["is_drum"]]
        if len(pitch) == 0:
            return [0]
        lowest, highest = pitch_range[0] - int(pitch.min()), pitch_range[1] - int(pitch.max())
        low, high = self.transpose
        return [each for each in range(low, high + 1) if each == 0 or lowest <= each <= highest]

    def _altered(self, notes: Notes, generator: np.random.Generator) -> Notes:
        """The notes with an offset and a stretch from `generator`; both are always drawn, for a fixed order."""
        offset = int(generator.integers(*self.velocity, endpoint=True))
        return stretched(louder(notes, offset), float(generator.uniform(*self.stretch)))


def louder(notes: Notes, offset: int) -> Notes:
    """The notes with `offset` added to every velocity, clipped to 1..127."""
    if offset == 0:
        return notes
    table = notes.table.copy()
    table["velocity"] = np.clip(table["velocity"] + offset, 1, 127)
    return replace(notes, table=table)


def stretched(notes: Notes, factor: float) -> Notes:
    """The notes with every second `factor` times as long: a slower or faster tempo map over the same ticks.

    A tempo is a whole number of microseconds per quarter, as in MIDI, which is the only rounding: one millionth at 60
    quarters a minute. Where MIDI can't hold a tempo so slow or fast, the whole map is scaled as far as it can be.
    """
    if factor == 1:
        return notes
    us_per_quarter = notes.tempos["us_per_quarter"].astype(np.float64)
    factor = min(max(factor, 1 / us_per_quarter.min()), _MAX_US_PER_QUARTER / us_per_quarter.max())
    tempos = notes.tempos.copy()
    tempos["us_per_quarter"] = np.rint(us_per_quarter * factor)
    return replace(notes, tempos=tempos)


def _content(notes: Notes) -> int:
    """A number that two pieces share only if their notes are the same."""
    return int.from_bytes(hashlib.sha256(notes.table.tobytes()).digest()[:8], "big")
