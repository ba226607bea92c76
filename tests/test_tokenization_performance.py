import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pianogen_hf.tokenizers.notes import PEDAL_DTYPE, TEMPO_DTYPE, Notes
from pianogen_hf.tokenizers.tokenization_performance import PerformanceTokenizer

PIANO, ALL_KEYS, MIDDLE = PerformanceTokenizer(), PerformanceTokenizer(0, 127), PerformanceTokenizer(50, 70)


def naive_events(notes, lowest, highest):
    """The events by their definition, one by one: names, not ids."""
    notes = notes.where((notes["pitch"] >= lowest) & (notes["pitch"] <= highest)).with_sustain()
    strikes = {}
    for onset, offset, pitch, velocity in zip(
        notes.onset_sec, notes.offset_sec, notes["pitch"], notes["velocity"], strict=True
    ):
        first = int(np.rint(onset * 100))
        end = max(int(np.rint(offset * 100)), first + 1)
        if (first, pitch) not in strikes or end > strikes[first, pitch][0]:  # of two at once the longer
            strikes[first, pitch] = (end, velocity // 4)
    rows = []
    for (first, pitch), (end, velocity) in strikes.items():
        again = min((other for other, key in strikes if key == pitch and other > first), default=end)
        rows += [(first, 1, pitch, velocity), (min(end, again), 0, pitch, None)]
    events, now, loudness = [], 0, None
    for step, is_on, pitch, velocity in sorted(rows, key=lambda row: row[:3]):
        shifts, now = step - now, step
        events += ["TIME_SHIFT_100"] * (shifts // 100) + ([f"TIME_SHIFT_{shifts % 100}"] if shifts % 100 else [])
        if is_on and velocity != loudness:
            events.append(f"VELOCITY_{velocity}")
            loudness = velocity
        events.append(f"NOTE_{'ON' if is_on else 'OFF'}_{pitch}")
    return events


@st.composite
def any_notes(draw):
    """Piano music with doubles, overlaps, long waits, pedals, several tempos and tracks."""
    rows = st.tuples(st.integers(0, 4000), st.integers(0, 900), st.integers(45, 75), st.integers(1, 127))
    onset, duration, pitch, velocity = np.array(draw(st.lists(rows, max_size=25)), dtype=np.int64).reshape(-1, 4).T
    tempos = draw(st.lists(st.tuples(st.integers(0, 3000), st.integers(100_000, 3_000_000)), max_size=3))
    pedals = draw(st.lists(st.tuples(st.integers(0, 4000), st.sampled_from([0, 63, 64, 127]), st.just(0)), max_size=5))
    notes = Notes.from_columns(
        draw(st.sampled_from([24, 96, 480])),
        np.array(tempos, dtype=TEMPO_DTYPE),
        onset_tick=onset,
        duration_tick=duration,
        pitch=pitch,
        velocity=velocity,
        track=onset % draw(st.integers(1, 2)),
    )
    notes.pedals = np.sort(np.array(pedals, dtype=PEDAL_DTYPE))
    return notes


@given(notes=any_notes())
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("tokenizer", [PIANO, ALL_KEYS, MIDDLE], ids=["88 keys", "128 keys", "21 keys"])
def test_events_are_those_of_the_definition(tokenizer, notes):
    expected = naive_events(notes, tokenizer.lowest_pitch, tokenizer.highest_pitch)
    assert tokenizer.convert_ids_to_tokens(tokenizer.encode_notes(notes)) == expected


def test_a_scale_by_hand():
    notes = Notes.from_seconds([0.0, 0.5, 2.75], [0.5, 1.0, 0.1], [60, 62, 60], [64, 64, 100])
    assert PIANO.notes_to_text(notes).split() == [
        *("VELOCITY_16", "NOTE_ON_60", "TIME_SHIFT_50", "NOTE_OFF_60", "NOTE_ON_62", "TIME_SHIFT_100", "NOTE_OFF_62"),
        *("TIME_SHIFT_100", "TIME_SHIFT_25", "VELOCITY_25", "NOTE_ON_60", "TIME_SHIFT_10", "NOTE_OFF_60"),
    ]


def test_the_longest_possible_piece_keeps_its_order():
    slowest = np.array([(0, 2**24 - 1)], dtype=TEMPO_DTYPE)
    notes = Notes.from_columns(32767, slowest, onset_tick=[0, 2**31 - 2], duration_tick=[1, 1], pitch=[60, 62])
    events = PIANO.convert_ids_to_tokens(PIANO.encode_notes(notes))
    assert events[:2] == ["VELOCITY_16", "NOTE_ON_60"] and events[-1] == "NOTE_OFF_62"
