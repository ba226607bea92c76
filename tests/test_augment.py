"""Augmentation: which transpositions a piece has."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pianogen_hf.data.augment import transpositions
from pianogen_hf.tokenizers.notes import Notes


def piece(*pitches: int) -> Notes:
    count = len(pitches)
    return Notes.from_columns(480, onset_tick=range(count), duration_tick=[9] * count, pitch=pitches)


def shifts(notes: Notes, *args) -> list[int]:
    return [int(each["pitch"][0]) - int(notes["pitch"][0]) for each in transpositions(notes, *args)]


def test_every_semitone_of_the_range_comes_once():
    assert shifts(piece(60, 64), -5, 6) == list(range(-5, 7))
    assert shifts(piece(60, 64), 0, 0) == [0]


def test_what_leaves_the_tokenizers_range_is_left_out():
    assert shifts(piece(22, 106), -3, 3, (21, 108)) == [-1, 0, 1, 2]
    assert shifts(piece(0, 127), -12, 12) == [0]


def test_the_piece_itself_is_kept_even_out_of_range():
    assert shifts(piece(10, 60), -2, 2, (21, 108)) == [0]


def test_a_piece_without_notes_comes_once():
    assert [len(each) for each in transpositions(piece(), -5, 6)] == [0]


@given(pitches=st.lists(st.integers(0, 127), min_size=1, max_size=8), low=st.integers(-24, 0), high=st.integers(0, 24))
def test_only_pitches_change_and_never_beyond_the_range(pitches, low, high):
    notes = piece(*pitches)
    results = list(transpositions(notes, low, high, (21, 108)))
    assert sum(each == notes for each in results) == 1
    for each in results:
        moved = each["pitch"].astype(int) - notes["pitch"]
        assert len(set(moved.tolist())) == 1 and low <= moved[0] <= high
        assert moved[0] == 0 or (each["pitch"].min() >= 21 and each["pitch"].max() <= 108)
        assert np.array_equal(each["onset_tick"], notes["onset_tick"])
