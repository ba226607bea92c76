"""What a note transformer does with a piece: whatever it writes, the piece's own notes stay, and new ones lie right."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models_and_tokenizers import loosened, some_notes, tiny_model

import pianogen_hf as pg
from pianogen_hf.generation.new_notes import GenerationError
from pianogen_hf.generation.note_beam import Until
from pianogen_hf.generation.note_stream import ONSET, Controls
from pianogen_hf.generation.note_verbs import (
    GUIDANCE_SCALE,
    Samples,
    added_to,
    asked,
    fill_gap,
    held_keys,
    key_named,
    placed,
)
from pianogen_hf.models.key_finding import key_of
from pianogen_hf.models.modeling_note_transformer import END_CLASS
from pianogen_hf.models.note_controls import PITCH_NAMES
from pianogen_hf.tokenizers.notes import NOTE_DTYPE, PEDAL_DTYPE

ENCODER = pg.ContinuousNotesFeatureExtractor()
PIECE = some_notes(num_notes=40)  # eight seconds
PEDALS = np.array([(100, 127, 0), (2400, 0, 0), (2500, 90, 0), (4700, 0, 0)], PEDAL_DTYPE)


def make_model(end: float = 0.0, hurry: float = 5.0):
    torch.manual_seed(0)
    model = loosened(tiny_model(pg.NoteTransformerForCausalLM, 130))
    with torch.no_grad():
        model.heads.time_shift_head.fc2.bias[:60] += hurry
        model.heads.time_shift_head.fc2.bias[END_CLASS] += end
    return model


MODEL = make_model()


def continue_(prompt=PIECE, model=MODEL, **options):
    how_much = {} if {"seconds", "notes", "bars"} & options.keys() else {"notes": 6}
    return pg.continue_notes(model, ENCODER, prompt=prompt, **{"seed": 0, **how_much, **options})


def fill(piece=PIECE, start=2.0, end=4.0, **options):
    return pg.fill_notes(MODEL, ENCODER, piece, start, end, **{"seed": 0, **options})


def accompany(part=PIECE, side="below", **options):
    return pg.accompany_notes(MODEL, ENCODER, part, side, **{"seed": 0, **options})


def assert_whole(result, kept: np.ndarray):
    """The kept notes and the new ones are all that there is, and a MIDI file holds them."""
    rows = result.notes.table.tolist()
    for row in kept.tolist():
        rows.remove(row)
    assert sorted(rows) == sorted(result.new.table.tolist()) and len(rows) > 0
    assert result.new["duration_tick"].min() > 0
    read = pg.read_midi(pg.notes_to_midi_bytes(result.notes), None)
    for name in ("onset_tick", "duration_tick", "pitch", "velocity"):
        assert read[name].tolist() == result.notes[name].tolist(), name
    strikes = list(zip(result.new["onset_tick"].tolist(), result.new["pitch"].tolist(), strict=True))
    assert len(set(strikes)) == len(strikes)


@st.composite
def any_piece(draw):
    """Notes at any tick, overlapping and doubled as they come, in any tempo, with or without pedal."""
    row = st.tuples(st.integers(0, 4000), st.integers(1, 2000), st.integers(0, 127), st.integers(1, 127))
    rows = np.array(draw(st.lists(row, min_size=1, max_size=20)), dtype=np.int64)
    onset, duration, pitch, velocity = rows.T
    ticks = draw(st.sampled_from([24, 480, 960]))
    onset, duration = onset * ticks // 480, np.maximum(duration * ticks // 480, 1)
    notes = pg.Notes.from_columns(ticks, onset_tick=onset, duration_tick=duration, pitch=pitch, velocity=velocity)
    return replace(notes, pedals=PEDALS) if draw(st.booleans()) else notes


FEW = settings(max_examples=8)


# Continuing -----------------------------------------------------------------------------------------------------------


@FEW
@given(any_piece(), st.integers(0, 1000))
def test_a_prompt_stays_as_it_is_and_new_notes_come_after_it(prompt, seed):
    result = continue_(prompt, seconds=1.5, seed=seed)[0]
    rows = result.notes.table.tolist()
    assert all(row in rows for row in prompt.table.tolist())
    assert prompt.end_sec <= result.prompt_end_sec <= prompt.with_sustain().end_sec
    assert result.new["onset_tick"].min() >= prompt.sec_to_tick(np.array(result.prompt_end_sec))
    assert result.new.end_sec <= result.prompt_end_sec + 1.5 + 2e-3 * (1 + 20 * (prompt.ticks_per_quarter == 24))
    assert len(result.notes) == len(prompt) + len(result.new)


def test_continuations_have_the_wanted_number_of_notes_and_can_be_written():
    for result in continue_(notes=9, num_samples=2):
        assert len(result.new) == 9
        assert_whole(result, PIECE.table)


@pytest.mark.parametrize("prompt", [None, some_notes(num_notes=1)], ids=["nothing", "one note"])
def test_a_prompt_may_be_short_or_nothing(prompt):
    result = continue_(prompt, notes=5)[0]
    assert len(result.new) == 5 and len(result.notes) == 5 + (0 if prompt is None else 1)


def test_a_prompt_without_notes_is_one_line():
    with pytest.raises(GenerationError, match="no notes"):
        continue_(pg.Notes(np.zeros(0, NOTE_DTYPE)))


def test_even_a_very_short_continuation_is_not_silent():
    for seed in range(5):
        assert len(continue_(seconds=0.05, seed=seed)[0].new) > 0


def test_bars_follow_the_prompts_tempo():
    result = continue_(bars=1)[0]
    assert result.new.end_sec <= result.prompt_end_sec + 2 + 1e-3


def test_the_pedal_comes_up_where_new_music_begins():
    prompt = replace(PIECE, pedals=np.array([(100, 127, 0)], PEDAL_DTYPE))
    result = continue_(prompt)[0]
    assert result.notes.pedals.tolist() == [(100, 127, 0), (prompt.with_sustain().end_tick, 0, 0)]


def test_the_seed_decides_and_samples_differ():
    one, again, other = (continue_(seed=seed)[0].notes for seed in (1, 1, 2))
    assert one == again and one != other
    first, second = continue_(seed=1, num_samples=2)
    assert first.notes == one != second.notes  # the first of several is the one alone


def test_without_a_seed_every_call_writes_something_else():
    assert continue_(seed=None)[0].notes != continue_(seed=None)[0].notes


def test_progress_rises_to_all_of_it():
    for options in ({"notes": 6}, {"seconds": 1.5}):
        shares: list[float] = []
        continue_(num_samples=2, on_progress=shares.append, **options)
        assert shares == sorted(shares) and shares[-1] == 1.0 and len(set(shares)) > 4


def test_it_is_said_that_a_long_prompt_is_heard_in_part():
    messages: list[str] = []
    onset = 60 * np.arange(200)
    prompt = pg.Notes.from_columns(480, onset_tick=onset, duration_tick=50, pitch=40 + np.arange(200) % 40)
    continue_(prompt, notes=2, on_message=messages.append)
    assert messages == ["the prompt has 200 notes: the model hears the last 63 of them"]
    continue_(notes=2, on_message=messages.append)
    assert len(messages) == 1


@pytest.mark.parametrize("seconds", [4.0, 8.0])
def test_an_end_comes_within_a_seventh_of_the_wished_length(seconds):
    model = make_model(end=10.0, hurry=7.0)
    for seed in range(2):
        result = continue_(model=model, seconds=seconds, end=True, seed=seed)[0]
        last = result.new.onset_sec.max() - result.prompt_end_sec
        assert 0.85 * seconds <= last and result.new.end_sec - result.prompt_end_sec <= 1.15 * seconds + 1e-2


def test_an_end_after_a_number_of_notes_is_refused():
    with pytest.raises(GenerationError, match="seconds or bars"):
        continue_(notes=5, end=True)


# Filling --------------------------------------------------------------------------------------------------------------


def kept_rows(piece, start, end):
    ticks = piece.sec_to_tick(np.array([start, min(end, piece.end_sec)]))
    return piece.table[(piece["onset_tick"] < ticks[0]) | (piece["onset_tick"] >= ticks[1])]


@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (7.0, 99.0), (2.03, 3.11), (0.0, 99.0), (3.0, 3.1)])
@pytest.mark.parametrize("pedals", [PEDALS[:0], PEDALS], ids=["no pedal", "pedal"])
def test_the_gap_is_written_anew_and_all_else_stays(start, end, pedals):
    piece = replace(PIECE, pedals=pedals)
    for result in fill(piece, start, end, num_samples=2):
        assert_whole(result, kept_rows(piece, start, end))
        assert result.new.onset_sec.min() >= start - 2e-3
        assert result.new.end_sec <= min(end, piece.end_sec) + 2e-3
        assert result.prompt_end_sec == pytest.approx(start, abs=1e-3)


@FEW
@given(any_piece(), st.floats(0, 0.9), st.floats(0.06, 4), st.integers(0, 1000))
def test_whatever_the_piece_new_notes_lie_in_the_gap(piece, place, length, seed):
    start = place * piece.end_sec
    result = fill(piece, start, start + length, seed=seed)[0]
    kept = kept_rows(piece, start, start + length)
    rows = result.notes.table.tolist()
    assert all(row in rows for row in kept.tolist()) and len(rows) == len(kept) + len(result.new)
    ticks = piece.sec_to_tick(np.array([start, min(start + length, piece.end_sec)]))
    assert result.new["onset_tick"].min() >= ticks[0]
    assert result.new["onset_tick"].max() < max(ticks[1], ticks[0] + 1)


def test_what_stands_after_the_gap_is_heard_and_what_stood_in_it_is_not():
    """Though its onset be rounded out of the gap, or that of a note beside it into it."""
    onset = np.array([0.0, 0.5, 0.996, 1.004, 1.5, 1.996, 2.004, 2.5])
    piece = pg.Notes.from_seconds(onset, np.full(8, 0.3), np.arange(60, 68))
    seen = []

    class Spy:
        def write(self, run, **stream):
            seen.append([stream[name][:, 1].tolist() for name in ("past", "given")])
            return [[]]

    base = piece.where((onset < 1.001) | (onset >= 1.999))
    fill_gap(Spy(), ENCODER, piece, base, 1.001, 1.999, Controls(), ())
    assert seen == [[[60, 61, 62], [66, 67]]]


def test_notes_that_the_pedal_holds_are_heard_as_long_as_they_sound():
    seen = []

    class Spy:
        def write(self, run, **stream):
            seen.append(stream["past"])
            return [[]]

    piece = replace(PIECE, pedals=np.array([(0, 127, 0), (4000, 0, 0)], PEDAL_DTYPE))
    base = piece.where(np.isin(piece["onset_tick"], kept_rows(piece, 2.0, 4.0)["onset_tick"]))
    fill_gap(Spy(), ENCODER, piece, base, 2.0, 4.0, Controls(), ())
    before = placed(ENCODER, piece.with_sustain())
    assert np.array_equal(seen[0][:, 0], before[before[:, ONSET] < 2.0][:, 0])
    assert seen[0][:, 3].max() > 3


def test_new_notes_strike_no_key_that_rings_into_the_gap():
    piece = pg.Notes.from_seconds([*[0.0] * 40, 4.0], [*[3.0] * 40, 1.0], [*range(40, 80), 60])
    for seed in range(3):
        result = fill(piece, 1.0, 2.5, seed=seed)[0]
        assert not set(result.new["pitch"].tolist()) & set(range(40, 80))


@pytest.mark.parametrize(("start", "end"), [(4.0, 2.0), (3.0, 3.0), (-1.0, 2.0), (50.0, 60.0), (float("nan"), 2.0)])
def test_a_gap_that_is_none_is_refused(start, end):
    with pytest.raises(GenerationError, match="is not within") as error:
        fill(start=start, end=end)
    assert "\n" not in str(error.value)


def test_a_gap_without_a_place_for_a_note_is_one_line():
    with pytest.raises(GenerationError, match="no new note is possible") as error:
        fill(start=2.001, end=2.008)
    assert "\n" not in str(error.value)


# Accompanying ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["below", "above"])
@pytest.mark.parametrize("options", [{}, {"top_p": 0.6}])
def test_an_accompaniment_lies_where_it_was_wished_on_a_track_of_its_own(side, options):
    part = some_notes(num_notes=24, pitches=(58, 66))
    result = accompany(part, side, **options)[0]
    assert_whole(result, part.table)
    assert set(result.new["track"].tolist()) == {1} and result.notes.track_names[1] == "accompaniment"
    assert not set(result.new["channel"].tolist()) & set(part["channel"].tolist())
    checked = 0
    for onset, pitch in zip(result.new.onset_sec, result.new["pitch"], strict=True):
        sounding = part["pitch"][(part.onset_sec <= onset + 1e-3) & (part.offset_sec > onset + 1e-3)]
        checked += len(sounding) > 0
        assert (sounding > pitch).all() if side == "below" else (sounding < pitch).all()
    assert checked > 3 and result.prompt_end_sec == 0.0


@FEW
@given(any_piece(), st.sampled_from(["below", "above"]))
def test_whatever_the_part_it_stays_as_it_is(part, side):
    try:
        result = accompany(part, side)[0]
    except GenerationError as error:  # nothing lies below the lowest key
        assert "no new note is possible" in str(error)
        assert {0, 127} & set(part["pitch"].tolist())
        return
    rows = result.notes.table.tolist()
    assert all(row in rows for row in part.table.tolist()) and len(rows) == len(part) + len(result.new) > len(part)


@pytest.mark.parametrize(("side", "usual"), [("below", 1.35 * 4**0.37), ("above", 3.15 * 4**0.33)])
def test_an_accompaniment_is_asked_to_be_as_dense_as_is_usual_and_in_the_key_of_the_part(side, usual):
    part = some_notes(num_notes=32)
    tonic, is_minor = key_of(part["pitch"], part.duration_sec)
    key = f"{PITCH_NAMES[tonic]} {'minor' if is_minor else 'major'}"
    other_key = f"{PITCH_NAMES[(tonic + 6) % 12]} major"

    def written(**options):
        return accompany(part, side, end_sec=len(part) / 4, **options)[0].new.table.tolist()

    assert written() == written(density=usual, key=key)
    assert written() != written(density=40) and written() != written(key=other_key)
    over_chords = {"chords": "C | F"}  # which say what fits
    assert written(**over_chords) != written(**over_chords, key=key)


def test_nothing_is_usual_beside_a_passage_in_which_nothing_is_given():
    part = some_notes(num_notes=8)  # of the first two seconds
    assert len(accompany(part, start_sec=4.0, end_sec=8.0)[0].new)


@pytest.mark.parametrize(
    ("part", "side", "message"),
    [(PIECE, "beside", "below or above"), (pg.Notes(np.zeros(0, NOTE_DTYPE)), "below", "nothing to accompany")],
)
def test_what_can_not_be_accompanied_is_one_line(part, side, message):
    with pytest.raises(GenerationError, match=message) as error:
        accompany(part, side)
    assert "\n" not in str(error.value)


def test_models_that_can_not_be_given_notes_are_refused():
    other = tiny_model(pg.ContinuousNotesForCausalLM, 130)
    for verb in (
        lambda: pg.accompany_notes(other, ENCODER, PIECE),
        lambda: pg.fill_notes(other, ENCODER, PIECE, 2.0, 4.0),
        lambda: pg.continue_notes(other, ENCODER, notes=3, density=4.0),
        lambda: pg.continue_notes(other, ENCODER, notes=3, guidance_scale=3.0),
        lambda: pg.continue_notes(other, ENCODER, seconds=3, end=True),
    ):
        with pytest.raises(GenerationError, match="note transformer"):
            verb()


# Tracks, programs, drums ----------------------------------------------------------------------------------------------


def with_parts(**columns) -> pg.Notes:
    table = PIECE.table.copy()
    for name, values in columns.items():
        table[name] = values
    return replace(PIECE, table=table, track_names=("first", "second", "third"))


def test_new_notes_go_to_the_instrument_of_the_first_note():
    prompt = with_parts(program=5, track=np.arange(40) % 2 + 1)
    new = continue_(prompt)[0].new
    assert set(new["program"].tolist()) == {5} and set(new["track"].tolist()) == {int(prompt["track"][0])}


@pytest.mark.parametrize("drums", [np.arange(40) < 3, np.ones(40, dtype=bool)], ids=["at first", "alone"])
def test_new_notes_are_no_drums(drums):
    prompt = with_parts(is_drum=drums, track=np.where(drums, 0, 1), channel=np.where(drums, 9, 0))
    for result in (continue_(prompt)[0], fill(prompt)[0], accompany(prompt)[0]):
        assert not result.new["is_drum"].any() and 9 not in result.new["channel"]
        if drums.all():
            assert 0 not in result.new["track"]


def test_strikes_of_one_key_in_one_tick_are_one():
    base = pg.Notes.from_columns(24, onset_tick=[0], duration_tick=[5], pitch=[60])
    rows = [(0.0, 60, 50, 1.0), (0.5, 62, 50, 1.0), (0.501, 62, 60, 1.0), (0.6, 62, 70, 1.0), (0.7, 64, 1, 9.0)]
    result = added_to(base, map(np.array, rows), 0.0, 2.0)
    assert result.new.table[["onset_tick", "pitch", "duration_tick"]].tolist() == [
        (24, 62, 5),
        (29, 62, 48),
        (34, 64, 62),
    ]
    assert result.new["velocity"].tolist() == [50, 70, 1]


def test_held_keys_are_notes_without_pedal():
    keys = held_keys(replace(PIECE, pedals=PEDALS))
    assert np.allclose(keys[:, 0], PIECE.onset_sec) and np.allclose(keys[:, 3], PIECE.duration_sec)


# Controls -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "tonic", "is_minor"),
    [
        ("C", 0, False),
        ("c", 0, True),
        ("C minor", 0, True),
        ("Cm", 0, True),
        ("Bb major", 10, False),
        ("bb", 10, True),
        ("B", 11, False),
        ("b", 11, True),
        ("f# minor", 6, True),
        ("G♯ Major", 8, False),
        ("A♭", 8, False),
        ("Cb", 11, False),
        ("B#", 0, False),
        (" d  MINOR ", 2, True),
        ("e maj", 4, False),
        ("E MIN", 4, True),
    ],
)
def test_keys_have_the_names_that_musicians_give_them(name, tonic, is_minor):
    assert key_named(name) == 1 + tonic + 12 * is_minor


def test_every_key_has_a_class_of_its_own():
    names = [f"{tonic} {mode}" for mode in ("major", "minor") for tonic in PITCH_NAMES]
    assert [key_named(name) for name in names] == list(range(1, 25))


@pytest.mark.parametrize(
    "wrong",
    [
        {"density": 0.0},
        {"density": float("nan")},
        {"density": 1000.0},
        {"register": -1},
        {"register": 128},
        {"loudness": 0},
        {"loudness": float("inf")},
        {"guidance_scale": -1.0},
        {"guidance_scale": float("nan")},
        {"key": "H"},
        {"key": ""},
        {"key": "C dorian"},
        {"kind": "rock"},
    ],
)
def test_controls_that_mean_nothing_are_one_line(wrong):
    for verb in (continue_, fill, accompany, asked):
        with pytest.raises(GenerationError) as error:
            verb(**wrong)
        assert "\n" not in str(error.value) and next(iter(wrong)) in str(error.value)


@pytest.mark.parametrize("verb", [continue_, fill, accompany])
def test_controls_reach_the_model(verb):
    plain = verb(guidance_scale=0.0)[0].notes  # an accompaniment is always asked for some density
    everything = {"density": 8.0, "register": 60, "loudness": 40, "key": "C minor", "kind": "jazz"}
    written = [verb(**everything, guidance_scale=scale)[0].notes for scale in (0.0, GUIDANCE_SCALE, 9.0)]
    assert written[0] == plain and plain not in written[1:] and written[1] != written[2]
    assert written[1] == verb(**everything)[0].notes


@pytest.mark.parametrize("verb", [continue_, fill, accompany])
@pytest.mark.parametrize("wrong", [{"no_repeat_ngram_size": 4}, {"penalty_alpha": 0.6}])
def test_options_of_other_models_are_named(verb, wrong):
    with pytest.raises(GenerationError, match=next(iter(wrong))):
        verb(**wrong)


# Bars, several gaps, a register ---------------------------------------------------------------------------------------


def test_bars_are_filled_as_the_seconds_that_they_last():
    assert fill(start=None, end=None, bars=(2, 2))[0].notes == fill(start=2.0, end=4.0)[0].notes


@pytest.mark.parametrize("pedals", [PEDALS[:0], PEDALS], ids=["no pedal", "pedal"])
def test_several_gaps_are_filled_and_all_else_stays(pedals):
    piece = replace(PIECE, pedals=pedals)
    gaps = [(1.0, 2.0), (4.0, 5.5)]
    outside = np.ones(len(piece), dtype=bool)
    for start, end in gaps:
        outside &= (piece.onset_sec < start) | (piece.onset_sec >= end)
    results = fill(piece, None, None, gaps=gaps, num_samples=2)
    assert results[0].notes != results[1].notes
    for result in results:
        assert_whole(result, piece.table[outside])
        assert result.kept.table.tolist() == piece.table[outside].tolist()
        onset = result.new.onset_sec
        assert all(((onset >= start - 2e-3) & (onset < end)).any() for start, end in gaps)
        assert sum(((onset >= start - 2e-3) & (onset < end)).sum() for start, end in gaps) == len(onset)


def test_what_stood_in_a_later_gap_is_not_heard_before_it_is_filled():
    other = replace(PIECE, table=PIECE.table.copy())
    other.table["pitch"][(other.onset_sec >= 4) & (other.onset_sec < 5.5)] += 5
    first, second = (fill(piece, None, None, gaps=[(1.0, 2.0), (4.0, 5.5)])[0] for piece in (PIECE, other))
    assert first.notes == second.notes


def test_notes_of_one_register_are_written_anew_and_the_others_of_the_gap_stay():
    piece = replace(PIECE, pedals=PEDALS)
    is_new = (piece.onset_sec >= 2) & (piece.onset_sec < 4) & (piece["pitch"] >= 60)
    for result in fill(piece, 2.0, 4.0, pitches=(60, 127), num_samples=2):
        assert_whole(result, piece.table[~is_new])
        assert result.new["pitch"].min() >= 60 and result.new.onset_sec.min() >= 2 - 2e-3
        assert result.notes.pedals.tolist() == piece.pedals.tolist()


@pytest.mark.parametrize("pitches", [(70, 60), (60,), (-1, 60), (60, 128)])
def test_a_register_that_is_none_is_one_line(pitches):
    with pytest.raises(GenerationError, match="a lowest and a highest one"):
        fill(pitches=pitches)


def test_progress_over_several_gaps_rises_to_all_of_it():
    shares: list[float] = []
    fill(start=None, end=None, gaps=[(1.0, 2.0), (4.0, 5.5)], num_samples=2, on_progress=shares.append)
    assert shares == sorted(shares) and shares[-1] == 1.0


# Varying --------------------------------------------------------------------------------------------------------------


def vary(notes=PIECE, start=2.0, end=6.0, strength=0.5, **options):
    return pg.vary_notes(MODEL, ENCODER, notes, start, end, strength, **{"seed": 0, **options})


@pytest.mark.parametrize("strength", [0.1, 0.5, 0.9, 1.0])
def test_the_strength_is_the_share_of_notes_that_go(strength):
    in_passage = (PIECE.onset_sec >= 2) & (PIECE.onset_sec < 6)
    for result in vary(strength=strength, num_samples=2):
        kept = result.kept.table.tolist()
        assert len(kept) == len(PIECE) - max(round(strength * in_passage.sum()), 1)
        assert all(row in kept for row in PIECE.table[~in_passage].tolist())
        assert result.new.onset_sec.min() >= 2 - 2e-3 and result.new.onset_sec.max() < 6
        assert_whole(result, np.array(kept, dtype=NOTE_DTYPE))


def test_strength_0_leaves_all_as_it_is():
    result = vary(strength=0)[0]
    assert result.notes == PIECE and len(result.new) == 0


def test_variations_differ_and_the_seed_decides():
    first, second = vary(num_samples=2)
    assert first.notes == vary()[0].notes != second.notes
    assert vary(start=None, end=None, bars=(2, 3))[0].notes == first.notes


def test_a_variation_is_asked_to_be_like_what_goes():
    seen = []

    class Spy(pg.NoteTransformerForCausalLM):
        def read(self, cache, rows, is_given, control_ids):
            seen.extend(control_ids[-1:][control_ids[-1:, 0] > 0])  # not what guidance reads
            return super().read(cache, rows, is_given, control_ids)

    torch.manual_seed(0)
    spy = loosened(tiny_model(Spy, 130))
    for options in ({}, {"loudness": 100.0}):
        pg.vary_notes(spy, ENCODER, PIECE, 0.0, 8.0, 1.0, 0, **options)
        wished = asked(density=len(PIECE) / PIECE.end_sec, loudness=options.get("loudness", PIECE["velocity"].mean()))
        assert seen[-1][[0, 2]].tolist() == wished.classes()[[0, 2]].tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength": 1.5}, "strength lies between"),
        ({"strength": float("nan")}, "strength lies between"),
        ({"start": 90.0, "end": 99.0}, "is not within"),
        ({"notes": PIECE.where((PIECE.onset_sec < 2) | (PIECE.onset_sec >= 6))}, "nothing to vary"),
    ],
)
def test_what_can_not_be_varied_is_one_line(options, message):
    with pytest.raises(GenerationError, match=message) as error:
        vary(**options)
    assert "\n" not in str(error.value)


# From a place within a piece, to its end ------------------------------------------------------------------------------


def test_music_goes_on_from_a_bar_and_what_rings_on_stays():
    ringing = np.append(PIECE.table, PIECE.table[:1])
    ringing["duration_tick"][-1], ringing["pitch"][-1] = 9999, 30
    prompt = replace(PIECE, table=ringing)
    result = continue_(prompt, from_bar=3)[0]
    kept = prompt.table[prompt.onset_sec < 4]
    assert_whole(result, kept)
    assert result.kept.table.tolist() == kept.tolist() and result.prompt_end_sec == 4.0
    assert result.new.onset_sec.min() >= 4.0 - 1e-3 and 30 not in result.new["pitch"]
    assert result.notes == continue_(prompt, start_sec=4.0)[0].notes


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"from_bar": 1}, "no notes before"),
        ({"from_bar": 99}, "not within"),
        ({"start_sec": 99.0}, "not within"),
        ({"start_sec": float("nan")}, "not within"),
        ({"start_sec": 1.0, "from_bar": 2}, "by seconds or by a bar"),
        ({"prompt": None, "from_bar": 2}, "to continue a prompt"),
    ],
)
def test_a_place_to_go_on_from_must_lie_in_the_prompt(options, message):
    with pytest.raises(GenerationError, match=message):
        continue_(**options)


def test_a_piece_is_extended_by_eight_bars_and_ended_within_four_unless_it_is_said():
    longer = pg.extend_notes(MODEL, ENCODER, PIECE, seed=0)[0]
    assert longer.notes == continue_(bars=8)[0].notes
    model = make_model(end=8.0)
    for options, seconds in (({}, 8.0), ({"bars": 2}, 4.0), ({"seconds": 5.0}, 5.0)):
        result = pg.end_notes(model, ENCODER, PIECE, seed=1, **options)[0]
        assert 0.85 * seconds <= result.new.onset_sec.max() - result.prompt_end_sec <= 1.15 * seconds


def test_an_accompaniment_may_be_written_to_a_passage_alone():
    result = accompany(some_notes(num_notes=24, pitches=(58, 66)), bars=(2, 3))[0]
    assert result.new.onset_sec.min() >= 2 - 2e-3 and result.new.end_sec <= 6 + 2e-3
    assert result.prompt_end_sec == 2.0


def test_a_sample_that_stays_short_is_written_again_and_the_longest_counts():
    model = make_model(end=8.0)
    until, shares = Until(0.0, 8.0, 0.5), []
    stream = {"past": np.zeros((0, 4)), "given": np.zeros((0, 4))}
    three = Samples(model, 3, 1).write(until, **stream)
    assert len({len(rows) for rows in three}) > 1
    (again,) = Samples(model, 1, 1, shares.append).write(until, fewest=10_000, **stream)
    assert np.array_equal(again, max(three, key=len))
    assert shares == sorted(shares) and shares[-1] == 1.0
    (enough,) = Samples(model, 1, 1).write(until, fewest=1, **stream)
    assert np.array_equal(enough, three[0])


def test_a_variation_in_which_only_a_few_notes_come_is_written_again(monkeypatch):
    model = make_model(end=8.0)

    def vary(**options):
        return [len(pg.vary_notes(model, ENCODER, PIECE, 0.0, 8.0, seed=seed, **options)[0].new) for seed in range(6)]

    again = vary()
    monkeypatch.setattr("pianogen_hf.generation.varying._FEWEST", 0.0)
    once = vary()
    assert all(each >= before for each, before in zip(again, once, strict=True)) and sum(again) > sum(once)
