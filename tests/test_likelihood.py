"""Likelihood per piece: against train.py's own evaluation, against sums by hand, and how two models are compared."""

import math

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from models_and_tokenizers import CAUSAL_MODELS, TOKENIZERS, some_notes, tiny_model
from transformers import GPT2Config, GPT2LMHeadModel, set_seed

import pianogen_hf as pg
from pianogen_hf.data.chunks import build_chunks, chunk_overlap, chunk_size
from pianogen_hf.evaluation.likelihood import (
    Likelihood,
    LikelihoodError,
    paired_bootstrap,
    piece_likelihood,
    standard_error,
)
from pianogen_hf.evaluation.scorers import cut, id_kinds
from pianogen_hf.training.arguments import PianoTrainingArguments
from pianogen_hf.training.collator import ChunkCollator
from pianogen_hf.training.masking import MaskedPianoTrainer, MaskingCollator
from pianogen_hf.training.trainer import PianoTrainer

PIECES = [(f"piece {seed}", some_notes(seed, num_notes)) for seed, num_notes in enumerate((24, 9, 40))]
NUM_NOTES = sum(len(notes) for _, notes in PIECES)


def masked_model(vocab_size):
    set_seed(0)
    config = pg.PianoEncoderConfig(
        vocab_size=vocab_size, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64, is_causal=False, initializer_range=0.5,
    )  # fmt: skip
    return pg.PianoEncoderForMaskedLM(config).eval()


def continuous_model():
    set_seed(0)
    config = pg.ContinuousNotesConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_mixtures=3,
        max_position_embeddings=16,
    )  # fmt: skip
    return pg.ContinuousNotesForCausalLM(config).eval()


def chunks_of(tokenizer, chunk_length, folder):
    midi = [pg.notes_to_midi_bytes(notes) for _, notes in PIECES]
    pieces = Dataset.from_dict({"piece_id": [name for name, _ in PIECES], "midi": midi})
    return build_chunks(pieces, ["validation"] * len(PIECES), tokenizer, chunk_length, folder)["validation"]


def context_of(tokenizer, chunk_length):
    size = chunk_size(tokenizer, chunk_length)
    return size + 1, size - chunk_overlap(tokenizer, chunk_length)


def arguments(folder):
    return PianoTrainingArguments(output_dir=str(folder), report_to="none", disable_tqdm=True, bf16=False)


# The same as train.py -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokenizer_class", TOKENIZERS)
@pytest.mark.parametrize("model_class", CAUSAL_MODELS)
def test_causal_models_cost_what_the_trainer_says(model_class, tokenizer_class, tmp_path):
    tokenizer = tokenizer_class()
    set_seed(0)
    model = tiny_model(model_class, len(tokenizer), initializer_range=0.2)
    chunks = chunks_of(tokenizer, 50, tmp_path)
    trainer = PianoTrainer(
        eval_notes=NUM_NOTES, model=model, args=arguments(tmp_path), eval_dataset=chunks,
        data_collator=ChunkCollator(tokenizer.pad_token_id),
    )  # fmt: skip
    expected = trainer.evaluate()
    found = piece_likelihood(model, tokenizer, PIECES, *context_of(tokenizer, 50), batch_size=5)
    assert found.bits_per_note == pytest.approx(expected["eval_bits_per_note"], rel=1e-5)
    assert found.nats_per_token == pytest.approx(expected["eval_nats_per_token"], rel=1e-5)
    assert found.accuracy == pytest.approx(expected["eval_accuracy"])


def test_the_bound_of_a_masked_model_with_one_mask_is_what_the_trainer_says(tmp_path):
    tokenizer = pg.PerformanceTokenizer()
    model = masked_model(len(tokenizer))
    trainer = MaskedPianoTrainer(
        eval_notes=NUM_NOTES, model=model, args=arguments(tmp_path), eval_dataset=chunks_of(tokenizer, 50, tmp_path),
        data_collator=MaskingCollator(tokenizer.pad_token_id, model.config.mask_token_id, seed=5),
    )  # fmt: skip
    expected = trainer.evaluate()
    found = piece_likelihood(model, tokenizer, PIECES, *context_of(tokenizer, 50), batch_size=4, num_orders=1)
    assert found.num_orders == 1
    assert found.bits_per_note == pytest.approx(expected["eval_bits_per_note"], rel=1e-5)
    assert found.nats_per_token == pytest.approx(expected["eval_nats_per_token"], rel=1e-5)
    assert found.accuracy == pytest.approx(expected["eval_accuracy"], rel=1e-5)


# By hand --------------------------------------------------------------------------------------------------------------


