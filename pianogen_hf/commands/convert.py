"""`pianogen convert`: checkpoints of other systems as models of this package."""

from __future__ import annotations

import argparse
from importlib import import_module
from pathlib import Path

from pianogen_hf.commands.options import OneLineParser
from pianogen_hf.errors import UsageError, reports_errors
from pianogen_hf.folders import check_writable

# By name: what it is. `workflows/convert_NAME.py` has a function of that name, from a path to a folder.
SYSTEMS = {
    "skytnt": "SkyTNT's midi-model: the published folder, with config.json and model.safetensors",
    "mmt": "Multitrack Music Transformer: best_model.pt, or the folder that has it",
}


def make_parser() -> argparse.ArgumentParser:
    """The options of `pianogen convert`."""
    systems = "\n".join(f"  {name:8} {what}" for name, what in SYSTEMS.items())
    parser = OneLineParser(
        prog="pianogen convert",
        description="Make a model of this package, with its tokenizer, from a checkpoint of another system. No code\n"
        "of the checkpoint is run.\n\nsystems:\n" + systems,
        epilog="Example: pianogen convert mmt exp/sod/ape runs/mmt",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("system", choices=SYSTEMS, metavar="SYSTEM", help="one of: " + ", ".join(SYSTEMS))
    parser.add_argument("source", metavar="IN", help="the checkpoint, a file or a folder")
    parser.add_argument("output", metavar="OUT", help="folder for the model")
    parser.add_argument("--lora", metavar="FOLDER", help="an adapter of a midi-model, to be merged into its weights")
    return parser


@reports_errors("what was not announced was not written")
def main(argv: list[str] | None = None) -> int:
    """Convert as the command line says; returns the exit code."""
    args = make_parser().parse_args(argv)
    source, output = Path(args.source).expanduser(), Path(args.output).expanduser()
    if output.exists() and not output.is_dir():
        raise UsageError(f"OUT {output} is a file: give a folder")
    if (output / "config.json").exists():
        raise UsageError(f"there is a model in {output}: give another folder")
    check_writable(output, "OUT")
    if args.lora and args.system != "skytnt":
        raise UsageError(f"--lora is for skytnt: {args.system} has no adapters")
    lora = {"lora": Path(args.lora).expanduser()} if args.lora else {}
    name = f"convert_{args.system}"
    getattr(import_module(f"pianogen_hf.workflows.{name}"), name)(source, output, **lora)
    return 0
