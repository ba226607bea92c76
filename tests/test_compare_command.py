"""`pianogen compare` from its arguments to its report: mistakes, the plan, and (slow) whole comparisons."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from models_and_tokenizers import some_notes
from tqdm import tqdm

import pianogen_hf as pg
from pianogen_hf.commands import main
from pianogen_hf.data.manifest import read_manifest
from pianogen_hf.training.arguments import parse_arguments, parse_stages
from pianogen_hf.workflows.compare.job import Budget, Job, Matching
from pianogen_hf.workflows.compare.plan import common_split, plan_job
from pianogen_hf.workflows.compare.runner import _Progress

ROOT = Path(__file__).parents[1]
TINY = {"num_hidden_layers": 1, "num_attention_heads": 2}
RECIPES = {
    "chorale": {"model_type": "music_transformer", "model_config": {**TINY, "max_relative_distance": 16},
        "tokenizer": "JSBTokenizer", "chunk_length": 65, "transpose": [-1, 1], "max_steps": 1000,
        "warmup_steps": 100, "learning_rate": 1e-3},
    "staged": {"model_type": "gpt2", "model_config": {"n_layer": 1, "n_head": 2, "n_embd": 64},
        "tokenizer": "RemiTokenizer", "chunk_length": 128, "learning_rate": 1e-3, "sample_steps": 10,
        "stages": [{"source": "maestro=~/maestro", "max_steps": 300, "warmup_steps": 30, "augmentation": "lazy"},
                   {"max_steps": 100, "learning_rate": 1e-4}]},
    "continuous": {"model_type": "continuous_notes", "model_config": {**TINY, "hidden_size": 64, "num_mixtures": 4},
        "tokenizer": "ContinuousNotesFeatureExtractor", "chunk_length": 64, "max_steps": 500, "warmup_steps": 0.1},
    "masked": {"model_type": "piano_encoder", "model_config": {**TINY, "is_causal": False, "hidden_size": 64},
        "tokenizer": "PerformanceTokenizer", "chunk_length": 128, "max_steps": 500, "learning_rate": 1e-3},
}  # fmt: skip
pytest.importorskip("music21", reason="the few pieces of Bach come with music21")


@pytest.fixture(scope="module")
def recipes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recipes")
    for name, recipe in RECIPES.items():
        (folder / f"{name}.yaml").write_text(yaml.safe_dump({**recipe, "per_device_train_batch_size": 4}))
    return folder


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


def command(recipes, cache_dir, output, *more, names=tuple(RECIPES)):
    files = [str(recipes / f"{name}.yaml") for name in names]
    small = ["--max_pieces", "5", "--parameters", "60k", "--notes_per_step", "200", "--samples", "2"]
    places = ["--source", "bach", "--cache_dir", str(cache_dir), "--output", str(output)]
    return [*files, *places, *small, "--sample_notes", "20", "--evaluations", "1", "--bf16", "false", *more]


# Mistakes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ([], "--minutes --tokens"),
        (["--tokens", "5M", "--minutes", "1"], "not allowed with"),
        (["--tokens", "many"], "a number such as 5M"),
        (["--minutes", "0"], "more than 0"),
        (["--tokens", "5k", "--max_steps", "7"], "--max_steps is what the comparison decides"),
        (["--tokens", "5k", "--learnin_rate", "7"], "did you mean 'learning_rate'"),
        (["--tokens", "5k", "--source", "nonsense"], "nonsense"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2(recipes, cache_dir, tmp_path, capsys, more, words):
    assert main(["compare", *command(recipes, cache_dir, tmp_path / "out", *more)]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and words in error
    assert not (tmp_path / "out").exists()


def test_two_recipes_of_one_name_and_a_missing_one_are_refused(recipes, tmp_path, capsys):
    path = str(recipes / "chorale.yaml")
    for files, words in (([path, path], "2 recipes are called chorale"), ([path + "x"], "is no file")):
        assert main(["compare", *files, "--tokens", "1k", "--output", str(tmp_path / "out")]) == 2
        assert words in capsys.readouterr().err


def test_a_log_gets_a_line_of_progress_now_and_then(tmp_path):
    log = io.StringIO()
    with tqdm(total=100, file=log, bar_format="{desc} {n:.0f}%{postfix}") as bar:
        progress = _Progress(bar, time.monotonic(), lambda: 0.0)
        for elapsed in range(100):
            progress.show(job_of(), "train", tmp_path, elapsed, 100.0)
    assert 1 <= log.getvalue().count("x: training") <= 2  # when it began, and when it was over


# The plan -------------------------------------------------------------------------------------------------------------


def test_a_dry_run_prints_the_plan_and_writes_nothing(recipes, cache_dir, tmp_path, capsys):
    (recipes / "broken.yaml").write_text("tokenizer: NoSuchTokenizer\n")
    names = (*RECIPES, "broken")
    for number in range(12):
        pg.write_midi(some_notes(seed=number), tmp_path / "midi" / f"{number}.mid")
    few = ["--source", f"folder={tmp_path / 'midi'}", "--minutes", "2", "--dry_run"]  # all of Bach takes longer
    options = command(recipes, cache_dir, tmp_path / "out", *few, names=names)
    assert main(["compare", *options]) == 0
    shown = capsys.readouterr().out
    for name in RECIPES:
        (line,) = [line for line in shown.splitlines() if line.startswith(name)]
        assert int(line.split()[1].replace(",", "")) == pytest.approx(60_000, rel=0.05)
        assert "measure, train, evaluate" in line
    assert "broken left out: unknown tokenizer" in shown and "minutes" in shown
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("optim", "scaled"), [("adamw_torch", True), ("muon", False)])
def test_the_learning_rate_goes_with_the_width_of_a_model_but_not_that_of_muon(tmp_path, optim, scaled):
    recipe = {**RECIPES["continuous"], "optim": optim, "learning_rate": 0.01, "per_device_train_batch_size": 4}
    (tmp_path / "x.yaml").write_text(yaml.safe_dump(recipe))
    for number in range(12):
        pg.write_midi(some_notes(seed=number), tmp_path / "midi" / f"{number}.mid")
    places = ["--source", f"folder={tmp_path / 'midi'}", "--cache_dir", str(tmp_path / "cache")]
    split = common_split(places, tmp_path, is_dry=True)
    matching = Matching(parameters=100_000, notes_per_step=200)
    job = plan_job(str(tmp_path / "x.yaml"), places, [], split, matching, Budget(tokens=5000))
    width, own_width = job.sizes["hidden_size"], job.own_sizes["hidden_size"]
    assert width != own_width
    expected = 0.01 * own_width / width if scaled else 0.01
    assert job.phases[0].settings["learning_rate"] == pytest.approx(expected, rel=0.01)


def job_of(**changes):
    phase = {
        "settings": {},
        "own_steps": 1000,
        "own_warmup": 100.0,
        "examples": 10,
        "tokens_per_example": 50.0,
        "batch": 4,
    }
    phases = changes.pop("phases", [{}])
    values = {
        "name": "x", "recipe": "x.yaml", "places": [], "extra": [], "settings": {"model_type": "gpt2"}, "sizes": {},
        "own_sizes": {}, "parameters": {}, "encoder": "", "vocab_size": 1, "tokens_per_note": 2.0, "train_notes": 100,
        "budget": {"seconds": None, "tokens": 20_000}, "evaluations": 4, "split": "",
    }  # fmt: skip
    from pianogen_hf.workflows.compare.job import Phase

    return Job(**{**values, **changes, "phases": [Phase(**{**phase, **each}) for each in phases]})


def test_what_counts_steps_keeps_its_share_of_them():
    job = job_of()
    (steps,) = job.steps(None)
    assert steps == 100  # of 4 examples with 50 ids
    training = job.training([steps], Path("out"))
    assert (training["warmup_steps"], training["eval_steps"], training["save_steps"]) == (10, 25, 25)
    assert job_of(phases=[{"own_warmup": 0.1}]).training([steps], Path("out"))["warmup_steps"] == 0.1


def test_the_budget_is_divided_among_stages_as_the_recipe_divides_its_steps():
    job = job_of(phases=[{"own_steps": 3000}, {"own_steps": 1000, "settings": {"learning_rate": 1e-5}}])
    assert job.steps(None) == [75, 25]
    training = job.training([75, 25], Path("out"))
    assert [stage["max_steps"] for stage in training["stages"]] == [75, 25] and "max_steps" not in training
    timed = job_of(phases=[{"own_steps": 3000}, {"own_steps": 1000}], budget={"seconds": 100.0, "tokens": None})
    assert timed.steps(0.5) == [150, 50]


def test_a_job_is_known_by_what_decides_its_training_and_not_by_where_it_lies(tmp_path):
    job = job_of()
    job.save(tmp_path / "job.json")
    assert Job.load(tmp_path / "job.json") == job
    assert job_of(recipe="other/x.yaml", places=["--cache_dir", "y"]).hash() == job.hash()
    assert job_of(extra=["--seed", "1"]).hash() != job.hash() != job_of(split="other").hash()


def test_a_budget_says_what_it_is():
    assert Budget(seconds=60.0).words() == "1 minute of training" and Budget(tokens=20_000).words() == "20,000 tokens"


# A whole comparison ---------------------------------------------------------------------------------------------------


def run(options, **changes):
    code = "import sys; from pianogen_hf.commands import main; sys.exit(main(sys.argv[1:]))"
    return subprocess.Popen(
        [sys.executable, "-c", code, "compare", *options],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        **changes,
    )


@pytest.mark.slow
def test_a_comparison_is_interrupted_goes_on_and_is_then_done(recipes, cache_dir, tmp_path):
    output = tmp_path / "out"
    # Enough that there is time to interrupt the first model.
    options = command(recipes, cache_dir, output, "--tokens", "20k")
    process = run(options)
    log = output / "chorale" / "training_log.jsonl"
    until = time.monotonic() + 300
    while not log.exists() and time.monotonic() < until:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 130 and "run the same command again to resume" in said
    assert not (output / "chorale" / "training.json").exists()

    process = run(options)
    said, _ = process.communicate(timeout=900)
    assert process.returncode == 0, said
    split = read_manifest(output / "split.json")["hash"]
    for name in RECIPES:
        folder = output / name
        training = json.loads((folder / "training.json").read_text())
        assert training["steps"] == training["max_steps"] and 0.5 * 20_000 < training["tokens_seen"] < 2 * 20_000
        assert read_manifest(folder / "model" / "split.json")["hash"] == split
        assert parse_stages([str(folder / "recipe.yaml")])
        evaluation = json.loads((folder / "evaluation.json").read_text())
        assert 1 < evaluation["likelihood"]["sliding"]["bits_per_note"] < 60
        assert len(evaluation["samples"]["pieces"]) == 2
    assert (output / "staged" / "model" / "stage-1" / "metrics.json").exists()
    report, page = ((output / f"report.{kind}").read_text() for kind in ("md", "html"))
    for text in (report, page):
        assert split in text and "pianogen compare" in text and all(name in text for name in RECIPES)
    assert "| continuous | " in report and "≤ " in report and "<canvas" in page

    written = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.parent != output}
    process = run(options)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0 and said.count(" nothing\n") == len(RECIPES)
    changed = [path.name for path, then in written.items() if path.is_file() and path.stat().st_mtime_ns != then]
    assert set(changed) <= {"job.json", "settings.json"}


@pytest.mark.slow
def test_a_model_that_fails_is_told_and_the_others_are_compared(recipes, cache_dir, tmp_path):
    recipe = {**RECIPES["chorale"], "lr_scheduler_type": "polynomial", "lr_scheduler_kwargs": {"lr_end": 9.0}}
    (recipes / "failing.yaml").write_text(yaml.safe_dump(recipe))
    output = tmp_path / "out"
    options = command(recipes, cache_dir, output, "--minutes", "0.05", names=("failing", "chorale"))
    said, _ = (process := run(options)).communicate(timeout=600)
    assert process.returncode == 1 and "failing failed to " in said and "Traceback" not in said
    report = (output / "report.md").read_text()
    assert "must be smaller than initial lr" in report and "| chorale |" in report


def test_the_settings_of_a_recipe_are_options_of_train_py(recipes):
    """What `Job.training` writes is what train.py reads."""
    names = job_of().training([10], Path("out"))
    from pianogen_hf.training.recipe import as_options

    _, _, training = parse_arguments(as_options(names))
    assert training.max_steps == 10 and training.load_best_model_at_end
