"""Batches for training with a memory: each row goes on where it left off in the batch before.

`batching` says how. "contiguous": a row walks through a piece from its beginning to its end and then through another,
and forgets the one with its end; "sequence": all pieces are one long sequence, of which each row walks through a part,
and nothing is forgotten. ("piece", where each chunk stands alone, is what `PianoTrainer` does.)
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import Sampler

from pianogen_hf.training.arguments import CONTIGUOUS
from pianogen_hf.training.collator import ChunkCollator

# Index of a chunk (None: nothing, where a row has no piece left), and whether a piece begins with it.
Segment = tuple[int | None, bool]


class WalkSampler(Sampler[Segment]):
    """Segments in the order in which rows of batches walk through them: first one of each row, then the next of each.

    Every epoch goes through all chunks once. Rows that have come to their end before the others get nothing. A new
    epoch draws which pieces a row gets and their order, and has as many steps as every other. What an epoch holds is a
    function of the seed and its number alone, so that a resumed run, and each of several processes, walks as an
    unbroken one does.

    Args:
        walks: first chunk and number of chunks of each stretch that is to be walked through in one go.
        num_rows: of all processes together.
        seed: of all orders, at least 0; None for one order that is always the same, the longest first.
    """

    def __init__(self, walks: list[tuple[int, int]], num_rows: int, seed: int | None) -> None:
        self.walks, self.num_rows, self.seed, self.epoch = walks, num_rows, seed, 0
        self._num_steps = max(sum(self.walks[each][1] for each in row) for row in self._rows())

    def set_epoch(self, epoch: int) -> None:
        """Turn to the order of another epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self._num_steps * self.num_rows

    def __iter__(self) -> Iterator[Segment]:
        rows = [list(self._segments(row)) for row in self._rows()]
        for step in range(self._num_steps):
            for row in rows:
                yield row[step] if step < len(row) else (None, True)

    def _rows(self) -> list[list[int]]:
        """The walks of each row: the longest first to the row that has least, which leaves rows about equally long.

        Walks of one length change places from epoch to epoch, so that the length of the longest row does not change.
        """
        lengths = np.array([length for _, length in self.walks])
        if self.seed is None:
            order = np.argsort(-lengths, kind="stable")
        else:
            generator = np.random.default_rng([self.seed, self.epoch])
            order = np.lexsort((generator.random(len(lengths)), -lengths))
        rows: list[list[int]] = [[] for _ in range(self.num_rows)]
        queue = [(0, row) for row in range(self.num_rows)]
        for walk in order.tolist():
            length, row = heapq.heappop(queue)
            rows[row].append(walk)
            heapq.heappush(queue, (length + int(lengths[walk]), row))
        return rows if self.seed is None else [generator.permutation(row).astype(int).tolist() for row in rows]

    def _segments(self, row: list[int]) -> Iterator[Segment]:
        for walk in row:
            first, length = self.walks[walk]
            yield from ((first + step, step == 0) for step in range(length))


class Segments(torch.utils.data.Dataset):
    """Chunks as rows of batches walk through them, with the sampler that tells the way.

    Args:
        chunks: what `build_chunks` made of one side, without overlaps; of "sequence", with packing.
        batching: "contiguous" or "sequence".
        num_rows: rows of all processes together.
        seed: see `WalkSampler`.

    Attributes:
        sampler: draws what `__getitem__` takes.
    """

    def __init__(self, chunks: Dataset, batching: str, num_rows: int, seed: int | None) -> None:
        self.chunks = chunks
        walks = _pieces(chunks) if batching == CONTIGUOUS else _parts(len(chunks), num_rows)
        self.sampler = WalkSampler(walks, num_rows, seed)
        self._nothing: dict[str, Any] = {name: [] if name == "input_ids" else 0 for name in chunks.column_names}

    @property
    def total_dataset_length(self) -> int:
        """What accelerate divides by the size of a batch to see whether the last one is short: none is."""
        return len(self.sampler)

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, segment: Segment) -> dict[str, Any]:
        index, begins = segment
        return {**(self._nothing if index is None else self.chunks[index]), "begins": begins}


def _pieces(chunks: Dataset) -> list[tuple[int, int]]:
    """First chunk and number of chunks of each piece, or of each version of it where pieces are transposed."""
    firsts = np.flatnonzero(np.asarray(chunks["start"][:]) == 0)
    return list(zip(firsts.tolist(), np.diff([*firsts, len(chunks)]).tolist(), strict=True))


def _parts(num_chunks: int, num_rows: int) -> list[tuple[int, int]]:
    """First chunk and number of chunks of stretches about equally long, one per row."""
    cuts = np.linspace(0, num_chunks, min(num_rows, num_chunks) + 1).astype(int)
    return list(zip(cuts[:-1].tolist(), np.diff(cuts).tolist(), strict=True))


class SegmentCollator(ChunkCollator):
    """As its parent, for rows that are segments: also tells which of them begin a piece."""

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Make one batch.

        Args:
            rows: as for the parent, each with `begins`; one without any ids becomes padding.

        Returns:
            What the parent does, and `begins`, bool, shape (batch,).
        """
        return {**super().__call__(rows), "begins": torch.tensor([row["begins"] for row in rows])}
