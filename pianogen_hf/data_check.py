"""`pianogen data check`: is anything on two sides of a split that should not be? Wiring of `data/checks.py`."""

from __future__ import annotations

import argparse
import json
from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict
from huggingface_hub import constants

from pianogen_hf.command_line import OneLineParser
from pianogen_hf.data.built import is_built, read_pieces, read_splits
from pianogen_hf.data.checks import (
    Finding,
    changed_music,
    content_leaks,
    family_leaks,
    fingerprints_of,
    manifest_faults,
    model_leaks,
    name_leaks,
    shared_families,
    table,
    tokenizer_faults,
)
from pianogen_hf.data.chunk_checks import chunk_leaks, evaluation_faults, train_faults
from pianogen_hf.data.chunks import notes_of
from pianogen_hf.data.hub_source import fetch, is_published
from pianogen_hf.data.manifest import read_manifest
from pianogen_hf.data.provenance import Provenance
from pianogen_hf.data.sources import PIECE_FEATURES, DataError
from pianogen_hf.data.splits import SIDES
from pianogen_hf.loading import load_encoder
from pianogen_hf.prepare import load_split
from pianogen_hf.publishing.hub_errors import limit_waiting
from pianogen_hf.tokenizers.midi import write_whole
from pianogen_hf.tokenizers.notes_encoder import NotesEncoder
from pianogen_hf.training.arguments import ArgumentError, parse_arguments

# Chunks of train pieces are judged by name and by content. Where the names are right, a share just above the limit for
# pieces says only that a coarse grid makes music more alike; a piece in disguise shares far more.
_DISGUISED_SHARE = 0.1


@dataclass
class _Report:
    """What was looked at, and what was found."""

    counts: dict[str, int]
    findings: list[Finding] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)
    shared: dict[str, list[list[str]]] = field(default_factory=dict)  # families of several sources

    def add(self, check: str, findings: list[Finding]) -> None:
        self.checked.append(check)
        self.findings += findings

    def as_json(self) -> dict[str, Any]:
        """What `--output` writes."""
        return {
            "clean": not self.findings,
            "counts": self.counts,
            "checked": self.checked,
            "findings": [finding.report() for finding in self.findings],
            "families_of_several_sources": self.shared,
        }


def make_parser() -> argparse.ArgumentParser:
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
    """Check as the command line says; returns 0 if nothing leaks, else 1.

    Raises:
        UsageError, ArgumentError, DataError, MidiError: for what a user can mend.
    """
    args, rest = make_parser().parse_known_args(argv)
    if rest and rest[0].startswith("hub="):
        report = _check_hub(rest[0], rest[1:], args.model)
    elif rest and not rest[0].startswith("-") and Path(rest[0]).suffix not in (".yaml", ".yml"):
        report = _check_folder(Path(rest[0]), rest[1:], args.model)
    else:
        _, data_args, _ = parse_arguments(rest)
        pieces, sides, read = load_split(data_args)
        report = _new_report(sides)
        if read["between_sides"]:  # they would join two sides
            report.counts["left out"] = len(read["between_sides"])
        _check_pieces(report, pieces, sides)
        _check_models(report, pieces, sides, [args.model] if args.model else [])
    if args.output:
        write_whole(args.output, (json.dumps(report.as_json(), indent=1, ensure_ascii=False) + "\n").encode())
    _print(report, args.output)
    return int(any(not (finding.official and args.accept_official) for finding in report.findings))


def _print(report: _Report, output: str | None) -> None:
    for line in table(report.findings):
        print(line)
    for sources, families in report.shared.items():
        number = sum(map(len, families))
        print(f"{sources} share music: {number} pieces in {len(families)} families, such as {families[0][0]}")
    counts = ", ".join(f"{side} {count}" for side, count in report.counts.items())
    print(f"checked: {', '.join(report.checked)} ({counts})")
    official = sum(finding.official for finding in report.findings)
    total = f"{len(report.findings)} findings" + f", {official} of them in official splits" * bool(official)
    print(f"{total}{f'; all in {output}' if output else ''}" if report.findings else "no leak found")


def _new_report(sides: list[str]) -> _Report:
    return _Report(dict(Counter(sides)))


def _check_hub(source: str, options: list[str], model: str | None) -> _Report:
    limit_waiting(constants.HF_HUB_DOWNLOAD_TIMEOUT)
    folder = fetch(source, whole=True)
    if not is_published(folder):
        raise DataError(f"{source} was not published by `pianogen data push`: write --source {source}")
    return _check_folder(folder, options, model)


