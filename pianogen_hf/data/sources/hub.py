"""Data sets on the Hub as sources: `hub=USER/NAME[@REVISION]`, fetched into the Hub's cache and read from there.

Three kinds are understood. What `pianogen data push` has published keeps its names, families and splits. Tables of
anybody else need a column of MIDI bytes, wherever it is and whatever its name; their train, validation and test are
official splits. And a repository may hold plain MIDI files, which are listed as a folder is.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, load_dataset_builder
from datasets.exceptions import DatasetsError
from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import validate_repo_id

from pianogen_hf.data.sources.folder import PieceFile, list_folder
from pianogen_hf.data.split_names import SPLIT_ALIASES
from pianogen_hf.errors import DataError
from pianogen_hf.tokenizers.midi import MIDI_SUFFIXES

KIND = "hub="
_OWN_FILES = ["split.json", "pieces/*.parquet"]
_OWN_CHUNKS = ["chunks/*.parquet", "tokenizer/*"]
# By which a repository is known; the music itself is fetched when it is clear where it lies.
_TOLD = ["README.md", "split.json"]
_NAMES = ("piece_id", "file_name", "filename", "midi_filename", "path", "name", "title", "id")
_MIDI = re.compile(rb"MThd|RIFF....RMID", re.DOTALL)


def fetch(source: str, whole: bool = False) -> Path:
    """The files of `hub=USER/NAME[@REVISION]`, in the Hub's cache; without a network, those that were fetched before.

    Args:
        source: with a branch, tag or commit behind the `@`; without it, main.
        whole: also what training does not need: chunks and their tokenizer.

    Returns:
        The snapshot's folder, whose name is the commit's id.

    Raises:
        DataError: if there is no such data set, or it can't be fetched.
    """
    name, revision = _parse(source)
    try:
        folder = _snapshot(name, revision, _TOLD)
        is_own = (folder / "split.json").exists()
        # The rest of the same commit, whatever is pushed in between.
        wanted = [*_OWN_FILES, *(_OWN_CHUNKS if whole else ())] if is_own else [*_anywhere(".parquet", *MIDI_SUFFIXES)]
        return _snapshot(name, folder.name, [*_TOLD, *wanted])
    except (OSError, ValueError, HTTPError) as error:
        raise DataError(_reason(name, revision, error)) from error


def _snapshot(name: str, revision: str | None, patterns: Sequence[str]) -> Path:
    return Path(snapshot_download(name, repo_type="dataset", revision=revision, allow_patterns=list(patterns)))


def _anywhere(*suffixes: str) -> Iterator[str]:
    yield "metadata.csv"
    yield "*/metadata.csv"
    for suffix in suffixes:
        yield from (f"*{suffix}", f"*{suffix.upper()}")


def _parse(source: str) -> tuple[str, str | None]:
    """Name and revision."""
    name, at, revision = source.removeprefix(KIND).partition("@")
    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise DataError(f"{source} is no name on the Hub: write hub=USER/NAME, or hub=USER/NAME@REVISION") from error
    if at and not revision:
        raise DataError(f"{source} has nothing behind its @: write a branch, a tag or a commit there, or leave it out")
    return name, revision or None


def _reason(name: str, revision: str | None, error: Exception) -> str:
    """Why a data set can't be fetched, and what to do."""
    if isinstance(error, GatedRepoError):  # a kind of RepositoryNotFoundError
        return f"the data set {name} is gated: ask for access on its page, and log in with `hf auth login`"
    if isinstance(error, RepositoryNotFoundError):
        return f"the Hub has no data set {name} that you may read: mend the name, or log in with `hf auth login`"
    if isinstance(error, RevisionNotFoundError):
        return f"the data set {name} has no revision {revision}: name one of its branches, tags or commits"
    if isinstance(error, LocalEntryNotFoundError):
        at = f" at {revision}" if revision else ""
        why = "HF_HUB_OFFLINE is set" if constants.is_offline_mode() else "the Hub can't be reached"
        return f"{why}, and the cache does not hold all of the data set {name}{at}: connect once, then try again"
    status = f" (status {error.response.status_code})" if isinstance(error, HfHubHTTPError) else ""
    return f"the data set {name} can't be fetched from the Hub{status}: {' '.join(str(error).split())[:200]}"


