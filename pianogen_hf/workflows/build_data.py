"""Building a data set: pieces, their families and splits, and if wanted chunks, as a folder."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

from pianogen_hf.data.built import check_writable, is_built, write_built
from pianogen_hf.data.manifest import read_manifest, split_manifest
from pianogen_hf.errors import ArgumentError, DataError
from pianogen_hf.folders import FolderLock
from pianogen_hf.training.arguments import DataArguments, ModelArguments
from pianogen_hf.workflows.examples import make_chunks, make_tokenizer
from pianogen_hf.workflows.split import Split, load_split, split_parameters


def build_data(
    folder: Path, data_args: DataArguments, model_args: ModelArguments | None
) -> tuple[dict[str, Any], dict[str, Any], dict[str, int]]:
    """Write a data set into a folder, or let the one that is there grow.

    Args:
        folder: where to.
        data_args: the sources, and how they are split and cut.
        model_args: the tokenizer that makes chunks; None for pieces alone.

    Returns:
        The manifest, the report of what was read, and the number of chunks by split.

    Raises:
        ArgumentError, DataError: for what a user can mend. FileError: if another process builds it.
    """
    place = Path(os.path.abspath(folder))  # beside it, because a new data set takes the place of the folder
    with FolderLock(place.with_name(f".{place.name}.lock"), folder, "--output"):
        return _build(folder, data_args, model_args)


def _build(
    folder: Path, data_args: DataArguments, model_args: ModelArguments | None
) -> tuple[dict[str, Any], dict[str, Any], dict[str, int]]:
    check_writable(folder)
    extends = is_built(folder)
    if extends:
        if data_args.split_from:
            raise ArgumentError(f"{folder} has a split already, which stays: leave out --split_from")
        data_args.split_from = [str(folder)]
    split = load_split(data_args)
    if extends:
        _check_none_lost(folder, split)
    manifest, tokenizer, chunks = split.manifest, None, None
    if model_args is not None:
        tokenizer = make_tokenizer(model_args, split)
        data_args = _prebuilt(data_args)
        chunks = make_chunks(data_args, split, tokenizer)
        parameters = split_parameters(data_args) | _chunk_parameters(model_args, data_args)
        manifest = split_manifest(split.pieces, split.split_names, parameters)
    write_built(folder, split.pieces, split.split_names, manifest, split.report, chunks, tokenizer)
    return manifest, split.report, {split_name: len(rows) for split_name, rows in (chunks or {}).items()}


def _prebuilt(args: DataArguments) -> DataArguments:
    """What is drawn anew in every epoch of training can't lie on disk: chunks are then those of the music as it is."""
    if args.augmentation != "lazy":
        return args
    print("train chunks are those of the music as it is: augmentation lazy draws versions of it while training")
    return replace(args, augmentation="prebuilt", transpose=[0, 0], velocity=[0, 0], stretch=[1.0, 1.0])


def _chunk_parameters(model_args: ModelArguments, data_args: DataArguments) -> dict[str, Any]:
    names = ("chunk_length", "packing", "transpose", "velocity", "stretch")
    return {
        "tokenizer_from": model_args.model_name_or_path,
        **{name: getattr(data_args, name) for name in names},
    }


def _check_none_lost(folder: Path, split: Split) -> None:
    """A data set only grows: pieces that it has and the sources lack would be gone for good."""
    present = set(split.pieces["content"])
    before = read_manifest(folder / "split.json")["pieces"].items()
    lost = [name for name, (split_name, _, content) in before if split_name and content not in present]
    lost = sorted(set(lost) - set(split.report["between_sides"]))
    if lost:
        raise DataError(
            f"{folder} holds {len(lost)} piece(s) that these sources lack, such as {lost[0]}: name their source, too "
            f"(or --source dataset={folder}), or choose another --output with --split_from {folder}"
        )
