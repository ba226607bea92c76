"""From listed files to music: one cached, parallel `map` reads every file, and none disappears.

A file becomes a row with its music as plain MIDI bytes, or a row with the reason why it could not be read. `sources/`
says what there is to read.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, List, Value

from pianogen_hf.data.caching import cached_map, fingerprint_of
from pianogen_hf.data.families import FULL_NOTES, KEPT_ONE_IN, MIN_HAND_KINDS, MIN_KINDS, WINDOW, fingerprint
from pianogen_hf.data.sources.bach import read_bach
from pianogen_hf.data.sources.folder import PieceFile
from pianogen_hf.data.sources.hub import open_midi
from pianogen_hf.errors import DataError
from pianogen_hf.tokenizers.midi import PIANO_PROGRAMS, MidiError, notes_to_midi_bytes, read_midi
from pianogen_hf.tokenizers.notes import MAX_WAIT_SEC, Notes

PIECE_FEATURES = Features(
    {
        "piece_id": Value("string"),  # unique: source name and the file's place in it
        "source": Value("string"),
        "family_id": Value("string"),  # the work where the source names it, else empty until `join_families`
        "official_split": Value("string"),  # train, validation, test, or empty where the source prescribes none
        "midi": Value("binary"),  # empty where the file could not be used
        "num_notes": Value("int32"),
        "seconds": Value("float32"),
        "excluded_notes": Value("int32"),  # notes of other instruments and drums, which were left out
        "remarks": Value("string"),  # JSON: counts of what was left out or mended, by name (`Notes.remarks`)
        "content": Value("string"),  # `content_hash`; empty where the file could not be used
        "fingerprint": List(Value("uint64")),  # `families.fingerprint`, by which pieces that share music are found
        "error": Value("string"),  # why the file could not be used; empty if it could
    }
)
_CACHE_VERSION = 5  # raised when what a cached row holds changes
_WITHOUT = "no notes of the chosen programs"
_FINGERPRINT_SETTINGS = (MIN_HAND_KINDS, WINDOW, MIN_KINDS, FULL_NOTES, KEPT_ONE_IN)


def load_pieces(
    files: list[PieceFile],
    cache_dir: str | os.PathLike,
    programs: tuple[int, ...] | None = tuple(PIANO_PROGRAMS),
    num_proc: int | None = None,
    drums: bool = False,
) -> Dataset:
    """Read all files into a dataset of `PIECE_FEATURES`, in their order, cached on disk.

    Files that can't be used stay as rows with an `error`, so that nothing disappears silently. Pieces of a built data
    set are read from their MIDI bytes like any file, so that the choice of programs and today's fingerprint hold for
    them, too. Whatever the number of files, a hundred rows at a time are in memory.

    Args:
        files: what `list_sources` gave.
        cache_dir: where the cache lives; a second call with the same files returns at once.
        programs: General MIDI programs to keep from multitrack files; None for all.
        num_proc: processes to read with.
        drums: whether to keep drums, too.
    """
    tables = {file.path for file in files if file.row >= 0}  # an archive's Arrow file, a split of a built data set
    stamps = {path: _stamp(path if os.path.isfile(path) else os.path.join(path, "state.json")) for path in tables}
    key = {
        "version": _CACHE_VERSION,
        "fingerprint": _FINGERPRINT_SETTINGS,
        "programs": programs,
        **({"drums": True} if drums else {}),
        "files": [[*vars(file).values(), *(stamps.get(file.path) or _stamp(file.path))] for file in files],
    }
    rows = [{**vars(file), "path": os.fsencode(file.path)} for file in files]  # a path need not be UTF-8
    built = {path: _open_table(path, Path(cache_dir)) for path in tables}
    return cached_map(
        Dataset.from_list(rows),
        _read_row,
        Path(cache_dir) / f"pieces-{fingerprint_of(key)}",
        features=PIECE_FEATURES,
        fn_kwargs={"chosen": {"programs": programs, "drums": drums}, "built": built},
        remove_columns=["path", "row"],
        num_proc=num_proc,
        writer_batch_size=100,
        desc="Reading pieces",
    )


def _open_table(path: str, cache_dir: Path) -> Dataset:
    """Music in a column `midi`, and in `error` why there is none, where the table knows."""
    if path.lower().endswith(".parquet"):  # of a data set on the Hub
        return open_midi(path, cache_dir)
    table = Dataset.from_file(path) if os.path.isfile(path) else Dataset.load_from_disk(path)
    return table.select_columns(["midi", "error"])


def _stamp(path: str) -> tuple[int, int]:
    """What tells a changed file: size in bytes and time in nanoseconds; zeros where it can't even be asked."""
    try:
        status = os.stat(path)
    except OSError:
        return 0, 0
    return status.st_size, status.st_mtime_ns


def stored_notes(midi: bytes) -> Notes:
    """The music of a row of `PIECE_FEATURES`, in which there is nothing that was not asked for."""
    return read_midi(midi, programs=None, drums=True)