def pinned(source: str) -> str:
    """The same source with the commit that it stands at now: what can be found again.

    Raises:
        DataError: if it can't be fetched.
    """
    return f"{KIND}{_parse(source)[0]}@{fetch(source).name}"


def without_revision(source: str) -> str:
    """`hub=USER/NAME` of a source with or without revision."""
    return source.partition("@")[0]


# Listing -------------------------------------------------------------------------------------------------------------


def list_hub(source: str) -> list[PieceFile]:
    """List the pieces of a data set on the Hub; `listing.list_pieces` says what a piece is.

    Raises:
        DataError: if it can't be fetched, or holds no music in a form that is understood.
    """
    folder = fetch(source)
    if is_published(folder):
        return list_published(folder)
    name = _parse(source)[0]
    tables = _tables(folder, name)
    if tables:
        return _list_tables(tables, name)
    if any(path.suffix.lower() in MIDI_SUFFIXES for path in folder.rglob("*")):
        return list_folder(folder, name.rpartition("/")[2])
    raise DataError(f"the data set {name} holds neither Parquet nor MIDI files: fetch it, and make a folder of MIDI")


def is_published(folder: Path) -> bool:
    """Whether it is what `pianogen data push` writes."""
    return (folder / "split.json").is_file() and any((folder / "pieces").glob("*.parquet"))


def list_published(folder: Path) -> list[PieceFile]:
    """Rows of a data set that was published: the splits they were given are official from now on.

    Raises:
        DataError: if a table can't be read, or is none of pieces.
    """
    files = []
    for path, split_name in _published_tables(folder):
        rows = zip(*read_columns(path, ["piece_id", "source", "family_id"]).values(), strict=True)
        files += [
            PieceFile(piece_id, source, str(path), family_id, split_name, row)
            for row, (piece_id, source, family_id) in enumerate(rows)
        ]
    return files


def published_names(folder: Path) -> tuple[Dataset, list[str]]:
    """Of the pieces of a published data set what its split.json says, too; and the split of each.

    Raises:
        DataError: if a table can't be read, or is none of pieces.
    """
    columns: dict[str, list] = {"piece_id": [], "family_id": [], "content": []}
    split_names: list[str] = []
    for path, split_name in _published_tables(folder):
        for name, values in read_columns(path, list(columns)).items():
            columns[name] += values
        split_names += [split_name] * (len(columns["piece_id"]) - len(split_names))
    return Dataset.from_dict(columns), split_names


def _published_tables(folder: Path) -> Iterator[tuple[Path, str]]:
    for path in sorted((folder / "pieces").glob("*.parquet")):
        split_name = SPLIT_ALIASES.get(path.name.partition("-")[0])
        if split_name is None:
            raise DataError(f"{path} is of no split: its name must begin with train-, validation- or test-")
        yield path, split_name


def read_columns(path: Path, names: list[str]) -> dict[str, list]:
    """Columns of a Parquet file, in this order, without reading the others.

    Raises:
        DataError: if it can't be read, or lacks one.
    """
    try:
        table = pq.read_table(path, columns=names)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path.name} can't be read as Parquet: {' '.join(str(error).split())[:200]}") from error
    missing = set(names) - set(table.column_names)
    if missing:
        raise DataError(f"{path.name} has no column {min(missing)}, as published pieces have")
    return table.select(names).to_pydict()


def _tables(folder: Path, name: str) -> dict[str, list[Path]]:
    """Parquet files by split, as the data set's own card or the names of its files tell them apart."""
    try:
        found = load_dataset_builder(str(folder)).config.data_files or {}
    except FileNotFoundError:  # nothing that datasets reads, or nothing at all
        return {}
    except (DatasetsError, OSError, ValueError) as error:  # several configurations and no default, a broken card
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"the data set {name} can't be opened: {reason.replace(str(folder), name)}") from error
    tables = {str(split): [Path(path) for path in paths] for split, paths in found.items()}
    return tables if all(path.suffix.lower() == ".parquet" for paths in tables.values() for path in paths) else {}


