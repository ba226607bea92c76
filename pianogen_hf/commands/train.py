"""`pianogen train`, or `python train.py`: what happens is told step by step in workflows/train.py."""

from __future__ import annotations

import sys

from pianogen_hf.commands.options import check_folders_of_training
from pianogen_hf.errors import reports_errors


# Outside training, or a second time within it: at other times a callback takes care.
@reports_errors("--resume_from_checkpoint true resumes from the last checkpoint, if there is one")
def main(argv: list[str] | None = None) -> int:
    """Train as the command line says; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        from pianogen_hf.training.arguments import make_parser

        make_parser().print_help()
        return 0 if argv else 2
    check_folders_of_training(argv, output_dir=True)
    # Brings in torch: seconds that --help and a mistake should not cost.
    from pianogen_hf.workflows.train import train

    return train(argv)
