"""`pianogen data`: build a data set, check it for leaks, show what it is like, or publish it."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pianogen_hf.commands.options import (
    DESTINATION_OPTIONS,
    OneLineParser,
    add_destination_options,
    check_destination,
    check_folders_of_training,
    say_unusable,
)
from pianogen_hf.errors import ArgumentError, UsageError, did_you_mean, one_line, reports_errors
from pianogen_hf.folders import check_writable

if TYPE_CHECKING:
    from pianogen_hf.workflows.check_data import Report

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


@reports_errors("nothing was changed")
def main(argv: list[str] | None = None) -> int:
    """Run one of the four; returns 0, or 1 if the check found a leak."""
    argv = sys.argv[1:] if argv is None else argv
    command, rest = (argv[0], argv[1:]) if argv else ("", [])
    if command in ("", "-h", "--help"):
        print(_USAGE, file=sys.stdout if command else sys.stderr)
        return 0 if command else 2
    tasks = {"build": build, "check": check, "stats": stats, "push": push}
    if command not in tasks:
        raise UsageError(f"unknown command {command!r}{did_you_mean(command, tasks, 'see pianogen data --help')}")
    return tasks[command](rest)


def _own_options(argv: list[str], command: str, description: str, output: dict[str, Any]) -> tuple[str, list[str]]:
    """The `--output` of a command, and the rest of the command line, which is `parse_arguments`' to read."""
    parser = OneLineParser(
        prog=f"pianogen data {command}",
        description=description,
        epilog="All options of train.py that concern data work here, too: see train.py --help.",
        allow_abbrev=False,
    )
    parser.add_argument("--output", **output)
    args, rest = parser.parse_known_args(argv)
    return args.output, rest


# Each brings in the whole data stack, which --help and a mistake should not wait for.


def build(argv: list[str]) -> int:
    """Run `pianogen data build`; returns the exit code."""
    output, rest = _own_options(
        argv,
        "build",
        "Write a data set: pieces with their families and splits, split.json, and what was left out. Built again into "
        "the same folder, it grows: no piece changes its split. With a recipe or --tokenizer, chunks are written, too.",
        {"required": True, "metavar": "FOLDER", "help": "where the data set is to lie"},
    )
    check_folders_of_training(rest)
    check_writable(Path(output).expanduser().parent, "--output")  # the new data set is written beside the old one
    from pianogen_hf.training.arguments import parse_arguments
    from pianogen_hf.workflows.build_data import build_data

    model_args, data_args, _ = parse_arguments(rest)
    folder = Path(output).expanduser()
    manifest, report, chunks = build_data(folder, data_args, model_args if _wants_tokenizer(rest) else None)
    _say_what_was_built(folder, manifest, report, chunks)
    return 0


def _wants_tokenizer(argv: list[str]) -> bool:
    names = {option.split("=", 1)[0] for option in argv if option.startswith("--")}
    has_config = bool(argv) and not argv[0].startswith("-")
    of_tokenizers = {"--tokenizer", "--tokenizer_config", "--bpe_vocab_size", "--action_vocab_size"}
    return has_config or bool(names & {*of_tokenizers, "--model_name_or_path"})


def _say_what_was_built(folder: Path, manifest: dict[str, Any], report: dict[str, Any], chunks: dict[str, int]) -> None:
    print(f"{report['usable']} of {report['files']} files, {report['notes']:,} notes, {report['hours']:,} hours")
    from pianogen_hf.data.sources.walking import passed_over_lines

    for line in passed_over_lines(report["passed_over"]):
        print(line)
    say_unusable(report["unusable"], f"{folder}/reading_report.json")
    if report["between_sides"]:
        print(f"{len(report['between_sides'])} pieces left out: they share music with pieces of different splits")
    print("pieces: " + ", ".join(f"{split_name} {count:,}" for split_name, count in manifest["counts"].items()))
    if chunks:
        print("chunks: " + ", ".join(f"{split_name} {count:,}" for split_name, count in chunks.items()))
    print(f"written: {folder} (pianogen data check {folder} looks for leaks)")


