"""A stream of notes: what it writes does not depend on how often its window is read, and keeps to what is allowed."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from models_and_tokenizers import loosened, tiny_model
from transformers import DynamicCache

from pianogen_hf.generation.new_notes import GenerationError
from pianogen_hf.generation.note_stream import ONSET, Controls, NoteStream, guided, written_until
from pianogen_hf.generation.processors import beside, not_sounding, pitches_within, warped
from pianogen_hf.models.modeling_note_transformer import (
    DURATION,
    END_CLASS,
    PITCH,
    TIME_SHIFT,
    VELOCITY,
    NoteTransformerForCausalLM,
)
from pianogen_hf.models.note_controls import CONTROLS, DENSITY, GAP_LEFT, KEY, LOUDNESS, SECONDS_LEFT, key_class

EMPTY = np.zeros((0, 4))


def make_model(context: int = 128, hurry: float = 4.0) -> NoteTransformerForCausalLM:
    """A model whose time shifts are mostly short."""
    torch.manual_seed(0)
    model = loosened(tiny_model(NoteTransformerForCausalLM, 130, num_recent_offsets=4))
    model.config.max_position_embeddings = context
    with torch.no_grad():
        model.heads.time_shift_head.fc2.bias[:50] += hurry
    return model


@pytest.fixture(scope="module")
def model() -> NoteTransformerForCausalLM:
    return make_model()


def some_given(number: int, seed: int = 0, first_sec: float = 0.5, pitches=(60, 90)) -> np.ndarray:
    random = np.random.default_rng(seed)
    onset = first_sec + np.cumsum(random.choice([0.0, 0.17, 0.5], number))
    rows = np.stack([onset, random.integers(*pitches, number), np.full(number, 70), np.full(number, 0.4)], axis=1)
    return rows[np.lexsort([rows[:, PITCH], rows[:, ONSET]])]


def stream_of(model, past=EMPTY, given=EMPTY, seed=0, **settings) -> NoteStream:
    return NoteStream(model, past, given, generator=torch.Generator().manual_seed(seed), **settings)


def write(stream: NoteStream, number: int) -> np.ndarray:
    for _ in range(number):
        assert stream.write(may_end=False) is not None
    return np.array(stream.written)


# What the model is shown ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lookahead_sec", [0.0, 0.4, math.inf])
@pytest.mark.parametrize("past", [EMPTY, some_given(12, 5, 0.0)])
def test_a_window_read_anew_before_every_note_gives_the_same_notes(model, lookahead_sec, past):
    """Rows that are met one by one stand in the order in which training shows them."""
    begin = past[-1, ONSET] if len(past) else 0.0
    settings = {"given": some_given(20, first_sec=begin + 0.3), "lookahead_sec": lookahead_sec, "begin_sec": begin}
    cached, forgetful = (stream_of(model, past, **settings) for _ in range(2))
    for _ in range(25):
        forgetful._cache = None
        assert np.array_equal(cached.write(False), forgetful.write(False))
    assert cached.clock > 2


@pytest.mark.parametrize("lookahead_sec", [0.0, 0.3, 2.0])
def test_a_note_is_predicted_with_the_help_of_all_that_is_in_sight_when_it_begins(model, lookahead_sec):
    given = some_given(30)
    stream, drawn, seen = stream_of(model, given=given, lookahead_sec=lookahead_sec), NoteStream._drawn, []

    def spy(*arguments):
        note = drawn(stream, *arguments)
        seen.append((note[ONSET], stream._seen_until))
        return note

    stream._drawn = spy
    notes = write(stream, 20)
    assert len(seen) > 25  # some were drawn anew
    for note in notes:
        helped = max(until for onset, until in seen if onset == note[ONSET])
        assert helped == np.searchsorted(given[:, ONSET] - lookahead_sec, note[ONSET] + 1e-4, side="right")


def test_all_that_is_given_is_seen_from_the_start_without_a_lookahead(model):
    stream = stream_of(model, given=some_given(20))
    rows, is_given, _ = stream._whole_window()
    assert is_given.tolist() == [True] * 20 + [False] and rows[-1, PITCH] == 128


def test_long_pieces_outgrow_the_window_and_the_model_never_sees_more_than_it_holds():
    model = make_model(context=32)
    stream = stream_of(model, some_given(50, 3, 0.0), some_given(100, 4, 25.0), begin_sec=24.0)
    feed, lengths = stream._feed, []

    def spy(*rows):
        feed(*rows)
        lengths.append(stream._length)

    stream._feed = spy
    notes = write(stream, 80)
    assert max(lengths) <= 32 and len(lengths) == 80
    assert (np.diff(notes[:, ONSET]) >= 0).all() and notes[0, ONSET] >= 24.0
    assert stream._seen_until > 10  # and of what is given it has met what lay beside


def test_a_chord_of_all_keys_is_more_than_the_window_and_no_obstacle():
    model = make_model(context=32)
    chord = np.stack([np.zeros(128), np.arange(128), np.full(128, 64), np.ones(128)], axis=1)
    notes = write(stream_of(model, chord, begin_sec=1.0), 5)
    assert (notes[:, ONSET] >= 1.0).all()


def test_notes_given_in_time_while_it_plays_are_as_good_as_notes_given_before():
    model, given = make_model(hurry=9.0), some_given(20)  # no note comes a second after the last
    whole = stream_of(model, given=given, lookahead_sec=0.0)
    live = stream_of(model, given=given[:0], lookahead_sec=0.0)
    for index in range(20):  # a player whose notes are known a second before their time
        while live.clock >= (live.given[-1, ONSET] if len(live.given) else 0) - 1 and len(live.given) < 20:
            live.give(given[len(live.given)][None])
        assert np.array_equal(live.write(False), whole.write(False)), index


def test_a_note_given_too_late_is_heard_from_then_on(model):
    one, other = (stream_of(model, lookahead_sec=0.0) for _ in range(2))
    write(one, 4)
    write(other, 4)
    one.give(np.array([[0.0, 100.0, 120.0, 3.0]]))
    for stream in (one, other):
        stream._read()
    assert np.array_equal(one.written, other.written)
    assert not torch.allclose(one._hidden_states, other._hidden_states, atol=1e-3)


def test_what_is_taken_back_leaves_no_trace(model):
    one, other = (stream_of(model, given=some_given(9)) for _ in range(2))
    write(one, 5)
    write(other, 4)
    one.take_back()
    one.generator, other.generator = torch.Generator().manual_seed(7), torch.Generator().manual_seed(7)
    assert np.array_equal(write(one, 3), write(other, 3))


def test_after_an_end_it_can_go_on(model):
    """A player who asks for more gets it, and the model meets no row twice."""
    one, other = (stream_of(model) for _ in range(2))
    write(one, 3)
    write(other, 3)
    lengths = one._length
    with torch.no_grad():
        bias = model.heads.time_shift_head.fc2.bias
        bias[END_CLASS] += 100
        assert one.write(may_end=True) is None and one.write(may_end=True) is None
        bias[END_CLASS] -= 100
    assert one._length == lengths + 1 and len(one.written) == 3
    one.generator, other.generator = torch.Generator().manual_seed(7), torch.Generator().manual_seed(7)
    assert np.array_equal(one.write(False), other.write(False))


def test_an_end_at_once_is_no_obstacle_either(model):
    stream = stream_of(model)
    stream.processors = (
        lambda column, scores, onset: scores + np.float32(1000) * (np.arange(len(scores)) == END_CLASS),
    )
    assert stream.write(may_end=True) is None and stream.write(may_end=True) is None


def test_a_window_from_scratch_holds_the_same_rows_as_the_cache(model):
    stream = stream_of(model, some_given(9, 2, 0.0), some_given(9, first_sec=6.0), begin_sec=5.0)
    write(stream, 6)
    stream._read()
    cached = stream._hidden_states
    rows, is_given, clock = stream._whole_window()
    stream._cache = DynamicCache(config=model.config)
    stream._feed(rows, is_given, clock)
    torch.testing.assert_close(stream._hidden_states, cached, atol=1e-4, rtol=1e-4)


# What it may write ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("begin_sec", [0.0, 0.013, 3.217, 20.999, 41.5, 90.0])
def test_no_note_begins_too_early(model, begin_sec):
    """Far ahead classes of time shifts are as wide as a third of a second."""
    for seed in range(5):
        notes = write(stream_of(model, some_given(1, first_sec=0.0), begin_sec=begin_sec, seed=seed), 3)
        assert notes[0, ONSET] >= begin_sec - 1e-9
        assert np.allclose(notes[:, ONSET] * 100, np.rint(notes[:, ONSET] * 100))


@pytest.mark.parametrize(("begin_sec", "before_sec"), [(0.0, 0.01), (2.0, 2.05), (20.0, 20.1), (33.333, 33.35)])
def test_a_note_can_be_held_to_a_narrow_place(model, begin_sec, before_sec):
    for seed in range(5):
        note = stream_of(model, begin_sec=begin_sec, seed=seed).write(False, before_sec)
        assert note is not None and begin_sec <= note[ONSET] < before_sec


def test_where_there_is_no_step_of_the_grid_there_is_no_note(model):
    assert stream_of(model, begin_sec=2.001).write(False, 2.009) is None


def test_chords_go_upwards_and_stop_at_the_highest_key():
    model = make_model(hurry=0.0)
    with torch.no_grad():
        model.heads.time_shift_head.fc2.bias[0] += 8
    notes = write(stream_of(model), 50)
    chord = np.diff(notes[:, ONSET]) == 0
    assert chord.sum() > 25 and (np.diff(notes[:, PITCH])[chord] > 0).all()


def test_until_a_second_comes_what_begins_before_it_and_at_least_one_note(model):
    for end_sec in (0.01, 0.5, 3.0):
        stream = stream_of(model)
        notes = list(written_until(stream, end_sec))
        assert notes and all(note[ONSET] < end_sec for note in notes)
        assert np.array_equal(notes, stream.written)
    assert len(list(written_until(stream_of(model), math.inf, num_notes=7))) == 7


def test_it_ends_no_earlier_than_it_may():
    model = make_model()
    with torch.no_grad():
        model.heads.time_shift_head.fc2.bias[END_CLASS] += 20
    stream = stream_of(model)
    notes = list(written_until(stream, 50.0, may_end_sec=2.0))
    assert notes[-1][ONSET] >= 2.0 and all(note[ONSET] < 2.0 for note in notes[:-1])


# Processors -----------------------------------------------------------------------------------------------------------


def test_at_temperature_zero_chance_has_no_say(model):
    one, other = (stream_of(model, seed=seed, processors=(warped(0.0),)) for seed in (1, 2))
    assert np.array_equal(write(one, 12), write(other, 12))


def test_a_nucleus_leaves_the_likeliest(model):
    probabilities = np.array([0.5, 0.3, 0.15, 0.05], np.float32)
    scores = np.log(probabilities)
    assert np.isfinite(warped(top_p=0.7)(VELOCITY, scores, 0.0)).tolist() == [True, True, False, False]
    cooler = np.exp(warped(temperature=0.5)(VELOCITY, scores, 0.0))
    np.testing.assert_allclose(cooler / cooler.sum(), probabilities**2 / (probabilities**2).sum(), rtol=1e-5)
    greedy, nucleus = stream_of(model, processors=(warped(0.0),)), stream_of(model, processors=(warped(top_p=1e-6),))
    assert np.array_equal(write(greedy, 6), write(nucleus, 6))


@pytest.mark.parametrize("wrong", [{"temperature": -1}, {"temperature": math.inf}, {"top_p": 0}, {"top_p": 1.5}])
def test_settings_out_of_range_are_one_line(wrong):
    with pytest.raises(GenerationError, match="temperature must") as caught:
        warped(**wrong)
    assert "\n" not in str(caught.value)


def test_pitches_can_be_held_within_bounds(model):
    notes = write(stream_of(model, processors=(pitches_within(40, 44), warped(0.0))), 20)
    assert set(notes[:, PITCH]) <= {40, 41, 42, 43, 44}


def sounding(given: np.ndarray, onset: float) -> np.ndarray:
    return given[(given[:, ONSET] <= onset + 1e-6) & (given[:, ONSET] + given[:, DURATION] > onset + 1e-6)]


@pytest.mark.parametrize("side", ["below", "above"])
@pytest.mark.parametrize("options", [{}, {"top_p": 0.5}, {"temperature": 0.0}])
def test_beside_is_below_or_above_all_that_sounds(side, options):
    """Also where the likeliest keys lie elsewhere, or a chord has climbed to the given notes."""
    model = make_model(hurry=7.0)
    with torch.no_grad():
        model.heads.time_shift_head.fc2.bias[0] += 3
    given = some_given(40, first_sec=0.0, pitches=(55, 65))
    given[:, DURATION] = 30.0  # so that some of them sound whenever a note is written
    notes = write(stream_of(model, given=given, processors=(beside(given, side), warped(**options))), 25)
    heard = [(note, sounding(given, note[ONSET])) for note in notes]
    assert sum(len(rows) > 0 for _, rows in heard) > 1
    for note, rows in heard:
        pitches = rows[:, PITCH]
        assert (pitches > note[PITCH]).all() if side == "below" else (pitches < note[PITCH]).all()


def test_a_key_that_is_held_is_not_struck(model):
    held = np.stack([np.zeros(100), np.arange(100), np.full(100, 64), np.full(100, 2.0)], axis=1)
    notes = write(stream_of(model, processors=(not_sounding(held),), seed=2), 30)
    early = notes[:, ONSET] < 2.0
    assert early.any() and not early.all()
    assert (notes[early, PITCH] >= 100).all() and notes[~early, PITCH].min() < 100


def test_where_no_key_is_left_another_time_is_drawn(model):
    held = np.stack([np.zeros(128), np.arange(128), np.full(128, 64), np.full(128, 0.25)], axis=1)
    for seed in range(5):
        note = stream_of(model, processors=(not_sounding(held),), seed=seed).write(False)
        assert note is not None and note[ONSET] >= 0.25
    forever = held + np.array([0, 0, 0, 1e9])
    assert stream_of(model, processors=(not_sounding(forever),)).write(False) is None


def test_processors_are_asked_about_every_field_in_order_and_told_the_onset(model):
    asked = []

    def spy(column, scores, onset):
        asked.append((column, onset))
        return scores

    notes = write(stream_of(model, processors=(spy,), begin_sec=7.3), 2)
    assert [column for column, _ in asked] == [TIME_SHIFT, PITCH, VELOCITY, DURATION] * 2
    onsets = np.array([onset for _, onset in asked])
    assert np.allclose(onsets, [0, *[notes[0, ONSET]] * 4, *[notes[1, ONSET]] * 3])


# Controls -------------------------------------------------------------------------------------------------------------


def test_controls_of_the_past_are_what_it_was_like_and_the_rest_what_is_asked(model):
    past = some_given(20, 3, 0.0)
    stream = stream_of(model, past, begin_sec=past[-1, ONSET] + 1, controls=Controls(loudness=20.0))
    clock = np.array([0.0, past[-1, ONSET], past[-1, ONSET] + 3])
    ids = stream._control_ids(clock, stream.controls)
    assert ids[:, LOUDNESS].tolist() == [1 + 70 // 5, 1 + 20 // 5, 1 + 20 // 5]
    assert not ids[:, [DENSITY, KEY]].any()  # what is not asked is not told of the past either


def test_times_that_are_left_run_down():
    ids = Controls(density=4.0, end_sec=8.0, gap_end_sec=4.0).at(np.array([0.0, 4.0, 7.0, 9.0]))
    assert ids.shape == (4, len(CONTROLS))
    assert ids[:, SECONDS_LEFT].tolist() == [25, 21, 13, 1] and ids[:, GAP_LEFT].tolist() == [21, 1, 1, 1]
    assert len(set(ids[:, DENSITY])) == 1 and not Controls().at(np.zeros(3)).any()


def test_controls_change_what_is_written(model):
    one, other = (stream_of(model, controls=Controls(kind=kind)) for kind in (1, 3))
    assert not np.array_equal(write(one, 12), write(other, 12))


@pytest.mark.parametrize(("tonic", "is_minor", "scale"), [(9, False, {9, 11, 1, 2, 4, 6, 8}), (0, True, {0, 3, 7, 8})])
def test_pitches_of_a_key_that_is_asked_for_become_likelier_in_every_octave(model, tonic, is_minor, scale):
    stream = stream_of(model, controls=Controls(key=key_class(tonic, is_minor)))
    added = stream._toward_key(PITCH, np.zeros(128, np.float32), 0.0)
    by_class = added[:120].reshape(10, 12)
    assert (by_class == by_class[0]).all() and added.max() == 0 and added.dtype == np.float32
    outside = set(range(12)) - scale - {(tonic + step) % 12 for step in (2, 5, 9, 10, 11)}
    assert min(by_class[0, list(scale)]) > max(by_class[0, list(outside)])
    assert not stream._toward_key(VELOCITY, np.zeros(128, np.float32), 0.0).any()
    stream.controls = Controls(density=3.0)
    assert not stream._toward_key(PITCH, np.zeros(128, np.float32), 0.0).any()


# What is asked with more or less weight -------------------------------------------------------------------------------


def test_guidance_extrapolates_from_the_free_logits_and_keeps_what_is_impossible():
    asked, free = np.array([1.0, 2.0, -np.inf, 0.0], np.float32), np.array([0.0, 3.0, 1.0, -np.inf], np.float32)
    assert guided(asked, free, 3.0).tolist() == [3.0, 0.0, -np.inf, -np.inf]
    assert guided(asked, free, 0.0).tolist()[:2] == free.tolist()[:2]


def test_a_scale_of_0_writes_as_if_nothing_were_asked_and_one_of_1_as_the_model_does():
    model = make_model()
    with torch.no_grad():
        model.model.embeddings.embed_controls.weight.normal_()
    asked = Controls(density=8.0, loudness=100.0, end_sec=60.0)

    def written(controls: Controls) -> np.ndarray:
        return write(stream_of(model, some_given(12, 5, 0.0), controls=controls), 20)

    free, plain = written(asked.without_guided()), written(asked)
    assert np.array_equal(written(replace(asked, guidance_scale=0.0)), free)
    assert not np.array_equal(plain, free)
    np.testing.assert_array_equal(written(replace(asked, guidance_scale=1.0)), plain)
    assert not np.array_equal(written(replace(asked, guidance_scale=3.0)), plain)
