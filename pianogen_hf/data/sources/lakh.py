"""The Lakh MIDI Dataset (Raffel 2016), or any other multitrack files, as a folder or as one archive."""

from __future__ import annotations

import os
import re
from pathlib import Path

from pianogen_hf.data.sources.archives import archive_rows, row_names
from pianogen_hf.data.sources.folder import PieceFile, as_text
from pianogen_hf.data.sources.walking import files_below
from pianogen_hf.errors import DataError
from pianogen_hf.tokenizers.midi import MIDI_SUFFIXES

_TRACK_ID = re.compile(r"(?:^|/)(TR[A-Z]{5}[0-9A-F]{11})/")


def list_lakh(folder: Path) -> list[PieceFile]:
    """Every MIDI file of a folder; its piano is what reading keeps of it."""
    paths = sorted(path for path in files_below(folder) if path.suffix.lower() in MIDI_SUFFIXES)
    if not paths:
        raise DataError(f"{folder} holds no MIDI files ({', '.join(MIDI_SUFFIXES)}): give a folder that does")
    names = [as_text(path.relative_to(folder)) for path in paths]
    return [_lakh_piece(name, str(path)) for name, path in zip(names, paths, strict=True)]


def list_archive(archive: Path, cache_dir: str | os.PathLike) -> list[PieceFile]:
    """Every MIDI file of a tar archive, which is unpacked into the cache."""
    rows = archive_rows(archive, cache_dir)
    return [_lakh_piece(name, str(rows), row) for row, name in enumerate(row_names(rows))]


def _lakh_piece(name: str, path: str, row: int = -1) -> PieceFile:
    """The matched part of Lakh has a folder for each recording of the Million Song Dataset, hence for each work."""
    track = _TRACK_ID.search(name)
    return PieceFile(f"lakh/{name}", "lakh", path, f"lakh/{track[1]}" if track else "", row=row)
