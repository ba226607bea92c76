"""The `pianogen` command: one word per task, wiring only."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

from pianogen_hf.command_line import OneLineParser, UsageError

_USAGE = """usage: pianogen COMMAND [OPTIONS]

commands:
  train      train a model from a YAML file            pianogen train configs/quickstart.yaml
  generate   make music, from a prompt or nothing      pianogen generate --prompt my.mid --seconds 30 --wav
  data       build, check for leaks, or describe data  pianogen data check --source folder=~/midi
  evaluate   measure a model on held-out pieces        pianogen evaluate --model runs/my-model
  compare    train and measure recipes side by side    pianogen compare configs/v*.yaml --minutes 20 --output runs/all
  audit      how much a model copies from its train    pianogen audit --model runs/my-model --data_path ~/midi
  export     make a model several times as fast        pianogen export --model runs/my-model --output runs/my-model
  space      a page on which visitors try a model      pianogen space --model runs/my-model --output page
  push       put a model on the Hugging Face Hub       pianogen push --model runs/my-model --repo me/my-model
  scores     what a trained model reached              pianogen scores runs/my-model
  roundtrip  what each encoding loses on your files    pianogen roundtrip ~/midi

`pianogen COMMAND --help` says more."""


# Imported only when asked for: most bring in the whole training stack, and --help should not wait for it.
_MODULES = {
    "train": "pianogen_hf.train",
    "generate": "pianogen_hf.generate",
    "data": "pianogen_hf.data_command",
    "evaluate": "pianogen_hf.evaluate_command",
    "compare": "pianogen_hf.compare_command",
    "audit": "pianogen_hf.audit_command",
    "export": "pianogen_hf.export_command",
    "space": "pianogen_hf.space_command",
    "push": "pianogen_hf.push_command",
}


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    command, rest = (argv[0], argv[1:]) if argv else ("", [])
    if command in ("", "-h", "--help"):
        print(_USAGE, file=sys.stdout if command else sys.stderr)
        return 0 if command else 2
    try:
        if command in _MODULES:
            return import_module(_MODULES[command]).main(rest)
        if command in ("scores", "roundtrip"):
            return (_scores if command == "scores" else _roundtrip)(rest)
        raise UsageError(f"unknown command {command!r}; see pianogen --help")
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # while its parts were loaded; after that a command takes care itself
        print("interrupted", file=sys.stderr)
        return 130


def _scores(argv: list[str]) -> int:
    parser = OneLineParser(
        prog="pianogen scores",
        description="Print the validation bits per note of a finished run beside the baselines measured with it.",
    )
    parser.add_argument("folder", type=Path, help="output_dir of train.py")
    args = parser.parse_args(argv)
    from pianogen_hf.train_end import scores_table
    from pianogen_hf.training.arguments import ArgumentError

    try:
        print(scores_table(args.folder))
    except ArgumentError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _roundtrip(argv: list[str]) -> int:
    parser = OneLineParser(
        prog="pianogen roundtrip",
        description="Encode and decode every MIDI file of a folder with every tokenizer and report what was lost: note "
        "F1 (onset within 50 ms; offset within 50 ms or 20 %%; velocity within 8), dropped or merged and added notes, "
        "tokens per note.",
    )
    parser.add_argument("folder", help="a folder of MIDI files")
    parser.add_argument("--max_files", type=int, default=100, help="look at this many files at most (default: 100)")
    args = parser.parse_args(argv)
    if args.max_files < 1:
        parser.error("--max_files must be at least 1")
    from pianogen_hf.data.sources import DataError

    try:
        _print_round_trips(args.folder, args.max_files)
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _print_round_trips(folder: str, max_files: int) -> None:
    from tqdm import tqdm

    import pianogen_hf
    from pianogen_hf.data.sources import DataError, list_pieces
    from pianogen_hf.evaluation.round_trip import RoundTrip, round_trip
    from pianogen_hf.evaluation.tables import table_lines
    from pianogen_hf.registration import exported

    tokenizers = {each.__name__: each() for each in exported(pianogen_hf.NoteTokenizer)}
    totals = {name: RoundTrip() for name in tokenizers}
    left_out: list[str] = []
    files = list_pieces("folder", folder)[:max_files]
    for file in tqdm(files, desc="Round trips", unit="file"):
        try:
            notes = pianogen_hf.read_midi(file.path)
            if len(notes) == 0:
                raise DataError(f"{file.path}: no piano notes")
            results = {name: round_trip(tokenizer, notes) for name, tokenizer in tokenizers.items()}
        except ValueError as error:  # can't be read, holds nothing, or is beyond what a tokenizer can write
            left_out.append(str(error) if file.path in str(error) else f"{file.path}: {error}")
            continue
        totals = {name: totals[name] + result for name, result in results.items()}
    if len(left_out) == len(files):
        raise DataError(f"no file in {folder} could be used, for example {left_out[0]}")
    rows = []
    for name, tokenizer in tokenizers.items():
        cells = [f"{value:.0f}" if value > 1000 else f"{value:.4g}" for value in totals[name].report().values()]
        rows.append([name, *cells, ", ".join(tokenizer.lost_fields)])
    print("\n".join(table_lines(["tokenizer", *RoundTrip().report(), "lost by design"], rows)))
    for reason in left_out:
        print(f"left out: {reason}")
