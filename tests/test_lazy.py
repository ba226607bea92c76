"""Lazy chunks: a function of seed, epoch and index that reaches every id; and a resumed run that is exact."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import datasets
import numpy as np
import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file
from transformers import TrainerCallback, set_seed

from pianogen_hf.data import lazy
from pianogen_hf.data.augment import Augmentation
from pianogen_hf.data.chunks import build_chunks
from pianogen_hf.data.lazy import LazyChunks
from pianogen_hf.models.configuration_music_transformer import MusicTransformerConfig
from pianogen_hf.models.modeling_music_transformer import MusicTransformerForCausalLM
from pianogen_hf.tokenizers.midi import notes_to_midi_bytes
from pianogen_hf.tokenizers.notes import Notes
from pianogen_hf.tokenizers.tokenization_jsb import JSBTokenizer
from pianogen_hf.tokenizers.tokenization_performance import PerformanceTokenizer
from pianogen_hf.training.arguments import PianoTrainingArguments
from pianogen_hf.training.collator import ChunkCollator
from pianogen_hf.training.trainer import PianoTrainer

EVERYTHING = Augmentation((-3, 3), (-20, 20), (0.9, 1.1))
NOTHING = Augmentation()
TRAIN = [0, 2, 3]


@pytest.fixture(autouse=True, scope="module")
def quiet() -> Iterator[None]:
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def tune(first_pitch: int, count: int) -> Notes:
    pitch = first_pitch + np.arange(count) * 5 % 19
    return Notes.from_columns(480, onset_tick=240 * np.arange(count), duration_tick=[200] * count, pitch=pitch)


NOTES = [tune(45 + 3 * number, count) for number, count in enumerate((3, 9, 30, 61))]


@pytest.fixture(scope="module")
def pieces() -> Dataset:
    midi = [notes_to_midi_bytes(notes) for notes in NOTES]
    return Dataset.from_dict({"piece_id": [f"p{number}" for number in range(4)], "midi": midi})


def make(pieces, tmp_path, tokenizer=None, length=33, augmentation=EVERYTHING, seed=0) -> LazyChunks:
    return LazyChunks(
        pieces, TRAIN, tokenizer or PerformanceTokenizer(), length, augmentation, seed, cache_dir=tmp_path
    )


def epoch_of(chunks: LazyChunks, epoch: int) -> list[tuple]:
    chunks.set_epoch(epoch)
    return [
        (row["piece_id"], row["start"], tuple(row["input_ids"].tolist()))
        for row in (chunks[index] for index in range(len(chunks)))
    ]


# Examples -------------------------------------------------------------------------------------------------------------


def test_an_epoch_has_the_unaugmented_number_of_chunks_of_each_train_piece(pieces, tmp_path):
    rows = epoch_of(make(pieces, tmp_path), 0)
    splits = ["train" if number in TRAIN else "validation" for number in range(4)]
    plain = build_chunks(pieces, splits, PerformanceTokenizer(), 33, tmp_path)["train"]
    assert Counter(piece for piece, *_ in rows) == Counter(plain["piece_id"])
    assert "p1" not in {piece for piece, *_ in rows}


def test_an_example_depends_on_seed_epoch_and_index_alone(pieces, tmp_path):
    one, other = make(pieces, tmp_path), make(pieces, tmp_path)
    rows = epoch_of(one, 5)
    other.set_epoch(5)
    for index in reversed(range(len(other))):  # in another order, and nothing drawn before
        row = other[index]
        assert (row["piece_id"], row["start"], tuple(row["input_ids"].tolist())) == rows[index]
    long = [index for index, (piece, *_) in enumerate(rows) if piece == "p3"]
    assert all(epoch_of(one, 6)[index] != rows[index] for index in long)
    assert all(epoch_of(make(pieces, tmp_path, seed=1), 5)[index] != rows[index] for index in long)
    assert len({rows[index] for index in long}) == len(long)


def test_without_augmentation_chunks_are_cuts_of_the_piece_itself(pieces, tmp_path):
    tokenizer = PerformanceTokenizer()
    whole = {f"p{number}": tokenizer.encode_piece(NOTES[number]) for number in TRAIN}
    for piece, start, ids in epoch_of(make(pieces, tmp_path, augmentation=NOTHING), 0):
        assert list(ids) == whole[piece][start : start + 33]
        assert len(ids) == min(33, len(whole[piece]))  # full wherever the piece is long enough


def test_versions_differ_within_an_epoch_and_keep_to_the_tokenizers_range(pieces, tmp_path):
    tokenizer = PerformanceTokenizer(45, 75)
    seen = set()
    for piece, _, ids in epoch_of(make(pieces, tmp_path, tokenizer, 5000), 0):
        assert ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id
        assert len(tokenizer.decode_notes(ids)) == len(NOTES[int(piece[1])])  # a note out of range would be missing
        seen.add(piece)
    assert seen == {"p0", "p2", "p3"}
    chunks = make(pieces, tmp_path, tokenizer, 5000)
    lowest = {min(tokenizer.decode_notes(epoch_of(chunks, epoch)[0][2])["pitch"]) for epoch in range(40)}
    assert lowest == {45, 46, 47, 48}  # p0 begins at 45: it can only go up


@pytest.mark.parametrize("tokenizer", [PerformanceTokenizer(), JSBTokenizer()], ids=lambda each: type(each).__name__)
def test_over_epochs_every_id_is_predicted_about_once_an_epoch(pieces, tmp_path, tokenizer):
    chunks, epochs = make(pieces, tmp_path, tokenizer, augmentation=NOTHING), 60
    counts = {f"p{number}": np.zeros(len(tokenizer.encode_piece(NOTES[number])), dtype=int) for number in TRAIN}
    for epoch in range(epochs):
        for piece, start, ids in epoch_of(chunks, epoch):
            counts[piece][start + 1 : start + len(ids)] += 1
    for each in counts.values():
        per_epoch = each[1:] / epochs
        if len(each) <= 33:
            assert (per_epoch == 1).all()
            continue
        assert per_epoch.min() > 0.5 and per_epoch.max() < 2.4
        assert 0.6 < per_epoch[0] < 1.25 and 0.6 < per_epoch[-1] < 1.25  # what follows <bos>, and <eos>
        assert 0.9 < per_epoch.mean() < 1.4


@pytest.mark.parametrize("length", [30, 33, 35])
def test_chunks_of_a_grid_begin_at_a_row(pieces, tmp_path, length):
    tokenizer = JSBTokenizer()
    chunks = make(pieces, tmp_path, tokenizer, length)
    rows = [row for epoch in range(20) for row in epoch_of(chunks, epoch)]
    assert all(start % 4 == 0 and len(ids) <= length for _, start, ids in rows)
    assert len({start for _, start, _ in rows}) > 10
    assert all(ids[0] == tokenizer.bos_token_id for _, start, ids in rows if start == 0)


def test_long_chunks_of_a_grid_begin_at_a_bar(tmp_path):
    tokenizer = JSBTokenizer()
    long = Notes.from_columns(480, onset_tick=240 * np.arange(200), duration_tick=[240] * 200, pitch=[60, 62] * 100)
    pieces = Dataset.from_dict({"piece_id": list("0123"), "midi": [notes_to_midi_bytes(long)] * 4})
    chunks = make(pieces, tmp_path, tokenizer, 129)
    rows = [row for epoch in range(20) for row in epoch_of(chunks, epoch)]
    assert all(start % tokenizer.tokens_per_bar == 0 and len(ids) <= 129 for _, start, ids in rows)
    assert len({start for _, start, _ in rows}) > 10


def test_the_ids_are_counted_once(pieces, tmp_path, monkeypatch):
    first = make(pieces, tmp_path)

    def refuse(self, row):
        raise AssertionError("counted again")

    monkeypatch.setattr(lazy._NumIds, "__call__", refuse)
    second = make(pieces, tmp_path, length=50, seed=3)
    assert len(second) < len(first)
    with pytest.raises(AssertionError, match="counted again"):
        make(pieces, tmp_path, PerformanceTokenizer(0, 127))


def test_indices_beyond_the_end_are_refused(pieces, tmp_path):
    chunks = make(pieces, tmp_path)
    with pytest.raises(IndexError):
        chunks[len(chunks)]
    assert chunks[-1]["piece_id"] == "p3"


# Data loaders and the Trainer -----------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.*fork.*")
@pytest.mark.parametrize("context", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_workers_that_live_on_learn_of_the_next_epoch(pieces, tmp_path, context):
    chunks = make(pieces, tmp_path)
    wanted = [[ids for *_, ids in epoch_of(chunks, epoch)] for epoch in (0, 1)]
    loader = torch.utils.data.DataLoader(
        chunks, batch_size=None, num_workers=1, persistent_workers=True, multiprocessing_context=context
    )
    for epoch in (0, 1):
        chunks.set_epoch(epoch)
        assert [tuple(row["input_ids"].tolist()) for row in loader] == wanted[epoch]


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.step


class Recorder(ChunkCollator):
    """Keeps what it collates, for runs without workers."""

    def __init__(self, pad_token_id):
        super().__init__(pad_token_id)
        self.seen = []

    def __call__(self, rows):
        self.seen.append([tuple(row["input_ids"].tolist()) for row in rows])
        return super().__call__(rows)


def train(pieces, cache, folder, callbacks, resume=None, workers=0):
    set_seed(0)
    tokenizer = PerformanceTokenizer()
    config = MusicTransformerConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_relative_distance=8, max_position_embeddings=33, hidden_dropout=0.2, pad_token_id=0,
    )  # fmt: skip
    arguments = PianoTrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=2, max_steps=20, save_strategy="steps", save_steps=10,
        learning_rate=1e-2, bf16=False, report_to="none", disable_tqdm=True, logging_steps=1, use_cpu=True,
        dataloader_num_workers=workers,
    )  # fmt: skip
    chunks, recorder = make(pieces, cache), Recorder(tokenizer.pad_token_id)
    assert len(chunks) == 13  # so the 10th step is in the middle of the second epoch of 7
    trainer = PianoTrainer(
        eval_notes=1, model=MusicTransformerForCausalLM(config), args=arguments, train_dataset=chunks,
        data_collator=recorder, callbacks=callbacks,
    )  # fmt: skip
    trainer.train(resume_from_checkpoint=resume)
    return recorder.seen


@pytest.mark.filterwarnings("ignore:.*fork.*")
@pytest.mark.parametrize("workers", [0, 1])
def test_a_run_resumed_in_mid_epoch_equals_an_uninterrupted_one_bit_by_bit(pieces, tmp_path, workers):
    straight = train(pieces, tmp_path, tmp_path / "straight", [], workers=workers)
    train(pieces, tmp_path, tmp_path / "halted", [StopAt(10)], workers=workers)
    assert not (tmp_path / "halted" / "checkpoint-20").exists()
    resumed = train(
        pieces, tmp_path, tmp_path / "halted", [], str(tmp_path / "halted" / "checkpoint-10"), workers=workers
    )
    if not workers:
        assert resumed == straight[10:] and len({ids for batch in straight for ids in batch}) > 20
    one, two = (load_file(tmp_path / name / "checkpoint-20" / "model.safetensors") for name in ("straight", "halted"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    halfway = load_file(tmp_path / "halted" / "checkpoint-10" / "model.safetensors")
    assert any(not torch.equal(one[name], halfway[name]) for name in one)
