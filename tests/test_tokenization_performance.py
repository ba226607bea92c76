import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pianogen_hf.tokenizers.notes import MAX_WAIT_SEC, PEDAL_DTYPE, TEMPO_DTYPE, Notes
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


@pytest.mark.parametrize("pedal", [False, True])
def test_a_wait_without_end_is_shortened(pedal):
    """28 days of held pedal, or of silence before the last note, are a quarter of an hour."""
    slowest = np.array([(0, 2**24 - 1)], dtype=TEMPO_DTYPE)
    late = 2**28 // 2
    notes = Notes.from_columns(96, slowest, onset_tick=[0, late], duration_tick=[96, 96], pitch=[60, 62])
    notes.pedals = np.array([(0, 127, 0), (late, 0, 0)], dtype=PEDAL_DTYPE)[: 2 * pedal]
    events = PIANO.convert_ids_to_tokens(PIANO.encode_notes(notes))
    assert events.count("TIME_SHIFT_100") <= MAX_WAIT_SEC + 2 * 17
    assert notes.long_waits_sec().tolist() == pytest.approx([late * 16.777215 / 96 - (0 if pedal else 16.777215)])
    decoded = PIANO.decode_notes(PIANO.encode_notes(notes))
    assert decoded["pitch"].tolist() == [60, 62] and decoded.end_sec < MAX_WAIT_SEC + 40


def naive_grammar(tokenizer, names):
    """What may follow, by playing the events one by one: names, not ids."""
    keys = range(tokenizer.lowest_pitch, tokenizer.highest_pitch + 1)
    down, loudness, last_on, last_off, last = set(), None, -1, -1, "<bos>"
    for last in names:  # noqa: B007 (the last one is looked at below)
        kind, _, number = last.rpartition("_")
        if kind == "NOTE_ON":
            down, last_on = down | {int(number)}, int(number)
        elif kind == "NOTE_OFF":
            down, last_off = down - {int(number)}, int(number)
        elif kind == "TIME_SHIFT":
            last_on = last_off = -1
        else:
            loudness = last
    free = [key for key in keys if key not in down and key > last_on]
    allowed = {f"NOTE_ON_{key}" for key in free} if loudness else set()
    shifts = {f"TIME_SHIFT_{steps}" for steps in range(1, 101)}
    if not last.startswith("VELOCITY"):
        allowed |= {f"NOTE_OFF_{key}" for key in down if key > last_off and last_on < 0}
        allowed |= {f"VELOCITY_{number}" for number in range(32)} - {loudness} if free else set()
        allowed |= shifts if last == "TIME_SHIFT_100" or not last.startswith("TIME_SHIFT") else set()
        allowed |= {"<eos>"} if not down and last.startswith(("<bos>", "NOTE_OFF")) else set()
    return allowed or shifts


@given(data=st.data(), is_piece=st.booleans())
@settings(max_examples=60, deadline=None)
@pytest.mark.parametrize("tokenizer", [PIANO, MIDDLE, PerformanceTokenizer(60, 61)], ids=["88", "21", "2 keys"])
def test_the_grammar_is_that_of_the_definition(tokenizer, data, is_piece):
    """After beginnings of pieces, and after any ids at all, which models may be given as prompts."""
    names = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    ids: list[int] = []
    for _ in range(data.draw(st.integers(0, 25))):
        allowed = np.flatnonzero(tokenizer.allowed_next(ids)).tolist() if is_piece else list(range(3, len(tokenizer)))
        ids.append(data.draw(st.sampled_from([index for index in allowed if index >= 3] or [3])))
    found = {names[index] for index in np.flatnonzero(tokenizer.allowed_next(ids))}
    assert found == naive_grammar(tokenizer, [names[index] for index in ids])
