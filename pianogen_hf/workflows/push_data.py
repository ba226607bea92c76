"""Pushing data: a built data set to the Hub, in one commit, and back again to see that it arrived whole."""

from __future__ import annotations

import re
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from pianogen_hf.data.built import is_built, read_pieces, read_splits
from pianogen_hf.data.checks import manifest_faults
from pianogen_hf.data.manifest import read_manifest
from pianogen_hf.errors import DataError, FileError
from pianogen_hf.hub.destination import Destination, Upload
from pianogen_hf.hub.errors import limit_waiting
from pianogen_hf.publishing.card_facts import describe, forbids_commerce, terms_of
from pianogen_hf.publishing.data_card import UNKNOWN, is_non_commercial, render_data_card
from pianogen_hf.publishing.data_files import is_data, other_files, published_pieces, refuse_private, write_tables
from pianogen_hf.publishing.data_reload import check_pushed_data
from pianogen_hf.records import read_json


def push_data(
    folder: Path,
    repo: str,
    *,
    license: str,
    text: str,
    message: str,
    dry_run: bool,
    timeout: float,
    token: str | None,
    **destination_options: Any,
) -> int:
    """Push a built data set, and check what arrived.

    Args:
        folder: what `pianogen data build` wrote.
        repo: the data set on the Hub, made if it is not there.
        license: as the Hub calls it.
        text: for the card.
        message: what the commit is called.
        dry_run: whether only to list what would go up.
        timeout: how many seconds the Hub may take to answer.
        token: access token; None for the one that is stored.
        **destination_options: `private`, `revision` and `create_pr`, as for `Destination`.

    Returns:
        The exit code: 0, or 130 if the check was interrupted.

    Raises:
        DataError, FolderError, HubError: for what a user can mend.
    """
    built = _Built.read(folder)
    for line in _warnings(built.manifest, license):
        print(f"warning: {line}", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="pianogen-push-") as scratch:
        uploads = [each for name, rows in built.configs.items() for each in write_tables(Path(scratch), name, rows)]
        uploads += other_files(folder, with_tokenizer="chunks" in built.configs)
        card = built.card(repo, license, text)
        refuse_private([*uploads, card], built.configs["pieces"], folder)
        if dry_run:
            print(_listing([*uploads, card], repo))
            return 0
        limit_waiting(timeout)
        destination = Destination(repo, token=token, repo_type="dataset", **destination_options)
        if destination.repo_id != repo:  # the namespace was left out
            card = built.card(destination.repo_id, license, text)
        pushed = destination.push([*uploads, card], message, is_data)
    print(pushed.summary, flush=True)
    try:
        print(check_pushed_data(built.configs, built.manifest["hash"], pushed, token))
    except KeyboardInterrupt:
        print("interrupted: the data set is pushed, but was not checked; the same command checks it", file=sys.stderr)
        return 130
    return 0


@dataclass(frozen=True)
class _Built:
    """A data set, read: rows by configuration and split, as they are to be published."""

    configs: dict[str, dict[str, Dataset]]
    manifest: dict[str, Any]
    report: dict[str, Any]

    @classmethod
    def read(cls, folder: Path) -> _Built:
        """Read a folder, and refuse one whose split.json does not describe it."""
        if not is_built(folder):
            raise DataError(f"{folder} is no data set that `pianogen data build` wrote")
        manifest = read_manifest(folder / "split.json")
        faults = manifest_faults(manifest, *read_pieces(folder))
        if faults:
            raise DataError(f"{folder}: split.json does not describe its pieces ({faults[0]}): build it anew")
        origin = manifest["parameters"].get("tokenizer_from")
        if origin and (Path(origin).expanduser().exists() or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", origin)):
            raise DataError(
                f"its chunks were made with the tokenizer of {origin}, a folder that nobody else has: push that model "
                "(pianogen push), and build with --model_name_or_path and its name on the Hub"
            )
        configs = {"pieces": published_pieces(read_splits(folder / "pieces"))}
        if (folder / "chunks").is_dir():
            if not (folder / "tokenizer").is_dir():
                raise DataError(f"{folder} has chunks, but not the tokenizer that wrote them: build it anew")
            configs["chunks"] = dict(read_splits(folder / "chunks"))
        return cls(configs, manifest, _report(folder))

    def card(self, name: str, license: str, text: str) -> Upload:
        """README.md."""
        pieces, chunks = self.configs["pieces"], self.configs.get("chunks", {})
        card = render_data_card(name, pieces, chunks, self.manifest, self.report, license, text).encode()
        return Upload("README.md", card, len(card))


def _report(folder: Path) -> dict[str, Any]:
    """What was read; nothing if that is not known, as of a copy from the Hub."""
    try:
        report = read_json(folder / "reading_report.json")
        return {name: report[name] for name in ("files", "unusable", "between_sides")}
    except (FileError, LookupError, TypeError):
        return {}


def _warnings(manifest: dict[str, Any], license: str) -> list[str]:
    """What whoever publishes these data should know."""
    forbidding = [name for name in manifest["sources"] if forbids_commerce(name)]
    lines = [f"{describe(name)} ({name}) is under {terms_of(name)}; the card says so" for name in forbidding]
    if license == UNKNOWN:
        lines.append("no --license was given: the card says that it is unknown, and nobody may rely on using the data")
    elif forbidding and not is_non_commercial({"sources": ()}, license):
        lines.append(f"--license {license} allows what the terms of {forbidding[0]} forbid: is it yours to give?")
    return lines


def _listing(uploads: list[Upload], repo_id: str) -> str:
    """What would go up, as lines for the terminal, the card last and in full."""
    card = uploads[-1]
    lines = [
        f"would go up to the data set {repo_id}: {len(uploads)} files, {sum(each.size for each in uploads):,} bytes"
    ]
    lines += [f"  {each.size:>13,}  {each.path}" for each in uploads]
    return "\n".join([*lines, "", card.source.decode() if isinstance(card.source, bytes) else ""]).rstrip()
