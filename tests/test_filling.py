"""Gaps are filled in place: nothing outside them moves, and whatever a model writes, they are not left empty."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from models_and_tokenizers import TOKENIZERS, some_notes, tiny_model
from transformers import GPT2Config, GPT2LMHeadModel

import pianogen_hf as pg
from pianogen_hf.generation.filling import fill_notes
from pianogen_hf.generation.new_notes import GenerationError
from pianogen_hf.tokenizers.notes import PEDAL_DTYPE

EVERY = pytest.mark.parametrize("tokenizer", [each() for each in TOKENIZERS], ids=lambda each: type(each).__name__)
PIECE = some_notes(num_notes=40)  # eight seconds


def masked_model(tokenizer, seed=0):
    torch.manual_seed(seed)
    model = tiny_model(pg.PianoEncoderForMaskedLM, len(tokenizer), is_causal=False)
    with torch.no_grad():  # with the small standard initialisation, what is around a gap would hardly matter
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def fill(tokenizer, piece=PIECE, start=2.0, end=4.0, **options):
    return fill_notes(masked_model(tokenizer), tokenizer, piece, start, end, **{"seed": 0, **options})


def kept_rows(piece, start, end):
    return piece.table[(piece.onset_sec < start) | (piece.onset_sec >= end)].tolist()


@EVERY
@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (7.0, 99.0), (2.03, 3.11)])
def test_the_gap_is_written_anew_and_all_else_stays(tokenizer, start, end):
    for result in fill(tokenizer, start=start, end=end, num_samples=2):
        rows = result.notes.table.tolist()
        for row in kept_rows(PIECE, start, end):
            rows.remove(row)
        assert sorted(rows) == sorted(result.new.table.tolist()) and len(rows) > 0
        assert result.new.onset_sec.min() >= start - 2e-3
        assert result.new.end_sec <= min(end, PIECE.end_sec) + 2e-3
        assert result.new["duration_tick"].min() > 0
        assert result.prompt_end_sec == pytest.approx(start, abs=1e-3)


@EVERY
def test_the_same_seed_gives_the_same_music_and_another_seed_other_music(tokenizer):
    one, again, other = (fill(tokenizer, end=2.5, seed=seed)[0].notes for seed in (1, 1, 2))
    assert one == again and one != other


def test_what_stands_after_the_gap_is_seen_and_what_stood_in_it_is_not():
    tokenizer = pg.JSBTokenizer()
    in_gap = (PIECE.onset_sec >= 2.0) & (PIECE.onset_sec < 4.0)
    after = PIECE.onset_sec >= 4.0
    results = []
    for changed in (None, in_gap, after):
        piece = replace(PIECE, table=PIECE.table.copy())
        if changed is not None:
            piece.table["pitch"][changed] += 1
        results.append(fill(tokenizer, piece)[0].new.table.tolist())
    assert results[0] == results[1] != results[2]


class PianoEncoderForMaskedLM:
    """What a model is known by to predict masked tokens."""


class _Oracle(PianoEncoderForMaskedLM):
    """A model that writes what stood in the gap: the ids of the whole piece, wherever it is shown a part of them."""

    device = torch.device("cpu")

    def __init__(self, ids, context):
        self.ids, self.config, self.seen_after = np.array(ids), SimpleNamespace(max_position_embeddings=context), []

    def refill(self, input_ids, mask, **options):
        places = mask[0].numpy().nonzero()[0]
        start, size = len(self.written), places[-1] + 1 - places[0]
        after = input_ids[0, places[-1] + 1 :].numpy()
        self.seen_after.append(len(after))
        assert np.array_equal(input_ids[0, : places[0]], self.written[-places[0] :])
        assert len(after) == 0 or np.array_equal(after, self.ids[start + size :][: len(after)])
        assert len(input_ids[0]) <= self.config.max_position_embeddings
        filled = input_ids.clone()
        filled[0, places] = torch.from_numpy(self.ids[start : start + size])
        self.written = self.ids[: start + size]
        return filled


@EVERY
@pytest.mark.parametrize("context", [64, 4096])
def test_ids_that_stood_in_the_gap_give_the_music_that_stood_in_it(tokenizer, context):
    """Sixteenths of one length, so that no note reaches into the gap and each scheme can write them."""
    onset = 120 * np.arange(64)
    pitch = 60 + np.arange(64) * 5 % 12
    piece = pg.Notes.from_columns(480, onset_tick=onset, duration_tick=[120] * 64, pitch=pitch, velocity=[63] * 64)
    ids = tokenizer.encode_piece(piece)
    model = _Oracle(ids, context)
    start, end = 480 * 4, 480 * 6
    model.written = np.array(tokenizer.encode_prompt(piece.where(onset < start)))
    result = fill_notes(model, tokenizer, piece, 2.0, 3.0)[0]
    wanted = piece.where((onset >= start) & (onset < end))
    assert result.new["pitch"].tolist() == wanted["pitch"].tolist()
    assert np.abs(result.new.onset_sec - wanted.onset_sec).max() <= 0.051  # CrayKH's columns
    assert max(model.seen_after) > 8


def test_the_pedal_is_up_within_the_gap_and_after_it_as_it_was():
    pedals = np.array([(100, 127, 0), (2400, 0, 0), (2500, 90, 0), (4700, 0, 0)], PEDAL_DTYPE)
    piece = replace(PIECE, pedals=pedals)
    start, end = piece.sec_to_tick(np.array([2.0, 4.0])).tolist()
    result = fill(pg.PerformanceTokenizer(), piece)[0]
    assert (start, end) == (1920, 3840)
    assert result.notes.pedals.tolist() == [(100, 127, 0), (1920, 0, 0), (3840, 90, 0), (4700, 0, 0)]


@pytest.mark.parametrize(("start", "end"), [(4.0, 2.0), (3.0, 3.0), (-1.0, 2.0), (50.0, 60.0), (float("nan"), 2.0)])
def test_a_gap_that_is_none_is_refused(start, end):
    with pytest.raises(GenerationError, match="is not within") as error:
        fill(pg.RemiTokenizer(), start=start, end=end)
    assert "\n" not in str(error.value)


def test_models_that_hear_only_what_comes_before_are_refused():
    sizes = {"vocab_size": 311, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 64}
    notes = tiny_model(pg.ContinuousNotesForCausalLM, 130)
    for model in (GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=1, eos_token_id=2)), notes):
        with pytest.raises(GenerationError, match="is_causal false"):
            fill_notes(model, pg.PerformanceTokenizer(), PIECE, 2.0, 4.0)


@pytest.mark.parametrize("wrong", [{"num_beams": 4}, {"top_k": 5}, {"do_sample": False}])
def test_options_that_refilling_does_not_know_are_named(wrong):
    with pytest.raises(GenerationError, match=next(iter(wrong))):
        fill(pg.RemiTokenizer(), **wrong)


@EVERY
def test_a_masked_model_fills_several_gaps_and_bars_and_all_else_stays(tokenizer):
    shares: list[float] = []
    gaps = [(1.0, 2.0), (5.0, 6.5)]
    results = fill(tokenizer, start=None, end=None, gaps=gaps, num_samples=2, on_progress=shares.append)
    outside = [(PIECE.onset_sec < start) | (PIECE.onset_sec >= end) for start, end in gaps]
    for result in results:
        assert result.kept.table.tolist() == PIECE.table[outside[0] & outside[1]].tolist()
        onset = result.new.onset_sec
        assert all(((onset >= start - 2e-3) & (onset < end)).any() for start, end in gaps)
        assert (result.prompt_end_sec, result.gap_end_sec) == (1.0, 6.5)
    assert shares == sorted(shares) and shares[-1] == pytest.approx(1.0)
    assert fill(tokenizer, start=None, end=None, bars=(2, 2))[0].notes == fill(tokenizer)[0].notes


def test_a_masked_model_varies_everything_or_nothing_of_a_passage():
    tokenizer = pg.RemiTokenizer()
    model = masked_model(tokenizer)
    whole = pg.vary_notes(model, tokenizer, PIECE, 2.0, 4.0, 1.0, 0)[0]
    assert whole.notes == fill(tokenizer)[0].notes
    wishes = ({"density": 3.0}, {"chords": "C"}, {"guidance_scale": 3.0})
    for options in ({"strength": 0.5}, *({"strength": 1.0, **wish} for wish in wishes)):
        with pytest.raises(GenerationError, match="note transformer"):
            pg.vary_notes(model, tokenizer, PIECE, 2.0, 4.0, **options)
