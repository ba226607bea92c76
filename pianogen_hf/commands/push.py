"""`pianogen push`: a model folder to the Hub, in one commit, and back again to see that it arrived whole."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from pianogen_hf.commands.options import OneLineParser, add_destination_options, check_destination
from pianogen_hf.errors import reports_errors


def make_parser() -> argparse.ArgumentParser:
    """The options of `pianogen push`."""
    parser = OneLineParser(
        prog="pianogen push",
        description="Put a model on the Hugging Face Hub: weights (safetensors), tokenizer, configuration, code files "
        "that it carries, card, figures, split, provenance, samples and exported graphs, in one commit. Caches, "
        "optimizer states, checkpoints, logs, pickle and data stay behind. Then the model is loaded from there with an "
        "empty cache and must compute what it computes here. To push again is always safe: what is there already is "
        "not sent.",
        epilog="Examples: pianogen push --model runs/mine --repo me/my-model --dry_run ; pianogen push --model "
        "runs/mine --repo me/my-model --private ; pianogen push --model runs/mine --repo somebody/their-model "
        "--create_pr. First log in, once: hf auth login",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model", required=True, metavar="FOLDER", help="what train.py wrote, or save_pretrained")
    add("--repo", required=True, metavar="USER/NAME", help="the repository, made if it is not there")
    add_destination_options(parser, "Upload model with pianogen_hf")
    add("--dry_run", action="store_true", help="only list what would go up and what stays behind; asks nobody")
    add("--trust_remote_code", action="store_true", help="run code files of other origin when the push is checked")
    return parser


@reports_errors("no file on the Hub has changed; run the same command again to resume")
def main(argv: list[str] | None = None) -> int:
    """Push as the command line says; returns the exit code."""
    args = make_parser().parse_args(argv)
    check_destination(args)
    # Brings in torch: seconds that --help and a mistake should not cost.
    from transformers.utils import logging

    from pianogen_hf.hub.errors import limit_waiting
    from pianogen_hf.publishing.model_files import select_files
    from pianogen_hf.publishing.model_reload import check_pushed
    from pianogen_hf.publishing.push import listing, push_folder, warnings_of

    folder = Path(args.model)
    selection = select_files(folder, args.repo)
    for line in (*selection.notes, *warnings_of(folder)):
        print(f"note: {line}")
    if args.dry_run:
        print(listing(selection, args.repo))
        return 0
    limit_waiting(args.timeout)
    options = {"private": args.private, "revision": args.revision, "create_pr": args.create_pr, "token": args.token}
    selection, pushed = push_folder(folder, selection, args.repo, args.message, **options)
    print(pushed.summary, flush=True)
    logging.disable_progress_bar()  # of loading weights: those of the upload have done their work
    try:
        print(check_pushed(folder, selection, pushed, args.token, args.trust_remote_code))
    except KeyboardInterrupt:
        print("interrupted: the model is pushed, but was not checked; the same command checks it", file=sys.stderr)
        return 130
    return 0
