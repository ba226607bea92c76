"""The two files of a model's provenance: written, read, and found in a folder, on the Hub or in the Hub's cache.

`provenance.json` is to be read and compared by eye; `provenance.safetensors` holds the fingerprints of the pieces it
names. Two hashes tell files that were edited, cut short or swapped. They are no signature: who means to deceive can
make others.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from huggingface_hub import _CACHED_NO_EXIST, get_cached_repo_tree, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import CachedRepoTreeNotFoundError, LocalEntryNotFoundError, RemoteEntryNotFoundError
from safetensors import SafetensorError
from safetensors.numpy import load as load_arrays
from safetensors.numpy import save as save_arrays

from pianogen_hf.data.sealed import hash_of, text_of
from pianogen_hf.errors import DataError
from pianogen_hf.tokenizers.files import write_whole

JSON_NAME = "provenance.json"
ARRAYS_NAME = "provenance.safetensors"
FORMAT = 1  # raised when the form changes


def write_files(folder: str | os.PathLike, content: Mapping[str, Any], fingerprints: Sequence[np.ndarray]) -> None:
    """Write both, each whole or not at all; into a folder that is made if need be.

    Args:
        folder: where to.
        content: what the JSON file is to say; its `trained_on` has one entry per fingerprint.
        fingerprints: in the order of the sorted names in `trained_on`, each uint64, shape (1 + num_grams,).

    Raises:
        FileError: if the folder can't be written to.
    """
    lengths = np.array([len(each) for each in fingerprints], dtype=np.int64)
    joined = np.concatenate([np.empty(0, dtype=np.uint64), *fingerprints])
    arrays = save_arrays({"fingerprints": joined, "lengths": lengths})
    said = {"format": FORMAT, **content, "fingerprints": hashlib.sha256(arrays).hexdigest()}
    write_whole(Path(folder, ARRAYS_NAME), arrays)
    write_whole(Path(folder, JSON_NAME), text_of({**said, "hash": hash_of(said)}))


def read_files(name: str, paths: tuple[Path, Path]) -> tuple[dict[str, Any], list[np.ndarray]]:
    """What `write_files` wrote: the content and the fingerprints.

    Args:
        name: of the checkpoint, for messages.
        paths: of the JSON file and of the arrays.

    Raises:
        DataError: if a file is broken or edited, does not belong to the other, or comes from a later version.
    """
    try:
        text, arrays = paths[0].read_text(encoding="utf-8"), paths[1].read_bytes()
        content = json.loads(text)
        if content["format"] != FORMAT:
            raise DataError(f"{name} has a {JSON_NAME} of format {content['format']}, this version reads {FORMAT}")
        # The text, too, must be as written: JSON may say one thing twice, and then not what a reader sees first.
        if text.encode() != text_of(content) or content.pop("hash") != hash_of(content):
            raise DataError(f"{name} has a {JSON_NAME} that was edited since it was written: take an unedited copy")
        if content["fingerprints"] != hashlib.sha256(arrays).hexdigest():
            raise DataError(f"{name} has a {ARRAYS_NAME} that is not whole, or not that of its {JSON_NAME}")
        loaded = load_arrays(arrays)
        fingerprints = np.split(loaded["fingerprints"], np.cumsum(loaded["lengths"]))[:-1]
    except DataError:
        raise
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, SafetensorError) as error:
        reason = " ".join(str(error).split())[:100]
        raise DataError(f"{name} has a broken {JSON_NAME} or {ARRAYS_NAME}: {reason}") from error
    return content, fingerprints


def find_files(
    name: str, revision: str | None, cache_dir: str | os.PathLike | None, token: str | bool | None
) -> tuple[Path, Path] | None:
    """Both files of a folder or of a model on the Hub; None if it is known to have neither.

    Raises:
        DataError: if there is no such model; if it has only one of the files; or if the Hub can't be reached and its
            cache does not tell whether the model has them.
    """
    if os.path.isdir(name):  # Path("") would be this folder
        found = [path if path.is_file() else None for path in (Path(name, JSON_NAME), Path(name, ARRAYS_NAME))]
    else:
        found = [_fetch(name, JSON_NAME, revision, cache_dir, token)]
        # Both of one commit, whatever is pushed in between: the folder of a snapshot has its commit's name.
        found.append(_fetch(name, ARRAYS_NAME, found[0].parent.name if found[0] else revision, cache_dir, token))
    if found[0] and found[1]:
        return found[0], found[1]
    if found[0] or found[1]:
        raise DataError(f"{name} has {JSON_NAME} or {ARRAYS_NAME} but not both: fetch the checkpoint anew")
    return None


def _fetch(
    name: str, filename: str, revision: str | None, cache_dir: str | os.PathLike | None, token: str | bool | None
) -> Path | None:
    """The file, from the Hub or its cache; None if the model is known not to have it.

    `cached_file` of transformers would not do: it tells a file that does not exist from a Hub that does not answer by
    the words of one and the same error.
    """
    cache = None if cache_dir is None else str(cache_dir)
    try:
        return Path(hf_hub_download(name, filename, revision=revision, cache_dir=cache, token=token))
    except RemoteEntryNotFoundError:
        return None
    except LocalEntryNotFoundError as error:
        if _is_known_to_lack(name, filename, revision, cache):
            return None
        raise DataError(
            f"no folder {name!r} here, the Hub can't be reached, and its cache does not tell whether that model has a "
            f"{filename}: connect once, or give a folder"
        ) from error
    except (OSError, ValueError) as error:  # no such model or revision; no right to it; no name of a model
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"no folder {name!r} here, and the Hub does not give that model: {reason}") from error


def _is_known_to_lack(name: str, filename: str, revision: str | None, cache_dir: str | None) -> bool:
    """Whether the Hub's cache remembers that there is no such file: it was asked for once, or all files were listed.

    A model that was cached by loading its weights alone has neither. Nobody has asked then, and to take it for a model
    without provenance would hide what it was trained on.
    """
    if try_to_load_from_cache(name, filename, cache_dir=cache_dir, revision=revision) is _CACHED_NO_EXIST:
        return True
    try:
        listed = get_cached_repo_tree(name, cache_dir=cache_dir, revision=revision)
    except CachedRepoTreeNotFoundError:
        return False
    return all(file.path != filename for file in listed)
