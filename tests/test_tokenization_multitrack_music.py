"""The Multitrack Music Transformer's encoding: its own rows, what the default mends, instruments in files."""

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
from transformers import AutoTokenizer

import pianogen_hf as pg
from pianogen_hf.tokenizers.tokenization_multitrack_music import INSTRUMENTS

GOLDEN = Path(__file__).parent / "golden"
UPSTREAM = json.loads((GOLDEN / "upstream_multitrack_music.json").read_text(encoding="utf-8"))
FILES = json.loads((GOLDEN / "upstream_note_duration.json").read_text(encoding="utf-8"))["files"]
NAMES = [name for name in UPSTREAM if name != "origin"]
TOKENIZER, LEGACY = pg.MultitrackMusicTokenizer(), pg.MultitrackMusicTokenizer(legacy=True)
START, NOTES, END = [0] * 6, [2, 0, 0, 0, 0, 0], [4, 0, 0, 0, 0, 0]


def file_of(name):
    return base64.b64decode(FILES[name])


def notes_of(rows):
    return [row for row in rows if row[0] == 3]


# What the system writes ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_legacy_rows_are_those_of_the_system(name, tmp_path):
    (tmp_path / "music.mid").write_bytes(file_of(name))
    for source in (file_of(name), tmp_path / "music.mid", str(tmp_path / "music.mid")):
        assert LEGACY.encode_midi(source) == UPSTREAM[name]["codes"]


@pytest.mark.parametrize("name", NAMES)
def test_rows_and_ids_say_the_same(name):
    rows = UPSTREAM[name]["codes"]
    ids = LEGACY.rows_to_ids(rows)
    assert ids[0] == LEGACY.bos_token_id and ids[-1] == LEGACY.eos_token_id
    assert LEGACY.ids_to_rows(ids).tolist() == rows
    decoded = LEGACY.decode_rows(rows)
    assert len(decoded) == len(notes_of(rows)) and decoded.tempos["us_per_quarter"].tolist() == [600_000]


def test_sizes_are_those_of_the_system():
    assert TOKENIZER.field_sizes == (5, 1026, 13, 129, 33, 65)
    assert len(TOKENIZER) == 3 + 3 + 1025 + 12 + 128 + 32 + 64


def test_start_and_end_are_rounded_each_as_the_system_does():
    row = notes_of(LEGACY.encode_midi(bytes_of([*strike(60, 1), *_note(62, 260, 260)])))[-1]
    assert row[1:5] == [1, 7, 63, 7]  # from step 6 (6.5), seven steps


def _note(pitch, wait, ticks):
    on, off = strike(pitch, ticks)
    return [on.copy(time=wait - 1), off]


# What it loses, and the default does not -----------------------------------------------------------------------------


def test_what_lies_beyond_the_last_beat_goes_to_another_page():
    data = bytes_of([*strike(60, 480), *_note(62, 2500 * 480, 480)])
    assert len(notes_of(LEGACY.encode_midi(data))) == 1
    rows = TOKENIZER.encode_midi(data)
    assert rows == [START, [1, 0, 0, 0, 0, 1], NOTES, [3, 1, 1, 61, 12, 1], NOTES, NOTES, [3, 452, 1, 63, 12, 1], END]
    ids = pg.MultitrackMusicTokenizer(num_beats=16).encode_piece(pg.read_midi(data))
    again = pg.MultitrackMusicTokenizer(num_beats=16).decode_notes(ids)
    assert again["pitch"].tolist() == [60, 62] and again["onset_tick"].tolist()[0] == 0  # too many pages: cut, not lost
    assert TOKENIZER.decode_rows(rows)["onset_tick"].tolist() == [0, 2501 * 480]


def test_silence_before_the_first_note_is_kept():
    data = bytes_of([mido.Message("note_on", note=60, time=960), mido.Message("note_off", note=60, time=480)])
    assert notes_of(LEGACY.encode_midi(data))[0][1] == 1
    assert notes_of(TOKENIZER.encode_midi(data))[0][1] == 3


def test_a_program_counts_for_the_notes_that_begin_after_it():
    messages = [
        mido.Message("note_on", note=60),
        mido.Message("program_change", program=40, time=100),
        mido.Message("note_off", note=60, time=380),
        *strike(62, 480),
    ]
    violin = list(INSTRUMENTS).index("violin") + 1
    assert [row[5] for row in notes_of(LEGACY.encode_midi(bytes_of(messages)))] == [violin, violin]
    assert [row[5] for row in notes_of(TOKENIZER.encode_midi(bytes_of(messages)))] == [1, violin]


def test_one_strike_of_an_instrument_is_one_note():
    doubled = bytes_of(strike(60, 480), strike(60, 240, channel=1))
    assert len(notes_of(LEGACY.encode_midi(doubled))) == 2
    assert [row[4] for row in notes_of(TOKENIZER.encode_midi(doubled))] == [12]


