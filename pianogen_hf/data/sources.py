"""Where music comes from: the built-in Bach corpus, a MAESTRO folder, or any folder of MIDI files.

A source lists its pieces cheaply (names and official splits); reading them is one cached, parallel `map` that turns
every file into a row with its music as plain MIDI bytes, and every file that can't be read into a row with its reason.
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, Value

from pianogen_hf.data.bach import BachError, list_bach, read_bach
from pianogen_hf.data.musicxml import MusicXMLError
from pianogen_hf.tokenizers.midi import MIDI_SUFFIXES, PIANO_PROGRAMS, MidiError, notes_to_midi_bytes, read_midi
from pianogen_hf.tokenizers.notes import Notes

PIECE_FEATURES = Features(
    {
        "piece_id": Value("string"),  # unique: source name and the file's place in it
        "source": Value("string"),
        "family_id": Value("string"),  # pieces of one family never stand on two sides of a split
        "official_split": Value("string"),  # train, validation, test, or empty where the source prescribes none
        "midi": Value("binary"),  # empty where the file could not be used
        "num_notes": Value("int32"),
        "seconds": Value("float32"),
        "excluded_notes": Value("int32"),  # notes of other instruments and drums, which were left out
        "error": Value("string"),  # why the file could not be used; empty if it could
    }
)
_CACHE_VERSION = 2  # raised when what a cached row holds changes
_OFFICIAL_SPLITS = ("train", "validation", "test")


class DataError(ValueError):
    """The data can't be used as asked; the message is one line that says what to do."""


@dataclass(frozen=True)
class PieceFile:
    """One file of a source, not read yet.

    Attributes:
        piece_id: unique name.
        source: name of its source.
        path: where it lies.
        family_id: the work it belongs to where the source knows; otherwise empty, and its content decides.
        official_split: "train", "validation", "test", or "" where the source prescribes none.
    """

    piece_id: str
    source: str
    path: str
    family_id: str = ""
    official_split: str = ""


def list_pieces(source: str, data_path: str | os.PathLike | None = None) -> list[PieceFile]:
    """List the pieces of a source without reading their music.

    Args:
        source: "bach", "folder" or "maestro".
        data_path: the folder, for "folder" and "maestro".

    Raises:
        DataError: for an unknown source, or a folder that is not what the source needs.
    """
    if source == "bach":
        return _list_bach()
    if source not in ("folder", "maestro"):
        raise DataError(f"unknown source {source!r}: choose bach, folder or maestro")
    if data_path is None:
        raise DataError(f"source {source} needs --data_path, the folder where the files lie")
    folder = Path(data_path)
    if not folder.is_dir():
        raise DataError(f"{folder} is no folder: give the folder that holds the MIDI files")
    return _list_maestro(folder) if source == "maestro" else _list_folder(folder)


def _list_bach() -> list[PieceFile]:
    try:
        pieces = list_bach()
    except BachError as error:
        raise DataError(str(error)) from error
    return [
        PieceFile(f"bach/{piece.name}", "bach", str(piece.path), f"bach/{piece.family}", piece.side) for piece in pieces
    ]


def _list_folder(folder: Path) -> list[PieceFile]:
    paths = sorted(path for path in _files_below(folder) if path.suffix.lower() in MIDI_SUFFIXES)
    if not paths:
        raise DataError(f"{folder} holds no MIDI files ({', '.join(MIDI_SUFFIXES)}): give a folder that does")
    return [PieceFile(f"folder/{_as_text(path.relative_to(folder))}", "folder", str(path)) for path in paths]


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


def _list_maestro(folder: Path) -> list[PieceFile]:
    """Files of a MAESTRO release with its official split (Hawthorne et al. 2019, arXiv 1810.12247)."""
    tables = sorted(folder.glob("maestro-v*.csv"))
    if not tables:
        raise DataError(f"{folder} holds no maestro-v*.csv: give the folder of a MAESTRO release")
    try:
        with tables[-1].open(newline="", encoding="utf-8") as file:
            rows = [(row["midi_filename"], row["split"]) for row in csv.DictReader(file)]
    except (OSError, KeyError, UnicodeDecodeError) as error:
        raise DataError(f"{tables[-1]} is no table of MAESTRO (midi_filename, split): {error}") from error
    unknown = next((side for _, side in rows if side not in _OFFICIAL_SPLITS), None)
    if unknown is not None:
        raise DataError(f"{tables[-1]} has the split {unknown!r}: it must be one of {', '.join(_OFFICIAL_SPLITS)}")
    # Some copies hold only part of the release: what does not lie there is no file of this folder.
    present = [(name, side) for name, side in rows if (folder / name).is_file()]
    pieces = [PieceFile(f"maestro/{name}", "maestro", str(folder / name), "", side) for name, side in present]
    if not pieces:
        raise DataError(f"none of the files named in {tables[-1].name} lies in {folder}")
    return pieces


