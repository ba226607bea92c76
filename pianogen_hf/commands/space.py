"""`pianogen space`: write a page for a model that runs here and as a Space on the Hub."""

from __future__ import annotations

import argparse
from pathlib import Path

from pianogen_hf import BUNDLED_MODEL, __version__
from pianogen_hf.commands.options import OneLineParser
from pianogen_hf.errors import UsageError, reports_errors
from pianogen_hf.folders import check_writable


def make_parser() -> argparse.ArgumentParser:
    """The options of `pianogen space`."""
    parser = OneLineParser(
        prog="pianogen space",
        description="Write a folder with a page (Gradio) on which visitors try a model: they upload a MIDI file or "
        "begin from nothing, choose how much music, look, listen, download, and extend what they like. It runs on "
        "your machine (pip install -r requirements.txt, then python app.py) and, pushed to the Hub, as a Space on a "
        "free CPU. It brings a copy of this package; a model folder is copied too, without what is left of training.",
        epilog="Examples: pianogen space --output page ; pianogen space --model runs/mine --output page --title "
        "'Waltzes' ; pianogen space --model USER/MODEL --output page --push USER/SPACE",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model", help="model folder or Hub id; by default the small Bach model that comes with the package")
    add("--output", required=True, metavar="FOLDER", help="where to write")
    add("--title", help="heading of the page (default: made of the model's name)")
    add(
        "--short_description",
        default="Go on with a piece of piano music",
        help="the line below it, at most 60 characters (default: %(default)s)",
    )
    add("--from_index", action="store_true", help="let a package index give pianogen_hf, bring no copy")
    add("--overwrite", action="store_true", help="replace files of the same names in FOLDER; others stay")
    add("--push", metavar="USER/NAME", help="then upload it to this Space, created if need be (after `hf auth login`)")
    return parser


@reports_errors("what was not announced was not written")
def main(argv: list[str] | None = None) -> int:
    """Write a Space as the command line says; returns the exit code."""
    args = make_parser().parse_args(argv)
    _check(args)
    check_writable(args.output, "--output")
    # Brings in torch: seconds that --help and a mistake should not cost.
    from transformers.utils import logging

    from pianogen_hf.apps.space.folder import push_space, write_space
    from pianogen_hf.workflows.loading import load_model

    logging.disable_progress_bar()  # of loading weights
    model = args.model or BUNDLED_MODEL
    load_model(model)  # a page for a model that can't be opened would say so to visitors only
    folder = write_space(
        args.output,
        model,
        version=__version__,
        title=args.title,
        short_description=args.short_description,
        vendored=not args.from_index,
        overwrite=args.overwrite,
    )
    print(f"written: {folder}; run it with: cd {folder} && pip install -r requirements.txt && python app.py")
    if args.push is None:
        print(f"upload it with: pianogen space ... --push USER/NAME, or hf upload USER/NAME {folder} --repo-type space")
    else:
        print(push_space(folder, args.push))
    return 0


def _check(args: argparse.Namespace) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        if args.push is not None:
            validate_repo_id(args.push)
        if args.model is not None and not Path(args.model).is_dir():
            validate_repo_id(args.model)
    except HFValidationError as error:
        raise UsageError(f"not a folder here, and no name that the Hub takes: {error}") from error
