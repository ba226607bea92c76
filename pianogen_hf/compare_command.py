"""`pianogen compare`: train recipes at one size and one budget, measure them alike, write one report. Wiring only."""

from __future__ import annotations

import argparse
import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pianogen_hf.command_line import OneLineParser, UsageError, recorded

_DESCRIPTION = """Train every recipe at the same number of parameters, with the same notes in a step and the same
budget, on the same split; measure all of them on the same held-out pieces; and write one report: DIR/report.md and
DIR/report.html, a page that needs nothing but a browser, with tables, loss curves and music to see and to hear.

Width and feed-forward part are chosen so that all parameters, embeddings included, are as many as --parameters says;
layers and heads stay the recipe's. Warm-up and learning rate are scaled with the steps and the width. Each model is
trained by train.py in a process of its own: if one fails, the others go on, and the report says why."""
_EPILOG = """Any other option of train.py is given to all recipes alike, for example --transpose -5 6 or --bf16 true.

Interrupted, the same command goes on; finished, it trains nothing. With other recipes added it trains those alone.

examples:
  pianogen compare configs/v*.yaml --source bach --minutes 20 --parameters 1M --output runs/compare
  pianogen compare configs/v2.yaml configs/v7-remi.yaml --source folder=~/midi --tokens 20M --output runs/compare
  pianogen compare configs/*.yaml --source maestro=~/maestro-v3.0.0 --minutes 60 --output runs/compare --dry_run"""


