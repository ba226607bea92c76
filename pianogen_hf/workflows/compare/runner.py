"""Working through the plan of a comparison: a process per task and model, resumable, with an estimate of its end.

Layout of a comparison's folder: `split.json`, `report.md`, `report.html`, and for each model a folder with `job.json`
(what it is), the files of its tasks (`worker.py`), `output.log`, and train.py's own folder `model`.
"""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from pianogen_hf.errors import FileError
from pianogen_hf.folders import moved_aside
from pianogen_hf.records import read_json
from pianogen_hf.tokenizers.files import write_whole
from pianogen_hf.training.budget import read_log
from pianogen_hf.workflows.compare.job import Job

# In their order, with the file that says that one is done. A later one begins anew where an earlier one did.
TASKS = {"measure": "pace.json", "train": "training.json", "evaluate": "evaluation.json"}
_FAILED = "failed.json"
# Seconds that a task takes beside its budget, until one was done and is known better.
_FIRST_GUESS = {"measure": 20.0, "train": 30.0, "evaluate": 60.0}
_TOKENS_GUESS = 60.0  # seconds, for a budget of tokens, until a model was trained
_POLL = 0.5  # seconds
_LOG_EVERY = 60.0  # seconds between lines of progress where nobody watches


class Runner:
    """Does what is not done yet.

    Args:
        folder: of the comparison.
        jobs: its models.
        settings: of the evaluation, JSON-able; with others, models are evaluated anew, not trained anew.
    """

    def __init__(self, folder: Path, jobs: Sequence[Job], settings: dict[str, Any]) -> None:
        self.folder, self.jobs, self.settings = folder, jobs, settings
        self._taken: dict[str, list[float]] = {task: [] for task in TASKS}

    def todo(self) -> list[tuple[Job, str]]:
        """Tasks that are left, in their order."""
        return [(job, task) for job in self.jobs for task in _tasks(job) if not self._is_done(job, task)]

    def remaining_seconds(self, tasks: Sequence[tuple[Job, str]]) -> float:
        """How long these tasks will take, as far as it is known."""
        return sum(self._estimate(job, task) for job, task in tasks)

    def run(self) -> dict[str, str]:
        """Do them; returns the reason by name for every model that failed. An interrupt is a KeyboardInterrupt."""
        # A process that is only asked to end would leave the one that trains behind.
        before = signal.signal(signal.SIGTERM, _interrupt)
        try:
            return self._run()
        finally:
            signal.signal(signal.SIGTERM, before)

    def _run(self) -> dict[str, str]:
        failed: dict[str, str] = {}
        todo = self.todo()
        for job in self.jobs:
            self._prepare(job)
        with tqdm(total=100, bar_format="{desc} |{bar}| {n:.0f}% {elapsed}{postfix}", disable=not todo) as bar:
            began = time.monotonic()
            while todo:
                (job, task), todo = todo[0], todo[1:]
                reason = self._run_task(
                    job, task, _Progress(bar, began, lambda rest=todo: self.remaining_seconds(rest))
                )
                if reason is not None:
                    failed[job.name] = f"{task}: {reason}"
                    write_whole(self.folder / job.name / _FAILED, json.dumps(failed[job.name]).encode())
                    bar.write(f"{job.name} failed to {failed[job.name]} (see {self.folder / job.name / 'output.log'})")
                    todo = [(other, task) for other, task in todo if other is not job]
        return failed

    def _is_done(self, job: Job, task: str) -> bool:
        try:
            done = read_json(self.folder / job.name / TASKS[task])
        except FileError:
            return False
        wanted = self.settings if task == "evaluate" else done.get("settings")
        return done["job"] == job.hash() and done.get("settings") == wanted

    def _prepare(self, job: Job) -> None:
        """The model's folder, with the job; one of another job is kept under another name."""
        folder = self.folder / job.name
        written = folder / "job.json"
        if written.exists() and read_json(written)["hash"] != job.hash():
            aside = moved_aside(folder)
            print(f"{job.name} was of another plan: moved to {aside}")
        job.save(written)
        write_whole(folder / "settings.json", json.dumps(self.settings, sort_keys=True).encode())
        (folder / _FAILED).unlink(missing_ok=True)

    def _estimate(self, job: Job, task: str) -> float:
        taken = self._taken[task]
        beside = sum(taken) / len(taken) if taken else _FIRST_GUESS[task]
        if task != "train":
            return beside
        if job.budget["seconds"] is not None:
            return job.budget["seconds"] + beside
        return beside if taken else beside + _TOKENS_GUESS

    def _run_task(self, job: Job, task: str, progress: _Progress) -> str | None:
        """Run one task in a process of its own; returns why it failed, in one line, or None."""
        folder = self.folder / job.name
        began = time.monotonic()
        estimate = self._estimate(job, task)
        with (folder / "output.log").open("ab") as log:
            start = log.tell()
            command = [sys.executable, "-m", "pianogen_hf.workflows.compare.worker", task, str(folder)]
            process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
            try:
                code = _wait(process, lambda: progress.show(job, task, folder, time.monotonic() - began, estimate))
            except BaseException:
                _end(process)
                raise
        if code == 130:
            raise KeyboardInterrupt
        if code == 0 and self._is_done(job, task):
            beside = job.budget["seconds"] or 0.0 if task == "train" else 0.0
            self._taken[task].append(max(time.monotonic() - began - beside, 1.0))
            return None
        return _reason(code, (folder / "output.log").read_bytes()[start:].decode("utf-8", "replace"))


