"""The manifest of a split, `split.json`: kept beside every data set and inside every checkpoint.

It names every piece with its split, its family and a hash of its content, and holds a hash of all that it says. By that
an edited or broken file is known. It is no signature: who means to deceive can make another file.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

from datasets import Dataset

from pianogen_hf.data.sealed import hash_of, text_of
from pianogen_hf.data.split_names import SPLITS
from pianogen_hf.errors import DataError
from pianogen_hf.tokenizers.files import write_whole

FORMAT = 1  # raised when the form changes
COLUMNS = ["side", "family", "content"]
_FLAT = {"columns"}
_FIELDS = {"format", "parameters", "counts", "notes", "columns", "sources", "pieces", "hash"}


def split_manifest(pieces: Dataset, split_names: list[str], parameters: dict[str, Any]) -> dict[str, Any]:
    """The split as plain data.

    Args:
        pieces: with `piece_id`, `source`, `family_id`, `content` and `num_notes`; their order does not matter.
        split_names: what `assign_splits` gave for them.
        parameters: what decided the split; JSON-able.

    Returns:
        What `write_manifest` takes: format; parameters; counts and notes, per split ("left_out" where the split is "");
        sources, per source its numbers of pieces and notes; columns, what a piece's row holds; pieces, a row per
        piece_id; and hash, 64 hex digits that name all that.

    Raises:
        DataError: if two pieces have one name.
    """
    names, families, contents = (pieces[column][:] for column in ("piece_id", "family_id", "content"))
    rows = {name: list(row) for name, *row in sorted(zip(names, split_names, families, contents, strict=True))}
    if len(rows) < len(names):
        name, count = Counter(names).most_common(1)[0]
        raise DataError(f"{count} pieces have the name {name}: rename one of their sources")
    per_split = _totals([split_name or "left_out" for split_name in split_names], pieces)
    per_source = _totals(pieces["source"][:], pieces)
    manifest = {
        "format": FORMAT,
        "parameters": parameters,
        "counts": {split_name: count for split_name, (count, _) in per_split.items()},
        "notes": {split_name: notes for split_name, (_, notes) in per_split.items()},
        "columns": COLUMNS,
        "sources": {source: {"pieces": count, "notes": notes} for source, (count, notes) in per_source.items()},
        "pieces": rows,
    }
    return {**manifest, "hash": hash_of(manifest)}


def _totals(groups: list[str], pieces: Dataset) -> dict[str, tuple[int, int]]:
    """Pieces and notes per group, by name."""
    counts, notes = Counter(groups), Counter[str]()
    for group, num_notes in zip(groups, pieces["num_notes"][:], strict=True):
        notes[group] += num_notes
    return {group: (counts[group], notes[group]) for group in sorted(counts)}


def write_manifest(path: str | os.PathLike, manifest: dict[str, Any]) -> None:
    """Write it whole or not at all, with sorted keys and a line for each piece, so that two can be compared by line.

    Raises:
        FileError: if the folder can't be written to.
    """
    write_whole(path, text_of(manifest, _FLAT))


def read_manifest(path: str | os.PathLike) -> dict[str, Any]:
    """What `write_manifest` wrote.

    Raises:
        DataError: if there is no such file, or it is not whole, or it was edited.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        manifest = json.loads(text)
    except OSError as error:
        raise DataError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is no split.json, or not all of it: {' '.join(str(error).split())}") from error
    if not isinstance(manifest, dict) or not {"format", "hash"} <= set(manifest):
        raise DataError(f"{path} has no format and hash, as a split.json has them: make the split anew")
    if manifest["format"] != FORMAT:
        raise DataError(f"{path} is a split.json of format {manifest['format']}, this version reads {FORMAT}")
    # The text, too, must be as written: JSON may say one thing twice, and then not what a reader sees first.
    if manifest["hash"] != hash_of(manifest) or text.encode() != text_of(manifest, _FLAT) or not _has_form(manifest):
        raise DataError(f"{path} was edited since it was written: take an unedited copy, or make the split anew")
    return manifest


def _has_form(manifest: dict[str, Any]) -> bool:
    """Whether it has every field, and every piece a row of three texts of which the first is a split or ""."""
    if set(manifest) != _FIELDS or manifest["columns"] != COLUMNS or not isinstance(manifest["pieces"], dict):
        return False
    return all(
        isinstance(row, list) and [type(each) for each in row] == [str] * len(COLUMNS) and row[0] in ("", *SPLITS)
        for row in manifest["pieces"].values()
    )


def splits_by_content(manifest: dict[str, Any]) -> dict[str, str]:
    """Split per content hash: what `assign_splits` takes as `earlier`.

    Content that official splits have in several gets "", as it does not say where a further copy belongs. Content that
    was left out is not in it.
    """
    split_names: dict[str, str] = {}
    for split_name, _, content in manifest["pieces"].values():
        if split_name:
            split_names[content] = split_name if split_names.get(content, split_name) == split_name else ""
    return split_names


def split_of(manifest: dict[str, Any], piece_id: str) -> str:
    """The split of a piece; "" if it was left out, or is not in the manifest."""
    return manifest["pieces"].get(piece_id, [""])[0]
