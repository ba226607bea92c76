"""From pieces to training examples: split, augment (train only), tokenize, cut into chunks, all on disk."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict, Features, List, Value

from pianogen_hf.data.augment import Augmentation
from pianogen_hf.data.caching import cached_map, fingerprint_of
from pianogen_hf.data.pieces import stored_notes
from pianogen_hf.data.split_names import SPLITS
from pianogen_hf.errors import DataError
from pianogen_hf.tokenizers.notes import Notes
from pianogen_hf.tokenizers.notes_encoder import NotesEncoder

CHUNK_FEATURES = Features(  # of a tokenizer; see `chunk_features` for others
    {
        "input_ids": List(Value("int32")),
        "piece_id": Value("string"),  # with packing: the pieces it holds, joined by "|"
        "start": Value("int32"),  # index of the chunk's first id in its piece (with packing: in the first of them)
        "first_label": Value("int32"),  # index in the chunk of the first id that is to be predicted
    }
)
_CACHE_VERSION = 2  # raised when what a cached chunk holds changes
_Row = tuple[np.ndarray, str, int, int]  # the columns of CHUNK_FEATURES


def chunk_features(encoder: NotesEncoder) -> Features:
    """Columns of an encoder's chunks, its steps first: int32 tokens or rows of them, or float32 rows of 4 fields."""
    others = {name: each for name, each in CHUNK_FEATURES.items() if name != "input_ids"}
    steps = CHUNK_FEATURES["input_ids"]
    if encoder.input_name == "input_values":
        steps = List(List(Value("float32"), length=4))
    elif encoder.ids_per_row > 1:
        steps = List(List(Value("int32"), length=encoder.ids_per_row))
    return Features({encoder.input_name: steps, **others})


def build_chunks(
    pieces: Dataset,
    split_names: list[str],
    tokenizer: NotesEncoder,
    chunk_length: int,
    cache_dir: str | os.PathLike,
    *,
    augmentation: Augmentation | None = None,
    seed: int = 0,
    packing: bool = False,
    overlapping: bool = True,
    num_proc: int | None = None,
) -> DatasetDict:
    """Chunks of every split, with the columns of `chunk_features`, cached on disk.

    Every token after `<bos>` is predicted exactly once. (What is said of tokens holds for a feature extractor's rows,
    too.) On the train split consecutive chunks of a piece share one token, the last of one and the first of the next.
    On the other splits windows slide by half a chunk, and the half that was predicted before is context only: scored
    tokens have at least half a chunk before them, or all of their piece.
    No chunk crosses a piece unless `packing` says so.

    Args:
        pieces: usable pieces (see `pieces.py`).
        split_names: one of `SPLITS` per piece; pieces with any other are left out.
        tokenizer: a fitted tokenizer, or a feature extractor; its class and settings are part of the cache's name.
        chunk_length: tokens per chunk, at least 2; rounded so that chunks of a grid tokenizer begin with a whole row,
            or a whole bar if they are two bars long.
        cache_dir: where the chunks lie afterwards.
        augmentation: every transposition becomes a copy, with a loudness and a tempo of its own (see `augment.py`);
            train only.
        seed: of the loudness and the tempo of these copies.
        packing: join the pieces of a split end to end and cut them into chunks of equal length; train only, because
            evaluation is per piece.
        overlapping: whether chunks that are evaluated bring context; not where a memory does.
        num_proc: processes to tokenize with.

    Raises:
        DataError: if a piece is beyond what the tokenizer can write.
    """
    size = chunk_size(tokenizer, chunk_length)
    chunks = DatasetDict()
    for split_name in SPLITS:
        rows = [index for index, each in enumerate(split_names) if each == split_name]
        if not rows:
            continue
        is_train = split_name == "train"
        overlap = 0 if is_train or not overlapping else chunk_overlap(tokenizer, chunk_length)
        function = _TokenizeBatch(
            tokenizer, size, overlap, augmentation if is_train else None, seed, packing and is_train
        )
        chosen = pieces.select(rows)
        key = {"version": _CACHE_VERSION, "pieces": pieces._fingerprint, "rows": rows, **function.key()}
        chunks[split_name] = cached_map(
            chosen.select_columns(["piece_id", "midi"]),
            function,
            Path(cache_dir) / f"chunks-{split_name}-{fingerprint_of(key)}",
            batched=True,
            # Packing joins what comes in one batch; a large batch wastes little at its end.
            batch_size=256 if packing else 16,
            features=chunk_features(tokenizer),
            remove_columns=["midi"],
            num_proc=num_proc,
            desc=f"Tokenizing {split_name}",
        )
    return chunks


