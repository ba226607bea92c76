"""`pianogen scores`: what a finished run has measured."""

from __future__ import annotations

from pathlib import Path

from pianogen_hf.commands.options import OneLineParser
from pianogen_hf.errors import reports_errors


@reports_errors()
def main(argv: list[str] | None = None) -> int:
    """Print the scores as the command line says; returns the exit code."""
    parser = OneLineParser(
        prog="pianogen scores",
        description="Print the validation bits per note of a finished run beside the baselines measured with it.",
    )
    parser.add_argument("folder", type=Path, help="output_dir of train.py")
    args = parser.parse_args(argv)
    from pianogen_hf.workflows.train_end import scores_table

    print(scores_table(args.folder))
    return 0
