"""`pianogen show`: look at a piece and listen to it, with the tokens that a model reads beside it."""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pianogen_hf.commands.options import OneLineParser, not_negative
from pianogen_hf.errors import ArgumentError, UsageError, did_you_mean, reports_errors

TOKENIZERS = ("rows", "performance", "remi", "craykh", "jsb")


def make_parser() -> argparse.ArgumentParser:
    """The options of `pianogen show`."""
    parser = OneLineParser(
        prog="pianogen show",
        description="Open a page that plays a MIDI file: a piano roll, and beside it the tokens, followed as they are "
        "heard. A click on the roll or on a token goes there.",
        epilog="Examples: pianogen show piece.mid ; pianogen show piece.mid --tokenizer remi ; pianogen show piece.mid "
        "--tokenizer runs/mine",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("piece", metavar="FILE.mid", help="the piece")
    add(
        "--tokenizer",
        default="rows",
        metavar="NAME",
        help=f"{', '.join(TOKENIZERS)}, or a model folder or Hub id (default: rows, what V5 and V8 read)",
    )
    add("--programs", choices=("piano", "all"), default="piano", help="instruments to read")
    add("--port", type=not_negative, default=0, help="of the page (default: any that is free)")
    add("--host", default="127.0.0.1", help="address to listen at; others than 127.0.0.1 let others in")
    add("--no_browser", action="store_true", help="print the page's address, and open no browser")
    return parser


@reports_errors()
def main(argv: list[str] | None = None) -> int:
    """Show as the command line says; returns the exit code."""
    args = make_parser().parse_args(argv)
    check_page()
    # Brings in torch: seconds that --help and a mistake should not cost.
    from pianogen_hf.apps.player.server import Gate, listen, run
    from pianogen_hf.apps.player.show import show_app
    from pianogen_hf.tokenizers.midi import PIANO_PROGRAMS, read_midi

    notes = read_midi(args.piece, PIANO_PROGRAMS if args.programs == "piano" else None)
    if not len(notes):
        raise ArgumentError(f"{args.piece} has no notes of a piano: try --programs all")
    gate, listening = Gate(), listen(args.host, args.port)
    try:
        app = show_app(gate, Path(args.piece).name, notes, _encoder(args.tokenizer), args.host)
    except ValueError as error:
        raise ArgumentError(f"{args.piece} can't be tokenized: {error}") from error
    run(app, gate, listening, open_browser=not args.no_browser)
    return 0


def check_page() -> None:
    """Refuse where what a page needs is missing.

    Raises:
        UsageError: in one line.
    """
    if any(find_spec(name) is None for name in ("starlette", "uvicorn", "websockets")):
        raise UsageError('the page needs packages that are not installed: pip install "pianogen_hf[play]"')


def _encoder(name: str) -> Any:
    import pianogen_hf as pg
    from pianogen_hf.workflows.loading import load_encoder

    known = {
        "rows": pg.ContinuousNotesFeatureExtractor,
        "performance": pg.PerformanceTokenizer,
        "remi": pg.RemiTokenizer,
        "craykh": pg.CrayKHTokenizer,
        "jsb": pg.JSBTokenizer,
    }
    if name.lower() in known:
        return known[name.lower()]()
    if "/" not in name and not Path(name).exists():
        raise ArgumentError(f"there is no tokenizer {name!r}{did_you_mean(name, TOKENIZERS, 'or give a model folder')}")
    return load_encoder(name)
