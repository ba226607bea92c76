"""Runs in stages: what they hand on, where they lie, and how they are gone on with."""

import json
import shutil
import signal
import sys
from pathlib import Path

import pytest
from datasets import Dataset
from test_train import (
    LONG,
    cache_dir,
    interrupted,
    midi_folder,
    newest_checkpoint,
    options,
    read_json,
    run_two,
    start,
    weights_equal,
    write_pieces,
)

from pianogen_hf.commands.data import main as data_command
from pianogen_hf.commands.train import main
from pianogen_hf.data.manifest import split_manifest, write_manifest
from pianogen_hf.errors import ArgumentError
from pianogen_hf.training.arguments import parse_arguments, parse_stages
from pianogen_hf.workflows.split import _earlier_splits

__all__ = ["cache_dir", "midi_folder", "options", "run_two"]  # fixtures
SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture
def recipe(tmp_path):
    def write(stages, **common):
        path = tmp_path / "recipe.yaml"
        path.write_text(json.dumps({**common, "stages": stages}), encoding="utf-8")
        return str(path)

    return write


@pytest.fixture(scope="module")
def two_folders(midi_folder, tmp_path_factory):
    """A broad folder, and one with pieces of its own and one of the other's under a new name."""
    target = write_pieces(tmp_path_factory.mktemp("target"), 5, seed=3)
    shutil.copy(sorted(midi_folder.iterdir())[0], target / "again.mid")
    return [f"folder={midi_folder}"], [f"folder={target}"]


@pytest.fixture(scope="module")
def staged(options, two_folders, tmp_path_factory):
    """The command line of a run in two stages."""
    broad, target = two_folders
    stages = [{"source": broad, "learning_rate": 0.01, "transpose": [-1, 1]}, {"source": target, "max_steps": 3}]
    folder = tmp_path_factory.mktemp("staged")
    path = folder / "recipe.yaml"
    path.write_text(json.dumps({"max_steps": 2, "stages": stages}), encoding="utf-8")
    typed = options(folder / "model", source=None, data_path=None, max_steps=None, save_steps=1)
    return [str(path), *typed]


@pytest.fixture(scope="module")
def finished(staged):
    """The folder of a finished run of these stages; to be copied by who changes it."""
    assert main(staged) == 0
    return Path(staged[0]).parent / "model"


# From the YAML file to the stages -------------------------------------------------------------------------------------


def test_a_stage_overrides_the_recipe_and_the_command_line_overrides_both(recipe):
    path = recipe([{"source": ["bach"], "seed": 5}, {"source": "folder=b"}], seed=3, max_steps=7)
    parsed = parse_stages([path, "--max_steps", "2"])
    assert [(data.source, args.seed, args.max_steps) for _, data, args in parsed] == [
        (["bach"], 5, 2),
        (["folder=b"], 3, 2),
    ]
    assert [data.source for _, data, _ in parse_stages([path, "--source", "bach"])] == [["bach"], ["bach"]]


def test_weights_go_with_the_sources_that_they_are_of(recipe):
    path = recipe([{"source": ["bach", "folder=b"]}, {"source": "bach"}], source_weights=[1, 2], source=["x", "y"])
    assert [data.source_weights for _, data, _ in parse_stages([path])] == [None, None]
    path = recipe([{"source": ["bach", "folder=b"], "source_weights": [1, 2]}])
    assert parse_stages([path])[0][1].source_weights == [1, 2]
    assert parse_stages([path, "--source", "bach"])[0][1].source_weights is None


