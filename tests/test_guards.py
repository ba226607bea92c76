"""Guards: what was said before is not said again, and other pieces are not copied."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from models_and_tokenizers import loosened, some_notes, tiny_model

import pianogen_hf as pg
from pianogen_hf.evaluation.memorization import RunIndex
from pianogen_hf.generation.guards import no_copies, no_crowd, no_repeats
from pianogen_hf.generation.note_stream import NoteStream
from pianogen_hf.generation.note_verbs import placed
from pianogen_hf.models.modeling_note_transformer import END_CLASS, PITCH, TIME_SHIFT, VELOCITY
from pianogen_hf.models.time_classes import time_class

ENCODER = pg.ContinuousNotesFeatureExtractor()
torch.manual_seed(0)
MODEL = loosened(tiny_model(pg.NoteTransformerForCausalLM, 130))
FLAT = np.zeros(128, dtype=np.float32)


def stream_of(past, written=()):
    def rows(pitches, start):
        notes = pg.Notes.from_seconds(start + 0.5 * np.arange(len(pitches)), np.full(len(pitches), 0.4), pitches)
        return placed(ENCODER, notes)

    stream = NoteStream(MODEL, rows(past, 0.0), rows([], 0.0))
    stream.written = list(rows(written, 0.5 * len(past)))
    return stream


@pytest.mark.parametrize(
    ("past", "written", "size", "forbidden"),
    [
        ([60, 62, 64, 60, 62], [], 3, [64]),
        ([60, 62, 64, 60], [62], 3, [64]),
        ([60, 62, 64, 60, 62, 65, 60, 62], [], 3, [64, 65]),
        ([60, 62, 64, 60, 62], [], 4, []),
        ([60, 60], [], 2, [60]),
        ([60], [], 3, []),
        ([], [], 3, []),
    ],
)
def test_pitches_are_not_said_twice_in_a_row_of_some_length(past, written, size, forbidden):
    process = no_repeats(stream_of(past, written), size)
    assert np.flatnonzero(~np.isfinite(process(PITCH, FLAT, 9.0))).tolist() == forbidden
    assert process(VELOCITY, FLAT, 9.0) is FLAT


def test_where_nothing_else_is_left_it_is_said_again():
    only = np.where(np.arange(128) == 64, FLAT, -np.inf)
    assert np.array_equal(no_repeats(stream_of([60, 62, 64, 60, 62]), 3)(PITCH, only, 9.0), only)


def test_a_run_in_any_key_is_broken_off_where_it_becomes_a_copy():
    train = np.random.default_rng(1).integers(50, 70, 30)
    notes = pg.Notes.from_seconds(0.5 * np.arange(30), np.full(30, 0.4), train)
    index = RunIndex().fit(["train"], [notes])
    moved = (train + 5).tolist()
    forbidden = {}
    for heard in (5, 6, 7):
        stream = stream_of(moved[:2], moved[2:heard])
        scores = no_copies(stream, index, 6)(PITCH, FLAT, 0.5 * heard)
        forbidden[heard] = np.flatnonzero(~np.isfinite(scores)).tolist()
    assert forbidden == {5: [], 6: [moved[6]], 7: [moved[7]]}


def test_new_notes_are_hardly_more_than_those_that_went_at_any_time():
    went = np.array([4.0, 4.5, 5.0, 6.0])
    scores, pitch = np.zeros(END_CLASS + 1, dtype=np.float32), [60, 61, 62, 63, 64, 65, 66, 67]
    earliest = {}
    for number in (0, 2, 3, 5, 7, 8):
        process = no_crowd(stream_of([], pitch[:number]), went)
        left = np.flatnonzero(np.isfinite(process(TIME_SHIFT, scores, 4.0)))
        earliest[number] = int(left[0])
    # Two are free; the third waits for the first that went, the fifth for the third, and after seven it is the end.
    assert earliest[0] == earliest[2] == earliest[3] == 0
    assert earliest[5] == int(time_class(torch.tensor(100))) and earliest[7] == int(time_class(torch.tensor(200)))
    assert earliest[8] == END_CLASS
    assert no_crowd(stream_of([], pitch), went)(PITCH, FLAT, 4.0) is FLAT


def test_variations_do_not_crowd():
    piece = some_notes(num_notes=60)
    result = pg.vary_notes(MODEL, ENCODER, piece, 0.0, 8.0, 0.5, 0)[0]
    assert len(result.new) <= 1.25 * 30 + 3


def test_music_by_a_guarded_model_has_no_run_twice():
    """Of a model that knows three pitches: they make no more than 27 runs of three."""
    torch.manual_seed(0)
    model = tiny_model(pg.NoteTransformerForCausalLM, 130)
    with torch.no_grad():
        model.heads.pitch_head.fc2.bias[[60, 62, 64]] += 20
        model.heads.time_shift_head.fc2.bias[20:40] += 20
    options = {"prompt": some_notes(), "notes": 40, "seed": 0}
    free, guarded = (pg.continue_notes(model, ENCODER, **options, **more)[0] for more in ({}, {"no_repeat_notes": 3}))
    assert runs(free.new) <= 27 and runs(guarded.new) == 38


def runs(notes):
    """How many different runs of three pitches there are, in the order in which they were written."""
    pitch = notes["pitch"].tolist()
    return len(set(zip(pitch, pitch[1:], pitch[2:], strict=False)))