def load_pieces(
    files: list[PieceFile],
    cache_dir: str | os.PathLike,
    programs: tuple[int, ...] | None = tuple(PIANO_PROGRAMS),
    num_proc: int | None = None,
) -> Dataset:
    """Read all files into a dataset of `PIECE_FEATURES`, cached on disk.

    Files that can't be used stay as rows with an `error`, so that nothing disappears silently.

    Args:
        files: what `list_pieces` gave.
        cache_dir: where the cache lives; a second call with the same files returns at once.
        programs: General MIDI programs to keep from multitrack files; None for all (drums never).
        num_proc: processes to read with.
    """
    key = {"version": _CACHE_VERSION, "programs": programs, "files": [[*asdict(f).values(), *_stamp(f)] for f in files]}
    fingerprint = fingerprint_of(key)
    rows = [{**asdict(file), "path": os.fsencode(file.path)} for file in files]  # a path need not be UTF-8
    return cached_map(
        Dataset.from_list(rows),
        _read_row,
        Path(cache_dir) / f"pieces-{fingerprint}",
        features=PIECE_FEATURES,
        fn_kwargs={"programs": programs},
        remove_columns=["path"],
        num_proc=num_proc,
        desc="Reading pieces",
    )


def fingerprint_of(value: Any) -> str:
    """16 hex digits that name a JSON-able value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def cached_map(dataset: Dataset, function: Any, folder: Path, *, num_proc: int | None, **kwargs: Any) -> Dataset:
    """`dataset.map` whose result lies in `folder` and is found there the next time.

    `folder` must name everything that the result depends on. The mapped rows go straight to disk, whatever their
    number, and an interrupted map leaves nothing that a later one would take for a result.
    """
    folder.mkdir(parents=True, exist_ok=True)
    num_proc = max(1, min(num_proc or 1, len(dataset) // 32))
    return dataset.map(
        function,
        cache_file_name=str(folder / "data.arrow"),
        new_fingerprint=folder.name,
        num_proc=num_proc if num_proc > 1 else None,
        **kwargs,
    )


def _stamp(file: PieceFile) -> tuple[int, int]:
    """What tells a changed file: size in bytes and time in nanoseconds; zeros where it can't even be asked."""
    try:
        status = os.stat(file.path)
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


def _read_row(row: dict[str, Any], programs: tuple[int, ...] | None) -> dict[str, Any]:
    path = os.fsdecode(row["path"])
    unusable = {"family_id": row["family_id"], "midi": b"", "num_notes": 0, "seconds": 0.0, "excluded_notes": 0}
    try:
        notes = read_bach(path) if row["source"] == "bach" else read_midi(path, programs)
        unusable["excluded_notes"] = notes.excluded_notes
        if len(notes) == 0:
            raise DataError(_why_empty(notes, programs))
        midi = notes_to_midi_bytes(notes)
    except (MidiError, MusicXMLError, DataError) as error:
        return {**unusable, "error": str(error).removeprefix(f"{path}: ")}
    return {
        "family_id": row["family_id"] or content_id(notes),
        "midi": midi,
        "num_notes": len(notes),
        "seconds": notes.end_sec,
        "excluded_notes": notes.excluded_notes,
        "error": "",
    }


def _why_empty(notes: Notes, programs: tuple[int, ...] | None) -> str:
    if not notes.excluded_notes:
        return "no notes"
    if programs is None:
        return f"no notes but drums ({notes.excluded_notes})"
    return f"no notes of the chosen programs ({notes.excluded_notes} of other instruments); --programs all keeps them"


def content_id(notes: Notes) -> str:
    """Name of a piece's content: equal for files that hold the same pitches at the same milliseconds.

    It joins exact copies under different names. Finding pieces that merely resemble each other is a family detector's
    work; what it finds replaces this id, and nothing after this line needs to know.
    """
    onset_sec = notes.onset_sec
    onset_ms = np.rint((onset_sec - onset_sec[:1]) * 1000).astype(np.int64)  # from the first onset on
    content = np.stack([onset_ms, notes["pitch"]])
    return "content/" + hashlib.sha256(content[:, np.lexsort(content)].tobytes()).hexdigest()[:16]


def usable_pieces(pieces: Dataset) -> Dataset:
    """The rows that hold music.

    Raises:
        DataError: if none does.
    """
    errors = pieces["error"][:]
    usable = [index for index, error in enumerate(errors) if not error]
    if not usable:
        reason, count = Counter(errors).most_common(1)[0]
        raise DataError(f"none of the {len(pieces)} files could be used; {count} of them: {reason}")
    return pieces.select(usable)


def reading_report(pieces: Dataset) -> dict[str, Any]:
    """What was read and what was not.

    Returns:
        Counts of files, usable files, notes, hours and notes of other instruments (excluded_notes); and every unusable
        file with its reason. JSON-able.
    """
    errors = dict(zip(pieces["piece_id"], pieces["error"], strict=True))
    return {
        "files": len(pieces),
        "usable": sum(not error for error in errors.values()),
        "notes": int(np.sum(pieces["num_notes"][:])),
        "hours": round(float(np.sum(pieces["seconds"][:])) / 3600, 3),
        "excluded_notes": int(np.sum(pieces["excluded_notes"][:])),
        "unusable": {piece: error for piece, error in errors.items() if error},
    }
