"""A data set that `pianogen data build` has written, or that was fetched from the Hub."""

from __future__ import annotations

from pathlib import Path

from datasets import DatasetDict

from pianogen_hf.data.sources.folder import PieceFile
from pianogen_hf.data.sources.hub import is_published, list_published
from pianogen_hf.data.sources.tables import official_split_of
from pianogen_hf.errors import DataError, one_line


def list_built(folder: Path) -> list[PieceFile]:
    """Rows of a built data set: the split they were given there is official from now on."""
    place = folder / "pieces"
    if is_published(folder):  # somebody has fetched it from the Hub
        return list_published(folder)
    if not (place / "dataset_dict.json").is_file():
        raise DataError(f"{folder} is no data set that `pianogen data build` wrote: it has no pieces/dataset_dict.json")
    try:
        split_names = DatasetDict.load_from_disk(str(place))
        tables = {
            split_name: [rows[name] for name in ("piece_id", "source", "family_id")]
            for split_name, rows in split_names.items()
        }
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DataError(f"{place} can't be opened: {one_line(error)}") from error
    files = [
        PieceFile(piece_id, source, str(place / name), family_id, official_split_of(name, place), row)
        for name, columns in tables.items()
        for row, (piece_id, source, family_id) in enumerate(zip(*columns, strict=True))
    ]
    if not files:
        raise DataError(f"{folder} holds no pieces: build it anew")
    return files
