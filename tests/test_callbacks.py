import os
import signal
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel, TrainerCallback, TrainerControl, TrainerState

from pianogen_hf.training import callbacks
from pianogen_hf.training.arguments import PianoTrainingArguments
from pianogen_hf.training.callbacks import InterruptCallback, SampleCallback
from pianogen_hf.training.collator import ChunkCollator
from pianogen_hf.training.trainer import PianoTrainer


@pytest.fixture(autouse=True)
def restored_signals():
    """No test leaves the run deaf to Ctrl-C, or finds it so: a shell has its background jobs ignore that."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def state_at(step, is_main=True, max_steps=100):
    return TrainerState(global_step=step, max_steps=max_steps, is_world_process_zero=is_main)


# Samples --------------------------------------------------------------------------------------------------------------


@pytest.fixture
def arguments(tmp_path):
    return SimpleNamespace(output_dir=str(tmp_path), device=torch.device("cpu"), world_size=1, save_strategy="no")


def test_a_sample_is_written_every_so_many_steps_by_the_main_process_only(arguments, tmp_path):
    paths = []
    callback = SampleCallback(lambda model, path: paths.append(path), steps=3)
    for step in range(1, 8):
        for is_main in (True, False):
            callback.on_step_end(arguments, state_at(step, is_main), TrainerControl(), model=nn.Linear(1, 1))
    assert paths == [tmp_path / "samples" / "step-000003", tmp_path / "samples" / "step-000006"]


def test_the_model_samples_in_eval_mode_and_goes_on_training(arguments):
    model, modes = nn.Dropout(), []
    callback = SampleCallback(lambda model, path: modes.append(model.training), steps=1)
    callback.on_step_end(arguments, state_at(1), TrainerControl(), model=model)
    assert modes == [False] and model.training


def test_a_wrapped_model_samples_unwrapped(arguments):
    inner, seen = nn.Linear(1, 1), []
    wrapped = nn.Module()
    wrapped.module = inner
    SampleCallback(lambda model, path: seen.append(model), steps=1).on_step_end(
        arguments, state_at(1), TrainerControl(), model=wrapped
    )
    assert seen == [inner]


def test_drawing_a_sample_does_not_change_what_training_draws_next(arguments):
    def draw(model, path):
        torch.manual_seed(1)
        torch.rand(3)

    model = nn.Linear(1, 1)
    torch.manual_seed(0)
    expected = torch.rand(4)
    torch.manual_seed(0)
    SampleCallback(draw, steps=1).on_step_end(arguments, state_at(1), TrainerControl(), model=model)
    assert torch.equal(torch.rand(4), expected)


# Interrupts -----------------------------------------------------------------------------------------------------------


def begun(arguments, is_main=True):
    callback = InterruptCallback()
    callback.on_train_begin(arguments, state_at(0, is_main), TrainerControl())
    return callback


def after_step(callback, arguments, step=1, **control):
    control = TrainerControl(**control)
    callback.on_step_end(arguments, state_at(step), control)
    return control.should_save, control.should_training_stop


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_asks_for_a_checkpoint_and_the_end_after_the_step(arguments, number):
    callback = begun(arguments)
    assert after_step(callback, arguments) == (False, False)
    os.kill(os.getpid(), number)
    assert after_step(callback, arguments) == (True, True)
    assert callback.has_stopped


def test_the_signal_passed_on_by_a_launcher_is_no_second_signal(arguments):
    callback = begun(arguments)
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)
    assert after_step(callback, arguments) == (True, True)


def test_a_second_signal_stops_at_once(arguments, monkeypatch):
    monkeypatch.setattr(callbacks, "_SECOND_SIGNAL_AFTER", 0.0)
    begun(arguments)
    signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_after_training_the_signals_mean_what_they_meant_before(arguments):
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    callback = begun(arguments)
    assert signal.getsignal(signal.SIGINT) != before[0]
    callback.on_train_end(arguments, state_at(1), TrainerControl())
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_only_the_main_process_says_what_happens(arguments, capfd):
    for is_main in (True, False):
        callback = begun(arguments, is_main)
        signal.raise_signal(signal.SIGTERM)
        callback.on_train_end(arguments, state_at(1), TrainerControl())
        assert ("SIGTERM: saving a checkpoint" in capfd.readouterr().err) is is_main


def test_a_signal_in_the_last_step_lets_the_run_end_by_itself(arguments):
    callback = begun(arguments)
    signal.raise_signal(signal.SIGINT)
    assert after_step(callback, arguments, step=100) == (False, False)
    assert not callback.has_stopped


def test_no_stop_where_the_checkpoint_would_be_dropped_for_not_being_the_best(arguments):
    arguments.save_strategy = "best"
    callback = begun(arguments)
    signal.raise_signal(signal.SIGINT)
    assert after_step(callback, arguments, should_evaluate=True) == (False, False)
    assert after_step(callback, arguments) == (True, True)


class RaiseSignalAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            signal.raise_signal(signal.SIGINT)


@pytest.mark.parametrize("strategy", ["no", "steps", "epoch", "best"])
def test_an_interrupted_training_leaves_a_checkpoint_whatever_the_strategy(tmp_path, strategy):
    """Evaluations fall on every second step, and the first is the best: the learning rate is absurd on purpose."""
    rows = [{"input_ids": [1, 5 + row % 3, 6, 7], "first_label": 1} for row in range(12)]
    config = GPT2Config(vocab_size=9, n_embd=8, n_layer=1, n_head=1, n_positions=8)
    interrupt = InterruptCallback()
    trainer = PianoTrainer(
        eval_notes=1, model=GPT2LMHeadModel(config), train_dataset=rows, eval_dataset=rows[:2],
        data_collator=ChunkCollator(0), callbacks=[interrupt, RaiseSignalAt(3)],
        args=PianoTrainingArguments(
            output_dir=str(tmp_path), max_steps=12, per_device_train_batch_size=2, learning_rate=10.0, bf16=False,
            report_to="none", disable_tqdm=True, save_strategy=strategy, save_steps=2, eval_steps=2,
            eval_strategy="epoch" if strategy == "epoch" else "steps", metric_for_best_model="bits_per_note",
        ),
    )  # fmt: skip
    trainer.train()
    assert interrupt.has_stopped and trainer.state.global_step in (4, 5)
    assert (tmp_path / f"checkpoint-{trainer.state.global_step}" / "trainer_state.json").exists()
