import copy
import json
import pickle
from pathlib import Path

import miditok
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from symusic import Note, Score, TimeSignature, Track

from pianogen_hf.tokenizers import tokenization_remi
from pianogen_hf.tokenizers.midi import notes_to_midi_bytes
from pianogen_hf.tokenizers.notes import TEMPO_DTYPE, TIME_SIGNATURE_DTYPE, Notes
from pianogen_hf.tokenizers.remi_encoder import RemiEncoder
from pianogen_hf.tokenizers.tokenization_remi import SCHEMES, RemiTokenizer

GOLDEN = json.loads((Path(__file__).parent / "golden" / "miditok.json").read_text())
TICKS = GOLDEN["ticks_per_quarter"]
BARE_CONFIG = {
    "pitch_range": (21, 108),
    "beat_res": {(0, 4): 8, (4, 12): 4},
    "use_pitchdrum_tokens": False,
    "remove_duplicated_notes": True,
    "programs": [0],
    "special_tokens": ["PAD"],
}
NOTE_ROWS = st.lists(
    st.tuples(st.integers(0, 6000), st.integers(0, 4000), st.integers(0, 127), st.integers(1, 127)), max_size=30
)
SIGNATURE_ROWS = st.lists(
    st.tuples(st.integers(0, 5000), st.sampled_from([(4, 4), (3, 4), (2, 4), (6, 8), (3, 8), (7, 8), (2, 2)])),
    max_size=4,
)
relaxed = settings(max_examples=25, deadline=None)

# Fixtures of the whole module: the grammar tables of byte pairs take a while.
TOKENIZERS = {scheme: RemiTokenizer(scheme=scheme) for scheme in SCHEMES}
REMI = TOKENIZERS["REMI"]
REMI_WITH_METRE = RemiTokenizer(config={"use_time_signatures": True, "use_tempos": True})
METRE_ONLY = RemiTokenizer(config={"use_time_signatures": True})


def make_notes(rows, ticks_per_quarter=TICKS, signatures=()):
    columns = np.array(rows, dtype=np.int64).reshape(-1, 4).T
    names = ("onset_tick", "duration_tick", "pitch", "velocity")
    notes = Notes.from_columns(ticks_per_quarter, **dict(zip(names, columns, strict=True)))
    table = np.array([(tick, *metre) for tick, metre in signatures], dtype=TIME_SIGNATURE_DTYPE)
    return Notes(notes.table, ticks_per_quarter, time_signatures=table)


def bare_score(rows, signatures=()):
    """What MidiTok would get if somebody read these notes from a file of one track."""
    score, track = Score(TICKS), Track(program=0)
    track.notes = [Note(*row) for row in rows]
    track.notes.sort()
    score.tracks.append(track)
    score.time_signatures = [TimeSignature(tick, *metre) for tick, metre in signatures]
    return score


def bare_events(scheme, rows, signatures=(), **config):
    tokenizer = getattr(miditok, scheme)(miditok.TokenizerConfig(**{**BARE_CONFIG, **config}))
    return tokenizer.encode(bare_score(rows, signatures))[0].tokens


def assert_every_prefix_allowed(tokenizer, notes):
    piece = tokenizer.encode_piece(notes)
    for length in range(1, len(piece)):
        assert tokenizer.allowed_next(piece[:length])[piece[length]], tokenizer.convert_ids_to_tokens(piece[:length])