def make_check_parser() -> argparse.ArgumentParser:
    """The options of `pianogen data check` that train.py does not have."""
    parser = OneLineParser(
        prog="pianogen data check",
        usage="pianogen data check [FOLDER | hub=NAME | CONFIG.yaml] [--OPTION VALUE ...]",
        description="Look for leaks between train, validation and test: in a data set that `pianogen data build` "
        "wrote, here or (hub=USER/NAME[@REVISION]) on the Hub; in a DatasetDict of chunks that anybody wrote, with "
        "--tokenizer; or in the split that train.py would make of a --source, with all options of train.py. Ends with "
        "exit code 1 if anything leaks.",
        epilog="Examples: pianogen data check data/mine ; pianogen data check --source folder=~/midi maestro=~/maestro "
        "; pianogen data check hub=user/name ; pianogen data check chunks/ --tokenizer runs/mine ; pianogen data check "
        "data/mine --model runs/mine",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model", metavar="MODEL", help="also: was this folder or Hub model trained on the evaluation pieces?")
    add("--accept_official", action="store_true", help="list leaks of published splits, but let them pass")
    add("--output", metavar="REPORT.json", help="write all findings to this file")
    return parser


def check(argv: list[str]) -> int:
    """Run `pianogen data check`; returns 0 if nothing leaks, else 1."""
    args, rest = make_check_parser().parse_known_args(argv)
    check_folders_of_training(rest)
    if args.output:
        check_writable(Path(args.output).parent, "--output")
    from pianogen_hf.records import write_json
    from pianogen_hf.workflows.check_data import check_folder, check_hub, check_sources

    place = rest[0] if rest and not rest[0].startswith("-") and Path(rest[0]).suffix not in (".yaml", ".yml") else None
    if place is None:
        report = check_sources(rest, args.model)
    elif place.startswith("hub="):
        report = check_hub(place, _tokenizer_option(rest[1:]), args.model)
    else:
        report = check_folder(Path(place), _tokenizer_option(rest[1:]), args.model)
    if args.output:
        write_json(Path(args.output), report.as_json())
    _print_findings(report, args.output)
    return int(any(not (finding.official and args.accept_official) for finding in report.findings))


def _tokenizer_option(argv: list[str]) -> str | None:
    parser = OneLineParser(prog="pianogen data check", add_help=False, allow_abbrev=False)
    parser.add_argument("--tokenizer")
    return parser.parse_args(argv).tokenizer


def _print_findings(report: Report, output: str | None) -> None:
    from pianogen_hf.data.checks import table

    for line in table(report.findings):
        print(line)
    for sources, families in report.shared.items():
        number = sum(map(len, families))
        print(f"{sources} share music: {number} pieces in {len(families)} families, such as {families[0][0]}")
    if report.unusable:
        say_unusable(report.unusable, output or "the file that --output would write")
    counts = ", ".join(f"{split_name} {count}" for split_name, count in report.counts.items())
    print(f"checked: {', '.join(report.checked)} ({counts})")
    official = sum(finding.official for finding in report.findings)
    total = f"{len(report.findings)} findings" + f", {official} of them in official splits" * bool(official)
    print(f"{total}{f'; all in {output}' if output else ''}" if report.findings else "no leak found")


def stats(argv: list[str]) -> int:
    """Run `pianogen data stats`; returns the exit code."""
    output, rest = _own_options(
        argv,
        "stats",
        "Pieces, notes and hours of each source as a table, and histograms of note counts, pitches and durations as a "
        "picture; all figures go to a .json file beside it. Takes the sources, or the folder of a built data set.",
        {"default": "stats.png", "metavar": "PICTURE.png", "help": "where to draw (default: stats.png)"},
    )
    picture = Path(output).expanduser()
    if picture.suffix.lower() != ".png":
        raise ArgumentError(f"--output must end in .png, got {output}")
    check_folders_of_training(rest)
    check_writable(picture.parent, "--output")
    from pianogen_hf.data.built import is_built
    from pianogen_hf.evaluation.corpus_statistics import markdown_table
    from pianogen_hf.training.arguments import parse_arguments
    from pianogen_hf.workflows.describe_data import describe_data

    folder = rest.pop(0) if rest and not rest[0].startswith("-") and is_built(rest[0]) else None
    _, data_args, _ = parse_arguments(rest)
    statistics, unusable, beside = describe_data(Path(folder) if folder else None, data_args, picture)
    print(markdown_table(statistics))
    say_unusable(unusable, str(beside))
    print(f"written: {picture}, {beside}")
    return 0


def make_push_parser() -> argparse.ArgumentParser:
    """The options of `pianogen data push`."""
    parser = OneLineParser(
        prog="pianogen data push",
        description="Put a data set that `pianogen data build` wrote on the Hugging Face Hub: pieces as MIDI bytes "
        "and, where they were built, chunks, as Parquet files that datasets, pandas and DuckDB read without this "
        "package; split.json; and a card whose figures are counted from the data. One commit. Then it is loaded from "
        "there with an empty cache and must hold what was sent. To push again is always safe: what is there already is "
        "not sent.",
        epilog="Examples: pianogen data push data/mine --repo me/my-music --license cc-by-4.0 --dry_run ; pianogen "
        "data push data/mine --repo me/my-music --license cc-by-4.0 --private ; train on it: train.py "
        "configs/v7.yaml --source hub=me/my-music. First log in, once: hf auth login",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("folder", type=Path, metavar="FOLDER", help="what `pianogen data build` wrote")
    add("--repo", required=True, metavar="USER/NAME", help="the data set on the Hub, made if it is not there")
    add("--license", default="unknown", help="as the Hub calls it: cc-by-4.0, cc0-1.0, ... (default: unknown)")
    add("--card_text", type=Path, metavar="FILE.md", help="your own words for the card, which stand below its title")
    add_destination_options(parser, "Upload data set with pianogen_hf")
    add("--dry_run", action="store_true", help="only list what would go up, and show the card; asks nobody")
    return parser


def push(argv: list[str]) -> int:
    """Run `pianogen data push`; returns the exit code."""
    args = make_push_parser().parse_args(argv)
    _check_push(args)
    text = _card_text(args.card_text)
    from pianogen_hf.workflows.push_data import push_data

    options = {name: getattr(args, name) for name in DESTINATION_OPTIONS}
    return push_data(args.folder, args.repo, license=args.license, text=text, dry_run=args.dry_run, **options)


def _check_push(args: argparse.Namespace) -> None:
    check_destination(args)
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", args.license):
        raise UsageError(f"--license {args.license!r} is no name that the Hub knows: write it as in cc-by-nc-sa-4.0")


def _card_text(path: Path | None) -> str:
    try:
        text = "" if path is None else path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--card_text {path} can't be read: {one_line(error)}") from error
    if text.startswith("---"):
        raise UsageError(f"--card_text {path} has front matter: take it out, the card's is made from the data")
    return text
