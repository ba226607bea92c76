"""A folder that runs as a Space on the Hub: a page of Gradio, what it needs, and a card."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, SpaceCard, SpaceCardData
from jinja2 import Template

from pianogen_hf.errors import PianogenError
from pianogen_hf.hub.destination import Destination, Upload

_PACKAGE = Path(__file__).parents[2]
GRADIO_VERSION = "6.31.0"  # the one that app.py is tested with
# What generating needs of the package's dependencies, and sound; not what training does.
_NEEDED = (
    "huggingface_hub>=2.4",
    "jinja2>=3.1",
    "lazy_loader>=0.5",
    "matplotlib>=3.10",
    "midirenderer>=0.1.3",
    "miditok>=3.1",
    "numpy>=2.0",
    "pretty_midi>=0.2.11",
    "pyyaml>=6.0",
    "safetensors>=0.8",
    "symusic>=0.6",
    "tokenizers>=0.23",
    "torch>=2.13",
    "transformers>=5.23",
)
# What generating needs of a model folder. Not in it: states of training, and lists of what a model was trained on.
_MODEL_FILES = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "miditok.json",
    "actions.json",
    "model.safetensors",
    "model-*.safetensors",
    "model.safetensors.index.json",
    "README.md",
    "LICENSE*",
)
# What a Space is made of, with a server and without one.
_FILES = ("app.py", "requirements.txt", "README.md", "index.html", "sounds.json", "sounds.wav")
_FOLDERS = ("model", "pianogen_hf", "static")
_SHORT_DESCRIPTION_LENGTH = 60  # what the Hub takes


class SpaceError(PianogenError):
    """A Space that can't be written; the message is one line that says what to do."""


def write_space(
    folder: str | os.PathLike,
    model: str | os.PathLike,
    *,
    version: str,
    title: str | None = None,
    short_description: str = "Go on with a piece of piano music",
    vendored: bool = True,
    overwrite: bool = False,
) -> Path:
    """Write a Space for a model; nothing is in its place before all of it is written.

    Args:
        folder: where to. With `overwrite` it may hold files: those of the same names are replaced, others stay.
        model: a folder, of which the Space gets a copy (without states of training), or a Hub id, which it downloads.
        version: of this package.
        title: of the page; by default the model's name.
        short_description: below the title, and on the Hub's card of the Space; up to 60 characters.
        vendored: whether to put a copy of this package into the Space, rather than have it installed from an index.
        overwrite: whether the folder may hold files.

    Returns:
        The folder.

    Raises:
        SpaceError: if the folder is taken or can't be written to, or the description is too long.
    """
    folder = Path(folder)
    with whole_folder(folder, overwrite, short_description) as written:
        _write(written, model, version, vendored, title=title, short_description=short_description)
    return folder


@contextmanager
def whole_folder(folder: Path, overwrite: bool, short_description: str) -> Iterator[Path]:
    """A folder to write a Space into, whose files are moved to their place when all are written.

    Args:
        folder: their place.
        overwrite: whether it may hold files: those of the same names are replaced, others stay.
        short_description: what the Space's card is to say.

    Raises:
        SpaceError: if the folder is taken or can't be written to, or the description is too long.
    """
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not overwrite)):
        raise SpaceError(f"{folder} is there already: give another folder, or --overwrite to replace its files")
    if len(short_description) > _SHORT_DESCRIPTION_LENGTH:
        raise SpaceError(f"the short description may have {_SHORT_DESCRIPTION_LENGTH} characters at most")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as written:
            yield Path(written)
            for each in sorted(Path(written).iterdir()):
                _replace(each, folder / each.name)
    except OSError as error:
        raise SpaceError(f"{folder} can't be written: {error.strerror or error}") from error


def push_space(folder: str | os.PathLike, repo_id: str) -> str:
    """Create the Space on the Hub if it is not there, and put what `write_space` wrote there in one commit.

    Returns:
        What happened, in one line with its address.

    Raises:
        HubError: if the Hub refuses or can't be reached; nothing has changed there then.
    """
    folder = Path(folder)
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and "__pycache__" not in path.parts]
    named = ((path.relative_to(folder).as_posix(), path) for path in files)
    uploads = [Upload(name, path, path.stat().st_size) for name, path in named if _is_own(name)]
    return Destination(repo_id, repo_type="space").push(uploads, "A page to try the model", _is_own).summary


def _is_own(name: str) -> bool:
    """Whether a file of a Space is one that `write_space` writes."""
    return name in _FILES or name.partition("/")[0] in _FOLDERS


def _write(folder: Path, model: str | os.PathLike, version: str, vendored: bool, **words: Any) -> None:
    is_local = Path(model).is_dir()
    if is_local:
        _copy_model(Path(model), folder / "model")
    if vendored:
        unneeded = shutil.ignore_patterns("__pycache__", "checkpoints")
        shutil.copytree(_PACKAGE, folder / "pianogen_hf", ignore=unneeded)
    templates = resources.files(__package__)
    (folder / "app.py").write_bytes(templates.joinpath("app.py").read_bytes())
    facts: dict[str, Any] = {
        "gradio_version": GRADIO_VERSION,
        "version": version,
        "vendored": vendored,
        "requirements": _NEEDED,
        "model_id": None if is_local else str(model),
    }
    requirements = Template(templates.joinpath("requirements.txt").read_text(encoding="utf-8"), trim_blocks=True)
    (folder / "requirements.txt").write_text(requirements.render(**facts), encoding="utf-8")
    data = _front_matter(model, is_local, **words)
    card = SpaceCard.from_template(
        data, template_str=templates.joinpath("card_template.md").read_text(encoding="utf-8"), **facts, title=data.title
    )
    (folder / "README.md").write_text(str(card).rstrip() + "\n", encoding="utf-8")


def _copy_model(source: Path, target: Path) -> None:
    target.mkdir()
    for pattern in _MODEL_FILES:
        for path in source.glob(pattern):
            shutil.copyfile(path, target / path.name)


def _front_matter(model: str | os.PathLike, is_local: bool, title: str | None, short_description: str) -> SpaceCardData:
    """What the Hub reads. A copied model gives the Space its licence; else the page's own holds."""
    name = Path(model).resolve().name if is_local else str(model).rpartition("/")[2]
    return SpaceCardData(
        title=title or f"Piano music by {name}",
        emoji="🎹",
        colorFrom="indigo",
        colorTo="yellow",
        sdk="gradio",
        sdk_version=GRADIO_VERSION,
        python_version="3.11",
        app_file="app.py",
        short_description=short_description,
        license=license_of(Path(model, "README.md")) if is_local else "apache-2.0",
        models=None if is_local else [str(model)],
        tags=["music", "midi", "piano", "pianogen_hf"],
    )


def license_of(card: Path) -> str | None:
    """The licence that a model card names; None if there is none."""
    try:
        return ModelCard.load(card).data.license
    except (OSError, ValueError, AttributeError):  # no card, or none that can be read: nothing is claimed
        return None


def _replace(source: Path, target: Path) -> None:
    if target.is_dir() and not target.is_symlink():
        shutil.rmtree(target)
    os.replace(source, target)
