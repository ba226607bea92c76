"""`generate.py explain`: bars, notes, and the tokens or rows that a model sees of them."""

from __future__ import annotations

import numpy as np
import pytest
from models_and_tokenizers import TOKENIZERS, some_notes

import pianogen_hf as pg
from pianogen_hf.commands.generate import main
from pianogen_hf.generation.passages import bar_ticks
from pianogen_hf.rendering.explained import roll_lines, wrapped
from pianogen_hf.workflows.explain import explained_bars

ENCODERS = [*(each() for each in TOKENIZERS), pg.ContinuousNotesFeatureExtractor()]


@pytest.mark.parametrize("encoder", ENCODERS, ids=lambda each: type(each).__name__)
def test_the_tokens_of_all_bars_are_those_of_the_piece(encoder):
    notes = some_notes(num_notes=40)
    num_bars = len(bar_ticks(notes)) - 1
    bars = explained_bars(encoder, notes, 1, num_bars)
    steps = [step for bar in bars for step in bar.steps]
    assert sum(len(bar.notes) for bar in bars) == len(notes)
    if isinstance(encoder, pg.NoteTokenizer):
        ids = [encoder.convert_tokens_to_ids(step) for step in steps]
        assert ids == encoder.encode_prompt(notes)
    else:
        assert len(steps) == len(encoder.encode_notes(notes))
    alone = explained_bars(encoder, notes, 2, 3)
    assert [bar.steps for bar in alone] == [bar.steps for bar in bars[1:3]]


def test_rows_stand_in_the_bar_in_which_their_note_begins():
    onset = np.arange(12) * 0.605  # none on the grid of 10 ms
    notes = pg.Notes.from_seconds(onset, np.full(12, 0.5), np.full(12, 60))
    for bar in explained_bars(pg.ContinuousNotesFeatureExtractor(), notes, 1, 4):
        assert len(bar.steps) == len(bar.notes)


def test_a_roll_of_characters_shows_where_notes_begin_and_sound():
    notes = pg.Notes.from_seconds([0.0, 1.0, 1.5], [2.5, 0.5, 0.25], [60, 64, 67])
    first, second = explained_bars(pg.ContinuousNotesFeatureExtractor(), notes, 1, 2)
    assert roll_lines(first) == [
        "  G4 |························#===····|",
        "  E4 |················#=======········|",
        "  C4 |#===============================|",
    ]
    assert roll_lines(second) == ["  C4 |========························|"]


def test_words_are_wrapped_and_white_space_is_seen():
    assert wrapped(["ab", "cd", " ", "e"], 5) == ["ab cd", "␣ e"]
    assert wrapped([], 5) == []


@pytest.mark.parametrize("words", [["explain", "my.mid"], ["--prompt", "my.mid", "--explain"]])
def test_it_is_printed_and_drawn(words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    pg.write_midi(some_notes(num_notes=40), "my.mid")
    assert main([*words, "--model", pg.BACH_MODEL, "--png", "--output", "seen"]) == 0
    out = capsys.readouterr().out
    assert "my.mid: 40 notes, 5 bars" in out and "bar 4 ·" in out and "bar 5 ·" not in out and "REST" in out
    assert (tmp_path / "seen.png").read_bytes().startswith(b"\x89PNG")
    assert {path.name for path in tmp_path.iterdir()} == {"my.mid", "seen.png"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--bars", 3, 9], "not within the piece, which has 5"),
        (["--seconds", 9], "unrecognized arguments"),
        (["--model", "nowhere"], "nowhere"),
    ],
)
def test_what_can_not_be_explained_is_one_line(options, message, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    pg.write_midi(some_notes(num_notes=40), "my.mid")
    assert main(["explain", "my.mid", *map(str, options)]) == 2
    captured = capfd.readouterr().err
    assert message in captured and captured.strip().count("\n") == 0
