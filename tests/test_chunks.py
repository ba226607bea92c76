"""Chunks: every id is predicted exactly once, pieces keep apart, only training is augmented, the cache is exact."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from models_and_tokenizers import TOKENIZERS

from pianogen_hf.data.augment import Augmentation
from pianogen_hf.data.caching import fingerprint_of
from pianogen_hf.data.chunks import _TokenizeBatch, build_chunks, chunk_features, notes_of, tokenizer_key
from pianogen_hf.errors import DataError
from pianogen_hf.tokenizers.feature_extraction_continuous_notes import ContinuousNotesFeatureExtractor
from pianogen_hf.tokenizers.midi import notes_to_midi_bytes
from pianogen_hf.tokenizers.notes import Notes
from pianogen_hf.tokenizers.tokenization_craykh import CrayKHTokenizer
from pianogen_hf.tokenizers.tokenization_jsb import JSBTokenizer
from pianogen_hf.tokenizers.tokenization_notes import NoteTokenizer
from pianogen_hf.tokenizers.tokenization_performance import PerformanceTokenizer
from pianogen_hf.tokenizers.tokenization_remi import RemiTokenizer

SPLITS = ["train", "validation", "train", "test", "train", "validation"]


@pytest.fixture(autouse=True, scope="module")
def quiet() -> Iterator[None]:
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def tune(first_pitch: int, count: int) -> Notes:
    pitch = first_pitch + np.arange(count) % 12
    return Notes.from_columns(480, onset_tick=240 * np.arange(count), duration_tick=[200] * count, pitch=pitch)


NOTES = [tune(45 + 3 * number, 5 + 9 * number) for number in range(6)]


@pytest.fixture(scope="module")
def pieces() -> Dataset:
    return Dataset.from_dict(
        {"piece_id": [f"p{number}" for number in range(6)], "midi": [notes_to_midi_bytes(notes) for notes in NOTES]}
    )


def predictions(rows: list[dict]) -> dict[str, list[int]]:
    """Per piece the indices of the ids that its chunks predict; also checks that chunks agree with each other."""
    predicted: dict[str, list[int]] = defaultdict(list)
    for row in rows:
        assert 1 <= row["first_label"] < len(row["input_ids"])
        predicted[row["piece_id"]] += range(row["start"] + row["first_label"], row["start"] + len(row["input_ids"]))
    return predicted


def ids_of(rows: list[dict]) -> dict[str, list[int]]:
    """Each piece put together again from its chunks."""
    known: dict[str, dict[int, int]] = defaultdict(dict)
    for row in rows:
        for index, token in enumerate(row["input_ids"], start=row["start"]):
            assert known[row["piece_id"]].setdefault(index, token) == token
    return {piece: [ids[index] for index in range(len(ids))] for piece, ids in known.items()}


@pytest.mark.parametrize("chunk_length", [2, 9, 33, 34, 5000])
@pytest.mark.parametrize("tokenizer", [PerformanceTokenizer(), JSBTokenizer()], ids=lambda each: type(each).__name__)
def test_every_id_after_bos_is_predicted_exactly_once_on_every_side(pieces, tmp_path, tokenizer, chunk_length):
    chunks = build_chunks(pieces, SPLITS, tokenizer, chunk_length, tmp_path)
    assert set(chunks) == {"train", "validation", "test"}
    for side, rows in chunks.items():
        own = {f"p{number}": tokenizer.encode_piece(NOTES[number]) for number in range(6) if SPLITS[number] == side}
        rows = list(rows)
        assert ids_of(rows) == own  # nothing of a piece stands in another's chunk
        assert predictions(rows) == {piece: list(range(1, len(ids))) for piece, ids in own.items()}
        longest = max(chunk_length, tokenizer.tokens_per_step + 1)
        assert all(len(row["input_ids"]) <= longest for row in rows)


def test_windows_of_a_grid_begin_at_a_bar(tmp_path):
    scale = tune(48, 200)  # eighths: 100 quarters
    long = Dataset.from_dict({"piece_id": ["p0", "p1"], "midi": [notes_to_midi_bytes(scale)] * 2})
    tokenizer = JSBTokenizer()
    for chunk_length in (257, 300):
        chunks = build_chunks(long, ["train", "validation"], tokenizer, chunk_length, tmp_path)
        for rows in chunks.values():
            assert len(rows) > 2 and all(start % tokenizer.tokens_per_bar == 0 for start in rows["start"])


@pytest.mark.parametrize("chunk_length", [2, 9, 34, 5000])
def test_rows_of_notes_are_cut_as_ids_are(pieces, tmp_path, chunk_length):
    extractor = ContinuousNotesFeatureExtractor()
    chunks = build_chunks(pieces, SPLITS, extractor, chunk_length, tmp_path)
    assert set(chunks) == {"train", "validation", "test"}
    for side, rows in chunks.items():
        assert rows.features == chunk_features(extractor) and "input_ids" not in rows.column_names
        own = {f"p{number}": extractor.encode_piece(NOTES[number]) for number in range(6) if SPLITS[number] == side}
        named = [{**row, "input_ids": [tuple(each) for each in row["input_values"]]} for row in rows]
        assert ids_of(named) == {piece: [tuple(each) for each in steps.tolist()] for piece, steps in own.items()}
        assert predictions(named) == {piece: list(range(1, len(steps))) for piece, steps in own.items()}
        assert all(len(row["input_values"]) <= chunk_length for row in rows)
        if side == "train":
            assert set(rows["first_label"]) == {1}
        elif chunk_length > 2:
            half = (chunk_length - 1) // 2
            assert all(row["start"] % (chunk_length - 1 - half) == 0 for row in rows)


def test_the_grid_of_rows_is_part_of_the_caches_name_and_rows_can_be_packed(pieces, tmp_path):
    seen = [
        files_of(build_chunks(pieces, SPLITS, extractor, 33, tmp_path, packing=packing)["train"])[0]
        for extractor in (ContinuousNotesFeatureExtractor(), ContinuousNotesFeatureExtractor(1000))
        for packing in (False, True)
    ]
    assert len(set(seen)) == 4


def test_cached_chunks_of_tokenizers_keep_their_name():
    """Chunks that an earlier version cached are found again: this is what it named them after."""
    assert tokenizer_key(PerformanceTokenizer())[0] == "PerformanceTokenizer"
    assert fingerprint_of(tokenizer_key(PerformanceTokenizer())) == "d0d3fdab290b5d30"
    assert fingerprint_of(tokenizer_key(JSBTokenizer())) == "7ca364bd986b748f"


@settings(max_examples=150, deadline=None)
@given(
    lengths=st.lists(st.integers(2, 200), min_size=1, max_size=6),
    size=st.integers(1, 60),
    overlap_share=st.floats(0, 0.99),
)
def test_whatever_the_lengths_every_id_is_predicted_once_after_enough_context(lengths, size, overlap_share):
    overlap = int(size * overlap_share)
    cutter = _TokenizeBatch(JSBTokenizer(), size, overlap, None, 0, packing=False)
    ids = [(f"p{number}", np.arange(length) + 1000 * number) for number, length in enumerate(lengths)]
    columns = ("input_ids", "piece_id", "start", "first_label")
    rows = [dict(zip(columns, row, strict=True)) for row in cutter._cut(ids)]
    assert predictions(rows) == {f"p{number}": list(range(1, length)) for number, length in enumerate(lengths)}
    for row in rows:
        assert np.array_equal(row["input_ids"], ids[int(row["piece_id"][1:])][1][row["start"] :][: size + 1])
        assert row["start"] == 0 or row["first_label"] == overlap + 1  # all context there is, or the overlap


@settings(max_examples=100, deadline=None)
@given(lengths=st.lists(st.integers(2, 90), min_size=1, max_size=8), size=st.integers(1, 60))
def test_packing_covers_the_stream_of_all_pieces_once(lengths, size):
    packer = _TokenizeBatch(JSBTokenizer(), size, 0, None, 0, packing=True)
    starts = np.cumsum([0, *lengths])
    stream = np.arange(starts[-1])
    rows = list(
        packer._pack([(f"p{n}", stream[a:b]) for n, (a, b) in enumerate(zip(starts, starts[1:], strict=False))])
    )
    assert all(first_label == 1 for *_, first_label in rows)
    assert np.array_equal(np.concatenate([ids[1:] for ids, *_ in rows]), stream[1:])
    assert all(len(ids) == size + 1 for ids, *_ in rows[:-1])
    for ids, names, start, _ in rows:
        held = [n for n in range(len(lengths)) if starts[n] <= ids[-1] and ids[0] < starts[n + 1]]
        assert names == "|".join(f"p{n}" for n in held)
        assert ids[0] == starts[held[0]] + start


def test_only_train_is_packed_and_only_when_asked(pieces, tmp_path):
    tokenizer = PerformanceTokenizer()
    packed = build_chunks(pieces, SPLITS, tokenizer, 64, tmp_path, packing=True)
    assert any("|" in name for name in packed["train"]["piece_id"])
    plain = build_chunks(pieces, SPLITS, tokenizer, 64, tmp_path)
    assert not any("|" in name for side in plain.values() for name in side["piece_id"])
    for side in ("validation", "test"):
        assert packed[side].to_list() == plain[side].to_list()


def test_evaluation_windows_slide_by_half_and_training_chunks_do_not_overlap(pieces, tmp_path):
    chunks = build_chunks(pieces, SPLITS, PerformanceTokenizer(), 33, tmp_path)
    assert set(chunks["train"]["first_label"]) == {1}
    assert set(chunks["validation"]["first_label"]) == {1, 17}
    starts = [row["start"] for row in chunks["validation"] if row["piece_id"] == "p5"]
    assert starts == list(range(0, 16 * len(starts), 16))


@pytest.mark.parametrize("chunk_length", [30, 33, 35])
def test_jsb_chunks_begin_at_the_same_voice(pieces, tmp_path, chunk_length):
    chunks = build_chunks(pieces, SPLITS, JSBTokenizer(), chunk_length, tmp_path)
    assert all(row["start"] % 4 == 0 and row["first_label"] % 4 == 1 for side in chunks.values() for row in side)
    train = chunks["train"]
    assert max(len(ids) for ids in train["input_ids"]) % 4 == 1


def test_only_training_is_transposed(pieces, tmp_path):
    tokenizer = PerformanceTokenizer()
    chunks = build_chunks(pieces, SPLITS, tokenizer, 5000, tmp_path, augmentation=Augmentation((-1, 2)))
    train = [row["input_ids"] for row in chunks["train"] if row["piece_id"] == "p2"]
    assert train == [tokenizer.encode_piece(NOTES[2].transposed(semitones)) for semitones in (-1, 0, 1, 2)]
    for side in ("validation", "test"):
        own = [tokenizer.encode_piece(NOTES[number]) for number in range(6) if SPLITS[number] == side]
        assert chunks[side]["input_ids"][:] == own


@pytest.mark.parametrize("tokenizer_class", TOKENIZERS, ids=lambda each: each.__name__)
def test_evaluation_sides_are_the_same_files_with_and_without_augmentation(pieces, tmp_path, tokenizer_class):
    everything = Augmentation((-1, 1), (-9, 9), (0.9, 1.1))
    plain = build_chunks(pieces, SPLITS, tokenizer_class(), 33, tmp_path)
    augmented = build_chunks(pieces, SPLITS, tokenizer_class(), 33, tmp_path, augmentation=everything, seed=1)
    elsewhere = build_chunks(
        pieces, SPLITS, tokenizer_class(), 33, tmp_path / "2", augmentation=everything, packing=True
    )
    assert len(augmented["train"]) > len(plain["train"])
    for side in ("validation", "test"):
        assert files_of(augmented[side]) == files_of(plain[side])
        assert elsewhere[side].to_list() == plain[side].to_list()


def test_transposed_copies_get_a_loudness_and_a_tempo_and_the_piece_itself_none(pieces, tmp_path):
    augmentation, tokenizer = Augmentation((-1, 1), (20, 30), (1.2, 1.3)), PerformanceTokenizer()
    train = build_chunks(pieces, SPLITS, tokenizer, 5000, tmp_path, augmentation=augmentation, seed=7)["train"]
    low, own, high = [row["input_ids"] for row in train if row["piece_id"] == "p2"]
    assert own == tokenizer.encode_piece(NOTES[2])
    for ids in (low, high):
        copy = tokenizer.decode_notes(ids)
        assert 1.19 < copy.end_sec / NOTES[2].end_sec < 1.31
        assert set(copy["velocity"]) <= set(range(64 + 16, 64 + 35))


def test_loudness_and_tempo_alone_make_one_copy_beside_the_piece(pieces, tmp_path):
    tokenizer = PerformanceTokenizer()
    plain = build_chunks(pieces, SPLITS, tokenizer, 4097, tmp_path)["train"]["input_ids"][:]
    both = build_chunks(
        pieces, SPLITS, tokenizer, 4097, tmp_path, augmentation=Augmentation((0, 0), (-30, -20), (1.2, 1.3))
    )["train"]["input_ids"][:]
    assert both[::2] == plain and len(both) == 2 * len(plain)
    assert all(altered != own for altered, own in zip(both[1::2], plain, strict=True))


def test_sides_share_no_piece(pieces, tmp_path):
    chunks = build_chunks(pieces, SPLITS, PerformanceTokenizer(), 20, tmp_path, augmentation=Augmentation((-2, 2)))
    names = {side: set(rows["piece_id"]) for side, rows in chunks.items()}
    assert names == {"train": {"p0", "p2", "p4"}, "validation": {"p1", "p5"}, "test": {"p3"}}


def test_a_side_without_pieces_has_no_chunks(pieces, tmp_path):
    assert set(build_chunks(pieces, ["train"] * 6, PerformanceTokenizer(), 20, tmp_path)) == {"train"}


def test_the_music_of_a_side_is_its_own(pieces):
    assert list(notes_of(pieces, SPLITS, "validation")) == [replace(NOTES[n], track_names=("",)) for n in (1, 5)]


def test_a_piece_that_cannot_be_tokenized_is_named(tmp_path):
    endless = Notes.from_columns(1, onset_tick=[0, 200_000], duration_tick=[1, 1], pitch=[60, 62])
    pieces = Dataset.from_dict({"piece_id": ["folder/endless.mid"], "midi": [notes_to_midi_bytes(endless)]})
    with pytest.raises(DataError, match="folder/endless.mid can't be tokenized") as caught:
        build_chunks(pieces, ["train"], RemiTokenizer(), 64, tmp_path)
    assert "\n" not in str(caught.value)


# The cache -----------------------------------------------------------------------------------------------------------


def files_of(chunks: Dataset | datasets.DatasetDict) -> list[str]:
    sides = chunks.values() if isinstance(chunks, datasets.DatasetDict) else [chunks]
    return sorted(file["filename"] for side in sides for file in side.cache_files)


def test_a_second_call_finds_the_same_files_and_tokenizes_nothing(pieces, tmp_path, monkeypatch):
    first = build_chunks(pieces, SPLITS, PerformanceTokenizer(), 33, tmp_path)

    def refuse(self, batch):
        raise AssertionError("tokenized again")

    monkeypatch.setattr(_TokenizeBatch, "__call__", refuse)
    second = build_chunks(pieces, SPLITS, PerformanceTokenizer(), 33, tmp_path)
    assert files_of(second) == files_of(first) != []
    assert second["train"].to_list() == first["train"].to_list()


def fitted(pieces: list[Notes]) -> NoteTokenizer:
    tokenizer = RemiTokenizer()
    tokenizer.train_bpe(pieces, len(tokenizer) + 10)
    return tokenizer


def test_every_setting_is_part_of_the_caches_name(pieces, tmp_path):
    base = {"tokenizer": PerformanceTokenizer(), "chunk_length": 33}
    others = [
        {"tokenizer": PerformanceTokenizer(0, 127)},
        {"tokenizer": CrayKHTokenizer()},
        {"tokenizer": CrayKHTokenizer(transposition=1)},
        {"tokenizer": RemiTokenizer()},
        {"tokenizer": RemiTokenizer(config={"num_velocities": 16})},
        {"tokenizer": RemiTokenizer(config={"remove_duplicated_notes": False})},  # the same vocabulary
        {"tokenizer": RemiTokenizer(scheme="TSD")},
        {"tokenizer": fitted(NOTES[:3])},
        {"tokenizer": fitted(NOTES[3:])},
        {"chunk_length": 40},
        {"augmentation": Augmentation((0, 1))},
        {"augmentation": Augmentation((0, 1), velocity=(0, 3))},
        {"augmentation": Augmentation((0, 1), velocity=(0, 3)), "seed": 1},
        {"augmentation": Augmentation((0, 1), stretch=(1.0, 1.1))},
        {"packing": True},
    ]
    seen: set[str] = set()
    for change in ({}, *others):
        settings_ = {**base, **change}
        tokenizer, length = settings_.pop("tokenizer"), settings_.pop("chunk_length")
        train = files_of(build_chunks(pieces, SPLITS, tokenizer, length, tmp_path, **settings_)["train"])
        assert not seen & set(train), change
        seen |= set(train)
    again = build_chunks(pieces, SPLITS, fitted(NOTES[:3]), 33, tmp_path)
    assert set(files_of(again)) & seen  # equal settings, another object


def test_another_choice_of_pieces_is_another_file(pieces, tmp_path):
    tokenizer = PerformanceTokenizer()
    first = build_chunks(pieces, SPLITS, tokenizer, 33, tmp_path)
    other = build_chunks(pieces, SPLITS[::-1], tokenizer, 33, tmp_path)
    assert not set(files_of(first)) & set(files_of(other))


@pytest.mark.filterwarnings("ignore:.*fork.*")
def test_several_processes_cut_the_same_chunks_as_one(tmp_path):
    notes = [tune(40 + number % 30, 4 + number % 7) for number in range(66)]
    many = Dataset.from_dict(
        {"piece_id": [f"p{n}" for n in range(66)], "midi": [notes_to_midi_bytes(each) for each in notes]}
    )
    one = build_chunks(many, ["train"] * 66, PerformanceTokenizer(), 20, tmp_path / "one")
    two = build_chunks(many, ["train"] * 66, PerformanceTokenizer(), 20, tmp_path / "two", num_proc=2)
    assert two["train"].to_list() == one["train"].to_list()
    assert len(list(Path(tmp_path / "two").rglob("*.arrow"))) == 2
