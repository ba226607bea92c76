"""The picture that compares data sets: same input same bytes, a row for each, axes that can be compared."""

import numpy as np
import pytest

from pianogen_hf.rendering import statistics_plot
from pianogen_hf.rendering.statistics_plot import save_statistics_plot

EDGES = {"note_count": np.geomspace(1, 10**6, 49), "duration_sec": np.geomspace(0.01, 30, 43)}


def collection(seed=0, pieces=20):
    random = np.random.default_rng(seed)
    counts = {"note_count": random.multinomial(pieces, np.ones(48) / 48)}
    counts |= {"pitch": random.integers(0, 90, 128), "duration_sec": random.integers(0, 90, 42)}
    return {
        "pieces": pieces,
        "unusable": seed,
        "notes": int(counts["pitch"].sum()),
        "hours": 1.5,
        "notes_per_piece": {"median": 300.0, "smallest": 10, "largest": 1000},
        "median_duration_sec": 0.25,
        "histograms": {name: values.tolist() for name, values in counts.items()},
    }


def nothing():
    empty = {"note_count": [0] * 48, "pitch": [0] * 128, "duration_sec": [0] * 42}
    none = {"median": None, "smallest": None, "largest": None}
    row = {"pieces": 0, "unusable": 3, "notes": 0, "hours": 0.0, "notes_per_piece": none, "median_duration_sec": None}
    return {**row, "histograms": empty}


def figure(collections):
    return statistics_plot._figure(collections, {**EDGES, "pitch": np.arange(129) - 0.5})


def texts(axes):
    return [text.get_text() for text in axes.texts]


def test_equal_input_gives_equal_bytes(tmp_path):
    paths = [save_statistics_plot({"a": collection()}, EDGES, tmp_path / name) for name in ("1.png", "2.png")]
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert paths[0].read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("rows", [1, 2, 7])
def test_every_data_set_has_a_row_of_three_histograms_on_shared_axes(rows):
    drawn = figure({f"set {number}": collection(number) for number in range(rows)})
    assert len(drawn.axes) == 3 * rows
    for column in range(3):
        axes = drawn.axes[column * rows : (column + 1) * rows]
        assert len({(each.get_xlim(), each.get_ylim()) for each in axes}) == 1
        assert [bool(each.get_xlabel()) for each in axes] == [False] * (rows - 1) + [True]
    names = {text.get_text() for text in drawn.texts}
    assert {f"set {number}" for number in range(rows)} <= names


def test_rows_do_not_overlap():
    drawn = figure({"a": collection(), "b": collection(1)})
    upper, lower = drawn.axes[0].get_position(), drawn.axes[1].get_position()
    assert upper.y0 > lower.y1 and upper.y1 < 1 and lower.y0 > 0


def test_shares_of_a_row_sum_to_one():
    drawn = figure({"a": collection(pieces=20), "b": collection(1, pieces=2000)})
    for axes in drawn.axes:
        assert axes.patches[0].get_data().values.sum() == pytest.approx(1)


def test_a_data_set_without_notes_says_so_beside_others():
    drawn = figure({"full": collection(), "empty": nothing()})
    assert [texts(axes) for axes in drawn.axes[1::2]] == [["no notes"]] * 3
    assert "3 files unusable" in " ".join(text.get_text() for text in drawn.texts)


def test_nothing_but_empty_data_sets_can_be_drawn(tmp_path):
    assert save_statistics_plot({"empty": nothing()}, EDGES, tmp_path / "empty.png").exists()


def test_the_median_is_named_once_and_stands_in_every_row():
    drawn = figure({"a": collection(), "b": collection(1)})
    assert texts(drawn.axes[0]) == ["median 300"] and texts(drawn.axes[1]) == ["300"]
    assert texts(drawn.axes[5]) == ["0.25 s"]


@pytest.mark.parametrize("name", ["$x_1$", "a" * 200, "line\nbreak", "_hidden", "日本"])
def test_any_name_can_be_drawn(tmp_path, name):
    assert save_statistics_plot({name: collection()}, EDGES, tmp_path / "a.png").exists()


def test_no_data_set_at_all_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="no collection"):
        save_statistics_plot({}, EDGES, tmp_path / "a.png")