def test_a_stock_model_costs_what_its_probabilities_say_the_end_included():
    tokenizer = pg.CrayKHTokenizer()
    set_seed(0)
    model = GPT2LMHeadModel(
        GPT2Config(vocab_size=len(tokenizer), n_positions=2048, n_embd=16, n_layer=1, n_head=2)
    ).train()
    found = piece_likelihood(model, tokenizer, PIECES, 2048, 2047, batch_size=2)
    assert model.training  # as it was; without dropout in between
    model.eval()
    for (_, notes), bits, predictions in zip(PIECES, found.bits, found.predictions, strict=True):
        ids = torch.tensor(tokenizer.encode_piece(notes))
        log_probabilities = model(ids[None]).logits[0, :-1].detach().log_softmax(-1)
        assert bits == pytest.approx(-float(log_probabilities[range(len(ids) - 1), ids[1:]].sum()) / math.log(2), 1e-5)
        assert predictions == len(ids) - 1
    assert found.notes.tolist() == [len(notes) for _, notes in PIECES]
    assert found.seconds.tolist() == [notes.end_sec for _, notes in PIECES]
    assert found.bits_per_second == pytest.approx(found.bits.sum() / found.seconds.sum())


def test_continuous_notes_cost_the_mass_of_their_rows_the_end_included():
    model, extractor = continuous_model(), pg.ContinuousNotesFeatureExtractor()
    name, notes = PIECES[1]
    rows = torch.from_numpy(extractor.encode_piece(notes))[None]
    assert rows.shape[1] == len(notes) + 2 <= 16  # one window
    nats = model(rows, labels=rows[..., 1].long()).nats.detach()
    found = piece_likelihood(model, extractor, PIECES, 16, 8, batch_size=3)
    alone = piece_likelihood(model, extractor, [(name, notes)], 16, 15)
    assert alone.bits[0] == pytest.approx(float(nats.sum()) / math.log(2), rel=1e-5)
    assert found.bits[1] == pytest.approx(alone.bits[0], rel=1e-5)
    assert alone.by_kind["end"][0] == pytest.approx(float(nats[0, -1].sum()) / math.log(2), rel=1e-5)
    assert alone.by_kind["pitch"][0] == pytest.approx(float(nats[0, :-1, 1].sum()) / math.log(2), rel=1e-5)
    assert found.num_orders is None
    right = model(rows, labels=rows[..., 1].long()).logits[0, :-1].argmax(-1) == rows[0, 1:-1, 1]
    assert alone.right[0] == right.sum() and alone.accuracy == pytest.approx(float(right.float().mean()))


def test_more_masks_estimate_the_same_bound_more_closely():
    tokenizer = pg.PerformanceTokenizer()
    model = masked_model(len(tokenizer))

    def bounds(num_orders):
        pieces = [PIECES[1]]
        return [
            piece_likelihood(model, tokenizer, pieces, 64, 32, num_orders=num_orders, seed=seed).bits[0]
            for seed in range(12)
        ]

    few, many = bounds(1), bounds(16)
    assert np.std(many) < np.std(few) / 2
    assert abs(np.mean(few) - np.mean(many)) < 3 * np.std(few) / 12**0.5


def test_the_cost_does_not_depend_on_batches_and_is_the_sum_of_its_kinds():
    tokenizer = pg.RemiTokenizer()
    model = tiny_model(pg.MusicTransformerForCausalLM, len(tokenizer))
    found = [piece_likelihood(model, tokenizer, PIECES, 33, 16, batch_size=size) for size in (1, 7)]
    np.testing.assert_allclose(found[0].bits, found[1].bits, rtol=1e-5)
    assert {"Pitch", "Velocity", "Duration", "end"} <= set(found[0].by_kind)
    np.testing.assert_allclose(sum(found[0].by_kind.values()), found[0].bits)


def test_half_precision_is_near_and_progress_reaches_the_end():
    tokenizer = pg.PerformanceTokenizer()
    model = tiny_model(pg.MusicTransformerForCausalLM, len(tokenizer))
    calls = []
    half = piece_likelihood(
        model, tokenizer, PIECES, 65, 32, precision="bfloat16", on_progress=lambda *count: calls.append(count)
    )
    assert half.bits_per_note == pytest.approx(piece_likelihood(model, tokenizer, PIECES, 65, 32).bits_per_note, 0.02)
    assert calls[-1][0] == calls[-1][1] and half.bits.dtype == np.float64


