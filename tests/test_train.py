"""train.py from its arguments to the files it writes, on a handful of made-up pieces."""

import errno
import json
import multiprocessing
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from safetensors.torch import load_file
from transformers import (
    AutoFeatureExtractor,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    GPT2LMHeadModel,
)

import pianogen_hf
from pianogen_hf.commands.train import main
from pianogen_hf.errors import ArgumentError
from pianogen_hf.workflows.train_end import scores_table

ROOT = Path(__file__).parents[1]
ODD_HEADS = '{"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 4, "num_key_value_heads": 3}'
SIZES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_relative_distance": 16,
}

WITHOUT_DROPOUT = {"hidden_dropout": 0.0, "attention_dropout": 0.0}


def write_pieces(folder, count, seed=0):
    """Pieces of 30 to 70 notes."""
    random = np.random.default_rng(seed)
    for number in range(count):
        size = random.integers(30, 70)
        notes = pianogen_hf.Notes.from_columns(
            onset_tick=np.cumsum(random.integers(60, 240, size)),
            duration_tick=random.integers(60, 400, size),
            pitch=random.integers(50, 80, size),
            velocity=random.integers(40, 100, size),
        )
        pianogen_hf.write_midi(notes, folder / f"piece{seed}-{number}.mid")
    return folder


@pytest.fixture(scope="module")
def midi_folder(tmp_path_factory):
    return write_pieces(tmp_path_factory.mktemp("midi"), 6)


@pytest.fixture(scope="module")
def cache_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def options(midi_folder, cache_dir):
    """Builds a command line: what every run here shares, and what the test changes."""

    def build(output_dir, **changes):
        values = {
            "output_dir": output_dir,
            "source": "folder",
            "data_path": midi_folder,
            "cache_dir": cache_dir,
            "model_config": json.dumps(SIZES),
            "chunk_length": 65,
            "max_steps": 2,
            "per_device_train_batch_size": 2,
            "report_to": "none",
            "bf16": "false",
            "disable_tqdm": "true",
            **changes,
        }
        return [f"--{name}={value}" for name, value in values.items() if value is not None]

    return build


@pytest.fixture(scope="module")
def finished(options, tmp_path_factory):
    """The folder of a finished run."""
    folder = tmp_path_factory.mktemp("runs") / "model"
    assert main(options(folder, sample_steps=1, sample_notes=3, report_to="tensorboard")) == 0
    return folder


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


def weights_equal(one, two):
    one, two = load_file(one / "model.safetensors"), load_file(two / "model.safetensors")
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


# What a run leaves ----------------------------------------------------------------------------------------------------


def test_a_run_writes_model_tokenizer_measurements_split_and_samples(finished):
    names = {path.relative_to(finished).as_posix() for path in finished.rglob("*")}
    assert names >= {
        "model.safetensors",
        "config.json",
        "tokenizer_config.json",
        "metrics.json",
        "split.json",
        "reading_report.json",
        "samples/step-000001.mid",
        "samples/step-000001.png",
        "samples/step-000002.mid",
        "checkpoint-2/trainer_state.json",
    }
    assert len(pianogen_hf.read_midi(finished / "samples" / "step-000002.mid")) == 3
    assert any("tfevents" in name for name in names)  # tensorboard's log lies in the folder of the run


def test_the_model_and_its_tokenizer_load_by_the_auto_classes(finished):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(finished), AutoTokenizer.from_pretrained(finished)
    assert isinstance(model, pianogen_hf.MusicTransformerForCausalLM)
    assert isinstance(tokenizer, pianogen_hf.PerformanceTokenizer)
    assert model.config.vocab_size == len(tokenizer)
    assert (model.config.hidden_size, model.config.max_position_embeddings) == (16, 65)
    special = ("pad_token_id", "bos_token_id", "eos_token_id")
    assert [getattr(model.config, name) for name in special] == [getattr(tokenizer, name) for name in special]


def test_every_checkpoint_carries_its_code_and_draws_by_default(finished):
    for folder in (finished, finished / "checkpoint-2"):
        code = {path.name for path in folder.glob("*.py")}
        assert code >= {"configuration_music_transformer.py", "modeling_music_transformer.py", "midi.py"}
        assert "tokenization_performance.py" in code
        assert "AutoModelForCausalLM" in read_json(folder / "config.json")["auto_map"]
        assert "AutoTokenizer" in read_json(folder / "tokenizer_config.json")["auto_map"]
        generation = read_json(folder / "generation_config.json")
        assert (generation["do_sample"], generation["temperature"], generation["top_p"]) == (True, 1.0, 0.95)


def test_metrics_say_how_they_came_about(finished):
    metrics = read_json(finished / "metrics.json")
    assert (metrics["steps"], metrics["world_size"], metrics["seed"]) == (2, 1, 42)
    assert metrics["num_parameters"] == AutoModelForCausalLM.from_pretrained(finished).num_parameters()
    assert "--chunk_length=65" in metrics["command"]
    assert metrics["validation"]["bits_per_note"] > 0
    assert f"{metrics['validation']['bits_per_note']:.3f}" in scores_table(finished)


