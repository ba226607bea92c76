import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import TrainingArguments

from pianogen_hf.errors import ArgumentError
from pianogen_hf.training import arguments
from pianogen_hf.training.arguments import make_parser, parse_arguments, read_yaml, without_token


@pytest.fixture
def yaml_file(tmp_path):
    def write(text):
        path = tmp_path / "config.yaml"
        path.write_text(text, encoding="utf-8")
        return str(path)

    return write


def refusal(argv):
    """The message with which the arguments are refused; always one line."""
    with pytest.raises(ArgumentError) as caught:
        parse_arguments(argv)
    message = str(caught.value)
    assert message and "\n" not in message
    return message


# YAML and command line ------------------------------------------------------------------------------------------------


def test_the_command_line_overrides_the_yaml_file(yaml_file):
    path = yaml_file("seed: 3\nchunk_length: 65\ntranspose: [-2, 3]\nmodel_config: {hidden_size: 16}\n")
    model, data, training = parse_arguments([path, "--seed", "4", "--transpose", "0", "1"])
    assert (training.seed, data.chunk_length, data.transpose) == (4, 65, [0, 1])
    assert model.model_config == {"hidden_size": 16}


def test_without_a_file_the_options_alone_are_enough():
    model, data, training = parse_arguments(["--chunk_length=33", "--model_type", "gpt2", "--packing"])
    assert (model.model_type, data.chunk_length, data.packing, training.output_dir) == ("gpt2", 33, True, "runs/model")


@pytest.mark.parametrize("written", ["2e-3", "2.0e-3", "0.002", "'2e-3'", "+2E-3"])
def test_every_way_to_write_a_float_in_yaml_is_a_float(yaml_file, written):
    training = parse_arguments([yaml_file(f"learning_rate: {written}\n")])[2]
    assert training.learning_rate == 0.002


def test_a_float_inside_a_yaml_map_is_a_float_too(yaml_file):
    model = parse_arguments([yaml_file("model_config: {layer_norm_eps: 1e-6}\n")])[0]
    assert model.model_config == {"layer_norm_eps": 1e-6}


def test_lists_booleans_and_words_for_no_survive_yaml(yaml_file):
    path = yaml_file("transpose: [-5, 6]\npacking: true\neval_strategy: no\nsave_strategy: 'no'\ndo_train: off\n")
    _, data, training = parse_arguments([path])
    assert (data.transpose, data.packing, training.do_train) == ([-5, 6], True, False)
    assert (training.eval_strategy, training.save_strategy) == ("no", "no")


def test_a_key_without_value_keeps_the_default(yaml_file):
    assert parse_arguments([yaml_file("chunk_length:\nmax_pieces: null\n")])[1].chunk_length == 1025


@settings(max_examples=30, deadline=None)  # each builds the parser with its two hundred options
@given(st.dictionaries(st.sampled_from("abc"), st.integers() | st.floats(allow_nan=False) | st.text('a "\\{é')))
def test_a_json_map_comes_through_the_command_line_unchanged(value):
    assert parse_arguments(["--tokenizer_config", json.dumps(value)])[0].tokenizer_config == value


def test_help_names_our_options_and_an_example(capsys):
    make_parser().print_help()
    said = capsys.readouterr().out
    assert all(option in said for option in ("--model_type", "--data_path", "--sample_steps", "--learning_rate"))
    assert "configs/quickstart.yaml" in said


# Refusals -------------------------------------------------------------------------------------------------------------


def test_an_unknown_yaml_key_is_refused_with_a_suggestion(yaml_file):
    message = refusal([yaml_file("lerning_rate: 1.0e-3\n")])
    assert "'lerning_rate'" in message and "'learning_rate'" in message


def test_an_unknown_option_is_refused_with_a_suggestion():
    message = refusal(["--chunk_lenght", "65"])
    assert "--chunk_lenght" in message and "'chunk_length'" in message


@pytest.mark.parametrize("key", ["_n_gpu", "1", "evaluation_strategy"])
def test_yaml_keys_that_are_no_options_are_refused(yaml_file, key):
    assert key in refusal([yaml_file(f"{key}: 1\n")])


