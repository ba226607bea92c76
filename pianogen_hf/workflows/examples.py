"""From pieces to examples: the tokenizer, and the chunks that it makes of each split."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

import pianogen_hf
from pianogen_hf.data.augment import Augmentation
from pianogen_hf.data.chunks import build_chunks
from pianogen_hf.data.lazy import LazyChunks
from pianogen_hf.data.sources.listing import list_each
from pianogen_hf.errors import ArgumentError, one_line
from pianogen_hf.models.note_controls import KINDS
from pianogen_hf.registration import exported
from pianogen_hf.tokenizers.notes_encoder import NotesEncoder
from pianogen_hf.training.arguments import PIECE, SEQUENCE, WITH_DRUMS, DataArguments, ModelArguments
from pianogen_hf.workflows.loading import load_encoder
from pianogen_hf.workflows.split import Split


def make_tokenizer(args: ModelArguments, split: Split) -> NotesEncoder:
    """The checkpoint's tokenizer or feature extractor when fine-tuning; otherwise a new one, fitted if it learns.

    It is fitted on train pieces alone.

    Raises:
        ArgumentError: if there is no such tokenizer, or its settings don't fit.
    """
    name = args.model_name_or_path
    tokenizer = load_encoder(name, args.model_revision, args.trust_remote_code) if name else new_tokenizer(args)
    if split.manifest["parameters"].get("programs") == WITH_DRUMS and not tokenizer.keeps_instruments:
        raise ArgumentError(f"{type(tokenizer).__name__} has no place for drums: say --programs all")
    if name is not None:
        return tokenizer
    learning = {
        "bpe_vocab_size": (pianogen_hf.RemiTokenizer, "train_bpe"),
        "action_vocab_size": (pianogen_hf.NoteDurationTokenizer, "train_actions"),
    }
    for option, (tokenizer_class, method) in learning.items():
        size = getattr(args, option)
        if size is None:
            continue
        if not isinstance(tokenizer, tokenizer_class):
            raise ArgumentError(f"{option} needs --tokenizer {tokenizer_class.__name__}")
        try:
            getattr(tokenizer, method)(split.notes("train"), size)
        except ValueError as error:
            raise ArgumentError(f"{option}: {one_line(error)}") from error
    return tokenizer


def new_tokenizer(args: ModelArguments) -> NotesEncoder:
    """The tokenizer, or feature extractor, that the arguments name, not fitted.

    Raises:
        ArgumentError: if there is no such class, or its settings don't fit.
    """
    tokenizer_class = getattr(pianogen_hf, args.tokenizer, None)
    if not (isinstance(tokenizer_class, type) and issubclass(tokenizer_class, NotesEncoder)):
        known = ", ".join(each.__name__ for each in exported(NotesEncoder) if each is not pianogen_hf.NoteTokenizer)
        raise ArgumentError(f"unknown tokenizer {args.tokenizer!r}: {known}")
    for name in args.tokenizer_config:  # tokenizers of transformers take any key and ignore the unknown ones
        if name not in inspect.signature(tokenizer_class).parameters:
            raise ArgumentError(f"unknown key {name!r} in tokenizer_config of {args.tokenizer}")
    try:
        return tokenizer_class(**args.tokenizer_config)
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"tokenizer_config: {one_line(error)}") from error


def make_chunks(args: DataArguments, split: Split, tokenizer: NotesEncoder) -> dict[str, Any]:
    """Examples of every split. Only the train split is augmented: on disk, or lazily, when an example is asked for.

    Raises:
        DataError: if a piece is beyond what the tokenizer can write.
    """
    cache_dir, is_lazy = Path(args.cache_dir).expanduser(), args.augmentation == "lazy"
    augmentation = Augmentation(*(tuple(getattr(args, name)) for name in ("transpose", "velocity", "stretch")))
    chunks: dict[str, Any] = build_chunks(
        split.pieces,
        ["" if is_lazy and split_name == "train" else split_name for split_name in split.split_names],
        tokenizer,
        args.chunk_length,
        cache_dir,
        augmentation=augmentation,
        seed=args.split_seed,
        packing=args.packing or args.batching == SEQUENCE,
        overlapping=args.batching == PIECE,
        num_proc=args.num_proc,
    )
    if is_lazy:
        chunks["train"] = LazyChunks(
            split.pieces,
            split.rows("train"),
            tokenizer,
            args.chunk_length,
            augmentation,
            args.split_seed,
            cache_dir=cache_dir,
            num_proc=args.num_proc,
        )
    return chunks


def owners_of(args: DataArguments, pieces: Dataset, chunks: Any) -> tuple[np.ndarray, list[str]]:
    """Which of the sources each train chunk comes from.

    Args:
        args: with the sources.
        pieces: what `load_split` gave for them.
        chunks: the train split of what `make_chunks` gave.

    Returns:
        A place in `args.source` for each chunk, int64 (num_chunks,); and what its pieces call each of these sources.
    """
    names = _source_names(args)
    owner = _places(names, pieces)
    owners = np.fromiter((owner[piece] for piece in _pieces_of(chunks)), dtype=np.int64, count=len(chunks))
    return owners, [" and ".join(each) for each in names]


def kinds_of(args: DataArguments, pieces: Dataset) -> dict[str, int]:
    """Class of the kind of music of each piece whose source has one, by `piece_id`."""
    if args.source_kinds is None:
        return {}
    classes = [0 if kind == "none" else 1 + KINDS.index(kind) for kind in args.source_kinds]
    places = _places(_source_names(args), pieces)
    return {piece: classes[place] for piece, place in places.items() if classes[place]}


def _source_names(args: DataArguments) -> list[list[str]]:
    """What the pieces of each source call it."""
    listed = list_each(args.source, args.data_path, args.cache_dir)
    return [sorted({file.source for file in files}) for files in listed]


def _places(names: list[list[str]], pieces: Dataset) -> dict[str, int]:
    """The place of each piece's source in `args.source`, by `piece_id`."""
    place = {name: number for number, each in enumerate(names) for name in each}
    return {piece: place[source] for piece, source in zip(pieces["piece_id"][:], pieces["source"][:], strict=True)}


def _pieces_of(chunks: Any) -> Iterator[str]:
    """The piece of each train chunk."""
    if isinstance(chunks, LazyChunks):
        yield from chunks.piece_ids()
        return
    for batch in chunks.select_columns("piece_id").iter(10_000):
        yield from batch["piece_id"]
