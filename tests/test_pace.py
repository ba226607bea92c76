"""Runs of a wanted number of minutes, and what is said of how long one takes."""

import json
from pathlib import Path

import pytest
from transformers import TrainerControl, TrainerState, TrainingArguments

from pianogen_hf.commands.train import main
from pianogen_hf.training.callbacks import DurationCallback, in_words
from pianogen_hf.workflows.pace import without_minutes

TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
RECIPE = Path(__file__).parents[1] / "configs" / "quickstart.yaml"


def options(tmp_path: Path, *more: str) -> list[str]:
    sizes = json.dumps(TINY)
    return [str(RECIPE), "--max_pieces", "3", "--chunk_length", "17", "--transpose", "0", "0", "--model_config", sizes,
            "--output_dir", str(tmp_path / "run"), "--cache_dir", str(tmp_path / "cache"), "--report_to", "none",
            "--sample_steps", "100000", "--disable_tqdm", "true", *more]  # fmt: skip


def test_minutes_become_steps_and_the_card_names_the_steps(tmp_path, capsys, monkeypatch):
    pytest.importorskip("music21")
    monkeypatch.setattr("pianogen_hf.training.callbacks._WARM_UP", 0)
    monkeypatch.setattr("pianogen_hf.training.callbacks._TIMED", 1)
    assert main(options(tmp_path, "--minutes", "0.02")) == 0
    out = capsys.readouterr().out
    said = next(line for line in out.splitlines() if "minutes are" in line)
    steps = int(said.split(" minutes are ")[1].split(" steps")[0].replace(",", ""))
    assert "to go" not in out  # neither of the million steps of the run that was timed, nor of these few
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["steps"] == steps >= 1
    card = (tmp_path / "run" / "README.md").read_text(encoding="utf-8")
    assert f"--max_steps {steps}" in card and "--minutes" not in card
    assert not [path for path in tmp_path.iterdir() if path.name not in ("run", "cache")]


@pytest.mark.parametrize("minutes", ["0", "-3", "soon"])
def test_minutes_that_mean_nothing_are_one_line(tmp_path, capsys, minutes):
    assert main(options(tmp_path, "--minutes", minutes)) == 2
    error = capsys.readouterr().err
    assert "minutes" in error and error.count("\n") == 1


def test_minutes_are_taken_out_of_a_command_line_in_either_form():
    assert without_minutes(["a.yaml", "--minutes", "3", "--seed", "1"]) == ["a.yaml", "--seed", "1"]
    assert without_minutes(["a.yaml", "--minutes=3", "--seed", "1"]) == ["a.yaml", "--seed", "1"]


@pytest.mark.parametrize(("pace", "words", "advice"), [(1.0, "hours to go", False), (30.0, "days to go", True)])
def test_a_long_run_says_how_long_it_takes(monkeypatch, tmp_path, capsys, pace, words, advice):
    clock = iter(range(10**6))
    monkeypatch.setattr("pianogen_hf.training.callbacks.time.monotonic", lambda: pace * 8 * next(clock))
    callback, state = DurationCallback(), TrainerState(max_steps=20_000, is_world_process_zero=True)
    for state.global_step in range(1, 30):
        callback.on_step_end(TrainingArguments(str(tmp_path)), state, TrainerControl())
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and words in said and f"{pace:.2f} s a step" in said
    assert ("--minutes 60" in said) is advice


def test_lengths_of_time_are_said_as_one_says_them():
    assert [in_words(seconds) for seconds in (600, 7200, 3 * 86400)] == ["10 minutes", "2.0 hours", "3.0 days"]
