"""Tables in a folder of music that say which work a file is a version of, and its split."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

from pianogen_hf.data.split_names import SPLIT_ALIASES, SPLITS
from pianogen_hf.errors import DataError

_SUFFIXES = (".csv", ".jsonl")


def is_table(name: str) -> bool:
    """Whether a file is called as such a table is: metadata, in whatever letters and format."""
    return Path(name).stem.lower() == "metadata"


def why_ignored(table: Path) -> str:
    """Why nothing is taken from a table, or ""."""
    if table.suffix.lower() not in _SUFFIXES:
        return "only metadata.csv and metadata.jsonl are read"
    try:
        return "" if table_rows(table) else "no table with a column file_name of files that are here"
    except DataError as error:
        return str(error)


def table_rows(table: Path) -> list[dict[str, str]]:
    """Rows of a table that name a file, with columns in lower case; none of a table without a column `file_name`.

    However that is spelt: filename, File Name. Where it is not to the letter, and no file that it names is there, the
    table is somebody else's and has no rows either.

    Raises:
        DataError: if the table can't be read.
    """
    if table.suffix.lower() not in _SUFFIXES:
        return []
    try:
        data = table.read_bytes()
        text = data.decode("utf-8-sig")
        columns, lines = _csv(text) if table.suffix.lower() == ".csv" else _json_lines(text)
    except UnicodeDecodeError as error:
        if b"file_name" not in data.replace(b"\0", b""):
            return []
        raise DataError(f"{table} is not UTF-8: save it as such") from error
    except (OSError, csv.Error, ValueError) as error:
        raise DataError(f"{table} can't be read: {error}") from error
    names = [_column(name) for name in columns]
    if "file_name" not in names:
        if any("file_name" in re.split("[;\t]", name.lower()) for name in columns):
            raise DataError(f"{table}: put commas between its columns")
        return []
    rows = [dict(zip(names, map(str.strip, line), strict=False)) for line in lines]
    rows = [row for row in rows if row.get("file_name")]
    is_ours = "file_name" in (name.strip().lower() for name in columns)
    return rows if is_ours or any(_is_there(table.parent, row["file_name"]) for row in rows) else []


def _is_there(folder: Path, name: str) -> bool:
    try:
        return (folder / name).exists()
    except (OSError, ValueError):  # no name that a file can have
        return False


def _csv(text: str) -> tuple[list[str], list[list[str]]]:
    lines = list(csv.reader(io.StringIO(text, newline=""), skipinitialspace=True))
    return (lines[0], lines[1:]) if lines else ([], [])


def _json_lines(text: str) -> tuple[list[str], list[list[str]]]:
    rows = [json.loads(line) for line in text.splitlines() if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("every line must be a JSON map")
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return columns, [["" if row.get(name) is None else str(row[name]) for name in columns] for row in rows]


def _column(name: str) -> str:
    """A column's name in lower case; `file_name` however it is spelt: filename, File Name, file-name."""
    name = name.strip().lower()
    return "file_name" if re.sub(r"[\s_-]", "", name) == "filename" else name


def official_split_of(value: str, table: Path) -> str:
    """The split that a table names, or "" for none.

    Raises:
        DataError: for any other word, with the table that has it.
    """
    split_name = value.strip().lower()
    if split_name and split_name not in SPLIT_ALIASES:
        raise DataError(f"{table} has the split {value!r}: it must be one of {', '.join(SPLITS)}")
    return SPLIT_ALIASES.get(split_name, "")
