"""The manifest of a split: it says all, line by line, and whatever is done to it is seen."""

from __future__ import annotations

import json

import pytest
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from pianogen_hf.data.manifest import FORMAT, read_manifest, split_manifest, split_of, splits_by_content, write_manifest
from pianogen_hf.data.split_names import SPLITS
from pianogen_hf.errors import DataError

PARAMETERS = {"split_seed": 0, "source": ["folder"], "fractions": {"test": 0.1}}
ROWS = [("midi/0.mid", "b", "c0"), ("midi/1.mid", "a", "c1"), ("midi/2.mid", "b", "c2"), ("bach/3", "c", "c3")]
SIDES_OF_ROWS = ["test", "train", "test", ""]


def pieces(rows) -> Dataset:
    names = ("piece_id", "family_id", "content")
    columns = {name: [row[number] for row in rows] for number, name in enumerate(names)}
    columns["source"] = [piece.split("/")[0] for piece in columns["piece_id"]]
    return Dataset.from_dict({**columns, "num_notes": list(range(1, len(rows) + 1))})


MANIFEST = split_manifest(pieces(ROWS), SIDES_OF_ROWS, PARAMETERS)


def refusal(path) -> str:
    with pytest.raises(DataError) as error:
        read_manifest(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)
    return str(error.value)


def test_it_tells_the_side_family_and_content_of_every_piece_and_the_totals():
    assert set(MANIFEST) == {
        *("format", "parameters", "counts", "notes", "columns", "sources", "pieces", "hash"),
    }
    assert MANIFEST["format"] == FORMAT and MANIFEST["parameters"] == PARAMETERS
    assert MANIFEST["columns"] == ["side", "family", "content"]
    assert MANIFEST["pieces"]["midi/2.mid"] == ["test", "b", "c2"] and MANIFEST["pieces"]["bach/3"] == ["", "c", "c3"]
    assert MANIFEST["counts"] == {"left_out": 1, "test": 2, "train": 1}
    assert MANIFEST["notes"] == {"left_out": 4, "test": 4, "train": 2}
    assert MANIFEST["sources"] == {"bach": {"pieces": 1, "notes": 4}, "midi": {"pieces": 3, "notes": 6}}
    assert [split_of(MANIFEST, piece) for piece in ("midi/1.mid", "bach/3", "unknown")] == ["train", "", ""]


def test_it_depends_on_what_it_says_and_not_on_the_order():
    order = [3, 1, 0, 2]
    shuffled = pieces(ROWS).select(order)
    assert (
        split_manifest(shuffled, [SIDES_OF_ROWS[row] for row in order], dict(reversed(PARAMETERS.items()))) == MANIFEST
    )
    for other in (
        split_manifest(pieces(ROWS), ["train", "train", "test", ""], PARAMETERS),
        split_manifest(pieces(ROWS), SIDES_OF_ROWS, {**PARAMETERS, "split_seed": 1}),
        split_manifest(pieces([*ROWS[:3], ("bach/3", "c", "other")]), SIDES_OF_ROWS, PARAMETERS),
        split_manifest(pieces([*ROWS[:3], ("bach/3", "other", "c3")]), SIDES_OF_ROWS, PARAMETERS),
        split_manifest(pieces(ROWS[:3]), SIDES_OF_ROWS[:3], PARAMETERS),
    ):
        assert other["hash"] != MANIFEST["hash"]


def test_two_pieces_of_one_name_are_refused():
    with pytest.raises(DataError, match="2 pieces have the name midi/0.mid"):
        split_manifest(pieces([*ROWS, ROWS[0]]), [*SIDES_OF_ROWS, "test"], {})


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(st.text(min_size=1), st.tuples(st.sampled_from(["", *SPLITS]), st.text(), st.text()), min_size=1),
    st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text()),
)
def test_what_was_written_is_read(tmp_path_factory, rows, parameters):
    path = tmp_path_factory.mktemp("manifest") / "new folder" / "split.json"
    data = pieces([(name, family, content) for name, (_, family, content) in rows.items()])
    manifest = split_manifest(data, [row[0] for row in rows.values()], parameters)
    write_manifest(path, manifest)
    assert read_manifest(path) == manifest == json.loads(path.read_text(encoding="utf-8"))
    assert {name: split_of(manifest, name) for name in rows} == {name: row[0] for name, row in rows.items()}


