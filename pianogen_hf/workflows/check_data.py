"""Checking data: is anything in two splits that should not be?"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict
from huggingface_hub import constants

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
    tokenizer_faults,
)
from pianogen_hf.data.chunk_checks import chunk_leaks, evaluation_faults, train_faults
from pianogen_hf.data.chunks import notes_of
from pianogen_hf.data.manifest import read_manifest
from pianogen_hf.data.pieces import PIECE_FEATURES
from pianogen_hf.data.provenance import Provenance
from pianogen_hf.data.sources.hub import fetch, is_published
from pianogen_hf.data.split_names import SPLITS
from pianogen_hf.errors import ArgumentError, DataError
from pianogen_hf.hub.errors import limit_waiting
from pianogen_hf.records import read_json
from pianogen_hf.tokenizers.notes_encoder import NotesEncoder
from pianogen_hf.training.arguments import parse_arguments
from pianogen_hf.workflows.loading import load_encoder
from pianogen_hf.workflows.split import load_split

# Chunks of train pieces are judged by name and by content. Where the names are right, a share just above the limit for
# pieces says only that a coarse grid makes music more alike; a piece in disguise shares far more.
_DISGUISED_SHARE = 0.1


@dataclass
class Report:
    """What was looked at, and what was found."""

    counts: dict[str, int]
    findings: list[Finding] = field(default_factory=list)
    checked: list[str] = field(default_factory=list)
    shared: dict[str, list[list[str]]] = field(default_factory=dict)  # families of several sources
    unusable: dict[str, str] = field(default_factory=dict)  # files that could not be looked at, and why

    def add(self, check: str, findings: list[Finding]) -> None:
        """Record a check and what it found."""
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
            "unusable": self.unusable,
        }


def _new_report(split_names: list[str]) -> Report:
    return Report(dict(Counter(split_names)))


def check_sources(argv: list[str], model: str | None) -> Report:
    """Check the split that train.py would make with these options.

    Raises:
        ArgumentError, DataError: for what a user can mend.
    """
    _, data_args, _ = parse_arguments(argv)
    split = load_split(data_args)
    report = _new_report(split.split_names)
    report.unusable = split.report["unusable"]
    if split.report["between_sides"]:  # they would join two splits
        report.counts["left out"] = len(split.report["between_sides"])
    _check_pieces(report, split.pieces, split.split_names)
    _check_models(report, split.pieces, split.split_names, [model] if model else [])
    return report


def check_hub(source: str, tokenizer: str | None, model: str | None) -> Report:
    """Check a data set that `pianogen data push` has published, `hub=USER/NAME[@REVISION]`; else as `check_folder`."""
    limit_waiting(constants.HF_HUB_DOWNLOAD_TIMEOUT)
    folder = fetch(source, whole=True)
    if not is_published(folder):
        raise DataError(f"{source} was not published by `pianogen data push`: write --source {source}")
    return check_folder(folder, tokenizer, model)


def check_folder(folder: Path, tokenizer: str | None, model: str | None) -> Report:
    """Check a data set that `pianogen data build` wrote, or a DatasetDict of chunks that anybody wrote.

    Args:
        folder: the data set.
        tokenizer: of chunks that somebody else wrote, a folder or Hub id; a data set has its own.
        model: also check whether this model was trained on evaluation pieces; None for no model.

    Raises:
        ArgumentError, DataError: for what a user can mend.
    """
    if not folder.is_dir():
        raise DataError(f"{folder} is neither a folder nor a YAML file")
    if is_built(folder):
        if tokenizer:
            raise ArgumentError(f"{folder} has its own tokenizer: leave out --tokenizer")
        return _check_built(folder, model)
    if not (folder / "dataset_dict.json").is_file():
        raise DataError(f"{folder} is no data set: for MIDI files write --source folder={folder}")
    if not tokenizer or model:
        raise ArgumentError("chunks are checked with --tokenizer, a folder or Hub id, and without --model")
    return _check_chunks(read_splits(folder), load_encoder(tokenizer))


def _check_built(folder: Path, model: str | None) -> Report:
    pieces, split_names = read_pieces(folder)
    report = _new_report(split_names)
    report.unusable = read_json(folder / "reading_report.json", default={}).get("unusable", {})
    parameters: dict[str, Any] = {}
    try:
        manifest = read_manifest(folder / "split.json")
        parameters = manifest["parameters"]
        report.add("manifest", manifest_faults(manifest, pieces, split_names))
    except DataError as error:
        report.add("manifest", [Finding("manifest", str(error))])
    if not parameters.get("normalize_key"):  # content is that of the music before it was moved to another key
        report.add("content hashes", changed_music(pieces, split_names))
    fingerprints = _check_pieces(report, pieces, split_names)
    if "fingerprint" not in pieces.column_names:  # they are not published
        pieces = pieces.add_column("fingerprint", fingerprints, feature=PIECE_FEATURES["fingerprint"])
    own = parameters.get("tokenizer_from")
    if (folder / "chunks").is_dir():
        _check_tokenized(report, folder, pieces, split_names, fingerprints)
        if not own:
            tokenizer = load_encoder(str(folder / "tokenizer"))
            report.add("tokenizer", tokenizer_faults(tokenizer, notes_of(pieces, split_names, "train")))
    _check_models(report, pieces, split_names, [name for name in dict.fromkeys((own, model)) if name])
    return report


def _check_pieces(report: Report, pieces: Dataset, split_names: list[str]) -> list[np.ndarray]:
    """Returns the fingerprints that the pieces were compared by."""
    fingerprints = fingerprints_of(pieces)
    by_content = content_leaks(pieces, split_names, fingerprints)
    report.add("content", by_content)
    report.add("families", family_leaks(pieces, split_names, by_content))
    report.shared = shared_families(pieces)
    return fingerprints


def _check_tokenized(
    report: Report, folder: Path, pieces: Dataset, split_names: list[str], fingerprints: list[np.ndarray]
) -> None:
    tokenizer, chunks = load_encoder(str(folder / "tokenizer")), read_splits(folder / "chunks")
    none = next(iter(chunks.values())).select([])
    names = list(pieces["piece_id"])
    rows = {split_name: [row for row, each in enumerate(split_names) if each == split_name] for split_name in SPLITS}
    for split_name in SPLITS[1:]:
        faults = evaluation_faults(chunks.get(split_name, none), pieces.select(rows[split_name]), tokenizer, split_name)
        report.add(f"{split_name} chunks", faults)
    train = chunks.get("train", none)
    evaluated = {split_name: [(names[row], fingerprints[row]) for row in rows[split_name]] for split_name in SPLITS[1:]}
    known = {frozenset(finding.pieces) for finding in report.findings}
    disguised = [
        replace(leak, check="train chunks")
        for leak in chunk_leaks({"train": train}, tokenizer, evaluated)
        if "train" in leak.sides and (leak.share or 0) >= _DISGUISED_SHARE and frozenset(leak.pieces) not in known
    ]
    report.add("train chunks", train_faults(train, [names[row] for row in rows["train"]]) + disguised)


def _check_models(report: Report, pieces: Dataset, split_names: list[str], models: list[str]) -> None:
    for model in models:
        provenance = Provenance.load(model)
        unknown = [Finding("unknown", f"{name} tells nothing") for name in provenance.unknown]
        report.add(f"provenance of {model}", model_leaks(provenance.overlap(pieces, split_names), model) + unknown)


def _check_chunks(chunks: DatasetDict, tokenizer: NotesEncoder) -> Report:
    for split_name, rows in chunks.items():
        if tokenizer.input_name not in rows.column_names:
            raise DataError(f"{split_name} has no column {tokenizer.input_name} but {', '.join(rows.column_names)}")
    report = Report({split_name: len(rows) for split_name, rows in chunks.items()})
    named = {split_name: rows["piece_id"] for split_name, rows in chunks.items() if "piece_id" in rows.column_names}
    if named:
        report.add("names", name_leaks(named))
    try:
        report.add("content of chunks", chunk_leaks(chunks, tokenizer))
    except ValueError as error:
        raise DataError(f"the tokenizer did not make these chunks: {error}") from error
    return report
