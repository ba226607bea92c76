"""Provenance: all that a model, and the models it was started from, were ever trained on. It lies in every checkpoint.

It names the pieces with family and content and keeps their fingerprints, so that any music can be compared with them
where the training data are not at hand. `provenance_files.py` knows where it is kept.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
from datasets import Dataset

from pianogen_hf.data.families import related_pairs, stored_fingerprints
from pianogen_hf.data.provenance_files import find_files, read_files, write_files
from pianogen_hf.errors import DataError

_BLOCK = 1000  # trained pieces compared in one go, or as many as are evaluated: the time grows with their number only
_MAX_NAMED = 20  # pieces that a refusal names


@dataclass(frozen=True)
class TrainedPiece:
    """One piece that a model was trained on.

    Attributes:
        family: its `family_id` in the run that trained on it.
        content: hash of its exact content, 16 hex digits.
        fingerprint: what `families.fingerprint` gives, uint64, shape (1 + num_grams,).
    """

    family: str
    content: str
    fingerprint: np.ndarray


@dataclass(frozen=True)
class Overlap:
    """One piece to be evaluated that shares music with a piece that was trained on.

    Attributes:
        piece: `piece_id` of the piece to be evaluated.
        side: its split, "validation" or "test".
        content: its content hash.
        trained_piece: name in `Provenance.trained_on` of the piece it shares most with.
        share: how much of the smaller of the two is in the other, 0 to 1; 0 where only their family tells.
    """

    piece: str
    side: str
    content: str
    trained_piece: str
    share: float


@dataclass(frozen=True)
class Provenance:
    """What a model was trained on, from its first run to its last.

    Attributes:
        trained_on: by `piece_id`. Where one name stood for different music, or for another family, the later ones have
            a number behind it.
        runs: in order, each with `split` (hash of its manifest), `sources`, `pieces` (how many it trained on),
            `command` and `started_from` (None for new weights).
        unknown: the checkpoints without provenance that the model goes back to. What it learned before them will never
            be known; what it was trained on since is, and is compared.
        contaminated: pieces that a run evaluated although an earlier one had trained on their music, each with `run`
            (counted from 1), `piece`, `side`, `trained_piece` and `share`. Nothing ever takes them out.
    """

    trained_on: Mapping[str, TrainedPiece] = field(default_factory=dict)
    runs: tuple[dict[str, Any], ...] = ()
    unknown: tuple[str, ...] = ()
    contaminated: tuple[dict[str, Any], ...] = ()

    @classmethod
    def new(cls) -> Provenance:
        """That of new weights: known, and trained on nothing."""
        return cls()

    @classmethod
    def load(
        cls,
        name_or_path: str | os.PathLike,
        revision: str | None = None,
        *,
        cache_dir: str | os.PathLike | None = None,
        token: str | bool | None = None,
    ) -> Provenance:
        """That of a checkpoint; of status "unknown" if the checkpoint has none.

        Args:
            name_or_path: a folder, or a model on the Hub; offline, its cache serves.
            revision: branch, tag or commit of the model on the Hub.
            cache_dir: the Hub's cache, where it is not the usual one.
            token: for a private model on the Hub.

        Raises:
            DataError: if there is no such model; if its provenance is broken, edited or from a later version; or if
                the Hub can't be reached and the cache does not tell whether there is any. That must not pass for
                unknown: it would hide what the model was trained on.
        """
        name = os.fspath(name_or_path)
        paths = find_files(name, revision, cache_dir, token)
        if paths is None:
            return cls(unknown=(name,))
        content, fingerprints = read_files(name, paths)
        try:
            rows = zip(sorted(content["trained_on"].items()), fingerprints, strict=True)
            pieces = {key: TrainedPiece(family, told, each) for (key, (family, told)), each in rows}
            return cls(pieces, *(tuple(content[key]) for key in ("runs", "unknown", "contaminated")))
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{name} has provenance of a form that is none: fetch the checkpoint anew") from error

    @property
    def status(self) -> str:
        """Either known, or unknown: for ever, after a checkpoint without provenance."""
        return "unknown" if self.unknown else "known"

    def save(self, folder: str | os.PathLike) -> None:
        """Write it into a folder, which is made if need be.

        Raises:
            FileError: if the folder can't be written to.
        """
        rows = sorted(self.trained_on.items())
        content = {
            "status": self.status,
            "unknown": list(self.unknown),
            "runs": list(self.runs),
            "contaminated": list(self.contaminated),
            "trained_on": {name: [each.family, each.content] for name, each in rows},
        }
        write_files(folder, content, [each.fingerprint for _, each in rows])

    def overlap(self, pieces: Dataset, split_names: Sequence[str]) -> list[Overlap]:
        """The pieces to be evaluated whose music the model was trained on before.

        Related are pieces of equal content, pieces that `families.related_pairs` names, and pieces of one family,
        those included whose family has a piece that was found. What the run trains on itself is not compared again:
        where its split parts relatives, as official splits do, that split leaks with or without this model, and
        `pianogen data check` says so.

        Args:
            pieces: with `piece_id`, `family_id`, `content` and `fingerprint`.
            split_names: the split of each; validation and test pieces are compared.

        Returns:
            At most one for each such piece, those that share most first.
        """
        rows = [row for row, split_name in enumerate(split_names) if split_name in ("validation", "test")]
        if not rows or not self.trained_on:
            return []
        evaluated = pieces.select(rows)
        train = pieces.select([row for row, split_name in enumerate(split_names) if split_name == "train"])
        found = self._related(evaluated, set(train["content"]))
        found |= self._of_families(list(evaluated["family_id"]), found, set(train["family_id"]))
        names = zip(rows, evaluated["piece_id"], evaluated["content"], strict=True)
        overlaps = [
            Overlap(name, split_names[row], content, found[index][0], round(found[index][1], 4))
            for index, (row, name, content) in enumerate(names)
            if index in found
        ]
        return sorted(overlaps, key=lambda each: (-each.share, each.piece))

    def _related(self, evaluated: Dataset, trained_now: set[str]) -> dict[int, tuple[str, float]]:
        """Per row that shares music with trained pieces: the one it shares most with, and how much."""
        trained = {name: each for name, each in sorted(self.trained_on.items()) if each.content not in trained_now}
        by_content = {each.content: name for name, each in trained.items()}
        found = {row: (by_content[each], 1.0) for row, each in enumerate(evaluated["content"]) if each in by_content}
        # `related_pairs` names each piece whose notes are all the same with one other: here one stands for them all.
        alike: dict[int, list[int]] = {}
        fingerprints = stored_fingerprints(evaluated)
        for row, each in enumerate(fingerprints):
            alike.setdefault(int(each[0]), []).append(row)
        distinct = {int(each.fingerprint[0]): (name, each.fingerprint) for name, each in trained.items()}
        groups = list(alike.values())
        for name, group, share in _pairs(list(distinct.values()), [fingerprints[rows[0]] for rows in groups]):
            for row in groups[group]:
                if share > found.get(row, ("", 0.0))[1]:
                    found[row] = name, share
        return found

    def _of_families(
        self, families: Sequence[str], found: Mapping[int, tuple[str, float]], trained_now: set[str]
    ) -> dict[int, tuple[str, float]]:
        """Per further row whose family was trained on, or found: one trained piece behind that."""
        known = {each.family: name for name, each in sorted(self.trained_on.items())}
        known |= {families[row]: name for row, (name, _) in found.items()}
        return {
            row: (known[family], 0.0)
            for row, family in enumerate(families)
            if row not in found and family in known and family not in trained_now
        }

    def extended(
        self,
        manifest: Mapping[str, Any],
        pieces: Dataset,
        split_names: Sequence[str],
        overlaps: Iterable[Overlap],
        command: str,
        started_from: str | None,
    ) -> Provenance:
        """That of a model which starts from this one and trains on the train split.

        Args:
            manifest: of the split, with its `hash`.
            pieces: with `piece_id`, `source`, `family_id`, `content` and `fingerprint`.
            split_names: the split of each.
            overlaps: what `overlap` found, if training continues all the same: recorded for ever.
            command: what was called.
            started_from: the checkpoint, or None for new weights.
        """
        train = pieces.select([row for row, split_name in enumerate(split_names) if split_name == "train"])
        trained_on = dict(self.trained_on)
        rows = zip(
            *(train[name] for name in ("piece_id", "family_id", "content")), stored_fingerprints(train), strict=True
        )
        for name, family, content, fingerprint in rows:
            trained_on.setdefault(_key(name, family, content, trained_on), TrainedPiece(family, content, fingerprint))
        run = {
            "split": manifest["hash"],
            "sources": sorted(set(train["source"])),
            "pieces": len(train),
            "command": command,
            "started_from": started_from,
        }
        marks = [{"run": len(self.runs) + 1, **asdict(each)} for each in overlaps]
        return replace(self, trained_on=trained_on, runs=(*self.runs, run), contaminated=(*self.contaminated, *marks))


def refusal(overlaps: Sequence[Overlap], name: str) -> str:
    """Why training is refused: one line that says what to do, then the pieces.

    Args:
        overlaps: what `Provenance.overlap` found; at least one.
        name: the checkpoint that training would start from.
    """
    lines = [
        f"{name} was trained on music that would now be evaluated ({len(overlaps)} piece(s)): --split_from {name} "
        "keeps every piece in the split it had; --allow_contamination continues and marks the model for ever"
    ]
    for each in overlaps[:_MAX_NAMED]:
        how = f"shares {each.share:.0%} with" if each.share else "is of one family with"
        lines.append(f"  {each.side} {each.piece} {how} {each.trained_piece}")
    if len(overlaps) > _MAX_NAMED:
        lines.append(f"  and {len(overlaps) - _MAX_NAMED} more")
    return "\n".join(lines)


def _pairs(
    trained: Sequence[tuple[str, np.ndarray]], evaluated: Sequence[np.ndarray]
) -> Iterator[tuple[str, int, float]]:
    """Every trained piece and evaluated piece that are related, as (name, index, share)."""
    block = max(_BLOCK, len(evaluated))
    for start in range(0, len(trained), block):
        some = trained[start : start + block]
        for a, b, share in related_pairs([*(each for _, each in some), *evaluated]):
            if a < len(some) <= b:
                yield some[a][0], b - len(some), share


def _key(name: str, family: str, content: str, taken: Mapping[str, TrainedPiece]) -> str:
    """The name, numbered where it stands for another piece; that of the piece itself if it is there already."""
    number, key = 1, name
    while key in taken and (taken[key].family, taken[key].content) != (family, content):
        number += 1
        key = f"{name} ({number})"
    return key