def test_each_piece_has_a_line_of_its_own(tmp_path):
    write_manifest(tmp_path / "a.json", MANIFEST)
    moved = split_manifest(pieces(ROWS), ["test", "test", "test", ""], PARAMETERS)
    write_manifest(tmp_path / "b.json", moved)
    lines = [(tmp_path / name).read_text().splitlines() for name in ("a.json", "b.json")]
    different = [line for line in lines[0] if line not in lines[1]]
    assert '  "midi/1.mid": ["train", "a", "c1"],' in different
    assert len(different) == 6  # the piece, the counts and notes of two sides, and the hash
    assert lines[0].index('  "bach/3": ["", "c", "c3"],') < lines[0].index('  "midi/0.mid": ["test", "b", "c0"],')


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_any_edit_is_refused(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "edited.json"
    write_manifest(path, MANIFEST)
    text = path.read_text(encoding="utf-8")
    start = data.draw(st.integers(0, len(text)))
    end = data.draw(st.integers(start, min(start + 5, len(text))))
    letters = st.sampled_from(' \n"{}[],:0123456789abcdefnrst') | st.characters(exclude_categories=("Cs",))
    edited = text[:start] + data.draw(st.text(letters, max_size=5)) + text[end:]
    if edited.replace("\r\n", "\n").replace("\r", "\n") != text:  # only the kind of line ends is nobody's edit
        path.write_bytes(edited.encode())
        refusal(path)


def edit(path, change):
    manifest = json.loads(path.read_text())
    change(manifest)
    path.write_text(json.dumps(manifest, indent=1, sort_keys=True))


@pytest.mark.parametrize(
    "change",
    [
        lambda manifest: manifest["pieces"]["midi/0.mid"].__setitem__(0, "train"),
        lambda manifest: manifest["pieces"].pop("midi/0.mid"),
        lambda manifest: manifest["pieces"].update({"midi/4.mid": ["train", "d", "c4"]}),
        lambda manifest: manifest["parameters"].update(split_seed=1),
        lambda manifest: manifest.update(hash="0" * 64),
        lambda manifest: manifest.update(note="all is well"),
        lambda manifest: manifest.pop("counts"),
    ],
)
def test_an_edit_that_leaves_it_json_is_refused_as_an_edit(tmp_path, change):
    path = tmp_path / "split.json"
    write_manifest(path, MANIFEST)
    edit(path, change)
    assert "was edited" in refusal(path)


def test_a_second_word_on_a_piece_is_refused_though_json_allows_it(tmp_path):
    path = tmp_path / "split.json"
    write_manifest(path, MANIFEST)
    line = '  "midi/0.mid": ["test", "b", "c0"],\n'
    text = path.read_text()
    doubled = text.replace(line, line.replace("test", "train") + line)
    assert json.loads(doubled) == MANIFEST and doubled != text
    path.write_text(doubled)
    assert "was edited" in refusal(path)


def test_truncated_missing_older_and_later_files_are_refused_in_one_line(tmp_path):
    path = tmp_path / "split.json"
    assert "No such file" in refusal(path)
    write_manifest(path, MANIFEST)
    whole = path.read_bytes()
    for size in range(0, len(whole), 7):
        path.write_bytes(whole[:size])
        refusal(path)
    path.write_text(json.dumps({"parameters": {}, "pieces": {"a": {"family": "f", "side": "train"}}}))
    assert "make the split anew" in refusal(path)
    edit(path, lambda manifest: manifest.update(format=FORMAT + 1, hash=""))
    assert f"format {FORMAT + 1}, this version reads {FORMAT}" in refusal(path)
    for text in ("[" * 100_000, "[]", "\ufeff{}", "null"):
        path.write_text(text, encoding="utf-8")
        refusal(path)
    path.write_bytes(b"\xff\xfe")
    refusal(path)


def test_contents_tell_sides_but_for_those_that_official_sides_have_twice():
    rows = [("a/0", "f", "c0"), ("a/1", "f", "c0"), ("a/2", "g", "c1"), ("a/3", "g", "c1"), ("a/4", "h", "c2")]
    more = [("a/5", "i", "c3"), ("a/6", "i", "c3")]
    manifest = split_manifest(pieces(rows + more), ["train", "train", "train", "test", "", "", "validation"], {})
    assert splits_by_content(manifest) == {"c0": "train", "c1": "", "c3": "validation"}
