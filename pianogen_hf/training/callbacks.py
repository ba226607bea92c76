"""Callbacks: samples during training, and an interrupt that loses nothing."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

_WARM_UP, _TIMED = 2, 8  # steps that say nothing of the pace, and steps that tell it
_WORTH_SAYING_SEC = 60.0  # a shorter run is over before one has read how long it takes
_SECOND_SIGNAL_AFTER = 1.0  # seconds: a launcher passes on the Ctrl-C that its processes have already got themselves


class SampleCallback(TrainerCallback):
    """Writes a generated sample every so many steps.

    Args:
        write_sample: called with the model and a path without suffix; generates and writes the files.
        steps: how often.
    """

    def __init__(self, write_sample: Callable[[Any, Path], None], steps: int) -> None:
        self.write_sample, self.steps = write_sample, steps

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: Any = None, **kwargs: Any
    ) -> None:
        """Write a sample if it is time."""
        if state.global_step % self.steps or not state.is_world_process_zero:
            return
        model = getattr(model, "module", model)  # generation wants the model itself, not its DDP wrapper
        was_training = model.training
        model.eval()
        devices = [args.device] if args.device.type == "cuda" else []
        with torch.random.fork_rng(devices):  # drawing a sample must not change what training draws next
            self.write_sample(model, Path(str(args.output_dir)) / "samples" / f"step-{state.global_step:06d}")
        model.train(was_training)


class DurationCallback(TrainerCallback):
    """Says how long the run will take, once some steps have shown it; of more than a day, also what to change."""

    def __init__(self) -> None:
        self._first_step: int | None = None
        self._began = 0.0

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Take the time after the first steps, which warm up, and speak a few steps later."""
        if self._first_step is None:
            self._first_step = state.global_step
        done = state.global_step - self._first_step
        if done == _WARM_UP:
            self._began = time.monotonic()
        if done != _WARM_UP + _TIMED or not state.is_world_process_zero:
            return
        pace = (time.monotonic() - self._began) / _TIMED
        seconds = pace * (state.max_steps - state.global_step)
        if seconds > _WORTH_SAYING_SEC:
            print(f"about {in_words(seconds)} to go, {pace:.2f} s a step, without evaluations{_advice(seconds)}")


def in_words(seconds: float) -> str:
    """A length of time as one says it."""
    minutes = seconds / 60
    if minutes < 90:
        return f"{minutes:.0f} minutes"
    return f"{minutes / 60:.1f} hours" if minutes < 48 * 60 else f"{minutes / 60 / 24:.1f} days"


def _advice(seconds: float) -> str:
    if seconds < 24 * 3600:
        return ""
    return ": for less, --minutes 60 trains for an hour, a smaller model_config or max_steps for whatever that takes"


class EpochCallback(TrainerCallback):
    """Tells what is other in every epoch which one begins; a resumed run says the one it is in.

    Args:
        *set_epoch: called with the epoch: methods of a dataset, a sampler, a collator.
    """

    def __init__(self, *set_epoch: Callable[[int], None]) -> None:
        self.set_epoch = set_epoch

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Turn to the epoch."""
        for set_epoch in self.set_epoch:
            set_epoch(int(state.epoch or 0))


class InterruptCallback(TrainerCallback):
    """On SIGINT or SIGTERM finish the step, save a checkpoint and stop; a second signal stops at once.

    Attributes:
        has_stopped: whether it stopped the training.
    """

    def __init__(self) -> None:
        self.has_stopped = False
        self._first_signal_at: float | None = None
        self._previous: dict[int, Any] = {}
        self._speaker = 0  # process id of the one that tells the user; a data loader's worker inherits the handler

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take over the signals."""
        self._speaker = os.getpid() if state.is_world_process_zero else 0
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if self._first_signal_at is None:
            self._first_signal_at = now
            if self._speaker == os.getpid():  # not print, which may be what the signal came in the middle of
                name = signal.Signals(number).name
                os.write(2, f"\n{name}: saving a checkpoint after this step, then stopping\n".encode())
        elif now - self._first_signal_at > _SECOND_SIGNAL_AFTER:
            self._restore()
            signal.raise_signal(number)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Ask the trainer to save and stop."""
        if not self._is_asked(args) or state.global_step >= state.max_steps:
            return  # after the last step the run ends by itself, and complete
        if control.should_evaluate and args.save_strategy == "best":
            return  # this strategy saves nothing after an evaluation that is not the best: stop one step later
        control.should_save = control.should_training_stop = self.has_stopped = True

    def _is_asked(self, args: TrainingArguments) -> bool:
        """Whether any process got a signal: all must stop at one step, or they would wait for one another."""
        asked = torch.tensor(self._first_signal_at is not None, dtype=torch.int32)
        if args.world_size > 1:
            asked = asked.to(args.device)
            torch.distributed.all_reduce(asked, op=torch.distributed.ReduceOp.MAX)
        return bool(asked)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Give the signals back."""
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}
