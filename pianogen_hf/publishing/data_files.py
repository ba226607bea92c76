"""What of a built data set goes to the Hub: Parquet files with plain columns, the split, the tokenizer of the chunks.

Nothing else does. What tells of the machine it was built on, paths above all, is looked for and refused.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from datasets import Dataset

from pianogen_hf.hub.destination import Upload
from pianogen_hf.publishing.model_files import ACCESS_TOKEN, FolderError

PIECE_COLUMNS = (
    *("piece_id", "source", "family_id", "official_split", "midi"),
    *("num_notes", "seconds", "excluded_notes", "content"),
)
_SHARD_BYTES = 500 * 2**20  # what the Hub's own tools aim at
_TOKENIZER = re.compile(r"[\w.-]+\.(json|txt|model)")
_OWN = re.compile(r"(pieces|chunks)/[^/]+\.parquet|tokenizer/[^/]+|split\.json")


def is_data(path: str) -> bool:
    """Whether a file of a repository belongs to an earlier state of its data, so that it may not outlive it."""
    return _OWN.fullmatch(path) is not None


def published_pieces(pieces: Mapping[str, Dataset]) -> dict[str, Dataset]:
    """The columns that go up: fingerprints are made anew from the music, and rows with errors are not in a data set."""
    return {split_name: rows.select_columns(list(PIECE_COLUMNS)) for split_name, rows in pieces.items()}


def write_tables(folder: Path, config: str, splits: Mapping[str, Dataset]) -> list[Upload]:
    """Write Parquet files of at most about 500 MB into a folder: CONFIG/SIDE-00000-of-00001.parquet.

    Raises:
        FolderError: if they can't be written.
    """
    uploads = []
    for split_name, rows in splits.items():
        count = max(1, math.ceil(rows._estimate_nbytes() / _SHARD_BYTES))
        for number in range(count):
            path = f"{config}/{split_name}-{number:05d}-of-{count:05d}.parquet"
            try:
                (folder / config).mkdir(exist_ok=True)
                rows.shard(count, number, contiguous=True).to_parquet(str(folder / path))
            except OSError as error:
                raise FolderError(f"{folder / path} can't be written: {error.strerror or error}") from error
            uploads.append(Upload(path, folder / path, (folder / path).stat().st_size))
    return uploads


def other_files(folder: Path, with_tokenizer: bool) -> list[Upload]:
    """split.json and, if wanted, the tokenizer's files."""
    paths = [folder / "split.json"]
    if with_tokenizer:
        paths += [path for path in sorted((folder / "tokenizer").iterdir()) if _TOKENIZER.fullmatch(path.name)]
    return [Upload(path.relative_to(folder).as_posix(), path, path.stat().st_size) for path in paths]


def refuse_private(uploads: Sequence[Upload], pieces: Mapping[str, Dataset], folder: Path) -> None:
    """Refuse what would publish an access token, or where the data lie on this machine.

    Args:
        uploads: what is to go up; the text files among them are read.
        pieces: per split the rows that are to go up.
        folder: the data set.

    Raises:
        FolderError: with the file or piece that does.
    """
    places = [str(place).encode() for place in _places(folder)]
    for each in uploads:
        if not each.path.endswith((".json", ".md", ".txt")):
            continue
        content = each.source if isinstance(each.source, bytes) else Path(each.source).read_bytes()
        if ACCESS_TOKEN.search(content):
            raise FolderError(f"{each.path} holds an access token (hf_...): take it out, and make a new token")
        # A path begins there: a piece may be called music/Users/me/1.mid, whoever has a home of that name.
        found = next((place for place in places if re.search(rb"(?<![\w.-])" + re.escape(place), content)), None)
        if found is not None:
            raise FolderError(f"{each.path} names a folder of this machine, {found.decode()}: build the data set anew")
    for rows in pieces.values():
        for name in rows["piece_id"]:
            if os.path.isabs(name) or ".." in name.split("/"):
                raise FolderError(f"the piece {name} is named by a path of this machine: build the data set anew")


def _places(folder: Path) -> Iterator[Path]:
    """Folders whose paths tell of this machine; the root and its children, such as /tmp, tell nothing."""
    for place in (Path.home(), folder.absolute().parent, folder.resolve().parent, Path.cwd()):
        if len(place.parts) > 2 or place == Path.home() != Path("/"):
            yield place
