"""What pieces a source has: Bach, a MAESTRO release, a folder of MIDI files, Lakh, a data set here or on the Hub.

Listing looks at names and tables, never at music, so it takes no time (but the first time for an archive, which must
be read for its names); `sources.py` reads what is listed here. What a source itself says of a piece, its work and its
side of an official split, is found here, in `folders.py` and in `hub_source.py`, and nowhere else.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Sequence
from pathlib import Path

from datasets import DatasetDict

from pianogen_hf.data.archives import ArchiveError, archive_rows, row_names
from pianogen_hf.data.bach import SIDES, BachError, list_bach
from pianogen_hf.data.folders import DataError, PieceFile, as_text, files_below, list_folder, official_side
from pianogen_hf.data.hub_source import is_published, list_hub, list_published
from pianogen_hf.tokenizers.midi import MIDI_SUFFIXES

_CACHE_DIR = "~/.cache/pianogen_hf"
_CHOICES = "bach, folder=PATH, maestro=PATH, lakh=PATH, dataset=PATH or hub=USER/NAME"
_CONTENTS = {
    "folder": "MIDI files",
    "maestro": "MAESTRO release",
    "lakh": "multitrack MIDI files, or their .tar or .tar.gz",
    "dataset": "data set",
}


def list_sources(
    sources: Sequence[str], data_path: str | os.PathLike | None = None, cache_dir: str | os.PathLike = _CACHE_DIR
) -> list[PieceFile]:
    """List the pieces of several sources without reading their music.

    Args:
        sources: what `list_pieces` takes, each.
        data_path: the path of the source, where there is only one and it names none.
        cache_dir: where archives are unpacked to.

    Raises:
        DataError: for a source that is none, or if two have one name.
    """
    return [file for listed in list_each(sources, data_path, cache_dir) for file in listed]


def list_each(
    sources: Sequence[str], data_path: str | os.PathLike | None = None, cache_dir: str | os.PathLike = _CACHE_DIR
) -> list[list[PieceFile]]:
    """What `list_sources` gives, source by source."""
    if not sources:
        raise DataError(f"no source: name one or more of {_CHOICES}")
    if data_path and len(sources) > 1:
        raise DataError("--data_path is for a single source: write each path behind its own, as in folder=PATH")
    files: list[list[PieceFile]] = []
    names: set[str] = set()
    for source in sources:
        listed = list_pieces(source, data_path, cache_dir)
        new = {file.source for file in listed}
        if names & new:
            raise DataError(f"two sources are named {min(names & new)!r}: rename one of the folders, or take one out")
        names |= new
        files.append(listed)
    return files


def list_pieces(
    source: str, data_path: str | os.PathLike | None = None, cache_dir: str | os.PathLike = _CACHE_DIR
) -> list[PieceFile]:
    """List the pieces of one source without reading their music.

    Args:
        source: "bach"; "maestro=PATH", a release of MAESTRO; "folder=PATH", any folder of MIDI files; "lakh=PATH", a
            tar archive or a folder of multitrack files, such as the Lakh MIDI Dataset; "dataset=PATH", a data set that
            `pianogen data build` wrote, whose pieces keep their names and sides; or "hub=USER/NAME[@REVISION]", a data
            set on the Hub, which is fetched (see `hub_source.py`).
        data_path: the path, if `source` names none.
        cache_dir: where an archive is unpacked to.

    In a folder, the top-level subfolders train, validation (valid, val, dev) and test are official sides. A
    `metadata.csv` with a column `file_name` may name the `work` that a file is a version of, and its `split`; files
    that it does not name have no work. Without that column it is somebody else's table, and ignored.

    Raises:
        DataError: for an unknown source, a folder that is not what the source needs, a table that names a file that is
            not there or contradicts itself.
    """
    kind, _, path = source.partition("=")
    if kind not in ("bach", "hub", *_CONTENTS):
        raise DataError(f"unknown source {source!r}: choose {_CHOICES}")
    if kind == "bach":
        if path or data_path:
            raise DataError(f"source bach is built in and has no path: did you mean folder={path or data_path}?")
        return _list_bach()
    if path and data_path:
        raise DataError(f"source {source} has its path already: leave out --data_path {data_path}")
    if not (path or data_path):
        raise DataError(f"source {kind} needs a path: write {kind}=PATH, or give --data_path")
    if kind == "hub":
        return list_hub(f"hub={path or data_path}")
    folder = Path(os.path.expanduser(path or data_path or ""))  # a shell leaves the ~ in folder=~/midi as it is
    if kind == "lakh" and folder.is_file():
        return _list_archive(folder, cache_dir)
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder: give the folder that holds the {_CONTENTS[kind]}")
    lists = {"folder": list_folder, "maestro": _list_maestro, "lakh": _list_lakh, "dataset": _list_built}
    return lists[kind](folder)


def _list_bach() -> list[PieceFile]:
    try:
        pieces = list_bach()
    except BachError as error:
        raise DataError(str(error)) from error
    return [
        PieceFile(f"bach/{piece.name}", "bach", str(piece.path), f"bach/{piece.family}", piece.side) for piece in pieces
    ]


# Lakh ----------------------------------------------------------------------------------------------------------------


def _list_lakh(folder: Path) -> list[PieceFile]:
    """Every MIDI file of a folder; its piano is what reading keeps of it."""
    paths = sorted(path for path in files_below(folder) if path.suffix.lower() in MIDI_SUFFIXES)
    if not paths:
        raise DataError(f"{folder} holds no MIDI files ({', '.join(MIDI_SUFFIXES)}): give a folder that does")
    names = [as_text(path.relative_to(folder)) for path in paths]
    return [_lakh_piece(name, str(path)) for name, path in zip(names, paths, strict=True)]


def _list_archive(archive: Path, cache_dir: str | os.PathLike) -> list[PieceFile]:
    try:
        rows = archive_rows(archive, cache_dir)
    except ArchiveError as error:
        raise DataError(str(error)) from error
    return [_lakh_piece(name, str(rows), row) for row, name in enumerate(row_names(rows))]


def _lakh_piece(name: str, path: str, row: int = -1) -> PieceFile:
    """The matched part of Lakh has a folder for each recording of the Million Song Dataset, hence for each work."""
    track = _TRACK_ID.search(name)
    return PieceFile(f"lakh/{name}", "lakh", path, f"lakh/{track[1]}" if track else "", row=row)


_TRACK_ID = re.compile(r"(?:^|/)(TR[A-Z]{5}[0-9A-F]{11})/")


# MAESTRO and built data sets -----------------------------------------------------------------------------------------


def _list_maestro(folder: Path) -> list[PieceFile]:
    """Files of a MAESTRO release with its official split (Hawthorne et al. 2019, arXiv 1810.12247).

    Its titles name no families: five of them stand on two sides, for different movements of one work.
    """
    tables = sorted(folder.glob("maestro-v*.csv"))
    if not tables:
        raise DataError(f"{folder} holds no maestro-v*.csv: give the folder of a MAESTRO release")
    try:
        with tables[-1].open(newline="", encoding="utf-8") as file:
            rows = [(row["midi_filename"], row["split"]) for row in csv.DictReader(file)]
    except (OSError, KeyError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{tables[-1]} is no table of MAESTRO (midi_filename, split): {error}") from error
    unknown = next((side for _, side in rows if side not in SIDES), None)
    if unknown is not None:
        raise DataError(f"{tables[-1]} has the split {unknown!r}: it must be one of {', '.join(SIDES)}")
    # Some copies hold only part of the release: what does not lie there is no file of this folder.
    present = [(name, side) for name, side in rows if (folder / name).is_file()]
    pieces = [PieceFile(f"maestro/{name}", "maestro", str(folder / name), "", side) for name, side in present]
    if not pieces:
        raise DataError(f"none of the files named in {tables[-1].name} lies in {folder}")
    return pieces


def _list_built(folder: Path) -> list[PieceFile]:
    """Rows of a built data set: the side they were given there is official from now on."""
    place = folder / "pieces"
    if is_published(folder):  # somebody has fetched it from the Hub
        return list_published(folder)
    if not (place / "dataset_dict.json").is_file():
        raise DataError(f"{folder} is no data set that `pianogen data build` wrote: it has no pieces/dataset_dict.json")
    try:
        sides = DatasetDict.load_from_disk(str(place))
        tables = {side: [rows[name] for name in ("piece_id", "source", "family_id")] for side, rows in sides.items()}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise DataError(f"{place} can't be opened: {' '.join(str(error).split())[:200]}") from error
    files = [
        PieceFile(piece_id, source, str(place / name), family_id, official_side(name, place), row)
        for name, columns in tables.items()
        for row, (piece_id, source, family_id) in enumerate(zip(*columns, strict=True))
    ]
    if not files:
        raise DataError(f"{folder} holds no pieces: build it anew")
    return files
