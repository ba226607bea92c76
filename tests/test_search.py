"""Search: each processor on hand-made logits, with values worked out by hand; the same for tokens and for fields."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models_and_tokenizers import TOKENIZERS, loosened, some_notes, tiny_model

import pianogen_hf as pg
from pianogen_hf.generation.new_notes import GenerationError
from pianogen_hf.generation.note_beam import Until, beam_search
from pianogen_hf.generation.note_stream import NoteStream
from pianogen_hf.generation.search import (
    KINDS,
    CreativityLogitsProcessor,
    KindTemperatureLogitsProcessor,
    KindTopKLogitsProcessor,
    MaskPLogitsProcessor,
    OffsetLogitsProcessor,
    Search,
    field_processors,
    search_of,
    token_kinds,
    token_processors,
)
from pianogen_hf.models.modeling_note_transformer import DURATION, END_CLASS, PITCH, TIME_SHIFT, VELOCITY

NO_IDS = torch.zeros(1, 0, dtype=torch.long)
TIME, NOTE, LENGTH = KINDS.index("time"), KINDS.index("pitch"), KINDS.index("duration")


def logits(*probabilities):
    return torch.tensor([probabilities], dtype=torch.float64).log().float()


def after(processor, scores):
    """Probabilities after a processor, to 6 places."""
    return [round(each, 6) for each in processor(NO_IDS, scores.clone())[0].double().softmax(-1).tolist()]


# Creativity -----------------------------------------------------------------------------------------------------------

IS_REST = np.array([True, False, False, True])


@pytest.mark.parametrize(
    ("creativity", "expected"),
    [
        (0.0, [0.4, 0.1, 0.3, 0.2]),
        (0.5, [0.2, 0.175, 0.525, 0.1]),  # rests halve, and what they lose goes to the others as 1 to 3
        (1.0, [0.0, 0.25, 0.75, 0.0]),
    ],
)
@pytest.mark.parametrize("shift", [-7.0, 0.0, 7.0], ids=["negative logits", "log-probabilities", "positive logits"])
def test_creativity_is_a_share_of_the_probability_of_rests(creativity, expected, shift):
    scores = logits(0.4, 0.1, 0.3, 0.2) + shift
    assert after(CreativityLogitsProcessor(IS_REST, creativity), scores) == pytest.approx(expected, abs=1e-6)


@settings(max_examples=50)
@given(st.lists(st.floats(-30, 30), min_size=4, max_size=4), st.floats(0, 1), st.floats(0, 1))
def test_more_creativity_never_gives_more_rests(values, one, other):
    scores = torch.tensor([values])
    shares = [
        CreativityLogitsProcessor(IS_REST, each)(NO_IDS, scores)[0].double().softmax(-1)[[0, 3]].sum().item()
        for each in sorted((one, other))
    ]
    assert shares[1] <= shares[0] + 1e-6


def test_rests_stay_where_nothing_else_is_allowed():
    scores = torch.tensor([[0.0, -math.inf, -math.inf, -1.0]])
    assert torch.equal(CreativityLogitsProcessor(IS_REST, 1.0)(NO_IDS, scores), scores)


# Kinds ----------------------------------------------------------------------------------------------------------------

OF_KIND = np.array([NOTE, NOTE, NOTE, LENGTH, LENGTH, -1])


def test_every_kind_keeps_its_own_likeliest():
    scores = logits(0.1, 0.3, 0.2, 0.25, 0.1, 0.05)
    processor = KindTopKLogitsProcessor(OF_KIND, {"pitch": 2, "duration": 1})
    assert processor(NO_IDS, scores)[0].isfinite().tolist() == [False, True, True, True, False, True]


def test_top_k_of_a_kind_that_is_not_allowed_changes_nothing():
    scores = torch.tensor([[1.0, 2.0, 3.0, -math.inf, -math.inf, -math.inf]])
    assert torch.equal(KindTopKLogitsProcessor(OF_KIND, {"duration": 1})(NO_IDS, scores), scores)


def test_a_temperature_of_a_kind_leaves_the_share_of_the_kind():
    scores = logits(0.1, 0.3, 0.0, 0.5, 0.1, 0.0)
    # Of pitches, 1 to 3 becomes 1 to 9 at temperature 0.5, and they stay 0.4 together.
    expected = [0.04, 0.36, 0.0, 0.5, 0.1, 0.0]
    assert after(KindTemperatureLogitsProcessor(OF_KIND, {"pitch": 0.5}), scores + 3) == pytest.approx(expected)


@pytest.mark.parametrize("tokenizer_class", TOKENIZERS)
def test_all_that_writes_a_note_has_a_kind(tokenizer_class):
    tokenizer = tokenizer_class()
    kinds = token_kinds(tokenizer)
    assert (kinds[: tokenizer.num_special] == -1).all() and len(kinds) == len(tokenizer)
    present = set(kinds[tokenizer.encode_notes(some_notes())].tolist())
    if tokenizer_class in (pg.PerformanceTokenizer, pg.RemiTokenizer):
        assert present == {0, 1, 2, 3}
    elif tokenizer_class is pg.CrayKHTokenizer:  # a character is a key and what happens to it
        assert present == {-1, TIME}
    else:
        assert present >= {NOTE, TIME}


# What leaves out the likeliest ----------------------------------------------------------------------------------------


def test_an_offset_leaves_out_the_likeliest_of_what_is_allowed():
    scores = logits(0.4, 0.0, 0.3, 0.2, 0.1)
    assert OffsetLogitsProcessor(2)(NO_IDS, scores)[0].isfinite().tolist() == [False, False, False, True, True]
    assert OffsetLogitsProcessor(9)(NO_IDS, scores)[0].isfinite().tolist() == [False, False, False, False, True]
    assert torch.equal(OffsetLogitsProcessor(0)(NO_IDS, scores), scores)


def test_an_offset_does_not_leave_out_the_end_twice_in_a_row():
    scores, processor = logits(0.5, 0.3, 0.2), OffsetLogitsProcessor(1, eos_token_id=0)
    lost = [not processor(NO_IDS, scores)[0, 0].isfinite() for _ in range(4)]
    assert lost == [True, False, True, False]


@pytest.mark.parametrize(
    ("mask_p", "stays"),
    [
        (0.0, [True, True, True, False]),
        (0.49, [True, True, True, False]),
        (0.5, [True, False, True, False]),
        (0.7, [True, False, True, False]),
        (0.8, [True, False, False, False]),
        (1.0, [True, False, False, False]),  # one stays
    ],
)
def test_the_likeliest_are_left_out_as_far_as_a_probability_goes(mask_p, stays):
    scores = logits(0.2, 0.5, 0.3, 0.0)
    assert MaskPLogitsProcessor(mask_p)(NO_IDS, scores)[0].isfinite().tolist() == stays


# Options --------------------------------------------------------------------------------------------------------------

TOKENIZER = pg.PerformanceTokenizer()


def survivors(options, scores):
    """Which tokens may be drawn: after our processors and those that transformers makes of what is handed on."""
    chosen, rest = token_processors(TOKENIZER, {"do_sample": True, **options})
    scores = chosen(NO_IDS, scores)
    known = {name: value for name, value in rest.items() if name in Search.__dataclass_fields__}
    return Search(**known).warpers()(NO_IDS, scores)[0].isfinite().nonzero()[:, 0].tolist()


RANKED = torch.linspace(5, 0, len(TOKENIZER))[None]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"top_k": 3}, [0, 1, 2]),
        ({"top_k": 3, "top_k_offset": 2}, [2]),  # ranks from offset to k
        ({"top_k": 3, "mask_k": 2}, [2]),
        ({"top_k": 3, "mask_k": 1}, [1, 2]),
        ({"top_k": 3, "mask_p": 0.4}, [1, 2]),  # about a third each
    ],
)
def test_own_options_go_together_with_those_of_transformers(options, expected):
    assert survivors(options, RANKED) == expected


def field_of(options, column, scores):
    scores = np.array(scores, dtype=np.float32)
    for process in field_processors(Search(**options)):
        scores = process(column, scores, 0.0)
    return np.isfinite(scores).tolist()


@pytest.mark.parametrize(
    ("options", "column", "stays"),
    [
        ({}, PITCH, [1, 1, 1, 1]),
        ({"temperature": 0}, VELOCITY, [0, 1, 0, 0]),
        ({"do_sample": False}, VELOCITY, [0, 1, 0, 0]),
        ({"top_k": 2}, VELOCITY, [0, 1, 1, 0]),
        ({"top_k_notes": 1}, PITCH, [0, 1, 0, 0]),
        ({"top_k_notes": 1}, DURATION, [1, 1, 1, 1]),
        ({"top_k_durations": 1}, DURATION, [0, 1, 0, 0]),
        ({"top_k_of": {"velocity": 3}}, VELOCITY, [1, 1, 1, 0]),
        ({"top_k_offset": 1}, PITCH, [1, 0, 1, 1]),
        ({"top_k_offset": 1}, VELOCITY, [1, 1, 1, 1]),
        ({"top_k": 2, "top_k_offset": 1}, PITCH, [0, 0, 1, 0]),
        ({"top_k": 3, "mask_k": 1}, PITCH, [1, 0, 1, 0]),
        ({"mask_p": 0.45}, PITCH, [1, 0, 1, 1]),
        ({"mask_k": 1, "temperature": 0}, PITCH, [0, 0, 1, 0]),
        ({"min_p": 0.6}, PITCH, [0, 1, 1, 0]),
        ({"min_p": 0.5}, PITCH, [1, 1, 1, 0]),
        ({"top_p": 0.5}, PITCH, [0, 1, 1, 0]),
        ({"typical_p": 0.2}, PITCH, [0, 0, 1, 0]),  # 0.3 is nearest to the entropy of 1.28 nats
    ],
)
def test_fields_of_notes_are_searched_alike(options, column, stays):
    assert field_of(options, column, np.log([0.2, 0.4, 0.3, 0.1])) == [bool(each) for each in stays]


def test_creativity_of_notes_is_how_seldom_time_passes():
    scores = np.full(END_CLASS + 1, -np.inf, dtype=np.float32)
    scores[[0, 20, END_CLASS]] = np.log([0.3, 0.6, 0.1])
    for process in field_processors(Search(creativity=0.5)):
        scores = process(TIME_SHIFT, scores, 0.0)
    probabilities = np.exp(scores - scores.max()) / np.exp(scores - scores.max()).sum()
    assert probabilities[[0, 20, END_CLASS]] == pytest.approx([0.525, 0.3, 0.175], abs=1e-6)


def test_a_temperature_of_a_field_is_its_own():
    scores = np.log(np.array([0.25, 0.75], dtype=np.float32))
    process = field_processors(Search(temperature_of={"pitch": 0.5}))[0]
    assert np.exp(np.diff(process(PITCH, scores.copy(), 0.0))) == pytest.approx([9.0], rel=1e-5)
    assert process(VELOCITY, scores, 0.0) is scores


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"creativity": 1.5}, "creativity must be"),
        ({"creativity": float("nan")}, "creativity must be"),
        ({"top_k_offset": -1}, "top_k_offset must be"),
        ({"top_k": 3, "top_k_offset": 3}, "leaves nothing"),
        ({"min_p": 2.0}, "min_p must be"),
        ({"typical_p": 0.0}, "typical_p must be"),
        ({"top_k_of": {"pedal": 3}}, "top_k_of has a number above 0 for time"),
        ({"temperature_of": {"pitch": 0.0}}, "temperature_of has a number above 0"),
        ({"num_beams": 0}, "num_beams must be"),
        ({"no_repeat_ngram_size": 3}, "has no option no_repeat_ngram_size"),
    ],
)
def test_options_that_mean_nothing_are_one_line(options, message):
    with pytest.raises(GenerationError, match=message) as error:
        search_of(object(), options)
    assert "\n" not in str(error.value)


# Through the verbs ----------------------------------------------------------------------------------------------------

ENCODER = pg.ContinuousNotesFeatureExtractor()


def note_model():
    torch.manual_seed(0)
    model = loosened(tiny_model(pg.NoteTransformerForCausalLM, 130, num_recent_offsets=0))
    with torch.no_grad():
        model.heads.time_shift_head.fc2.bias[:60] += 5
    return model


MODEL = note_model()


@pytest.mark.parametrize(
    "options",
    [
        {"creativity": 0.9},
        {"top_k_notes": 4, "top_k_durations": 3},
        {"top_k_offset": 60},
        {"min_p": 0.3},
        {"typical_p": 0.5},
        {"mask_k": 1, "mask_p": 0.2, "top_k": 5},
        {"temperature_of": {"pitch": 0.1}},
        {"temperature": 0},
    ],
)
def test_every_search_writes_music_with_tokens_and_with_notes_and_changes_it(options):
    torch.manual_seed(0)
    tokens = loosened(tiny_model(pg.MusicTransformerForCausalLM, len(TOKENIZER)))
    for model, encoder in ((MODEL, ENCODER), (tokens, TOKENIZER)):
        prompt = some_notes()
        usual = pg.continue_notes(model, encoder, prompt=prompt, notes=4, seed=0, do_sample=True, top_k=0)[0]
        result = pg.continue_notes(model, encoder, prompt=prompt, notes=4, seed=0, **{"do_sample": True, **options})[0]
        assert len(result.new) == 4 and result.notes != usual.notes


def test_creativity_makes_chords_of_what_was_a_line():
    shares = []
    for creativity in (0.0, 0.8):
        new = pg.continue_notes(MODEL, ENCODER, notes=60, seed=1, creativity=creativity)[0].new
        shares.append((np.diff(new["onset_tick"]) > 0).mean())
    assert shares[1] < shares[0] - 0.1


def greedy(num_notes):
    return pg.continue_notes(MODEL, ENCODER, prompt=some_notes(), notes=num_notes, temperature=0)[0]


def stream_of(prompt=None):
    from pianogen_hf.generation.note_verbs import placed

    past = placed(ENCODER, prompt or some_notes())
    return NoteStream(MODEL, past, past[:0], begin_sec=float((past[:, 0] + past[:, 3]).max()))


def cost(stream, notes):
    """Log-probability of notes after a stream, drawn one after the other by force."""
    from pianogen_hf.models.time_classes import time_class

    total, clock = 0.0, stream.clock
    for note in notes:
        steps = [round((note[0] - clock) * 100), note[1], note[2] - 1, round(note[3] * 100) - 1]
        classes = [int(time_class(torch.tensor(steps[0]))), int(steps[1]), int(steps[2])]
        classes.append(int(time_class(torch.tensor(steps[3]))))

        def force(column, scores, onset, classes=classes):
            nonlocal total
            log_probs = scores - scores.max() - math.log(np.exp(scores - scores.max()).sum())
            total += float(log_probs[classes[column]])
            return np.where(np.arange(len(scores)) == classes[column], scores, -np.inf).astype(np.float32)

        stream.processors = (force,)
        stream.write(False)
        clock = note[0]
    return total


def test_one_beam_is_greedy():
    until = Until(0.0, math.inf, num_notes=3)
    notes = beam_search(stream_of(), until, 1)[0]
    stream = stream_of()
    stream.processors = field_processors(Search(temperature=0))
    for note in notes:
        assert np.array_equal(stream.write(False), note)


def test_beams_find_what_is_likelier_than_greedy():
    until = Until(0.0, math.inf, num_notes=3)
    found = [cost(stream_of(), beam_search(stream_of(), until, width)[0]) for width in (1, 3)]
    assert found[1] > found[0]


def test_beams_give_several_continuations_best_first_and_leave_the_stream_alone():
    stream = stream_of()
    results = beam_search(stream, Until(0.0, math.inf, num_notes=2), 3, num_results=3)
    scores = [cost(stream_of(), notes) for notes in results]
    assert scores == sorted(scores, reverse=True) and len({str(notes) for notes in results}) == 3
    assert stream.written == []


def test_verbs_take_beams():
    piece = some_notes(num_notes=40)
    first, second = pg.continue_notes(MODEL, ENCODER, prompt=piece, notes=3, num_beams=2, num_samples=2)
    assert first.notes != second.notes
    result = pg.fill_notes(MODEL, ENCODER, piece, 2.0, 2.6, num_beams=2, do_sample=False)[0]
    assert len(result.new) and result.new.onset_sec.min() >= 2 - 2e-3
