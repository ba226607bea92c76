"""Splits: decided by families, near the fractions, official where there is an official side; what is there stays."""

from __future__ import annotations

from collections import Counter, defaultdict
from itertools import combinations

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from pianogen_hf.data.manifest import split_manifest, splits_by_content
from pianogen_hf.data.split_names import SPLITS
from pianogen_hf.data.splits import assign_splits, limited_splits
from pianogen_hf.errors import DataError

FRACTIONS = st.integers(5, 30).map(lambda hundredths: hundredths / 100)


def table(rows) -> Dataset:
    """Rows of (piece_id, family_id, official_split, content); the source is what stands before the slash."""
    names = ("piece_id", "family_id", "official_split", "content")
    columns = {name: [row[number] for row in rows] for number, name in enumerate(names)}
    columns["source"] = [piece.split("/")[0] for piece in columns["piece_id"]]
    return Dataset.from_dict({**columns, "num_notes": [100] * len(rows)})


def pieces(families: list[str], official: list[str] | None = None) -> Dataset:
    official = official or [""] * len(families)
    rows = zip(families, official, strict=True)
    return table([(f"folder/{number:04}.mid", *row, f"c{number}") for number, row in enumerate(rows)])


def many(count: int, start: int = 0) -> list[str]:
    return [f"family {number}" for number in range(start, start + count)]


def split_of(families: list[str], **options) -> dict[str, str]:
    return dict(zip(families, assign_splits(pieces(families), **options), strict=True))


def test_counts_are_the_fractions_and_the_seed_names_the_split():
    sides = split_of(many(2000), validation_fraction=0.1, test_fraction=0.2)
    assert Counter(sides.values()) == {"train": 1400, "validation": 200, "test": 400}
    assert sides == split_of(many(2000), validation_fraction=0.1, test_fraction=0.2)
    other = split_of(many(2000), validation_fraction=0.1, test_fraction=0.2, seed=1)
    # Of two independent splits like these 0.7 ** 2 + 0.1 ** 2 + 0.2 ** 2 = 0.54 of the sides agree.
    assert 900 < sum(sides[family] == other[family] for family in sides) < 1260


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.integers(1, 9), max_size=30), min_size=1, max_size=3), FRACTIONS, FRACTIONS, st.integers())
def test_counts_miss_the_fractions_by_half_the_largest_family_of_each_source(sources, validation, test, seed):
    # The first source has 40 families of one piece, so that no side is empty.
    sizes = {f"source{number}": each for number, each in enumerate([[1] * 40, *sources])}
    rows = [
        (f"{source}/{family}-{piece}", f"{source}/{family}", "", f"{source}/{family}-{piece}")
        for source, each in sizes.items()
        for family, size in enumerate(each)
        for piece in range(size)
    ]
    sides = assign_splits(table(rows), validation, test, seed)
    counts = Counter((row[0].split("/")[0], side) for row, side in zip(rows, sides, strict=True))
    for source, each in sizes.items():
        total, largest, rounding = sum(each), max(each, default=0), 1e-9
        assert abs(counts[source, "test"] - test * total) <= largest / 2 + rounding
        assert abs(counts[source, "validation"] - validation * total) <= largest / 2 + rounding
        assert abs(counts[source, "train"] - (1 - test - validation) * total) <= largest + rounding


def test_a_family_too_large_for_a_side_leaves_it_to_smaller_ones():
    families = [*["large"] * 60, *many(40)]
    for seed in range(10):
        counts = Counter(assign_splits(pieces(families), 0.1, 0.1, seed))
        assert counts == {"train": 80, "validation": 10, "test": 10}


def test_a_family_of_several_sources_belongs_to_that_of_its_first_piece():
    rows = [(f"a/{n}", f"a{n}", "", f"a{n}") for n in range(10)] + [(f"b/{n}", f"b{n}", "", f"b{n}") for n in range(10)]
    shared = [("a/10", "shared", "", "s1"), *((f"b/{n}", "shared", "", f"s{n}") for n in range(10, 20))]
    for seed in range(5):
        sides = assign_splits(table(rows + shared), 0.2, 0.2, seed)
        assert Counter(sides[10:20]) == {"train": 6, "validation": 2, "test": 2}
        assert len(set(sides[20:])) == 1


