"""Piano-roll pictures are judged by their pixels: where notes are, where none are, and in which colours."""

from __future__ import annotations

import sys
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pianogen_hf.errors import FileError
from pianogen_hf.rendering.piano_roll import save_piano_roll
from pianogen_hf.tokenizers.notes import Notes

EMPTY = Notes.from_seconds([], [], [], [])


def picture(path: Path, notes: Notes, **options) -> np.ndarray:
    """RGB in 0..255, int16, shape (height, width, 3)."""
    with Image.open(save_piano_roll(notes, path / "roll.png", **options)) as image:
        return np.asarray(image.convert("RGB")).astype(np.int16)


def coloured(image: np.ndarray) -> np.ndarray:
    """Where notes are: stripes, grid and letters are all but grey. Shape (height, width)."""
    red, green, blue = np.moveaxis(image, 2, 0)
    return np.maximum(np.maximum(red, green), blue) - np.minimum(np.minimum(red, green), blue) > 50


def dark(image: np.ndarray) -> int:
    """How many pixels have the ink of large letters."""
    return int(np.sum(image.max(axis=2) < 100))


def runs(mask: np.ndarray, axis: int | None = None) -> list[tuple[int, int]]:
    """First and last of each run of true values; with an axis, of columns (0) or rows (1) that have any."""
    mask = mask if axis is None else np.asarray(mask.any(axis=axis))
    edges = np.flatnonzero(np.diff(mask.astype(int), prepend=0, append=0))
    return [(int(first), int(last) - 1) for first, last in zip(edges[0::2], edges[1::2], strict=True)]


def many_notes(count: int, seconds: float, tracks: int = 1) -> Notes:
    rng = np.random.default_rng(0)
    notes = Notes.from_seconds(
        rng.uniform(0, seconds, count),
        rng.exponential(0.4, count),
        rng.integers(48, 72, count),
        rng.integers(1, 128, count),
    )
    notes.table["track"] = rng.integers(0, tracks, count)
    return notes


def test_returns_the_path_of_a_png(tmp_path):
    path = save_piano_roll(Notes.from_seconds([0], [1], [60]), str(tmp_path / "new folder" / "roll.png"))
    assert path == tmp_path / "new folder" / "roll.png"
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [file.name for file in path.parent.iterdir()] == ["roll.png"]


def test_notes_stand_where_time_and_pitch_put_them(tmp_path):
    # A low note in the first quarter, a high one in the last half.
    mask = coloured(picture(tmp_path, Notes.from_seconds([0, 4], [2, 4], [48, 72], [100, 100])))
    columns, rows = runs(mask, 0), runs(mask, 1)
    assert len(columns) == 2 and len(rows) == 2
    first, second = (last - first + 1 for first, last in columns)
    assert second == pytest.approx(2 * first, abs=4)
    assert columns[1][0] - columns[0][0] == pytest.approx(2 * first, abs=4)
    assert mask[rows[1][0] : rows[1][1] + 1, columns[0][0] : columns[0][1] + 1].all()  # low pitch is low in the picture
    assert mask[rows[0][0] : rows[0][1] + 1, columns[1][0] : columns[1][1] + 1].all()


def test_each_semitone_is_one_step_higher(tmp_path):
    mask = coloured(picture(tmp_path, Notes.from_seconds([0, 1, 2], [0.5] * 3, [60, 64, 68], [100] * 3)))
    high, middle, low = (first for first, _ in runs(mask, 1))
    assert middle - high == pytest.approx(low - middle, abs=1)
    assert low - middle == pytest.approx(4 * 5.5, abs=1)


