"""Notes, durations and the separator: ids of the systems, what the default mends, and all three vocabularies."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import mido
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from midi_files import bytes_of, note_tables, strike
from models_and_tokenizers import some_notes
from transformers import AutoTokenizer

import pianogen_hf as pg

UPSTREAM = json.loads((Path(__file__).parent / "golden" / "upstream_note_duration.json").read_text(encoding="utf-8"))
VOCABULARIES = ("musicautobot", "ai_music", "midigen")
CASES = [(vocabulary, name) for vocabulary in VOCABULARIES for name in UPSTREAM[vocabulary]]


def file_of(name):
    return base64.b64decode(UPSTREAM["files"][name])


def pairs_of(tokenizer, ids):
    """(pitch or -1, steps) of ids without what stands before and behind."""
    pairs = np.array(tokenizer._events_among(np.array(ids))).reshape(-1, 2)
    return (pairs - [tokenizer.first_pitch_id, tokenizer.first_duration_id]).tolist()


def read(data, vocabulary="musicautobot", legacy=False):
    tokenizer = pg.NoteDurationTokenizer(vocabulary, legacy=legacy)
    return pairs_of(tokenizer, tokenizer.encode_midi(data))


# What the systems write ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("vocabulary", "name"), CASES)
def test_legacy_ids_are_those_of_the_system(vocabulary, name, tmp_path):
    tokenizer = pg.NoteDurationTokenizer(vocabulary=vocabulary, legacy=True)
    expected = UPSTREAM[vocabulary][name]["ids"]
    assert tokenizer.encode_midi(file_of(name)) == expected
    path = tmp_path / "music.mid"
    path.write_bytes(file_of(name))
    assert tokenizer.encode_midi(path) == tokenizer.encode_midi(str(path)) == expected


@pytest.mark.parametrize(("vocabulary", "name"), [case for case in CASES if case[0] != "ai_music"])
def test_positions_are_those_of_the_system(vocabulary, name):
    tokenizer = pg.NoteDurationTokenizer(vocabulary=vocabulary, legacy=True)
    case = UPSTREAM[vocabulary][name]
    if (vocabulary, name) != ("midigen", "12_late_start"):  # whose first wait midigen cuts: ids don't tell the time
        assert tokenizer.positions(case["ids"]).tolist() == case["positions"]
    rows = tokenizer.encode_midi_positions(file_of(name))
    assert rows == [list(row) for row in zip(case["ids"], case["positions"], strict=True)]


@pytest.mark.parametrize("name", UPSTREAM["musicautobot"])
def test_masks_beginnings_melody_and_chords_are_those_of_musicautobot(name):
    tokenizer, case = pg.NoteDurationTokenizer(legacy=True), UPSTREAM["musicautobot"][name]
    assert tokenizer.masked(case["ids"], "pitch", 0, 8) == case["mask_pitch_beats_0_8"]
    assert tokenizer.masked(case["ids"], "duration", 4) == case["mask_duration_from_beat_4"]
    assert tokenizer.trimmed(case["ids"], 8) == case["trim_to_beat_8"]
    if "melody_ids" in case:
        assert tokenizer.encode_melody_and_chords(file_of(name)) == (case["melody_ids"], case["chord_ids"])
    else:
        with pytest.raises(pg.MidiError, match="one or two tracks"):
            tokenizer.encode_melody_and_chords(file_of(name))


def test_other_vocabularies_have_no_masks_and_no_parts():
    tokenizer = pg.NoteDurationTokenizer("midigen")
    with pytest.raises(ValueError, match="musicautobot"):
        tokenizer.masked([0], "pitch")
    with pytest.raises(ValueError, match="musicautobot"):
        tokenizer.encode_melody_and_chords(LONG_WAIT)


def test_sizes_and_special_ids_are_those_of_the_systems():
    found = {}
    for vocabulary in VOCABULARIES:
        tokenizer = pg.NoteDurationTokenizer(vocabulary)
        ids = (tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.separator_id)
        found[vocabulary] = (len(tokenizer), *ids, tokenizer.first_pitch_id, tokenizer.first_duration_id)
    assert found == {
        "musicautobot": (312, 0, 1, 2, 8, 9, 137),
        "ai_music": (298, 1, 0, 2, 3, 4, 132),
        "midigen": (389, 0, 2, 1, 3, 4, 132),
    }
    assert pg.NoteDurationTokenizer().convert_tokens_to_ids("<mask>") == pg.NoteDurationTokenizer().mask_token_id == 4


# What they lose, and the default does not ----------------------------------------------------------------------------

LONG_WAIT = bytes_of([*strike(60, 480), mido.Message("note_on", note=62, velocity=64, time=199 * 480), *strike(62)[1:]])


@pytest.mark.parametrize("vocabulary", ["musicautobot", "ai_music"])
def test_waits_longer_than_any_duration_stay_in_the_vocabulary(vocabulary):
    legacy = pg.NoteDurationTokenizer(vocabulary, legacy=True)
    assert max(legacy.encode_midi(LONG_WAIT)) == legacy.first_duration_id + 800 > len(legacy)
    with pytest.raises(ValueError, match="wait of more than 160 steps"):
        legacy.encode_notes(pg.read_midi(LONG_WAIT))
    tokenizer = pg.NoteDurationTokenizer(vocabulary)
    assert pairs_of(tokenizer, tokenizer.encode_midi(LONG_WAIT)) == [[60, 4], *[[-1, 160]] * 5, [62, 1]]
    assert tokenizer.decode_notes(tokenizer.encode_midi(LONG_WAIT))["onset_tick"].tolist() == [0, 200 * 480]


def test_midigen_cuts_the_time_of_waits_and_the_default_keeps_it():
    assert read(LONG_WAIT, "midigen", legacy=True)[1] == [-1, 256]
    assert read(LONG_WAIT, "midigen")[1:-1] == [[-1, 256]] * 6 + [[-1, 64]]
    legacy = pg.NoteDurationTokenizer("midigen", legacy=True)
    assert [row[1] for row in legacy.encode_midi_positions(LONG_WAIT)] == [0] * 3 + [1600 - 256] * 2 + [1600] * 3


def test_short_notes_are_kept():
    data = bytes_of([*strike(60, 50), mido.Message("note_on", note=62, velocity=64, time=430), *strike(62)[1:]])
    assert read(data, legacy=True) == [[-1, 4], [62, 1]]
    assert read(data) == [[60, 1], [-1, 4], [62, 1]]


def test_notes_of_a_chord_keep_their_own_lengths():
    offs = [mido.Message("note_off", note=pitch, time=ticks) for pitch, ticks in ((60, 240), (64, 20))]
    data = bytes_of([mido.Message("note_on", note=60), mido.Message("note_on", note=64, time=20), *offs])
    assert read(data, "midigen", legacy=True) == [[64, 4], [60, 4]]  # both last as long as the later one
    assert read(data, "midigen") == [[64, 5], [60, 4]]


def test_a_key_struck_again_before_its_release_is_two_notes():
    messages = [
        mido.Message("note_on", note=60, time=0),
        mido.Message("note_on", note=60, time=480),
        mido.Message("note_off", note=60, time=480),
        mido.Message("note_off", note=60, time=0),
    ]
    assert read(bytes_of(messages), legacy=True) == [[60, 4]]  # the second strike is taken for a release
    assert [pair[0] for pair in read(bytes_of(messages))] == [60, -1, 60]


def test_a_note_over_a_bar_line_is_one_note():
    data = bytes_of(strike(60, 12 * 480))
    assert read(data, "midigen", legacy=True) == [[60, 32], [-1, 32], [60, 32], [-1, 32], [60, 32]]
    assert read(data, "midigen") == [[60, 96]]


def test_a_note_that_is_too_long_for_its_bar_does_not_put_off_the_next():
    messages = [
        mido.Message("note_on", note=60, time=3 * 480),
        mido.Message("note_on", note=64, time=0),
        mido.Message("note_off", note=64, time=240),
        mido.Message("note_on", note=65, time=2 * 480),
        mido.Message("note_on", note=67, time=0),
        mido.Message("note_off", note=67, time=240),
        mido.Message("note_on", note=72, time=2 * 480 + 240),
        mido.Message("note_off", note=72, time=240),
        mido.Message("note_off", note=60, time=3 * 480),
        mido.Message("note_off", note=65, time=0),
    ]
    data = bytes_of(messages)
    onset_of_72 = {
        legacy: sum(steps for pitch, steps in pairs[: pairs.index([72, 4])] if pitch == -1)
        for legacy in (True, False)
        for pairs in [read(data, "midigen", legacy=legacy)]
    }
    assert onset_of_72[False] == 68 < onset_of_72[True]


def test_the_highest_keys_are_written():
    assert read(bytes_of(strike(108, 480)), legacy=True) == []
    assert read(bytes_of(strike(108, 480))) == [[108, 4]]
    assert read(bytes_of(strike(127, 480)), "midigen", legacy=True) == []
    assert read(bytes_of(strike(127, 480)), "midigen") == [[127, 8]]


def test_drums_are_no_piano_notes():
    data = bytes_of(strike(60, 480), strike(36, 480, channel=9))
    assert read(data, legacy=True) == [[60, 4], [36, 4]]
    assert read(data) == [[60, 4]]
    notes = pg.read_midi(data, programs=None, drums=True)
    assert pairs_of(pg.NoteDurationTokenizer(), pg.NoteDurationTokenizer().encode_notes(notes)) == [[60, 4]]


def test_type_2_files_and_no_files_are_refused_in_one_line():
    for legacy in (True, False):
        with pytest.raises(pg.MidiError):
            pg.NoteDurationTokenizer(legacy=legacy).encode_midi(b"not music")
    with pytest.raises(pg.MidiError, match="type 2"):
        pg.NoteDurationTokenizer(legacy=True).encode_midi(bytes_of(strike(60), kind=2))


def test_a_cut_chord_that_music21_does_not_notice_puts_off_the_next_bar():
    """Found in a recording, and made smaller; the pairs are those of MIDIGen's rules with music21 9.9.2 itself."""
    events = [
        *((0, "on", 59), (543, "on", 64), (1505, "on", 63), (1531, "on", 56), (1545, "off", 59), (1988, "off", 63)),
        *(
            (2046, "off", 56),
            (2399, "off", 64),
            (2805, "on", 59),
            (2828, "on", 47),
            (3336, "off", 59),
            (3469, "off", 47),
        ),
    ]
    before = [0, *(tick for tick, _, _ in events)]
    messages = [
        mido.Message(f"note_{kind}", note=pitch, time=tick - last)
        for (tick, kind, pitch), last in zip(events, before, strict=False)
    ]
    assert read(bytes_of(messages), "midigen", legacy=True) == [
        *([59, 26], [-1, 10], [64, 22], [-1, 16], [63, 6], [56, 6], [-1, 8], [64, 8], [63, 2], [56, 2]),
        *([-1, 14], [59, 8], [-1, 2], [47, 11]),
    ]


