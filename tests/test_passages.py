"""Passages as musicians say them: bars and seconds, one or several."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

import pianogen_hf as pg
from pianogen_hf.generation.new_notes import GenerationError
from pianogen_hf.generation.passages import bar_start_sec, bar_ticks, bars_sec, span_of, spans_of
from pianogen_hf.tokenizers.notes import TIME_SIGNATURE_DTYPE


def piece(seconds=16.0, signatures=()):
    """At 120 quarters a minute: a bar of four quarters lasts 2 s."""
    onset = np.arange(0, seconds, 0.5)
    notes = pg.Notes.from_seconds(onset, np.full(len(onset), 0.5), np.full(len(onset), 60))
    return replace(notes, time_signatures=np.array(list(signatures), TIME_SIGNATURE_DTYPE))


def test_bars_last_four_quarters_where_nothing_else_is_said():
    assert bar_ticks(piece(5.0)).tolist() == [0, 2000, 4000, 6000]
    assert bars_sec(piece(), 1, 1) == (0.0, 2.0)
    assert bars_sec(piece(), 3, 4) == (4.0, 8.0)


def test_bars_follow_time_signatures_each_of_which_begins_a_bar():
    notes = piece(10.0, [(0, 3, 4), (4000, 6, 8)])  # the second bar of three quarters is cut short
    assert bar_ticks(notes).tolist() == [0, 1500, 3000, 4000, 5500, 7000, 8500, 10_000]
    assert bars_sec(notes, 3, 4) == (3.0, 5.5)
    assert bar_start_sec(notes, 4) == 4.0


def test_a_passage_goes_from_the_beginning_to_the_end_unless_it_is_said():
    assert span_of(piece()) == (0.0, 16.0)
    assert span_of(piece(), start_sec=3.0) == (3.0, 16.0)
    assert span_of(piece(), 3.0, 99.0) == (3.0, 16.0)
    assert span_of(piece(), bars=(2, 3)) == (2.0, 6.0)


def test_several_passages_come_by_time():
    assert spans_of(piece(), bars=[(5, 5), (2, 3)]) == [(2.0, 6.0), (8.0, 10.0)]
    assert spans_of(piece(), gaps=[(9.0, 10.0), (1.0, 2.0)]) == [(1.0, 2.0), (9.0, 10.0)]
    assert spans_of(piece(), bars=np.array([2, 3])) == [(2.0, 6.0)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "seconds or bars"),
        ({"bars": (0, 2)}, "counted from 1"),
        ({"bars": (3, 2)}, "not within the piece, which has 8"),
        ({"bars": (7, 9)}, "not within the piece, which has 8"),
        ({"bars": (7,)}, "a first and a last"),
        ({"gaps": [(1.0, 2.0, 3.0)]}, "a first and a last"),
        ({"start_sec": 1.0, "bars": (1, 2)}, "not by both"),
        ({"start_sec": 1.0, "gaps": [(2.0, 3.0)]}, "not both"),
        ({"gaps": [(1.0, 3.0), (2.0, 4.0)]}, "overlap between 2 and 3"),
        ({"gaps": [(20.0, 30.0)]}, "is not within"),
        ({"start_sec": float("nan"), "end_sec": 2.0}, "is not within"),
    ],
)
def test_passages_that_are_none_are_refused_in_one_line(options, message):
    with pytest.raises(GenerationError, match=message) as error:
        spans_of(piece(), **options)
    assert "\n" not in str(error.value)


def test_a_bar_that_is_not_there_is_refused():
    assert bar_start_sec(piece(), 9) == 16.0  # behind the last one
    with pytest.raises(GenerationError, match="bar 10 is not within"):
        bar_start_sec(piece(), 10)