def test_bits_per_note_counts_all_tokens_of_the_validation_pieces(finished, midi_folder):
    """An untrained model spends about log2(vocabulary) bits on every token: events and the end of each piece."""
    tokenizer = AutoTokenizer.from_pretrained(finished)
    pieces = read_json(finished / "split.json")["pieces"]
    chosen = [Path(name).name for name, (side, *_) in pieces.items() if side == "validation"]
    notes = [pianogen_hf.read_midi(midi_folder / name) for name in chosen]
    num_tokens = sum(len(tokenizer.encode_piece(piece)) - 1 for piece in notes)
    scores = read_json(finished / "metrics.json")["validation"]
    expected = scores["nats_per_token"] / np.log(2) * num_tokens / sum(map(len, notes))
    assert scores["bits_per_note"] == pytest.approx(expected, rel=1e-6)
    assert scores["nats_per_token"] == pytest.approx(np.log(len(tokenizer)), rel=0.02)


def test_samples_do_not_change_what_is_learned(finished, options, tmp_path):
    assert main(options(tmp_path / "model")) == 0
    assert weights_equal(finished, tmp_path / "model")
    assert not (tmp_path / "model" / "samples").exists()


def test_a_second_run_moves_the_first_aside(options, tmp_path, capsys):
    folder = tmp_path / "model"
    for seed in (1, 2, 3):
        assert main(options(folder, seed=seed, max_steps=1)) == 0
    found = {path.name: read_json(path / "metrics.json")["seed"] for path in tmp_path.iterdir()}
    assert found == {"model": 3, "model.old1": 1, "model.old2": 2}
    assert "moved to" in capsys.readouterr().out


def test_a_stock_architecture_needs_no_code(options, tmp_path):
    sizes = json.dumps({"n_embd": 16, "n_layer": 1, "n_head": 2})
    assert main(options(tmp_path / "gpt2", model_type="gpt2", model_config=sizes)) == 0
    assert isinstance(AutoModelForCausalLM.from_pretrained(tmp_path / "gpt2"), GPT2LMHeadModel)


def test_a_grid_tokenizer_brings_its_baselines(options, tmp_path, capsys):
    assert main(options(tmp_path / "model", tokenizer="JSBTokenizer")) == 0
    baselines = read_json(tmp_path / "model" / "metrics.json")["baselines"]
    assert baselines and all(name in capsys.readouterr().out for name in [next(iter(baselines))])


def test_a_tokenizer_that_is_not_made_for_the_music_is_told(options, tmp_path, capsys):
    dense = pianogen_hf.Notes.from_columns(onset_tick=[10 * n for n in range(400)], duration_tick=5, pitch=60)
    for number in range(4):
        pianogen_hf.write_midi(dense.transposed(number), tmp_path / "dense" / f"{number}.mid")
        write_pieces(tmp_path / "dense", 3, seed=number)
    assert main(options(tmp_path / "model", data_path=tmp_path / "dense", tokenizer="JSBTokenizer")) == 0
    assert "hint: JSBTokenizer loses " in capsys.readouterr().out
    assert main(options(tmp_path / "other", data_path=tmp_path / "dense")) == 0
    assert "hint" not in capsys.readouterr().out


def test_repeated_notes_that_become_one_are_no_reason_for_a_hint(options, tmp_path, capsys):
    """As many as chorales have: every sixth note repeats the one before."""
    for number in range(8):
        pitch = np.repeat(np.random.default_rng(number).permutation(40) + 40, [1, 1, 1, 1, 2] * 8)
        piece = pianogen_hf.Notes.from_columns(onset_tick=480 * np.arange(48), duration_tick=480, pitch=pitch)
        pianogen_hf.write_midi(piece, tmp_path / "repeats" / f"{number}.mid")
    assert main(options(tmp_path / "model", data_path=tmp_path / "repeats", tokenizer="JSBTokenizer")) == 0
    assert "hint" not in capsys.readouterr().out


def test_fine_tuning_begins_with_the_weights_and_the_tokenizer_of_the_checkpoint(finished, options, tmp_path):
    """The tokenizer named on the command line gives way; with a learning rate of 0 the weights stay."""
    changes = {"model_config": None, "tokenizer": "JSBTokenizer", "learning_rate": 0, "seed": 5}
    assert main(options(tmp_path / "tuned", model_name_or_path=finished, **changes)) == 0
    assert isinstance(AutoTokenizer.from_pretrained(tmp_path / "tuned"), pianogen_hf.PerformanceTokenizer)
    assert weights_equal(finished, tmp_path / "tuned")


