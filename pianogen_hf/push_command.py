"""`pianogen push`: a model folder to the Hub, in one commit, and back again to see that it arrived whole."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from pianogen_hf.command_line import OneLineParser, UsageError

if TYPE_CHECKING:
    from pianogen_hf.publishing.model_files import Selection


def make_parser() -> argparse.ArgumentParser:
    """The options of `pianogen push`."""
    parser = OneLineParser(
        prog="pianogen push",
        description="Put a model on the Hugging Face Hub: weights (safetensors), tokenizer, configuration, code files "
        "that it carries, card, figures, split, provenance, samples and exported graphs, in one commit. Caches, "
        "optimizer states, checkpoints, logs, pickle and data stay behind. Then the model is loaded from there with an "
        "empty cache and must compute what it computes here. To push again is always safe: what is there already is "
        "not sent.",
        epilog="Examples: pianogen push --model runs/mine --repo me/my-model --dry_run ; pianogen push --model "
        "runs/mine --repo me/my-model --private ; pianogen push --model runs/mine --repo somebody/their-model "
        "--create_pr. First log in, once: hf auth login",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model", required=True, metavar="FOLDER", help="what train.py wrote, or save_pretrained")
    add("--repo", required=True, metavar="USER/NAME", help="the repository, made if it is not there")
    add_destination_options(parser, "Upload model with pianogen_hf")
    add("--dry_run", action="store_true", help="only list what would go up and what stays behind; asks nobody")
    add("--trust_remote_code", action="store_true", help="run code files of other origin when the push is checked")
    return parser


def add_destination_options(parser: argparse.ArgumentParser, message: str) -> None:
    """Options of whatever is pushed; `message` is what the commit is called by default."""
    add = parser.add_argument
    add("--private", action="store_true", help="make it private; refused if it exists and is public")
    add("--revision", metavar="BRANCH", help="push to this branch, made if it is not there (default: main)")
    add("--create_pr", action="store_true", help="open a pull request; needs no right to write there")
    add("--message", default=message, help="what the commit is called (default: %(default)s)")
    add("--token", help="access token, instead of that of `hf auth login` or HF_TOKEN")
    add("--timeout", type=float, default=60.0, metavar="SECONDS", help="how long to wait for an answer (default: 60)")


def main(argv: list[str] | None = None) -> int:
    """Push as the command line says; returns the exit code. Errors that a user can mend are one line."""
    try:
        args = make_parser().parse_args(argv)
        check_destination(args)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    from pianogen_hf.publishing.hub_errors import HubError
    from pianogen_hf.publishing.model_card import CardError
    from pianogen_hf.publishing.model_files import FolderError

    progress: list[str] = []
    try:
        _push(args, progress)
    except (CardError, FolderError, HubError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        state = progress[-1] if progress else "no file on the Hub has changed; the same command goes on from there"
        print(f"interrupted: {state}", file=sys.stderr)
        return 130
    return 0


def check_destination(args: argparse.Namespace) -> None:
    """Refuse what `add_destination_options` took and no push can mean.

    Raises:
        UsageError: with the option.
    """
    if not 0 < args.timeout <= 3600:
        raise UsageError("--timeout must be more than 0 and at most 3600 seconds")
    if args.create_pr and args.revision not in (None, "main"):
        raise UsageError("--create_pr asks for a change of main: leave out --revision")
    if not args.message.strip():
        raise UsageError("--message must say something")


def push_command(folder: str | Path, repo_id: str, *options: str) -> str:
    """The command that pushes a folder, for messages that tell how to repeat it."""
    return shlex.join(["pianogen", "push", "--model", str(folder), "--repo", repo_id, *options])


def _push(args: argparse.Namespace, progress: list[str]) -> None:
    from transformers.utils import logging

    from pianogen_hf.publishing.checking import check_pushed
    from pianogen_hf.publishing.hub import Destination
    from pianogen_hf.publishing.hub_errors import limit_waiting
    from pianogen_hf.publishing.model_files import select_files

    folder = Path(args.model)
    selection = select_files(folder, args.repo)
    for line in (*selection.notes, *warnings_of(folder)):
        print(f"note: {line}")
    if args.dry_run:
        print(listing(selection, args.repo))
        return
    limit_waiting(args.timeout)
    options = {"private": args.private, "revision": args.revision, "create_pr": args.create_pr, "token": args.token}
    destination = Destination(args.repo, **options)
    if destination.repo_id != args.repo:  # the namespace was left out
        selection = select_files(folder, destination.repo_id)
    pushed = destination.push(selection.uploads, args.message)
    print(pushed.summary, flush=True)
    progress.append("the model is pushed, but was not checked; the same command checks it")
    logging.disable_progress_bar()  # of loading weights: those of the upload have done their work
    print(check_pushed(folder, selection, pushed, args.token, args.trust_remote_code))


def warnings_of(folder: Path) -> list[str]:
    """What whoever publishes a model should know of it, as its card says it to everybody.

    Raises:
        CardError: if one of its files can't be read.
    """
    from pianogen_hf.publishing.card_facts import ModelFolder

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