@settings(max_examples=40, deadline=None)
@given(st.lists(st.text(min_size=1, max_size=8), unique=True, max_size=20), st.integers(0, 3))
def test_without_an_earlier_split_added_pieces_move_few(added, seed):
    before, after = split_of(many(60), seed=seed), split_of([*added, *many(60)], seed=seed)
    # Each shifts the first cut by one family at most and the second by two.
    assert sum(before[family] != after[family] for family in before) <= 3 * len(added)


# What a further delivery holds: (family, content within it, official side), and which families turn out to be one.
FAMILIES = [f"f{number}" for number in range(8)]
OFFICIAL = st.sampled_from(["", "", "", *SPLITS])
DELIVERY = st.tuples(
    st.lists(st.tuples(st.sampled_from(FAMILIES), st.integers(0, 1), OFFICIAL), max_size=20),
    st.dictionaries(st.sampled_from(FAMILIES), st.sampled_from(FAMILIES), max_size=4),
)


def deliveries(all_of_them):
    """The growing list of pieces after each delivery, first 30 families of one piece, then as drawn."""
    rows = [("base", f"f{number}", "", f"f{number} base") for number in range(30)]
    names: dict[str, str] = {}
    for source, (added, merged) in enumerate([([], {}), *all_of_them]):
        rows = [*rows, *((f"s{source}", family, official, f"{family} {n}") for family, n, official in added)]
        for family, into in merged.items():
            old, new = names.get(family, family), names.get(into, into)
            names = {each: new if names.get(each, each) == old else names.get(each, each) for each in FAMILIES}
        yield [
            (f"{source}/{number:03}", names.get(family, family), official, content)
            for number, (source, family, official, content) in enumerate(rows)
        ]


@settings(max_examples=60, deadline=None)
@given(st.lists(DELIVERY, min_size=1, max_size=3), st.integers(0, 3))
def test_with_an_earlier_split_nothing_moves_and_newcomers_never_leak_whatever_is_added(all_of_them, seed):
    before: dict[str, str] = {}
    earlier: dict[str, str] = {}
    for rows in deliveries(all_of_them):
        sides = assign_splits(table(rows), 0.2, 0.1, seed, earlier)
        now = {row[0]: side for row, side in zip(rows, sides, strict=True)}
        assert {piece: now[piece] for piece, side in before.items() if side} == {p: s for p, s in before.items() if s}
        by_family = defaultdict(list)
        for (piece, family, official, content), side in zip(rows, sides, strict=True):
            assert side in ("", official) or not official
            if side:
                by_family[family].append((side, official and piece.split("/")[0], content in earlier))
        for pairs in (combinations(each, 2) for each in by_family.values()):
            for (side, official_of, was_there), (other_side, other_official_of, other_was_there) in pairs:
                own_doing = official_of and official_of == other_official_of
                assert side == other_side or own_doing or (was_there and other_was_there)
        before, earlier = now, splits_by_content(split_manifest(table(rows), sides, {}))


@settings(max_examples=60, deadline=None)
@given(DELIVERY, DELIVERY, st.randoms(use_true_random=False))
def test_the_order_of_the_pieces_does_not_matter(first, second, random):
    *_, some, rows = deliveries([first, second])
    earlier = {content: "test" for _, _, _, content in some[::3]}
    for known in (None, earlier):
        sides = dict(zip((row[0] for row in rows), assign_splits(table(rows), earlier=known), strict=True))
        shuffled = random.sample(rows, len(rows))
        assert assign_splits(table(shuffled), earlier=known) == [sides[row[0]] for row in shuffled]


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(many(8)), OFFICIAL), min_size=1, max_size=30), st.integers(0, 5))
def test_free_families_are_never_divided_and_official_sides_stay(rows, seed):
    families, official = ([row[column] for row in rows] for column in (0, 1))
    try:
        sides = assign_splits(pieces(families, official), 0.3, 0.2, seed=seed)
    except DataError:
        return  # too few families: the cases are tested below
    assert {"train", "validation"} <= set(sides)
    for family in set(families):
        own = [(name, side) for each, name, side in zip(families, official, sides, strict=True) if each == family]
        named = {name for name, _ in own if name}
        assert all(side == name for name, side in own if name)
        free = {side for name, side in own if not name}
        assert len(free) <= 1
        if named:
            assert free <= (named if len(named) == 1 else {""})


