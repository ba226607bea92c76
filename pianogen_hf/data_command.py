"""`pianogen data`: build a data set, check it for leaks, or show what it is like. Wiring only."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, List, Value

from pianogen_hf.command_line import OneLineParser, UsageError
from pianogen_hf.data.built import check_writable, is_built, read_pieces, write_built
from pianogen_hf.data.caching import cached_map, fingerprint_of
from pianogen_hf.data.manifest import read_manifest, split_manifest
from pianogen_hf.data.sources import DataError, list_sources, load_pieces, reading_report, usable_pieces
from pianogen_hf.data_check import check
from pianogen_hf.data_push_command import push
from pianogen_hf.evaluation.corpus_statistics import (
    DURATION_EDGES_SEC,
    NOTE_COUNT_EDGES,
    corpus_statistics,
    markdown_table,
    piece_histograms,
)
from pianogen_hf.prepare import load_split, make_chunks, make_tokenizer, pin_sources, programs_of, split_parameters
from pianogen_hf.publishing.hub_errors import HubError
from pianogen_hf.publishing.model_files import FolderError
from pianogen_hf.rendering.statistics_plot import save_statistics_plot
from pianogen_hf.tokenizers.midi import MidiError, read_midi, write_whole
from pianogen_hf.training.arguments import ArgumentError, DataArguments, ModelArguments, parse_arguments

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
_HISTOGRAM_FEATURES = Features({"pitch": List(Value("int64")), "duration_sec": List(Value("int64"))})
_STATISTICS_VERSION = 1  # raised when what is cached changes
_SHOWN = 20  # unusable files that fit on a screen


def main(argv: list[str] | None = None) -> int:
    """Run one of the four; returns 0, 1 if the check found a leak, or 2 after an error that a user can mend."""
    argv = sys.argv[1:] if argv is None else argv
    command, rest = (argv[0], argv[1:]) if argv else ("", [])
    tasks = {"build": _build, "check": check, "stats": _stats, "push": push}
    if command not in tasks:
        is_help = command in ("-h", "--help")
        known = _USAGE if is_help or not command else f"error: unknown command {command!r}; see pianogen data --help"
        print(known, file=sys.stdout if is_help else sys.stderr)
        return 0 if is_help else 2
    try:
        return tasks[command](rest)
    except (UsageError, ArgumentError, DataError, FolderError, HubError, MidiError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: nothing was changed", file=sys.stderr)
        return 130


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


# Build ---------------------------------------------------------------------------------------------------------------


def _build(argv: list[str]) -> int:
    output, rest = _own_options(
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
    _say_unusable(report["unusable"], f"{folder}/reading_report.json")
    if report["between_sides"]:
        print(f"{len(report['between_sides'])} pieces left out: they share music with pieces on different sides")
    print("pieces: " + ", ".join(f"{side} {count:,}" for side, count in manifest["counts"].items()))
    if chunks:
        print("chunks: " + ", ".join(f"{side} {count:,}" for side, count in chunks.items()))
    print(f"written: {folder} (pianogen data check {folder} looks for leaks)")


def _say_unusable(unusable: dict[str, str], where: str) -> None:
    for name, reason in list(unusable.items())[:_SHOWN]:
        print(f"left out: {name}: {reason}")
    if len(unusable) > _SHOWN:
        print(f"... and {len(unusable) - _SHOWN} more, all in {where}")


# Stats ---------------------------------------------------------------------------------------------------------------


def _stats(argv: list[str]) -> int:
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
    folder = rest.pop(0) if rest and not rest[0].startswith("-") and is_built(rest[0]) else None
    _, data_args, _ = parse_arguments(rest)
    pieces, unusable = _built_pieces(Path(folder)) if folder else _source_pieces(data_args)
    statistics = _statistics(pieces, unusable, data_args)
    edges = {"note_count": NOTE_COUNT_EDGES, "duration_sec": DURATION_EDGES_SEC}
    save_statistics_plot(statistics, edges, picture)
    figures = {
        "sources": statistics,
        "edges": {name: [round(float(edge), 6) for edge in each] for name, each in edges.items()},
        "unusable": unusable,
    }
    beside = picture.with_suffix(".json")
    write_whole(beside, (json.dumps(figures, indent=1, ensure_ascii=False) + "\n").encode())
    print(markdown_table(statistics))
    _say_unusable(unusable, str(beside))
    print(f"written: {picture}, {beside}")
    return 0


def _source_pieces(args: DataArguments) -> tuple[Dataset, dict[str, str]]:
    pin_sources(args)
    files = list_sources(args.source, args.data_path, args.cache_dir)
    read = load_pieces(files, Path(args.cache_dir).expanduser(), programs_of(args.programs), args.num_proc)
    return usable_pieces(read), reading_report(read)["unusable"]


def _built_pieces(folder: Path) -> tuple[Dataset, dict[str, str]]:
    try:
        report = json.loads((folder / "reading_report.json").read_text(encoding="utf-8"))
        return read_pieces(folder)[0], report["unusable"]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{folder} has no whole reading_report.json: build it anew") from error


def _statistics(pieces: Dataset, unusable: dict[str, str], args: DataArguments) -> dict[str, dict[str, Any]]:
    """What `corpus_statistics` says of each source, by name; unusable pieces belong to the source they are named by."""
    key = fingerprint_of([_STATISTICS_VERSION, pieces._fingerprint])
    histograms = cached_map(
        pieces.select_columns(["midi"]),
        _histograms,
        Path(args.cache_dir).expanduser() / f"statistics-{key}",
        features=_HISTOGRAM_FEATURES,
        remove_columns=["midi"],
        num_proc=args.num_proc,
        desc="Counting notes",
    ).with_format("numpy")
    columns = {name: np.asarray(pieces[name][:]) for name in ("source", "num_notes", "seconds", "excluded_notes")}
    failed = [name.split("/", 1)[0] for name in unusable]
    statistics = {}
    for source in dict.fromkeys([*columns["source"].tolist(), *failed]):
        rows = np.flatnonzero(columns["source"] == source)
        found = ((row["pitch"], row["duration_sec"]) for row in histograms.select(rows))
        statistics[source] = corpus_statistics(
            found,
            columns["num_notes"][rows],
            columns["seconds"][rows],
            int(columns["excluded_notes"][rows].sum()),
            failed.count(source),
        )
    return statistics


def _histograms(row: dict[str, Any]) -> dict[str, Any]:
    pitch, duration_sec = piece_histograms(read_midi(row["midi"], None))
    return {"pitch": pitch, "duration_sec": duration_sec}