def test_files_that_the_system_refuses_are_refused_in_one_line():
    for tokenizer in (LEGACY, TOKENIZER):
        with pytest.raises(pg.MidiError):
            tokenizer.encode_midi(b"not music")
    with pytest.raises(pg.MidiError, match="type 2"):
        LEGACY.encode_midi(bytes_of(strike(60), kind=2))


def test_rows_that_are_none_are_refused():
    with pytest.raises(ValueError, match="codes of a row must lie below"):
        TOKENIZER.rows_to_ids([[3, 1, 1, 200, 1, 1]])
    with pytest.raises(ValueError, match="num_beats"):
        pg.MultitrackMusicTokenizer(num_beats=0)


# Prompts -------------------------------------------------------------------------------------------------------------


def test_prompts_are_the_instruments_or_so_many_beats():
    rows = UPSTREAM["04_band"]["codes"]
    header = [row for row in rows if row[0] < 3]
    assert TOKENIZER.prompt_rows(rows).tolist() == header
    assert TOKENIZER.prompt_rows(rows, beats=2).tolist() == header + [row for row in notes_of(rows) if row[1] <= 2]


def test_a_piece_that_does_not_reach_so_many_beats_is_all_of_the_prompt():
    rows = UPSTREAM["04_band"]["codes"]
    assert TOKENIZER.prompt_rows(rows, beats=1000).tolist() == rows[:-1]


def test_beats_of_later_pages_count_from_the_beginning():
    tokenizer = pg.MultitrackMusicTokenizer(num_beats=4)
    notes = pg.Notes.from_columns(480, onset_tick=480 * np.arange(10), duration_tick=[480] * 10, pitch=[60] * 10)
    rows = tokenizer.ids_to_rows(tokenizer.encode_piece(notes))
    assert len(notes_of(tokenizer.prompt_rows(rows, beats=6).tolist())) == 6


# Notes of several instruments ----------------------------------------------------------------------------------------


@given(notes=note_tables(), num_beats=st.sampled_from([1, 3, 1025]))
@settings(max_examples=80, deadline=None)
def test_notes_of_any_instruments_come_back_and_every_prefix_allows_the_next(notes, num_beats):
    tokenizer = pg.MultitrackMusicTokenizer(num_beats)
    ids = tokenizer.encode_piece(notes)
    for length in range(1, len(ids)):
        assert tokenizer.allowed_next(ids[:length])[ids[length]]
    decoded = tokenizer.decode_notes(ids)
    assert tokenizer.encode_piece(decoded) == ids
    again = pg.read_midi(pg.notes_to_midi_bytes(decoded), programs=None)
    columns = ["onset_tick", "duration_tick", "pitch", "program"]
    assert sorted(again.table[columns].tolist()) == sorted(decoded.table[columns].tolist())
    assert {*decoded["program"].tolist()} == {*notes["program"][~notes["is_drum"]].tolist()}


@given(seed=st.integers(0, 2**32 - 1), num_beats=st.sampled_from([1, 3, 1025]))
@settings(max_examples=25, deadline=None)
def test_a_walk_through_the_grammar_plays_announced_instruments_in_rising_order(seed, num_beats):
    random, tokenizer = np.random.default_rng(seed), pg.MultitrackMusicTokenizer(num_beats)
    ids = [tokenizer.bos_token_id]
    while len(ids) < 150 and ids[-1] != tokenizer.eos_token_id:
        ids.append(int(random.choice(np.flatnonzero(tokenizer.allowed_next(ids)))))
    rows = tokenizer.ids_to_rows(ids).tolist()
    announced = [row[5] for row in rows if row[0] == 1 and row[5]]
    whole = [row for row in notes_of(rows) if all(row)]
    assert announced == sorted(set(announced)) and {row[5] for row in whole} <= {*announced}
    page = np.cumsum([row == NOTES for row in rows])
    places = [(number, row) for number, row in zip(page.tolist(), rows, strict=True) if row[0] == 3 and all(row)]
    assert places == sorted(places) and len(places) == len({(number, *row) for number, row in places})


def test_twenty_instruments_have_channels_of_their_own_and_none_is_that_of_drums():
    programs = [programs[0] for programs in INSTRUMENTS.values()][:20]
    notes = pg.Notes.from_columns(
        480, onset_tick=[0] * 20, duration_tick=[480] * 20, pitch=[60] * 20, program=programs, channel=range(20)
    )
    decoded = TOKENIZER.decode_notes(TOKENIZER.encode_notes(notes))
    assert len({*decoded["channel"].tolist()}) == 20 and not (decoded["channel"] % 16 == 9).any()
    again = pg.read_midi(pg.notes_to_midi_bytes(decoded), programs=None)
    assert sorted(again["program"].tolist()) == sorted(programs)
    assert decoded.track_names[:2] == ("piano", "electric-piano")


def test_what_it_is_asked_for_is_saved(tmp_path):
    pg.MultitrackMusicTokenizer(num_beats=64, legacy=True).save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert (loaded.num_beats, loaded.legacy, len(loaded)) == (64, True, 306)
