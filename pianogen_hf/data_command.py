"""`pianogen data`: build a data set, check it for leaks, show what it is like, or publish it. Wiring only."""

from __future__ import annotations

import sys
from importlib import import_module

from pianogen_hf.command_line import UsageError

_USAGE = """usage: pianogen data build [CONFIG.yaml] --source SOURCE ... --output FOLDER [--OPTION VALUE ...]
       pianogen data check [FOLDER | hub=NAME | CONFIG.yaml] [--source SOURCE ...] [--model MODEL] [--output FILE]
       pianogen data stats [FOLDER] [--source SOURCE ...] [--output PICTURE.png]
       pianogen data push FOLDER --repo USER/NAME [--license LICENSE] [--private] [--dry_run]

build  read, find families, split, and write a data set; with a YAML file or --tokenizer its chunks, too
check  look for leaks between train, validation and test; exit code 1 if there are any
stats  pieces, notes and hours per source, and how lengths, pitches and durations are distributed
push   publish a data set on the Hugging Face Hub, readable without this package

A SOURCE is bach, folder=PATH, maestro=PATH, lakh=PATH, dataset=PATH or hub=USER/NAME; several may follow one --source.
All options of train.py that concern data work in the first three (train.py --help), --stage among them, which says
which stage of a recipe that has several; `pianogen data COMMAND --help` says more."""
# Imported only when asked for: they bring in the whole data stack, and --help should not wait for it.
_TASKS = {"build": "data_build", "check": "data_check", "stats": "data_stats", "push": "data_push_command"}


def main(argv: list[str] | None = None) -> int:
    """Run one of the four; returns 0, 1 if the check found a leak, or 2 after an error that a user can mend."""
    argv = sys.argv[1:] if argv is None else argv
    command, rest = (argv[0], argv[1:]) if argv else ("", [])
    if command not in _TASKS:
        is_help = command in ("-h", "--help")
        known = _USAGE if is_help or not command else f"error: unknown command {command!r}; see pianogen data --help"
        print(known, file=sys.stdout if is_help else sys.stderr)
        return 0 if is_help else 2
    from pianogen_hf.data.sources import DataError
    from pianogen_hf.publishing.hub_errors import HubError
    from pianogen_hf.publishing.model_files import FolderError
    from pianogen_hf.tokenizers.midi import MidiError
    from pianogen_hf.training.arguments import ArgumentError

    try:
        return getattr(import_module(f"pianogen_hf.{_TASKS[command]}"), command)(rest)
    except (UsageError, ArgumentError, DataError, FolderError, HubError, MidiError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: nothing was changed", file=sys.stderr)
        return 130
