"""What every exported tokenizer promises."""

import importlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from models_and_tokenizers import TOKENIZERS, some_notes
from transformers import AutoTokenizer
from transformers.generation.stopping_criteria import StopStringCriteria

import pianogen_hf as pg
from pianogen_hf.tokenizers.notes import TEMPO_DTYPE

GOLDEN = Path(__file__).parent / "golden"
pytestmark = pytest.mark.parametrize("tokenizer", [each() for each in TOKENIZERS], ids=lambda each: type(each).__name__)


@st.composite
def any_notes(draw):
    """Any piano music, off every grid: chords, overlaps, zero lengths, extreme pitches and tempos."""
    rows = st.tuples(st.integers(0, 8000), st.integers(0, 2000), st.integers(0, 127), st.integers(1, 127))
    table = draw(st.lists(rows, max_size=20))
    onset, duration, pitch, velocity = np.array(table, dtype=np.int64).reshape(-1, 4).T
    notes = pg.Notes.from_columns(
        draw(st.sampled_from([24, 384, 480, 500])),
        onset_tick=onset,
        duration_tick=duration,
        pitch=pitch,
        velocity=velocity,
    )
    notes.tempos["us_per_quarter"] = draw(st.integers(200_000, 2_000_000))
    return notes


def test_the_golden_text_is_what_the_rules_give_by_hand(tokenizer):
    scheme = type(tokenizer).__module__.rpartition("tokenization_")[2]
    golden = json.loads((GOLDEN / f"{scheme}.json").read_text(encoding="utf-8"))
    columns = {name: [note[name] for note in golden["notes"]] for name in golden["notes"][0]}
    tempos = np.array([(0, golden["us_per_quarter"])], dtype=TEMPO_DTYPE)
    notes = pg.Notes.from_columns(golden["ticks_per_quarter"], tempos, **columns)
    assert tokenizer.notes_to_text(notes) == golden["text"]


@given(notes=any_notes())
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_was_decoded_encodes_to_the_same_ids(tokenizer, notes):
    ids = tokenizer.encode_notes(notes)
    assert tokenizer.encode_notes(tokenizer.decode_notes(ids)) == ids


@given(notes=any_notes())
@settings(max_examples=15, deadline=None)
def test_every_prefix_of_a_piece_allows_the_id_that_follows(tokenizer, notes):
    ids = tokenizer.encode_piece(notes)
    for length in range(1, len(ids)):
        assert tokenizer.allowed_next(ids[:length])[ids[length]], tokenizer.convert_ids_to_tokens(ids[: length + 1])[
            -5:
        ]


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=15, deadline=None)
def test_any_ids_decode_and_leave_something_allowed(tokenizer, seed):
    ids = np.random.default_rng(seed).integers(0, len(tokenizer), 60)
    assert isinstance(tokenizer.decode_notes(ids), pg.Notes)
    assert tokenizer.allowed_next(ids).any()
    assert tokenizer.allowed_next(ids).shape == (len(tokenizer),)


@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=10, deadline=None)
def test_a_random_walk_through_the_grammar_is_a_piece(tokenizer, seed):
    """Ids drawn by the grammar alone decode, and encode again, to themselves."""
    random = np.random.default_rng(seed)
    ids = [tokenizer.bos_token_id]
    for _ in range(120):
        ids.append(int(random.choice(np.flatnonzero(tokenizer.allowed_next(ids)))))
        if ids[-1] == tokenizer.eos_token_id:
            break
    assert ids[1:-1].count(tokenizer.pad_token_id) == ids[1:].count(tokenizer.bos_token_id) == 0
    assert len(tokenizer.decode_notes(ids)) > 0 or len(ids) < 8


def test_music_comes_as_path_bytes_notes_or_text(tokenizer, tmp_path):
    notes = some_notes()
    path = tmp_path / "ノクターン.mid"
    pg.write_midi(notes, path)
    expected = [tokenizer.bos_token_id, *tokenizer.encode_notes(notes)]
    for music in (path, path.read_bytes(), notes, tokenizer.notes_to_text(notes)):
        assert tokenizer(music)["input_ids"] == expected
    assert tokenizer([path, notes])["input_ids"] == [expected, expected]


