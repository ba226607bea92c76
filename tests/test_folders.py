"""Folders that can't be written: one line from every command, before it brings in torch or reads music."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pytest

import pianogen_hf as pg
from pianogen_hf.commands import main
from pianogen_hf.errors import FileError
from pianogen_hf.folders import FolderLock, check_writable
from pianogen_hf.tokenizers.files import write_whole

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


def test_a_file_that_can_not_be_written_whole_leaves_none_of_it(tmp_path, monkeypatch):
    write_whole(tmp_path / "a", b"old")

    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(FileError, match="No space left"):
        write_whole(tmp_path / "a", b"new")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


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


# Two processes in one folder -----------------------------------------------------------------------------------------

HOLD = """
import os, sys, time
from pathlib import Path
from pianogen_hf.folders import FolderLock
FolderLock(Path(sys.argv[1]), "there", "--output").__enter__()
if "fork" in sys.argv and os.fork():
    print(os.getpid(), flush=True)
    os._exit(0)
print(os.getpid(), flush=True)
time.sleep(60)
"""


@pytest.fixture
def hold(tmp_path):
    """Starts a process that holds the lock; returns it and the number of the process that took it."""
    processes = []

    def start(*options):
        command = [sys.executable, "-c", HOLD, str(tmp_path / "run" / ".lock"), *options]
        environment = {**os.environ, "PYTHONPATH": str(Path(pg.__file__).parent.parent)}
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment, start_new_session=True)
        processes.append(process)
        return process, int(process.stdout.readline())

    yield start
    for process in processes:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def lock(tmp_path):
    return FolderLock(tmp_path / "run" / ".lock", "the run", "--output_dir")


def test_a_second_process_is_told_who_holds_the_folder(tmp_path, hold):
    _, pid = hold()
    with pytest.raises(FileError) as caught, lock(tmp_path):
        pass
    assert str(caught.value).startswith(f"the run is in use (process {pid} on {socket.gethostname()}, since ")
    assert str(caught.value).endswith("give another --output_dir")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {".lock", ".lock.json"}


def test_the_lock_of_a_killed_process_is_stale(tmp_path, hold):
    process, _ = hold()
    process.kill()
    process.wait()
    with lock(tmp_path):
        assert json.loads((tmp_path / "run" / ".lock.json").read_text())["pid"] == os.getpid()


def test_the_lock_that_a_worker_has_inherited_from_a_dead_process_is_stale(tmp_path, hold):
    process, pid = hold("fork")
    process.wait()
    with lock(tmp_path):
        assert json.loads((tmp_path / "run" / ".lock.json").read_text())["pid"] == os.getpid() != pid


@pytest.mark.parametrize(("age", "is_stale"), [(30, False), (3600, True)])
def test_the_lock_of_another_machine_is_stale_when_nobody_has_kept_it_young(tmp_path, age, is_stale):
    told = tmp_path / "run" / ".lock.json"
    told.parent.mkdir()
    told.write_text(json.dumps({"pid": 7, "host": "elsewhere", "since": "Monday"}))
    os.utime(told, (time.time() - age,) * 2)
    if is_stale:
        with lock(tmp_path):
            pass
        return
    with pytest.raises(FileError, match="process 7 on elsewhere, since Monday"), lock(tmp_path):
        pass


def test_a_lock_leaves_nothing_behind_but_what_others_put_there(tmp_path):
    with lock(tmp_path):
        pass
    assert not list(tmp_path.iterdir())
    with lock(tmp_path) as held, held.set_aside():
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "model").touch()
        (tmp_path / "run").rename(tmp_path / "run.old1")
    assert [path.name for path in tmp_path.iterdir()] == ["run.old1"]


@pytest.mark.parametrize(
    ("command", "place"),
    [
        ("train --output_dir {out} --source bach", "out/.lock"),
        ("compare {recipe} --tokens 1k --output {out}", "out/.lock"),
        ("data build --source bach --output {out}", ".out.lock"),
    ],
)
def test_commands_refuse_a_folder_that_another_process_works_in(command, place, tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text("max_steps: 1\n")
    with FolderLock(tmp_path / place, "", ""):
        argv = command.format(out=tmp_path / "out", recipe=tmp_path / "recipe.yaml").split()
        assert main([*argv, *(["--cache_dir", str(tmp_path / "cache")])]) == 2
    assert f"out is in use (process {os.getpid()}" in capsys.readouterr().err
    assert not (tmp_path / "cache").exists() and not (tmp_path / "out").exists()
