"""The copy audit: runs counted by hand and by brute force, and the two controls."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from pianogen_hf.evaluation.memorization import RunIndex, compare_with_base_rate
from pianogen_hf.models.configuration_music_transformer import MusicTransformerConfig
from pianogen_hf.models.modeling_music_transformer import MusicTransformerForCausalLM
from pianogen_hf.tokenizers.notes import Notes
from pianogen_hf.tokenizers.tokenization_jsb import JSBTokenizer


def chorale(seed, steps=128):
    """Four voices that walk by steps, each note one to four sixteenths long."""
    random = np.random.default_rng(seed)
    voices = []
    for low in (64, 57, 50, 40):
        lengths = random.integers(1, 5, steps)
        pitches = low + np.abs(np.cumsum(random.integers(-2, 3, steps))) % 16
        voices.append(np.repeat(pitches, lengths)[:steps])
    return np.stack(voices, axis=1)


def melody(pitches):
    return np.array(pitches)[:, None]


def transposed(grid, semitones):
    return np.where(grid >= 0, grid + semitones, -1)


def index_of(*pieces, lengths=(16, 32, 64)):
    return RunIndex(lengths).fit([f"train {number}" for number in range(len(pieces))], pieces)


# Runs -----------------------------------------------------------------------------------------------------------------


def test_runs_of_a_small_melody_are_those_counted_by_hand():
    index = index_of(melody([60, 62, 64, 60, 67]), melody([50, 49, 50, 48]), lengths=(2, 3, 4))
    # 70 72 74 is train 0 a tenth up; 74 73 74 72 is all of train 1; 72 90 stands nowhere.
    audit = index.audit(melody([70, 72, 74, 73, 74, 72, 90]))
    assert audit.coverage == {2: 6 / 7, 3: 6 / 7, 4: 4 / 7}
    assert (audit.longest_run, audit.train_piece, audit.train_start, audit.start) == (4, "train 1", 0, 2)
    assert audit.frames == 7


def test_a_transposed_passage_is_found_with_its_length_and_piece():
    train = [chorale(seed) for seed in range(5)]
    piece = chorale(99)
    piece[30:80] = train[3][60:110] + 4
    audit = index_of(*train).audit(piece)
    assert 50 <= audit.longest_run <= 52  # neighbouring steps may agree by chance
    assert audit.train_piece == "train 3"
    assert audit.train_start - audit.start == 30
    assert audit.coverage[16] >= audit.coverage[32] >= 50 / 128 > audit.coverage[64] == 0


def test_one_changed_note_splits_a_run():
    train = chorale(0)
    piece = train.copy()
    piece[40, 2] += 20
    audit = index_of(train).audit(piece)
    assert audit.coverage == {16: 127 / 128, 32: 127 / 128, 64: 87 / 128}
    assert (audit.longest_run, audit.train_start, audit.start) == (87, 41, 41)


def test_voices_must_move_together():
    train = chorale(0)
    assert index_of(train).audit(train + 7).longest_run == 128
    assert index_of(train).audit(train + [7, 7, 7, 5]).longest_run < 16


def test_runs_do_not_cross_from_one_training_piece_into_the_next():
    whole = chorale(0)
    audit = index_of(whole[:50], whole[50:]).audit(whole)
    assert (audit.longest_run, audit.train_piece) == (78, "train 1")
    assert audit.coverage[32] == 1  # by two runs, end to end
    assert audit.coverage[64] == 78 / 128


def test_of_copies_the_longest_is_found_far_beyond_the_first_look():
    train = chorale(0, steps=1500)
    other = train.copy()
    other[700] += [3, 0, 0, 0]
    audit = index_of(other, train[:900], other).audit(train)
    assert (audit.longest_run, audit.train_piece) == (900, "train 1")
    assert audit.coverage[64] == 1


def test_rests_match_rests_alone():
    train = chorale(0)
    train[20:30, 1] = -1
    train[60:70] = -1
    index = index_of(train)
    assert index.audit(transposed(train, -3)).longest_run == 128
    sung = train.copy()
    sung[20:30, 1] = 60
    assert index.audit(sung).longest_run == 98
    started = train.copy()
    started[65, 0] = 70
    assert index.audit(started).longest_run == 60  # up to the last step that sounds


def test_silence_is_no_run():
    silence = np.full((100, 4), -1)
    piece = np.concatenate([silence, chorale(0)[:20], silence])
    index = index_of(silence, piece)
    assert index.audit(silence).longest_run == 0
    audit = index.audit(piece)
    assert (audit.longest_run, audit.start, audit.train_start) == (20, 100, 100)
    assert audit.coverage == {16: 20 / 220, 32: 0, 64: 0}


def test_pieces_may_be_empty_or_one_step_long():
    empty, one = np.zeros((0, 4), dtype=int), chorale(0)[:1]
    index = index_of(empty, chorale(0), empty, one)
    for piece, frames in ((empty, 0), (one, 1)):
        audit = index.audit(piece)
        assert (audit.frames, audit.longest_run, audit.train_piece) == (frames, 0, "")
        assert set(audit.coverage.values()) == {0.0}
    for nothing in (index_of(), index_of(empty), index_of(one)):
        assert nothing.audit(chorale(0)).longest_run == 0
    assert index.audit(chorale(0)).train_piece == "train 1"


def test_wrong_pieces_are_refused():
    index = index_of(chorale(0))
    with pytest.raises(ValueError, match="steps"):
        index.audit(Notes.from_seconds([0.0], [1.0], [60]))
    for wrong in (np.full((4, 8), 60), np.full((4, 4), 128), np.full((4, 4), -2), np.full(4, 60)):
        with pytest.raises(ValueError, match="grid"):
            index.audit(wrong)
    with pytest.raises(ValueError):
        RunIndex().fit(["only one name"], [chorale(0), chorale(1)])
    with pytest.raises(ValueError, match="2 frames"):
        RunIndex((1, 16))


def test_unknown_chords_are_not_taken_for_known_ones():
    index = index_of(np.array([[60, 64], [60, 72], [60, 67]]), lengths=(2,))
    for low in range(1, 13):
        for high in set(range(13)) - {4, 7, 12}:
            assert index.audit(np.array([[60, 60 + low], [60, 60 + high]])).longest_run == 0


def naive_runs(piece, train):
    """Every (start, end) that begins and ends in sound and stands in the training pieces after one transposition."""

    def same(here, there):
        shifts = (there - here)[here >= 0]
        return np.array_equal(here >= 0, there >= 0) and len(set(shifts.tolist())) == 1

    def stands(part):
        return any(
            same(part, other[at : at + len(part)]) for other in train for at in range(len(other) - len(part) + 1)
        )

    sounds = (piece >= 0).any(axis=1)
    pairs = [(start, end) for start in range(len(piece)) for end in range(start + 2, len(piece) + 1)]
    return [(start, end) for start, end in pairs if sounds[start] and sounds[end - 1] and stands(piece[start:end])]


def small_grids(voices):
    cells = st.sampled_from([-1, 0, 1, 2, 127 - 2, 127])
    steps = st.integers(0, 9)
    return steps.flatmap(lambda size: arrays(np.int64, (size, voices), elements=cells))


@given(st.integers(1, 3).flatmap(lambda v: st.tuples(small_grids(v), st.lists(small_grids(v), max_size=3))))
def test_figures_are_those_of_brute_force(case):
    piece, train = case
    runs = naive_runs(piece, train)
    audit = index_of(*train, lengths=(2, 3, 5)).audit(piece)
    assert audit.longest_run == max((end - start for start, end in runs), default=0)
    for length, share in audit.coverage.items():
        covered = {step for start, end in runs if end - start >= length for step in range(start, end)}
        assert share == pytest.approx(len(covered) / max(len(piece), 1))
    assert list(audit.coverage.values()) == sorted(audit.coverage.values(), reverse=True)
    if audit.longest_run:
        source = train[int(audit.train_piece.split()[1])][audit.train_start :][: audit.longest_run]
        assert naive_runs(piece[audit.start :][: audit.longest_run], [source])[-1:]


@given(small_grids(2), st.lists(small_grids(2), min_size=1, max_size=3), st.randoms())
def test_a_piece_cut_from_training_is_one_run_in_any_key(piece, train, random):
    piece = piece.clip(max=2)
    sounding = np.flatnonzero((piece >= 0).any(axis=1))
    train.insert(random.randrange(len(train)), transposed(piece, random.randrange(120)))
    expected = sounding[-1] - sounding[0] + 1 if len(sounding) > 1 else 0
    assert index_of(*train, lengths=(2,)).audit(piece).longest_run == expected


# Notes ----------------------------------------------------------------------------------------------------------------


def played(seed, size=100):
    """Notes half a second to a second apart, every third with a chord above it."""
    random = np.random.default_rng(seed)
    onset = np.cumsum(random.uniform(0.5, 1.0, size))
    pitch = random.integers(40, 70, size)
    chord = np.arange(0, size, 3)
    return np.append(onset, onset[chord]), np.append(pitch, pitch[chord] + 8)


def test_notes_are_found_in_another_key_tempo_loudness_and_arpeggio():
    onset, pitch = played(0)
    random = np.random.default_rng(1)
    index = index_of(Notes.from_seconds(onset, 0.3, pitch), lengths=(16, 64))
    spread = onset * 0.8 + random.uniform(0, 0.03, len(onset))
    audit = index.audit(Notes.from_seconds(spread, 0.1, pitch + 5, velocity=random.integers(1, 128, len(onset))))
    assert (audit.frames, audit.longest_run, audit.coverage) == (134, 134, {16: 1, 64: 1})
    shuffled = Notes.from_seconds(onset, 0.3, random.permutation(pitch))
    assert index.audit(shuffled).coverage == {16: 0, 64: 0}


def test_drums_and_doublings_are_no_notes_of_their_own():
    onset, pitch = played(0)
    plain = Notes.from_seconds(onset, 0.3, pitch)
    doubled = Notes.from_seconds(np.append(onset, onset + 0.01), 0.3, np.append(pitch, pitch))
    drums = Notes.from_seconds(onset + 0.2, 0.1, np.full(len(onset), 36))
    drums.table["is_drum"] = True
    beaten = Notes(np.concatenate([plain.table, drums.table]), plain.ticks_per_quarter)
    for piece in (doubled, beaten):
        assert index_of(plain).audit(piece).longest_run == 134


def test_empty_notes_have_no_runs():
    empty = Notes.from_seconds([], [], [])
    assert index_of(empty, Notes.from_seconds(*played(0)[:1], 0.3, played(0)[1])).audit(empty).frames == 0


# Sets and the alarm ---------------------------------------------------------------------------------------------------


def test_a_set_is_counted_by_frames_and_can_be_written_as_json():
    train = chorale(0)
    report = index_of(train).audit_set([chorale(8), train[:96], train[10:42] + 1])
    assert report["unit"] == "steps"
    assert report["frames"] == 256
    assert report["coverage"] == pytest.approx({"16": 0.5, "32": 0.5, "64": 96 / 256})
    assert (report["longest_run"], report["train_piece"], report["piece"]) == (96, "train 0", 1)
    assert report["per_piece"]["coverage"]["64"] == [0, 1, 0]
    assert report["per_piece"]["longest_run"][1:] == [96, 32]
    assert json.loads(json.dumps(report)) == report
    nothing = index_of(train).audit_set([])
    assert (nothing["frames"], nothing["longest_run"], nothing["piece"]) == (0, 0, None)


@pytest.fixture(scope="module")
def corpus():
    """Pieces that share some passages, as people's pieces do: an index of the first, and the others, held out."""
    random = np.random.default_rng(0)
    phrases = [chorale(1000 + number, 20) for number in range(30)]
    pieces = [chorale(seed) for seed in range(90)]
    for piece in pieces:
        at = random.integers(0, 108)
        piece[at : at + 20] = phrases[random.integers(30)]
    return pieces[:30], pieces[30:60], pieces[60:]


