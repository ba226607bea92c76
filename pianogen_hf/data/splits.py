"""Sides of a split: train, validation, test. Decided per family, before anything else touches the music."""

from __future__ import annotations

import hashlib
from collections import Counter
from typing import Any

import numpy as np
from datasets import Dataset

from pianogen_hf.data.sources import DataError

SIDES = ("train", "validation", "test")


def assign_sides(
    pieces: Dataset, validation_fraction: float = 0.1, test_fraction: float = 0.1, seed: int = 0
) -> list[str]:
    """The side of each piece.

    A family that has an official side goes there whole; where its pieces disagree, the side furthest from training
    wins, so that nothing of a test family is ever trained on. Any other family falls where the hash of its name and
    the seed puts it: a piece never changes side because other pieces arrived. Only where that leaves validation or
    training empty is the nearest family moved over.

    Args:
        pieces: a dataset with `family_id` and `official_split`.
        validation_fraction: share of families, without official side, that go to validation.
        test_fraction: share that goes to test.
        seed: names the split.

    Returns:
        One of `SIDES` per piece, in order.

    Raises:
        DataError: if a fraction is out of range, or there are too few families for a train side and, where
            validation_fraction is not 0, a validation side.
    """
    if not (0 <= validation_fraction < 1 and 0 <= test_fraction < 1 and validation_fraction + test_fraction < 1):
        raise DataError("validation_fraction and test_fraction must be at least 0 and sum to less than 1")
    sides: dict[str, str] = {}
    for family, official in zip(pieces["family_id"], pieces["official_split"], strict=True):
        sides[family] = max(sides.get(family, ""), official, key=("", *SIDES).index)
    free = {family: _position(family, seed) for family, side in sides.items() if not side}
    for family, position in free.items():
        is_test, is_validation = position < test_fraction, position < test_fraction + validation_fraction
        sides[family] = "test" if is_test else "validation" if is_validation else "train"
    places = {"validation": test_fraction + validation_fraction / 2, "train": 1.0}
    _fill_empty_sides(sides, free, places if validation_fraction > 0 else {"train": 1.0})
    return [sides[family] for family in pieces["family_id"]]


def _position(family_id: str, seed: int) -> float:
    """A number in [0, 1) that depends on nothing but the family and the seed."""
    digest = hashlib.sha256(f"{seed}/{family_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _fill_empty_sides(sides: dict[str, str], free: dict[str, float], places: dict[str, float]) -> None:
    """Give each side in `places` that is empty the family nearest to its place, of those that no official split fixes.

    A family that stands alone in train or validation stays there; test may be left empty.
    """
    for wanted, place in places.items():
        counts = Counter(sides.values())
        if counts[wanted]:
            continue
        donors = [family for family in free if counts[sides[family]] > 1 or sides[family] == "test"]
        if not donors or len(sides) < len(places):
            needed = " and ".join(sorted(places))
            raise DataError(f"{len(sides)} piece(s) of different content can't be split into {needed}: add files")
        distances = {abs(free[family] - place): family for family in donors}
        sides[distances[min(distances)]] = wanted


def limited_sides(sides: list[str], max_pieces: int) -> tuple[list[int], list[str]]:
    """At most `max_pieces` rows of each side, the first ones: their indices and their sides."""
    rows = sorted(row for side in SIDES for row in [i for i, each in enumerate(sides) if each == side][:max_pieces])
    return rows, [sides[row] for row in rows]


def split_manifest(pieces: Dataset, sides: list[str], parameters: dict[str, Any]) -> dict[str, Any]:
    """The split as plain data, kept beside every data set and inside every checkpoint.

    Returns:
        parameters; counts per side; and per piece its family and side. Its keys are sorted, so two splits can be
        compared line by line.
    """
    rows = zip(pieces["piece_id"], pieces["family_id"], sides, strict=True)
    return {
        "parameters": parameters,
        "counts": dict(sorted(Counter(sides).items())),
        "notes": _notes_per_side(pieces, sides),
        "pieces": {piece: {"family": family, "side": side} for piece, family, side in sorted(rows)},
    }


def _notes_per_side(pieces: Dataset, sides: list[str]) -> dict[str, int]:
    num_notes = np.asarray(pieces["num_notes"][:])
    return {side: int(num_notes[np.array(sides) == side].sum()) for side in sorted(set(sides))}
