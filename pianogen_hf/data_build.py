"""`pianogen data build`: pieces, their families and sides, and if wanted chunks, as a folder. Wiring only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset

from pianogen_hf.command_line import OneLineParser
from pianogen_hf.data.built import check_writable, is_built, write_built
from pianogen_hf.data.manifest import read_manifest, split_manifest
from pianogen_hf.data.sources import DataError
from pianogen_hf.prepare import load_split, make_chunks, make_tokenizer, split_parameters
from pianogen_hf.training.arguments import ArgumentError, DataArguments, ModelArguments, parse_arguments

_SHOWN = 20  # unusable files that fit on a screen


def build(argv: list[str]) -> int:
    """Run `pianogen data build`; returns the exit code."""
    output, rest = own_options(
        argv,
        "build",
        "Write a data set: pieces with their families and sides, split.json, and what was left out. Built again into "
        "the same folder, it grows: no piece changes side. With a YAML file or --tokenizer, chunks are written, too.",
        {"required": True, "metavar": "FOLDER", "help": "where the data set is to lie"},
    )
    model_args, data_args, _ = parse_arguments(rest)
    folder = Path(output).expanduser()
    check_writable(folder)
    extends = is_built(folder)
    if extends:
        if data_args.split_from:
            raise ArgumentError(f"{folder} has a split already, which stays: leave out --split_from")
        data_args.split_from = [str(folder)]
    pieces, sides, report = load_split(data_args)
    if extends:
        _check_none_lost(folder, pieces, report)
    parameters = split_parameters(data_args)
    tokenizer = chunks = None
    if _wants_tokenizer(rest):
        tokenizer = make_tokenizer(model_args, pieces, sides)
        chunks = make_chunks(data_args, pieces, sides, tokenizer)
        parameters |= _chunk_parameters(model_args, data_args)
    manifest = split_manifest(pieces, sides, parameters)
    write_built(folder, pieces, sides, manifest, report, chunks, tokenizer)
    _say_what_was_built(folder, manifest, report, {side: len(rows) for side, rows in (chunks or {}).items()})
    return 0


def _wants_tokenizer(argv: list[str]) -> bool:
    names = {option.split("=", 1)[0] for option in argv if option.startswith("--")}
    has_config = bool(argv) and not argv[0].startswith("-")
    return has_config or bool(names & {"--tokenizer", "--tokenizer_config", "--bpe_vocab_size", "--model_name_or_path"})


def _chunk_parameters(model_args: ModelArguments, data_args: DataArguments) -> dict[str, Any]:
    names = ("chunk_length", "packing", "transpose", "velocity", "stretch")
    return {
        "tokenizer_from": model_args.model_name_or_path,
        **{name: getattr(data_args, name) for name in names},
    }


def _check_none_lost(folder: Path, pieces: Dataset, report: dict[str, Any]) -> None:
    """A data set only grows: pieces that it has and the sources lack would be gone for good."""
    present = set(pieces["content"])
    before = read_manifest(folder / "split.json")["pieces"].items()
    lost = [name for name, (side, _, content) in before if side and content not in present]
    lost = sorted(set(lost) - set(report["between_sides"]))
    if lost:
        raise DataError(
            f"{folder} holds {len(lost)} piece(s) that these sources lack, such as {lost[0]}: name their source, too "
            f"(or --source dataset={folder}), or choose another --output with --split_from {folder}"
        )


def _say_what_was_built(folder: Path, manifest: dict[str, Any], report: dict[str, Any], chunks: dict[str, int]) -> None:
    print(f"{report['usable']} of {report['files']} files, {report['notes']:,} notes, {report['hours']:,} hours")
    say_unusable(report["unusable"], f"{folder}/reading_report.json")
    if report["between_sides"]:
        print(f"{len(report['between_sides'])} pieces left out: they share music with pieces on different sides")
    print("pieces: " + ", ".join(f"{side} {count:,}" for side, count in manifest["counts"].items()))
    if chunks:
        print("chunks: " + ", ".join(f"{side} {count:,}" for side, count in chunks.items()))
    print(f"written: {folder} (pianogen data check {folder} looks for leaks)")


def own_options(argv: list[str], command: str, description: str, output: dict[str, Any]) -> tuple[str, list[str]]:
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


def say_unusable(unusable: dict[str, str], where: str) -> None:
    """Name some of the files that can't be used, and the file that names them all."""
    for name, reason in list(unusable.items())[:_SHOWN]:
        print(f"left out: {name}: {reason}")
    if len(unusable) > _SHOWN:
        print(f"... and {len(unusable) - _SHOWN} more, all in {where}")
