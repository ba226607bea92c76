"""Chunks that are augmented, tokenized and cut when training asks for them: other ones in every epoch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, Value

from pianogen_hf.data.augment import Augmentation
from pianogen_hf.data.caching import cached_map, fingerprint_of
from pianogen_hf.data.chunks import chunk_size, encode, tokenizer_key
from pianogen_hf.data.pieces import stored_notes
from pianogen_hf.tokenizers.notes import Notes
from pianogen_hf.tokenizers.notes_encoder import NotesEncoder

_CACHE_VERSION = 1  # raised when what counts as a token changes


class LazyChunks(torch.utils.data.Dataset):
    """A map-style dataset of one random version of a random stretch of a piece per example. For the train split only.

    An epoch has as many examples as the pieces, unaltered, have chunks. Example i of epoch e is a function of the seed,
    e and i alone, whatever was drawn before it and in whichever process: a resumed run sees what an uninterrupted one
    would have seen. Each example belongs to a fixed piece and, roughly, a fixed part of it, so that every epoch goes
    through all pieces from `<bos>` to `<eos>`. Chunks begin anywhere (with a grid tokenizer: at any bar), are full
    wherever the piece is long enough, and never cross a piece.

    The epoch lies in memory shared with the workers of a data loader, which may live for many epochs.

    Args:
        pieces: usable pieces (see `pieces.py`).
        rows: indices of the train pieces.
        tokenizer: a fitted tokenizer, or a feature extractor.
        chunk_length: tokens per chunk, at least 2; rounded so that chunks of a grid tokenizer begin with a whole row.
        augmentation: what is drawn from.
        seed: at least 0.
        cache_dir: where the number of tokens of each piece is kept for the next run.
        num_proc: processes to count them with.

    Raises:
        DataError: if a piece is beyond what the tokenizer can write.
    """

    def __init__(
        self,
        pieces: Dataset,
        rows: Sequence[int],
        tokenizer: NotesEncoder,
        chunk_length: int,
        augmentation: Augmentation,
        seed: int = 0,
        *,
        cache_dir: str | os.PathLike,
        num_proc: int | None = None,
    ) -> None:
        self.tokenizer, self.augmentation, self.seed = tokenizer, augmentation, seed
        self.size = chunk_size(tokenizer, chunk_length)
        self.pieces = pieces.select(rows).select_columns(["piece_id", "midi"])
        key = [_CACHE_VERSION, pieces._fingerprint, list(rows), tokenizer_key(tokenizer)]
        counted = cached_map(
            self.pieces,
            _NumIds(tokenizer),
            Path(cache_dir) / f"num_ids-{fingerprint_of(key)}",
            features=Features({"num_ids": Value("int64")}),
            remove_columns=["piece_id", "midi"],
            num_proc=num_proc,
            desc="Counting train chunks",
        )
        self._num_chunks = -(-(np.asarray(counted["num_ids"][:]) - 1) // self.size)
        self._ends = np.cumsum(self._num_chunks)
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()

    def set_epoch(self, epoch: int) -> None:
        """Turn to the examples of another epoch, in this process and in workers; between batches, not within one."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return int(self._ends[-1])

    def piece_ids(self) -> np.ndarray:
        """The piece of each example, str, shape (num_examples,)."""
        return np.repeat(np.asarray(self.pieces["piece_id"][:], dtype=object), self._num_chunks)

    def __getitem__(self, index: int) -> dict[str, Any]:
        """One example: tokens (int32 array) or rows, `piece_id`, `first_label`, and `start` in the version drawn.

        Of rows also `seconds_left`: from the last onset of the example until the piece has died away.
        """
        index = range(len(self))[index]
        row = int(np.searchsorted(self._ends, index, side="right"))
        part = index - int(self._ends[row] - self._num_chunks[row])
        generator = np.random.default_rng([self.seed, int(self._epoch), index])
        piece = self.pieces[row]
        version = self.augmentation.draw(_notes(piece), self.tokenizer.pitch_range, generator)
        ids = encode(self.tokenizer, piece["piece_id"], version)
        start = self._start(len(ids), (part + generator.random()) / self._num_chunks[row])
        stop = start + self.size + 1
        left = self.tokenizer.seconds_left(ids, stop)
        return {
            self.tokenizer.input_name: ids[start:stop],
            "piece_id": piece["piece_id"],
            "start": start,
            "first_label": 1,  # the first id has nothing before it, so it is context, as in chunks on disk
            **({} if left is None else {"seconds_left": left}),
        }

    def _start(self, num_ids: int, place: float) -> int:
        """Where a chunk begins that lies at `place` (0..1) of the way through a piece.

        A window slides from one chunk's length before the piece to its end, so that the first id and the last are met
        as often as those in the middle; where it would hang over an end, it is pushed inside.
        """
        step = self.tokenizer.cut_unit(self.size)
        latest = max(0, -(-(num_ids - 1 - self.size) // step) * step)
        window = int(place * (num_ids - 1 + self.size)) - self.size
        return min(max(window // step * step, 0), latest)


class _NumIds:
    """Counts the tokens of a piece. A class, so that it can be sent to other processes."""

    def __init__(self, tokenizer: NotesEncoder) -> None:
        self.tokenizer = tokenizer

    def __call__(self, row: dict[str, Any]) -> dict[str, int]:
        return {"num_ids": len(encode(self.tokenizer, row["piece_id"], _notes(row)))}


def _notes(row: dict[str, Any]) -> Notes:
    return stored_notes(row["midi"])