def alarm(index, generated, heldout):
    return compare_with_base_rate(index.audit_set(generated), index.audit_set(heldout))


def test_shuffled_music_and_other_held_out_music_do_not_trip_the_alarm(corpus):
    train, heldout, others = corpus
    index = index_of(*train)
    assert index.audit_set(heldout)["coverage"]["16"] > 0.03
    assert not alarm(index, others, heldout)["alarm"]
    random = np.random.default_rng(0)
    shuffled = alarm(index, [random.permutation(piece) for piece in train], heldout)
    assert not shuffled["alarm"]
    assert shuffled["coverage"]["16"]["generated"] < 0.01
    assert not alarm(index, [], heldout)["alarm"]


def test_copies_trip_the_alarm(corpus):
    train, heldout, _ = corpus
    report = alarm(index_of(*train), [piece - 2 for piece in train], heldout)
    assert report["alarm"]
    assert len(report["reasons"]) == 4
    assert report["coverage"]["64"] == {"generated": 1.0, "heldout": 0.0, "p": 1 / 2000}


def test_one_copy_among_many_pieces_trips_the_alarm_and_is_named(corpus):
    train, heldout, others = corpus
    report = alarm(index_of(*train), [*others[1:], train[7]], heldout)
    assert len(report["reasons"]) == 1
    assert "128 steps in a row from train 7" in report["reasons"][0]


