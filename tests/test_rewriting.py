"""Pitches to a rhythm and a rhythm to pitches: what is not to be rewritten stays, in any length of piece."""

import numpy as np
import pytest
import torch
from models_and_tokenizers import loosened, some_notes, tiny_model

import pianogen_hf as pg
from pianogen_hf.errors import ArgumentError
from pianogen_hf.generation.new_notes import GenerationError
from pianogen_hf.generation.rewriting import rewrite_notes
from pianogen_hf.training.arguments import parse_arguments
from pianogen_hf.training.ways import way_of_training

TOKENIZER = pg.NoteDurationTokenizer()


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return loosened(tiny_model(pg.PianoEncoderForMaskedLM, len(TOKENIZER), is_causal=False))


def ids_of(notes):
    return np.array(TOKENIZER.encode_prompt(notes))


@pytest.mark.parametrize("num_notes", [24, 150], ids=["within the context", "beyond it"])
def test_pitches_are_written_anew_in_the_rhythm_that_is_there(model, num_notes):
    notes = TOKENIZER.decode_notes(ids_of(some_notes(0, num_notes)))
    assert (len(ids_of(notes)) > model.config.max_position_embeddings) == (num_notes > 24)
    result = rewrite_notes(model, TOKENIZER, notes, "pitch", seed=3)
    assert set(result["onset_tick"].tolist()) == set(notes["onset_tick"].tolist())
    before, after = (np.sort(each["pitch"]) for each in (notes, result))
    assert len(before) - len(after) in range(num_notes // 4) and not np.array_equal(before, after)
    assert result == rewrite_notes(model, TOKENIZER, notes, "pitch", seed=3)


def test_durations_are_written_anew_and_pitches_stay(model):
    notes = TOKENIZER.decode_notes(ids_of(some_notes(1, 12)))
    result = rewrite_notes(model, TOKENIZER, notes, "duration", seed=3)
    assert result["pitch"].tolist() == notes["pitch"].tolist()
    assert result["duration_tick"].tolist() != notes["duration_tick"].tolist()


def test_what_lies_outside_the_beats_stays(model):
    notes = TOKENIZER.decode_notes(ids_of(some_notes(2)))
    result = rewrite_notes(model, TOKENIZER, notes, "pitch", 4, 8, seed=1)
    columns = ["onset_tick", "pitch", "duration_tick"]
    outside = [each.where((each["onset_tick"] < 4 * 480) | (each["onset_tick"] >= 8 * 480)) for each in (notes, result)]
    assert outside[0].table[columns].tolist() == outside[1].table[columns].tolist()
    assert notes != result


def test_what_can_not_be_rewritten_is_said(model):
    causal = tiny_model(pg.PianoEncoderForCausalLM, len(TOKENIZER))
    with pytest.raises(GenerationError, match="sees one side only"):
        rewrite_notes(causal, TOKENIZER, some_notes(), "pitch")
    with pytest.raises(GenerationError, match="no pitch begins between beats 100 and 200"):
        rewrite_notes(model, TOKENIZER, some_notes(), "pitch", 100, 200)
    with pytest.raises(ValueError, match="pitch or duration"):
        rewrite_notes(model, TOKENIZER, some_notes(), "velocity")


def test_kinds_that_there_are_not_are_refused_by_name(model, tmp_path):
    def ways(kind, model):
        args = parse_arguments(["--mask_kinds", kind, "--output_dir", str(tmp_path), "--bf16", "false"])[2]
        return way_of_training(args, model, TOKENIZER, 32, {})

    assert len(ways("Pitch", model)[1].kinds) == 1
    with pytest.raises(ArgumentError, match="has no tokens of kind 'Velocity', but Dummy, Duration, MeanTempo, Pitch"):
        ways("Velocity", model)
    with pytest.raises(ArgumentError, match="mask_kinds is for masked models"):
        ways("Pitch", tiny_model(pg.PianoEncoderForCausalLM, len(TOKENIZER)))
