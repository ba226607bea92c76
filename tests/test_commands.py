"""The `pianogen` command: what it prints, what it returns, and one line of error."""

from __future__ import annotations

import errno
import json
import shlex
from pathlib import Path

import numpy as np
import pytest

import pianogen_hf as pg
from pianogen_hf.commands import main, pianogen
from pianogen_hf.records import recorded
from pianogen_hf.registration import exported


def tune(count: int = 12, **columns) -> pg.Notes:
    onset = 240 * np.arange(count)
    return pg.Notes.from_columns(
        480, onset_tick=onset, duration_tick=[240] * count, pitch=60 + np.arange(count) % 12, velocity=80, **columns
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    music = tmp_path / "music"
    pg.write_midi(tune(), music / "a.mid")
    pg.write_midi(tune(6), music / "b" / "Ü.mid")
    return music


def refused(argv: list[str], capsys: pytest.CaptureFixture) -> str:
    """The one line on stderr of a command that ends with exit code 2."""
    try:
        code = main(argv)
    except SystemExit as exit_:
        code = exit_.code
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line and "Round trips" not in line]  # a bar may stand before it
    assert code == 2 and out == "" and len(lines) == 1 and lines[0].startswith("error: "), err
    return lines[0]


def test_alone_it_says_what_it_can_do(capsys):
    assert main([]) == 2
    assert "usage: pianogen COMMAND" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["--help", "-h"])
def test_help_names_every_command(word, capsys):
    assert main([word]) == 0
    out = capsys.readouterr().out
    assert all(command in out for command in ("train", "generate", "scores", "roundtrip"))


@pytest.mark.parametrize("command", [each for each in pianogen.COMMANDS if each != "train"])
def test_every_command_has_help(command, capsys):
    code = 0
    try:
        code = main([command, "--help"])
    except SystemExit as exit_:
        code = exit_.code
    out = capsys.readouterr().out
    assert code == 0 and "usage:" in out and "%%" not in out


def test_train_without_arguments_explains_itself(capsys):
    assert main(["train", "--help"]) == 0
    assert "train.py CONFIG.yaml" in capsys.readouterr().out


def test_an_unknown_command_is_named(capsys):
    assert "unknown command 'trian'" in refused(["trian"], capsys)


def test_errors_of_generate_and_train_come_through(capsys, tmp_path):
    assert "--num_samples must be at least 1" in refused(["generate", "--num_samples", "0"], capsys)
    assert "nothing.yaml" in refused(["train", str(tmp_path / "nothing.yaml")], capsys)


# scores --------------------------------------------------------------------------------------------------------------


def test_scores_puts_a_run_beside_its_baselines(tmp_path, capsys):
    metrics = {
        "num_parameters": 1234567,
        "source": "bach",
        "validation": {"bits_per_note": 3.25, "nats_per_token": 0.5, "accuracy": 0.8},
        "baselines": {"hold": {"bits_per_note": 6.5}, "n-gram": {"bits_per_note": 4.125}},
    }
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    assert main(["scores", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "1,234,567 parameters" in out and all(value in out for value in ("3.250", "6.500", "4.125"))


def test_scores_of_no_run_is_refused(tmp_path, capsys):
    assert "holds no finished run" in refused(["scores", str(tmp_path)], capsys)
    assert "required: folder (see pianogen scores --help)" in refused(["scores"], capsys)


# roundtrip -----------------------------------------------------------------------------------------------------------


def table_of(out: str) -> dict[str, dict[str, str]]:
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines() if line.startswith("| ")]
    return {row[0]: dict(zip(rows[0][1:], row[1:], strict=True)) for row in rows[2:]}


def test_roundtrip_prints_a_table_of_all_tokenizers(folder, capsys):
    assert main(["roundtrip", str(folder)]) == 0
    table = table_of(capsys.readouterr().out)
    assert set(table) == {each.__name__ for each in exported(pg.NoteTokenizer)}
    for row in table.values():
        assert (row["notes"], row["onset_f1"], row["dropped_or_merged_percent"]) == ("18", "1", "0")
    # A whole piece each, line by line of the JSB grid: 18 eighths of two steps of four voices, and `velocity` is lost.
    assert float(table["JSBTokenizer"]["tokens_per_note"]) == 8
    assert "velocity" in table["JSBTokenizer"]["lost by design"]


def test_roundtrip_looks_at_so_many_files(folder, capsys):
    assert main(["roundtrip", str(folder), "--max_files", "1"]) == 0
    assert table_of(capsys.readouterr().out)["JSBTokenizer"]["notes"] == "12"


def test_roundtrip_names_what_it_left_out_and_counts_it_for_no_tokenizer(folder, capsys):
    (folder / "text.mid").write_text("no music")
    pg.write_midi(tune(program=40), folder / "violin.mid")
    endless = pg.Notes.from_columns(1, onset_tick=[0, 200_000], duration_tick=[1, 1], pitch=[60, 61])
    pg.write_midi(endless, folder / "endless.mid")  # REMI refuses it, the others would not
    assert main(["roundtrip", str(folder)]) == 0
    out = capsys.readouterr().out
    assert {row["notes"] for row in table_of(out).values()} == {"18"}
    reasons = [line for line in out.splitlines() if line.startswith("left out: ")]
    assert len(reasons) == 3 and all(reason.count("music/") == 1 for reason in reasons)
    for name, why in (("endless", "longer than"), ("text", "not a MIDI file"), ("violin", "no piano notes")):
        assert any(f"{name}.mid: " in reason and why in reason for reason in reasons)


def test_roundtrip_of_nothing_usable_is_refused(tmp_path, folder, capsys):
    assert "no folder" in refused(["roundtrip", str(tmp_path / "nothing")], capsys)
    (tmp_path / "empty").mkdir()
    assert "holds no MIDI files" in refused(["roundtrip", str(tmp_path / "empty")], capsys)
    (tmp_path / "empty" / "a.mid").write_text("no music")
    assert "no file in" in refused(["roundtrip", str(tmp_path / "empty")], capsys)
    assert "at least 1, got '0'" in refused(["roundtrip", str(folder), "--max_files", "0"], capsys)
    assert "at least 1, got 'x'" in refused(["roundtrip", str(folder), "--max_files", "x"], capsys)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("folder=/Users/me/midi", "folder=.../midi"),
        ("--source=folder=/Users/me/midi/", "--source=folder=.../midi/"),
        ("/Users/me/runs/model", ".../model"),
        (r"C:\music\mine", ".../mine"),
        ("folder=~/midi", "folder=~/midi"),
        ("configs/v7.yaml", "configs/v7.yaml"),
        ("--stretch=0.95", "--stretch=0.95"),
        ('{"a": "b/c"}', '{"a": "b/c"}'),
        ("/", "/"),
    ],
)
def test_a_recorded_command_does_not_tell_where_things_lie(given, told):
    assert shlex.split(recorded("train.py", [given])) == ["train.py", told]


def test_a_full_disk_is_told_as_such_whatever_was_being_written(monkeypatch, capsys):
    def full(name):
        raise OSError(errno.ENOSPC, "Error writing bytes to file", "somewhere/in/a/library.py")

    monkeypatch.setattr(pianogen, "import_module", full)
    assert main(["audit"]) == 2
    assert capsys.readouterr().err == "error: No space left on device: make room, and repeat the command\n"


def test_an_interrupt_while_a_command_is_loaded_is_one_line(monkeypatch, capsys):
    def interrupted(name):
        raise KeyboardInterrupt

    monkeypatch.setattr(pianogen, "import_module", interrupted)
    assert main(["audit"]) == 130
    assert capsys.readouterr().err == "interrupted\n"
