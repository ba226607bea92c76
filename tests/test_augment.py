"""Augmentation: which versions a piece has, and that each differs only in what it says."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pianogen_hf.data.augment import Augmentation, louder, stretched
from pianogen_hf.errors import DataError
from pianogen_hf.tokenizers.notes import TEMPO_DTYPE, Notes
from pianogen_hf.tokenizers.tokenization_performance import PerformanceTokenizer
from pianogen_hf.tokenizers.tokenization_remi import RemiTokenizer

PIANO = (21, 108)
ALL_THREE = Augmentation((-3, 3), (-20, 20), (0.8, 1.25))


def piece(*pitches: int, velocity: int = 64) -> Notes:
    count = len(pitches)
    columns = {"onset_tick": np.arange(count) * 240, "duration_tick": [200] * count}
    return Notes.from_columns(480, pitch=pitches, velocity=velocity, **columns)


def shifts(notes: Notes, low: int, high: int, pitch_range=(0, 127)) -> list[int]:
    versions = Augmentation((low, high)).all(notes, pitch_range)
    return [int(each["pitch"][0]) - int(notes["pitch"][0]) for each in versions]


def some_music():
    note = st.tuples(st.integers(0, 127), st.integers(1, 127), st.integers(0, 5000), st.integers(0, 900))
    tempo = st.tuples(st.integers(0, 5000), st.integers(100_000, 3_000_000))

    def build(notes, tempos):
        pitch, velocity, onset, duration = zip(*notes, strict=True)
        rows = np.array([(0, 600_000), *tempos], dtype=TEMPO_DTYPE)
        return Notes.from_columns(480, rows, onset_tick=onset, duration_tick=duration, pitch=pitch, velocity=velocity)

    return st.builds(build, st.lists(note, min_size=1, max_size=8), st.lists(tempo, max_size=4))


# Which versions -------------------------------------------------------------------------------------------------------


def test_every_semitone_of_the_range_comes_once():
    assert shifts(piece(60, 64), -5, 6) == list(range(-5, 7))
    assert shifts(piece(60, 64), 0, 0) == [0]


def test_what_leaves_the_tokenizers_range_is_left_out():
    assert shifts(piece(22, 106), -3, 3, PIANO) == [-1, 0, 1, 2]
    assert shifts(piece(0, 127), -12, 12) == [0]


def test_the_piece_itself_is_kept_even_out_of_range():
    assert shifts(piece(10, 60), -2, 2, PIANO) == [0]
    notes = piece(10, 60)
    drawn = Augmentation((-2, 2)).draw(notes, PIANO, np.random.default_rng(0))
    assert drawn == notes


def test_a_piece_without_notes_comes_once():
    assert [len(each) for each in ALL_THREE.all(piece())] == [0]
    assert len(ALL_THREE.draw(piece(), PIANO, np.random.default_rng(0))) == 0


@given(notes=some_music(), low=st.integers(-24, 0), high=st.integers(0, 24), seed=st.integers(0, 9))
def test_no_version_leaves_the_range_and_the_piece_itself_is_among_them_unaltered(notes, low, high, seed):
    versions = list(Augmentation((low, high), (1, 30), (1.1, 1.2)).all(notes, PIANO, seed))
    assert sum(each == notes for each in versions) == 1
    for each in versions:
        moved = each["pitch"].astype(int) - notes["pitch"]
        assert len(set(moved.tolist())) == 1 and low <= moved[0] <= high
        assert moved[0] == 0 or (each["pitch"].min() >= 21 and each["pitch"].max() <= 108)
        for name in ("onset_tick", "duration_tick"):
            assert np.array_equal(each[name], notes[name])


@given(notes=some_music(), seed=st.integers(0, 99))
def test_what_is_drawn_keeps_to_all_three_ranges(notes, seed):
    drawn = ALL_THREE.draw(notes, PIANO, np.random.default_rng(seed))
    moved = drawn["pitch"].astype(int) - notes["pitch"]
    assert len(set(moved.tolist())) == 1 and abs(moved[0]) <= 3
    assert moved[0] == 0 or (drawn["pitch"].min() >= 21 and drawn["pitch"].max() <= 108)
    assert np.abs(drawn["velocity"].astype(int) - notes["velocity"]).max() <= 20
    assert drawn["velocity"].min() >= 1 and drawn["velocity"].max() <= 127
    ratio = drawn.tempos["us_per_quarter"] / notes.tempos["us_per_quarter"]
    assert ratio.min() >= 0.8 - 1e-5 and ratio.max() <= 1.25 + 1e-5


def test_draws_reach_every_transposition_and_both_ends_of_the_offsets():
    notes, generator = piece(60), np.random.default_rng(0)
    drawn = [Augmentation((-2, 1), (-1, 1)).draw(notes, PIANO, generator) for _ in range(300)]
    assert {int(each["pitch"][0]) for each in drawn} == {58, 59, 60, 61}
    assert {int(each["velocity"][0]) for each in drawn} == {63, 64, 65}


# What chance decides --------------------------------------------------------------------------------------------------


def test_copies_depend_on_seed_piece_and_transposition_and_on_nothing_else():
    one = list(ALL_THREE.all(piece(60, 64), seed=3))
    assert one == list(ALL_THREE.all(piece(60, 64), seed=3))
    assert one != list(ALL_THREE.all(piece(60, 64), seed=4))
    tempos = [int(each.tempos["us_per_quarter"][0]) for each in one]
    assert len(set(tempos)) == 7 and tempos[3] == 500_000  # the piece itself is in the middle
    others = [int(each.tempos["us_per_quarter"][0]) for each in ALL_THREE.all(piece(60, 65), seed=3)]
    assert not set(tempos) & set(others) - {500_000}
    # A narrower range makes the same copies, only fewer of them.
    assert list(Augmentation((-1, 2), ALL_THREE.velocity, ALL_THREE.stretch).all(piece(60, 64), seed=3)) == one[2:6]


def test_transposition_alone_asks_no_chance():
    assert not Augmentation((-5, 6)).is_drawn
    assert Augmentation(velocity=(0, 1)).is_drawn and Augmentation(stretch=(1.0, 1.1)).is_drawn


# What changes ---------------------------------------------------------------------------------------------------------


@given(notes=some_music(), offset=st.integers(-200, 200))
def test_velocities_stay_within_what_midi_has_and_nothing_else_changes(notes, offset):
    result = louder(notes, offset)
    wanted = np.clip(notes.table["velocity"].astype(int) + offset, 1, 127)
    back = result.table.copy()
    assert sorted(back["velocity"].tolist()) == sorted(wanted.tolist())
    for name in ("onset_tick", "duration_tick", "pitch"):
        assert np.array_equal(result[name], notes[name])


@given(notes=some_music(), factor=st.floats(0.5, 2))
def test_stretching_scales_every_second_and_moves_no_beat(notes, factor):
    result = stretched(notes, factor)
    assert np.array_equal(result.table, notes.table) and np.array_equal(result.tempos["tick"], notes.tempos["tick"])
    assert np.abs(result.tempos["us_per_quarter"] - notes.tempos["us_per_quarter"] * factor).max() <= 0.5
    # Tempos are whole microseconds: half of one per quarter is all that may be missing.
    limit = 0.5e-6 * notes.end_tick / 480 + 1e-9
    assert np.abs(result.onset_sec - notes.onset_sec * factor).max() <= limit
    assert np.abs(result.offset_sec - notes.offset_sec * factor).max() <= limit


@pytest.mark.parametrize(("slowest", "factor"), [(2**24 - 1, 1.5), (1, 0.5)])
def test_a_tempo_at_the_end_of_what_midi_holds_stays_there(slowest, factor):
    notes = Notes.from_columns(
        480, np.array([(0, slowest)], dtype=TEMPO_DTYPE), onset_tick=[0], duration_tick=[480], pitch=[60]
    )
    assert stretched(notes, factor) == notes


def test_tokenizers_of_seconds_hear_the_stretch_and_those_of_beats_do_not():
    notes = piece(60, 64, 67, 72)
    seconds, beats = PerformanceTokenizer(), RemiTokenizer()
    assert seconds.encode_piece(stretched(notes, 1.5)) != seconds.encode_piece(notes)
    assert beats.encode_piece(stretched(notes, 1.5)) == beats.encode_piece(notes)


@pytest.mark.parametrize(
    "ranges",
    [
        {"transpose": (1, 5)},
        {"transpose": (-5, -1)},
        {"velocity": (5, -5)},
        {"stretch": (1.1, 0.9)},
        {"stretch": (0.0, 1.0)},
        {"stretch": (1.0, float("inf"))},
        {"stretch": (float("nan"), 1.0)},
    ],
)
def test_ranges_that_make_no_sense_are_refused(ranges):
    with pytest.raises(DataError, match=next(iter(ranges))):
        Augmentation(**ranges)
