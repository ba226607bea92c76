"""Chords: read from text, found in music, asked of new notes; and the rules of scale and range beside them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from models_and_tokenizers import loosened, some_notes, tiny_model

import pianogen_hf as pg
from pianogen_hf.generation.chords import Chord, chord_named, chords_named, chords_of
from pianogen_hf.generation.new_notes import GenerationError
from pianogen_hf.generation.rules import PitchesLogitsProcessor, pitch_rules, scale_of, token_rules
from pianogen_hf.models.note_controls import PITCH_NAMES, key_class
from pianogen_hf.tokenizers.notes import NOTE_DTYPE, TIME_SIGNATURE_DTYPE


def classes(chord):
    return np.flatnonzero(chord.pitch_classes).tolist()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("C", [0, 4, 7]),
        ("Cm7", [0, 3, 7, 10]),
        ("F#dim", [0, 6, 9]),
        ("Bb7", [2, 5, 8, 10]),
        ("G/B", [2, 7, 11]),
        ("Am/F", [0, 4, 5, 9]),
        ("Dmin", [2, 5, 9]),
        ("EbM7", [2, 3, 7, 10]),
        ("Bø", [2, 5, 9, 11]),
        ("E+", [0, 4, 8]),
        ("Cb", [3, 6, 11]),
    ],
)
def test_chords_are_read_by_their_symbols(name, expected):
    assert classes(chord_named(name)) == expected


def test_no_chord_is_a_chord_too():
    assert chord_named("N.C.") is None


@given(st.sampled_from([*range(12)]), st.sampled_from(["", "m", "7", "maj7", "dim7", "9"]))
def test_a_symbol_that_was_written_is_read_again(root, quality):
    chord = Chord(root, quality)
    assert chord_named(str(chord)) == chord


@pytest.mark.parametrize("name", ["H", "c", "C7x", "", "Cm7/H", "C//G", "m7", "CC"])
def test_what_is_no_chord_is_refused_in_one_line(name):
    with pytest.raises(GenerationError, match="is no chord"):
        chord_named(name)


def test_the_chords_of_a_bar_share_it_and_the_track_begins_again():
    track = chords_named("Cm7 | Fm7 G7 | % | N.C.", quarters_per_bar=3)
    assert track.start_quarter.tolist() == [0, 3, 4.5, 6, 9] and track.num_quarters == 12
    names = {quarter: str(track.at(quarter)) for quarter in (0, 2.9, 3, 4.5, 8.9, 9, 12, 16.5, -1)}
    assert names == {
        0: "Cm7",
        2.9: "Cm7",
        3: "Fm7",
        4.5: "G7",
        8.9: "G7",
        9: "None",
        12: "Cm7",
        16.5: "G7",
        -1: "None",
    }


def music(*chords, notes_of=lambda pitches: [pitches]):
    """A bar of four quarters for each chord: what `notes_of` makes of its pitches, again and again."""
    rows = []
    for bar, name in enumerate(chords):
        pitches = [48 + each for each in np.flatnonzero(chord_named(name).pitch_classes)]
        groups = notes_of(sorted(pitches, key=lambda pitch: (pitch - chord_named(name).root) % 12))
        for index in range(4):
            rows += [(4 * bar + index, pitch) for pitch in groups[index % len(groups)]]
    quarter, pitch = np.array(rows).T
    return pg.Notes.from_columns(480, onset_tick=quarter * 480, duration_tick=np.full(len(rows), 480), pitch=pitch)


def found(notes):
    return str(chords_of(notes))


def test_chords_are_found_in_block_chords():
    assert found(music("C", "F", "G7", "Am", "Dm7", "Bdim", "Cmaj7")) == "C F G7 Am Dm7 Bdim Cmaj7"


def test_chords_are_found_in_broken_chords():
    assert found(music("C", "Am", "F", "G", notes_of=lambda pitches: [[each] for each in pitches])) == "C Am F G"


def test_a_passing_note_makes_no_chord():
    plain = music("C", "F")
    table = np.zeros(1, NOTE_DTYPE)
    table["onset_tick"], table["duration_tick"], table["pitch"], table["velocity"] = 720, 120, 74, 64
    assert found(replace(plain, table=np.concatenate([plain.table, table]))) == "C F"


def test_chords_of_nothing_are_refused():
    with pytest.raises(GenerationError, match="without notes"):
        chords_of(pg.Notes(np.zeros(0, NOTE_DTYPE)))


# Asked of new notes ---------------------------------------------------------------------------------------------------

ENCODER = pg.ContinuousNotesFeatureExtractor()


@pytest.fixture(scope="module")
def model():
    """One that takes all pitches for nearly equally likely, and writes several notes a second."""
    torch.manual_seed(0)
    model = tiny_model(pg.NoteTransformerForCausalLM, 130)
    with torch.no_grad():
        model.heads.time_shift_head.fc2.bias[10:30] += 8
    return model


def share_on_chords(new, names, start_sec, bar_sec=2.0):
    """Of notes from `start_sec` on, with a chord for each bar: the share that belongs to its chord."""
    chords = [chord_named(name) for name in names]
    bars = ((new.onset_sec - start_sec + 1e-3) // bar_sec).astype(int)
    return np.mean(
        [chords[bar % len(chords)].pitch_classes[pitch % 12] for bar, pitch in zip(bars, new["pitch"], strict=True)]
    )


def test_new_notes_lie_over_the_chords_whatever_the_verb(model):
    piece, names = some_notes(num_notes=40), ["Cm7", "Fm7", "G7"]
    chords = " | ".join(names)
    options = {"seed": 1, "chords": chords}
    for result, start in (
        (pg.continue_notes(model, ENCODER, prompt=piece, seconds=8.0, **options)[0], None),
        (pg.fill_notes(model, ENCODER, piece, 2.0, 6.0, **options)[0], 2.0),
        (pg.vary_notes(model, ENCODER, piece, 2.0, 6.0, 0.9, **options)[0], 2.0),
        (pg.accompany_notes(model, ENCODER, piece, "below", bars=(2, 3), **options)[0], 2.0),
    ):
        share = share_on_chords(result.new, names, result.prompt_end_sec if start is None else start)
        assert len(result.new) > 10 and share > 0.8, share
    plain = pg.continue_notes(model, ENCODER, prompt=piece, seconds=8.0, seed=0)[0]
    assert share_on_chords(plain.new, names, plain.prompt_end_sec) < 0.7


def test_chords_of_the_prompt_go_on_behind_it_and_stay_in_a_gap(model):
    prompt = music("C", "F", "G", "C")
    result = pg.continue_notes(model, ENCODER, prompt=prompt, seconds=8.0, seed=0, chords="prompt")[0]
    assert share_on_chords(result.new, ["C", "F", "G", "C"], result.prompt_end_sec) > 0.8
    filled = pg.fill_notes(model, ENCODER, prompt, bars=(2, 3), seed=0, chords="prompt")[0]
    assert share_on_chords(filled.new, ["F", "G"], 2.0) > 0.8


def test_chords_follow_the_metre_of_the_piece():
    signature = np.array([(0, 3, 4)], TIME_SIGNATURE_DTYPE)
    process = pitch_rules(replace(some_notes(), time_signatures=signature), 0.0, chords="C | F#")[0]
    scores = np.zeros(128, dtype=np.float32)
    assert process(1, scores, 1.4)[[60, 66]].tolist() == [0, -4]
    assert process(1, scores, 1.5)[[60, 66]].tolist() == [-4, 0]  # after three quarters of half a second
    assert process(0, scores, 1.5) is scores


def test_a_chorale_model_harmonises_over_chords():
    tokenizer = pg.JSBTokenizer()
    torch.manual_seed(0)
    model = loosened(tiny_model(pg.ChoraleTransformerForCausalLM, len(tokenizer)))
    melody = music("C", "G", notes_of=lambda pitches: [pitches[-1:]]).transposed(12)
    result = pg.harmonise_notes(model, tokenizer, melody, seed=0, num_particles=1, chords="C | G")[0]
    assert share_on_chords(result.new, ["C", "G"], 0.0) > 0.85


# Scales and ranges ----------------------------------------------------------------------------------------------------


def test_a_scale_is_that_of_its_key():
    def names(key):
        return [PITCH_NAMES[each] for each in np.flatnonzero(scale_of(key)[:12])]

    assert names(key_class(0, False)) == ["C", "D", "E", "F", "G", "A", "B"]
    assert names(key_class(9, True)) == ["C", "D", "E", "F", "F#", "G", "Ab", "A", "B"]


@pytest.mark.parametrize(
    "tokenizer_class", [pg.PerformanceTokenizer, pg.RemiTokenizer, pg.JSBTokenizer], ids=lambda each: each.__name__
)
def test_tokens_of_other_pitches_are_forbidden_and_all_else_stays(tokenizer_class):
    tokenizer = tokenizer_class()
    rule = token_rules(tokenizer, key=key_class(0, False), register=66.0, pitches=(60, 100))[0]
    left = rule(torch.zeros(1, 0, dtype=torch.long), torch.zeros(1, len(tokenizer) + 3))[0].isfinite()
    names = np.array([*tokenizer.convert_ids_to_tokens(list(range(len(tokenizer)))), "x", "x", "x"])
    gone = {name.rsplit("_", 1)[-1].lstrip("P") for name in names[~left.numpy()]}
    low, high = tokenizer.pitch_range
    wanted = {str(p) for p in range(low, high + 1) if not (60 <= p <= 78 and p % 12 in (0, 2, 4, 5, 7, 9, 11))}
    assert gone == wanted
    assert token_rules(tokenizer) == []


def test_where_nothing_else_is_left_a_rule_gives_way():
    tokenizer = pg.JSBTokenizer()
    scores = torch.full((1, len(tokenizer)), -torch.inf)
    scores[0, tokenizer.convert_tokens_to_ids("P61")] = 0.0
    rule = PitchesLogitsProcessor(tokenizer, scale_of(key_class(0, False)))
    assert torch.equal(rule(torch.zeros(1, 0, dtype=torch.long), scores), scores)


@pytest.mark.parametrize(
    ("options", "message"),
    [({"register": 1.0}, "no pitch is left"), ({"pitches": (70, 60)}, "a lowest and a highest one")],
)
def test_rules_that_leave_nothing_are_refused(options, message):
    with pytest.raises(GenerationError, match=message):
        token_rules(pg.PerformanceTokenizer(), **options)


def test_tokens_without_pitches_have_no_rules():
    with pytest.raises(GenerationError, match="has no tokens of pitches"):
        token_rules(pg.CrayKHTokenizer(), key=1)
