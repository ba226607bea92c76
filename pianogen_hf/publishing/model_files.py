"""Which files of a model folder go to the Hub: a list of what may, since nobody can list what may not.

A folder in which a model was trained also holds caches, optimizer states, logs, pickle and sometimes the data, and some
of it can't be taken back once it was public. So a file goes up if this list knows it for a part of a model.
"""

from __future__ import annotations

import ast
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from pianogen_hf.errors import PianogenError
from pianogen_hf.hub.destination import Upload
from pianogen_hf.hub.models import TRAINING_STATE, WEIGHTS, pickle_fault
from pianogen_hf.publishing.model_card import CardError, render_card
from pianogen_hf.records import read_map

INDEX = "model.safetensors.index.json"
# What belongs to the weights and would be wrong beside others: taken from the Hub when the folder no longer has it.
_PARTS = re.compile(
    rf"{WEIGHTS}|{re.escape(INDEX)}|(generation_)?config\.json"
    r"|tokenizer_config\.json|tokenizer\.json|special_tokens_map\.json|added_tokens\.json|vocab\.(json|txt)|merges\.txt"
    r"|miditok\.json|actions\.json|preprocessor_config\.json|processor_config\.json"
    r"|metrics\.json|split\.json|provenance\.(json|safetensors)"
    r"|onnx/[\w.-]+\.(onnx|onnx_data|json|safetensors)"
)
# What people look at; older ones may stay there.
_SHOWN = re.compile(r"README\.md|card_text\.md|LICENSE(\.md|\.txt)?|NOTICE|[^/]+\.png|samples/[^/]+\.(mid|png|wav)")
_PICKLE = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".h5", ".msgpack")
_DATA = (
    ".mid",
    ".midi",
    ".wav",
    ".mp3",
    ".flac",
    ".arrow",
    ".parquet",
    ".csv",
    ".tsv",
    ".jsonl",
    ".npz",
    ".zip",
    ".gz",
)
ACCESS_TOKEN = re.compile(rb"hf_[A-Za-z0-9]{30,}")


class FolderError(PianogenError):
    """A folder that can't be pushed; the message is one line that says what to do."""


@dataclass(frozen=True)
class Selection:
    """What goes up, and what stays behind with the reason; a folder that stays behind is one entry."""

    uploads: tuple[Upload, ...]
    left: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def code(self) -> list[str]:
        """The code files among them."""
        return [each.path for each in self.uploads if each.path.endswith(".py")]


def is_part(path: str) -> bool:
    """Whether a file of a repository belongs to its weights, so that it may not outlive them."""
    return _PARTS.fullmatch(path) is not None


def select_files(folder: str | os.PathLike, repo_id: str | None = None) -> Selection:
    """Sort the files of a model folder; the card is rendered with the name that the model will have.

    Args:
        folder: what train.py or `save_pretrained` wrote.
        repo_id: its name on the Hub.

    Raises:
        FolderError: if it holds no model that can be loaded whole, or one of its files holds an access token.
        FileError: if one of its JSON files can't be read.
        CardError: if no card can be made of it.
    """
    folder = Path(folder)
    check_weights(folder)
    carried = _carried_code(folder)
    uploads, left = [], {}
    for path, reason in _walk(folder, carried):
        if reason:
            left[path] = reason
        else:
            uploads.append(Upload(path, folder / path, (folder / path).stat().st_size))
    card, note = _card(folder, repo_id)
    uploads = [each for each in uploads if each.path != "README.md"] + [Upload("README.md", card, len(card))]
    uploads.sort(key=lambda each: each.path)
    _refuse_tokens(uploads)
    return Selection(tuple(uploads), left, (note,) if note else ())


def check_weights(folder: Path) -> None:
    """Refuse a folder whose weights are not there, not whole, or pickle.

    Raises:
        FolderError: with what to do about it.
        FileError: if the index of its weights can't be read.
    """
    if not folder.is_dir():
        raise FolderError(f"{folder} is no folder")
    if not (folder / "config.json").is_file():
        raise FolderError(f"{folder} holds no model (no config.json)")
    names = sorted(path.name for path in folder.iterdir())
    weights = [name for name in names if re.fullmatch(WEIGHTS, name)]
    if not weights:
        fault = pickle_fault(str(folder), names)
        raise FolderError(fault or f"{folder} holds no weights (no model.safetensors): is it still being trained?")
    if (folder / INDEX).is_file():
        missing = sorted(set(read_map(folder / INDEX).get("weight_map", {}).values()) - set(weights))
        if missing:
            raise FolderError(f"{folder} lacks {missing[0]}, which its {INDEX} names")
    for name in weights:
        try:
            with safe_open(folder / name, "numpy"):
                pass
        except (SafetensorError, OSError) as error:
            raise FolderError(f"{folder / name} is not whole: {' '.join(str(error).split())[:100]}") from error


