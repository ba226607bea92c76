import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pianogen_hf.tokenizers.notes import (
    NOTE_DTYPE,
    PEDAL_DTYPE,
    TEMPO_DTYPE,
    Notes,
    next_onset_of_same_pitch,
    stable_order,
)


def silence(tempos, ticks_per_quarter=480):
    """A tempo map of (tick, microseconds per quarter) without notes."""
    tempos = np.array(tempos, dtype=TEMPO_DTYPE)
    return Notes.from_columns(ticks_per_quarter, tempos, onset_tick=[], duration_tick=[], pitch=[])


def notes_with_pedal(pedal, rows, tempos=None):
    """Rows of (onset, duration, pitch), pedal of (tick, value)."""
    onset, duration, pitch = zip(*rows, strict=True)
    notes = Notes.from_columns(480, tempos, onset_tick=onset, duration_tick=duration, pitch=pitch)
    notes.pedals = np.array([(tick, value, 0) for tick, value in pedal], dtype=PEDAL_DTYPE)
    return notes


def test_seconds_follow_every_tempo_change():
    tempos = np.array([(0, 500_000), (480, 1_000_000), (960, 250_000)], dtype=TEMPO_DTYPE)
    columns = {"onset_tick": [0, 480, 720, 1440], "duration_tick": [240, 480, 240, 480], "pitch": 60}
    notes = Notes.from_columns(480, tempos, **columns)
    assert notes.onset_sec.tolist() == pytest.approx([0.0, 0.5, 1.0, 1.75])
    assert notes.duration_sec.tolist() == pytest.approx([0.25, 1.0, 0.5, 0.25])
    assert notes.end_sec == pytest.approx(2.0)


@given(
    st.lists(st.tuples(st.integers(0, 20_000), st.integers(10_000, 2_000_000)), max_size=6),
    st.lists(st.integers(0, 50_000), min_size=1, max_size=20),
    st.integers(24, 960),
)
def test_ticks_survive_seconds_and_back(tempos, ticks, ticks_per_quarter):
    notes = silence(tempos, ticks_per_quarter)
    assert notes.sec_to_tick(notes.tick_to_sec(np.array(ticks))).tolist() == ticks


def test_a_tempo_map_that_starts_late_begins_with_the_midi_default():
    notes = silence([(960, 250_000)])
    assert notes.tempos.tolist() == [(0, 500_000), (960, 250_000)]
    assert notes.tick_to_sec(np.array(960)) == pytest.approx(1.0)


def test_the_last_tempo_of_one_tick_wins():
    notes = silence([(0, 1), (0, 600_000)])
    assert notes.tempos.tolist() == [(0, 600_000)]


def test_sustain_holds_until_the_pedal_comes_up():
    notes = notes_with_pedal([(50, 127), (300, 0)], [(0, 100, 60), (310, 10, 62)]).with_sustain()
    assert notes["duration_tick"].tolist() == [300, 10]
    assert len(notes.pedals) == 0


def test_sustain_ends_where_the_same_key_is_struck_again():
    notes = notes_with_pedal([(50, 127), (900, 0)], [(0, 100, 60), (200, 100, 60), (250, 10, 64)]).with_sustain()
    assert notes.table[["onset_tick", "duration_tick"]].tolist() == [(0, 200), (200, 700), (250, 650)]


def test_a_pedal_still_down_at_the_end_holds_to_the_last_event():
    notes = notes_with_pedal([(50, 127)], [(0, 100, 60), (200, 300, 64)]).with_sustain()
    assert notes["duration_tick"].tolist() == [500, 300]


def test_pedal_values_below_64_are_up():
    notes = notes_with_pedal([(50, 63), (60, 64), (70, 20)], [(0, 55, 60), (0, 65, 64)]).with_sustain()
    assert notes["duration_tick"].tolist() == [55, 70]


