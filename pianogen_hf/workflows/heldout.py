"""The pieces that a model is evaluated on, and which of them it can be said to know. Wiring."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features

from pianogen_hf.data.families import fingerprint, join_families
from pianogen_hf.data.pieces import PIECE_FEATURES, content_hash, load_pieces, reading_report, usable_pieces
from pianogen_hf.data.provenance import Provenance
from pianogen_hf.data.sources.jsb_file import LEAKS, read_jsb_file
from pianogen_hf.data.sources.listing import list_sources
from pianogen_hf.errors import ArgumentError, DataError
from pianogen_hf.tokenizers.midi import PIANO_PROGRAMS, read_midi
from pianogen_hf.tokenizers.notes import Notes
from pianogen_hf.workflows.split import Places, Split, split_of_model


@dataclass(frozen=True)
class HeldOut:
    """Pieces to evaluate on.

    Attributes:
        label: "validation", "test", "data-" and the name of a folder, or "jsb-" and the split.
        source: where they come from, in words.
        pieces: names and notes, in the order of the data.
        contents: a hash of each piece's notes.
        related: names of those that share music with what the model was trained on; None where that is unknown.
        is_whole: whether these are all pieces of the split.
        train: the pieces it was trained on; empty where they are not at hand.
        unusable: why each file that can't be used was left out, by name.
    """

    label: str
    source: str
    pieces: dict[str, Notes]
    contents: list[str]
    related: frozenset[str] | None
    is_whole: bool
    train: Dataset
    unusable: dict[str, str] = field(default_factory=dict)

    def train_notes(self, limit: int | None = None, seed: int = 0) -> dict[str, Notes]:
        """Train pieces by name: all, or some that the seed picks."""
        rows = np.arange(len(self.train))
        if limit is not None and limit < len(rows):
            rows = np.sort(np.random.default_rng(seed).permutation(rows)[:limit])
        return _notes(self.train.select(rows))


def own_split(folder: Path, split_name: str, places: Places, max_pieces: int | None = None) -> HeldOut:
    """One split of what the model was trained on.

    Args:
        folder: the model.
        split_name: "validation" or "test".
        places: where the pieces lie.
        max_pieces: as many at most; None for all.

    Raises:
        ArgumentError: if the model has no split, or pieces of it are missing. DataError: if they can't be read.
    """
    split = split_of_model(folder, places)
    rows = complete_rows(split, split_name)
    if not rows:
        raise ArgumentError(f"the split of {folder} has no {split_name} pieces: give --data FOLDER")
    manifest = split.manifest
    trained = {family for each, family, _ in manifest["pieces"].values() if each == "train"}
    chosen = split.pieces.select(rows[:max_pieces])
    family_of = {name: family for name, (_, family, _) in manifest["pieces"].items()}
    names = chosen["piece_id"][:]
    return HeldOut(
        split_name,
        ", ".join(manifest["parameters"]["source"]),
        _notes(chosen),
        chosen["content"][:],
        frozenset(name for name in names if family_of.get(name) in trained),
        is_whole=max_pieces is None or max_pieces >= len(rows),
        train=split.pieces.select(split.rows("train")),
        unusable=split.report["unusable"],
    )


def complete_rows(split: Split, split_name: str) -> list[int]:
    """Where the pieces of one split of a model stand.

    Raises:
        ArgumentError: if some are missing.
    """
    rows, wanted = split.rows(split_name), split.manifest["counts"].get(split_name, 0)
    if len(rows) < wanted:
        raise ArgumentError(
            f"{wanted - len(rows)} of {wanted} {split_name} pieces are missing: give the --source they came from"
        )
    return rows


def any_folder(folder: Path, data: str, cache_dir: str, max_pieces: int | None) -> HeldOut:
    """All pieces of a folder of MIDI files, whatever the model's split says.

    Args:
        folder: the model, whose provenance tells what it was trained on.
        data: the folder of files.
        cache_dir: where train.py keeps what it read.
        max_pieces: as many at most; None for all.

    Raises:
        DataError: if the files can't be read.
    """
    cache = Path(cache_dir).expanduser()
    read = load_pieces(list_sources(["folder"], data), cache, tuple(PIANO_PROGRAMS))
    pieces = join_families(usable_pieces(read), cache)
    chosen = pieces.select(range(min(len(pieces), max_pieces or len(pieces))))
    if not len(chosen):
        raise DataError(f"no file in {data} can be used")
    provenance = Provenance.load(folder)
    overlaps = provenance.overlap(chosen, ["test"] * len(chosen))
    is_known = provenance.status == "known" and provenance.trained_on
    return HeldOut(
        f"data-{Path(data).resolve().name}",
        "folder",
        _notes(chosen),
        chosen["content"][:],
        frozenset(each.piece for each in overlaps) if is_known else None,
        is_whole=len(chosen) == len(pieces),
        train=pieces.select([]),
        unusable=reading_report(read)["unusable"],
    )


def benchmark_file(folder: Path, data: str, split_name: str, max_pieces: int | None) -> HeldOut:
    """One split of the JSB benchmark's own file, all of it canonical; related are also its known leaks.

    Args:
        folder: the model, whose provenance tells what it was trained on.
        data: Jsb16thSeparated.json.
        split_name: "validation" or "test".
        max_pieces: as many at most; None for all.

    Raises:
        DataError: if the file can't be read.
    """
    everything = read_jsb_file(data, split_name)
    pieces = dict(list(everything.items())[:max_pieces])
    rows: list[dict[str, Any]] = [
        {"piece_id": name, "family_id": name, "content": content_hash(notes), "fingerprint": fingerprint(notes)}
        for name, notes in pieces.items()
    ]
    features = Features({name: PIECE_FEATURES[name] for name in rows[0]})
    overlaps = Provenance.load(folder).overlap(Dataset.from_list(rows, features=features), ["test"] * len(rows))
    leaks = {f"jsb/{split_name}-{index:03d}" for index in LEAKS[split_name]}
    return HeldOut(
        f"jsb-{split_name}",
        Path(data).name,
        pieces,
        [row["content"] for row in rows],
        frozenset(leaks.intersection(pieces) | {each.piece for each in overlaps}),
        is_whole=len(pieces) == len(everything),
        train=Dataset.from_list([]),
    )


def _notes(pieces: Dataset) -> dict[str, Notes]:
    return {row["piece_id"]: read_midi(row["midi"], programs=None) for row in pieces}


def contents_hash_key(heldout: HeldOut) -> list[Any]:
    """What tells these pieces from others, for names of caches."""
    return [heldout.label, sorted(heldout.contents)]
