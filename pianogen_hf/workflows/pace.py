"""How long a run is to be, in minutes: its first steps are timed, and the number of steps follows from that."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pianogen_hf.errors import ArgumentError
from pianogen_hf.records import read_json
from pianogen_hf.training.budget import Measured, PaceCallback
from pianogen_hf.training.stages import Stage, resume_point

_TIMED_SHARE, _LEAST_SEC, _MOST_SEC = 0.05, 2.0, 20.0  # of the minutes, for timing
# A run that is there to be timed: without end, evaluation, checkpoint or sample.
_TRIAL = {
    "max_steps": "1000000",
    "eval_strategy": "no",
    "save_strategy": "no",
    "load_best_model_at_end": "false",
    "report_to": "none",
    "push_to_hub": "false",
    "disable_tqdm": "true",
    "logging_strategy": "no",
}


def within_minutes(stage: Stage, train_stage: Callable[[Stage, list[PaceCallback]], int]) -> Stage:
    """The stage with `--max_steps` in the place of `--minutes`; one without minutes as it is.

    A run that is resumed has the number of steps that it began with.

    Args:
        stage: of the run.
        train_stage: trains a stage, with callbacks.

    Raises:
        ArgumentError: if the recipe has stages, which would have to share the minutes; or as for `resume_point`.
    """
    args = stage.arguments()[2]
    if args.minutes is None:
        return stage
    if stage.total > 1:
        raise ArgumentError("minutes are for a recipe without stages: give max_steps in each of them")
    checkpoint = resume_point(args)
    if checkpoint is None:
        steps = _timed_steps(stage, args.minutes, train_stage)
    else:
        steps = int(read_json(Path(checkpoint, "trainer_state.json"))["max_steps"])
    return replace(stage, argv=[*without_minutes(stage.argv), "--max_steps", str(steps)], minutes=args.minutes)


def without_minutes(argv: list[str]) -> list[str]:
    """The command line without `--minutes` and its value."""
    kept = [each for index, each in enumerate(argv) if "--minutes" not in (each, argv[index - 1] if index else "")]
    return [each for each in kept if not each.startswith("--minutes=")]


def _timed_steps(stage: Stage, minutes: float, train_stage: Callable[[Stage, list[PaceCallback]], int]) -> int:
    """Steps that take so many minutes, as the first of them do."""
    seconds = min(max(60 * minutes * _TIMED_SHARE, _LEAST_SEC), _MOST_SEC)
    trial = Path(tempfile.mkdtemp(prefix="pianogen-pace-"))
    options = [*without_minutes(stage.argv), *(part for name, value in _TRIAL.items() for part in (f"--{name}", value))]
    try:
        train_stage(replace(stage, argv=options, folder=trial, run_folder=trial), [PaceCallback(seconds)])
    except Measured as measured:
        steps = max(round(60 * minutes / measured.seconds_per_step), 1)
        print(f"{minutes:g} minutes are {steps:,} steps of {measured.seconds_per_step:.2f} s each")
        return steps
    finally:
        shutil.rmtree(trial, ignore_errors=True)
    raise ArgumentError("the run was interrupted while its steps were timed")
