"""`pianogen evaluate`: its options, checked before anything heavy is loaded."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pianogen_hf import BACH_MODEL, PIANO_MODEL
from pianogen_hf.commands.options import OneLineParser, add_cache_dir, positive
from pianogen_hf.errors import UsageError, reports_errors
from pianogen_hf.folders import check_writable

_HANDED_ON = (
    "revision",
    "trust_remote_code",
    "device",
    "split_name",
    "data",
    "max_pieces",
    "only",
    "window",
    "output",
    "batch_size",
    "precision",
    "orders",
    "num_samples",
    "notes",
    "seed",
)
SECTIONS = ("likelihood", "statistics", "audit", "roundtrip")


def make_parser() -> argparse.ArgumentParser:
    """The options of `pianogen evaluate`."""
    parser = OneLineParser(
        prog="pianogen evaluate",
        description="Measure a model on held-out pieces: bits per note of every piece (comparable between tokenizers), "
        "music statistics of what it generates against real pieces, how much it copies, and what its encoding loses. "
        "Figures go to metrics.json and the model's card; tables, pictures and the generated MIDI files to "
        "evaluation/SPLIT beside it. What was measured is kept, so an interrupted run can be resumed.",
        epilog="Examples: pianogen evaluate --model runs/mine ; pianogen evaluate --model runs/mine --only likelihood "
        "--source folder=~/midi ; once, at the very end: pianogen evaluate --model runs/mine --split test ; on any "
        "music: pianogen evaluate --model runs/mine --data ~/other --output out",
    )
    add = parser.add_argument
    add("--model", help="model folder or Hub id (default: the chorale model of the package)")
    add("--revision", help="branch, tag or commit of a model on the Hub")
    add("--trust_remote_code", action="store_true", help="run code that a model of unknown architecture carries")
    add("--split", "--side", dest="split_name", choices=("validation", "test"), default="validation", help="which "
        "held-out pieces; select models on validation, look at test once (default: validation)")  # fmt: skip
    add("--source", nargs="+", help="where the model's own pieces lie, as for train.py: bach, folder=PATH, ...")
    add("--data_path", help="the PATH, where there is only one source")
    add(
        "--data",
        metavar="FOLDER",
        help="evaluate on all MIDI files of this folder "
        "instead of the model's own split; or on one --split of the benchmark's file Jsb16thSeparated.json",
    )
    add("--only", nargs="+", choices=SECTIONS, default=list(SECTIONS), help="measure only these (default: all)")
    add("--max_pieces", type=positive, help="look at this many held-out pieces at most (default: all)")
    add("--window", type=positive, help="tokens in a window (default: as in training)")
    add("--batch_size", type=positive, default=16, help="windows at a time (default: 16)")
    add(
        "--precision",
        choices=("float32", "bfloat16"),
        default="float32",
        help="of the model's forward pass (default: float32)",
    )
    add("--orders", type=positive, default=8, help="random masks per window of a masked model (default: 8)")
    add("--num_samples", type=positive, default=24, help="pieces to generate (default: 24)")
    add("--notes", type=positive, default=220, help="notes in each, and in the real pieces beside them (default: 220)")
    add("--seed", type=int, default=0, help="of the generated pieces and of masks (default: 0)")
    add("--device", help="cpu, cuda, mps ... (default: the fastest there is)")
    add_cache_dir(parser)
    add("--output", metavar="FOLDER", help="where to write (default: the model's folder; ./evaluated for the package's "
        "models and those on the Hub)")  # fmt: skip
    return parser


@reports_errors("what was finished is kept; run the same command again to resume")
def main(argv: list[str] | None = None) -> int:
    """Evaluate as the command line says; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    args = _checked(make_parser().parse_args(argv))
    # Brings in torch: seconds that --help and a mistake should not cost.
    from pianogen_hf.workflows.evaluate import evaluate
    from pianogen_hf.workflows.split import Places

    evaluate(
        args.model,
        places=Places(args.source, args.data_path, args.cache_dir),
        argv=argv,
        **{name: getattr(args, name) for name in _HANDED_ON},
    )
    return 0


def _checked(args: argparse.Namespace) -> argparse.Namespace:
    if args.data and (args.source or args.data_path):
        raise UsageError("--data is for other music: leave out --source and --data_path")
    if args.data and args.split_name == "test" and not args.data.endswith(".json"):
        raise UsageError("a folder given as --data has no splits: leave out --split")
    check_writable(args.cache_dir, "--cache_dir")
    args.output = _output_folder(args.output, args.model)
    check_writable(args.output, "--output")
    return args


def _output_folder(output: str | None, model: str | None) -> Path:
    """Where to write: beside the figures of training, unless the model is somebody else's."""
    if output:
        return Path(output)
    is_own = model is not None and Path(model).is_dir() and not _comes_with_the_package(Path(model))
    return Path(str(model)) if is_own else Path("evaluated")


def _comes_with_the_package(folder: Path) -> bool:
    """Whether a folder is one that is not to be written into."""
    return any(folder.samefile(each) for each in (PIANO_MODEL, BACH_MODEL))