class _Progress:
    """The line that tells where the whole plan is.

    Args:
        bar: of the whole plan.
        began: when this run began, by the clock.
        remaining: seconds that the tasks after this one will take.
    """

    def __init__(self, bar: tqdm, began: float, remaining: Any) -> None:
        self.bar, self.began, self.remaining = bar, began, remaining
        self._shown = -math.inf

    def show(self, job: Job, task: str, folder: Path, elapsed: float, estimate: float) -> None:
        """Renew it; in a log, which keeps all that was ever shown, not as often as on a screen."""
        if not sys.stderr.isatty() and time.monotonic() - self._shown < _LOG_EVERY:
            return
        self._shown = time.monotonic()
        rest = max(estimate - elapsed, 0.02 * estimate) + self.remaining()
        passed = time.monotonic() - self.began
        words = {"measure": "measuring the pace", "train": "training", "evaluate": "evaluating"}[task]
        if task == "train" and (lines := read_log(folder / "training_log.jsonl")):
            words += f", step {lines[-1]['step']}"
        self.bar.set_description_str(f"{job.name}: {words}", refresh=False)
        self.bar.set_postfix_str(
            f"ends about {time.strftime('%H:%M', time.localtime(time.time() + rest))}", refresh=False
        )
        self.bar.n = max(100 * passed / (passed + rest), self.bar.n)
        self.bar.refresh()


def _interrupt(number: int, frame: Any) -> None:
    raise KeyboardInterrupt


def failure_of(folder: Path) -> str | None:
    """Why the model of this folder failed last time, or None."""
    try:
        return read_json(folder / _FAILED)
    except FileError:
        return None


def _tasks(job: Job) -> list[str]:
    """A budget of tokens needs no measurement."""
    return [task for task in TASKS if task != "measure" or job.budget["seconds"] is not None]


def _wait(process: subprocess.Popen, show: Any) -> int:
    while True:
        try:
            return process.wait(_POLL)
        except subprocess.TimeoutExpired:
            show()


def _end(process: subprocess.Popen) -> None:
    """Let it save. Ctrl-C may have reached it, too: training takes two signals within a second for one."""
    if process.poll() is None:
        process.terminate()
    try:
        process.wait(120)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        process.kill()
        process.wait()


def _reason(code: int, output: str) -> str:
    """One line of why a process ended as it did."""
    if code < 0:
        name = signal.Signals(-code).name
        return f"its process was ended by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.startswith("error: ")]
    return (errors or lines or [f"exit code {code}"])[-1].removeprefix("error: ")[:300]
