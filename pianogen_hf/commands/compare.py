"""`pianogen compare`: train recipes at one size and one budget, measure them alike, write one report."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from pathlib import Path

from pianogen_hf.commands.options import OneLineParser, count, not_negative, positive, positive_float
from pianogen_hf.errors import UsageError, reports_errors
from pianogen_hf.folders import CACHE_DIR, check_writable

_DESCRIPTION = """Train every recipe at the same number of parameters, with the same notes in a step and the same
budget, on the same split; measure all of them on the same held-out pieces; and write one report: DIR/report.md and
DIR/report.html, a page that needs nothing but a browser, with tables, loss curves and music to see and to hear.

Width and feed-forward part are chosen so that all parameters, embeddings included, are as many as --parameters says;
layers and heads stay the recipe's. Warm-up and learning rate are scaled with the steps and the width. Each model is
trained by train.py in a process of its own: if one fails, the others continue, and the report says why."""
_EPILOG = """Any other option of train.py is given to all recipes alike, for example --transpose -5 6 or --bf16 true.

Interrupted, the same command resumes; once finished, it trains nothing. With recipes added it trains only those.

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
    budget.add_argument("--minutes", type=positive_float, help="of training for each model, evaluations not counted; "
        "a short measurement before it finds how many steps that is")  # fmt: skip
    budget.add_argument("--tokens", type=count, help="tokens that each model learns to predict, e.g. 20M")
    add("--parameters", type=count, default=5_000_000, help="of each model, within 5 per cent (default: 5M)")
    add("--layers", type=positive, help="of every model, instead of its recipe's")
    add("--heads", type=positive, help="of every model, instead of its recipe's")
    add("--notes_per_step", type=positive, default=1024, help="notes in an optimizer step, about (default: 1024)")
    add("--evaluations", type=not_negative, default=4, help="on validation during training; the best of them "
        "is kept. 0: none, the last weights are kept (default: 4)")  # fmt: skip
    add("--split", "--side", dest="split_name", choices=("validation", "test"), help="the held-out pieces that are "
        "reported (default: test where there are any, since the weights were chosen on validation)")  # fmt: skip
    add("--samples", type=positive, default=8, help="pieces that each model writes (default: 8)")
    add("--sample_notes", type=positive, default=150, help="notes in each (default: 150)")
    add("--no_real_music", action="store_true", help="leave the held-out pieces out of report.html, where their "
        "licence does not let you pass them on")  # fmt: skip
    add("--orders", type=positive, default=4, help="random masks per window of masked models (default: 4)")
    add("--seed", type=not_negative, default=0, help="of training and of the pieces written (default: 0)")
    add("--dry_run", action="store_true", help="print the plan: sizes, steps, time; train nothing")
    data = parser.add_argument_group("data, as for train.py")
    data.add_argument("--source", nargs="+", metavar="SOURCE", default=["bach"], help="bach, folder=PATH, "
        "maestro=PATH, dataset=PATH; several are one data set (default: bach)")  # fmt: skip
    data.add_argument("--data_path", help="PATH of the source, where there is only one")
    data.add_argument("--max_pieces", type=positive, help="use only this many pieces of each split")
    data.add_argument("--cache_dir", help="where read pieces and chunks are kept")
    return parser


@reports_errors("run the same command again to resume")
def main(argv: list[str] | None = None) -> int:
    """Compare as the command line says; returns 0, or 1 if a model failed."""
    argv = sys.argv[1:] if argv is None else argv
    args, extra = make_parser().parse_known_args(argv)
    _check(args, extra)
    check_writable(args.output, "--output")
    check_writable(args.cache_dir or CACHE_DIR, "--cache_dir")
    # Brings in torch: seconds that --help and a mistake should not cost.
    from pianogen_hf.workflows.compare.comparison import Request, compare
    from pianogen_hf.workflows.compare.job import Budget, Matching

    request = Request(
        recipes=args.recipes,
        folder=Path(args.output).expanduser(),
        budget=Budget(None if args.minutes is None else 60 * args.minutes, args.tokens),
        matching=Matching(args.parameters, args.notes_per_step, args.layers, args.heads, args.evaluations),
        places=_places(args),
        extra=extra,
        split_name=args.split_name,
        settings={name: getattr(args, name) for name in ("samples", "sample_notes", "orders", "seed")},
        with_real_music=not args.no_real_music,
        argv=argv,
    )
    return compare(request, args.dry_run)


def _places(args: argparse.Namespace) -> list[str]:
    """What says where the data lie, for train.py."""
    options = ["--source", *args.source, "--normalize_key", "false"]
    for name in ("data_path", "max_pieces", "cache_dir"):
        if getattr(args, name) is not None:
            options += [f"--{name}", str(getattr(args, name))]
    return options


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