def _check_folder(folder: Path, options: list[str], model: str | None) -> _Report:
    if not folder.is_dir():
        raise DataError(f"{folder} is neither a folder nor a YAML file")
    parser = OneLineParser(prog="pianogen data check", add_help=False, allow_abbrev=False)
    parser.add_argument("--tokenizer")
    tokenizer = parser.parse_args(options).tokenizer
    if is_built(folder):
        if tokenizer:
            raise ArgumentError(f"{folder} has its own tokenizer: leave out --tokenizer")
        return _check_built(folder, model)
    if not (folder / "dataset_dict.json").is_file():
        raise DataError(f"{folder} is no data set: for MIDI files write --source folder={folder}")
    if not tokenizer or model:
        raise ArgumentError("chunks are checked with --tokenizer, a folder or Hub id, and without --model")
    return _check_chunks(read_splits(folder), load_encoder(tokenizer))


def _check_built(folder: Path, model: str | None) -> _Report:
    pieces, sides = read_pieces(folder)
    report = _new_report(sides)
    parameters: dict[str, Any] = {}
    try:
        manifest = read_manifest(folder / "split.json")
        parameters = manifest["parameters"]
        report.add("manifest", manifest_faults(manifest, pieces, sides))
    except DataError as error:
        report.add("manifest", [Finding("manifest", str(error))])
    if not parameters.get("normalize_key"):  # content is that of the music before it was moved to another key
        report.add("content hashes", changed_music(pieces, sides))
    fingerprints = _check_pieces(report, pieces, sides)
    if "fingerprint" not in pieces.column_names:  # they are not published
        pieces = pieces.add_column("fingerprint", fingerprints, feature=PIECE_FEATURES["fingerprint"])
    own = parameters.get("tokenizer_from")
    if (folder / "chunks").is_dir():
        _check_tokenized(report, folder, pieces, sides, fingerprints)
        if not own:
            tokenizer = load_encoder(str(folder / "tokenizer"))
            report.add("tokenizer", tokenizer_faults(tokenizer, notes_of(pieces, sides, "train")))
    _check_models(report, pieces, sides, [name for name in dict.fromkeys((own, model)) if name])
    return report


def _check_pieces(report: _Report, pieces: Dataset, sides: list[str]) -> list[np.ndarray]:
    """Returns the fingerprints that the pieces were compared by."""
    fingerprints = fingerprints_of(pieces)
    by_content = content_leaks(pieces, sides, fingerprints)
    report.add("content", by_content)
    report.add("families", family_leaks(pieces, sides, by_content))
    report.shared = shared_families(pieces)
    return fingerprints


def _check_tokenized(
    report: _Report, folder: Path, pieces: Dataset, sides: list[str], fingerprints: list[np.ndarray]
) -> None:
    tokenizer, chunks = load_encoder(str(folder / "tokenizer")), read_splits(folder / "chunks")
    none = next(iter(chunks.values())).select([])
    names = list(pieces["piece_id"])
    rows = {side: [row for row, each in enumerate(sides) if each == side] for side in SIDES}
    for side in SIDES[1:]:
        faults = evaluation_faults(chunks.get(side, none), pieces.select(rows[side]), tokenizer, side)
        report.add(f"{side} chunks", faults)
    train = chunks.get("train", none)
    evaluated = {side: [(names[row], fingerprints[row]) for row in rows[side]] for side in SIDES[1:]}
    known = {frozenset(finding.pieces) for finding in report.findings}
    disguised = [
        replace(leak, check="train chunks")
        for leak in chunk_leaks({"train": train}, tokenizer, evaluated)
        if "train" in leak.sides and (leak.share or 0) >= _DISGUISED_SHARE and frozenset(leak.pieces) not in known
    ]
    report.add("train chunks", train_faults(train, [names[row] for row in rows["train"]]) + disguised)


def _check_models(report: _Report, pieces: Dataset, sides: list[str], models: list[str]) -> None:
    for model in models:
        provenance = Provenance.load(model)
        unknown = [Finding("unknown", f"{name} tells nothing") for name in provenance.unknown]
        report.add(f"provenance of {model}", model_leaks(provenance.overlap(pieces, sides), model) + unknown)


def _check_chunks(chunks: DatasetDict, tokenizer: NotesEncoder) -> _Report:
    for side, rows in chunks.items():
        if tokenizer.input_name not in rows.column_names:
            raise DataError(f"{side} has no column {tokenizer.input_name} but {', '.join(rows.column_names)}")
    report = _Report({side: len(rows) for side, rows in chunks.items()})
    named = {side: rows["piece_id"] for side, rows in chunks.items() if "piece_id" in rows.column_names}
    if named:
        report.add("names", name_leaks(named))
    try:
        report.add("content of chunks", chunk_leaks(chunks, tokenizer))
    except ValueError as error:
        raise DataError(f"the tokenizer did not make these chunks: {error}") from error
    return report