def test_early_stopping_keeps_the_best_model(options, tmp_path):
    """A learning rate that ruins the model after the first step: the first evaluation is the best."""
    changes = {"eval_strategy": "steps", "eval_steps": 1, "save_strategy": "steps", "save_steps": 1, "max_steps": 9}
    folder = tmp_path / "model"
    assert main(options(folder, early_stopping_patience=2, learning_rate=5, warmup_steps=1, **changes)) == 0
    state = read_json(newest_checkpoint(folder) / "trainer_state.json")
    assert state["global_step"] < 9
    scores = [entry["eval_bits_per_note"] for entry in state["log_history"] if "eval_bits_per_note" in entry]
    assert read_json(folder / "metrics.json")["validation"]["bits_per_note"] == pytest.approx(min(scores))


def newest_checkpoint(folder):
    return max(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))


# Resuming -------------------------------------------------------------------------------------------------------------


def test_a_resumed_run_equals_an_uninterrupted_one(options, tmp_path):
    straight, halted = tmp_path / "straight", tmp_path / "halted"
    assert main(options(straight, max_steps=4, save_steps=2)) == 0
    assert main(options(halted, max_steps=4, save_steps=2, sample_steps=1, sample_notes=2)) == 0
    shutil.rmtree(halted / "checkpoint-4")
    (halted / "model.safetensors").unlink()
    assert main(options(halted, max_steps=4, save_steps=2, resume_from_checkpoint="true")) == 0
    assert weights_equal(straight, halted)
    assert not (tmp_path / "halted.old1").exists()


def test_a_half_written_checkpoint_is_passed_over(finished, options, tmp_path):
    whole, killed = (shutil.copytree(finished, tmp_path / name) for name in ("whole", "killed"))
    (killed / "checkpoint-3").mkdir()
    shutil.copy(killed / "checkpoint-2" / "model.safetensors", killed / "checkpoint-3")
    for folder in (whole, killed):
        assert main(options(folder, max_steps=4, resume_from_checkpoint="true")) == 0
    assert weights_equal(whole, killed)


def one_line_error(argv, capsys):
    capsys.readouterr()
    assert main(argv) == 2
    captured = capsys.readouterr().err
    assert captured.startswith("error: ") and captured.count("\n") == 1
    return captured


def test_a_run_without_checkpoint_can_not_be_resumed(options, tmp_path, capsys):
    assert "no checkpoint" in one_line_error(options(tmp_path / "new", resume_from_checkpoint="true"), capsys)
    assert "no checkpoint" in one_line_error(options(tmp_path / "new", resume_from_checkpoint=tmp_path), capsys)
    assert not (tmp_path / "new").exists()


def test_files_that_arrive_move_none_that_was_there_and_a_run_goes_on_with_them(options, tmp_path, capsys):
    data = write_pieces(tmp_path / "data", 12)
    argv = options(tmp_path / "model", data_path=data)
    assert main(argv) == 0
    before = read_json(tmp_path / "model" / "split.json")
    write_pieces(data, 8, seed=9)
    assert main([*argv, "--resume_from_checkpoint=true", "--max_steps=3"]) == 0
    assert "the data begin anew" in capsys.readouterr().out
    after = read_json(tmp_path / "model" / "split.json")
    assert len(after["pieces"]) == 20 and before["pieces"].items() <= after["pieces"].items()
    assert after["counts"] == {"test": 2, "train": 16, "validation": 2}


def test_music_that_was_trained_on_is_not_evaluated_unless_the_model_is_marked_for_ever(options, tmp_path, capsys):
    """Train on A, go on with B whose validation holds pieces of A under other names and in other keys, then with C."""
    a, b = write_pieces(tmp_path / "a", 9), write_pieces(tmp_path / "b", 6, seed=5)
    for number, path in enumerate(sorted(a.iterdir())):
        pianogen_hf.write_midi(pianogen_hf.read_midi(path).transposed(2), b / f"another{number}.mid")
    assert main(options(tmp_path / "first", data_path=a)) == 0
    second = options(tmp_path / "second", data_path=b, model_name_or_path=tmp_path / "first")
    assert main(second) == 2
    said = capsys.readouterr().err
    assert "another" in said and "a/piece0-" in said and not (tmp_path / "second").exists()
    resumed = options(tmp_path / "second", data_path=b, resume_from_checkpoint=tmp_path / "first" / "checkpoint-2")
    assert main(resumed) == 2 and "another" in capsys.readouterr().err
    assert main([*second, f"--split_from={tmp_path / 'first'}"]) == 0
    assert read_json(tmp_path / "second" / "provenance.json")["contaminated"] == []
    assert main([*second, "--allow_contamination=true"]) == 0
    assert read_json(tmp_path / "second" / "provenance.json")["contaminated"]
    assert "contaminated" in (tmp_path / "second" / "README.md").read_text()
    c = write_pieces(tmp_path / "c", 5, seed=7)
    assert main(options(tmp_path / "third", data_path=c, model_name_or_path=tmp_path / "second" / "checkpoint-2")) == 0
    assert "contaminated" in (tmp_path / "third" / "README.md").read_text()


