"""Data sets on disk, as `pianogen data build` writes them: whole or not at all.

pieces/              DatasetDict: one entry per split, rows of `sources.PIECE_FEATURES`
split.json           the manifest
reading_report.json  what was read and what was left out
chunks/, tokenizer/  where a tokenizer was asked for: DatasetDict of `chunks.CHUNK_FEATURES`, and what made them
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, concatenate_datasets, load_from_disk
from datasets.exceptions import DatasetsError

from pianogen_hf.data.manifest import write_manifest
from pianogen_hf.data.split_names import SPLITS
from pianogen_hf.errors import DataError
from pianogen_hf.tokenizers.notes_encoder import NotesEncoder

_OWN = {"pieces", "chunks", "tokenizer", "split.json", "reading_report.json"}


def write_built(
    folder: str | os.PathLike,
    pieces: Dataset,
    split_names: Sequence[str],
    manifest: dict[str, Any],
    report: dict[str, Any],
    chunks: DatasetDict | None = None,
    tokenizer: NotesEncoder | None = None,
) -> None:
    """Write a data set in place of the one that lies in `folder`, if any.

    It is written beside it first. If that is interrupted, what was there is there still.

    Args:
        folder: where it is to lie; what else lies there stays.
        pieces: of `sources.PIECE_FEATURES`.
        split_names: the split of each.
        manifest: of the split.
        report: what was read.
        chunks: of `chunks.CHUNK_FEATURES`, and the `tokenizer` that made them; neither or both.
        tokenizer: see chunks.

    Raises:
        DataError: if the folder holds something else, or can't be written.
    """
    folder = Path(os.path.abspath(folder))
    new, old = folder.with_name(f"{folder.name}.partial"), folder.with_name(f"{folder.name}.replaced")
    try:
        check_writable(folder)
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir(parents=True)
        _splits(pieces, split_names).save_to_disk(str(new / "pieces"))
        if chunks is not None and tokenizer is not None:
            chunks.save_to_disk(str(new / "chunks"))
            tokenizer.save_pretrained(str(new / "tokenizer"))
        (new / "reading_report.json").write_text(json.dumps(report, indent=1, ensure_ascii=False), encoding="utf-8")
        write_manifest(new / "split.json", manifest)
        _exchange(new, folder, old)
    except OSError as error:
        raise DataError(f"{folder} can't be written: {error}") from error
    finally:
        shutil.rmtree(new, ignore_errors=True)


def check_writable(folder: Path) -> None:
    """Bring back what an exchange that was cut short has moved aside, and refuse a folder that is no data set.

    Raises:
        DataError: if something else lies there.
    """
    old = folder.with_name(f"{folder.name}.replaced")
    if old.exists() and not folder.exists():
        old.rename(folder)
    if folder.exists() and not is_built(folder) and (not folder.is_dir() or any(folder.iterdir())):
        raise DataError(f"{folder} holds something that is no built data set: choose another --output")


def _splits(pieces: Dataset, split_names: Sequence[str]) -> DatasetDict:
    rows = {split_name: [row for row, each in enumerate(split_names) if each == split_name] for split_name in SPLITS}
    return DatasetDict({split_name: pieces.select(chosen) for split_name, chosen in rows.items() if chosen})


def _exchange(new: Path, folder: Path, old: Path) -> None:
    """Put the new folder in the place of the one there, with what strangers have put into it."""
    if not folder.exists():
        new.rename(folder)
        return
    shutil.rmtree(old, ignore_errors=True)
    folder.rename(old)
    try:
        new.rename(folder)
    except BaseException:
        old.rename(folder)
        raise
    for entry in old.iterdir():
        if entry.name not in _OWN:
            entry.rename(folder / entry.name)
    shutil.rmtree(old)


def is_built(folder: str | os.PathLike) -> bool:
    """Whether a data set lies there."""
    return Path(folder, "split.json").is_file() and Path(folder, "pieces").is_dir()


def read_pieces(folder: str | os.PathLike) -> tuple[Dataset, list[str]]:
    """All pieces of a data set, side by side, and the split of each.

    Raises:
        DataError: if they can't be opened.
    """
    splits = read_splits(Path(folder, "pieces"))
    strange = splits.keys() - set(SPLITS)
    if strange:
        raise DataError(f"{folder} has pieces on {min(strange)}, which is none of {', '.join(SPLITS)}")
    order = [split_name for split_name in SPLITS if split_name in splits]
    return concatenate_datasets([splits[split_name] for split_name in order]), [
        split_name for split_name in order for _ in splits[split_name]
    ]


def read_splits(folder: str | os.PathLike) -> DatasetDict:
    """A DatasetDict that was saved with `save_to_disk`, or published as Parquet files.

    Raises:
        DataError: if there is none, or it can't be opened.
    """
    tables: dict[str, list[str]] = {}
    for path in sorted(Path(folder).glob("*.parquet")):
        tables.setdefault(path.name.partition("-")[0], []).append(str(path))
    try:
        if tables:
            return DatasetDict({split_name: Dataset.from_parquet(paths) for split_name, paths in tables.items()})
        splits = load_from_disk(str(folder))
    except (OSError, ValueError, KeyError, TypeError, DatasetsError) as error:
        raise DataError(f"{folder} can't be opened as a data set: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(splits, DatasetDict) or not splits:
        raise DataError(f"{folder} is one table: a split is a DatasetDict with two parts or more")
    return splits
