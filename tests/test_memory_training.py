"""Batches of segments, the Trainer that carries a memory through them, and evaluation that remembers."""

from __future__ import annotations

import json
import logging
from itertools import pairwise

import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from models_and_tokenizers import loosened, some_notes
from safetensors.torch import load_file

import pianogen_hf as pg
from pianogen_hf.commands import main as pianogen
from pianogen_hf.commands.train import main
from pianogen_hf.evaluation.likelihood import piece_likelihood
from pianogen_hf.training.batching import SegmentCollator, Segments, WalkSampler

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
MEMORY = {**SIZES, "max_relative_distance": 64, "memory_length": 24, "attention_dropout": 0.0}


# Batches --------------------------------------------------------------------------------------------------------------


def chunks_of(lengths, size=4):
    """Chunks of pieces with so many predicted ids each; id 100 p + i is the i-th of piece p."""
    rows = [
        {"input_ids": list(range(100 * p + at, 100 * p + min(at + size, n) + 1)), "start": at, "piece_id": str(p)}
        for p, n in enumerate(lengths)
        for at in range(0, n, size)
    ]
    return Dataset.from_list([{**row, "first_label": 1} for row in rows])


@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=8),
    num_rows=st.integers(1, 4),
    epoch=st.integers(0, 3),
    seed=st.one_of(st.none(), st.integers(0, 5)),
)
def test_each_row_walks_through_whole_pieces_and_nothing_is_lost(lengths, num_rows, epoch, seed):
    segments = Segments(chunks_of(lengths), "contiguous", num_rows, seed)
    steps = len(segments.sampler)
    segments.sampler.set_epoch(epoch)
    drawn = list(segments.sampler)
    assert len(drawn) == len(segments.sampler) == steps == segments.total_dataset_length and steps % num_rows == 0
    assert sorted(index for index, _ in drawn if index is not None) == list(range(len(segments)))
    for row in range(num_rows):
        walked = [segments[each] for each in drawn[row::num_rows]]
        for before, after in pairwise(walked):
            goes_on = after["begins"] is False
            assert after["begins"] == (after["start"] == 0)
            if goes_on:
                assert after["piece_id"] == before["piece_id"] and after["input_ids"][0] == before["input_ids"][-1]
        assert walked[0]["begins"]


def test_rows_are_about_equally_long_and_epochs_differ():
    segments = Segments(chunks_of([8, 8, 40, 12, 12, 20]), "contiguous", 2, seed=0)
    assert len(segments.sampler) == 2 * 13  # 25 segments in two rows
    first = list(segments.sampler)
    segments.sampler.set_epoch(1)
    assert list(segments.sampler) != first


def test_one_long_sequence_is_forgotten_only_where_a_row_begins():
    segments = Segments(chunks_of([40]), "sequence", 3, seed=0)
    drawn = list(segments.sampler)
    for row in range(3):
        indices = [index for index, _ in drawn[row::3] if index is not None]
        assert indices == list(range(indices[0], indices[-1] + 1))
        assert [begins for index, begins in drawn[row::3] if index is not None] == [True] + [False] * (len(indices) - 1)


def test_a_row_without_pieces_is_padding():
    segments = Segments(chunks_of([8, 2]), "contiguous", 2, seed=None)
    drawn = list(segments.sampler)
    assert drawn == [(0, True), (2, True), (1, False), (None, True)]
    batch = SegmentCollator(0)([segments[each] for each in drawn[2:]])
    assert batch["input_ids"].tolist() == [[4, 5, 6, 7, 8], [0] * 5] and batch["begins"].tolist() == [False, True]
    assert batch["attention_mask"].sum(1).tolist() == [5, 0] and (batch["labels"][1] == -100).all()


# The Trainer ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    folder, cache = tmp_path_factory.mktemp("midi"), tmp_path_factory.mktemp("cache")
    for seed in range(7):
        pg.write_midi(some_notes(seed, num_notes=20 + 12 * seed), folder / f"piece{seed}.mid")

    def build(output_dir, **changes):
        values = {
            "output_dir": output_dir,
            "source": "folder",
            "data_path": folder,
            "cache_dir": cache,
            "validation_fraction": 0.3,
            "model_config": json.dumps(MEMORY),
            "chunk_length": 17,
            "batching": "contiguous",
            "max_steps": 6,
            "per_device_train_batch_size": 2,
            "per_device_eval_batch_size": 2,
            "report_to": "none",
            "bf16": "false",
            "disable_tqdm": "true",
            **changes,
        }
        return [f"--{name}={value}" for name, value in values.items() if value is not None]

    return build


def error_of(argv, capsys):
    assert main(argv) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize("batching", ["contiguous", "sequence"])
