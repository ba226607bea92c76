"""The `pianogen` command: one word per task, wiring only."""

from __future__ import annotations

import sys
from importlib import import_module

from pianogen_hf.errors import UsageError, did_you_mean, reports_errors

_USAGE = """usage: pianogen COMMAND [OPTIONS]

commands:
  train      train a model from a YAML file            pianogen train configs/quickstart.yaml
  generate   make music, from a prompt or nothing      pianogen generate --prompt my.mid --seconds 30 --wav
  play       play with the model, live                 pianogen play
  show       a piece and its tokens, on a page         pianogen show piece.mid --tokenizer remi
  data       build, check for leaks, or describe data  pianogen data check --source folder=~/midi
  evaluate   measure a model on held-out pieces        pianogen evaluate --model runs/my-model
  compare    train and measure recipes side by side    pianogen compare configs/v*.yaml --minutes 20 --output runs/all
  audit      how much a model copies from its train    pianogen audit --model runs/my-model --data_path ~/midi
  export     make a model several times as fast        pianogen export --model runs/my-model --output runs/my-model
  convert    a checkpoint of another system, as ours  pianogen convert mmt exp/ape runs/mmt
  space      a page on which visitors try a model      pianogen space --model runs/my-model --output page
  push       put a model on the Hugging Face Hub       pianogen push --model runs/my-model --repo me/my-model
  scores     what a trained model reached              pianogen scores runs/my-model
  roundtrip  what each encoding loses on your files    pianogen roundtrip ~/midi

`pianogen COMMAND --help` says more."""

# Imported only when asked for: most bring in the whole training stack, and --help should not wait for it.
COMMANDS = (
    "train",
    "generate",
    "play",
    "show",
    "data",
    "evaluate",
    "compare",
    "audit",
    "export",
    "convert",
    "space",
    "push",
    "scores",
    "roundtrip",
)


@reports_errors()  # while its parts were loaded; after that a command takes care itself
def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    command, rest = (argv[0], argv[1:]) if argv else ("", [])
    if command in ("", "-h", "--help"):
        print(_USAGE, file=sys.stdout if command else sys.stderr)
        return 0 if command else 2
    if command not in COMMANDS:
        raise UsageError(f"unknown command {command!r}{did_you_mean(command, COMMANDS, 'see pianogen --help')}")
    return import_module(f"pianogen_hf.commands.{command}").main(rest)