def test_a_checkpoint_from_elsewhere_makes_the_origin_unknown(finished, options, tmp_path):
    elsewhere = shutil.copytree(finished, tmp_path / "elsewhere")
    for name in ("provenance.json", "provenance.safetensors"):
        (elsewhere / name).unlink()
    assert main(options(tmp_path / "model", model_name_or_path=elsewhere)) == 0
    provenance = read_json(tmp_path / "model" / "provenance.json")
    assert (provenance["status"], len(provenance["runs"])) == ("unknown", 1)
    assert "unknown" in (tmp_path / "model" / "README.md").read_text()


def test_several_sources_are_one_data_set(options, midi_folder, tmp_path, capsys):
    other = write_pieces(tmp_path / "other", 5, seed=3)
    argv = options(tmp_path / "model", source=None, data_path=None)
    assert main([*argv, "--source", f"folder={midi_folder}", f"folder={other}"]) == 0
    manifest = read_json(tmp_path / "model" / "split.json")
    assert set(manifest["sources"]) == {midi_folder.name, "other"}
    assert str(tmp_path) not in json.dumps(manifest)


def test_a_model_that_looks_both_ways_is_trained_by_masking(options, tmp_path, capsys):
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    masked = {"model_type": "piano_encoder", "model_config": json.dumps({**sizes, "is_causal": False})}
    assert main(options(tmp_path / "model", **masked, sample_steps=2, sample_notes=3)) == 0
    assert len(pianogen_hf.read_midi(tmp_path / "model" / "samples" / "step-000002.mid")) == 3
    assert type(AutoModelForMaskedLM.from_pretrained(tmp_path / "model")) is pianogen_hf.PianoEncoderForMaskedLM
    assert read_json(tmp_path / "model" / "metrics.json")["validation"]["bits_per_note"] > 0
    assert main(options(tmp_path / "more", model_name_or_path=tmp_path / "model", model_config=None)) == 0
    smoothed = options(tmp_path / "other", **masked, label_smoothing_factor=0.1)
    assert "label_smoothing_factor" in one_line_error(smoothed, capsys)


NOTE_SIZES = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
OF_NOTES = {
    "model_type": "continuous_notes",
    "tokenizer": "ContinuousNotesFeatureExtractor",
    "model_config": json.dumps(NOTE_SIZES),
    "chunk_length": 17,
}


def test_a_model_of_continuous_notes_is_trained_like_any_other(options, midi_folder, tmp_path, capsys):
    folder = tmp_path / "model"
    assert main(options(folder, **OF_NOTES, sample_steps=2, sample_notes=5, eval_strategy="steps", eval_steps=1)) == 0
    model, extractor = AutoModelForCausalLM.from_pretrained(folder), AutoFeatureExtractor.from_pretrained(folder)
    assert isinstance(model, pianogen_hf.ContinuousNotesForCausalLM)
    assert isinstance(extractor, pianogen_hf.ContinuousNotesFeatureExtractor)
    assert model.config.max_position_embeddings == 17
    assert len(pianogen_hf.read_midi(folder / "samples" / "step-000002.mid")) == 5
    names = {path.name for path in folder.iterdir()}
    assert names >= {"split.json", "provenance.json", "metrics.json", "preprocessor_config.json", "README.md"}
    assert "AutoFeatureExtractor" in (folder / "README.md").read_text()
    assert "bits per note" in capsys.readouterr().out
    # The end of each piece is paid for, and the notes of the reference divide.
    scores = read_json(folder / "metrics.json")["validation"]
    pieces = read_json(folder / "split.json")["pieces"]
    chosen = [Path(name).name for name, (side, *_) in pieces.items() if side == "validation"]
    notes = [pianogen_hf.read_midi(midi_folder / name) for name in chosen]
    num_rows = sum(len(extractor.encode_piece(piece)) - 1 for piece in notes)
    expected = scores["nats_per_token"] / np.log(2) * num_rows / sum(map(len, notes))
    assert scores["bits_per_note"] == pytest.approx(expected, rel=1e-6)
    tuned = options(tmp_path / "tuned", **{**OF_NOTES, "model_config": None}, model_name_or_path=folder, max_steps=1)
    assert main(tuned) == 0
    smoothed = options(tmp_path / "other", **OF_NOTES, label_smoothing_factor=0.1)
    assert "label_smoothing_factor" in one_line_error(smoothed, capsys)
    other_grid = options(tmp_path / "other", **OF_NOTES, tokenizer_config='{"feature_size": 3}')
    assert "feature_size" in one_line_error(other_grid, capsys)


@pytest.mark.parametrize("augmentation", ["prebuilt", "lazy"])
def test_a_run_of_continuous_notes_resumes_bit_by_bit(options, tmp_path, augmentation):
    shared = {
        **OF_NOTES,
        "augmentation": augmentation,
        "max_steps": 4,
        "save_steps": 2,
        "gradient_accumulation_steps": 2,
    }
    ranges = ["--transpose", "-2", "2", "--stretch", "0.9", "1.1"]
    assert main([*options(tmp_path / "straight", **shared), *ranges]) == 0
    halted = shutil.copytree(tmp_path / "straight", tmp_path / "halted")
    shutil.rmtree(halted / "checkpoint-4")
    (halted / "model.safetensors").unlink()
    assert main([*options(halted, **shared, resume_from_checkpoint="true"), *ranges]) == 0
    assert weights_equal(tmp_path / "straight", halted)