def test_many_short_copies_trip_the_alarm_though_no_run_is_long(corpus):
    train, heldout, others = corpus
    patched = [piece.copy() for piece in others]
    for number, piece in enumerate(patched):
        for at in range(0, 100, 20):
            piece[at : at + 18] = train[(number + at) % 30][at : at + 18]
    report = alarm(index_of(*train), patched, heldout)
    assert report["alarm"]
    assert report["longest_run"]["generated"] < report["longest_run"]["limit"]


def test_a_duplicate_among_the_held_out_pieces_does_not_hide_a_copy(corpus):
    train, heldout, others = corpus
    report = alarm(index_of(*train), [*others, train[0]], [*heldout[:29], train[1]])
    assert report["longest_run"]["heldout"] == 128
    assert report["alarm"]


def test_the_alarm_seldom_rings_for_harmless_sets():
    """Figures drawn from one distribution: exponential longest runs, coverage 0 for most."""
    random, rings = np.random.default_rng(0), 0

    def audited(size):
        runs = random.exponential(12, size).astype(int) + 1
        shares = (runs >= 32) * runs / 256
        per_piece = {"frames": [256] * size, "coverage": {"32": shares.tolist()}, "longest_run": runs.tolist()}
        longest = {"longest_run": int(runs.max()), "train_piece": "", "train_start": 0}
        return {"unit": "steps", "coverage": {"32": float(shares.mean())}, **longest, "per_piece": per_piece}

    for _ in range(50):
        rings += compare_with_base_rate(audited(40), audited(80))["alarm"]
    assert rings <= 4


