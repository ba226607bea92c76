"""Pieces that are not read yet, and what a folder of MIDI files says of its own: works, and splits."""

from __future__ import annotations

import os
import posixpath
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from pianogen_hf.data.sources.tables import is_table, official_split_of, table_rows
from pianogen_hf.data.sources.walking import files_below
from pianogen_hf.data.split_names import SPLIT_ALIASES
from pianogen_hf.errors import DataError
from pianogen_hf.tokenizers.midi import MIDI_SUFFIXES


@dataclass(frozen=True)
class PieceFile:
    """One piece of a source, not read yet.

    Attributes:
        piece_id: unique name; it begins with the name of the source.
        source: name of its source: "bach", "maestro", "lakh", or a folder's own name.
        path: the file; of a piece in a built data set, the folder or the Parquet file of its split; of one in an
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


def list_folder(folder: Path, name: str | None = None) -> list[PieceFile]:
    """List a folder of MIDI files as `list_pieces` does; `name` is that of the source, by default the folder's own."""
    files = sorted(files_below(folder))
    paths = [path for path in files if path.suffix.lower() in MIDI_SUFFIXES]
    if not paths:
        raise DataError(f"{folder} holds no MIDI files ({', '.join(MIDI_SUFFIXES)}): give a folder that does")
    source = name or as_text(Path(Path(os.path.abspath(folder)).name or "folder"))
    entries = _metadata(folder, [path for path in files if is_table(path.name)], paths)
    pieces = []
    for path in paths:
        name = as_text(path.relative_to(folder))
        work, split_name = entries.get(_normal(name), ("", ""))
        place = SPLIT_ALIASES.get(name.partition("/")[0].lower(), "") if "/" in name else ""
        if split_name and place and split_name != place:
            raise DataError(f"{path} lies in {place}, but its table says {split_name}: move it, or mend its split")
        pieces.append(
            PieceFile(f"{source}/{name}", source, str(path), work and f"{source}/{work}", split_name or place)
        )
    return pieces


def as_text(path: Path) -> str:
    """The path with slashes; bytes that are no UTF-8, which a data set can't store, as backslash escapes."""
    return os.fsencode(path.as_posix()).decode("utf-8", "backslashreplace")


def _normal(name: str) -> str:
    """One spelling for names that look the same: some systems store é as two characters, tables seldom do."""
    return unicodedata.normalize("NFC", posixpath.normpath(name))


def _metadata(folder: Path, tables: list[Path], paths: list[Path]) -> dict[str, tuple[str, str]]:
    """Work and split of the files that tables name, by their names below `folder`; the nearest table decides.

    A name that is wrong would lose a split in silence, and let a test piece into training: it is an error.
    """
    present = {_normal(as_text(path.relative_to(folder))) for path in paths}
    entries: dict[str, tuple[str, str]] = {}
    for table in sorted(tables, key=lambda path: len(path.parts)):
        own: dict[str, tuple[str, str]] = {}
        for row in table_rows(table):
            name = _normal(posixpath.join(as_text(table.parent.relative_to(folder)), row["file_name"]))
            work = " ".join(row.get("work", "").split()).casefold()
            entry = (work, official_split_of(row.get("split", ""), table))
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
