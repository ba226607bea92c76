"""Figures of a collection, against answers counted by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pianogen_hf.evaluation.corpus_statistics import (
    DURATION_EDGES_SEC,
    corpus_statistics,
    markdown_table,
    piece_histograms,
)
from pianogen_hf.tokenizers.notes import Notes


def piece(pitches, seconds):
    return Notes.from_seconds(np.arange(len(pitches)), np.full(len(pitches), seconds), np.array(pitches))


def statistics(*pieces, excluded_notes=0, num_unusable=0):
    found = [piece_histograms(each) for each in pieces]
    lengths = [len(each) for each in pieces], [each.end_sec for each in pieces]
    return corpus_statistics(found, *lengths, excluded_notes, num_unusable)


def test_a_collection_counted_by_hand():
    figures = statistics(piece([60, 60, 64], 0.5), piece([21], 0.5), excluded_notes=12, num_unusable=2)
    assert (figures["pieces"], figures["notes"], figures["pitch_range"]) == (2, 4, [21, 64])
    assert figures["hours"] == round((2.5 + 0.5) / 3600, 3)
    assert figures["notes_per_piece"] == {"median": 2.0, "smallest": 1, "largest": 3}
    assert (figures["excluded_share"], figures["unusable_share"]) == (0.75, 0.5)
    pitch = figures["histograms"]["pitch"]
    assert (pitch[60], pitch[64], pitch[21], sum(pitch)) == (2, 1, 1, 4)
    assert sum(figures["histograms"]["note_count"]) == 2


@given(st.floats(0.012, 28))
def test_the_median_of_equal_durations_is_theirs_within_a_bin(seconds):
    ratio = DURATION_EDGES_SEC[1] / DURATION_EDGES_SEC[0]
    found = statistics(piece([60] * 5, seconds))["median_duration_sec"]
    assert 1 / ratio - 0.05 <= found / seconds <= ratio + 0.05


@pytest.mark.parametrize("seconds", [0.0, 0.001, 100.0])
def test_durations_beyond_the_bins_are_counted_in_the_outermost(seconds):
    durations = statistics(piece([60, 61], seconds))["histograms"]["duration_sec"]
    assert sum(durations) == 2 and max(durations[0], durations[-1]) == 2


def test_an_empty_collection_has_none_where_there_is_nothing():
    figures = statistics(num_unusable=3)
    assert figures["pieces"] == figures["notes"] == 0 and figures["unusable_share"] == 1
    assert figures["pitch_range"] is figures["median_duration_sec"] is figures["notes_per_piece"]["median"] is None


def test_the_table_has_a_row_each_and_as_many_cells_as_its_header():
    table = markdown_table({"a|b": statistics(piece([60, 62], 0.5)), "none": statistics(num_unusable=1)}).splitlines()
    assert len(table) == 4
    assert {line.replace("\\|", "").count("|") for line in table} == {10}