def test_louder_is_darker(tmp_path):
    image = picture(tmp_path, Notes.from_seconds([0, 2, 4], [1, 1, 1], [60, 60, 60], [30, 70, 110]))
    mask = coloured(image)
    row = int(np.flatnonzero(mask.any(axis=1)).mean())
    brightness = [image[row, (first + last) // 2].sum() for first, last in runs(mask[row])]
    assert len(brightness) == 3
    assert brightness[0] > brightness[1] + 75 > brightness[2] + 150


def test_a_note_without_length_is_visible(tmp_path):
    assert coloured(picture(tmp_path, Notes.from_seconds([0.0, 10], [0.0, 0.0], [60, 70], [90, 90]))).sum() >= 10


def test_a_soft_note_is_visible(tmp_path):
    assert coloured(picture(tmp_path, Notes.from_seconds([0], [2], [60], [1]))).sum() > 500


def chorale(voices: int) -> Notes:
    notes = Notes.from_columns(
        onset_tick=np.arange(voices) * 960,
        duration_tick=[960] * voices,
        pitch=60 + np.arange(voices),
        velocity=[65] * voices,
    )
    notes.table["track"] = np.arange(voices)
    return replace(notes, track_names=("_soprano", "$alto$", "ténor", "", "fifth", "sixth", "seventh")[:voices])


def note_colours(image: np.ndarray, voices: int) -> list[np.ndarray]:
    """Mean colour of each of the successive notes; the legend above them is left out."""
    image = image[70:]
    mask = coloured(image)
    columns = np.flatnonzero(mask.any(axis=0))
    middles = np.linspace(columns[0], columns[-1], 2 * voices + 1).astype(int)[1::2]
    return [image[:, middle][mask[:, middle]].mean(axis=0) for middle in middles]


@pytest.mark.parametrize("voices", [2, 4, 6])
def test_two_to_six_tracks_have_colours_of_their_own(tmp_path, voices):
    colours = note_colours(picture(tmp_path, chorale(voices)), voices)
    assert len(colours) == voices
    distances = [np.abs(a - b).max() for i, a in enumerate(colours) for b in colours[:i]]
    assert min(distances) > 40


@pytest.mark.parametrize("voices", [1, 7])
def test_one_track_or_many_share_a_colour(tmp_path, voices):
    colours = note_colours(picture(tmp_path, chorale(voices)), voices)
    assert np.ptp(np.array(colours), axis=0).max() < 12


def test_the_legend_shows_each_track_with_notes(tmp_path):
    with_legend = coloured(picture(tmp_path, chorale(4))[:40])
    assert len(runs(with_legend, 0)) >= 4
    assert not coloured(picture(tmp_path, chorale(1))[:40]).any()


def test_the_prompt_is_shaded_up_to_its_end(tmp_path):
    notes = Notes.from_seconds([0, 9], [1, 1], [60, 60], [90, 90])
    plain, shaded = picture(tmp_path, notes), picture(tmp_path, notes, prompt_end_sec=5.0)
    assert plain.shape == shaded.shape
    middle = plain.shape[0] // 2 + 17
    changed = np.abs(plain[middle] - shaded[middle]).max(axis=1) > 4
    (first, last), *rest = runs(changed)
    notes_span = np.flatnonzero(coloured(plain).any(axis=0))
    assert not rest
    assert first == pytest.approx(notes_span[0], abs=2)
    assert last == pytest.approx((notes_span[0] + notes_span[-1]) / 2, abs=3)
    assert shaded[middle, last - 1].sum() < shaded[middle, first + 9].sum() - 75  # the line stands out from the shade


@pytest.mark.parametrize("prompt_end_sec", [-1.0, 0.0, 20.0, 30.0, 40.0, 1e6])
def test_a_prompt_may_end_anywhere(tmp_path, prompt_end_sec):
    image = picture(tmp_path, Notes.from_seconds([0, 39], [1, 1], [60, 60]), prompt_end_sec=prompt_end_sec)
    shade = (image[..., 0] - image[..., 2] > 12).mean()
    assert (shade > 0.05) == (prompt_end_sec >= 20)


def test_a_gap_is_the_only_part_that_is_not_shaded(tmp_path):
    notes = Notes.from_seconds([0, 9], [1, 1], [60, 60], [90, 90])
    plain = picture(tmp_path, notes)
    shaded = picture(tmp_path, notes, prompt_end_sec=4.0, gap_end_sec=6.0)
    middle = plain.shape[0] // 2 + 17
    changed = np.abs(plain[middle] - shaded[middle]).max(axis=1) > 4
    (_, gap_begins), (gap_ends, _) = runs(changed)
    left, right = np.flatnonzero(coloured(plain).any(axis=0))[[0, -1]]
    assert (gap_begins - left) / (right - left) == pytest.approx(0.4, abs=0.01)
    assert (gap_ends - left) / (right - left) == pytest.approx(0.6, abs=0.01)


def test_a_long_prompt_is_shown_by_its_last_seconds_alone(tmp_path):
    notes = many_notes(600, 300)
    whole = picture(tmp_path, notes, prompt_end_sec=280.0)
    part = picture(tmp_path, notes, prompt_end_sec=280.0, around_sec=5.0)
    gap = picture(tmp_path, notes, prompt_end_sec=100.0, gap_end_sec=108.0, around_sec=5.0)
    assert part.shape[0] < whole.shape[0] / 4 and gap.shape[1] < part.shape[1]


def test_width_grows_with_length_and_then_rows_are_added(tmp_path):
    shapes = [picture(tmp_path, many_notes(200, seconds)).shape[:2] for seconds in (2, 20, 29, 170, 3000)]
    heights, widths = zip(*shapes, strict=True)
    assert widths[0] < widths[1] < widths[2] <= 1600
    assert heights[0] == heights[1] == heights[2] < heights[3] / 4
    assert heights[3] < heights[4] < 2.5 * heights[3] and max(widths) <= 1600


def test_a_long_piece_continues_in_the_next_row(tmp_path):
    # One note held over the break: it reaches the right edge of row one and goes on at the left edge of row two.
    mask = coloured(picture(tmp_path, Notes.from_seconds([25, 50], [10, 5], [60, 60], [90, 90])))
    upper, lower = (np.flatnonzero(mask[first]) for first, _ in runs(mask, 1))
    assert upper[-1] > 0.95 * mask.shape[1]
    assert lower[0] < 0.1 * mask.shape[1]


def test_equal_input_gives_equal_bytes_and_no_metadata(tmp_path):
    notes = many_notes(300, 40, tracks=3)
    first, second = (save_piano_roll(notes, tmp_path / name, title="same").read_bytes() for name in ("a.png", "b.png"))
    assert first == second
    assert b"matplotlib" not in first.lower()


def test_without_notes_the_picture_says_so(tmp_path):
    image = picture(tmp_path, EMPTY, title="nothing")
    height, width = image.shape[:2]
    assert dark(image[height // 2 - 20 : height // 2 + 40, width // 3 : 2 * width // 3]) > 100
    assert not coloured(image).any()


@pytest.mark.parametrize(
    "title",
    ["Prélude à l'après-midi — 前奏曲 🎹", "a $x_1 and \\frac{", "_hidden", "two\nlines\x00\ud800", "x" * 5000, "  "],
)
def test_any_title_can_be_drawn(tmp_path, title):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        image = picture(tmp_path, Notes.from_seconds([0], [1], [60]), title=title)
    assert (dark(image[:35]) > 50) == bool(title.strip())


def test_a_huge_piece_keeps_to_a_bounded_picture(tmp_path):
    image = picture(tmp_path, many_notes(20_000, 7200, tracks=9))
    assert image.shape[0] < 3000 and image.shape[1] == 1600
    assert coloured(image).mean() > 0.005


def test_a_hostile_length_and_the_outermost_pitches_are_drawn(tmp_path):
    notes = Notes.from_columns(1, onset_tick=[0, 2**31 - 2], duration_tick=[5, 2**31 - 1], pitch=[0, 127], velocity=90)
    assert coloured(picture(tmp_path, notes)).any()


def test_pyplot_is_not_touched(tmp_path):
    pyplot_before = sys.modules.get("matplotlib.pyplot")
    figures_before = pyplot_before.get_fignums() if pyplot_before else []
    save_piano_roll(many_notes(10, 5), tmp_path / "roll.png")
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert pyplot is pyplot_before and (pyplot.get_fignums() if pyplot else []) == figures_before


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(FileError, match="file"):
        save_piano_roll(EMPTY, tmp_path / "file" / "roll.png")
