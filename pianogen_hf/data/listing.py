"""What pieces a source has: Bach, a MAESTRO release, a folder of MIDI files, Lakh, a data set here or on the Hub.

Listing looks at names and tables, never at music, so it takes no time (but the first time for an archive, which must
be read for its names); `sources.py` reads what is listed here. What a
source itself says of a piece, its work and its side of an official split, is found here and nowhere else.
"""

from __future__ import annotations

import csv
import io
import os
import posixpath
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets import DatasetDict

from pianogen_hf.data.archives import ArchiveError, archive_rows, row_names
from pianogen_hf.data.bach import SIDES, BachError, list_bach
from pianogen_hf.tokenizers.midi import MIDI_SUFFIXES

_CACHE_DIR = "~/.cache/pianogen_hf"
_CHOICES = "bach, folder=PATH, maestro=PATH, lakh=PATH, dataset=PATH or hub=USER/NAME"
_CONTENTS = {
    "folder": "MIDI files",
    "maestro": "MAESTRO release",
    "lakh": "multitrack MIDI files, or their .tar or .tar.gz",
    "dataset": "data set",
}
SIDE_NAMES = {**{side: side for side in SIDES}, **dict.fromkeys(("valid", "val", "dev"), "validation")}


class DataError(ValueError):
    """The data can't be used as asked; the message is one line that says what to do."""


@dataclass(frozen=True)
class PieceFile:
    """One piece of a source, not read yet.

    Attributes:
        piece_id: unique name; it begins with the name of the source.
        source: name of its source: "bach", "maestro", "lakh", or a folder's own name.
        path: the file; of a piece in a built data set, the folder or the Parquet file that holds its side; of one in an
            archive, the Arrow file that the archive was read into.
        family_id: the work it belongs to where the source says so; otherwise empty.
        official_split: "train", "validation", "test", or "" where the source prescribes none.
        row: where it stands in a data set or an archive; -1 for a file of its own.
    """

    piece_id: str
    source: str
    path: str
    family_id: str = ""
    official_split: str = ""
    row: int = -1


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
        return _list_hub(f"hub={path or data_path}")
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


def _list_hub(source: str) -> list[PieceFile]:
    from pianogen_hf.data.hub_source import list_hub  # it makes use of this module

    return list_hub(source)


# A folder of MIDI files ----------------------------------------------------------------------------------------------


def list_folder(folder: Path, name: str | None = None) -> list[PieceFile]:
    """List a folder of MIDI files as `list_pieces` does; `name` is that of the source, by default the folder's own."""
    files = sorted(_files_below(folder))
    paths = [path for path in files if path.suffix.lower() in MIDI_SUFFIXES]
    if not paths:
        raise DataError(f"{folder} holds no MIDI files ({', '.join(MIDI_SUFFIXES)}): give a folder that does")
    source = name or _as_text(Path(Path(os.path.abspath(folder)).name or "folder"))
    entries = _metadata(folder, [path for path in files if path.name == "metadata.csv"], paths)
    pieces = []
    for path in paths:
        name = _as_text(path.relative_to(folder))
        work, side = entries.get(_normal(name), ("", ""))
        place = SIDE_NAMES.get(name.partition("/")[0].lower(), "") if "/" in name else ""
        if side and place and side != place:
            raise DataError(f"{path} lies in {place}, but metadata.csv says {side}: move it, or mend its split")
        pieces.append(PieceFile(f"{source}/{name}", source, str(path), work and f"{source}/{work}", side or place))
    return pieces


def _files_below(folder: Path) -> Iterator[Path]:
    """Every file in a folder and its subfolders, links that lead nowhere included: reading will say what they are.

    Pipes and devices, on which reading would wait for ever, are no files.
    """

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: {error.strerror}") from error

    for place, _, names in os.walk(folder, onerror=refuse):
        paths = (Path(place, name) for name in names)
        yield from (path for path in paths if path.is_file() or (path.is_symlink() and not path.exists()))


