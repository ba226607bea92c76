"""Round trips: counts worked out by hand, and schemes that give back what they promise."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pianogen_hf.evaluation.round_trip import RoundTrip, residuals, round_trip
from pianogen_hf.tokenizers.notes import PEDAL_DTYPE, Notes
from pianogen_hf.tokenizers.tokenization_craykh import CrayKHTokenizer
from pianogen_hf.tokenizers.tokenization_jsb import JSBTokenizer
from pianogen_hf.tokenizers.tokenization_notes import NoteTokenizer
from pianogen_hf.tokenizers.tokenization_performance import PerformanceTokenizer
from pianogen_hf.tokenizers.tokenization_remi import RemiTokenizer

# onset and offset in seconds, pitch, velocity
BEFORE = [(0.0, 0.5, 60, 80), (0.5, 1.0, 62, 80), (1.0, 3.0, 64, 80)]


def notes(rows: list[tuple[float, float, int, int]]) -> Notes:
    onset, offset, pitch, velocity = (
        (np.array(column) for column in zip(*rows, strict=True)) if rows else ([], [], [], [])
    )
    return Notes.from_seconds(onset, np.subtract(offset, onset), pitch, velocity)


class Fixed(NoteTokenizer):
    """Gives back what it is told to, whatever was encoded as four ids."""

    lost_fields = ("pedal",)
    after: Notes

    def _event_names(self) -> list[str]:
        return ["X"]

    def _encode(self, notes: Notes) -> np.ndarray:
        return np.full(4, 3)

    def _decode_events(self, ids: np.ndarray) -> Notes:
        return self.after


def compared(before: list[tuple], after: list[tuple], **attributes) -> RoundTrip:
    tokenizer = Fixed()
    tokenizer.after = notes(after)
    for name, value in attributes.items():
        setattr(tokenizer, name, value)
    return round_trip(tokenizer, notes(before))


def moved(row: tuple, onset: float = 0.0, offset: float = 0.0, pitch: int = 0, velocity: int = 0) -> tuple:
    return row[0] + onset, row[1] + offset, row[2] + pitch, row[3] + velocity


# reference, decoded, onset, offset, velocity
CASES = {
    "the same": (BEFORE, (3, 3, 3, 3, 3)),
    "40 ms late": ([moved(row, 0.04, 0.04) for row in BEFORE], (3, 3, 3, 3, 3)),
    "exactly 50 ms late": ([moved(row, 0.05, 0.05) for row in BEFORE], (3, 3, 3, 3, 3)),
    "60 ms late": ([moved(row, 0.06, 0.06) for row in BEFORE], (3, 3, 0, 0, 0)),
    "one dropped": (BEFORE[1:], (3, 2, 2, 2, 2)),
    "one added": ([*BEFORE, (2.0, 2.5, 62, 80)], (3, 4, 3, 3, 3)),
    "another pitch": ([moved(BEFORE[0], pitch=1), *BEFORE[1:]], (3, 3, 2, 2, 2)),
    "velocity 8 more": ([moved(row, velocity=8) for row in BEFORE], (3, 3, 3, 3, 3)),
    "velocity 9 less": ([moved(row, velocity=-9) for row in BEFORE], (3, 3, 3, 3, 0)),
    # 20 % of 2 s is 0.4 s, of 0.5 s 0.1 s
    "ends 100 ms later": ([moved(row, offset=0.1) for row in BEFORE], (3, 3, 3, 3, 3)),
    "ends 110 ms later": ([moved(row, offset=0.11) for row in BEFORE], (3, 3, 3, 1, 1)),
    "ends 410 ms later": ([moved(row, offset=0.41) for row in BEFORE], (3, 3, 3, 0, 0)),
    "nothing": ([], (3, 0, 0, 0, 0)),
}


@pytest.mark.parametrize("case", CASES)
def test_counts_are_those_worked_out_by_hand(case):
    after, counts = CASES[case]
    assert compared(BEFORE, after) == RoundTrip(*counts, tokens=4)


def test_two_notes_that_are_merged_into_one():
    before = [(0.0, 0.5, 60, 80), (0.5, 1.0, 60, 80)]
    assert compared(before, [(0.0, 1.0, 60, 80)]) == RoundTrip(2, 1, 1, 0, 0, 4)


def test_residuals_are_in_steps_of_10_ms_and_of_one_velocity():
    tokenizer = Fixed()
    first, second, third = BEFORE
    tokenizer.after = notes([moved(first, 0.02, -0.01, velocity=3), moved(second, 0.004, 0.3), moved(third, pitch=1)])
    found = residuals(tokenizer, notes(BEFORE))
    assert found == {"onset": {2: 1, 0: 1, None: 1}, "end": {-1: 1, 30: 1, None: 1}, "velocity": {3: 1, 0: 1, None: 1}}


def test_of_velocities_that_are_thrown_away_all_count_whether_their_notes_come_back_or_not():
    tokenizer = Fixed()
    tokenizer.after, tokenizer.lost_fields = notes(BEFORE[:1]), ("pedal", "velocity")
    assert residuals(tokenizer, notes(BEFORE))["velocity"] == Counter(row[3] for row in BEFORE)


def test_near_strikes_of_a_key_are_paired_one_to_one():
    before = [(0.0, 0.02, 60, 80), (0.04, 0.06, 60, 80)]
    assert compared(before, [(0.04, 0.06, 60, 80)]).onset == 1
    assert compared(before, [(0.02, 0.05, 60, 80), (0.06, 0.08, 60, 80)]).onset == 2


def test_leading_silence_counts_only_where_the_scheme_keeps_it():
    late = [moved(row, 2.0, 2.0) for row in BEFORE]
    assert compared(late, BEFORE).onset == 0
    assert compared(late, BEFORE, lost_fields=("pedal", "leading silence")).onset == 3
    # The first note is none that the scheme could write, so the second one is where both sides begin.
    low = [(0.0, 0.5, 10, 80), *late]
    assert compared(low, BEFORE, lost_fields=("pedal", "leading silence"), pitch_range=(21, 108)).onset == 3


def test_the_pedal_lengthens_the_reference_where_the_scheme_hears_it():
    pedal = np.array([(400, 127, 0), (2000, 0, 0)], dtype=PEDAL_DTYPE)
    before, tokenizer = replace(notes(BEFORE[:1]), pedals=pedal), Fixed()
    tokenizer.after = notes([(0.0, 2.0, 60, 80)])
    assert round_trip(tokenizer, before).offset == 0
    tokenizer.lost_fields = ()
    assert round_trip(tokenizer, before).offset == 1


def test_schemes_of_beats_are_compared_at_120_whatever_the_tempo():
    before = replace(notes(BEFORE), tempos=np.array([(0, 2_000_000)], dtype=notes(BEFORE).tempos.dtype))
    tokenizer = Fixed()
    tokenizer.after, tokenizer.time_unit = notes(BEFORE), "beat"
    assert round_trip(tokenizer, before).velocity == 3
    tokenizer.time_unit = "second"
    assert round_trip(tokenizer, before).onset == 1


def test_the_report_is_worked_out_by_hand():
    total = RoundTrip(6, 5, 4, 3, 2, 60) + RoundTrip(4, 5, 4, 4, 4, 20)
    assert total == RoundTrip(10, 10, 8, 7, 6, 80)
    assert total.report() == {
        "notes": 10,
        "onset_f1": 0.8,
        "onset_offset_f1": 0.7,
        "onset_offset_velocity_f1": 0.6,
        "dropped_or_merged_percent": 20.0,
        "added_percent": 20.0,
        "tokens_per_note": 8.0,
    }
    assert set(RoundTrip().report().values()) == {0}


SCHEMES = {
    "performance": PerformanceTokenizer(),
    "performance 128": PerformanceTokenizer(0, 127),
    "craykh": CrayKHTokenizer(),
    "jsb": JSBTokenizer(),
    **{scheme: RemiTokenizer(scheme=scheme) for scheme in ("REMI", "TSD", "MIDILike", "Structured", "PerTok")},
}


@pytest.mark.parametrize("scheme", SCHEMES)
@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_music_on_every_grid_comes_back_whole(scheme, data):
    """Eighths of 0.25 s lie on all grids; no pitch is struck twice in a row (JSB can't say that); at most 4 voices."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    rows = []
    for step in range(data.draw(st.integers(1, 30))):
        voices = rng.choice([40, 52, 64, 76], size=rng.integers(1, 5), replace=False) + step % 2
        # JSB's lines stay in their voice only if none of them rests, so a step is a whole chord there.
        voices = np.array([40, 52, 64, 76]) + step % 2 if scheme == "jsb" else voices
        rows += [(step * 0.25, step * 0.25 + 0.25, int(pitch), 80) for pitch in voices]
    report = round_trip(SCHEMES[scheme], notes(rows)).report()
    assert report["onset_f1"] == report["onset_offset_f1"] == report["onset_offset_velocity_f1"] == 1.0
    assert report["dropped_or_merged_percent"] == report["added_percent"] == 0.0


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_piece_that_the_scheme_cannot_write_is_all_dropped(scheme):
    low, high = SCHEMES[scheme].pitch_range
    if low == 0:
        pytest.skip("it can write every pitch")
    report = round_trip(SCHEMES[scheme], notes([(0.0, 1.0, low - 1, 80)])).report()
    assert (report["onset_f1"], report["dropped_or_merged_percent"], report["added_percent"]) == (0.0, 100.0, 0.0)
