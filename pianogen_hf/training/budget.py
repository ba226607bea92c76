"""A training run with a budget: a clock that counts training alone, a log of it, and a measurement of the pace.

The clock stands still while checkpoints are written and evaluations run, so that what a budget buys does not depend on
how often they happen. CPU seconds are counted beside it: on a machine that others use, too, they are fewer than the
seconds of the clock, and that can be seen.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

try:
    import resource
except ImportError:  # Windows has no such counters
    resource = None  # type: ignore[assignment]

_SKIPPED_STEPS = 1  # it allocates and warms up; it says nothing about the pace


class BudgetCallback(TrainerCallback):
    """Writes a line per log, evaluation and checkpoint to a file, and stops a run that takes too long.

    A line is JSON: stage (the name of its output_dir), step, epoch, seconds and cpu_seconds of training so far,
    peak_memory_bytes, and what the Trainer logged. A resumed run continues at the line of its checkpoint, and a stage
    from those of the stages before it.

    Args:
        path: the file of lines; remove it before a run that begins anew.
        limits: seconds of training after which each stage is stopped, counted from the beginning of the first; None
            for no limit.

    Attributes:
        has_run_out: whether it stopped the run.
    """

    def __init__(self, path: Path, limits: Sequence[float] | None = None) -> None:
        self.path, self.limits = path, limits
        self._limit: float | None = None
        self.has_run_out = False
        self._before = (0.0, 0.0)  # seconds and CPU seconds of the runs that this one resumes
        self._running_since: tuple[float, float] | None = None
        self._counted = [0.0, 0.0]
        self._stage = ""

    def seconds(self) -> tuple[float, float]:
        """Seconds and CPU seconds of training so far."""
        counted = [before + each for before, each in zip(self._before, self._counted, strict=True)]
        if self._running_since is not None:
            counted = [
                each + now - since for each, now, since in zip(counted, _now(), self._running_since, strict=True)
            ]
        return counted[0], counted[1]

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take up the earlier lines, if the run is resumed, and start the clock."""
        stage = Path(str(args.output_dir)).name
        lines = [each for each in read_log(self.path) if each["stage"] != stage or each["step"] <= state.global_step]
        earlier = {each["stage"] for each in lines} - {stage}
        self._stage, self._limit = stage, None if self.limits is None else self.limits[len(earlier)]
        self._before = (lines[-1]["seconds"], lines[-1]["cpu_seconds"]) if lines else (0.0, 0.0)
        self._counted = [0.0, 0.0]
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        self._running_since = _now()

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start the clock again after a pause."""
        if self._running_since is None:
            self._running_since = _now()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Stop the clock where something else than training follows; stop the run where time is up."""
        is_late = self._limit is not None and self.seconds()[0] >= self._limit
        if is_late and state.global_step < state.max_steps:
            self.has_run_out = control.should_training_stop = control.should_log = True
        if control.should_evaluate or control.should_save or control.should_training_stop:
            self._pause()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write the line."""
        if state.is_world_process_zero and "train_runtime" not in (logs or {}):
            self._write(state, logs or {})

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Write a line by which a resumed run knows the time."""
        if state.is_world_process_zero:
            self._write(state, {})

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Write the last line."""
        self._pause()
        if state.is_world_process_zero:
            self._write(state, {})

    def _pause(self) -> None:
        if self._running_since is not None:
            self._counted = [each + more for each, more in zip(self._counted, _since(self._running_since), strict=True)]
            self._running_since = None

    def _write(self, state: TrainerState, logs: dict[str, float]) -> None:
        seconds, cpu_seconds = self.seconds()
        line = {
            "stage": self._stage,
            "step": state.global_step,
            "epoch": state.epoch,
            "seconds": round(seconds, 3),
            "cpu_seconds": round(cpu_seconds, 3),
            "peak_memory_bytes": peak_memory_bytes(),
            **{name: value for name, value in logs.items() if name != "epoch"},
        }
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


class Measured(Exception):
    """Ends a run that was there to be timed.

    Args:
        seconds_per_step: mean over the steps after the first few.
        steps: how many these were.
    """

    def __init__(self, seconds_per_step: float, steps: int) -> None:
        super().__init__(f"{seconds_per_step:.3f} seconds per step")
        self.seconds_per_step, self.steps = seconds_per_step, steps


class PaceCallback(TrainerCallback):
    """Times the steps of a run that is ended by `Measured` after a while.

    Args:
        seconds: how long to measure. Three steps are timed at least; fewer if they take three times as long.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._began = 0.0

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Take the time; raise `Measured` when there was enough of it."""
        steps = state.global_step - _SKIPPED_STEPS
        if steps <= 0:
            self._began = time.monotonic()
            return
        elapsed = time.monotonic() - self._began
        if elapsed >= self.seconds and (steps >= 3 or elapsed >= 3 * self.seconds):
            raise Measured(elapsed / steps, steps)


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines that a `BudgetCallback` wrote, oldest first, without a last one that a killed run left unfinished."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def peak_memory_bytes() -> int | None:
    """The most memory that this process has had: of the accelerator where there is one; None where none tells."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    if resource is None:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in kilobytes


def _now() -> tuple[float, float]:
    """The clock, and the CPU seconds of this process with all its threads."""
    return time.monotonic(), time.process_time()


def _since(then: tuple[float, float]) -> tuple[float, float]:
    now = _now()
    return now[0] - then[0], now[1] - then[1]