def test_a_finger_that_holds_longer_than_the_next_strike_keeps_its_length():
    notes = notes_with_pedal([], [(0, 500, 60), (200, 100, 60)]).with_sustain()
    assert notes["duration_tick"].tolist() == [500, 100]


def test_the_pedal_of_a_channel_holds_all_its_tracks():
    notes = notes_with_pedal([(50, 127), (300, 0)], [(0, 100, 60), (0, 100, 67)])
    notes.table["track"] = [0, 1]
    assert notes.with_sustain()["duration_tick"].tolist() == [300, 300]


def test_each_channel_has_its_own_pedal():
    notes = notes_with_pedal([(50, 127), (300, 0)], [(0, 100, 60), (0, 100, 67)])
    notes.table["channel"] = [0, 1]
    assert notes.with_sustain()["duration_tick"].tolist() == [300, 100]


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3)), max_size=12))
def test_next_onset_equals_its_naive_definition(rows):
    onset = np.array([row[0] for row in rows], dtype=np.int64)
    pitch = np.array([row[1] for row in rows], dtype=np.int64)
    naive = [min((o for o, p in rows if p == pitch[i] and o > onset[i]), default=99) for i in range(len(rows))]
    assert next_onset_of_same_pitch(onset, pitch, default=99).tolist() == naive


@pytest.mark.parametrize("field, value", [("pitch", 128), ("velocity", 0), ("onset_tick", -1), ("program", 200)])
def test_values_that_midi_cannot_hold_are_refused_by_name(field, value):
    columns = {"onset_tick": [0], "duration_tick": [1], "pitch": [60], field: [value]}
    with pytest.raises(ValueError, match=field):
        Notes.from_columns(**columns)


@pytest.mark.parametrize("value", [2**31, 2**32 + 5, 2**70, float("nan"), float("inf")])
@pytest.mark.parametrize("field", ["onset_tick", "duration_tick", "pitch", "velocity", "program", "track", "channel"])
def test_numbers_too_large_for_a_column_are_refused_by_name(field, value):
    columns = {"onset_tick": [0], "duration_tick": [1], "pitch": [60], field: [value]}
    with pytest.raises(ValueError, match=field):
        Notes.from_columns(**columns)


@pytest.mark.parametrize("onset, duration", [(1e7, 1), (0, 3e6), (float("nan"), 1), (-1, 1), (1, float("inf"))])
def test_seconds_beyond_reason_are_refused(onset, duration):
    with pytest.raises(ValueError, match="_sec must lie in"):
        Notes.from_seconds([onset], [duration], [60])


@pytest.mark.parametrize("field", ["tempos", "time_signatures", "pedals", "other_pedals"])
def test_rows_with_numbers_too_large_are_refused(field):
    rows = getattr(Notes(np.zeros(0, NOTE_DTYPE)), field)
    late = [(2**32 + 5, *(4 for _ in rows.dtype.names[1:]))]
    wide = np.array(late, dtype=[(name, "<i8") for name in rows.dtype.names])
    for each in (late, wide):
        with pytest.raises(ValueError):
            Notes(np.zeros(0, NOTE_DTYPE), **{field: each})


@pytest.mark.parametrize("semitones", [8, -121, 70_000, -(2**40)])
def test_transposing_out_of_range_is_refused(semitones):
    with pytest.raises(ValueError, match="pitch"):
        Notes.from_columns(onset_tick=[0], duration_tick=[1], pitch=[120]).transposed(semitones)


def test_notes_stand_sorted_however_they_came():
    notes = Notes.from_columns(onset_tick=[5, 0, 0], duration_tick=[1, 1, 1], pitch=[60, 64, 62])
    assert notes["pitch"].tolist() == [62, 64, 60]


@given(st.lists(st.one_of(st.integers(0, 5), st.integers(0, 2**45)), max_size=30))
def test_sorting_in_16_bits_at_a_time_is_a_stable_sort(values):
    values = np.array(values, dtype=np.int64)
    assert stable_order(values).tolist() == np.argsort(values, kind="stable").tolist()
