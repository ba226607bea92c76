"""`pianogen export`: write a model as ONNX for the fast engine, once it has been held against the torch model."""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path

from pianogen_hf.commands.options import OneLineParser, add_cache_dir
from pianogen_hf.errors import UsageError, reports_errors
from pianogen_hf.folders import check_writable


def make_parser() -> argparse.ArgumentParser:
    """The options of `pianogen export`."""
    parser = OneLineParser(
        prog="pianogen export",
        description="Export a Music Transformer (V7), a note transformer (V8) or a model of events (SkyTNT, whose app "
        "opens the pair of graphs, too) for the fast engine (generate.py --engine onnx or int8). What was written has "
        "been checked: float32 chooses what torch does, and 8 bits cost no more than 1 % of the cross-entropy, on "
        "held-out pieces where they are at hand.",
        epilog="Example: pianogen export --model runs/mine --int8 --output runs/mine",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model", required=True, help="model folder or Hub id")
    add("--revision", help="branch, tag or commit of a model on the Hub")
    add("--output", required=True, metavar="FOLDER", help="where onnx/ is to lie; may be the model's own folder")
    add("--format", choices=("onnx",), default="onnx", help="the format (default: onnx)")
    add("--int8", action="store_true", help="also write a version with weights of 8 bits (of V7, keys and values, too)")
    add("--source", nargs="+", help="where its held-out pieces lie, as for train.py; by default as it was trained")
    add("--data_path", help="the PATH, where there is only one source")
    add_cache_dir(parser)
    return parser


@reports_errors("what was not announced was not written")
def main(argv: list[str] | None = None) -> int:
    """Export as the command line says; returns the exit code."""
    args = make_parser().parse_args(argv)
    if any(find_spec(name) is None for name in ("onnx", "onnxruntime")):
        raise UsageError('export needs packages that are not installed: pip install "pianogen_hf[onnx]"')
    if Path(args.output).exists() and not Path(args.output).is_dir():
        raise UsageError(f"--output {args.output} is a file: give a folder")
    check_writable(args.output, "--output")
    if args.int8:  # which is held against the model on held-out pieces
        check_writable(args.cache_dir, "--cache_dir")
    # Brings in torch: seconds that --help and a mistake should not cost.
    from pianogen_hf.workflows.export import export
    from pianogen_hf.workflows.split import Places

    places = Places(args.source, args.data_path, args.cache_dir)
    export(args.model, Path(args.output), revision=args.revision, int8=args.int8, places=places)
    return 0
