"""`pianogen audit`: its options; what is done with them is told in workflows/audit.py."""

from __future__ import annotations

import argparse
from pathlib import Path

import pianogen_hf
from pianogen_hf.commands.options import OneLineParser, add_cache_dir
from pianogen_hf.errors import UsageError, reports_errors
from pianogen_hf.folders import check_writable


def make_parser() -> argparse.ArgumentParser:
    """The options of `pianogen audit`."""
    parser = OneLineParser(
        prog="pianogen audit",
        description="Generate pieces and measure how much of them is exact runs of train pieces, in any key, against "
        "the share that held-out pieces have. Ends with exit code 1 if the model copies more than chance.",
        epilog="Examples: pianogen audit ; pianogen audit --model runs/mine --source folder=~/midi ; pianogen audit "
        "--midi out.mid ; any music against any data: pianogen audit --midi out.mid --source folder=~/midi",
    )
    add = parser.add_argument
    add("--model", help="model folder or Hub id, with its split.json (default: the chorale model of the package)")
    add("--revision", help="branch, tag or commit of a model on the Hub")
    add("--trust_remote_code", action="store_true", help="run code that a model of unknown architecture carries")
    add("--source", nargs="+", help="where the pieces it was trained on lie, as for train.py: folder=PATH, ...")
    add("--data_path", help="the PATH, where there is only one source")
    add("--midi", metavar="FILE.mid", help="audit this file instead of what the model generates")
    add("--num_samples", type=int, default=24, help="pieces to generate (default: 24)")
    add("--notes", type=int, default=220, help="notes in each (default: 220)")
    add("--seed", type=int, default=0, help="the same seed gives the same pieces (default: 0)")
    add_cache_dir(parser)
    add("--record", action="store_true", help="put the figures into the model's metrics.json and its card")
    add("--output", metavar="AUDIT.json", help="also write all figures to this file")
    return parser


@reports_errors("nothing was changed")
def main(argv: list[str] | None = None) -> int:
    """Audit as the command line says; returns 0, or 1 if the alarm rings."""
    args = make_parser().parse_args(argv)
    if args.record and args.midi:
        raise UsageError("--record is for what the model generates: leave out --midi")
    if args.record and not Path(args.model or pianogen_hf.BACH_MODEL).is_dir():
        raise UsageError(f"--record needs a folder to write to, and {args.model} is none")
    check_writable(args.cache_dir, "--cache_dir")
    if args.record:
        check_writable(args.model or pianogen_hf.BACH_MODEL, "--model")
    if args.output:
        check_writable(Path(args.output).parent, "--output")
    # Brings in torch: seconds that --help and a mistake should not cost.
    from pianogen_hf.records import write_json
    from pianogen_hf.workflows.audit import audit, record, table
    from pianogen_hf.workflows.split import Places

    report = audit(
        args.model,
        revision=args.revision,
        trust_remote_code=args.trust_remote_code,
        places=Places(args.source, args.data_path, args.cache_dir),
        midi=args.midi,
        num_samples=args.num_samples,
        notes=args.notes,
        seed=args.seed,
    )
    if args.record:
        record(Path(args.model or pianogen_hf.BACH_MODEL), report)
    if args.output:
        write_json(Path(args.output), report)
    print(table(report))
    return int(report["comparison"]["alarm"])