def make_parser() -> argparse.ArgumentParser:
    """The options of `pianogen compare`."""
    parser = OneLineParser(
        prog="pianogen compare",
        usage="pianogen compare RECIPE.yaml ... --source SOURCE ... (--minutes M | --tokens N) --output DIR [OPTIONS]",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("recipes", nargs="+", metavar="RECIPE.yaml", help="as for train.py; a model is called as its file is")
    add("--output", required=True, metavar="DIR", help="where models and report go")
    budget = parser.add_mutually_exclusive_group(required=True)
    budget.add_argument("--minutes", type=_positive_float, help="of training for each model, evaluations not counted; "
        "a short measurement before it finds how many steps that is")  # fmt: skip
    budget.add_argument("--tokens", type=_count, help="ids that each model learns to predict, e.g. 20M")
    add("--parameters", type=_count, default=5_000_000, help="of each model, within 5 per cent (default: 5M)")
    add("--layers", type=_positive, help="of every model, instead of its recipe's")
    add("--heads", type=_positive, help="of every model, instead of its recipe's")
    add("--notes_per_step", type=_positive, default=1024, help="notes in an optimizer step, about (default: 1024)")
    add("--evaluations", type=_not_negative, default=4, help="on the validation side during training; the best of them "
        "is kept. 0: none, the last weights are kept (default: 4)")  # fmt: skip
    add("--side", choices=("validation", "test"), help="the held-out pieces that are reported (default: test where the "
        "split has such pieces, since the weights were chosen by validation)")  # fmt: skip
    add("--samples", type=_positive, default=8, help="pieces that each model writes (default: 8)")
    add("--sample_notes", type=_positive, default=150, help="notes in each (default: 150)")
    add("--no_real_music", action="store_true", help="leave the held-out pieces out of report.html, where their "
        "licence does not let you pass them on")  # fmt: skip
    add("--orders", type=_positive, default=4, help="random masks per window of masked models (default: 4)")
    add("--seed", type=_not_negative, default=0, help="of training and of the pieces written (default: 0)")
    add("--dry_run", action="store_true", help="print the plan: sizes, steps, time; train nothing")
    data = parser.add_argument_group("data, as for train.py")
    data.add_argument("--source", nargs="+", metavar="SOURCE", default=["bach"], help="bach, folder=PATH, "
        "maestro=PATH, dataset=PATH; several are one data set (default: bach)")  # fmt: skip
    data.add_argument("--data_path", help="PATH of the source, where there is only one")
    data.add_argument("--max_pieces", type=_positive, help="use only this many pieces of each side")
    data.add_argument("--cache_dir", help="where read pieces and chunks are kept")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Compare as the command line says; returns 0, 1 if a model failed, 2 after an error that a user can mend."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        args, extra = make_parser().parse_known_args(argv)
        _check(args, extra)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    from pianogen_hf.data.sources import DataError  # the parts that take seconds to load, after the mistakes
    from pianogen_hf.tokenizers.midi import MidiError
    from pianogen_hf.training.arguments import ArgumentError

    try:
        return _compare(args, extra, argv)
    except (UsageError, ArgumentError, DataError, MidiError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted: the same command goes on from there", file=sys.stderr)
        return 130


def _check(args: argparse.Namespace, extra: list[str]) -> None:
    """Mistakes that can be told before anything is loaded."""
    names = Counter(Path(path).stem for path in args.recipes)
    name, count = names.most_common(1)[0]
    if count > 1:
        raise UsageError(f"{count} recipes are called {name}: a model is called as its file is, so rename one")
    for path in args.recipes:
        if not Path(path).is_file():
            raise UsageError(f"{path} is no file: give recipes, such as configs/v7.yaml")
    stray = [word for word in extra if not word.startswith("-")]
    if extra and extra[0] in stray:
        raise UsageError(f"{extra[0]!r} belongs to no option (see pianogen compare --help)")


def _compare(args: argparse.Namespace, extra: list[str], argv: list[str]) -> int:
    import transformers

    from pianogen_hf.compare_plan import OWN_OPTIONS, common_split
    from pianogen_hf.compare_report import write_report
    from pianogen_hf.compare_run import Runner

    taken = [word for word in extra if word.startswith("--") and word[2:].split("=")[0] in OWN_OPTIONS]
    if taken:
        raise UsageError(f"{taken[0]} is what the comparison decides: leave it out (see pianogen compare --help)")
    transformers.logging.set_verbosity_error()
    folder = Path(args.output).expanduser()
    places, extra = _places(args), [*extra, "--seed", str(args.seed)]
    split = common_split([*places, *extra], folder, args.dry_run)
    side = args.side or ("test" if split[2]["counts"].get("test") else "validation")
    if not split[2]["counts"].get(side):
        raise UsageError(f"the split has no {side} pieces: choose another --side, or add files")
    settings = {
        "side": side,
        **{name: getattr(args, name) for name in ("samples", "sample_notes", "orders", "seed")},
    }
    if (folder / "split.json").exists():
        places += ["--split_from", str(folder / "split.json")]
    jobs, unusable = _jobs(args, places, extra, split)
    runner = Runner(folder, jobs, settings)
    _print_plan(runner, jobs, unusable, side, split[2])
    if args.dry_run:
        return 0
    with _alone(folder):
        failed = None
        try:
            failed = runner.run()
        finally:  # an interrupted comparison reports what it has
            facts = _facts(args, argv, split[2], side)
            files = write_report(folder, jobs, unusable, split, settings, facts, not args.no_real_music)
    print(_short_table(files[0]))
    print(f"written: {', '.join(map(str, files))}")
    return 1 if failed or unusable else 0


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Hold the folder against a second comparison, which would train the same models into the same files."""
    import filelock

    lock = filelock.FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        raise UsageError(f"another comparison works in {folder}: let it end, or choose another --output") from None
    try:
        yield
    finally:
        lock.release()


def _places(args: argparse.Namespace) -> list[str]:
    """What says where the data lie, for train.py."""
    options = ["--source", *args.source, "--normalize_key", "false"]
    for name in ("data_path", "max_pieces", "cache_dir"):
        if getattr(args, name) is not None:
            options += [f"--{name}", str(getattr(args, name))]
    return options


def _jobs(
    args: argparse.Namespace, places: list[str], extra: list[str], split: Any
) -> tuple[list[Any], dict[str, str]]:
    """A job per recipe, and the reason by name for those of which none can be made."""
    from pianogen_hf.compare_job import Budget, Matching
    from pianogen_hf.compare_plan import plan_job
    from pianogen_hf.data.sources import DataError
    from pianogen_hf.training.arguments import ArgumentError

    budget = Budget(None if args.minutes is None else 60 * args.minutes, args.tokens)
    matching = Matching(args.parameters, args.notes_per_step, args.layers, args.heads, args.evaluations)
    jobs, unusable = [], {}
    for path in args.recipes:
        try:
            jobs.append(plan_job(path, places, extra, split, matching, budget))
        except (ArgumentError, DataError) as error:
            unusable[Path(path).stem] = str(error)
        except Exception as error:  # a fault of one architecture or tokenizer is none of the others
            unusable[Path(path).stem] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    if not jobs:
        raise ArgumentError(f"no recipe can be used: {next(iter(unusable.values()))}")
    return jobs, unusable


def _print_plan(
    runner: Any, jobs: Sequence[Any], unusable: dict[str, str], side: str, manifest: dict[str, Any]
) -> None:
    counts = ", ".join(f"{name} {count}" for name, count in manifest["counts"].items())
    print(f"pieces: {counts}; reported are those of {side}; split {manifest['hash'][:12]}")
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


def _facts(args: argparse.Namespace, argv: list[str], manifest: dict[str, Any], side: str) -> dict[str, str]:
    """How the comparison came about, for the report."""
    from pianogen_hf.compare_job import Budget

    counts = ", ".join(
        f"{name} {count} pieces ({manifest['notes'][name]:,} notes)" for name, count in manifest["counts"].items()
    )
    chosen = "the best of them by validation" if args.evaluations else "the last weights"
    return {
        "command": recorded("pianogen", ["compare", *argv]),
        "data": f"{', '.join(manifest['sources'])}: {counts}",
        "split": manifest["hash"],
        "reported": f"{side}; {args.evaluations} evaluations during training, {chosen}",
        "budget": Budget(None if args.minutes is None else 60 * args.minutes, args.tokens).words(),
        "size": f"{args.parameters:,} parameters, embeddings included; layers {args.layers or 'of the recipe'}, heads "
        f"{args.heads or 'of the recipe'}",
        "batch": f"about {args.notes_per_step:,} notes in a step; warm-up in the recipe's share of the steps; the "
        "recipe's learning rate times its width over the width here",
        "seed": str(args.seed),
    }


def _short_table(report: Path) -> str:
    """The first table of the report, for the terminal."""
    lines = report.read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith("|")]
    end = next((number for number, line in enumerate(lines) if line.startswith("| ") and not lines[number + 1]), None)
    first = [line for line in lines[: end + 1 if end is not None else 0] if line.startswith("| ")]
    return "\n".join(first or rows)


def _count(text: str) -> int:
    """A number such as 5M, 300k or 20_000."""
    match = re.fullmatch(r"(\d[\d_]*(?:\.\d+)?)([kMG]?)", text.strip())
    value = float(match[1].replace("_", "")) * {"": 1, "k": 1e3, "M": 1e6, "G": 1e9}[match[2]] if match else 0
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be a number such as 5M or 300k, got {text!r}")
    return round(value)


def _positive(text: str) -> int:
    return _at_least(text, 1)


def _not_negative(text: str) -> int:
    return _at_least(text, 0)


def _at_least(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least {least}, got {text!r}")
    return value


def _positive_float(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be more than 0, got {text!r}")
    return value