def test_a_resumed_run_remembers_what_an_unbroken_one_does(options, tmp_path, batching):
    model = json.dumps({**MEMORY, "knn_layer": 1, "knn_memory_size": 40, "knn_neighbours": 4})
    shared = {"batching": batching, "model_config": model, "max_steps": 6, "save_steps": 3}
    shared["lr_scheduler_type"] = "constant"
    assert main(options(tmp_path / "halted", **{**shared, "max_steps": 3})) == 0
    assert main(options(tmp_path / "whole", **shared)) == 0
    assert main(options(tmp_path / "halted", **shared, resume_from_checkpoint="true")) == 0
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "halted"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert "with a memory of the 24 before" in (tmp_path / "whole" / "README.md").read_text()


def test_training_and_evaluation_measure_the_same(options, tmp_path, capsys):
    assert main(options(tmp_path / "model")) == 0
    metrics = json.loads((tmp_path / "model" / "metrics.json").read_text())
    assert metrics["context"] == {"window": 17, "stride": 16, "memory": 24}
    argv = ["evaluate", "--model", str(tmp_path / "model"), "--only", "likelihood"]
    assert pianogen([*argv, *options(None)[1:3], f"--output={tmp_path / 'out'}"]) == 0
    measured = json.loads((tmp_path / "out" / "metrics.json").read_text())["evaluation"]["validation"]["likelihood"]
    assert measured["sliding"]["bits_per_note"] == pytest.approx(metrics["validation"]["bits_per_note"], rel=1e-4)
    assert measured["sliding"]["context"]["memory"] == 24 and "memory" not in measured["separate"]["context"]
    assert "memory 24" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"batching": "rows"}, "batching must be one of piece, contiguous, sequence"),
        ({"model_config": json.dumps(SIZES)}, "set memory_length in model_config"),
        ({"augmentation": "lazy"}, "choose --augmentation prebuilt"),
        ({"packing": "true"}, "leave out packing"),
        ({"gradient_checkpointing": "true"}, "gradient_checkpointing"),
    ],
)
def test_what_a_memory_can_not_do_is_refused_by_name(options, tmp_path, capsys, changes, said):
    assert said in error_of(options(tmp_path, **changes), capsys)


def test_a_checkpoint_of_other_rows_is_refused(options, tmp_path, capsys):
    assert main(options(tmp_path / "run", max_steps=2, save_steps=2)) == 0
    other = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2, "max_steps": 4}
    said = error_of(options(tmp_path / "run", **other, resume_from_checkpoint="true"), capsys)
    assert "holds no memory of 1 rows in each of 1 processes" in said


# Evaluation -----------------------------------------------------------------------------------------------------------


def test_with_a_long_memory_windows_cost_what_one_window_does():
    tokenizer = pg.PerformanceTokenizer()
    sizes = {**MEMORY, "memory_length": 4000, "vocab_size": len(tokenizer), "max_position_embeddings": 4000}
    torch.manual_seed(0)
    model = loosened(pg.MusicTransformerForCausalLM(pg.MusicTransformerConfig(**sizes)).eval())
    pieces = [(str(seed), some_notes(seed, 20 + 10 * seed)) for seed in range(5)]
    whole = piece_likelihood(model, tokenizer, pieces, 4000, 1)
    remembered = piece_likelihood(model, tokenizer, pieces, 33, 32, with_memory=True, batch_size=3)
    np.testing.assert_allclose(remembered.bits, whole.bits, rtol=1e-5)
    assert remembered.memory == 4000
    separate = piece_likelihood(model, tokenizer, pieces, 33, 32)
    assert not np.allclose(separate.bits, whole.bits, rtol=1e-3)


# Generation -----------------------------------------------------------------------------------------------------------


def test_a_prompt_is_heard_in_segments_and_music_goes_on_without_a_break(monkeypatch, caplog):
    tokenizer, lengths = pg.PerformanceTokenizer(), []
    torch.manual_seed(0)
    model = pg.MusicTransformerForCausalLM(
        pg.MusicTransformerConfig(**{**MEMORY, **tokenizer.config_settings(), "max_position_embeddings": 33})
    )
    forward = model.forward
    monkeypatch.setattr(
        model, "forward", lambda **given: (lengths.append(given["input_ids"].shape[1]), forward(**given))[1]
    )
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    prompt, messages = some_notes(0, 40), []
    result = pg.continue_notes(
        loosened(model.eval()), tokenizer, prompt=prompt, notes=12, seed=1, on_message=messages.append
    )
    given = len(tokenizer.encode_prompt(prompt))
    assert given > 66 and sum(lengths[: -(-given // 32)]) == given and set(lengths[: given // 32]) == {32}
    assert set(lengths[-(-given // 32) :]) == {1} and len(result[0].new) >= 12
    assert not messages and "exceeded" not in caplog.text


def test_the_sampler_alone_tells_the_order():
    sampler = WalkSampler([(0, 2), (2, 1)], num_rows=1, seed=None)
    assert list(sampler) == [(0, True), (1, False), (2, True)]
