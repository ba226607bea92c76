"""The clock of a training run with a budget, and the measurement of its pace, in a real Trainer."""

import json
import time

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainerCallback, TrainingArguments

from pianogen_hf.training.budget import BudgetCallback, Measured, PaceCallback, read_log

STEP, EVALUATION = 0.02, 0.3  # seconds


class Sleeper(nn.Module):
    """A model whose step takes a known time at least, and its evaluation far more."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x, labels=None):
        time.sleep(STEP if self.training else EVALUATION)
        return {"loss": (self.weight * x).mean(), "logits": x}


def trainer(folder, callbacks, **changes):
    rows = [{"x": torch.ones(1), "labels": torch.ones(1)}] * 4
    values = {
        "max_steps": 8,
        "logging_steps": 2,
        "per_device_train_batch_size": 2,
        "per_device_eval_batch_size": 4,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        **changes,
    }
    args = TrainingArguments(output_dir=str(folder), **values)
    return Trainer(Sleeper(), args, train_dataset=rows, eval_dataset=rows, callbacks=callbacks)


def test_the_clock_counts_training_and_not_evaluation(tmp_path):
    path = tmp_path / "log.jsonl"
    trainer(tmp_path / "run", [BudgetCallback(path)], eval_strategy="steps", eval_steps=2).train()
    lines = read_log(path)
    assert [line["step"] for line in lines if "loss" in line] == [2, 4, 6, 8]
    assert all(line["stage"] == "run" and line["peak_memory_bytes"] > 0 for line in lines)
    seconds = [line["seconds"] for line in lines]
    assert seconds == sorted(seconds) and seconds[-1] >= 8 * STEP
    # Four evaluations lie between the lines; each took longer than the clock may have gone on meanwhile.
    before, after = (
        next(line["seconds"] for line in lines if line["step"] == 2 and key in line) for key in ("loss", "eval_loss")
    )
    assert after - before < EVALUATION


def test_a_run_that_is_too_slow_is_stopped_and_says_so(tmp_path):
    clock = BudgetCallback(tmp_path / "log.jsonl", limits=[3 * STEP])
    run = trainer(tmp_path / "run", [clock], max_steps=1000)
    run.train()
    assert clock.has_run_out and 1 <= run.state.global_step < 1000
    assert read_log(tmp_path / "log.jsonl")[-1]["step"] == run.state.global_step


def test_a_resumed_run_goes_on_from_the_line_of_its_checkpoint(tmp_path):
    path = tmp_path / "log.jsonl"

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 5

    saving = {"save_strategy": "steps", "save_steps": 4}
    trainer(tmp_path / "run", [Stop(), BudgetCallback(path)], **saving).train()
    before = read_log(path)
    assert before[-1]["step"] == 5
    trainer(tmp_path / "run", [BudgetCallback(path)], **saving).train(resume_from_checkpoint=True)
    lines = read_log(path)
    kept = [line for line in before if line["step"] <= 4]
    assert lines[: len(kept)] == kept and [line["step"] for line in lines if "loss" in line] == [2, 4, 6, 8]
    assert lines[-1]["seconds"] >= kept[-1]["seconds"] + 4 * STEP


def test_a_stage_goes_on_from_the_lines_of_the_one_before_and_has_its_own_limit(tmp_path):
    path = tmp_path / "log.jsonl"
    clock = BudgetCallback(path, limits=[100.0, 0.0])
    trainer(tmp_path / "stage-1", [clock]).train()
    assert not clock.has_run_out
    trainer(tmp_path / "model", [clock]).train()
    lines = read_log(path)
    assert clock.has_run_out and list(dict.fromkeys(line["stage"] for line in lines)) == ["stage-1", "model"]
    assert lines[-1]["step"] == 1 and lines[-1]["seconds"] >= 9 * STEP


def test_the_pace_is_that_of_the_steps(tmp_path):
    with pytest.raises(Measured) as found:
        trainer(tmp_path / "run", [PaceCallback(5 * STEP)], max_steps=1000).train()
    assert found.value.seconds_per_step >= STEP and found.value.steps >= 3


def test_steps_that_are_very_long_are_not_waited_for(tmp_path):
    with pytest.raises(Measured) as found:
        trainer(tmp_path / "run", [PaceCallback(STEP / 10)], max_steps=1000).train()
    assert found.value.steps == 1


def test_a_line_that_a_killed_run_left_unfinished_is_dropped(tmp_path):
    path = tmp_path / "log.jsonl"
    assert read_log(path) == []
    path.write_text(json.dumps({"step": 1}) + '\n{"step": 2, "los')
    assert read_log(path) == [{"step": 1}]
