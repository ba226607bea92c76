"""Augmentation. Applied to the train side only, after the split, and never to what is evaluated."""

from __future__ import annotations

from collections.abc import Iterator

from pianogen_hf.tokenizers.notes import Notes


def transpositions(notes: Notes, lowest: int, highest: int, pitch_range: tuple[int, int] = (0, 127)) -> Iterator[Notes]:
    """The piece at every transposition from `lowest` to `highest` semitones that stays within `pitch_range`.

    The untransposed piece is always among them, even where it leaves the range itself.

    Args:
        notes: the piece.
        lowest: lowest transposition in semitones, at most 0.
        highest: highest transposition in semitones, at least 0.
        pitch_range: lowest and highest pitch that the tokenizer can write.
    """
    pitch = notes["pitch"]
    for semitones in range(lowest, highest + 1):
        in_range = (
            len(pitch) and pitch.min() + semitones >= pitch_range[0] and pitch.max() + semitones <= pitch_range[1]
        )
        if semitones == 0 or in_range:
            yield notes.transposed(semitones)