@pytest.mark.parametrize("tokenizer_class", TOKENIZERS)
def test_every_id_has_a_kind(tokenizer_class):
    tokenizer = tokenizer_class()
    kinds = id_kinds(tokenizer)
    assert len(kinds) == len(tokenizer) and all(kinds) and kinds[tokenizer.eos_token_id] == "end"


@given(st.integers(2, 60), st.integers(2, 20), st.data())
def test_windows_predict_every_row_but_the_first_once_and_in_order(num_rows, window, data):
    stride = data.draw(st.integers(1, window - 1))
    predicted = []
    for start, stop, first in cut(num_rows, window, stride):
        assert 0 <= start < start + first < stop <= num_rows and stop - start <= window
        assert start == 0 or first == window - stride  # context
        predicted += range(start + first, stop)
    assert predicted == list(range(1, num_rows))


# What can't be measured -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window": 1}, "can't slide"),
        ({"stride": 33}, "can't slide"),
        ({"window": 4000}, "more than the 128"),
        ({"pieces": []}, "no pieces"),
        ({"num_orders": 0}, "one random mask"),
        ({"precision": "float8"}, "precision"),
    ],
)
def test_what_cant_be_measured_is_told_in_one_line(changes, message):
    tokenizer = pg.JSBTokenizer()
    model = tiny_model(pg.MusicTransformerForCausalLM, len(tokenizer))
    settings = {"pieces": PIECES, "window": 33, "stride": 16, **changes}
    with pytest.raises(LikelihoodError, match=message) as error:
        piece_likelihood(model, tokenizer, **settings)
    assert "\n" not in str(error.value)


# Comparing ------------------------------------------------------------------------------------------------------------


def test_a_paired_interval_is_narrow_where_pieces_are_hard_for_both():
    random = np.random.default_rng(0)
    notes = random.integers(100, 300, 60)
    hard = random.normal(5, 2, 60)
    a, b = notes * (hard + 0.1 + random.normal(0, 0.05, 60)), notes * hard
    paired = paired_bootstrap(a, notes, b, notes)
    assert paired.difference == pytest.approx(a.sum() / notes.sum() - b.sum() / notes.sum())
    assert 0 < paired.low < paired.difference < paired.high < 0.2
    assert standard_error(a, notes) > 3 * (paired.high - paired.low)
    assert paired == paired_bootstrap(a, notes, b, notes) != paired_bootstrap(a, notes, b, notes, seed=1)
    mirrored = paired_bootstrap(b, notes, a, notes)
    assert (mirrored.low, mirrored.high) == pytest.approx((-paired.high, -paired.low))


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    random = np.random.default_rng(1)
    covered = 0
    for _ in range(200):
        notes = random.integers(50, 150, 40)
        b = notes * random.normal(4, 1, 40)
        a = b + notes * random.normal(0.2, 0.3, 40)
        found = paired_bootstrap(a, notes, b, notes, n=400)
        covered += found.low <= 0.2 <= found.high
    assert 175 <= covered <= 199


def test_the_standard_error_of_equal_pieces_is_that_of_a_mean():
    bits = np.array([10.0, 14.0, 9.0, 15.0])
    assert standard_error(bits, [2, 2, 2, 2]) == pytest.approx((bits / 2).std(ddof=1) / 2)
    assert standard_error([3.0], [1]) is None


@pytest.mark.parametrize(
    "columns", [([1], [1], [1], [1]), ([1, 2], [1, 1], [1, 2, 3], [1, 1, 1]), ([1, 2], [0, 1]) * 2]
)
def test_models_are_compared_on_the_same_pieces_only(columns):
    with pytest.raises(LikelihoodError):
        paired_bootstrap(*columns)


def test_some_pieces_of_a_result_are_a_result():
    tokenizer = pg.JSBTokenizer()
    model = tiny_model(pg.MusicTransformerForCausalLM, len(tokenizer))
    whole = piece_likelihood(model, tokenizer, PIECES, 33, 16)
    part = whole.select([2, 0])
    assert isinstance(part, Likelihood) and part.names == ("piece 2", "piece 0")
    assert part.bits_per_note == pytest.approx(whole.bits[[2, 0]].sum() / whole.notes[[2, 0]].sum())
    alone = piece_likelihood(model, tokenizer, PIECES[:1], 33, 16)
    assert part.bits[1] == pytest.approx(alone.bits[0], rel=1e-5)
    cells = whole.predictions.sum() - 3
    assert whole.nats_per_event == pytest.approx((whole.bits - whole.by_kind["end"]).sum() * math.log(2) / cells)
    assert whole.report()["pieces"] == 3 and whole.per_piece()["names"] == ["piece 0", "piece 1", "piece 2"]