def test_options_are_not_abbreviated():
    assert "--chunk" in refusal(["--chunk", "65"])


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("seed", "1.5"),
        ("learning_rate", "fast"),
        ("eval_strategy", "sometimes"),
        ("lr_scheduler_type", "cosin"),
        ("bf16", "maybe"),
        ("model_config", "[1]"),
        ("model_config", "hidden_size=16"),
        ("programs", "organ"),
        ("chunk_length", "1"),
        ("max_pieces", "0"),
        ("num_proc", "0"),
        ("sample_steps", "0"),
        ("per_device_train_batch_size", "0"),
        ("gradient_accumulation_steps", "0"),
        ("remove_unused_columns", "true"),
        ("prediction_loss_only", "true"),
        ("batch_eval_metrics", "true"),
        ("eval_do_concat_batches", "false"),
    ],
)
def test_a_bad_value_is_refused_by_name(yaml_file, option, value):
    assert option in refusal([f"--{option}", value])
    assert option in refusal([yaml_file(f"{option}: {value}\n")])


@pytest.mark.parametrize("values", [["1", "3"], ["-3", "-1"], ["-1"], ["-1", "0", "1"]])
def test_transpose_takes_a_range_around_zero(values):
    assert "transpose" in refusal(["--transpose", *values])


@pytest.mark.parametrize("text", ["- a\n- b\n", "just text", "a: [1", "", "\x00"])
def test_a_file_that_holds_no_map_is_refused(yaml_file, text):
    assert "config.yaml" in refusal([yaml_file(text)])


def test_a_missing_yaml_file_is_named(tmp_path):
    assert "missing.yaml" in refusal([str(tmp_path / "missing.yaml")])


def test_bytes_that_are_no_text_are_refused(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_bytes(b"\xff\xfe\x00\xff")
    with pytest.raises(ArgumentError):
        read_yaml(str(path))


# What depends on other arguments and on the machine -------------------------------------------------------------------


def test_early_stopping_keeps_the_best_checkpoint_by_bits_per_note():
    options = ["--early_stopping_patience", "2", "--eval_strategy", "epoch", "--save_strategy", "epoch"]
    training = parse_arguments(options)[2]
    assert training.load_best_model_at_end
    assert (training.metric_for_best_model, training.greater_is_better) == ("bits_per_note", False)


def test_early_stopping_without_evaluations_says_what_is_missing():
    assert "--eval_strategy" in refusal(["--early_stopping_patience", "2"])


def test_early_stopping_wants_every_evaluated_checkpoint_saved():
    options = ["--early_stopping_patience", "2", "--eval_strategy", "epoch", "--save_strategy"]
    assert "save_strategy" in refusal([*options, "steps"])
    assert parse_arguments([*options, "best"])[2].load_best_model_at_end


def test_the_checkpoint_of_an_interrupt_may_not_give_way_to_the_best():
    options = ["--early_stopping_patience", "2", "--eval_strategy", "epoch", "--save_strategy", "epoch"]
    assert "save_total_limit" in refusal([*options, "--save_total_limit", "1"])


def test_no_samples_are_asked_of_processes_that_share_one_model(monkeypatch, capsys):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    assert parse_arguments(["--sample_steps", "10"])[2].sample_steps is None
    assert "FSDP" in capsys.readouterr().err


@pytest.mark.parametrize("is_fast", [True, False])
def test_bf16_is_used_where_the_hardware_is_fast_at_it(monkeypatch, is_fast):
    monkeypatch.setattr(arguments, "has_fast_bf16", lambda device: is_fast)
    assert parse_arguments([])[2].bf16 is is_fast
    assert parse_arguments(["--bf16", "false"])[2].bf16 is False


def test_one_process_uses_one_gpu_where_there_are_several(monkeypatch):
    original = TrainingArguments.__post_init__

    def on_a_machine_with_four(self):
        original(self)
        self._n_gpu = 4

    monkeypatch.setattr(TrainingArguments, "__post_init__", on_a_machine_with_four)
    assert parse_arguments([])[2].n_gpu == 1


# The Hub --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["checkpoint", "all_checkpoints"])
def test_optimizer_states_are_not_pushed(strategy):
    assert "every_save" in refusal(["--push_to_hub", "true", "--hub_strategy", strategy])
    assert parse_arguments(["--hub_strategy", strategy])[2].push_to_hub is False


def test_a_token_is_not_recorded_with_the_command():
    argv = [
        "a.yaml",
        "--hub_token",
        "hf_1",
        "--seed",
        "3",
        "--hub_token=hf_2",
        "--push_to_hub_token=hf_3",
        "--hub_token",
    ]
    said = ["a.yaml", "--hub_token", "***", "--seed", "3", "--hub_token=***", "--push_to_hub_token=***", "--hub_token"]
    assert without_token(argv) == said