def test_lazy_augmentation_resumes_bit_by_bit(options, tmp_path):
    lazy = {"augmentation": "lazy", "stretch": None, "save_steps": 3, "max_steps": 6}
    ranges = ["--transpose", "-3", "3", "--velocity", "-10", "10", "--stretch", "0.95", "1.05"]
    assert main([*options(tmp_path / "whole", **lazy), *ranges]) == 0
    parts = [*options(tmp_path / "parts", **lazy), *ranges]
    assert main([*parts, "--max_steps=3", "--lr_scheduler_type=constant"]) == 0
    assert main([*options(tmp_path / "whole2", **lazy), *ranges, "--lr_scheduler_type=constant"]) == 0
    assert main([*parts, "--resume_from_checkpoint=true", "--lr_scheduler_type=constant"]) == 0
    assert weights_equal(tmp_path / "whole2", tmp_path / "parts")
    assert not weights_equal(tmp_path / "whole", tmp_path / "parts")


def test_a_run_whose_model_changed_can_not_be_resumed(finished, options, tmp_path, capsys):
    folder = shutil.copytree(finished, tmp_path / "model")
    changed = options(folder, model_config=json.dumps({**SIZES, "hidden_size": 32}), resume_from_checkpoint="true")
    assert "hidden_size 16" in one_line_error(changed, capsys)


def state_of(folder):
    return read_json(newest_checkpoint(folder) / "trainer_state.json")


def rates(folder):
    return {each["step"]: each["learning_rate"] for each in state_of(folder)["log_history"] if "learning_rate" in each}


@pytest.mark.parametrize("optim", ["adamw_torch", "muon"])
def test_what_is_asked_anew_at_a_resume_takes_effect_and_is_told(options, tmp_path, capsys, optim):
    """The rate falls to 0 in a straight line over all steps, old and new, from the new height."""
    folder = tmp_path / "model"
    shared = {"optim": optim, "lr_scheduler_type": "linear", "logging_steps": 1, "save_steps": 2}
    assert main(options(folder, learning_rate=1e-3, max_steps=2, **shared)) == 0
    shared |= {"learning_rate": 1e-4, "weight_decay": 0.1, "max_steps": 5, "save_steps": 1, "logging_steps": 1}
    capsys.readouterr()
    assert main(options(folder, **shared, resume_from_checkpoint="true")) == 0
    told = capsys.readouterr().out
    assert "from step 2 on: " in told and "learning_rate 0.0001 (before 0.001)" in told
    assert [rates(folder)[step] for step in (3, 4, 5)] == pytest.approx([6e-5, 4e-5, 2e-5])
    assert {path.name for path in folder.glob("checkpoint-*")} >= {f"checkpoint-{step}" for step in (2, 3, 4, 5)}
    groups = torch.load(folder / "checkpoint-5" / "optimizer.pt", weights_only=True)["param_groups"]
    assert max(group["weight_decay"] for group in groups) == 0.1
    metrics = read_json(folder / "metrics.json")
    assert "0.001" in metrics["command"] and "resume" not in metrics["command"]
    assert metrics["changes"] == [
        {
            "step": 2,
            "learning_rate": [1e-3, 1e-4],
            "max_steps": [2, 5],
            "save_steps": [2, 1],
            "weight_decay": [0.0, 0.1],
        }
    ]
    assert "From step 2 on" in (folder / "README.md").read_text()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"max_steps": 1}, "is at step 2, and is to end at step 1"),
        ({"optim": "muon"}, "optim adamw_torch, the run now asks for muon"),
        ({"per_device_train_batch_size": 4}, "batches of 2, the run now asks for 4"),
        ({"model_type": "gpt2"}, "model_type music_transformer, the run now asks for gpt2"),
        ({"tokenizer": "RemiTokenizer"}, "tokenizer PerformanceTokenizer, the run now asks for RemiTokenizer"),
        ({"minutes": 5}, "minutes None, the run now asks for 5"),
    ],
)
def test_what_can_not_change_at_a_resume_is_refused_by_name(finished, options, tmp_path, capsys, changes, said):
    folder = shutil.copytree(finished, tmp_path / "model")
    values = {"sample_steps": 1, "sample_notes": 3, "max_steps": 4, "resume_from_checkpoint": "true", **changes}
    assert said in one_line_error(options(folder, **values), capsys)


def test_batches_divided_otherwise_keep_their_place_in_the_data(options, tmp_path):
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    undisturbed = {"model_config": json.dumps(SIZES | WITHOUT_DROPOUT), "max_steps": 4, "save_steps": 2}
    assert main(options(straight, **undisturbed)) == 0
    assert main(options(resumed, **undisturbed)) == 0
    shutil.rmtree(resumed / "checkpoint-4")
    divided = {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 2}
    assert main(options(resumed, **undisturbed, **divided, resume_from_checkpoint="true")) == 0
    one, two = load_file(straight / "model.safetensors"), load_file(resumed / "model.safetensors")
    assert all(torch.allclose(one[name], two[name], atol=1e-6) for name in one)
    assert "changes" not in read_json(resumed / "metrics.json")