def _as_text(path: Path) -> str:
    """The path with slashes; bytes that are no UTF-8, which a data set can't store, as backslash escapes."""
    return os.fsencode(path.as_posix()).decode("utf-8", "backslashreplace")


def _normal(name: str) -> str:
    """One spelling for names that look the same: some systems store é as two characters, tables seldom do."""
    return unicodedata.normalize("NFC", posixpath.normpath(name))


def _metadata(folder: Path, tables: list[Path], paths: list[Path]) -> dict[str, tuple[str, str]]:
    """Work and side of the files that tables name, by their names below `folder`; the nearest table decides.

    A name that is wrong would lose a side in silence, and let a test piece into training: it is an error.
    """
    present = {_normal(_as_text(path.relative_to(folder))) for path in paths}
    entries: dict[str, tuple[str, str]] = {}
    for table in sorted(tables, key=lambda path: len(path.parts)):
        own: dict[str, tuple[str, str]] = {}
        for row in _table_rows(table):
            name = _normal(posixpath.join(_as_text(table.parent.relative_to(folder)), row["file_name"]))
            work = " ".join(row.get("work", "").split()).casefold()
            entry = (work, _side(row.get("split", ""), table))
            if own.setdefault(name, entry) != entry:
                raise DataError(f"{table} has two rows for {row['file_name']!r} that differ: keep one")
        missing = [name for name in own if name not in present and not _is_other_file(folder / name)]
        if missing:
            raise DataError(
                f"{table} names {len(missing)} file(s) that are not there, such as "
                f"{', '.join(map(repr, missing[:3]))}: mend their file_name, or take the rows out"
            )
        entries |= own
    return entries


def _is_other_file(path: Path) -> bool:
    """Whether it is there but no MIDI file: a table may name recordings and scores beside them."""
    return path.suffix.lower() not in MIDI_SUFFIXES and os.path.exists(path)


def _table_rows(table: Path) -> list[dict[str, str]]:
    """Rows of a metadata.csv that name a file, its columns in lower case; none of a table without `file_name`."""
    try:
        data = table.read_bytes()
        lines = list(csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), skipinitialspace=True))
    except UnicodeDecodeError as error:
        if b"file_name" not in data.replace(b"\0", b""):
            return []
        raise DataError(f"{table} is not UTF-8: save it as such") from error
    except (OSError, csv.Error) as error:
        raise DataError(f"{table} can't be read: {error}") from error
    columns = [name.strip().lower() for name in lines[0]] if lines else []
    if "file_name" not in columns:
        if any("file_name" in re.split("[;\t]", name) for name in columns):
            raise DataError(f"{table}: put commas between its columns")
        return []
    rows = [dict(zip(columns, map(str.strip, line), strict=False)) for line in lines[1:]]
    return [row for row in rows if row.get("file_name")]


def _side(value: str, table: Path) -> str:
    side = value.strip().lower()
    if side and side not in SIDE_NAMES:
        raise DataError(f"{table} has the split {value!r}: it must be one of {', '.join(SIDES)}")
    return SIDE_NAMES.get(side, "")


# Lakh ----------------------------------------------------------------------------------------------------------------


def _list_lakh(folder: Path) -> list[PieceFile]:
    """Every MIDI file of a folder; its piano is what reading keeps of it."""
    paths = sorted(path for path in _files_below(folder) if path.suffix.lower() in MIDI_SUFFIXES)
    if not paths:
        raise DataError(f"{folder} holds no MIDI files ({', '.join(MIDI_SUFFIXES)}): give a folder that does")
    names = [_as_text(path.relative_to(folder)) for path in paths]
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
    from pianogen_hf.data.hub_source import is_published, list_published  # it makes use of this module

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
        PieceFile(piece_id, source, str(place / name), family_id, _side(name, place), row)
        for name, columns in tables.items()
        for row, (piece_id, source, family_id) in enumerate(zip(*columns, strict=True))
    ]
    if not files:
        raise DataError(f"{folder} holds no pieces: build it anew")
    return files
