"""Stages of one run: where each of them lies, what it starts from, and which are done.

The last stage is the run's result and lies in `output_dir`; those before it lie in `output_dir/stage-1` and so on.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pianogen_hf.errors import ArgumentError, FileError
from pianogen_hf.records import read_json
from pianogen_hf.training.arguments import Arguments, PianoTrainingArguments, parse_stages


@dataclass(frozen=True)
class Stage:
    """One stage, or the only one.

    Attributes:
        argv: the command line of the whole run.
        number: from 1. total: of how many.
        folder: where it lies. run_folder: where the whole run does.
        earlier: the folders of the stages before it, the nearest first.
        resumes: whether it resumes from a checkpoint of its own.
        is_new_run: whether it is the first of a run that begins anew, before which an earlier run is moved aside.
        minutes: that it was asked for, where the command line now has the steps that they are.
    """

    argv: list[str]
    number: int
    total: int
    folder: Path
    run_folder: Path
    earlier: list[Path]
    resumes: bool
    is_new_run: bool
    minutes: float | None = None

    @property
    def name(self) -> str:
        """What a user reads of it."""
        return f"stage {self.number} of {self.total}"

    def arguments(self) -> Arguments:
        """Its arguments, parsed now, since parsing sets up the devices and the precision of this process."""
        model, data, training = parse_stages(
            self.argv if self.total == 1 else [*self.argv, "--stage", str(self.number)]
        )[0]
        training.output_dir = str(self.folder)
        training.minutes = training.minutes if self.minutes is None else self.minutes
        if not self.resumes:
            training.resume_from_checkpoint = None
        if self.number < self.total:
            training.push_to_hub = False  # a step on the way is nothing to publish
        if self.earlier:
            model.model_name_or_path, model.model_revision = str(self.earlier[0]), None
            data.split_from = [*map(str, self.earlier), *(data.split_from or [])]
        return model, data, training


def plan_stages(argv: list[str]) -> list[Stage]:
    """The stages that are to be trained, in order: all, or where the run is resumed those that are not done.

    It is decided once, before anything is trained, so that all processes of a run decide alike.

    Raises:
        ArgumentError: for arguments of any stage that can't be used.
    """
    parsed = parse_stages(argv)
    total, training = len(parsed), parsed[-1][2]
    folders = [*(Path(training.output_dir, f"stage-{number}") for number in range(1, total)), Path(training.output_dir)]
    wanted = str(training.resume_from_checkpoint or "").lower()
    is_resumed = wanted not in ("", "false", "none")
    if is_resumed and total > 1 and wanted != "true":
        raise ArgumentError("a run in stages finds its own checkpoint: write --resume_from_checkpoint true")
    done = 0
    while is_resumed and done < total - 1 and (folders[done] / "metrics.json").exists():
        done += 1
    # A first stage without checkpoint is refused where it is resumed; a later one begins anew from the stage before.
    resumes = is_resumed and (done == 0 or _has_checkpoint(folders[done]))
    return [
        Stage(
            argv,
            number=index + 1,
            total=total,
            folder=folders[index],
            run_folder=folders[-1],
            earlier=folders[:index][::-1],
            resumes=resumes and index == done,
            is_new_run=index == 0 and not is_resumed,
        )
        for index in range(done, total)
    ]


def resume_point(args: PianoTrainingArguments) -> str | None:
    """The checkpoint to resume from, or None for a new run.

    Raises:
        ArgumentError: if there is none, or it is no checkpoint.
    """
    wanted = args.resume_from_checkpoint
    if wanted is None or str(wanted).lower() in ("false", "none", ""):
        return None
    if str(wanted).lower() != "true":
        if not is_complete(Path(wanted)):
            raise ArgumentError(f"{wanted} is no checkpoint of an interrupted run (it holds no trainer_state.json)")
        return wanted
    complete = [path for path in Path(args.output_dir).glob("checkpoint-[0-9]*") if is_complete(path)]
    if not complete:
        raise ArgumentError(f"{args.output_dir} holds no checkpoint to resume from: leave out --resume_from_checkpoint")
    return str(max(complete, key=lambda path: int(path.name.split("-")[1])))


def is_complete(checkpoint: Path) -> bool:
    """Whether a checkpoint was written to its end.

    Its state is written last, and without it, or with half of it, the run was killed while it saved.
    """
    try:
        return "global_step" in read_json(checkpoint / "trainer_state.json", default={})
    except FileError:
        return False


def _has_checkpoint(folder: Path) -> bool:
    return any(map(is_complete, folder.glob("checkpoint-[0-9]*")))


def earlier_stages(stage: Stage) -> list[dict[str, Any]]:
    """What the stages before this one measured: source, steps, seconds and scores of each, the first one first.

    Raises:
        ArgumentError: if the record of one is gone or broken.
    """
    return [_record(folder) for folder in reversed(stage.earlier)]


def stage_record(metrics: dict[str, Any]) -> dict[str, Any]:
    """What a later stage keeps of the metrics of this one."""
    names = ("source", "source_weights", "steps", "batch_size", "train_seconds", "validation")
    return {name: metrics[name] for name in names if name in metrics}


def _record(folder: Path) -> dict[str, Any]:
    try:
        return stage_record(read_json(folder / "metrics.json"))
    except (FileError, TypeError) as error:
        raise ArgumentError(f"{folder / 'metrics.json'} can't be read: train the stages anew") from error
