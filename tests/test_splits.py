"""Splits: decided by families, official where there is an official side, and stable when pieces come and go."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from pianogen_hf.data.sources import DataError
from pianogen_hf.data.splits import SIDES, assign_sides, limited_sides, split_manifest

FAMILIES = st.lists(st.text(min_size=1, max_size=8), unique=True, max_size=40)


def pieces(families: list[str], official: list[str] | None = None) -> Dataset:
    count = len(families)
    return Dataset.from_dict(
        {
            "piece_id": [f"folder/{number:03}.mid" for number in range(count)],
            "family_id": families,
            "official_split": official or [""] * count,
            "num_notes": list(range(1, count + 1)),
        }
    )


def many(count: int, start: int = 0) -> list[str]:
    return [f"family {number}" for number in range(start, start + count)]


def side_of(families: list[str], official: list[str] | None = None, **options) -> dict[str, str]:
    return dict(zip(families, assign_sides(pieces(families, official), **options), strict=True))


def test_shares_are_about_the_fractions_and_the_seed_names_the_split():
    sides = side_of(many(2000), validation_fraction=0.1, test_fraction=0.2)
    counts = Counter(sides.values())
    assert 150 < counts["validation"] < 250 and 330 < counts["test"] < 470
    assert sides == side_of(many(2000), validation_fraction=0.1, test_fraction=0.2)
    assert sides != side_of(many(2000), validation_fraction=0.1, test_fraction=0.2, seed=1)


@settings(max_examples=60, deadline=None)
@given(added=FAMILIES, seed=st.integers(0, 3))
def test_adding_pieces_never_moves_one_that_was_there(added, seed):
    before = side_of(many(60), seed=seed)  # enough for every side to hold some
    assert set(before.values()) == set(SIDES)
    after = side_of([*added, *many(60)], seed=seed)
    assert {family: after[family] for family in before} == before


@settings(max_examples=60, deadline=None)
@given(
    rows=st.lists(st.tuples(st.sampled_from(many(8)), st.sampled_from(["", *SIDES])), min_size=1, max_size=30),
    seed=st.integers(0, 5),
)
def test_families_are_never_divided_and_official_sides_win(rows, seed):
    families, official = ([row[column] for row in rows] for column in (0, 1))
    try:
        sides = assign_sides(pieces(families, official), 0.3, 0.2, seed=seed)
    except DataError:
        return  # too few families: the cases are tested below
    assert {"train", "validation"} <= set(sides)
    for family in set(families):
        own = {side for each, side in zip(families, sides, strict=True) if each == family}
        named = {name for each, name in zip(families, official, strict=True) if each == family and name}
        assert len(own) == 1
        if named:  # where a family's pieces disagree, the side furthest from training
            assert own == {max(named, key=SIDES.index)}


def test_an_official_test_piece_pulls_its_copies_out_of_training():
    families = [*many(30), "family 3", "family 3"]
    sides = assign_sides(pieces(families, [""] * 30 + ["test", "train"]))
    assert sides[3] == sides[30] == sides[31] == "test"


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("count", [2, 3])
def test_two_pieces_are_enough_for_training_and_validation(count, seed):
    sides = Counter(side_of(many(count), seed=seed).values())
    assert sides["train"] >= 1 and sides["validation"] >= 1


def test_what_fills_an_empty_side_is_the_nearest_family_and_only_one_moves():
    families, fractions = many(12), {"validation_fraction": 1e-9, "test_fraction": 0.3}
    without = side_of(families, validation_fraction=0, test_fraction=0.3)
    filled = side_of(families, **fractions)
    moved = [family for family in families if filled[family] != without[family]]
    assert len(moved) == 1 and filled[moved[0]] == "validation"
    assert Counter(filled.values())["train"] + Counter(filled.values())["test"] == 11


@pytest.mark.parametrize("seed", range(6))
def test_one_piece_cannot_be_split_and_says_so(seed):
    with pytest.raises(
        DataError, match="1 piece.s. of different content can't be split into train and validation"
    ) as error:
        side_of(many(1), seed=seed)
    assert "\n" not in str(error.value)


def test_copies_of_one_piece_cannot_be_split():
    with pytest.raises(DataError, match="1 piece"):
        assign_sides(pieces(["same"] * 5))


def test_official_sides_are_not_taken_from_to_fill_another():
    with pytest.raises(DataError, match="can't be split"):
        assign_sides(pieces(many(4), ["train"] * 4))
    sides = assign_sides(pieces(many(3), ["train", "train", ""]))
    assert sides == ["train", "train", "validation"]


@pytest.mark.parametrize("seed", range(6))
def test_without_fractions_all_is_training(seed):
    assert set(side_of(many(50), validation_fraction=0, test_fraction=0, seed=seed).values()) == {"train"}
    assert set(side_of(many(50), validation_fraction=0.5, test_fraction=0, seed=seed).values()) == {
        "train",
        "validation",
    }
    # Even if the one piece there is would fall into test, something must be left to train on.
    assert list(side_of(many(1), validation_fraction=0, test_fraction=0.9, seed=seed).values()) == ["train"]


@pytest.mark.parametrize("fractions", [(-0.1, 0.1), (0.1, -0.1), (0.5, 0.5), (1.0, 0.0), (0.1, float("nan"))])
def test_fractions_out_of_range_are_refused(fractions):
    with pytest.raises(DataError, match="must be at least 0 and sum to less than 1"):
        assign_sides(pieces(many(5)), *fractions)


def test_limited_sides_keeps_the_first_of_each_side_in_order():
    sides = ["test", "train", "train", "validation", "train", "test"]
    assert limited_sides(sides, 1) == ([0, 1, 3], ["test", "train", "validation"])
    assert limited_sides(sides, 2) == ([0, 1, 2, 3, 5], ["test", "train", "train", "validation", "test"])
    assert limited_sides(sides, 9) == (list(range(6)), sides)


def test_the_manifest_is_plain_sorted_data_that_tells_every_side():
    data = pieces(["b", "a", "b", "c"]).select([3, 1, 0, 2])
    sides = ["validation", "train", "test", "test"]
    manifest = split_manifest(data, sides, {"split_seed": 0, "source": "folder"})
    assert json.loads(json.dumps(manifest)) == manifest
    assert list(manifest["pieces"]) == sorted(manifest["pieces"]) == [f"folder/00{number}.mid" for number in range(4)]
    assert manifest["pieces"]["folder/003.mid"] == {"family": "c", "side": "validation"}
    assert manifest["counts"] == {"test": 2, "train": 1, "validation": 1}
    assert manifest["notes"] == {"test": 1 + 3, "train": 2, "validation": 4}
    again = split_manifest(
        data.select([1, 0, 3, 2]), [sides[row] for row in (1, 0, 3, 2)], {"source": "folder", "split_seed": 0}
    )
    assert json.dumps(again, sort_keys=True) == json.dumps(manifest, sort_keys=True)
