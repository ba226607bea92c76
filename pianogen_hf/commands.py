"""The `pianogen` command: one word per task, wiring only."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NoReturn

_USAGE = """usage: pianogen COMMAND [OPTIONS]

commands:
  train      train a model from a YAML file            pianogen train configs/quickstart.yaml
  generate   make music, from a prompt or nothing      pianogen generate --prompt my.mid --seconds 30 --wav
  audit      how much a model copies from its train    pianogen audit --model runs/my-model --data_path ~/midi
  scores     what a trained model reached              pianogen scores runs/my-model
  roundtrip  what each encoding loses on your files    pianogen roundtrip ~/midi

`pianogen COMMAND --help` says more."""


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    argv = sys.argv[1:] if argv is None else argv
    command, rest = (argv[0], argv[1:]) if argv else ("", [])
    # Imported only when asked for: each brings in the whole training stack, and --help should not wait for it.
    if command == "train":
        from pianogen_hf.train import main as train

        return train(rest)
    if command == "generate":
        from pianogen_hf.generate import main as generate

        return generate(rest)
    if command == "audit":
        from pianogen_hf.audit import main as audit

        return audit(rest)
    if command == "scores":
        return _scores(rest)
    if command == "roundtrip":
        return _roundtrip(rest)
    print(_USAGE if command in ("", "-h", "--help") else f"error: unknown command {command!r}; see pianogen --help",
          file=sys.stdout if command in ("-h", "--help") else sys.stderr)  # fmt: skip
    return 0 if command in ("-h", "--help") else 2


class _Parser(argparse.ArgumentParser):
    """Errors are one line, not a page of usage."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message} (see {self.prog} --help)\n")


def _scores(argv: list[str]) -> int:
    parser = _Parser(
        prog="pianogen scores",
        description="Print the validation bits per note of a finished run beside the baselines measured with it.",
    )
    parser.add_argument("folder", type=Path, help="output_dir of train.py")
    args = parser.parse_args(argv)
    from pianogen_hf.train import scores_table
    from pianogen_hf.training.arguments import ArgumentError

    try:
        print(scores_table(args.folder))
    except ArgumentError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _roundtrip(argv: list[str]) -> int:
    parser = _Parser(
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

    names = ("PerformanceTokenizer", "CrayKHTokenizer", "JSBTokenizer", "RemiTokenizer")
    tokenizers = {name: getattr(pianogen_hf, name)() for name in names}
    totals = {name: RoundTrip() for name in names}
    left_out: list[str] = []
    for file in tqdm(list_pieces("folder", folder)[:max_files], desc="Round trips", unit="file"):
        try:
            notes = pianogen_hf.read_midi(file.path)
            if len(notes) == 0:
                raise DataError(f"{file.path}: no piano notes")
            results = {name: round_trip(tokenizer, notes) for name, tokenizer in tokenizers.items()}
        except ValueError as error:  # can't be read, holds nothing, or is beyond what a tokenizer can write
            left_out.append(str(error) if file.path in str(error) else f"{file.path}: {error}")
            continue
        totals = {name: totals[name] + result for name, result in results.items()}
    if totals[names[0]].reference == 0:
        raise DataError(f"no file in {folder} could be used, for example {left_out[0]}")
    columns = list(RoundTrip().report())
    print("| tokenizer | " + " | ".join(columns) + " | lost by design |")
    print("|---" * (len(columns) + 2) + "|")
    for name, tokenizer in tokenizers.items():
        cells = [f"{value:.0f}" if value > 1000 else f"{value:.4g}" for value in totals[name].report().values()]
        print(f"| {name} | {' | '.join(cells)} | {', '.join(tokenizer.lost_fields)} |")
    for reason in left_out:
        print(f"left out: {reason}")
