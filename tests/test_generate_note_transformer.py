"""What the generate command asks of a note transformer (V8), and one line for whatever a user can get wrong."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from models_and_tokenizers import loosened, some_notes, tiny_model

import pianogen_hf as pg
from pianogen_hf.commands.generate import main

PROMPT = some_notes(num_notes=40)


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    for part in (tiny_model(pg.NoteTransformerForCausalLM, 130), pg.ContinuousNotesFeatureExtractor()):
        part.save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def in_a_folder_with_a_prompt(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    pg.write_midi(PROMPT, tmp_path / "prompt.mid")


def run(model_dir, *argv: object) -> int:
    return main(["--model", str(model_dir), "--prompt", "prompt.mid", *map(str, argv)])


@pytest.mark.parametrize(
    "words",
    [
        "fill prompt.mid --bars 90 99",
        "fill prompt.mid --seconds -3 2",
        "vary prompt.mid --strength 2",
        "vary prompt.mid --bars 4 2",
        "continue prompt.mid --from_bar 0",
        "continue prompt.mid --from_seconds 99",
        "harmonise text.mid",
        "accompany nowhere.mid",
        "continue prompt.mid --until 9 --seconds 3",
        "continue prompt.mid --seconds -5",
    ],
)
def test_a_mistake_is_told_before_anything_heavy_is_loaded(words, tmp_path):
    (tmp_path / "text.mid").write_text("no music")
    code = (
        "import sys; from pianogen_hf.commands.generate import main; "
        "code = main(sys.argv[1:]); sys.exit(9 if 'torch' in sys.modules else code)"
    )
    done = subprocess.run([sys.executable, "-c", code, *words.split()], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and done.stderr.count("\n") == 1


def test_a_gap_is_filled_and_all_else_stays(model_dir):
    assert run(model_dir, "--fill", 2, 4, "--density", 4, "--key", "C minor") == 0
    result = pg.read_midi("out.mid")
    outside = (PROMPT.onset_sec < 2) | (PROMPT.onset_sec >= 4)
    rows = result.table.tolist()
    assert all(row in rows for row in PROMPT.table[outside].tolist())
    assert len(result) > outside.sum()


def test_an_accompaniment_is_added(model_dir):
    assert run(model_dir, "--accompany", "below", "--num_samples", 2, "--loudness", 40) == 0
    for name in ("out-1.mid", "out-2.mid"):
        result = pg.read_midi(name)
        assert len(result) > 40 and len(np.unique(result["track"])) == 2


def test_a_continuation_takes_controls_and_comes_to_an_end(model_dir):
    options = ["--density", 6, "--register", 60, "--loudness", 40, "--key", "g", "--kind", "jazz", "--end"]
    assert run(model_dir, "--seconds", 5, *options) == 0
    assert len(pg.read_midi("out.mid")) > 40


def test_how_much_is_made_of_what_is_asked_can_be_said_and_is_2_by_itself(tmp_path):
    torch.manual_seed(0)
    for part in (loosened(tiny_model(pg.NoteTransformerForCausalLM, 130)), pg.ContinuousNotesFeatureExtractor()):
        part.save_pretrained(tmp_path / "model")
    written = []
    for scale in ([], ["--guidance_scale", 2], ["--guidance_scale", 9]):
        assert run(tmp_path / "model", "--notes", 12, "--loudness", 100, *scale) == 0
        written.append(pg.read_midi("out.mid"))
    assert written[0] == written[1] != written[2]


def verb(name: str, model_dir, *argv: object) -> int:
    return main([name, "prompt.mid", "--model", str(model_dir), *map(str, argv)])


@pytest.mark.parametrize(
    ("flat", "words"),
    [
        (["--fill_bars", 2, 2], ["fill", "--bars", 2, 2]),
        (["--fill", 1, 2, "--fill", 4, 5], ["fill", "--seconds", 1, 2, "--seconds", 4, 5]),
        (["--fill_bars", 2, 3, "--pitches", 60, 108], ["fill", "--bars", 2, 3, "--pitches", 60, 108]),
        (["--vary", 0.5, "--from_seconds", 2, "--until", 6], ["vary", "--bars", 2, 3]),
        (["--vary", 0.4, "--from_bar", 3], ["vary", "--strength", 0.4, "--from_seconds", 4]),
        (["--accompany", "below", "--from_bar", 2, "--until", 6], ["accompany", "--bars", 2, 3]),
        (["--harmonise"], ["harmonise"]),
        (["--bars", 1, "--from_bar", 3], ["continue", "--from_seconds", 4, "--until", 6]),
        (["--bars", 8], ["extend"]),
        (["--bars", 4, "--end"], ["end"]),
    ],
)
def test_verbs_and_flat_options_do_the_same(model_dir, flat, words):
    assert run(model_dir, *flat, "--output", "flat") == 0
    assert verb(words[0], model_dir, *words[1:], "--output", "words") == 0
    assert pg.read_midi("flat.mid", None) == pg.read_midi("words.mid", None)
    assert pg.read_midi("flat.mid", None) != PROMPT


@pytest.mark.parametrize(
    "options",
    [
        ["--creativity", 0.3, "--top_k_offset", 2, "--min_p", 0.05],
        ["--top_k_notes", 5, "--top_k_durations", 9, "--top_k_of", "velocity=3", "--temperature_of", "pitch=0.7"],
        ["--mask_k", 1, "--mask_p", 0.1, "--typical_p", 0.9],
        ["--greedy"],
        ["--no_repeat_notes", 3],
        ["--chords", "Cm7 | Fm7 | G7 | Cm", "--pitches", 40, 90],
        ["--chords", "prompt", "--in_c"],
        ["--num_beams", 2, "--length_penalty", 0.5],
    ],
)
def test_searches_are_taken(model_dir, options):
    assert run(model_dir, "--notes", 3, *options) == 0
    assert len(pg.read_midi("out.mid")) == len(PROMPT) + 3


def test_a_folder_is_not_copied(model_dir, tmp_path, capsys):
    run(model_dir, "--notes", 12, "--output", "first")
    first = pg.read_midi("first.mid")
    pg.write_midi(first, tmp_path / "midi" / "first.mid")
    assert run(model_dir, "--notes", 12, "--no_copies_of", "midi", "--max_run", 4) == 0
    assert "notes in a row" not in capsys.readouterr().out
    assert pg.read_midi("out.mid") != first
    assert run(model_dir, "--notes", 12, "--num_beams", 2, "--no_copies_of", "midi", "--max_run", 2, "--tries", 2) == 0


def test_the_picture_of_a_gap_shows_what_is_new(model_dir, monkeypatch):
    seen = []
    monkeypatch.setattr("pianogen_hf.workflows.generate.save_piano_roll", lambda *arguments: seen.append(arguments))
    assert verb("fill", model_dir, "--bars", 2, 2, "--png") == 0
    drawn, _, _, prompt_end_sec, gap_end_sec, _ = seen[0]
    assert (prompt_end_sec, gap_end_sec) == (2.0, 4.0) and drawn.track_names == ("as it was", "new")
    is_new = drawn["track"] == 1
    assert (drawn.onset_sec[is_new] >= 2 - 2e-3).all() and 0 < is_new.sum() == len(drawn) - sum(
        (PROMPT.onset_sec < 2) | (PROMPT.onset_sec >= 4)
    )


@pytest.mark.parametrize("name", ["continue", "extend", "end", "fill", "vary", "accompany", "harmonise"])
def test_every_verb_has_a_help_of_its_own(name, capsys):
    with pytest.raises(SystemExit) as caught:
        main([name, "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert f"generate.py {name}" in text and "FILE.mid" in text and "--seed" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fill"], "one of the arguments --bars --seconds is required"),
        (["fill", "--bars", 90, 99], "not within the piece, which has 5"),
        (["fill", "--bars", 1, 2, "--bars", 2, 3], "overlap"),
        (["fill", "--bars", 1, 2, "--pitches", 70, 60], "a lowest and a highest one"),
        (["vary", "--strength", 2], "strength lies between"),
        (["vary", "--bars", 1, 2, "--from_seconds", 2], "leave one out"),
        (["vary", "--from_bar", 77], "bar 77 is not within"),
        (["accompany", "--from_seconds", 99], "is not within"),
        (["continue", "--until", 1], "--until 1 lies before new music begins"),
        (["continue", "--until", 99, "--bars", 3], "leave one out"),
        (["end", "--bars", 0], "more than 0"),
        (["harmonise", "--notes", 3], "unrecognized arguments"),
    ],
)
def test_nonsense_of_a_verb_is_one_line(model_dir, words, message, capfd, tmp_path):
    assert verb(words[0], model_dir, *words[1:]) == 2
    captured = capfd.readouterr().err
    assert message in captured and captured.strip().count("\n") == 0
    assert not (tmp_path / "out.mid").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--fill", 90, 99], "is not within"),
        (["--fill", 4, 2], "is not within"),
        (["--fill", 2, 4, "--end"], "--end is for a continuation"),
        (["--vary", 0.5, "--bars", 3], "not allowed with"),
        (["--harmonise", "--pitches", 60, 108], "--pitches is not for harmonise"),
        (["--in_c", "--key", "D"], "--in_c moves the prompt"),
        (["--pitches", 80, 60], "a lowest and a highest one"),
        (["--chords", "Cm7 | H"], "'H' is no chord"),
        (["--chords", "|"], "there are no chords"),
        (["--harmonise", "--until", 3], "--until is not for harmonise"),
        (["--from_bar", 2, "--from_seconds", 3], "not allowed with"),
        (["--accompany", "below", "--end"], "--end is for a continuation"),
        (["--density", 4, "--guidance_scale", 11], "guidance_scale must lie"),
        (["--guidance_scale", 3], "give --density, --key ..."),
        (["--density", 0], "density must lie"),
        (["--density", "nan"], "density must lie"),
        (["--register", 200], "register must lie"),
        (["--loudness", 0, "--fill", 2, 4], "loudness must lie"),
        (["--key", "H", "--accompany", "above"], "is no key"),
        (["--notes", 5, "--end"], "seconds or bars"),
        (["--top_k", 2, "--top_k_offset", 2], "leaves nothing"),
        (["--creativity", 2], "creativity must be"),
        (["--min_p", -1], "min_p must be"),
        (["--top_k_of", "pitch"], "takes words such as pitch=3"),
        (["--temperature_of", "loudness=2"], "temperature_of has a number above 0 for time"),
        (["--no_repeat_notes", 1], "no_repeat_notes must be at least 2"),
        (["--no_repeat_notes", 4, "--num_beams", 2], "leave out num_beams"),
        (["--tries", 0], "--tries must be at least 1"),
        (["--no_copies_of", "nowhere"], "--no_copies_of nowhere is no folder"),
        (["--greedy", "--num_samples", 2], "--greedy gives one piece"),
        (["--fill", 2, 4, "--engine", "onnx"], "pianogen export"),
    ],
)
def test_what_can_not_be_is_one_line(model_dir, options, message, capfd):
    assert run(model_dir, *options) == 2
    captured = capfd.readouterr().err
    assert message in captured and captured.strip().count("\n") == 0


@pytest.mark.parametrize(
    "options", [["--accompany", "beside"], ["--kind", "rock"], ["--fill", 2], ["--density", "much"]]
)
def test_what_no_parser_takes_is_one_line(model_dir, options, capfd):
    try:
        code = run(model_dir, *options)
    except SystemExit as error:
        code = error.code
    assert code == 2 and capfd.readouterr().err.strip().count("\n") == 0


@pytest.mark.parametrize("options", [["--fill", "2", "4"], ["--accompany", "below"]])
def test_without_a_prompt_there_is_nothing_to_work_on(model_dir, options, capfd):
    assert main(["--model", str(model_dir), *options]) == 2
    assert "give a --prompt" in capfd.readouterr().err