def test_batches_are_padded_truncated_and_made_tensors(tokenizer):
    long, short = some_notes(0), some_notes(1, num_notes=2)
    batch = tokenizer([long, short], padding=True, return_tensors="pt")
    lengths = [len(tokenizer.encode_notes(notes)) + 1 for notes in (long, short)]
    assert batch["input_ids"].shape == (2, max(lengths))
    assert batch["attention_mask"].sum(1).tolist() == lengths
    assert (batch["input_ids"][batch["attention_mask"] == 0] == tokenizer.pad_token_id).all()
    cut = tokenizer([long, short], truncation=True, max_length=8, padding="max_length", return_tensors="np")
    assert cut["input_ids"].shape == (2, 8) and (cut["input_ids"][:, 0] == tokenizer.bos_token_id).all()
    left = tokenizer([long, short], padding=True, padding_side="left", return_tensors="pt")
    assert left["attention_mask"][1, 0] == 0 and left["attention_mask"][1, -1] == 1


def test_empty_music_is_bos_alone(tokenizer):
    nothing = pg.Notes.from_seconds([], [], [])
    assert tokenizer(nothing)["input_ids"] == [tokenizer.bos_token_id]
    assert tokenizer([nothing, some_notes()], padding=True)["attention_mask"][0].count(1) == 1
    assert len(tokenizer.decode_notes([])) == 0


def test_a_file_name_as_text_is_refused_with_the_remedy(tokenizer):
    with pytest.raises(ValueError, match="pathlib.Path"):
        tokenizer("music.mid")


def test_text_that_is_no_event_is_refused(tokenizer):
    with pytest.raises(ValueError, match="no event"):
        tokenizer("\x01NOT_AN_EVENT")


def test_bytes_that_are_no_midi_are_refused(tokenizer):
    with pytest.raises(pg.MidiError):
        tokenizer(b"not music")


def test_text_and_ids_say_the_same(tokenizer):
    notes = some_notes()
    text = tokenizer.notes_to_text(notes)
    assert tokenizer.decode(tokenizer.encode_notes(notes)) == text
    assert tokenizer.text_to_notes(text) == tokenizer.decode_notes(tokenizer.encode_notes(notes))


def test_saving_and_loading_keeps_every_id(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    assert not (
        tmp_path / "tokenizer.json"
    ).exists()  # its presence would make AutoTokenizer take the folder for another
    for loaded in (type(tokenizer).from_pretrained(tmp_path), AutoTokenizer.from_pretrained(tmp_path)):
        assert type(loaded) is type(tokenizer)
        assert loaded.get_vocab() == tokenizer.get_vocab() and len(loaded) == len(tokenizer)
        assert loaded.encode_notes(some_notes()) == tokenizer.encode_notes(some_notes())


def extended(tokenizer):
    own = type(tokenizer)()
    own.add_tokens(["<style>", "<calm>"])
    return own


def test_added_tokens_are_for_prompts_and_change_nothing_else(tokenizer, tmp_path):
    own, notes = extended(tokenizer), some_notes()
    style = own.convert_tokens_to_ids("<style>")
    assert style == len(tokenizer) == len(own) - 2
    ids = tokenizer.encode_piece(notes)
    marked = [style, *ids[:3], style + 1, *ids[3:-1], style]
    assert own.decode_notes(marked) == tokenizer.decode_notes(ids)
    assert own.to_midi(marked) == tokenizer.to_midi(ids)
    for length in (0, 1, 5, len(marked)):
        plain = [each for each in marked[:length] if each < style]
        allowed = own.allowed_next(marked[:length])
        assert allowed.shape == (len(own),) and not allowed[style:].any()
        assert allowed[:style].tolist() == tokenizer.allowed_next(plain).tolist()
    own.save_pretrained(tmp_path)
    loaded = type(own).from_pretrained(tmp_path)
    assert loaded.decode_notes(marked) == tokenizer.decode_notes(ids) and loaded.get_vocab() == own.get_vocab()


def test_music_may_be_called_text(tokenizer):
    text = tokenizer.notes_to_text(some_notes())
    assert tokenizer(text=text)["input_ids"] == tokenizer(text)["input_ids"]
    assert tokenizer(text=[text, text])["input_ids"] == [tokenizer(text)["input_ids"]] * 2


def test_words_of_one_piece_are_one_piece(tokenizer):
    ids = tokenizer.encode_notes(some_notes())
    words = tokenizer.convert_ids_to_tokens(ids)
    expected = tokenizer(tokenizer.notes_to_text(some_notes()))["input_ids"]
    assert tokenizer(words, is_split_into_words=True)["input_ids"] == expected
    batch = tokenizer([words, words[:4]], is_split_into_words=True, padding=True, return_tensors="np")
    assert batch["input_ids"][0].tolist() == expected and batch["attention_mask"][1].sum() == 5


def test_generation_stops_at_a_string_of_events(tokenizer):
    names = tokenizer.convert_ids_to_tokens([3, 4, 5])
    joined = tokenizer.convert_tokens_to_string(names[:2])
    criteria = StopStringCriteria(tokenizer, [joined])
    rows = torch.tensor([[1, 5, 3, 4], [1, 3, 4, 5]])
    assert criteria(rows, None).tolist() == [True, False]


def test_a_subclass_of_a_package_is_saved_and_loads(tokenizer, tmp_path, monkeypatch):
    parent = type(tokenizer)
    package = tmp_path / "strangers" / "parts"
    package.mkdir(parents=True)
    for folder in (package, package.parent):
        (folder / "__init__.py").write_text("")
    (package.parent / "base.py").write_text(f"from {parent.__module__} import {parent.__name__} as Base\n")
    (package / "own.py").write_text("from ..base import Base\n\n\nclass StrangersTokenizer(Base):\n    pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.startswith("strangers")]:
        monkeypatch.delitem(sys.modules, name)
    own = importlib.import_module("strangers.parts.own").StrangersTokenizer()
    with pytest.warns(UserWarning, match="without its code"):
        own.save_pretrained(tmp_path / "saved")
    assert own._auto_class == "AutoTokenizer" and not (tmp_path / "saved" / "own.py").exists()
    loaded = type(own).from_pretrained(tmp_path / "saved")
    assert loaded.encode_notes(some_notes()) == tokenizer.encode_notes(some_notes())


def test_special_ids_come_first_and_vocabulary_is_a_bijection(tokenizer):
    assert sorted([tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id]) == [0, 1, 2]
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))
    assert tokenizer.convert_tokens_to_ids(tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))) == list(
        range(len(tokenizer))
    )


