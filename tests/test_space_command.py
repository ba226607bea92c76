"""The space command: the folder it writes, and one line of error for whatever a user can get wrong."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from hub_server import HubServer

from pianogen_hf.commands import main


def test_a_page_of_the_bundled_model_is_written_and_told_how_to_run(tmp_path, capfd):
    assert main(["space", "--output", str(tmp_path / "page"), "--title", "Chorales"]) == 0
    out, err = capfd.readouterr()
    assert "python app.py" in out and "hf upload" in out and "Loading" not in err
    assert "title: Chorales" in (tmp_path / "page" / "README.md").read_text()
    assert (tmp_path / "page" / "model" / "model.safetensors").exists()


def test_help_teaches(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["space", "--help"])
    assert caught.value.code == 0
    out = capsys.readouterr().out
    assert "Examples:" in out and all(word in out for word in ("--model", "--push", "--from_index", "--overwrite"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "--output"),
        (["--output", "page", "--model", "no-such-user/no-such-model"], "no model 'no-such-user/no-such-model'"),
        (["--output", "page", "--model", "../nowhere/at/all"], "no name that the Hub takes"),
        (["--output", "page", "--push", "a/b/c"], "no name that the Hub takes"),
        (["--output", "page", "--model", "model"], "holds no model"),
        (["--output", "."], "is there already"),
        (["--output", "page", "--short_description", "x" * 99], "60 characters"),
    ],
)
def test_what_a_user_gets_wrong_is_one_line(options, message, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    assert main(["space", *options]) == 2
    out, err = capfd.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and message in err, err
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_a_page_that_could_not_be_pushed_is_there_all_the_same(tmp_path, capfd):
    assert main(["space", "--output", str(tmp_path / "page"), "--push", "someone/page"]) == 2
    assert "not pushed to someone/page: HF_HUB_OFFLINE is set" in capfd.readouterr().err
    assert (tmp_path / "page" / "app.py").exists()


def test_a_page_is_pushed_without_what_else_lies_in_the_folder(tmp_path):
    """Over the real client, in processes that know no other Hub than one on this machine."""
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / ".env").write_text("secret")
    with HubServer() as hub:
        environment = hub.environment(tmp_path / "home", token="hf_writer")
        options = ["--output", str(tmp_path / "page"), "--overwrite", "--push", "pianogen/page"]
        command = [sys.executable, "-c", "from pianogen_hf.commands import main; main()", "space", *options]
        run = subprocess.run(command, env={**os.environ, "HF_HUB_OFFLINE": "0", **environment}, capture_output=True)
        assert run.returncode == 0, run.stderr
        names = set(hub.files("pianogen/page", type="space"))
        assert len(hub.commits("pianogen/page", type="space")) == 1
    assert {"app.py", "README.md", "requirements.txt", "model/model.safetensors", "pianogen_hf/__init__.pyi"} <= names
    assert ".env" not in names and not any("__pycache__" in name for name in names)