def test_a_file_that_can_not_be_read_stays_where_it_is(tmp_path):
    (tmp_path / "broken.mid").write_bytes(b"MThd")
    for vocabulary in VOCABULARIES:
        for legacy in (True, False):
            with pytest.raises(pg.MidiError, match=r"broken\.mid"):
                pg.NoteDurationTokenizer(vocabulary, legacy=legacy).encode_midi(tmp_path / "broken.mid")
    assert (tmp_path / "broken.mid").is_file()


def test_a_pair_that_is_none_is_passed_over_wherever_it_stands():
    tokenizer = pg.NoteDurationTokenizer()
    good = tokenizer.convert_tokens_to_ids(
        ["Pitch_60", "Duration_4", "Separator", "Duration_4", "Pitch_62", "Duration_4"]
    )
    bad = tokenizer.convert_tokens_to_ids(["Duration_4", "Duration_2", "Pitch_50", "Pitch_51"])
    for ids in (bad + good, good[:2] + bad + good[2:], good + bad):
        assert tokenizer.decode_notes(ids) == tokenizer.decode_notes(good)


def test_a_vocabulary_that_does_not_exist_is_refused_by_name():
    with pytest.raises(ValueError, match="musicautobot, ai_music, midigen"):
        pg.NoteDurationTokenizer("midi_gen")


