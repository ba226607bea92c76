"""Every command that README and docs show is taken by its parser and its checks; every Python example runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from models_and_tokenizers import some_notes

import pianogen_hf as pg
from pianogen_hf.commands import main
from pianogen_hf.training.arguments import parse_stages

ROOT = Path(pg.__file__).parent.parent
if not (ROOT / "README.md").exists():
    pytest.skip("installed without the source tree", allow_module_level=True)
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
OTHERS = ("make", "pip", "hf", "git")  # what is shown of other programs
# Where the work of a command begins, after options and checks.
WORK = {
    "train": ["train.train"],
    "generate": ["generate.generate", "explain.explain"],
    "evaluate": ["evaluate.evaluate"],
    "compare": ["compare.comparison.compare"],
    "audit": ["audit.audit"],
    "export": ["export.export"],
    "convert": ["convert_mmt.convert_mmt", "convert_skytnt.convert_skytnt"],
    "space": ["loading.load_model"],
    "play": ["play.play", "midi_ports.port_names"],
    "roundtrip": ["roundtrip.print_round_trips"],
    "scores": ["train_end.scores_table"],
    "data": [
        "build_data.build_data",
        "check_data.check_sources",
        "check_data.check_folder",
        "check_data.check_hub",
        "describe_data.describe_data",
        "push_data.push_data",
    ],
}


def blocks(language):
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        yield from ((path.name, block) for block in re.findall(rf"```{language}\n(.*?)```", text, flags=re.S))


COMMANDS = sorted(
    {(name, line.strip()) for name, block in blocks("bash") for line in block.splitlines() if line.strip()}
)


class Reached(Exception):
    """The command has taken its options and begins to work."""


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder in which everything lies that the documents speak of."""
    scale = pg.Notes.from_columns(
        onset_tick=np.arange(256) * 240, duration_tick=[240] * 256, pitch=[60, 62, 64, 65] * 64
    )
    for name in ("my.mid", "melody.mid", "band.mid"):
        pg.write_midi(scale, tmp_path / name)  # longer than all passages that are spoken of
    pg.write_midi(some_notes(), tmp_path / "midi" / "a.mid")
    for folder in ("runs/mine", "chunks", "data/mine"):
        (tmp_path / folder).mkdir(parents=True)
    for folder in ("configs", "docs"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def words_of(line, folder):
    """The arguments of `pianogen` for a line as a shell would take it; None for other programs."""
    words = shlex.split(line, comments=True)
    if not words or words[0] in OTHERS or words[:2] == ["python", "-m"]:
        return None
    if words[0] == "accelerate":
        words = words[next(place for place, word in enumerate(words) if word.endswith(".py")) :]
    words = words[1:] if words[0] in ("python", "pianogen") else words
    words[0] = words[0].removesuffix(".py")
    expanded = [sorted(map(str, Path().glob(word))) if "*" in word else [word] for word in words]
    return [word for several in expanded for word in several]


@pytest.mark.parametrize(("document", "line"), COMMANDS, ids=[f"{name}: {line[:60]}" for name, line in COMMANDS])
def test_every_command_that_is_shown_is_taken(document, line, workplace, monkeypatch, capsys):
    words = words_of(line, workplace)
    if words is None:
        return

    def reached(*args, **kwargs):
        if words[0] == "train":
            assert parse_stages(args[0])
        raise Reached

    for place in WORK.get(words[0], []):
        monkeypatch.setattr(f"pianogen_hf.workflows.{place}", reached)
    monkeypatch.setattr("pianogen_hf.publishing.model_files.select_files", reached)  # where `pianogen push` begins
    if words[0] == "show":
        monkeypatch.setattr("pianogen_hf.apps.player.server.run", reached)
    try:
        code = main(words)
    except Reached:
        return
    pytest.fail(f"{document}: {line} ended with {code}: {capsys.readouterr().err}")


@pytest.mark.parametrize(("document", "code"), [each for each in blocks("python") if each[0] != "README.md"])
def test_every_python_example_of_the_docs_runs(document, code, workplace):
    exec(compile(code, document, "exec"), {})
    least = 0 if document == "play.md" else len(some_notes())  # which plays a note of its own
    assert len(pg.read_midi("out.mid")) > least


def test_every_page_is_in_the_table_of_contents():
    import yaml

    contents = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    pages = set(re.findall(r"\w+\.md", str(contents)))
    assert pages == {path.name for path in (ROOT / "docs").glob("*.md")}