def test_free_pieces_follow_an_official_piece_of_their_family():
    sides = assign_splits(pieces([*many(30), "family 3"], [""] * 30 + ["test"]))
    assert sides[3] == sides[30] == "test"


def test_pieces_that_follow_count_and_official_ones_do_not():
    rows = [(f"a/{n}", f"a{n}", "", f"a{n}") for n in range(20)]
    official = [(f"a/official{n}", f"a{n}", "test", f"o{n}") for n in range(4)]
    official += [(f"a/trained{n}", f"o{n}", "train", f"t{n}") for n in range(100)]
    assert Counter(assign_splits(table(rows + official), 0.1, 0.2)[:20]) == {"train": 14, "validation": 2, "test": 4}


def test_a_newcomer_that_bridges_families_on_two_sides_is_left_out():
    rows = [(f"a/{n:02}", f"a{n}", "", f"a{n}") for n in range(20)]
    sides = assign_splits(table(rows))
    earlier = splits_by_content(split_manifest(table(rows), sides, {}))
    bridged = {f"a{sides.index('train')}", f"a{sides.index('test')}"}
    rows = [(name, "joined" if family in bridged else family, own, content) for name, family, own, content in rows]
    assert assign_splits(table([*rows, ("b/bridge", "joined", "", "b")]), earlier=earlier) == [*sides, ""]


def test_an_official_piece_whose_music_the_earlier_split_has_on_another_side_is_left_out_too():
    rows = [(f"a/{n:02}", f"a{n}", "", f"a{n}") for n in range(20)]
    sides = assign_splits(table(rows))
    earlier = splits_by_content(split_manifest(table(rows), sides, {}))
    trained = rows[sides.index("train")]
    added = [
        ("b/performance", trained[1], "test", "another performance"),
        ("b/copy", "b", "test", trained[3]),
        ("b/arrangement of copy", "b", "", "arrangement"),
        ("b/other", "c", "test", "other"),
        ("b/train", trained[1], "train", "a third"),
    ]
    assert assign_splits(table(rows + added), earlier=earlier)[20:] == ["", "", "train", "test", "train"]
    tested = rows[sides.index("test")][3]
    added = [("b/copy", "b", "train", tested), *((f"b/arrangement {n}", "b", "", f"b{n}") for n in range(9))]
    assert assign_splits(table(rows + added), earlier=earlier)[20:] == ["", *["test"] * 9]


def test_of_official_sides_of_two_sources_the_one_further_from_training_stays():
    rows = [(f"a/{n:02}", f"a{n}", "", f"a{n}") for n in range(20)]
    clash = [("b/0", "shared", "train", "b0"), ("c/0", "shared", "test", "c0"), ("c/1", "shared", "train", "c1")]
    assert assign_splits(table([*rows, *clash]))[20:] == ["", "test", "train"]
    assert assign_splits(table([*rows, *clash]), earlier={"b0": "train"})[20:] == ["train", "", "train"]
    assert assign_splits(table([*rows, *clash[::2]]))[20:] == ["train", "train"]
    third = ("d/0", "shared", "train", "d0")  # what is left out itself puts nothing out
    assert assign_splits(table([*rows, *clash, third]), earlier={"b0": "train"})[20:] == ["train", "", "train", "train"]
    # What one source has on two sides by its own word stays there, in whatever order it came.
    assert assign_splits(table([*rows, *clash[1:]]), earlier={"c1": "train"})[20:] == ["test", "train"]


