"""Action tokens: whole time steps as one token."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models_and_tokenizers import some_notes
from transformers import AutoTokenizer

import pianogen_hf as pg
from pianogen_hf.commands.train import main
from pianogen_hf.tokenizers.step_actions import most_frequent, steps_of, with_actions, without_actions

SEPARATOR = 9


def trained(vocabulary="midigen", extra=30):
    tokenizer = pg.NoteDurationTokenizer(vocabulary)
    pieces = [few_chords(seed) for seed in range(6)]
    tokenizer.train_actions(pieces, len(tokenizer) + extra)
    return tokenizer


def few_chords(seed, num_steps=30):
    """Chords on quarters, few kinds of them, so that steps come back."""
    random = np.random.default_rng(seed)
    roots = 48 + random.integers(0, 4, num_steps)
    onset = np.repeat(np.arange(num_steps) * 480, 3)
    pitch = (roots[:, None] + [0, 4, 7]).ravel()
    duration = np.repeat(random.choice([240, 480], num_steps), 3)
    return pg.Notes.from_columns(
        480, onset_tick=onset, duration_tick=duration, pitch=pitch, velocity=np.full(len(pitch), 80)
    )


def test_a_step_is_its_notes_and_the_wait_after_them():
    ids = np.array([9, 104, 60, 101, 55, 102, 9, 160, 9, 103, 62, 101, 9, 101, 64, 101])
    steps = [step.tolist() for step in steps_of(ids, SEPARATOR)]
    assert steps == [[9, 104], [60, 101, 55, 102, 9, 160, 9, 103], [62, 101, 9, 101], [64, 101]]
    assert list(steps_of(np.array([9, 101]), SEPARATOR))[0].tolist() == [9, 101]


def test_the_most_frequent_whole_steps_that_come_twice_become_actions():
    often, twice, once, end = [60, 101, 9, 101], [55, 101, 9, 102], [57, 101, 9, 101], [64, 101]
    ids = np.array([9, 104, *often, *twice, *once, *often, *twice, *often, *end])
    assert most_frequent([ids], SEPARATOR, 10) == [tuple(often), tuple(twice)]
    assert most_frequent([ids], SEPARATOR, 1) == [tuple(often)]
    short = with_actions(ids, SEPARATOR, {tuple(often): 200, tuple(twice): 201})
    assert short.tolist() == [9, 104, 200, 201, *once, 200, 201, 200, *end]
    assert without_actions(short, 200, [tuple(often), tuple(twice)]).tolist() == ids.tolist()


@pytest.mark.parametrize("vocabulary", ["musicautobot", "ai_music", "midigen"])
def test_music_is_the_same_and_shorter_with_actions(vocabulary):
    plain, tokenizer = pg.NoteDurationTokenizer(vocabulary), trained(vocabulary)
    assert len(plain) < len(tokenizer) <= len(plain) + 30 and tokenizer.first_action_id == len(plain)
    for notes in (few_chords(7), some_notes(0)):
        ids = tokenizer.encode_piece(notes)
        np.testing.assert_array_equal(
            tokenizer.decode_notes(ids).table, plain.decode_notes(plain.encode_piece(notes)).table
        )
    assert len(tokenizer.encode_piece(few_chords(7))) < 0.3 * len(plain.encode_piece(few_chords(7)))
    assert tokenizer.text_to_notes(tokenizer.notes_to_text(few_chords(7))) == tokenizer.decode_notes(
        tokenizer.encode_notes(few_chords(7))
    )


@given(seed=st.integers(0, 10**6))
@settings(deadline=None, max_examples=20)
def test_whatever_the_grammar_allows_is_a_row_of_pairs(seed):
    tokenizer, plain = TRAINED, pg.NoteDurationTokenizer("midigen")
    random, ids = np.random.default_rng(seed), [tokenizer.bos_token_id]
    for _ in range(30):
        allowed = np.flatnonzero(tokenizer.allowed_next(ids))
        learnt = allowed[allowed >= tokenizer.first_action_id]
        ids.append(int(random.choice(learnt if len(learnt) and random.random() < 0.5 else allowed)))
        if ids[-1] == tokenizer.eos_token_id:
            break
    written = [tokenizer.bos_token_id]
    for index in without_actions(np.array(ids[1:]), tokenizer.first_action_id, tokenizer.actions).tolist():
        assert plain.allowed_next(written)[index]  # event by event it keeps to the grammar without actions
        written.append(index)


TRAINED = trained()


def test_all_of_a_piece_is_allowed():
    ids = TRAINED.encode_piece(few_chords(7))
    assert max(ids) >= TRAINED.first_action_id
    for place in range(1, len(ids)):
        assert TRAINED.allowed_next(ids[:place])[ids[place]]


def test_actions_are_saved_and_loaded(tmp_path):
    TRAINED.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.actions == TRAINED.actions and loaded.get_vocab() == TRAINED.get_vocab()
    assert loaded.encode_piece(few_chords(3)) == TRAINED.encode_piece(few_chords(3))
    assert loaded.identity() != pg.NoteDurationTokenizer("midigen").identity()


def test_what_can_not_learn_is_refused():
    with pytest.raises(ValueError, match="must exceed the 389 ids"):
        pg.NoteDurationTokenizer("midigen").train_actions([few_chords(0)], 389)
    with pytest.raises(ValueError, match="without it"):
        pg.NoteDurationTokenizer("midigen", legacy=True).train_actions([few_chords(0)], 400)


def test_a_run_learns_actions_from_its_train_pieces(tmp_path, capsys):
    for seed in range(6):
        pg.write_midi(few_chords(seed), tmp_path / "midi" / f"{seed}.mid")
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    argv = ["--source", "folder", "--data_path", str(tmp_path / "midi"), "--cache_dir", str(tmp_path / "cache")]
    argv += [f"--model_config={json.dumps(sizes)}", "--chunk_length=33", "--max_steps=1", "--report_to=none"]
    argv += ["--bf16=false", "--disable_tqdm=true", f"--output_dir={tmp_path / 'run'}", "--validation_fraction=0.3"]
    assert main([*argv, "--tokenizer=NoteDurationTokenizer", "--action_vocab_size=330"]) == 0
    assert 312 < len(pg.load_encoder(str(tmp_path / "run"))) <= 330
    assert main([*argv, "--tokenizer=JSBTokenizer", "--action_vocab_size=330"]) == 2
    assert "needs --tokenizer NoteDurationTokenizer" in capsys.readouterr().err
