"""Sides of a split: train, validation, test. Decided per family, before anything else touches the music."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from datasets import Dataset

from pianogen_hf.data.split_names import SPLITS
from pianogen_hf.errors import DataError


def assign_splits(
    pieces: Dataset,
    validation_fraction: float = 0.1,
    test_fraction: float = 0.1,
    seed: int = 0,
    earlier: Mapping[str, str] | None = None,
) -> list[str]:
    """The split of each piece.

    1. A piece keeps its official split, and one without keeps that of the earlier manifest. Left out is what has an
       official split, where the earlier manifest has its music on another, or its family where that is not this
       source's own doing; or where another source's official split of its family is further from training.
    2. A newcomer without a split follows its family. Where that stands in several splits the newcomer is left out: it
       would leak from one to the other.
    3. Families of newcomers alone are dealt out, per source (that of the family's first piece by name), in an order
       that hashes of seed and family name give: to test, then validation, where that brings the number of pieces
       nearer to the fraction, else to train. All pieces count that have no official split.
    4. If train, or validation where it has a fraction, is empty then, it gets the smallest family that is to spare.

    So two pieces of one family stand in two splits only where one source's official split has them so, or where the
    earlier manifest had them before further pieces showed that they are one family.

    Where all families are dealt out, validation and test of each source miss their fractions by at most half its
    largest family and train by at most all of it: half a piece and one piece, if every family is one piece.

    With `earlier` no piece ever changes its split. Without it further files shift the cut, by few families, and those
    that merge families rename them. No rule without memory has both: a split that hangs on nothing but the family falls
    independently of the others, which makes the counts binomial instead of exact.

    Args:
        pieces: with `piece_id`, `source`, `family_id`, `official_split` ("" for none) and `content`; their order does
            not matter.
        validation_fraction: share of the pieces without official split that go to validation.
        test_fraction: share that goes to test.
        seed: names the split.
        earlier: split per content hash, what `splits_by_content` gives for the manifest of an earlier manifest; "" for
            content that official splits had on several.

    Returns:
        One of `SPLITS` per piece, in order, or "" for a piece that is left out.

    Raises:
        DataError: if a fraction is out of range, or there are too few families for a train split and, where
            validation_fraction is not 0, a validation split.
    """
    if not (0 <= validation_fraction < 1 and 0 <= test_fraction < 1 and validation_fraction + test_fraction < 1):
        raise DataError("validation_fraction and test_fraction must be at least 0 and sum to less than 1")
    fractions = {"test": test_fraction, "validation": validation_fraction}
    families, split_names = pieces["family_id"][:], _fixed_splits(pieces, earlier or {})
    sizes = Counter(family for family, split_name in zip(families, split_names, strict=True) if split_name is None)
    dealt: dict[str, str] = {}
    for free, counts in _strata(pieces, split_names):
        dealt |= _deal({family: sizes[family] for family in free}, counts, fractions, seed)
    kept = Counter(split_name for split_name in split_names if split_name)
    _fill_empty_splits(dealt, sizes, kept, ("validation", "train") if validation_fraction > 0 else ("train",))
    return [
        dealt[family] if split_name is None else split_name
        for family, split_name in zip(families, split_names, strict=True)
    ]


class _Piece(NamedTuple):
    source: str
    official: str  # its official split, "" for none
    before: str | None  # the split of its content in the earlier manifest: "" for several, None if it was not there


def _fixed_splits(pieces: Dataset, earlier: Mapping[str, str]) -> list[str | None]:
    """The splits of steps 1 and 2; None where all the family are newcomers without a split."""
    columns = (pieces[name][:] for name in ("source", "official_split", "content"))
    rows = [_Piece(source, official, earlier.get(content)) for source, official, content in zip(*columns, strict=True)]
    members: dict[str, list[int]] = defaultdict(list)
    for row, family in enumerate(pieces["family_id"][:]):
        members[family].append(row)
    split_names: list[str | None] = [None] * len(rows)
    for family_rows in members.values():
        for row, split_name in zip(family_rows, _family_splits([rows[row] for row in family_rows]), strict=True):
            split_names[row] = split_name
    return split_names


def _family_splits(family: Sequence[_Piece]) -> list[str | None]:
    """The splits of a family's pieces by steps 1 and 2; None for all if none of them brings one."""
    there = {_claim(piece) for piece in family if piece.before is not None} - {("", "")}
    newcomers = [piece for piece in family if piece.before is None and piece.official]
    came = {_claim(piece) for piece in newcomers if not _clashes(piece, there)}
    split_names = [_kept_split(piece, there, came) for piece in family]
    taken = {split_name for split_name in split_names if split_name} | {split_name for _, split_name in there}
    if not taken:
        return split_names
    common = taken.pop() if len(taken) == 1 else ""
    return [common if split_name is None else split_name for split_name in split_names]


def _claim(piece: _Piece) -> tuple[str, str]:
    """Who put it where: its source on its official split, or the earlier manifest, which is "", elsewhere."""
    if piece.official and piece.before in (None, "", piece.official):
        return piece.source, piece.official
    return "", piece.before or ""


def _clashes(piece: _Piece, there: set[tuple[str, str]]) -> bool:
    return any(owner != piece.source and split_name != piece.official for owner, split_name in there)


def _kept_split(piece: _Piece, there: set[tuple[str, str]], came: set[tuple[str, str]]) -> str | None:
    """The split that a piece comes with, None if it comes with none, "" if it would leak there.

    Args:
        piece: one of a family.
        there: the claims of those of the family that were in the earlier manifest.
        came: the claims of those that are new, have an official split, and don't clash with what was there.
    """
    if not piece.official:
        return piece.before or None
    if piece.before is not None:
        return piece.official if piece.before in ("", piece.official) else ""
    further = SPLITS[SPLITS.index(piece.official) + 1 :]
    outdone = any(owner != piece.source and split_name in further for owner, split_name in came)
    return "" if outdone or _clashes(piece, there) else piece.official


def _strata(pieces: Dataset, split_names: Sequence[str | None]) -> list[tuple[list[str], Counter[str]]]:
    """Per source: its families of newcomers alone, and how many pieces without an official split stand in each."""
    names, sources, families, official = (
        pieces[column][:] for column in ("piece_id", "source", "family_id", "official_split")
    )
    rows = sorted((row for row, own in enumerate(official) if not own), key=lambda row: names[row])
    home: dict[str, str] = {}
    counts: dict[str, Counter[str]] = defaultdict(Counter)
    free: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        family, split_name = families[row], split_names[row]
        if family not in home:
            home[family] = sources[row]
            if split_name is None:
                free[sources[row]].append(family)
        if split_name:
            counts[home[family]][split_name] += 1
    return [(free[source], counts[source]) for source in sorted(free)]


def _deal(sizes: Mapping[str, int], counts: Counter[str], fractions: Mapping[str, float], seed: int) -> dict[str, str]:
    """The split of each family, by its size and by the pieces that stand in each already.

    A split takes a family if that brings it nearer to its fraction; one too large is passed on, a later one may fit.
    """
    counts = counts.copy()
    total = counts.total() + sum(sizes.values())
    dealt = {}
    for family in sorted(sizes, key=lambda family: (_position(family, seed), family)):
        missing = {split_name: fraction * total - counts[split_name] for split_name, fraction in fractions.items()}
        dealt[family] = next(
            (split_name for split_name in missing if sizes[family] <= 2 * missing[split_name]), "train"
        )
        counts[dealt[family]] += sizes[family]
    return dealt


def _position(family_id: str, seed: int) -> bytes:
    """A place in the order that depends on nothing but the family and the seed."""
    return hashlib.sha256(f"{seed}/{family_id}".encode()).digest()


def _fill_empty_splits(
    dealt: dict[str, str], sizes: Mapping[str, int], kept: Counter[str], needed: Sequence[str]
) -> None:
    """Give each needed split that is empty the smallest family that was dealt elsewhere, of the fullest split.

    What stands alone in train or validation stays there; test may be left empty.
    """
    for wanted in needed:
        counts = kept.copy()
        for family, split_name in dealt.items():
            counts[split_name] += sizes[family]
        if counts[wanted]:
            continue
        donors = [
            family for family, split_name in dealt.items() if split_name == "test" or counts[split_name] > sizes[family]
        ]
        if not donors:
            content = f"{len(dealt)} piece(s) of different content"
            given = f", beside {kept.total()} that have a split," if kept else ""
            raise DataError(f"{content}{given} can't be split into {' and '.join(sorted(needed))}: add files")
        dealt[min(donors, key=lambda family: (sizes[family], -counts[dealt[family]]))] = wanted


def limited_splits(split_names: list[str], max_pieces: int) -> tuple[list[int], list[str]]:
    """At most `max_pieces` rows of each split, the first ones: their indices and their splits."""
    rows = sorted(
        row
        for split_name in SPLITS
        for row in [i for i, each in enumerate(split_names) if each == split_name][:max_pieces]
    )
    return rows, [split_names[row] for row in rows]
