"""A comparison from its options to its report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import transformers

from pianogen_hf.errors import ArgumentError, DataError, UsageError, one_line
from pianogen_hf.folders import FolderLock
from pianogen_hf.records import recorded
from pianogen_hf.workflows.compare.job import Budget, Job, Matching
from pianogen_hf.workflows.compare.plan import OWN_OPTIONS, common_split, plan_job
from pianogen_hf.workflows.compare.report import write_report
from pianogen_hf.workflows.compare.runner import Runner
from pianogen_hf.workflows.split import Split


@dataclass(frozen=True)
class Request:
    """What a comparison is asked for.

    Attributes:
        recipes: YAML files.
        folder: where models and report go.
        budget: what every model gets. matching: what all of them share.
        places: options of train.py that say where the data lie.
        extra: further options of train.py, of all recipes.
        split_name: the held-out pieces that are reported; None for test where there is any, else validation.
        settings: of the evaluation: samples, sample_notes, orders, seed.
        with_real_music: whether the page lets held-out pieces be heard, too.
        argv: the command line, which is recorded.
    """

    recipes: list[str]
    folder: Path
    budget: Budget
    matching: Matching
    places: list[str]
    extra: list[str]
    split_name: str | None
    settings: dict[str, int]
    with_real_music: bool
    argv: list[str]


def compare(request: Request, dry_run: bool = False) -> int:
    """Plan, train, measure and report; what is done is not done again.

    Args:
        request: what is asked for.
        dry_run: whether only to print the plan.

    Returns:
        0, or 1 if a model failed.

    Raises:
        UsageError, ArgumentError, DataError, FileError: for what a user can mend.
    """
    taken = [word for word in request.extra if word.startswith("--") and word[2:].split("=")[0] in OWN_OPTIONS]
    if taken:
        raise UsageError(f"{taken[0]} is what the comparison decides: leave it out (see pianogen compare --help)")
    transformers.logging.set_verbosity_error()
    if dry_run:
        return _compare(request, dry_run)
    # A second comparison would train the same models into the same files.
    with FolderLock(request.folder / ".lock", request.folder, "--output"):
        return _compare(request, dry_run)


def _compare(request: Request, dry_run: bool) -> int:
    folder, seed = request.folder, ["--seed", str(request.settings["seed"])]
    split = common_split([*request.places, *request.extra, *seed], folder, dry_run)
    counts = split.manifest["counts"]
    split_name = request.split_name or ("test" if counts.get("test") else "validation")
    if not counts.get(split_name):
        raise UsageError(f"the split has no {split_name} pieces: choose another --split, or add files")
    settings = {"side": split_name, **request.settings}
    places = list(request.places)
    if (folder / "split.json").exists():
        places += ["--split_from", str(folder / "split.json")]
    jobs, unusable = _jobs(replace(request, places=places, extra=[*request.extra, *seed]), split)
    runner = Runner(folder, jobs, settings)
    _print_plan(runner, jobs, unusable, split_name, split.manifest)
    if dry_run:
        return 0
    failed = None
    try:
        failed = runner.run()
    finally:  # an interrupted comparison reports what it has
        facts = _facts(request, split.manifest, split_name)
        files = write_report(folder, jobs, unusable, split, settings, facts, request.with_real_music)
    print(_short_table(files[0]))
    print(f"written: {', '.join(map(str, files))}")
    return 1 if failed or unusable else 0


def _jobs(request: Request, split: Split) -> tuple[list[Job], dict[str, str]]:
    """A job per recipe, and the reason by name for those of which none can be made."""
    jobs, unusable = [], {}
    for path in request.recipes:
        try:
            jobs.append(plan_job(path, request.places, request.extra, split, request.matching, request.budget))
        except (ArgumentError, DataError) as error:
            unusable[Path(path).stem] = str(error)
        except Exception as error:  # a fault of one architecture or tokenizer is none of the others
            unusable[Path(path).stem] = f"{type(error).__name__}: {one_line(error)}"
    if not jobs:
        raise ArgumentError(f"no recipe can be used: {next(iter(unusable.values()))}")
    return jobs, unusable


def _print_plan(
    runner: Any, jobs: Sequence[Any], unusable: dict[str, str], split_name: str, manifest: dict[str, Any]
) -> None:
    counts = ", ".join(f"{name} {count}" for name, count in manifest["counts"].items())
    print(f"pieces: {counts}; reported are those of {split_name}; split {manifest['hash'][:12]}")
    todo = runner.todo()
    columns = f"{'model':14s} {'parameters':>11s} {'width':>6s} {'layers':>6s} {'notes/step':>10s}"
    print(f"{columns}  {'encoding':32s} left to do")
    for job in jobs:
        left = ", ".join(task for other, task in todo if other is job) or "nothing"
        notes = job.phases[0].tokens_per_step / job.tokens_per_note
        print(
            f"{job.name:14s} {job.parameters['total']:11,} {job.sizes['hidden_size']:6d} "
            f"{job.sizes['num_hidden_layers']:6d} {notes:10,.0f}  {job.encoder:32s} {left}"
        )
    for name, reason in unusable.items():
        print(f"{name} left out: {reason}")
    if todo:
        minutes = runner.remaining_seconds(todo) / 60
        is_known = jobs[0].budget["seconds"] is not None
        print(f"about {minutes:.0f} minutes" if is_known else "how long it takes is known when one model is trained")


def _facts(request: Request, manifest: dict[str, Any], split_name: str) -> dict[str, str]:
    """How the comparison came about, for the report."""
    matching = request.matching
    counts = ", ".join(
        f"{name} {count} pieces ({manifest['notes'][name]:,} notes)" for name, count in manifest["counts"].items()
    )
    chosen = "the best of them by validation" if matching.evaluations else "the last weights"
    return {
        "command": recorded("pianogen", ["compare", *request.argv]),
        "data": f"{', '.join(manifest['sources'])}: {counts}",
        "split": manifest["hash"],
        "reported": f"{split_name}; {matching.evaluations} evaluations during training, {chosen}",
        "budget": request.budget.words(),
        "size": f"{matching.parameters:,} parameters, embeddings included; layers {matching.layers or 'of the recipe'}"
        f", heads {matching.heads or 'of the recipe'}",
        "batch": f"about {matching.notes_per_step:,} notes in a step; warm-up in the recipe's share of the steps; the "
        "recipe's learning rate times its width over the width here (Muon: the recipe's)",
        "seed": str(request.settings["seed"]),
    }


def _short_table(report: Path) -> str:
    """The first table of the report, for the terminal."""
    lines = report.read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith("|")]
    end = next((number for number, line in enumerate(lines) if line.startswith("| ") and not lines[number + 1]), None)
    first = [line for line in lines[: end + 1 if end is not None else 0] if line.startswith("| ")]
    return "\n".join(first or rows)
