"""What the generate command asks of a note transformer (V8), and one line for whatever a user can get wrong."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from models_and_tokenizers import some_notes, tiny_model

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


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--fill", 90, 99], "is not within"),
        (["--fill", 4, 2], "is not within"),
        (["--fill", 2, 4, "--end"], "--end is for music that goes on"),
        (["--accompany", "below", "--end"], "--end is for music that goes on"),
        (["--density", 0], "density must lie"),
        (["--density", "nan"], "density must lie"),
        (["--register", 200], "register must lie"),
        (["--loudness", 0, "--fill", 2, 4], "loudness must lie"),
        (["--key", "H", "--accompany", "above"], "is no key"),
        (["--notes", 5, "--end"], "seconds or bars"),
        (["--fill", 2, 4, "--top_k", 5], "leave out top_k"),
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
