"""`pianogen space`: write a page for a model that runs here and as a Space on the Hub."""

from __future__ import annotations

import argparse
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pianogen_hf import BACH_MODEL, PIANO_MODEL, __version__
from pianogen_hf.commands.options import OneLineParser
from pianogen_hf.errors import UsageError, reports_errors
from pianogen_hf.folders import check_writable

_OWN_MODELS = {"v8": PIANO_MODEL, "v7-bach": BACH_MODEL}
_SHORT_DESCRIPTION = "Go on with a piece of piano music"
_STATIC_DESCRIPTION = "Play with a piano model in your browser"


def make_parser() -> argparse.ArgumentParser:
    """The options of `pianogen space`."""
    parser = OneLineParser(
        prog="pianogen space",
        description="Write a folder with a page (Gradio) on which visitors try a model: they upload a MIDI file or "
        "begin from nothing, choose how much music, look, listen, download, and extend what they like. It runs on "
        "your machine (pip install -r requirements.txt, then python app.py) and, pushed to the Hub, as a Space on a "
        "free CPU. It brings a copy of this package; a model folder is copied too, without what is left of training. "
        "With --static it is the page of `pianogen play` instead, for any host of files: a note transformer (V8) runs "
        "in the visitor's browser, and nothing that is played leaves it.",
        epilog="Examples: pianogen space --output page ; pianogen space --model runs/mine --output page --title "
        "'Waltzes' ; pianogen space --model USER/MODEL --output page --push USER/SPACE ; pianogen space --static "
        "--model v8 --output page",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model", help="model folder or Hub id; v8 (default) and v7-bach are the models that come with the package")
    add("--output", required=True, metavar="FOLDER", help="where to write")
    add("--title", help="heading of the page (default: made of the model's name)")
    add(
        "--short_description",
        help=f"the line below it, at most 60 characters (default: {_SHORT_DESCRIPTION!r})",
    )
    add("--static", action="store_true", help="write a page without a server (extra `onnx`)")
    add(
        "--onnxruntime",
        metavar="FOLDER_OR_TGZ",
        help="onnxruntime-web as npm has it, for --static where there is no network; by default npm fetches it",
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

    from pianogen_hf.apps.space.folder import push_space
    from pianogen_hf.workflows.loading import load_model

    logging.disable_progress_bar()  # of loading weights
    name = _OWN_MODELS.get(args.model or "v8", args.model)
    model, _ = load_model(name)  # a page for a model that can't be opened would say so to visitors only
    if args.static:
        _write_static(args, name, model)
    else:
        _write_served(args, name)
    if args.push is None:
        print(f"upload it with: pianogen space ... --push USER/NAME, or hf upload USER/NAME {args.output} --type space")
    else:
        print(push_space(args.output, args.push))
    return 0


def _write_served(args: argparse.Namespace, name: str) -> None:
    from pianogen_hf.apps.space.folder import write_space

    folder = write_space(
        args.output,
        name,
        version=__version__,
        title=args.title,
        short_description=args.short_description or _SHORT_DESCRIPTION,
        vendored=not args.from_index,
        overwrite=args.overwrite,
    )
    print(f"written: {folder}; run it with: cd {folder} && pip install -r requirements.txt && python app.py")


def _write_static(args: argparse.Namespace, name: str, model: Any) -> None:
    from pianogen_hf.apps.space.onnxruntime_web import runtime_files
    from pianogen_hf.apps.space.static_page import write_static_page

    sizes = write_static_page(
        Path(args.output),
        name,
        model,
        runtime=runtime_files(None if args.onnxruntime is None else Path(args.onnxruntime)),
        version=__version__,
        title=args.title,
        short_description=args.short_description or _STATIC_DESCRIPTION,
        overwrite=args.overwrite,
    )
    parts = ", ".join(f"{part} {size / 1e6:.1f}" for part, size in sizes.items())
    print(f"written: {args.output}; a visitor downloads {sum(sizes.values()) / 1e6:.1f} MB ({parts})")
    print(f"look at it with: python -m http.server --directory {args.output}")


def _check(args: argparse.Namespace) -> None:
    if args.static and find_spec("onnx") is None:
        raise UsageError('--static needs a package that is not installed: pip install "pianogen_hf[onnx]"')
    if args.onnxruntime is not None and not args.static:
        raise UsageError("--onnxruntime is for pages without a server: add --static, or leave it out")
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        if args.push is not None:
            validate_repo_id(args.push)
        if args.model is not None and args.model not in _OWN_MODELS and not Path(args.model).is_dir():
            validate_repo_id(args.model)
    except HFValidationError as error:
        raise UsageError(f"not a folder here, and no name that the Hub takes: {error}") from error
