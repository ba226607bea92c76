"""A model by its name: a folder as it is, or the files of one commit on the Hub in the Hub's cache.

Everything that loads by name goes through here, so that all files are of one commit, errors tell what is the matter,
and pickle is not even downloaded.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

from huggingface_hub import constants, get_cached_repo_tree, hf_hub_download, snapshot_download
from huggingface_hub.errors import CachedRepoTreeNotFoundError, HfHubHTTPError, RemoteEntryNotFoundError
from tqdm.auto import tqdm

from pianogen_hf.errors import ArgumentError
from pianogen_hf.hub.errors import explain_loading, is_unanswered, limit_waiting

WEIGHTS = r"model(-\d{5}-of-\d{5})?\.safetensors"
# What a training leaves in a model's folder.
TRAINING_STATE = re.compile(
    r"(optimizer|scheduler|scaler|rng_state|training_args|trainer_state|reading_report)\b.*|rng_state.*"
)
_LOADED = ["*.json", "*.safetensors", "*.py", "*.txt"]
_IN_FOLDERS = ["*/*"]


def model_folder(name: str | os.PathLike, revision: str | None = None, folder: str | None = None) -> Path:
    """Where the files of a model lie, which are fetched if need be.

    Args:
        name: a folder, or a model on the Hub; offline, its cache serves.
        revision: branch, tag or commit of a model on the Hub.
        folder: also fetch what lies in this folder of it, such as onnx.

    Returns:
        The folder itself, or that of the commit in the cache, whose name is the commit's hash.

    Raises:
        ArgumentError: if there is no such model, or it can't be had; one line that says which of the reasons it is.
    """
    if Path(name).is_dir():
        if revision is not None:
            raise ArgumentError(f"{name} is a folder: a revision is for models on the Hub")
        return Path(name)
    found = _fetched(os.fspath(name), revision, None)
    return found if folder is None else _fetched(os.fspath(name), found.name, folder)


def model_file(name: str, filename: str, revision: str | None = None) -> Path:
    """One file of a model, without the others.

    Raises:
        ArgumentError: if it has no such file; else as for `model_folder`.
    """
    if Path(name).is_dir():
        return Path(name, filename)
    limit_waiting(constants.HF_HUB_DOWNLOAD_TIMEOUT)
    try:
        return Path(hf_hub_download(name, filename, revision=revision, library_name="pianogen_hf"))
    except RemoteEntryNotFoundError as error:
        raise ArgumentError(f"model {name!r} has no {filename}") from error
    except Exception as error:
        raise _explained(error, name, revision) from error


def refuse_pickle(folder: Path, name: str | os.PathLike) -> None:
    """Say clearly that a model is of pickle alone; one of other faults is left to who loads it.

    Raises:
        ArgumentError: with the way to convert it.
    """
    files = [path.name for path in folder.iterdir()]
    if folder != Path(name):
        # The cache has only what may be loaded, and the list of what there is.
        with suppress(CachedRepoTreeNotFoundError):
            files += [each.path for each in get_cached_repo_tree(os.fspath(name), revision=folder.name)]
    fault = pickle_fault(os.fspath(name), files)
    if fault is not None:
        raise ArgumentError(fault)


def pickle_fault(name: str, files: list[str]) -> str | None:
    """What to say of a model whose weights are pickle alone; None if they are not.

    Args:
        name: the model, as the user calls it.
        files: its files.
    """
    pickles = [file for file in files if file.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    weights = [file for file in pickles if not TRAINING_STATE.fullmatch(file)]
    if not weights or any(re.fullmatch(WEIGHTS, file) for file in files):
        return None
    return (
        f"{name} holds its weights only as {weights[0]}, with no model.safetensors: pickle can run any code when it is "
        'opened, and is never opened here. If you trust it, convert it once: python -c "from transformers import '
        f"AutoModelForCausalLM as M; M.from_pretrained('{name}', use_safetensors=False).save_pretrained('converted')\""
    )


class _Bar(tqdm):
    """Shown where somebody looks, and only if fetching takes more than a moment."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.pop("name", None)  # the client's way to switch off some bars
        super().__init__(*args, **{**kwargs, "delay": 1, "leave": False, "disable": None})


@lru_cache  # one commit for the whole run, whatever is pushed in between, and no question twice
def _fetched(name: str, revision: str | None, folder: str | None) -> Path:
    limit_waiting(constants.HF_HUB_DOWNLOAD_TIMEOUT)
    wanted = _LOADED if folder is None else [f"{folder}/*"]
    unwanted = _IN_FOLDERS if folder is None else None
    try:
        found = snapshot_download(
            name,
            revision=revision,
            allow_patterns=wanted,
            ignore_patterns=unwanted,
            library_name="pianogen_hf",
            etag_timeout=constants.HF_HUB_ETAG_TIMEOUT,
            tqdm_class=_Bar,
        )
        return Path(found)
    except Exception as error:
        raise _explained(error, name, revision) from error


def _explained(error: Exception, name: str, revision: str | None) -> Exception:
    if isinstance(error, PermissionError):
        return ArgumentError(f"the Hub's cache {error.filename} can't be written: set HF_HOME")
    if isinstance(error, HfHubHTTPError | OSError | ValueError) or is_unanswered(error):
        return ArgumentError(explain_loading(error, name, revision))
    return error  # a mistake of ours