def chunk_size(tokenizer: NotesEncoder, chunk_length: int) -> int:
    """Ids that a chunk predicts: one less than it holds, rounded to whole bars, or rows, of a grid tokenizer."""
    unit = tokenizer.cut_unit(chunk_length - 1)
    return max(1, (chunk_length - 1) // unit) * unit


def chunk_overlap(tokenizer: NotesEncoder, chunk_length: int) -> int:
    """Ids that consecutive chunks share where they are evaluated: half of them, in whole bars, or rows, of a grid."""
    half = chunk_size(tokenizer, chunk_length) // 2
    unit = tokenizer.cut_unit(half)
    return half // unit * unit


def encode(tokenizer: NotesEncoder, piece_id: str, notes: Notes) -> np.ndarray:
    """Ids of a whole piece, int32 (num_ids,), or its rows, float32 (num_rows, 4).

    Raises:
        DataError: if the piece is beyond what the tokenizer can write.
    """
    try:
        return tokenizer.piece_steps(notes)
    except ValueError as error:  # a piece of days, say: left out it would be missed, so it must be taken out
        raise DataError(f"{piece_id} can't be tokenized ({error}): take it out of the folder") from error


def notes_of(pieces: Dataset, split_names: list[str], split_name: str) -> Iterator[Notes]:
    """The music of one split, piece by piece: what fitting a tokenizer or a baseline may see."""
    for index, each in enumerate(split_names):
        if each == split_name:
            yield stored_notes(pieces[index]["midi"])


def tokenizer_key(tokenizer: NotesEncoder) -> list[Any]:
    """What a tokenizer's output depends on: its class, its settings and its vocabulary, JSON-able."""
    name, settings, learnt = tokenizer.identity()
    return [name, json.loads(json.dumps(settings, default=str)), fingerprint_of(learnt)]


class _TokenizeBatch:
    """Turns a batch of pieces into a batch of chunks. A class, so that it can be sent to other processes."""

    def __init__(
        self,
        tokenizer: NotesEncoder,
        size: int,
        overlap: int,
        augmentation: Augmentation | None,
        seed: int,
        packing: bool,
    ) -> None:
        self.tokenizer, self.size, self.overlap, self.packing = tokenizer, size, overlap, packing
        self.augmentation = augmentation or Augmentation()
        self.seed = seed if self.augmentation.is_drawn else 0  # where nothing is drawn, any seed gives the same

    def key(self) -> dict[str, Any]:
        """All that the result depends on besides the pieces."""
        settings = {name: getattr(self, name) for name in ("size", "overlap", "seed", "packing")}
        return {**settings, "augmentation": asdict(self.augmentation), "tokenizer": tokenizer_key(self.tokenizer)}

    def __call__(self, batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        pieces = list(self._encoded(batch))
        rows = list(self._pack(pieces) if self.packing else self._cut(pieces))
        return {name: [row[column] for row in rows] for column, name in enumerate(chunk_features(self.tokenizer))}

    def _encoded(self, batch: dict[str, list[Any]]) -> Iterator[tuple[str, np.ndarray]]:
        for piece_id, midi in zip(batch["piece_id"], batch["midi"], strict=True):
            notes = stored_notes(midi)
            for version in self.augmentation.all(notes, self.tokenizer.pitch_range, self.seed):
                yield piece_id, encode(self.tokenizer, piece_id, version)

    def _cut(self, pieces: list[tuple[str, np.ndarray]]) -> Iterator[_Row]:
        for piece_id, ids in pieces:
            predicted = 0  # index in the piece of the last token that a chunk has predicted; <bos> needs no prediction
            while predicted < len(ids) - 1:
                start = max(predicted - self.overlap, 0)
                yield ids[start : start + self.size + 1], piece_id, start, predicted + 1 - start
                predicted = start + self.size

    def _pack(self, pieces: list[tuple[str, np.ndarray]]) -> Iterator[_Row]:
        starts = np.cumsum([0, *(len(ids) for _, ids in pieces)])
        stream = np.concatenate([ids for _, ids in pieces])
        for start in range(0, len(stream) - 1, self.size):
            ids = stream[start : start + self.size + 1]
            first = int(np.searchsorted(starts, start, side="right")) - 1
            last = int(np.searchsorted(starts, start + len(ids) - 1, side="right")) - 1
            names = dict.fromkeys(piece_id for piece_id, _ in pieces[first : last + 1])
            yield ids, "|".join(names), int(start - starts[first]), 1
