"""Walking through a folder of music: which files are there, and what of this package's own work is passed over.

Music that a model has written lies below a source folder as soon as somebody trains into it, and would be trained on.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from pianogen_hf.data.sources.tables import is_table, why_ignored
from pianogen_hf.errors import DataError
from pianogen_hf.tokenizers.midi import MIDI_SUFFIXES

_OWN_FILES = ("split.json", "provenance.json")
_ASIDE = re.compile(r"\.(old\d+|partial|replaced)$")  # what this package calls folders that it moves aside
_GENERATED = ("samples", "evaluation", "audit")  # where runs keep what their model wrote
_SHOWN = 5


def files_below(folder: Path) -> Iterator[Path]:
    """Every file in a folder and its subfolders, links that lead nowhere included: reading will say what they are.

    Pipes and devices, on which reading would wait for ever, are no files. Folders in which this package has written
    are passed over, but not the one that is asked for.
    """
    for place, _, names in _walk(folder):
        paths = (Path(place, name) for name in names)
        yield from (path for path in paths if path.is_file() or (path.is_symlink() and not path.exists()))


def passed_over(folder: Path) -> dict[str, str]:
    """What of a folder is not read, by its place in it, and why; files of other kinds are counted by their suffix."""
    reasons: dict[str, str] = {}
    others: Counter[str] = Counter()
    for place, skipped, names in _walk(folder):
        for name, reason in skipped.items():
            reasons[_below(folder, place, name)] = f"{reason}: give it as a source of its own to read it"
        for name in names:
            suffix = os.path.splitext(name)[1].lower()
            if is_table(name):
                if reason := why_ignored(Path(place, name)):
                    reasons[_below(folder, place, name)] = reason
            elif suffix not in MIDI_SUFFIXES:
                others[suffix or "no suffix"] += 1
    counts = {f"files with {suffix}": f"{count} not read" for suffix, count in others.most_common()}
    return reasons | counts


def passed_over_lines(reasons: dict[str, str]) -> list[str]:
    """Lines for the terminal on what `passed_over` found."""
    lines = [f"passed over: {name} ({reason})" for name, reason in reasons.items()]
    more = len(lines) - _SHOWN
    return [*lines[:_SHOWN], f"... and {more} more, all in reading_report.json"] if more > 0 else lines


def _walk(folder: Path) -> Iterator[tuple[str, dict[str, str], list[str]]]:
    """Each folder that is read, its subfolders that are not, with the reason, and the names of its files."""

    def refuse(error: OSError) -> None:
        raise DataError(f"{error.filename}: {error.strerror}") from error

    for place, folders, names in os.walk(folder, onerror=refuse):
        is_run = "provenance.json" in names  # the folder that was asked for: others are not come to
        skipped = {name: reason for name in sorted(folders) if (reason := _own_work(place, name, is_run))}
        folders[:] = sorted(set(folders) - skipped.keys())
        yield place, skipped, names


def _own_work(place: str, name: str, is_in_run: bool) -> str:
    """Why a folder is passed over, or ""."""
    if _ASIDE.search(name):
        return "an earlier run or data set that was moved aside"
    if is_in_run and name in _GENERATED:
        return "what the model of the folder has written"
    for own in _OWN_FILES:
        if os.path.isfile(os.path.join(place, name, own)):
            return f"a run or a data set of this package (it holds {own})"
    if all(os.path.exists(os.path.join(place, name, each)) for each in ("metrics.json", "evaluation")):
        return "an evaluation of this package"
    return ""


def _below(folder: Path, place: str, name: str) -> str:
    path = Path(place, name).relative_to(folder)
    return os.fsencode(path.as_posix()).decode("utf-8", "backslashreplace")