def _walk(folder: Path, carried: set[str]) -> Iterator[tuple[str, str]]:
    """Every file with the reason why it stays behind, "" if it goes up."""
    for root, folders, files in os.walk(folder):
        for name in sorted(folders):
            path = Path(root, name).relative_to(folder).as_posix()
            if path not in ("samples", "onnx") or Path(root, name).is_symlink():
                yield f"{path}/", _why_not_folder(Path(root, name))
        folders[:] = [name for name in folders if Path(root) == folder and name in ("samples", "onnx")]
        folders[:] = [name for name in folders if not Path(root, name).is_symlink()]
        for name in sorted(files):
            path = Path(root, name).relative_to(folder).as_posix()
            if not Path(root, name).is_file():
                yield path, "no file"
            else:
                yield (
                    path,
                    "" if path in carried or _PARTS.fullmatch(path) or _SHOWN.fullmatch(path) else _why_not(path),
                )


def _why_not_folder(path: Path) -> str:
    if path.is_symlink():
        return "a link to a folder"
    if path.name.startswith("checkpoint-"):
        return "a checkpoint of the training, with its optimizer"
    if path.name.startswith((".", "__")) or "cache" in path.name.lower():
        return "hidden, or a cache"
    if path.name == "runs" or any(path.glob("events.out.tfevents.*")):
        return "logs of the training"
    return "a folder that is no part of a model"


def _why_not(path: str) -> str:
    """Why a file stays behind, in a few words."""
    name = path.rsplit("/", 1)[-1]
    if TRAINING_STATE.fullmatch(name):
        return "a record or state of the training"
    if name.startswith("."):
        return "hidden, or a cache"
    if "tfevents" in name or name.endswith(".log"):
        return "logs of the training"
    if name.endswith(_PICKLE):
        return "pickle or its like, which can run code when it is opened"
    if name.endswith(_DATA):
        return "may be data"
    if name.endswith(".py"):
        return "code that the model does not carry"
    return "no part of a model"


def _carried_code(folder: Path) -> set[str]:
    """The modules that an `auto_map` names, and the siblings that they import."""
    wanted: list[str] = []
    for name in ("config.json", "tokenizer_config.json", "preprocessor_config.json"):
        if (folder / name).is_file():
            wanted += _modules(read_map(folder / name).get("auto_map", {}))
    found: set[str] = set()
    while wanted:
        name = f"{wanted.pop()}.py"
        if name in found:
            continue
        if not (folder / name).is_file():
            raise FolderError(f"{folder} lacks {name}, which its auto_map or another code file needs")
        found.add(name)
        wanted += _siblings(folder / name)
    return found


def _modules(auto_map: Any) -> Iterator[str]:
    """Modules beside the config that an `auto_map` names; one of another repository ("a/b--x.Y") lies there."""
    references = auto_map.values() if isinstance(auto_map, dict) else [auto_map]
    for reference in references:
        for each in reference if isinstance(reference, list | tuple) else [reference]:
            if isinstance(each, str) and "--" not in each and re.fullmatch(r"\w+\.\w+", each):
                yield each.split(".")[0]


def _siblings(path: Path) -> list[str]:
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except (SyntaxError, ValueError) as error:
        raise FolderError(f"{path} is no Python: {error}") from error
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level == 1]
    return [node.module.split(".")[0] for node in imports if node.module]


def _card(folder: Path, repo_id: str | None) -> tuple[bytes, str]:
    """The card under the model's name on the Hub, and what is to be said of it."""
    path = folder / "README.md"
    if path.is_file():
        text = path.read_text(encoding="utf-8", errors="replace")
        try:
            is_ours = text == render_card(folder)
        except CardError:
            is_ours = False
        if not is_ours:
            return path.read_bytes(), "README.md is not the one that this version writes: it goes up as it is"
    return render_card(folder, name=repo_id).encode(), ""


def _refuse_tokens(uploads: list[Upload]) -> None:
    """Text that would publish an access token, for example of a command that was recorded."""
    for each in uploads:
        if each.path.endswith((".json", ".md", ".txt", ".py")):
            content = each.source if isinstance(each.source, bytes) else each.source.read_bytes()
            if ACCESS_TOKEN.search(content):
                raise FolderError(f"{each.path} holds an access token (hf_...): take it out, and make a new token")