def test_one_stage_can_be_chosen_and_else_several_are_refused(recipe):
    path = recipe([{"seed": 5}, {"seed": 6}])
    assert parse_arguments([path, "--stage=2"])[2].seed == 6
    for argv in ([path], [path, "--stage", "3"], [path, "--stage", "x"]):
        with pytest.raises(ArgumentError, match="stage") as caught:
            parse_arguments(argv)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ([], "at least one"),
        ({}, "at least one"),
        (None, "at least one"),
        (["bach"], "stage 1 must be a map"),
        ([{}, {"learning_rat": 1}], "'learning_rat' in stage 2; did you mean 'learning_rate'"),
        ([{}, {"tokenizer": "RemiTokenizer"}], "stage 2 sets 'tokenizer'"),
        ([{}, {"model_config": SIZES}], "stage 2 sets 'model_config'"),
        ([{}, {"chunk_length": 9}], "stage 2 sets 'chunk_length'"),
        ([{}, {"stages": []}], "stage 2 sets 'stages'"),
        ([{}, {"transpose": 3}], "transpose takes two numbers"),
        ([{}, {"max_steps": "many"}], "max_steps"),
    ],
)
def test_bad_stages_are_one_line_before_anything_is_trained(recipe, tmp_path, capsys, stages, said):
    assert main([recipe(stages), "--output_dir", str(tmp_path / "model")]) == 2
    captured = capsys.readouterr()
    assert said in captured.err and captured.err.count("\n") == 1 and not captured.out
    assert not (tmp_path / "model").exists()


def test_data_commands_take_one_stage(recipe, two_folders, tmp_path, capsys):
    broad, target = two_folders
    path, cache = recipe([{"source": broad}, {"source": target}], chunk_length=33), f"--cache_dir={tmp_path / 'cache'}"
    assert data_command(["check", path, cache]) == 2
    assert "choose one with --stage" in capsys.readouterr().err
    assert data_command(["build", path, "--stage", "2", cache, "--output", str(tmp_path / "built")]) == 0
    assert list(read_json(tmp_path / "built" / "split.json")["sources"]) == [target[0].rpartition("/")[2]]


# Training -------------------------------------------------------------------------------------------------------------


def test_stages_hand_on_model_split_and_provenance(finished):
    first, last = finished / "stage-1", finished
    runs = read_json(last / "provenance.json")["runs"]
    assert [run["started_from"] for run in runs] == [None, ".../stage-1"]
    assert [run["split"] for run in runs] == [read_json(folder / "split.json")["hash"] for folder in (first, last)]
    before, after = (read_json(folder / "split.json")["pieces"] for folder in (first, last))
    sides = {content: side for side, _, content in before.values()}
    assert any(content in sides for _, _, content in after.values())
    assert all(sides.get(content, side) == side for side, _, content in after.values())
    assert read_json(last / "provenance.json")["contaminated"] == []
    metrics = read_json(last / "metrics.json")
    assert metrics["steps"] == 3 and [stage["steps"] for stage in metrics["stages"]] == [2, 3]
    assert metrics["stages"][0]["validation"] == read_json(first / "metrics.json")["validation"]
    card = (last / "README.md").read_text()
    assert "* Stage 1: 2 steps on " in card and "trained in 2 runs" in card


def test_the_second_stage_begins_with_the_weights_of_the_first(recipe, options, two_folders, tmp_path):
    stages = [{"source": two_folders[0]}, {"source": two_folders[1], "learning_rate": 0}]
    assert main([recipe(stages), *options(tmp_path / "model", source=None, data_path=None)]) == 0
    assert weights_equal(tmp_path / "model", tmp_path / "model" / "stage-1")


def test_one_source_on_the_command_line_serves_all_stages(staged, midi_folder, tmp_path):
    shared = ["--source", f"folder={midi_folder}", "--max_steps=1", f"--output_dir={tmp_path / 'model'}"]
    assert main([*staged, *shared]) == 0
    one, two = (read_json(folder / "split.json") for folder in (tmp_path / "model" / "stage-1", tmp_path / "model"))
    assert one["pieces"] == two["pieces"]


def test_a_second_run_moves_all_stages_of_the_first_aside(staged, finished, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "model")
    (folder / "split.json").unlink()  # as if it had been killed within its first stage
    assert main([*staged, "--seed=1", "--max_steps=1", f"--output_dir={folder}"]) == 0
    assert {path.name for path in tmp_path.glob("model*")} == {"model", "model.old1"}
    assert (tmp_path / "model.old1" / "stage-1" / "metrics.json").exists()
    assert read_json(tmp_path / "model" / "stage-1" / "metrics.json")["seed"] == 1


