"""Folders that can't be written: one line from every command, before it brings in torch or reads music."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import pytest

import pianogen_hf as pg
from pianogen_hf.commands import main
from pianogen_hf.errors import FileError
from pianogen_hf.folders import check_writable

# What each command writes to; {bad} lies below a regular file, where not even root can make a folder.
COMMANDS = [
    ("train {recipe} --output_dir {bad}", "--output_dir"),
    ("train {recipe} --output_dir={bad}", "--output_dir"),
    ("train {recipe} --cache_dir {bad}", "--cache_dir"),
    ("train {bad_recipe}", "--output_dir"),
    ("generate --output {bad}/out.mid", "--output"),
    ("data build {recipe} --output {bad}/data", "--output"),
    ("data build --source bach --output {good} --cache_dir {bad}", "--cache_dir"),
    ("data check --source bach --cache_dir {bad}", "--cache_dir"),
    ("data check --source bach --output {bad}/report.json", "--output"),
    ("data stats --source bach --output {bad}/stats.png", "--output"),
    ("data stats --source bach --cache_dir {bad}", "--cache_dir"),
    ("evaluate --output {bad}", "--output"),
    ("evaluate --cache_dir {bad}", "--cache_dir"),
    ("compare {recipe} --tokens 1k --output {bad}", "--output"),
    ("compare {recipe} --tokens 1k --output {good} --cache_dir {bad}", "--cache_dir"),
    ("audit --cache_dir {bad}", "--cache_dir"),
    ("audit --output {bad}/audit.json", "--output"),
    ("export --model {good} --output {bad}", "--output"),
    ("export --model {good} --output {good} --int8 --cache_dir {bad}", "--cache_dir"),
    ("space --output {bad}", "--output"),
]


@pytest.fixture
def places(tmp_path: Path) -> dict[str, str]:
    (tmp_path / "file").write_text("no folder")
    bad = str(tmp_path / "file" / "below")
    (tmp_path / "recipe.yaml").write_text("max_steps: 1\n")
    (tmp_path / "bad.yaml").write_text(f"output_dir: {bad}\n")
    names = {"good": "good", "recipe": "recipe.yaml", "bad_recipe": "bad.yaml"}
    return {"bad": bad, **{name: str(tmp_path / path) for name, path in names.items()}}


@pytest.mark.parametrize(("command", "option"), COMMANDS, ids=[command for command, _ in COMMANDS])
def test_a_folder_that_can_t_be_written_is_one_line_before_the_work(command, option, places, capsys, monkeypatch):
    for name in [each for each in sys.modules if each.startswith("pianogen_hf.workflows")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.chdir(Path(places["good"]).parent)
    assert main(command.format_map(places).split()) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith(f"error: {places['bad']}") and err.count("\n") == 1
    assert err.endswith(f"can't be written (Not a directory): give another {option}\n")
    assert not [name for name in sys.modules if name.startswith("pianogen_hf.workflows.")], "the work has begun"
    assert sorted(path.name for path in Path.cwd().iterdir()) == ["bad.yaml", "file", "recipe.yaml"]


@pytest.mark.parametrize("command", ["train {recipe}", "data stats", "evaluate", "audit", "data check --source bach"])
def test_so_is_a_home_that_can_t_be_written(command, places, capsys, monkeypatch):
    monkeypatch.chdir(Path(places["good"]).parent)
    monkeypatch.setenv("HOME", places["bad"])
    assert main(command.format_map(places).split()) == 2
    assert capsys.readouterr().err == (
        "error: ~/.cache/pianogen_hf can't be written (Not a directory): give another --cache_dir\n"
    )


def test_the_folder_of_a_model_is_tried_before_its_card_is_to_be_written(monkeypatch, capsys):
    make = tempfile.TemporaryFile

    def read_only(dir: Path):
        if dir == Path(pg.BACH_MODEL):
            raise OSError(30, "Read-only file system", str(dir))
        return make(dir=dir)

    monkeypatch.setattr("tempfile.TemporaryFile", read_only)
    assert main(["audit", "--record"]) == 2
    line = f"error: {pg.BACH_MODEL} can't be written (Read-only file system): give another --model\n"
    assert capsys.readouterr().err == line


def test_a_folder_that_can_be_written_is_left_as_it_is(tmp_path):
    check_writable(tmp_path / "new" / "one", "--output")
    assert not list(tmp_path.iterdir())
    with pytest.raises(FileError, match="give another --output"):
        check_writable("/proc/nothing/here" if sys.platform == "linux" else "/dev/null/x", "--output")


@pytest.mark.parametrize(
    ("typed", "meant"), [(["trian"], "train"), (["exprot"], "export"), (["data", "chek"], "check")]
)
def test_a_mistyped_command_is_told_what_it_may_have_meant(typed, meant, capsys):
    assert main(typed) == 2
    assert capsys.readouterr().err == f"error: unknown command {typed[-1]!r}; did you mean {meant!r}?\n"


def test_the_bundled_model_is_not_written_to_by_an_evaluation(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evaluated").write_text("a file in the way")
    assert main(["evaluate", "--model", pg.BACH_MODEL]) == 2
    assert capsys.readouterr().err.startswith("error: evaluated can't be written")
