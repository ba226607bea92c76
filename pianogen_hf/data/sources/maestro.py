"""A release of MAESTRO, with its table."""

from __future__ import annotations

import csv
from pathlib import Path

from pianogen_hf.data.sources.folder import PieceFile
from pianogen_hf.data.split_names import SPLITS
from pianogen_hf.errors import DataError


def list_maestro(folder: Path) -> list[PieceFile]:
    """Files of a MAESTRO release with its official split (Hawthorne et al. 2019, arXiv 1810.12247).

    Its titles name no families: five of them stand in two splits, for different movements of one work.
    """
    tables = sorted(folder.glob("maestro-v*.csv"))
    if not tables:
        raise DataError(f"{folder} holds no maestro-v*.csv: give the folder of a MAESTRO release")
    try:
        with tables[-1].open(newline="", encoding="utf-8") as file:
            rows = [(row["midi_filename"], row["split"]) for row in csv.DictReader(file)]
    except (OSError, KeyError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{tables[-1]} is no table of MAESTRO (midi_filename, split): {error}") from error
    unknown = next((split_name for _, split_name in rows if split_name not in SPLITS), None)
    if unknown is not None:
        raise DataError(f"{tables[-1]} has the split {unknown!r}: it must be one of {', '.join(SPLITS)}")
    # Some copies hold only part of the release: what does not lie there is no file of this folder.
    present = [(name, split_name) for name, split_name in rows if (folder / name).is_file()]
    pieces = [
        PieceFile(f"maestro/{name}", "maestro", str(folder / name), "", split_name) for name, split_name in present
    ]
    if not pieces:
        raise DataError(f"none of the files named in {tables[-1].name} lies in {folder}")
    return pieces
