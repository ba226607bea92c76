"""CrayKH text: hand-computed texts, the original's rules cell by cell, round trips, grammar."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerBase

from pianogen_hf.tokenizers.notes import TEMPO_DTYPE, Notes
from pianogen_hf.tokenizers.tokenization_craykh import MAX_COLUMNS, CrayKHTokenizer

TOKENIZER = CrayKHTokenizer()


def make_notes(rows, ticks_per_quarter=480, tempos=((0, 500_000),), **columns) -> Notes:
    """Notes of rows (onset_tick, duration_tick, pitch, track)."""
    onset, duration, pitch, track = np.array(rows, dtype=np.int64).reshape(-1, 4).T
    return Notes.from_columns(
        ticks_per_quarter,
        np.array(list(tempos), dtype=TEMPO_DTYPE),
        onset_tick=onset,
        duration_tick=duration,
        pitch=pitch,
        track=track,
        **columns,
    )


def columns_of(text: str) -> list[str]:
    """The columns of a text, line breaks left out."""
    return text.replace("\n", "").split(" ")[:-1]


@st.composite
def random_notes(draw, tempo_changes: bool = True) -> Notes:
    """Few pitches and short times, so that notes of one pitch meet often, within a track and between tracks."""
    times = st.one_of(st.integers(0, 400), st.integers(0, 6000))
    pitch = st.one_of(st.sampled_from([21, 60, 61, 110]), st.integers(0, 127))
    rows = draw(st.lists(st.tuples(times, times, pitch, st.integers(0, 2)), max_size=25))
    silence = draw(st.sampled_from([0, 0, 700, 9000]))
    rows = [(onset + silence, duration, pitch, track) for onset, duration, pitch, track in rows]
    tempo = st.tuples(st.integers(1, 8000), st.integers(200_000, 2_000_000))
    tempos = draw(st.lists(tempo, max_size=3)) if tempo_changes else []
    first = draw(st.sampled_from([500_000, 461_538, 1_000_000]))
    return make_notes(rows, draw(st.sampled_from([96, 384, 480])), [(0, first), *tempos])


def original_text(notes: Notes) -> str:
    """The rules of the original, cell by cell: 1 is an open strike, 2 sounds, 0 is free."""
    tempos = [(int(tick), int(us)) for tick, us in notes.tempos]

    def column(tick: int) -> int:
        if len({us for _, us in tempos}) == 1:
            step = np.float32(50_000) / np.float32(tempos[0][1]) * np.float32(notes.ticks_per_quarter)
            return int(np.float32(tick) / step)
        ends = [tick for tick, _ in tempos[1:]] + [2**40]
        passed = ((min(tick, end) - begin) * us for (begin, us), end in zip(tempos, ends, strict=True) if tick > begin)
        return int(Fraction(sum(passed), notes.ticks_per_quarter * 50_000))

    events = []
    for row in notes.table:
        onset, offset, track = int(row["onset_tick"]), int(row["onset_tick"]) + int(row["duration_tick"]), row["track"]
        events += [(track, onset, 1, row["pitch"]), (track, offset, 2 if onset == offset else 0, row["pitch"])]
    cells: dict[tuple[int, int], int] = {}
    last = 0
    for _, tick, kind, pitch in sorted(events):
        if not 24 <= pitch <= 109:
            continue
        here = column(tick)
        if kind == 1 and not cells.get((here, pitch)):
            cells[here, pitch] = 1
        elif kind != 1:
            start = next((c for c in range(here, -1, -1) if cells.get((c, pitch)) == 1), None)
            if start is not None:
                end = max(here - 1, start + 1)
                cells.update({(c, pitch): 2 for c in range(start, end)})
                last = max(last, end - 1)
    text, begun = "", False
    for c in range(last + 24 if cells else 0):
        characters = "".join(chr(33 + pitch - 22) for pitch in range(24, 110) if cells.get((c, pitch)))
        begun = begun or bool(characters)
        text += characters + " " * begun + "\n" * (c % 50 == 49)
    return text


def test_float32_division_decides_the_column():
    """576 / 38.4 is 15; in float32 the step is 38.400002 and the note falls into column 14."""
    notes = make_notes([(0, 96, 60, 0), (576, 960 - 576, 62, 0)], 384)
    columns = columns_of(TOKENIZER.notes_to_text(notes))
    assert columns[14] == "I" and columns[13] == ""
    assert columns[22] == "I" and columns[23] == ""  # 960 / 38.4 is 25, in float32 24


def test_text_ends_24_columns_after_the_last_that_sounds():
    columns = columns_of(TOKENIZER.notes_to_text(make_notes([(0, 480, 60, 0)])))
    assert columns == ["G"] * 9 + [""] * 23


@pytest.mark.parametrize(("first_column", "start"), [(0, "G"), (49, "G \n"), (50, "\nG"), (120, "\n\nG")])
def test_leading_silence_leaves_only_its_line_breaks(first_column, start):
    text = TOKENIZER.notes_to_text(make_notes([(48 * first_column, 48, 60, 0)]))
    assert text.startswith(start)


def test_line_breaks_stand_where_the_files_own_columns_are_multiples_of_50():
    text = TOKENIZER.notes_to_text(make_notes([(48 * 13, 48 * 200, 60, 0)]))
    assert [line.count(" ") for line in text.split("\n")] == [37, 50, 50, 50, 35]  # columns 13..234


def test_repeated_notes_are_told_apart_by_a_silent_column():
    text = TOKENIZER.notes_to_text(make_notes([(0, 192, 60, 0), (192, 192, 60, 0)]))
    assert columns_of(text)[:8] == ["G", "G", "G", "", "G", "G", "G", ""]


def test_a_strike_in_a_column_where_its_pitch_began_is_dropped():
    text = TOKENIZER.notes_to_text(make_notes([(0, 10, 60, 0), (20, 480, 60, 0)]))
    assert columns_of(text) == ["G"] + [""] * 23


def test_crossing_notes_of_one_pitch_sound_as_their_union():
    text = TOKENIZER.notes_to_text(make_notes([(0, 480, 60, 0), (240, 480, 60, 0)]))
    assert columns_of(text)[:15] == ["G"] * 14 + [""]


def test_only_the_piano_family_and_printable_pitches_are_kept():
    notes = make_notes(
        [(0, 96, pitch, 0) for pitch in (21, 23, 24, 60, 61, 62, 109, 110)],
        program=[0, 0, 0, 7, 8, 0, 0, 0],
        is_drum=[False] * 5 + [True] + [False] * 2,
    )
    assert TOKENIZER.notes_to_text(notes).startswith("#Gx ")
    assert TOKENIZER.decode_notes(TOKENIZER.encode_notes(notes))["pitch"].tolist() == [24, 60, 109]


def test_what_begins_after_the_last_column_of_the_original_is_dropped():
    late = make_notes([(0, 48, 60, 0), (48 * MAX_COLUMNS, 48, 72, 0), (48 * (MAX_COLUMNS - 2), 4800, 74, 0)])
    ids = TOKENIZER.encode_notes(late)
    assert ids.count(TOKENIZER.convert_tokens_to_ids(" ")) == MAX_COLUMNS
    assert TOKENIZER.decode_notes(ids)["pitch"].tolist() == [60, 74]
    assert TOKENIZER.encode_notes(TOKENIZER.decode_notes(ids)) == ids


def test_columns_are_real_time_across_tempo_changes():
    """One quarter at 120 a minute is 10 columns, the next at 60 is 20."""
    notes = make_notes([(480, 48, 60, 0), (960, 48, 62, 0), (0, 48, 64, 0)], 480, [(0, 500_000), (480, 1_000_000)])
    columns = columns_of(TOKENIZER.notes_to_text(notes))
    assert [columns.index(character) for character in "KGI"] == [0, 10, 30]


def test_a_tempo_that_is_said_twice_is_one_tempo():
    rows = [(tick, 96, 60, 0) for tick in (0, 576, 960, 1152)]
    once, twice = make_notes(rows, 384), make_notes(rows, 384, [(0, 500_000), (700, 500_000)])
    assert TOKENIZER.notes_to_text(once) == TOKENIZER.notes_to_text(twice)


def test_transposition_moves_characters_and_is_undone_in_decoding():
    notes = make_notes([(0, 96, 60, 0)])
    transposed = CrayKHTokenizer(transposition=5)
    assert transposed.notes_to_text(notes) == TOKENIZER.notes_to_text(notes).replace("G", "L")
    assert transposed.text_to_notes("L ")["pitch"].tolist() == [60]
    with pytest.raises(ValueError, match="printable"):
        CrayKHTokenizer(transposition=200)


@pytest.mark.parametrize("transposition", [-12, -2, 0, 5, 6, 20])
def test_only_printable_characters_are_tokens(transposition):
    tokenizer = CrayKHTokenizer(transposition=transposition)
    characters = list(tokenizer.get_vocab())[tokenizer.num_special : -2]
    assert all(33 <= ord(character) <= 126 for character in characters)
    assert len(characters) == 86 - max(0, transposition - 6) - max(0, -2 - transposition)


@given(random_notes())
@settings(max_examples=150, deadline=None)
def test_text_is_the_originals(notes):
    assert TOKENIZER.notes_to_text(notes) == original_text(notes)


@given(random_notes(), st.sampled_from([-4, 0, 3, 9]))
@settings(max_examples=60, deadline=None)
def test_what_was_decoded_encodes_to_the_same_ids(notes, transposition):
    tokenizer = CrayKHTokenizer(transposition=transposition)
    ids = tokenizer.encode_notes(notes)
    assert tokenizer.encode_notes(tokenizer.decode_notes(ids)) == ids


@given(random_notes())
@settings(max_examples=40, deadline=None)
def test_text_and_ids_say_the_same(notes):
    ids = TOKENIZER.encode_notes(notes)
    text = TOKENIZER.decode(ids)
    assert text == TOKENIZER.notes_to_text(notes)
    assert TOKENIZER(text)["input_ids"] == [TOKENIZER.bos_token_id, *ids]
    assert TOKENIZER.decode([TOKENIZER.bos_token_id, *ids], skip_special_tokens=True) == text
    assert TOKENIZER.text_to_notes(text) == TOKENIZER.decode_notes(ids)


@given(random_notes())
@settings(max_examples=25, deadline=None)
def test_the_grammar_allows_every_prefix_of_a_piece(notes):
    piece = TOKENIZER.encode_piece(notes)
    for position in range(1, len(piece)):
        assert TOKENIZER.allowed_next(piece[:position])[piece[position]]


@given(st.lists(st.integers(0, len(TOKENIZER) - 1), max_size=80))
@settings(max_examples=150, deadline=None)
def test_any_ids_decode_and_can_be_continued(ids):
    notes = TOKENIZER.decode_notes(ids)
    assert len(notes) <= len(ids)
    assert TOKENIZER.allowed_next(ids).any()


@given(st.lists(st.floats(0, 1, exclude_max=True), min_size=1, max_size=150))
@settings(max_examples=40, deadline=None)
def test_text_by_the_grammar_keeps_its_notes(choices):
    ids: list[int] = []
    for choice in choices:
        allowed = np.flatnonzero(TOKENIZER.allowed_next(ids)[TOKENIZER.num_special :]) + TOKENIZER.num_special
        # Mostly spaces, as in music; otherwise any that is allowed.
        space = TOKENIZER.convert_tokens_to_ids(" ")
        ids.append(
            space if choice > 0.3 and space in allowed else int(allowed[int(choice / 0.3 * 7919) % len(allowed)])
        )
    notes = TOKENIZER.decode_notes(ids)
    assert TOKENIZER.decode_notes(TOKENIZER.encode_notes(notes)) == notes


def test_the_grammar_by_example():
    def allowed_after(text: str) -> set[str]:
        ids = TOKENIZER.convert_tokens_to_ids(TOKENIZER.tokenize(text))
        return set(TOKENIZER.convert_ids_to_tokens(np.flatnonzero(TOKENIZER.allowed_next(ids)).tolist()))

    assert {"<eos>", "\n", "#"} <= allowed_after("") and " " not in allowed_after("")
    assert "<eos>" not in allowed_after("\n") and "\n" in allowed_after("\n")
    assert allowed_after("Gw") == {"x", " "} and allowed_after("x") == {" "}
    assert {"<eos>", "\n", " ", "G"} <= allowed_after("G ")
    assert allowed_after("G " * 50) == {"\n"}
    assert {"<eos>", " ", "G"} <= allowed_after("G \n") and "\n" not in allowed_after("G \n")
    assert "\n" not in allowed_after("G \nG ") and allowed_after("G \n" + " " * 50) == {"\n"}


def test_decoded_notes_end_where_encoding_found_their_release():
    notes = make_notes([(0, 480, 60, 0), (480, 48, 60, 0), (960, 96, 62, 0)])
    decoded = TOKENIZER.decode_notes(TOKENIZER.encode_notes(notes))
    assert decoded["onset_tick"].tolist() == [0, 480, 960]
    assert decoded["duration_tick"].tolist() == [480, 72, 72]  # a single column: 75 ms
    assert set(decoded["velocity"].tolist()) == {80}


def test_unknown_characters_are_an_error():
    with pytest.raises(ValueError, match="no event"):
        TOKENIZER("G \t")


def test_save_and_load_keep_the_tokenizer(tmp_path):
    tokenizer = CrayKHTokenizer(transposition=3)
    tokenizer.save_pretrained(tmp_path)
    loaded = CrayKHTokenizer.from_pretrained(tmp_path)
    notes = make_notes([(0, 480, 60, 0), (96, 4800, 64, 0)])
    assert isinstance(loaded, PreTrainedTokenizerBase)
    assert loaded.get_vocab() == tokenizer.get_vocab() and loaded.transposition == 3
    assert loaded.encode_piece(notes) == tokenizer.encode_piece(notes)
    assert loaded.decode(loaded.encode_notes(notes)) == tokenizer.notes_to_text(notes)