def test_other_examples_begin_anew_at_a_resume(finished, options, tmp_path, capsys):
    folder = shutil.copytree(finished, tmp_path / "model")
    assert main(options(folder, max_steps=3, transpose=None, seed=5, resume_from_checkpoint="true")) == 0
    assert "the data begin anew" in capsys.readouterr().out


def test_a_run_killed_after_its_last_step_takes_no_further_one(finished, options, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    assert main(options(folder, resume_from_checkpoint="true")) == 0
    assert weights_equal(finished, folder) and read_json(folder / "metrics.json")["steps"] == 2


@pytest.mark.parametrize(
    "error", [OSError(errno.ENOSPC, "No space left on device"), RuntimeError("unexpected pos 64 vs 0")], ids=str
)
def test_a_full_disk_is_one_line_leaves_no_half_checkpoint_and_the_run_goes_on(
    options, tmp_path, capsys, monkeypatch, error
):
    """Libraries that write weights do not all say that the disk is full; that it is, the disk says."""
    folder, argv = tmp_path / "model", options(tmp_path / "model", max_steps=3, save_steps=1)

    def fail(trainer, checkpoint):
        if checkpoint.endswith("-2"):
            raise error

    with monkeypatch.context() as patch:
        patch.setattr(pianogen_hf.training.trainer.PianoTrainer, "_save_scaler", fail)
        patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 0))
        assert "checkpoint-2 can't be written (No space left on device): make room" in one_line_error(argv, capsys)
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-1"]
    assert main([*argv, "--resume_from_checkpoint=true"]) == 0
    assert main(options(tmp_path / "straight", max_steps=3, save_steps=1)) == 0
    assert weights_equal(folder, tmp_path / "straight")