# All vocabularies ----------------------------------------------------------------------------------------------------


@given(notes=note_tables(), vocabulary=st.sampled_from(VOCABULARIES))
@settings(max_examples=60, deadline=None)
def test_ids_stay_in_the_vocabulary_and_every_prefix_allows_the_next(notes, vocabulary):
    tokenizer = pg.NoteDurationTokenizer(vocabulary)
    ids = tokenizer.encode_piece(notes)
    assert max(ids) < len(tokenizer)
    for length in range(1, len(ids)):
        assert tokenizer.allowed_next(ids[:length])[ids[length]]
    assert tokenizer.encode_piece(tokenizer.decode_notes(ids)) == ids


@given(notes=note_tables(), vocabulary=st.sampled_from(VOCABULARIES))
@settings(max_examples=60, deadline=None)
def test_any_music_has_legacy_ids(notes, vocabulary):
    tokenizer = pg.NoteDurationTokenizer(vocabulary, legacy=True)
    ids = tokenizer.encode_midi(pg.notes_to_midi_bytes(notes))
    assert ids[0] == tokenizer.bos_token_id
    ids = [index for index in ids if index < len(tokenizer)]  # a wait may have an id beyond it
    assert (len(tokenizer.decode_notes(ids)) > 0) == any(index >= tokenizer.first_pitch_id for index in ids)


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_what_it_is_asked_for_is_saved(vocabulary, legacy, tmp_path):
    tokenizer = pg.NoteDurationTokenizer(vocabulary, legacy=legacy)
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert (loaded.vocabulary, loaded.legacy) == (vocabulary, legacy)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert loaded(some_notes())["input_ids"] == tokenizer(some_notes())["input_ids"]