def test_copies_that_official_splits_have_on_two_sides_stay_there_and_take_no_further_copy_with_them():
    rows = [*((f"a/{n:02}", f"a{n}", "", f"a{n}") for n in range(20))]
    rows += [("b/0", "b", "train", "copy"), ("b/1", "b", "test", "copy")]
    sides = assign_splits(table(rows))
    earlier = splits_by_content(split_manifest(table(rows), sides, {}))
    assert sides[20:] == ["train", "test"]
    added = [("c/0", "b", "", "copy"), ("d/0", "b", "test", "other"), ("e/0", "b", "train", "another")]
    assert assign_splits(table([*rows, *added]), earlier=earlier) == [*sides, "", "", ""]


def test_newcomers_make_up_for_what_the_earlier_split_lacks():
    earlier = {f"c{number}": "train" for number in range(50)}
    sides = assign_splits(pieces(many(70)), 0.1, 0.1, earlier=earlier)
    assert sides[:50] == ["train"] * 50
    assert Counter(sides) == {"train": 56, "validation": 7, "test": 7}


@pytest.mark.parametrize("fractions", [(0.1, 0.1), (0.05, 0.9), (0.9, 0.05)])
@pytest.mark.parametrize("count", [2, 3])
def test_two_pieces_are_enough_for_training_and_validation(count, fractions):
    for seed in range(12):
        assert {"train", "validation"} <= set(assign_splits(pieces(many(count)), *fractions, seed))


def test_what_fills_an_empty_side_is_one_of_the_smallest_families():
    families = [*many(8), *["large"] * 4]
    without = assign_splits(pieces(families), 0, 0.1)
    filled = assign_splits(pieces(families), 1e-9, 0.1)
    moved = [row for row in range(12) if filled[row] != without[row]]
    assert len(moved) == 1 and moved[0] < 8
    assert filled[moved[0]] == "validation" and without[moved[0]] == "train"  # the fullest side spares it


@pytest.mark.parametrize("seed", range(6))
def test_one_piece_cannot_be_split_and_says_so(seed):
    with pytest.raises(
        DataError, match="1 piece.s. of different content can't be split into train and validation"
    ) as error:
        split_of(many(1), seed=seed)
    assert "\n" not in str(error.value)


def test_copies_of_one_piece_cannot_be_split():
    with pytest.raises(DataError, match="1 piece"):
        assign_splits(pieces(["same"] * 5))


def test_given_sides_are_not_taken_from_to_fill_another():
    with pytest.raises(DataError, match="0 piece.* beside 4 that have a split, can't be split"):
        assign_splits(pieces(many(4), ["train"] * 4))
    with pytest.raises(DataError, match="0 piece.* beside 4 that have a split, can't be split"):
        assign_splits(pieces(many(4)), earlier={f"c{number}": "train" for number in range(4)})
    assert assign_splits(pieces(many(3), ["train", "train", ""])) == ["train", "train", "validation"]
    assert assign_splits(pieces(many(3)), earlier={"c0": "train", "c1": "train"}) == ["train", "train", "validation"]


@pytest.mark.parametrize("seed", range(6))
def test_without_fractions_all_is_training(seed):
    assert set(split_of(many(50), validation_fraction=0, test_fraction=0, seed=seed).values()) == {"train"}
    halves = split_of(many(50), validation_fraction=0.5, test_fraction=0, seed=seed)
    assert Counter(halves.values()) == {"train": 25, "validation": 25}
    # Even if the one piece there is would fall into test, something must be left to train on.
    assert list(split_of(many(1), validation_fraction=0, test_fraction=0.9, seed=seed).values()) == ["train"]


@pytest.mark.parametrize("fractions", [(-0.1, 0.1), (0.1, -0.1), (0.5, 0.5), (1.0, 0.0), (0.1, float("nan"))])
def test_fractions_out_of_range_are_refused(fractions):
    with pytest.raises(DataError, match="must be at least 0 and sum to less than 1"):
        assign_splits(pieces(many(5)), *fractions)


def test_limited_sides_keeps_the_first_of_each_side_in_order():
    sides = ["test", "train", "train", "validation", "train", "test", ""]
    assert limited_splits(sides, 1) == ([0, 1, 3], ["test", "train", "validation"])
    assert limited_splits(sides, 2) == ([0, 1, 2, 3, 5], ["test", "train", "train", "validation", "test"])
    assert limited_splits(sides, 9) == (list(range(6)), sides[:6])