def test_a_checkpoint_with_half_a_state_is_passed_over(finished, options, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "model")
    killed = shutil.copytree(folder / "checkpoint-2", folder / "checkpoint-3")
    state = (killed / "trainer_state.json").read_bytes()
    (killed / "trainer_state.json").write_bytes(state[: len(state) // 2])
    assert main(options(folder, max_steps=3, resume_from_checkpoint="true")) == 0
    assert read_json(folder / "metrics.json")["changes"][0]["step"] == 2


# Mistakes -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"data_path": "nowhere"}, "nowhere"),
        ({"data_path": None}, "--data_path"),
        ({"source": "radio"}, "radio"),
        ({"tokenizer": "WordTokenizer"}, "WordTokenizer"),
        ({"tokenizer": "Notes"}, "Notes"),
        ({"tokenizer_config": '{"lowest_pitch": 300}'}, "tokenizer_config"),
        ({"tokenizer_config": '{"bars": 3}', "tokenizer": "JSBTokenizer"}, "bars"),
        ({"bpe_vocab_size": 500}, "RemiTokenizer"),
        ({"bpe_vocab_size": 9, "tokenizer": "RemiTokenizer"}, "bpe_vocab_size"),
        ({"tokenizer_config": '{"scheme": "Rag"}', "tokenizer": "RemiTokenizer"}, "tokenizer_config"),
        ({"model_type": "musical_box"}, "musical_box"),
        ({"model_type": "vit", "model_config": None}, "model_config"),
        ({"model_config": '{"hiden_size": 16}'}, "hiden_size"),
        ({"model_config": '{"hidden_size": 15, "num_attention_heads": 2}'}, "multiple"),
        ({"model_config": '{"hidden_size": "wide"}'}, "hidden_size"),
        ({"model_type": "llama", "model_config": ODD_HEADS}, "can't compute"),
        ({"model_config": '{"vocab_size": 20}'}, "20 outputs"),
        ({"model_type": "continuous_notes", "model_config": None}, "input_values"),
        ({"tokenizer": "ContinuousNotesFeatureExtractor"}, "input_values"),
        ({"model_config": '{"max_position_embeddings": 64}'}, "chunk_length 65"),
        ({"model_name_or_path": "nonsense/nothing"}, "nonsense/nothing"),
        ({"validation_fraction": 0, "test_fraction": 0}, "validation"),
        ({"validation_fraction": 1.5}, "validation_fraction"),
        ({"learning_rates": 1}, "'learning_rate'"),
        ({"lr_scheduler_type": "cosin"}, "cosin"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(options, tmp_path, capsys, monkeypatch, changes, said):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert said in one_line_error(options(tmp_path / "model", **changes), capsys)
    assert not (tmp_path / "model").exists()


def test_a_folder_without_midi_files_is_a_mistake(options, tmp_path, capsys):
    argv = options(tmp_path / "model", data_path=tmp_path)
    assert "no MIDI files" in one_line_error(argv, capsys)
    (tmp_path / "readme.txt").write_text("not music")
    assert "no MIDI files" in one_line_error(argv, capsys)


def test_files_that_only_look_like_midi_are_a_mistake(options, tmp_path, capsys):
    for name in ("a.mid", "b.mid"):
        (tmp_path / name).write_text("not music")
    assert "none of the 2 files" in one_line_error(options(tmp_path / "model", data_path=tmp_path), capsys)


def test_one_piece_alone_is_a_mistake(options, tmp_path, capsys):
    data = write_pieces(tmp_path / "data", 1)
    assert "add files" in one_line_error(options(tmp_path / "model", data_path=data), capsys)


def test_a_broken_file_among_good_ones_is_reported_and_left_out(options, tmp_path, capsys):
    data = write_pieces(tmp_path / "data", 3)
    (data / "broken.mid").write_bytes(b"MThd nothing more")
    assert main(options(tmp_path / "model", data_path=data, max_steps=1)) == 0
    assert "broken.mid" in capsys.readouterr().out
    assert list(read_json(tmp_path / "model" / "reading_report.json")["unusable"]) == ["data/broken.mid"]


def test_a_checkpoint_with_another_tokenizer_than_ours_is_a_mistake(finished, options, tmp_path, capsys):
    folder = shutil.copytree(finished, tmp_path / "text")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "ByT5Tokenizer"}')
    argv = options(tmp_path / "model", model_name_or_path=folder, model_config=None)
    assert "ByT5Tokenizer" in one_line_error(argv, capsys)


def test_a_damaged_checkpoint_is_a_mistake(finished, options, tmp_path, capsys):
    folder = shutil.copytree(finished, tmp_path / "damaged")
    (folder / "model.safetensors").write_bytes(b"\x00" * 100)
    argv = options(tmp_path / "model", model_name_or_path=folder, model_config=None)
    assert "damaged" in one_line_error(argv, capsys)


def test_an_output_folder_that_can_not_be_moved_aside_is_a_mistake(finished, options, tmp_path, capsys, monkeypatch):
    folder = shutil.copytree(finished, tmp_path / "model")
    monkeypatch.chdir(folder)
    assert "output_dir" in one_line_error(options("."), capsys)


def test_ctrl_c_before_training_is_one_line(options, tmp_path, capsys, monkeypatch):
    def stopped(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("pianogen_hf.workflows.split.load_pieces", stopped)
    assert main(options(tmp_path / "model")) == 130
    assert capsys.readouterr().err.count("\n") == 1


def test_help_and_no_arguments_print_the_options(capsys):
    assert main(["--help"]) == 0
    assert "--data_path" in capsys.readouterr().out
    assert main([]) == 2


def test_scores_of_a_folder_without_a_finished_run(tmp_path):
    with pytest.raises(ArgumentError, match="no finished run"):
        scores_table(tmp_path)


# Two processes --------------------------------------------------------------------------------------------------------


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return str(server.getsockname()[1])


def one_of_two(rank, port, argv, folder):
    """What a launcher would start, but forked from this process: without its half minute of imports."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for number, name in ((1, "stdout"), (2, "stderr")):
        file = os.open(folder / f"{name}-{rank}.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, number)
    sys.stdout, sys.stderr = os.fdopen(1, "w"), os.fdopen(2, "w")
    code = main(argv)
    sys.stdout.flush(), sys.stderr.flush()
    os._exit(code)


@pytest.fixture
def run_two(tmp_path):
    """Runs train.py in two processes; returns their exit codes and what each of them printed."""

    def run(argv):
        context, port = multiprocessing.get_context("fork"), free_port()
        processes = [context.Process(target=one_of_two, args=(rank, port, argv, tmp_path)) for rank in (0, 1)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(120)
        hung = [process for process in processes if process.is_alive()]
        for process in hung:
            process.kill()
        assert not hung, "the processes wait for one another"
        said = {path.stem: path.read_text() for path in tmp_path.glob("std*-?.txt")}
        for path in tmp_path.glob("std*-?.txt"):
            path.unlink()
        return [process.exitcode for process in processes], said

    return run


def test_two_processes_learn_what_one_learns_from_the_same_batches(options, run_two, tmp_path):
    shared = {"max_steps": 4, "optim": "sgd", "learning_rate": 0.3, "eval_strategy": "steps", "eval_steps": 2}
    sizes = json.dumps({**SIZES, "hidden_dropout": 0, "attention_dropout": 0})
    shared |= {"model_config": sizes, "per_device_eval_batch_size": 2}
    assert main(options(tmp_path / "one", **shared, gradient_accumulation_steps=2)) == 0
    codes, said = run_two(options(tmp_path / "two", **shared, sample_steps=2, sample_notes=2))
    assert codes == [0, 0]
    folders = tmp_path / "one", tmp_path / "two"
    metrics = [read_json(folder / "metrics.json") for folder in folders]
    assert [each["world_size"] for each in metrics] == [1, 2]
    assert metrics[1]["validation"] == pytest.approx(metrics[0]["validation"], rel=1e-4)
    one, two = (load_file(folder / "model.safetensors") for folder in folders)
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=0, atol=1e-5, msg=name)
    histories = [read_json(newest_checkpoint(folder) / "trainer_state.json")["log_history"] for folder in folders]
    losses = [[entry["eval_loss"] for entry in history if "eval_loss" in entry] for history in histories]
    assert len(losses[0]) == 2 and losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert "bits per note" in said["stdout-0"] and said["stdout-1"] == ""
    assert len(list((tmp_path / "two" / "samples").glob("*.mid"))) == 2


def test_of_two_processes_one_moves_the_earlier_run_aside(finished, options, run_two, tmp_path):
    folder = shutil.copytree(finished, tmp_path / "model")
    codes, said = run_two(options(folder, max_steps=1))
    assert codes == [0, 0]
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"model", "model.old1"}
    assert said["stdout-0"].count("moved to") == 1 and "moved to" not in said["stdout-1"]


def test_two_processes_resume_bit_by_bit(options, run_two, tmp_path):
    shared = {"max_steps": 4, "save_steps": 2}
    assert run_two(options(tmp_path / "straight", **shared))[0] == [0, 0]
    halted = shutil.copytree(tmp_path / "straight", tmp_path / "halted")
    shutil.rmtree(halted / "checkpoint-4")
    (halted / "model.safetensors").unlink()
    assert run_two(options(halted, **shared, resume_from_checkpoint="true"))[0] == [0, 0]
    assert weights_equal(tmp_path / "straight", halted)


def test_two_processes_give_up_together_with_one_message(finished, options, run_two, tmp_path):
    """A mistake that is found before, and one that is found after, the processes have found each other."""
    folder = shutil.copytree(finished, tmp_path / "model")
    other_size = json.dumps({**SIZES, "hidden_size": 32})
    resumed = options(folder, resume_from_checkpoint="true", model_config=other_size)
    for argv in (options(folder, source="radio"), resumed):
        codes, said = run_two(argv)
        assert codes == [2, 2]
        assert said["stderr-0"].count("error: ") == 1 and "error: " not in said["stderr-1"]


# From outside ---------------------------------------------------------------------------------------------------------


def start(command, argv):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [*command, str(ROOT / "train.py"), *argv], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip


def interrupted(process, folder, number, whole_group=False):
    """Send the signal once training has saved its first checkpoint; returns the exit code and what was printed."""
    deadline = time.monotonic() + 120
    while not (folder / "checkpoint-5" / "trainer_state.json").exists():
        assert time.monotonic() < deadline and process.poll() is None, process.communicate()
        time.sleep(0.05)
    os.killpg(process.pid, number) if whole_group else process.send_signal(number)
    stdout, stderr = process.communicate(timeout=120)
    return process.returncode, stdout, stderr


LONG = {"max_steps": 100_000, "save_steps": 5, "logging_steps": 1000, "lr_scheduler_type": "constant"}


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_goes_on_where_it_was(options, tmp_path, number):
    folder = tmp_path / "model"
    code, stdout, stderr = interrupted(start([sys.executable], options(folder, **LONG)), folder, number)
    assert code == 130 and "Traceback" not in stderr
    step = read_json(newest_checkpoint(folder) / "trainer_state.json")["global_step"]
    assert f"Interrupted at step {step}" in stdout and "--resume_from_checkpoint true" in stdout
    assert not (folder / "metrics.json").exists()
    assert main(options(folder, **{**LONG, "max_steps": step + 3}, resume_from_checkpoint="true")) == 0
    assert read_json(folder / "metrics.json")["steps"] == step + 3
    assert main(options(tmp_path / "straight", **{**LONG, "max_steps": step + 3})) == 0
    assert weights_equal(folder, tmp_path / "straight")


TWO_ON_CPU = str(ROOT / "configs" / "accelerate" / "cpu_2.yaml")
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", TWO_ON_CPU]


@pytest.mark.slow
def test_accelerate_really_launches_two_processes(options, tmp_path):
    process = start([*LAUNCH, "--main_process_port", free_port()], options(tmp_path / "model"))
    stdout, stderr = process.communicate(timeout=240)
    assert process.returncode == 0, stderr
    assert read_json(tmp_path / "model" / "metrics.json")["world_size"] == 2
    assert stdout.count("pieces: ") == 1


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_stops_two_processes_at_one_step(options, tmp_path, number):
    """As in a terminal, Ctrl-C reaches the launcher and its processes, and the launcher passes it on as well."""
    folder = tmp_path / "model"
    process = start([*LAUNCH, "--main_process_port", free_port()], options(folder, **LONG))
    code, stdout, _ = interrupted(process, folder, number, whole_group=True)
    assert code != 0
    step = read_json(newest_checkpoint(folder) / "trainer_state.json")["global_step"]
    assert f"Interrupted at step {step}" in stdout
    assert len(list(newest_checkpoint(folder).glob("rng_state_*.pth"))) == 2
