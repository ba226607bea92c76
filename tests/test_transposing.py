"""Working in C: the piece moves there and back, whatever the verb."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from models_and_tokenizers import some_notes, tiny_model

import pianogen_hf as pg
from pianogen_hf.generation.new_notes import Continuation
from pianogen_hf.generation.transposing import in_c, semitones_to_c


def scale(tonic, steps):
    pitch = 60 + tonic + np.array([*steps, 12, 7, 4 if 4 in steps else 3, 0])
    return pg.Notes.from_seconds(0.5 * np.arange(len(pitch)), np.full(len(pitch), 0.5), pitch)


@pytest.mark.parametrize(
    ("tonic", "steps", "expected"),
    [
        (0, (0, 2, 4, 5, 7, 9, 11), 0),
        (2, (0, 2, 4, 5, 7, 9, 11), -2),
        (6, (0, 2, 4, 5, 7, 9, 11), 6),
        (7, (0, 2, 4, 5, 7, 9, 11), 5),
        (0, (0, 2, 3, 5, 7, 8, 11), -3),
    ],
)
def test_pieces_move_by_the_smaller_interval(tonic, steps, expected):
    assert semitones_to_c(scale(tonic, steps)) == expected


def test_what_can_not_move_stays():
    low = scale(2, (0, 2, 4, 5, 7, 9, 11)).transposed(-62)
    assert low["pitch"].min() == 0 and semitones_to_c(low) == 0
    assert semitones_to_c(low.where(np.zeros(len(low), dtype=bool))) == 0


def test_the_model_hears_c_and_the_piece_keeps_its_key():
    tokenizer, heard = pg.PerformanceTokenizer(), []
    torch.manual_seed(0)
    model = tiny_model(pg.MusicTransformerForCausalLM, len(tokenizer))
    prompt = scale(2, (0, 2, 4, 5, 7, 9, 11))

    def verb(moved):
        heard.append(moved)
        return pg.continue_notes(model, tokenizer, prompt=moved, notes=5, seed=0, do_sample=True)

    plain = verb(prompt.transposed(-2))[0]
    result = in_c(verb, prompt)[0]
    assert semitones_to_c(heard[-1]) == 0
    assert result.kept.table.tolist() == prompt.table.tolist()
    assert result.new["pitch"].tolist() == (plain.new["pitch"] + 2).tolist()


def test_new_notes_beyond_the_keyboard_are_left_out():
    prompt = scale(6, (0, 2, 4, 5, 7, 9, 11))
    assert semitones_to_c(prompt) == 6

    def verb(moved):
        new = some_notes(num_notes=2)
        new.table["pitch"] = [3, 60]
        return [Continuation(pg.Notes(np.concatenate([moved.table, new.table])), new, 0.0)]

    assert in_c(verb, prompt)[0].new["pitch"].tolist() == [54]