def test_ids_may_be_list_array_or_tensor(tokenizer):
    ids = tokenizer.encode_piece(some_notes())
    for kind in (np.array, torch.tensor):
        assert tokenizer.decode_notes(kind(ids)) == tokenizer.decode_notes(ids)
        assert (tokenizer.allowed_next(kind(ids[:-1])) == tokenizer.allowed_next(ids[:-1])).all()
    with pytest.raises(ValueError, match="ids must lie"):
        tokenizer.decode_notes([len(tokenizer)])


def test_after_the_end_only_padding_may_follow(tokenizer):
    allowed = tokenizer.allowed_next(tokenizer.encode_piece(some_notes()))
    assert np.flatnonzero(allowed).tolist() == [tokenizer.pad_token_id]


def test_decoded_music_is_writable_and_reads_back(tokenizer):
    decoded = tokenizer.decode_notes(tokenizer.encode_notes(some_notes()))
    again = pg.read_midi(pg.notes_to_midi_bytes(decoded))
    columns = ["onset_tick", "duration_tick", "pitch", "velocity"]
    assert sorted(again.table[columns].tolist()) == sorted(decoded.table[columns].tolist())


def test_a_prompt_is_a_piece_whose_end_is_open(tokenizer):
    notes = some_notes()
    prompt = tokenizer.encode_prompt(notes)
    assert prompt == tokenizer.encode_piece(notes)[: len(prompt)]
    assert tokenizer.decode_notes(prompt) == tokenizer.decode_notes(tokenizer.encode_notes(notes))


def test_rests_are_known_and_never_sound(tokenizer):
    rests = [name for name in tokenizer.get_vocab() if name.startswith(tokenizer.rest_prefixes)]
    assert rests
    assert len(tokenizer.decode_notes(tokenizer.convert_tokens_to_ids(rests))) == 0


def test_pitches_beyond_the_range_are_dropped_and_those_within_kept(tokenizer):
    low, high = tokenizer.pitch_range
    for pitch in range(128):
        note = pg.Notes.from_columns(onset_tick=[0], duration_tick=[480], pitch=[pitch])
        assert len(tokenizer.decode_notes(tokenizer.encode_notes(note))) == (low <= pitch <= high)