def test_the_limit_is_the_documented_one(corpus):
    train, heldout, others = corpus
    index = index_of(*train)
    runs = sorted(index.audit_set(heldout)["per_piece"]["longest_run"])
    limit = alarm(index, others, heldout)["longest_run"]["limit"]
    assert limit == pytest.approx(runs[28] * math.log(3000) / math.log(20))
    strangers = [chorale(seed) for seed in range(500, 520)]
    assert alarm(index, others, strangers)["longest_run"]["limit"] == 16


def test_figures_that_can_not_be_compared_are_refused(corpus):
    train, heldout, _ = corpus
    report = index_of(*train).audit_set(heldout)
    with pytest.raises(ValueError, match="held-out"):
        compare_with_base_rate(report, index_of(*train).audit_set([]))
    with pytest.raises(ValueError, match="unit"):
        compare_with_base_rate(report | {"unit": "notes"}, report)
    with pytest.raises(ValueError, match="lengths"):
        compare_with_base_rate(report, index_of(*train, lengths=(16,)).audit_set(heldout))


# The control that counts: a model -------------------------------------------------------------------------------------


def over_trained(tokenizer, grids):
    torch.manual_seed(0)
    config = MusicTransformerConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=256,
        max_relative_distance=64,
        hidden_dropout=0.0,
        attention_dropout=0.0,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = MusicTransformerForCausalLM(config)
    ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer.grid_to_ids(grid)] for grid in grids])
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(400):
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if loss.item() < 0.012:
            break
    return model.eval()


def written_by(model, tokenizer, count, steps):
    torch.manual_seed(1)
    start = torch.full((count, 1), tokenizer.bos_token_id)
    ids = model.generate(start, do_sample=True, max_new_tokens=4 * steps, pad_token_id=tokenizer.pad_token_id)
    return [tokenizer.ids_to_grid(row) for row in ids.numpy()]


def test_an_over_trained_model_trips_the_alarm_and_its_notes_shuffled_do_not():
    tokenizer = JSBTokenizer()
    train = [chorale(seed, 48) for seed in range(2)]
    heldout = [chorale(seed, 48) for seed in range(100, 116)]
    generated = written_by(over_trained(tokenizer, train), tokenizer, count=6, steps=48)
    index = index_of(*train)
    report = alarm(index, generated, heldout)
    assert report["alarm"]
    assert report["coverage"]["16"]["generated"] > 0.5
    assert report["longest_run"]["generated"] > report["longest_run"]["limit"]
    random = np.random.default_rng(0)
    assert not alarm(index, [random.permutation(grid) for grid in generated], heldout)["alarm"]
    assert not alarm(index, heldout[:6], heldout[6:])["alarm"]