@pytest.mark.parametrize("killed_in", ["stage 1", "stage 2", "stage 2, before its first checkpoint"])
def test_a_resumed_run_goes_on_in_the_stage_it_was_in(staged, finished, tmp_path, capsys, killed_in):
    halted = shutil.copytree(finished, tmp_path / "halted")
    for name in ("metrics.json", "model.safetensors", "checkpoint-3"):
        path = halted / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    if killed_in != "stage 2":
        for path in halted.glob("checkpoint-*"):
            shutil.rmtree(path)
    if killed_in == "stage 1":
        (halted / "stage-1" / "metrics.json").unlink()
        shutil.rmtree(halted / "stage-1" / "checkpoint-2")
    capsys.readouterr()
    assert main([*staged, f"--output_dir={halted}", "--resume_from_checkpoint=true"]) == 0
    assert ("stage 1 of 2" in capsys.readouterr().out) == (killed_in == "stage 1")
    assert weights_equal(finished, halted) and weights_equal(finished / "stage-1", halted / "stage-1")
    assert not list(tmp_path.glob("*.old1"))
    assert [stage["steps"] for stage in read_json(halted / "metrics.json")["stages"]] == [2, 3]


@pytest.mark.slow
def test_ctrl_c_in_the_first_stage_says_how_to_go_on_and_that_works(staged, tmp_path):
    folder = tmp_path / "model"
    long = [*staged, f"--output_dir={folder}", *(f"--{name}={value}" for name, value in LONG.items())]
    code, stdout, stderr = interrupted(start([sys.executable], long), folder / "stage-1", signal.SIGINT)
    assert code == 130 and "Traceback" not in stderr and "--resume_from_checkpoint true" in stdout
    assert not (folder / "split.json").exists()
    step = read_json(newest_checkpoint(folder / "stage-1") / "trainer_state.json")["global_step"]
    assert main([*long, f"--max_steps={step + 2}", "--resume_from_checkpoint=true"]) == 0
    assert [stage["steps"] for stage in read_json(folder / "metrics.json")["stages"]] == [step + 2, step + 2]


def test_of_several_splits_the_first_that_knows_a_piece_decides(tmp_path):
    """As the nearest of the stages before does, and the earlier ones for what that has not seen."""
    for name, sides in (("one", ["train", "test"]), ("two", ["validation", "validation", "train"])):
        rows = [f"{name}{number}" for number in range(len(sides))]
        columns = {"piece_id": rows, "source": rows, "family_id": rows, "content": ["a", "b", "c"][: len(sides)]}
        pieces = Dataset.from_dict({**columns, "num_notes": [1] * len(sides)})
        write_manifest(tmp_path / f"{name}.json", split_manifest(pieces, sides, {}))
    origins = [str(tmp_path / "one.json"), str(tmp_path / "two.json")]
    assert _earlier_splits(origins, pieces) == {"a": "train", "b": "test", "c": "train"}
    assert _earlier_splits(origins[::-1], pieces) == {"a": "validation", "b": "validation", "c": "train"}


def test_a_certain_checkpoint_can_not_be_named_where_there_are_stages(staged, tmp_path, capsys):
    assert main([*staged, f"--resume_from_checkpoint={tmp_path}"]) == 2
    assert "--resume_from_checkpoint true" in capsys.readouterr().err


@pytest.mark.slow
def test_two_processes_train_stages_and_resume_them(staged, run_two, tmp_path):
    straight = tmp_path / "straight"
    codes, said = run_two([*staged, f"--output_dir={straight}"])
    assert codes == [0, 0], said
    metrics = read_json(straight / "metrics.json")
    assert metrics["world_size"] == 2 and [stage["steps"] for stage in metrics["stages"]] == [2, 3]
    assert said["stdout-0"].count("stage 2 of 2") == 1 and "stage" not in said["stdout-1"]
    halted = shutil.copytree(straight, tmp_path / "halted")
    shutil.rmtree(halted / "checkpoint-3")
    (halted / "model.safetensors").unlink()
    assert run_two([*staged, f"--output_dir={halted}", "--resume_from_checkpoint=true"])[0] == [0, 0]
    assert weights_equal(straight, halted)
