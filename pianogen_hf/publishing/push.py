"""Pushing a model folder, and what to say before and after."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from pianogen_hf.hub.destination import Destination, Pushed
from pianogen_hf.publishing.card_facts import ModelFolder
from pianogen_hf.publishing.model_files import Selection, is_part, select_files


def push_folder(
    folder: Path, selection: Selection, repo_id: str, message: str, **options: Any
) -> tuple[Selection, Pushed]:
    """Push a model folder in one commit.

    Args:
        folder: the model.
        selection: what `select_files` found for this name.
        repo_id: `USER/NAME`, or `NAME` for one of your own.
        message: what the commit is called.
        options: of `Destination`.

    Returns:
        What was pushed, with the card that tells its full name, and what became of it.

    Raises:
        HubError: if that did not happen; nothing has changed on the Hub then.
    """
    destination = Destination(repo_id, **options)
    if destination.repo_id != repo_id:  # the namespace was left out
        selection = select_files(folder, destination.repo_id)
    return selection, destination.push(selection.uploads, message, is_part)


def push_command(folder: str | Path, repo_id: str, *options: str) -> str:
    """The command that pushes a folder, for messages that tell how to repeat it."""
    return shlex.join(["pianogen", "push", "--model", str(folder), "--repo", repo_id, *options])


def warnings_of(folder: Path) -> list[str]:
    """What whoever publishes a model should know of it, as its card says it to everybody.

    Raises:
        CardError: if one of its files can't be read.
    """
    model = ModelFolder.read(folder)
    lines = []
    if model.is_non_commercial:
        lines.append("it was trained on music that may not be used commercially; its card says so")
    if model.contaminated:
        pieces = len({each["piece"] for each in model.contaminated})
        lines.append(f"it was trained on music that it is evaluated on ({pieces} pieces); its card says so for ever")
    if model.unknown is not None:
        lines.append("nothing tells all that it was trained on; its card says so")
    return lines


def listing(selection: Selection, repo_id: str) -> str:
    """What would go up and what stays behind, as lines for the terminal."""
    total = sum(each.size for each in selection.uploads)
    lines = [f"would go up to {repo_id}: {len(selection.uploads)} files, {_size(total)}"]
    lines += [f"  {_size(each.size):>9s}  {each.path}" for each in selection.uploads]
    if selection.left:
        lines.append("stays behind:")
        lines += [f"  {path}: {reason}" for path, reason in sorted(selection.left.items())]
    return "\n".join(lines)


def _size(num_bytes: int) -> str:
    for unit in ("B", "kB", "MB"):
        if num_bytes < 1000:
            return f"{num_bytes:.3g} {unit}" if unit != "B" else f"{num_bytes} B"
        num_bytes /= 1000  # type: ignore[assignment]
    return f"{num_bytes:.3g} GB"