def random_piece(seed, num_notes=120):
    """Made of a few repeated figures, so that byte pairs have something to learn."""
    rng = np.random.default_rng(seed)
    step = np.sort(rng.integers(0, 2 * num_notes, num_notes))
    figures = (
        rng.choice([60, 64, 67, 72], num_notes),
        rng.choice([60, 120, 240], num_notes),
        rng.choice([64, 96], num_notes),
    )
    return make_notes(np.stack([step * TICKS // 8, figures[1], figures[0], figures[2]], axis=1))


TRAIN_PIECES = [random_piece(seed) for seed in range(6)]
BPE = RemiTokenizer()
BPE.train_bpe(TRAIN_PIECES, 300)


# MidiTok's own events -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", GOLDEN["schemes"])
def test_golden_events_and_ids(scheme):
    expected = GOLDEN["schemes"][scheme]
    notes = make_notes(GOLDEN["notes"])
    assert TOKENIZERS[scheme].notes_to_text(notes) == expected["events"]
    assert TOKENIZERS[scheme].encode_notes(notes) == [index + 2 for index in expected["miditok_ids"]]
    assert len(TOKENIZERS[scheme]) == expected["vocab_size_without_specials"] + 3


@given(rows=NOTE_ROWS)
@relaxed
@pytest.mark.parametrize("scheme", ["REMI", "TSD", "MIDILike"])
def test_events_are_those_of_miditok(scheme, rows):
    expected = bare_events(scheme, rows, use_time_signatures=False)
    assert TOKENIZERS[scheme].convert_ids_to_tokens(TOKENIZERS[scheme].encode_notes(make_notes(rows))) == expected


@given(rows=NOTE_ROWS.filter(len), signatures=SIGNATURE_ROWS)
@relaxed
def test_events_with_time_signatures_are_those_of_miditok(rows, signatures):
    notes = make_notes(rows, signatures=signatures)
    kept = [(row["tick"], (row["numerator"], row["denominator"])) for row in notes.time_signatures]
    kept = [row for row in kept if row[0] <= notes["onset_tick"].max()]
    expected = bare_events("REMI", rows, kept, use_time_signatures=True)
    assert METRE_ONLY.convert_ids_to_tokens(METRE_ONLY.encode_notes(notes)) == expected


def test_a_file_of_two_hands_becomes_one_stream():
    both = make_notes(GOLDEN["notes"])
    both.table["track"] = [0, 1, 0, 1]
    both.table["program"] = [0, 0, 5, 5]
    assert REMI.encode_notes(both) == REMI.encode_notes(make_notes(GOLDEN["notes"]))
    assert REMI(notes_to_midi_bytes(both))["input_ids"] == [REMI.bos_token_id, *REMI.encode_notes(both)]


def test_names_are_unique_and_hold_no_spaces():
    for tokenizer in (*TOKENIZERS.values(), REMI_WITH_METRE, BPE):
        names = tokenizer.convert_ids_to_tokens(range(len(tokenizer)))
        assert len(set(names)) == len(tokenizer) == tokenizer.vocab_size == len(tokenizer.get_vocab())
        assert all(len(name.split()) == 1 for name in names)
        assert names[:3] == ["<pad>", "<bos>", "<eos>"] and not any("PAD" in name for name in names)


# The fast encoder -----------------------------------------------------------------------------------------------------

TEMPO_ROWS = st.lists(st.tuples(st.integers(0, 5000), st.integers(150_000, 2_000_000)), max_size=5)
COVERED = {
    "default": {},
    "tempos and time signatures": {"use_tempos": True, "use_time_signatures": True},
    "tempos": {"use_tempos": True, "delete_equal_successive_tempo_changes": True},
    "sixteenths": {
        "use_time_signatures": True,
        "time_signature_range": {"16": [5, 7], "8": [3, 6, 7], "4": [3, 4], "2": [2]},
    },
    "doubles kept": {"remove_duplicated_notes": False, "use_time_signatures": True},
    "finer": {"beat_res": {"0_2": 12, "2_7": 6}, "num_velocities": 9, "pitch_range": [40, 80]},
}
UNPAIRED = {
    split: RemiTokenizer(config={"use_time_signatures": True, "encode_ids_split": split}) for split in ("bar", "no")
}
FAST = {name: RemiTokenizer(config=config) for name, config in COVERED.items()}


@given(
    rows=NOTE_ROWS.filter(len),
    signatures=st.one_of(SIGNATURE_ROWS, SIGNATURE_ROWS.map(lambda rows: [(tick, (5, 16)) for tick, _ in rows])),
    tempos=TEMPO_ROWS,
    ticks_per_quarter=st.sampled_from([8, 12, 24, 96, 100, 220, 480, 1024]),
)
@relaxed
@pytest.mark.parametrize("tokenizer", [*FAST.values(), BPE], ids=[*FAST, "byte pairs"])
def test_fast_ids_are_those_of_miditok(tokenizer, rows, signatures, tempos, ticks_per_quarter):
    notes = make_notes(rows, ticks_per_quarter, signatures)
    notes = Notes(notes.table, ticks_per_quarter, np.array(tempos, dtype=TEMPO_DTYPE), notes.time_signatures)
    expected = tokenizer._sequence(notes, encode_ids=True).ids
    assert tokenizer.encode_notes(notes) == [index + tokenizer._offset for index in expected]


@given(rows=NOTE_ROWS.filter(len), signatures=SIGNATURE_ROWS, split=st.sampled_from(["bar", "no"]))
@relaxed
def test_byte_pairs_learn_from_the_same_words_as_in_miditok(rows, signatures, split):
    notes = make_notes(rows, signatures=signatures)
    fast = UNPAIRED[split]._words(notes)
    slow = copy.copy(UNPAIRED[split])
    slow._encoder = None
    assert fast == slow._words(notes)


@pytest.mark.parametrize("tokenizer", [*FAST.values(), BPE], ids=[*FAST, "byte pairs"])
def test_the_fast_path_is_the_one_taken(tokenizer, monkeypatch):
    monkeypatch.setattr(tokenizer, "_sequence", None)  # MidiTok's own encoder is out of reach
    assert len(tokenizer.encode_notes(random_piece(1))) > 100 and tokenizer._words(random_piece(1))


@pytest.mark.parametrize(
    "config",
    [
        {"use_rests": True, "beat_res_rest": {"0_1": 8, "1_2": 4}},
        {"use_chords": True},
        {"use_pitch_intervals": True},
        {"use_programs": True},
        {"use_velocities": False},
        {"use_note_duration_programs": [1]},
        {"encode_ids_split": "beat"},
        {"use_time_signatures": True, "time_signature_range": {"16": [5], "4": [3, 4], "2": [2]}},  # no ticks of a 2/2
        {"num_velocities": 127, "beat_res": {"0_4": 8, "4_300": 16}},  # more ids than fit into a sort key
    ],
    ids=lambda config: next(iter(config)),
)
def test_what_the_fast_encoder_does_not_cover_goes_through_miditok(config):
    tokenizer = RemiTokenizer(config=config)
    assert tokenizer._encoder is None
    notes = random_piece(1)
    expected = tokenizer._sequence(notes, encode_ids=True).ids
    assert tokenizer.encode_notes(notes) == [index + tokenizer._offset for index in expected]


def test_the_fast_encoder_refuses_what_it_does_not_cover():
    with pytest.raises(ValueError, match="not covered"):
        RemiEncoder(TOKENIZERS["TSD"]._miditok)


CHORDS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(1, 4), st.integers(50, 58), st.integers(1, 127)),
    min_size=1,
    max_size=20,
    unique_by=lambda row: (row[0], row[2]),  # a file can't tell apart what is struck inside another
)


@given(rows=CHORDS)
@relaxed
@pytest.mark.parametrize("scheme", ["REMI", "TSD", "MIDILike", "Structured"])
def test_doubles_kept_simultaneous_notes_stand_as_miditok_reads_them_from_a_file(scheme, rows):
    tokenizer = RemiTokenizer(scheme, config={"remove_duplicated_notes": False})
    # Notes that end before the key is struck again, so that the file has one track.
    notes = make_notes([(on * 4 * TICKS, length * TICKS // 2, pitch, velocity) for on, length, pitch, velocity in rows])
    sequences = tokenizer._miditok.encode(Score.from_midi(notes_to_midi_bytes(notes)))
    sequence = sequences[0] if isinstance(sequences, list) else sequences
    ids = tokenizer.encode_notes(notes)
    assert ids == [index + tokenizer._offset for index in sequence.ids]
    assert tokenizer.encode_notes(tokenizer.decode_notes(ids)) == ids


def test_times_round_as_in_symusic_at_the_very_edge():
    # 30 ticks of 480 are half a step, and as a product of floats the last number below a half.
    for ticks_per_quarter in range(1, 1200, 7):
        onsets = np.unique(np.arange(1, 40) * ticks_per_quarter // 16)
        notes = make_notes([(onset, 1 + onset, 60, 64) for onset in onsets.tolist()], ticks_per_quarter)
        assert np.array_equal(REMI._fast_events(notes), REMI._sequence(notes, encode_ids=False).ids)


# Round trips ----------------------------------------------------------------------------------------------------------

VELOCITIES = np.linspace(0, 127, 33, dtype=int)[1:]
GRID_ROWS = st.lists(
    st.tuples(
        st.integers(0, 200).map(lambda step: step * TICKS // 8),
        st.one_of(st.integers(1, 32).map(lambda s: s * TICKS // 8), st.integers(16, 48).map(lambda s: s * TICKS // 4)),
        st.integers(21, 108),
        st.sampled_from(VELOCITIES.tolist()),
    ),
    min_size=1,
    max_size=30,
    unique_by=lambda row: (row[0], row[2]),
)


@given(rows=GRID_ROWS)
@relaxed
@pytest.mark.parametrize("tokenizer", [REMI, TOKENIZERS["TSD"], METRE_ONLY, BPE], ids=["REMI", "TSD", "metre", "BPE"])
def test_notes_on_the_grid_come_back_exactly(tokenizer, rows):
    notes = make_notes(rows)
    decoded = tokenizer.decode_notes(tokenizer.encode_notes(notes))
    factor = TICKS // decoded.ticks_per_quarter
    assert np.array_equal(decoded["onset_tick"] * factor, notes["onset_tick"])
    assert np.array_equal(decoded["duration_tick"] * factor, notes["duration_tick"])
    assert np.array_equal(decoded["pitch"], notes["pitch"]) and np.array_equal(decoded["velocity"], notes["velocity"])


@pytest.mark.parametrize("scheme", ["TSD", "MIDILike", "Structured", "PerTok"])
def test_other_schemes_give_the_golden_notes_back(scheme):
    notes = make_notes(GOLDEN["notes"])
    decoded = TOKENIZERS[scheme].decode_notes(TOKENIZERS[scheme].encode_notes(notes))
    assert np.allclose(decoded["onset_tick"] / decoded.ticks_per_quarter, notes["onset_tick"] / TICKS)
    assert np.allclose(decoded["duration_tick"] / decoded.ticks_per_quarter, notes["duration_tick"] / TICKS)
    assert np.array_equal(decoded["pitch"], notes["pitch"])
    assert np.abs(decoded["velocity"] - notes["velocity"]).max() <= 2


def test_beat_scheme_gives_onsets_and_pitches_back():
    notes = make_notes(GOLDEN["notes"])
    decoded = TOKENIZERS["BEAT"].decode_notes(TOKENIZERS["BEAT"].encode_notes(notes))
    assert np.allclose(decoded["onset_tick"] / decoded.ticks_per_quarter, notes["onset_tick"] / TICKS)
    assert np.array_equal(decoded["pitch"], notes["pitch"])


def test_tempo_and_time_signatures_come_back_only_where_configured():
    notes = make_notes(GOLDEN["notes"], signatures=[(0, (3, 4))])
    notes.tempos["us_per_quarter"] = 1_000_000
    with_metre = REMI_WITH_METRE.decode_notes(REMI_WITH_METRE.encode_notes(notes))
    assert with_metre.time_signatures.tolist() == [(0, 3, 4)]
    assert abs(with_metre.tempos["us_per_quarter"][0] - 1_000_000) < 60_000
    plain = REMI.decode_notes(REMI.encode_notes(notes))
    assert len(plain.time_signatures) == 0 and plain.tempos["us_per_quarter"].tolist() == [500_000]
    assert set(REMI.lost_fields) - set(REMI_WITH_METRE.lost_fields) == {"tempo", "time_signature"}


def test_empty_music_is_an_empty_stream():
    assert REMI.encode_notes(make_notes([])) == [] and len(REMI.decode_notes([])) == 0


def test_keys_outside_the_range_and_double_notes_are_dropped():
    notes = make_notes([(0, 480, 20, 64), (0, 480, 109, 64), (0, 480, 60, 64), (1, 960, 60, 80)])
    assert len(REMI.decode_notes(REMI.encode_notes(notes))) == 1


def test_a_note_at_the_end_of_time_is_an_error_not_a_flood():
    with pytest.raises(ValueError, match="quarters"):
        REMI.encode_notes(make_notes([(2**30, 1, 60, 64)], ticks_per_quarter=24))


# Decoding and grammar -------------------------------------------------------------------------------------------------

EVERY = [*TOKENIZERS.values(), REMI_WITH_METRE, BPE]
EVERY_ID = [*TOKENIZERS, "REMI with metre", "BPE"]


@given(data=st.data())
@relaxed
@pytest.mark.parametrize("tokenizer", EVERY, ids=EVERY_ID)
def test_any_ids_decode_and_leave_something_to_write(tokenizer, data):
    ids = data.draw(st.lists(st.integers(0, len(tokenizer) - 1), max_size=60))
    assert isinstance(tokenizer.decode_notes(ids), Notes)
    assert tokenizer.allowed_next(ids).shape == (len(tokenizer),) and tokenizer.allowed_next(ids).any()


@given(rows=NOTE_ROWS.filter(lambda rows: any(21 <= row[2] <= 108 for row in rows)), signatures=SIGNATURE_ROWS)
@relaxed
@pytest.mark.parametrize("tokenizer", EVERY, ids=EVERY_ID)
def test_every_prefix_of_a_piece_is_allowed(tokenizer, rows, signatures):
    assert_every_prefix_allowed(tokenizer, make_notes(rows, signatures=signatures))


@given(seed=st.integers(0, 10_000))
@settings(max_examples=10, deadline=None)
@pytest.mark.parametrize("tokenizer", EVERY, ids=EVERY_ID)
def test_what_the_grammar_writes_decodes(tokenizer, seed):
    rng, ids = np.random.default_rng(seed), [tokenizer.bos_token_id]
    while ids[-1] != tokenizer.eos_token_id and len(ids) < 80:
        ids.append(int(rng.choice(np.flatnonzero(tokenizer.allowed_next(ids)))))
    decoded = tokenizer.decode_notes(ids)
    if tokenizer is REMI or tokenizer is BPE:  # each pitch that was followed by velocity and length is a note, once
        text = " ".join(tokenizer.convert_ids_to_tokens(ids)).replace("+", " ")
        assert len(decoded) == text.count("Duration_")
        assert len(np.unique(decoded.table[["onset_tick", "pitch"]])) == len(decoded)


def allowed_names(text):
    return {name for name, allowed in zip(REMI._names, REMI.allowed_next(ids_of(text)), strict=True) if allowed}


def ids_of(text):
    return REMI.convert_tokens_to_ids(text.split())


def test_remi_grammar_by_hand():
    assert allowed_names("") == {"Bar_None", "<eos>"}
    assert allowed_names("Bar_None") == {"Bar_None", *(f"Position_{step}" for step in range(32))}
    assert allowed_names("Bar_None Position_30") == {f"Pitch_{pitch}" for pitch in range(21, 109)}
    assert allowed_names("Bar_None Position_30 Pitch_60") == {f"Velocity_{velocity}" for velocity in VELOCITIES}
    assert allowed_names("Bar_None Position_30 Pitch_106 Velocity_63 Duration_1.0.8") == {
        *("<eos>", "Bar_None", "Position_31", "Pitch_107", "Pitch_108")
    }
    assert allowed_names("Bar_None Position_31 Pitch_108 Velocity_63 Duration_1.0.8") == {"<eos>", "Bar_None"}
    assert "Position_0" in allowed_names("Bar_None Position_31 Pitch_108 Velocity_63 Duration_1.0.8 Bar_None")


def test_a_position_that_miditok_repeats_is_allowed():
    notes = make_notes([(31, 319, 107, 1)], signatures=[(30, (6, 8)), (31, (4, 4))])
    assert REMI_WITH_METRE.notes_to_text(notes).count("Position_0") == 2
    assert_every_prefix_allowed(REMI_WITH_METRE, notes)


def test_positions_stay_inside_a_bar_of_three():
    ids = METRE_ONLY.convert_tokens_to_ids(["Bar_None", "TimeSig_3/4"])
    allowed = METRE_ONLY.convert_ids_to_tokens(np.flatnonzero(METRE_ONLY.allowed_next(ids)).tolist())
    assert "Position_23" in allowed and "Position_24" not in allowed


def test_midilike_ends_only_when_nothing_sounds():
    tokenizer = TOKENIZERS["MIDILike"]
    held = tokenizer.convert_tokens_to_ids(["NoteOn_60", "Velocity_63", "TimeShift_1.0.8"])
    off = tokenizer.convert_tokens_to_ids(["NoteOff_60", "NoteOff_61"])
    assert tokenizer.allowed_next(held)[off].tolist() == [True, False]
    assert not tokenizer.allowed_next(held)[tokenizer.eos_token_id]
    assert tokenizer.allowed_next([*held, off[0]])[tokenizer.eos_token_id]


# Byte pairs -----------------------------------------------------------------------------------------------------------


def test_byte_pairs_shorten_and_decode_to_the_same_notes():
    notes = random_piece(99)
    assert len(BPE) == 300
    assert len(BPE.encode_notes(notes)) < 0.8 * len(REMI.encode_notes(notes))
    assert BPE.decode_notes(BPE.encode_notes(notes)) == REMI.decode_notes(REMI.encode_notes(notes))
    assert BPE.notes_to_text(notes).replace("+", " ") == REMI.notes_to_text(notes)
    assert BPE.text_to_notes(BPE.notes_to_text(notes)) == BPE.decode_notes(BPE.encode_notes(notes))


def test_ids_of_single_events_survive_training():
    assert BPE.convert_ids_to_tokens(range(len(REMI))) == REMI.convert_ids_to_tokens(range(len(REMI)))


def test_byte_pairs_are_deterministic_and_forget_what_was_learnt_before():
    again = RemiTokenizer()
    again.train_bpe(TRAIN_PIECES[:2], 280)
    again.train_bpe(TRAIN_PIECES, 300)
    assert again.get_vocab() == BPE.get_vocab()
    assert again.encode_notes(random_piece(7)) == BPE.encode_notes(random_piece(7))


@pytest.mark.parametrize("scheme", ["TSD", "MIDILike", "Structured", "PerTok", "BEAT"])
def test_other_schemes_learn_byte_pairs(scheme, tmp_path):
    plain, tokenizer = TOKENIZERS[scheme], RemiTokenizer(scheme=scheme)
    tokenizer.train_bpe(TRAIN_PIECES, len(plain) + 40)
    notes = random_piece(3)
    assert len(tokenizer.encode_notes(notes)) < len(plain.encode_notes(notes))
    assert tokenizer.decode_notes(tokenizer.encode_notes(notes)) == plain.decode_notes(plain.encode_notes(notes))
    assert_every_prefix_allowed(tokenizer, notes)
    tokenizer.save_pretrained(tmp_path)
    assert RemiTokenizer.from_pretrained(tmp_path).encode_notes(notes) == tokenizer.encode_notes(notes)


@pytest.mark.parametrize("split", ["beat", "no"])
def test_byte_pairs_over_other_stretches(split):
    tokenizer = RemiTokenizer(config={"encode_ids_split": split})
    tokenizer.train_bpe(TRAIN_PIECES, 260)
    notes = random_piece(3)
    assert tokenizer.decode_notes(tokenizer.encode_notes(notes)) == REMI.decode_notes(REMI.encode_notes(notes))
    assert_every_prefix_allowed(tokenizer, notes)


def test_a_vocabulary_without_room_for_byte_pairs_is_an_error():
    with pytest.raises(ValueError, match="vocab_size"):
        RemiTokenizer().train_bpe(TRAIN_PIECES, len(REMI))


# Saving ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokenizer", EVERY, ids=EVERY_ID)
def test_what_is_saved_comes_back_bit_equal(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    assert (tmp_path / "miditok.json").exists() == (tokenizer is BPE)
    assert not (tmp_path / "tokenizer.json").exists()
    loaded = RemiTokenizer.from_pretrained(tmp_path)
    notes = random_piece(5)
    assert loaded.get_vocab() == tokenizer.get_vocab() and loaded.config == tokenizer.config
    assert loaded.encode_notes(notes) == tokenizer.encode_notes(notes)
    again = tmp_path / "again"
    loaded.save_pretrained(again)
    if tokenizer is BPE:
        assert (tmp_path / "miditok.json").read_bytes() == (again / "miditok.json").read_bytes()


def test_a_config_with_python_types_survives_saving(tmp_path):
    config = {"beat_res": {(0, 2): 12, (2, 8): 4}, "time_signature_range": {4: (2, 5)}, "use_time_signatures": True}
    tokenizer = RemiTokenizer(config=config)
    tokenizer.save_pretrained(tmp_path)
    loaded = RemiTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert {"TimeSig_2/4", "TimeSig_5/4", "Duration_0.11.12"} <= loaded.get_vocab().keys()


def test_copies_and_pickles_encode_alike():
    notes = random_piece(2)
    assert pickle.loads(pickle.dumps(BPE)).encode_notes(notes) == BPE.encode_notes(notes)
    assert copy.deepcopy(BPE).encode_notes(notes) == BPE.encode_notes(notes)


# Refusals -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheme", ["CPWord", "Octuple", "MuMIDI", "MMM", "Nonsense", "TokenizerConfig"])
def test_schemes_of_several_streams_are_refused(scheme):
    with pytest.raises(ValueError, match="scheme must be one of REMI"):
        RemiTokenizer(scheme=scheme)


@pytest.mark.parametrize(
    "key", ["use_tempo", "use_sustain_pedals", "special_tokens", "max_bar_embedding", "ac_polyphony_bar"]
)
def test_config_keys_that_would_do_nothing_or_harm_are_refused(key):
    with pytest.raises(ValueError, match=key):
        RemiTokenizer(config={key: [1]})


def test_without_miditok_the_message_says_what_to_install(monkeypatch):
    monkeypatch.setattr(tokenization_remi, "miditok", None)
    with pytest.raises(ImportError, match="pip install miditok"):
        RemiTokenizer()