def _read_row(row: dict[str, Any], chosen: dict[str, Any], built: dict[str, Dataset]) -> dict[str, Any]:
    path = os.fsdecode(row["path"])
    columns: dict[str, Any] = {
        "midi": b"",
        "num_notes": 0,
        "seconds": 0.0,
        "excluded_notes": 0,
        "remarks": "{}",
        "content": "",
        "fingerprint": np.zeros(0, dtype=np.uint64),
        "error": "",
    }
    try:
        notes = _read_notes(path, chosen) if row["row"] < 0 else _notes_in(built[path][row["row"]], chosen)
        columns["excluded_notes"] = notes.excluded_notes
        columns["remarks"] = json.dumps(_remarks(notes))
        if len(notes) == 0:
            raise DataError(_why_empty(notes, chosen["programs"]))
        columns |= {"midi": notes_to_midi_bytes(notes), "num_notes": len(notes), "seconds": notes.end_sec}
        columns |= {"content": content_hash(notes), "fingerprint": fingerprint(notes)}
    except (MidiError, DataError) as error:
        columns["error"] = str(error).removeprefix(f"{path}: ").removeprefix("MIDI bytes: ")
    return columns


def _remarks(notes: Notes) -> dict[str, int]:
    """What the reader left out or mended, and what encoders that count seconds will shorten, by name."""
    num_waits = len(notes.long_waits_sec())
    return notes.remarks | ({f"waits of over {MAX_WAIT_SEC} s, which are shortened": num_waits} if num_waits else {})


def _notes_in(row: dict[str, Any], chosen: dict[str, Any]) -> Notes:
    if row.get("error"):
        raise DataError(row["error"])
    return read_midi(row["midi"] or b"", **chosen)


def _read_notes(path: str, chosen: dict[str, Any]) -> Notes:
    is_bach = path.endswith((".mxl", ".xml"))  # no other source is of MusicXML
    return read_bach(path) if is_bach else read_midi(path, **chosen)


def _why_empty(notes: Notes, programs: tuple[int, ...] | None) -> str:
    if not notes.excluded_notes:
        return "no notes"
    if programs is None or not notes.remarks.get("notes of other instruments"):
        return f"no notes but drums ({notes.excluded_notes})"
    return f"{_WITHOUT} ({notes.excluded_notes} of other instruments); --programs all keeps them"


def content_hash(notes: Notes) -> str:
    """Name of a piece's exact content, 16 hex digits.

    It is equal for files that hold the same pitches at the same milliseconds from the first onset on, whatever their
    names, velocities and durations. Pieces that merely resemble each other are `families.py`'s work.
    """
    onset_sec = notes.onset_sec
    onset_ms = np.rint((onset_sec - onset_sec[:1]) * 1000).astype(np.int64)
    content = np.stack([onset_ms, notes["pitch"]])
    # By pitch, then onset: notes come by onset, as a rule, and a stable sort by pitch alone is far faster.
    rising = bool((onset_ms[1:] >= onset_ms[:-1]).all())
    order = np.argsort(notes["pitch"], kind="stable") if rising else np.lexsort(content)
    return hashlib.sha256(content.take(order, axis=1).tobytes()).hexdigest()[:16]


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
        Counts of files, usable files, files that hold other instruments alone (without_chosen_programs), notes, hours
        and notes of other instruments (excluded_notes); the usable pieces, notes and hours of each of the `sources`;
        `remarks`, what was left out or mended in how many files; and every unusable file with its reason. JSON-able.
    """
    errors = dict(zip(pieces["piece_id"], pieces["error"], strict=True))
    remarks: Counter[str] = Counter()
    pieces_with: Counter[str] = Counter()
    for each in pieces["remarks"] if "remarks" in pieces.column_names else ():
        found = json.loads(each or "{}")
        remarks.update(found)
        pieces_with.update(found.keys())
    return {
        "files": len(pieces),
        "usable": sum(not error for error in errors.values()),
        "without_chosen_programs": sum(error.startswith(_WITHOUT) for error in errors.values()),
        "notes": int(np.sum(pieces["num_notes"][:])),
        "hours": round(float(np.sum(pieces["seconds"][:])) / 3600, 3),
        "excluded_notes": int(np.sum(pieces["excluded_notes"][:])),
        "sources": _figures_per_source(pieces),
        "remarks": {name: {"count": remarks[name], "files": pieces_with[name]} for name in sorted(remarks)},
        "unusable": {piece: error for piece, error in errors.items() if error},
    }


def unusable_line(unusable: dict[str, str], where: str) -> str | None:
    """One line on the files that can't be used: how many, the file that names them all, one of them and why."""
    if not unusable:
        return None
    example, reason = next(iter(unusable.items()))
    return f"{len(unusable)} files left out, all named in {where}; e.g. {example}: {reason}"


def _figures_per_source(pieces: Dataset) -> dict[str, dict[str, Any]]:
    numbers = {name: number for number, name in enumerate(dict.fromkeys(pieces["source"]))}
    owners = [numbers[name] for name in pieces["source"]]
    usable = np.bincount(owners, [not error for error in pieces["error"]])
    notes = np.bincount(owners, pieces["num_notes"][:])
    hours = np.bincount(owners, pieces["seconds"][:]) / 3600
    return {
        name: {"pieces": int(usable[number]), "notes": int(notes[number]), "hours": round(float(hours[number]), 3)}
        for name, number in numbers.items()
    }
