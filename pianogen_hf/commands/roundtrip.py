"""`pianogen roundtrip`: what each encoding loses on a folder of MIDI files."""

from __future__ import annotations

from pianogen_hf.commands.options import OneLineParser, positive
from pianogen_hf.errors import reports_errors


@reports_errors()
def main(argv: list[str] | None = None) -> int:
    """Encode and decode as the command line says; returns the exit code."""
    parser = OneLineParser(
        prog="pianogen roundtrip",
        description="Encode and decode every MIDI file of a folder with every tokenizer and report what was lost: note "
        "F1 (onset within 50 ms; offset within 50 ms or 20 %; velocity within 8), dropped or merged and added notes, "
        "tokens per note.",
    )
    parser.add_argument("folder", help="a folder of MIDI files")
    parser.add_argument(
        "--max_files", type=positive, default=100, help="look at this many files at most (default: 100)"
    )
    args = parser.parse_args(argv)
    from pianogen_hf.workflows.roundtrip import print_round_trips

    print_round_trips(args.folder, args.max_files)
    return 0
