"""The figures of the Multitrack Music Transformer: those of its own code, and what is mended."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

import pianogen_hf as pg
from pianogen_hf.evaluation.multitrack_metrics import multitrack_metrics

UPSTREAM = json.loads((Path(__file__).parent / "golden" / "upstream_multitrack_music.json").read_text(encoding="utf-8"))
NAMES = [name for name in UPSTREAM if name != "origin"]


def bars(number):
    """Bars of four quarters each."""
    onset = 480 * np.arange(4 * number)
    return pg.Notes.from_columns(480, onset_tick=onset, duration_tick=[480] * len(onset), pitch=[60] * len(onset))


@pytest.mark.parametrize("name", NAMES)
def test_legacy_figures_are_those_of_the_system(name):
    tokenizer = pg.MultitrackMusicTokenizer(legacy=True)
    found = multitrack_metrics(tokenizer.decode_rows(UPSTREAM[name]["codes"]), legacy=True)
    assert found == pytest.approx(UPSTREAM[name]["metrics"], nan_ok=True)


def test_equal_bars_are_consistent_to_the_end():
    assert multitrack_metrics(bars(16), legacy=True)["groove_consistency"] == pytest.approx(0.9948, abs=1e-4)
    assert multitrack_metrics(bars(16))["groove_consistency"] == 1
    assert multitrack_metrics(bars(20))["groove_consistency"] == 1  # of which the first 16 are looked at
    assert multitrack_metrics(bars(20), legacy=True)["groove_consistency"] < 1


def test_one_note_or_none_has_figures():
    assert all(math.isnan(value) for value in multitrack_metrics(pg.Notes.from_seconds([], [], [])).values())
    one = multitrack_metrics(pg.Notes.from_seconds([0.0], [0.5], [60]))
    assert (one["pitch_class_entropy"], one["scale_consistency"]) == (0, 1) and math.isnan(one["groove_consistency"])