def _list_tables(tables: dict[str, list[Path]], name: str) -> list[PieceFile]:
    """Rows of anybody's tables."""
    source, split_names = name.rpartition("/")[2], official_splits(list(tables))
    files: list[PieceFile] = []
    for split, paths in tables.items():
        known = Counter[str]()
        for path in paths:
            for row, own in enumerate(_row_names(path, name)):
                known[own] += 1
                unique = own if known[own] == 1 else f"{own} ({known[own]})"
                files.append(PieceFile(f"{source}/{split}/{unique}", source, str(path), "", split_names[split], row))
    return files


def official_splits(splits: Sequence[str]) -> dict[str, str]:
    """The split that each split of a stranger's data set prescribes, "" for none.

    What is called train prescribes none where there is no validation: it may be all there is, which the Hub calls
    train, and else validation pieces are to be dealt out of it.
    """
    split_names = {split: SPLIT_ALIASES.get(split.lower(), "") for split in splits}
    return (
        split_names
        if "validation" in split_names.values()
        else {**split_names, "train": ""}
        if "train" in split_names
        else split_names
    )


def _row_names(path: Path, name: str) -> list[str]:
    """What the rows are called: by a column of names, if there is one, else by their number."""
    try:
        schema = pq.read_schema(path)
        midi_column(path)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path.name} of {name} can't be read: {' '.join(str(error).split())[:200]}") from error
    except DataError as error:
        raise DataError(f"the data set {name}: {error}") from error
    column = next((each for each in _NAMES if each in schema.names and _is_text(schema.field(each).type)), None)
    if column is None:
        return [f"{path.stem}/{row}" for row in range(pq.read_metadata(path).num_rows)]
    return [str(value or row) for row, value in enumerate(read_columns(path, [column])[column])]


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


# Music ---------------------------------------------------------------------------------------------------------------


def open_midi(path: str, cache_dir: Path) -> Dataset:
    """The MIDI bytes of a Parquet file as a Dataset with the one column `midi`, in the file's order.

    Raises:
        DataError: if no column holds MIDI bytes.
    """
    column = midi_column(Path(path))
    rows = Dataset.from_parquet(path, columns=[column.partition(".")[0]], cache_dir=str(cache_dir))
    return rows.flatten().select_columns(column).rename_columns({column: "midi"} if column != "midi" else {})


def midi_column(path: Path) -> str:
    """The column of a Parquet file whose first entries are MIDI bytes; `a.b` for the field b of a column a.

    Raises:
        DataError: if there is none, or more than one.
    """
    with pq.ParquetFile(path) as file:
        schema = file.schema_arrow
        binary = [field.name for field in schema if _is_bytes(field.type)]
        binary += [
            f"{field.name}.{inner.name}"
            for field in schema
            if pa.types.is_struct(field.type)
            for inner in field.type
            if _is_bytes(inner.type)
        ]
        head = next(file.iter_batches(16, columns=binary), None) if binary else None
    heads = {} if head is None else {name: _values(head, name) for name in binary}
    found = [name for name, values in heads.items() if any(value and _MIDI.match(value) for value in values)]
    if "midi" in found or len(found) == 1:
        return "midi" if "midi" in found else found[0]
    if found:
        raise DataError(f"several columns hold MIDI bytes ({', '.join(found)}): rename the one to use to midi")
    raise DataError(f"no column holds MIDI bytes; the columns are {', '.join(schema.names)}")


def _is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _values(batch: pa.RecordBatch, name: str) -> list[bytes | None]:
    column, _, inner = name.partition(".")
    values = batch.column(column).to_pylist()
    return [value and value[inner] for value in values] if inner else values
