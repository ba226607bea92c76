"""What pieces a source has: Bach, a MAESTRO release, a folder of MIDI files, Lakh, a data set here or on the Hub.

Listing looks at names and tables, never at music, so it takes no time (but the first time for an archive, which must
be read for its names); `data/pieces.py` reads what is listed here. What a source itself says of a piece, its work and
its split, is found in this folder and nowhere else.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from pianogen_hf.data.sources import walking
from pianogen_hf.data.sources.bach import list_bach
from pianogen_hf.data.sources.built import list_built
from pianogen_hf.data.sources.folder import PieceFile, as_text, list_folder
from pianogen_hf.data.sources.hub import list_hub
from pianogen_hf.data.sources.lakh import list_archive, list_lakh
from pianogen_hf.data.sources.maestro import list_maestro
from pianogen_hf.errors import DataError
from pianogen_hf.folders import CACHE_DIR

_CHOICES = "bach, folder=PATH, maestro=PATH, lakh=PATH, dataset=PATH or hub=USER/NAME"
_CONTENTS = {
    "folder": "MIDI files",
    "maestro": "MAESTRO release",
    "lakh": "multitrack MIDI files, or their .tar or .tar.gz",
    "dataset": "data set",
}


def list_sources(
    sources: Sequence[str], data_path: str | os.PathLike | None = None, cache_dir: str | os.PathLike = CACHE_DIR
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
    sources: Sequence[str], data_path: str | os.PathLike | None = None, cache_dir: str | os.PathLike = CACHE_DIR
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


def passed_over(sources: Sequence[str], data_path: str | os.PathLike | None = None) -> dict[str, str]:
    """What lies in the folders of the sources and is not read, by name, and why (see `walking.py`)."""
    reasons: dict[str, str] = {}
    for source in sources:
        kind, _, path = source.partition("=")
        folder = Path(os.path.expanduser(path or data_path or ""))
        if kind in ("folder", "lakh") and folder.is_dir():
            name = as_text(Path(folder.absolute().name))
            reasons |= {f"{name}/{place}": reason for place, reason in walking.passed_over(folder).items()}
    return reasons


def list_pieces(
    source: str, data_path: str | os.PathLike | None = None, cache_dir: str | os.PathLike = CACHE_DIR
) -> list[PieceFile]:
    """List the pieces of one source without reading their music.

    Args:
        source: "bach"; "maestro=PATH", a release of MAESTRO; "folder=PATH", any folder of MIDI files; "lakh=PATH", a
            tar archive or a folder of multitrack files, such as the Lakh MIDI Dataset; "dataset=PATH", a data set that
            `pianogen data build` wrote, whose pieces keep their names and splits; or "hub=USER/NAME[@REVISION]", a data
            set on the Hub, which is fetched (see `hub.py`).
        data_path: the path, if `source` names none.
        cache_dir: where an archive is unpacked to.

    In a folder, the top-level subfolders train, validation (valid, val, dev) and test are official splits. A
    `metadata.csv` or `metadata.jsonl` with a column `file_name` may name the `work` that a file is a version of, and
    its `split`; files that it does not name have no work. Without that column it is somebody else's table, and ignored.
    Folders in which this package has written music are passed over.

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
        return list_archive(folder, cache_dir)
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder: give the folder that holds the {_CONTENTS[kind]}")
    lists = {"folder": list_folder, "maestro": list_maestro, "lakh": list_lakh, "dataset": list_built}
    return lists[kind](folder)


def _list_bach() -> list[PieceFile]:
    return [
        PieceFile(f"bach/{piece.name}", "bach", str(piece.path), f"bach/{piece.family}", piece.side)
        for piece in list_bach()
    ]
