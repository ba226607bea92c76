"""The JSB grid: hand-computed grids, the finding of voices, round trips, grammar."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pianogen_hf.tokenizers.midi import notes_to_midi_bytes, read_midi
from pianogen_hf.tokenizers.notes import Notes
from pianogen_hf.tokenizers.tokenization_jsb import MAX_STEPS, VOICES, JSBTokenizer

TOKENIZER = JSBTokenizer()
SYMBOLS = st.one_of(st.just(-1), st.integers(36, 81))
GRIDS = st.integers(0, 12).flatmap(lambda steps: arrays(np.int64, (steps, 4), elements=SYMBOLS))


def make_notes(rows, ticks_per_quarter=480, **columns) -> Notes:
    """Notes of rows (onset_tick, duration_tick, pitch, track)."""
    onset, duration, pitch, track = np.array(rows, dtype=np.int64).reshape(-1, 4).T
    return Notes.from_columns(
        ticks_per_quarter, onset_tick=onset, duration_tick=duration, pitch=pitch, track=track, **columns
    )


@st.composite
def random_notes(draw) -> Notes:
    row = st.tuples(st.integers(0, 3000), st.integers(0, 1500), st.integers(30, 90), st.integers(0, 4))
    return make_notes(draw(st.lists(row, max_size=25)), draw(st.sampled_from([96, 480, 1024])))


def without_trailing_rests(grid: np.ndarray) -> np.ndarray:
    sounding = np.flatnonzero((grid != -1).any(axis=1))
    return grid[: sounding[-1] + 1 if len(sounding) else 0]


def test_47_symbols_are_shared_by_the_voices():
    assert len(TOKENIZER) - TOKENIZER.num_special == 47
    assert TOKENIZER.grid_to_ids([[36, 81, -1, 36]]) == [3, 48, 49, 3]


def test_times_are_rounded_to_the_nearest_sixteenth_and_never_vanish():
    notes = make_notes([(119, 0, 60, 0), (241, 250, 62, 0), (60, 30, 64, 0)])
    assert TOKENIZER.notes_to_grid(notes).tolist() == [[-1] * 4, [64, -1, -1, 60], [62, -1, -1, -1], [62, -1, -1, -1]]


def test_four_tracks_are_voices_by_their_mean_pitch():
    rows = [(0, 480, 50, 1), (0, 480, 60, 3), (0, 480, 70, 5), (0, 240, 40, 9), (240, 240, 75, 9)]
    assert TOKENIZER.notes_to_grid(make_notes(rows))[[0, 2]].tolist() == [[70, 60, 40, 50], [70, 60, 75, 50]]


def test_tracks_named_after_voices_keep_them_though_voices_cross_or_are_silent():
    notes = replace(make_notes([(0, 120, 50, 0), (0, 120, 70, 1)]), track_names=("Soprano", "Bass"))
    assert TOKENIZER.notes_to_grid(notes).tolist() == [[50, -1, -1, 70]]


def test_other_music_has_its_outer_voices_at_the_outside():
    rows = [(0, 120, pitch, 0) for pitch in (40, 50, 60, 70, 80)]
    assert TOKENIZER.notes_to_grid(make_notes(rows)).tolist() == [[80, 70, 60, 40]]
    assert TOKENIZER.notes_to_grid(make_notes(rows[:1])).tolist() == [[40, -1, -1, -1]]
    assert TOKENIZER.notes_to_grid(make_notes(rows[:2])).tolist() == [[50, -1, -1, 40]]


def test_inner_pitches_of_other_music_stay_in_their_voice():
    """The tenor's 50 is held while the alto's 60 ends, and again while a new 66 goes to the free alto."""
    rows = [(0, 360, 80, 0), (0, 360, 40, 0), (0, 360, 50, 0), (0, 120, 60, 0), (240, 120, 66, 0)]
    assert TOKENIZER.notes_to_grid(make_notes(rows)).tolist() == [[80, 60, 50, 40], [80, -1, 50, 40], [80, 66, 50, 40]]


def test_pitches_out_of_range_and_drums_are_dropped():
    notes = make_notes(
        [(0, 120, 35, 0), (0, 120, 82, 0), (0, 240, 60, 0), (0, 960, 50, 1)], is_drum=[False] * 3 + [True]
    )
    assert TOKENIZER.notes_to_grid(notes).tolist() == [[60, -1, -1, -1]] * 2
    assert len(TOKENIZER.decode_notes(TOKENIZER.encode_notes(notes))) == 1


def test_a_hostile_tick_does_not_fill_the_memory():
    notes = make_notes([(0, 2**31 - 1, 60, 0), (2**31 - 2, 5, 62, 0)], ticks_per_quarter=1)
    assert TOKENIZER.notes_to_grid(notes).shape == (MAX_STEPS, 4)


def test_decoded_notes_are_named_tracks_of_held_pitches():
    notes = TOKENIZER.grid_to_notes([[72, -1, 55, 36], [72, 60, 55, -1], [72, 60, 57, -1]])
    assert notes.track_names == VOICES
    rows = [(0, 120, 36, 3), (0, 240, 55, 2), (0, 360, 72, 0), (120, 240, 60, 1), (240, 120, 57, 2)]
    assert notes.table[["onset_tick", "duration_tick", "pitch", "track"]].tolist() == rows
    assert TOKENIZER.grid_to_notes(np.zeros((0, 4))) == TOKENIZER.decode_notes([])


@pytest.mark.parametrize("grid", [[[60, 60, 60]], [60, 60, 60, 60], [[35, 60, 60, 60]], [[82, 60, 60, 60]]])
def test_what_is_no_grid_is_an_error(grid):
    with pytest.raises(ValueError, match="grid"):
        TOKENIZER.grid_to_ids(grid)


@given(GRIDS)
@settings(max_examples=60, deadline=None)
def test_grids_survive_ids_and_notes(grid):
    assert np.array_equal(TOKENIZER.ids_to_grid(TOKENIZER.grid_to_ids(grid)), grid)
    assert np.array_equal(TOKENIZER.notes_to_grid(TOKENIZER.grid_to_notes(grid)), without_trailing_rests(grid))


@given(GRIDS)
@settings(max_examples=40, deadline=None)
def test_grids_survive_a_midi_file(grid):
    """Also where a voice is silent throughout: then its track is missing in the file."""
    midi = notes_to_midi_bytes(TOKENIZER.grid_to_notes(grid))
    assert np.array_equal(TOKENIZER.notes_to_grid(read_midi(midi)), without_trailing_rests(grid))


@given(random_notes())
@settings(max_examples=80, deadline=None)
def test_every_step_holds_pitches_that_sound_there_the_highest_among_them(notes):
    grid = TOKENIZER.notes_to_grid(notes)
    kept = notes.where((notes["pitch"] >= 36) & (notes["pitch"] <= 81))
    eighths = 8 * np.stack([kept["onset_tick"].astype(int), kept.offset_tick]) / notes.ticks_per_quarter
    onset, offset = np.floor((eighths + 1) / 2)
    for step, voices in enumerate(grid):
        sounding = set(kept["pitch"][(onset <= step) & (step < np.maximum(offset, onset + 1))].tolist())
        found = [pitch for pitch in voices.tolist() if pitch != -1]
        assert set(found) <= sounding and (not sounding or max(sounding) in found)
        if len(set(notes["track"])) != 4:
            assert len(found) == min(len(sounding), 4)


@given(random_notes())
@settings(max_examples=60, deadline=None)
def test_what_was_decoded_encodes_to_the_same_ids(notes):
    ids = TOKENIZER.encode_notes(notes)
    assert TOKENIZER.encode_notes(TOKENIZER.decode_notes(ids)) == ids


@given(random_notes())
@settings(max_examples=40, deadline=None)
def test_text_and_ids_say_the_same(notes):
    ids = TOKENIZER.encode_notes(notes)
    text = TOKENIZER.decode([TOKENIZER.bos_token_id, *ids], skip_special_tokens=True)
    assert text == TOKENIZER.notes_to_text(notes)
    assert all(len(line.split()) == 4 for line in text.splitlines())
    assert TOKENIZER(text)["input_ids"] == [TOKENIZER.bos_token_id, *ids]
    whole = TOKENIZER.encode_piece(notes)
    assert TOKENIZER.convert_tokens_to_ids(TOKENIZER.tokenize(TOKENIZER.decode(whole))) == whole


@given(random_notes())
@settings(max_examples=30, deadline=None)
def test_the_grammar_allows_every_prefix_of_a_piece(notes):
    piece = TOKENIZER.encode_piece(notes)
    for position in range(1, len(piece)):
        assert TOKENIZER.allowed_next(piece[:position])[piece[position]]


@given(st.lists(st.integers(0, len(TOKENIZER) - 1), max_size=60))
@settings(max_examples=100, deadline=None)
def test_any_ids_decode_and_can_be_continued(ids):
    assert len(TOKENIZER.decode_notes(ids)) <= len(ids)
    assert TOKENIZER.allowed_next(ids).any()


def test_a_piece_ends_with_a_full_step_and_not_before_a_note():
    eos, rest, pitch = TOKENIZER.eos_token_id, TOKENIZER.rest_id, 10
    endings = [[], [rest] * 4, [pitch] * 3, [pitch, rest, rest, rest], [pitch] * 4 + [rest] * 4, [pitch] * 5]
    assert [bool(TOKENIZER.allowed_next(ids)[eos]) for ids in endings] == [True, False, False, True, True, False]


def test_a_cut_step_is_filled_with_rests():
    assert TOKENIZER.ids_to_grid(TOKENIZER.grid_to_ids([[60, 59, 58, 57]])[:2]).tolist() == [[60, 59, -1, -1]]


def test_save_and_load_keep_the_tokenizer(tmp_path):
    TOKENIZER.save_pretrained(tmp_path)
    loaded = JSBTokenizer.from_pretrained(tmp_path)
    notes = make_notes([(0, 480, 60, 0), (240, 480, 64, 0)])
    assert loaded.get_vocab() == TOKENIZER.get_vocab()
    assert loaded.encode_piece(notes) == TOKENIZER.encode_piece(notes)
    assert loaded.decode(loaded.encode_notes(notes)) == TOKENIZER.notes_to_text(notes)


# Notes without voices, one step after the other -----------------------------------------------------------------------


def naive_grid(rows):
    """Rule 3 by its definition, step by step; rows of (first step, last step, pitch)."""
    grid, alto, tenor = [], -1, -1
    for step in range(max((last for _, last, _ in rows), default=-1) + 1):
        chord = sorted({pitch for first, last, pitch in rows if first <= step <= last}, reverse=True)
        inner = chord[1:-1]
        alto, tenor = (voice if voice in inner else -1 for voice in (alto, tenor))
        free = [pitch for pitch in inner if pitch not in (alto, tenor)]
        alto = free.pop(0) if alto == -1 and free else alto
        tenor = free.pop(0) if tenor == -1 and free else tenor
        grid.append([chord[0] if chord else -1, alto, tenor, chord[-1] if len(chord) > 1 else -1])
    return grid


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 8), st.integers(36, 81)), max_size=25))
@settings(max_examples=150, deadline=None)
def test_voices_by_height_are_those_of_the_definition(rows):
    rows = [(first, first + more, pitch) for first, more, pitch in rows]
    columns = np.array(rows, dtype=np.int64).reshape(-1, 3).T
    notes = Notes.from_columns(
        4, onset_tick=columns[0], duration_tick=columns[1] - columns[0] + 1, pitch=columns[2], track=0
    )
    assert TOKENIZER.notes_to_grid(notes).tolist() == naive_grid(rows)
