"""Leakage checks of tokenized data: chunks are decoded to notes again, so that a leak is found whatever names say."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from datasets.utils import tqdm  # silent where the bars of datasets are

from pianogen_hf.data.checks import Finding, pairs_across
from pianogen_hf.data.families import fingerprint
from pianogen_hf.data.pieces import stored_notes
from pianogen_hf.tokenizers.notes import Notes
from pianogen_hf.tokenizers.notes_encoder import NotesEncoder


def evaluation_faults(chunks: Dataset, pieces: Dataset, tokenizer: NotesEncoder, split_name: str) -> list[Finding]:
    """Whether the chunks of an evaluation split are its pieces, unaltered, with every token predicted exactly once.

    The pieces are encoded anew, so an augmented copy is found, a missing piece and a window that is scored twice.

    Args:
        chunks: of `chunks.CHUNK_FEATURES`, one split.
        pieces: the pieces of that split.
        tokenizer: the one that made the chunks.
        split_name: its name.
    """
    rows = _rows_by_name(chunks)
    findings = [
        Finding("evaluation", f"{len(rows[name])} chunks of what is no piece of this split", (name,), (split_name,))
        for name in sorted(rows.keys() - set(pieces["piece_id"]))
    ]
    for row in tqdm(range(len(pieces)), desc=f"Checking {split_name}", unit="piece"):
        piece = pieces[row]
        steps = tokenizer.piece_steps(stored_notes(piece["midi"]))
        fault = _coverage_fault(steps, [chunks[each] for each in rows.get(piece["piece_id"], [])], tokenizer.input_name)
        if fault:
            findings.append(Finding("evaluation", fault, (piece["piece_id"],), (split_name,)))
    return findings


def _coverage_fault(ids: np.ndarray, chunks: Sequence[Mapping[str, Any]], name: str) -> str:
    """What is wrong with the chunks of a piece whose tokens these are; empty if nothing is. `<bos>` is never predicted.

    Tokens or rows: `name` is the column that holds them.
    """
    times = np.zeros(len(ids), dtype=int)
    strange = 0
    for chunk in chunks:
        start, end = chunk["start"], chunk["start"] + len(chunk[name])
        if np.array_equal(ids[start:end], chunk[name]):
            times[start + chunk["first_label"] : end] += 1
        else:
            strange += 1
    never, often = int((times[1:] == 0).sum()), int((times[1:] > 1).sum())
    faults = {f"{strange} chunks are not what the piece holds there": strange,
              f"{never} of {len(ids) - 1} tokens are predicted nowhere": never,
              f"{often} are predicted more than once": often}  # fmt: skip
    return ", ".join(text for text, count in faults.items() if count)


def train_faults(chunks: Dataset, names: Iterable[str]) -> list[Finding]:
    """Train chunks of anything but train pieces, by name.

    Args:
        chunks: the train split.
        names: the `piece_id` of every train piece.
    """
    known = set(names)
    counts = Counter(piece for name in chunks["piece_id"] for piece in name.split("|"))
    return [
        Finding("train chunks", f"{count} chunks of what is no train piece", (name,), ("train",))
        for name, count in counts.items()
        if name not in known
    ]


def chunk_leaks(
    splits: Mapping[str, Dataset],
    tokenizer: NotesEncoder,
    others: Mapping[str, Sequence[tuple[str, np.ndarray]]] = {},
) -> list[Finding]:
    """Music that stands in several splits, found in the chunks themselves.

    Chunks that one name and their `start` put together are compared as the piece that they are part of; without these
    columns each row is compared for itself. One finding for any two names, with the greatest share.

    Args:
        splits: per split chunks with `input_ids` (or `input_values`), and `piece_id` and `start` where there are such.
        tokenizer: the one that made them.
        others: per split further pieces to compare with, each a name and its `families.fingerprint`.
    """
    rows = [
        (name, split_name, each)
        for split_name in splits
        for name, each in _pieces_of(splits[split_name], split_name, tokenizer)
    ]
    rows += [(name, split_name, each) for split_name in others for name, each in others[split_name]]
    rows = [row for row in rows if len(row[2]) > 1]  # a handful of notes, as at the end of a piece, proves nothing
    shares: dict[tuple[tuple[str, str], tuple[str, str]], float] = {}
    for a, b, share in pairs_across([row[2] for row in rows], [row[1] for row in rows]):
        first, second = sorted((rows[a][:2], rows[b][:2]), key=lambda row: (row[1] != "train", *row))
        if first[0] != second[0]:  # one name in two splits is for `checks.name_leaks` to say
            shares[first, second] = max(share, shares.get((first, second), 0.0))
    return [Finding("content", "", (a[0], b[0]), (a[1], b[1]), share) for (a, b), share in shares.items()]


def _rows_by_name(chunks: Dataset) -> dict[str, list[int]]:
    rows: dict[str, list[int]] = defaultdict(list)
    named = "piece_id" in chunks.column_names
    for row, name in enumerate(chunks["piece_id"] if named else map(str, range(len(chunks)))):
        rows[name if named else f"row {name}"].append(row)
    return rows


def _pieces_of(chunks: Dataset, split_name: str, tokenizer: NotesEncoder) -> Iterator[tuple[str, np.ndarray]]:
    """Name and fingerprint of every piece, or version of one, that the chunks of a split hold."""
    has_start = "start" in chunks.column_names
    for name, rows in tqdm(_rows_by_name(chunks).items(), desc=f"Decoding {split_name}", unit="piece"):
        found = chunks[rows]
        starts = found["start"] if has_start else range(len(rows))
        versions: dict[int, list[tuple[int, list[int]]]] = defaultdict(list)
        seen: Counter[int] = Counter()
        for start, ids in zip(starts, found[tokenizer.input_name], strict=True):
            versions[seen[start] if has_start else start].append((start, ids))
            seen[start] += 1
        for version in versions.values():
            yield name, fingerprint(_stitched(sorted(version), tokenizer))


def _stitched(chunks: list[tuple[int, list[int]]], tokenizer: NotesEncoder) -> Notes:
    """The notes of one piece's chunks, given as (start, tokens) in order; what lies between is left out."""
    runs: list[list[int]] = []
    end = -1
    for start, ids in chunks:
        if runs and start <= end:
            runs[-1] += ids[end - start :]
        else:
            runs.append(list(ids))
        end = max(end, start + len(ids))
    parts = [tokenizer.decode_notes(run) for run in runs]
    begins = np.cumsum([0, *(part.end_tick for part in parts)])
    onset = [part["onset_tick"] + begin for part, begin in zip(parts, begins, strict=False)]
    columns = {name: np.concatenate([part[name] for part in parts]) for name in ("duration_tick", "pitch", "velocity")}
    return Notes.from_columns(parts[0].ticks_per_quarter, onset_tick=np.concatenate(onset), **columns)
