"""What every exported tokenizer promises whose steps are rows of ids."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from midi_files import note_tables
from models_and_tokenizers import ROW_TOKENIZERS, some_notes
from transformers import AutoTokenizer

import pianogen_hf as pg

EVERY = [each() for each in ROW_TOKENIZERS]
pytestmark = pytest.mark.parametrize("tokenizer", EVERY, ids=lambda each: type(each).__name__)


def flat(rows):
    return np.asarray(rows).ravel()


def one_program_per_channel(notes):
    """In MIDI a channel has one program at a time; a note table may say otherwise."""
    notes.table["program"] = np.where(notes["is_drum"], 25, notes["channel"] * 7)
    return pg.Notes(notes.table, notes.ticks_per_quarter, notes.tempos, notes.time_signatures, notes.pedals)


def test_a_piece_stands_between_its_beginning_and_its_end(tokenizer):
    notes, width = some_notes(), tokenizer.ids_per_row
    rows = tokenizer.encode_piece(notes)
    assert rows.shape == (len(tokenizer.encode_notes(notes)) + 2, width) and rows.dtype == np.int64
    assert (rows[:1] == tokenizer.beginning).all() and (rows[-1:] == tokenizer.ending).all()
    assert tokenizer.encode_prompt(notes).tolist() == rows[: len(tokenizer.encode_prompt(notes))].tolist()
    assert tokenizer.piece_steps(notes).dtype == np.int32


@given(notes=note_tables().map(one_program_per_channel))
@settings(max_examples=30)
def test_what_was_decoded_encodes_to_the_same_rows(tokenizer, notes):
    rows = tokenizer.encode_notes(notes)
    assert tokenizer.encode_notes(tokenizer.decode_notes(rows)).tolist() == rows.tolist()


@given(notes=note_tables())
@settings(max_examples=20)
def test_every_beginning_of_a_piece_allows_the_id_that_follows(tokenizer, notes):
    ids = flat(tokenizer.encode_piece(notes))
    for length in range(tokenizer.ids_per_row, len(ids)):
        assert tokenizer.allowed_next(ids[:length])[ids[length]]
    assert np.flatnonzero(tokenizer.allowed_next(ids)).tolist() == [tokenizer.pad_token_id]


def test_a_random_walk_through_the_grammar_decodes(tokenizer):
    random, ids = np.random.default_rng(0), flat(tokenizer.beginning).tolist()
    while len(ids) < 60 * tokenizer.ids_per_row:
        allowed = np.flatnonzero(tokenizer.allowed_next(ids))
        ids.append(int(random.choice(allowed[allowed != tokenizer.eos_token_id])))
    rows = np.array(ids).reshape(-1, tokenizer.ids_per_row)
    assert len(tokenizer.decode_notes(rows)) > 0
    assert pg.read_midi(tokenizer.to_midi(rows), programs=None, drums=True).table is not None


def test_any_rows_decode(tokenizer):
    rows = np.random.default_rng(0).integers(0, len(tokenizer), (50, tokenizer.ids_per_row))
    assert isinstance(tokenizer.decode_notes(rows), pg.Notes)


def test_music_comes_as_path_bytes_notes_rows_or_text(tokenizer, tmp_path):
    notes = some_notes()
    pg.write_midi(notes, tmp_path / "ノクターン.mid")
    notes = pg.read_midi(tmp_path / "ノクターン.mid")
    expected = tokenizer.encode_prompt(notes).tolist()
    path, rows = tmp_path / "ノクターン.mid", tokenizer.encode_notes(notes)
    for music in (path, path.read_bytes(), tokenizer.to_midi(rows), notes, rows, tokenizer.notes_to_text(notes)):
        assert len(tokenizer(music)["input_ids"]) == len(expected)
    for music in (notes, rows, tokenizer.notes_to_text(notes)):
        assert tokenizer(music)["input_ids"] == expected
    assert tokenizer([notes, rows])["input_ids"] == [expected, expected]
    with pytest.raises(ValueError, match="pathlib.Path"):
        tokenizer("music.mid")
    with pytest.raises(ValueError, match="no event"):
        tokenizer("nonsense")
    with pytest.raises(pg.MidiError):
        tokenizer(b"not music")


def test_batches_are_padded_truncated_and_made_tensors(tokenizer):
    long, short = some_notes(0), some_notes(1, num_notes=2)
    lengths = [len(tokenizer.encode_prompt(notes)) for notes in (long, short)]
    batch = tokenizer([long, short], padding=True, return_tensors="pt")
    assert batch["input_ids"].shape == (2, max(lengths), tokenizer.ids_per_row)
    assert batch["attention_mask"].sum(1).tolist() == lengths
    assert (batch["input_ids"][batch["attention_mask"] == 0] == tokenizer.pad_token_id).all()
    left = tokenizer([long, short], padding=True, padding_side="left", return_tensors="np")
    assert left["attention_mask"][1].tolist() == sorted(left["attention_mask"][1].tolist())
    cut = tokenizer([long, short], truncation=True, max_length=3, padding="max_length", return_tensors="np")
    assert cut["input_ids"].shape == (2, 3, tokenizer.ids_per_row)
    assert tokenizer(short, return_tensors="pt")["input_ids"].shape == (1, lengths[1], tokenizer.ids_per_row)


def test_empty_music_is_the_beginning_alone(tokenizer):
    nothing = pg.Notes.from_seconds([], [], [])
    assert tokenizer(nothing)["input_ids"][0] == tokenizer.beginning[0].tolist()
    assert len(tokenizer.decode_notes(tokenizer.encode_piece(nothing))) == 0
    assert len(tokenizer.decode_notes([])) == 0


def test_text_and_rows_say_the_same(tokenizer):
    text = tokenizer.notes_to_text(some_notes())
    rows = tokenizer.encode_notes(some_notes())
    assert tokenizer.text_to_rows(text).tolist() == rows.tolist()
    assert tokenizer.rows_to_text(tokenizer.text_to_rows(text)) == text
    assert tokenizer.text_to_notes(text) == tokenizer.decode_notes(rows)


def test_saving_and_loading_keeps_every_id(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    for loaded in (type(tokenizer).from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)):
        assert type(loaded) is type(tokenizer)
        assert loaded.get_vocab() == tokenizer.get_vocab()
        assert loaded.encode_piece(some_notes()).tolist() == tokenizer.encode_piece(some_notes()).tolist()


def test_rows_may_be_list_array_or_tensor_and_nothing_else(tokenizer):
    rows = tokenizer.encode_piece(some_notes())
    for kind in (np.array, torch.tensor, lambda each: each.tolist()):
        assert tokenizer.decode_notes(kind(rows)) == tokenizer.decode_notes(rows)
    with pytest.raises(ValueError, match="ids must lie"):
        tokenizer.decode_notes(np.full((1, tokenizer.ids_per_row), len(tokenizer)))
    with pytest.raises(ValueError, match="rows of"):
        tokenizer.decode_notes(rows.ravel())


def test_special_ids_come_first_and_vocabulary_is_a_bijection(tokenizer):
    assert [tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id] == [0, 1, 2]
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))
