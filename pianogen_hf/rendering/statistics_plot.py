"""One picture of several collections of music: a row for each, and three histograms that can be compared downwards.

Columns share their axes, so a bar means the same in every row. Uses matplotlib's objects without pyplot, so nothing
global is touched and no display is needed.
"""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter, PercentFormatter

from pianogen_hf.tokenizers.files import write_whole

_DPI = 110
# Lengths in inches.
_WIDTH, _ROW_HEIGHT, _ROW_GAP = 13.0, 1.45, 0.3
_LEFT, _RIGHT, _TOP, _BOTTOM, _COLUMN_GAP = 2.35, 0.2, 0.5, 0.62, 0.6
_INK, _FAINT_INK, _GRID, _BAR, _MEDIAN = "#2b2f36", "#7a808a", "#e3e6eb", "#1f5fb4", "#d2521c"
_COLUMNS = {  # title, label of the axis
    "note_count": ("notes in a piece", "notes (share of pieces)"),
    "pitch": ("pitches", "MIDI pitch (share of notes)"),
    "duration_sec": ("durations, without the pedal", "seconds (share of notes)"),
}
_NAME_LENGTH = 26
_PITCH_NAMES = ("C", "C#", "D", "D#", "E", "F", "F#", "G", "G#", "A", "A#", "B")


def save_statistics_plot(
    statistics: Mapping[str, Mapping[str, Any]], edges: Mapping[str, np.ndarray], path: str | os.PathLike
) -> Path:
    """Draw the collections below one another and write the picture as PNG; equal input gives equal bytes.

    Args:
        statistics: by name of the collection, what `corpus_statistics` gives: pieces, unusable, notes, hours,
            notes_per_piece, median_duration_sec and histograms.
        edges: edges of the bins of "note_count" and "duration_sec"; pitches have one bin each.
        path: the file to write, whole or not at all.

    Returns:
        The path written to.

    Raises:
        ValueError: without any collection. FileError: if the file can't be written.
    """
    if not statistics:
        raise ValueError("there is no collection to draw")
    figure = _figure(statistics, {**edges, "pitch": np.arange(129) - 0.5})
    picture = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # a box stands for it, that will do
        FigureCanvasAgg(figure).print_png(picture, metadata={"Software": None})
    write_whole(path, picture.getvalue())
    return Path(path)


def _figure(statistics: Mapping[str, Mapping[str, Any]], edges: Mapping[str, np.ndarray]) -> Figure:
    rows = len(statistics)
    height = _TOP + rows * (_ROW_HEIGHT + _ROW_GAP) - _ROW_GAP + _BOTTOM
    figure = Figure(figsize=(_WIDTH, height), dpi=_DPI, facecolor="white")
    width = (_WIDTH - _LEFT - _RIGHT - _COLUMN_GAP * (len(_COLUMNS) - 1)) / len(_COLUMNS)
    for number, (kind, (title, label)) in enumerate(_COLUMNS.items()):
        left = _LEFT + number * (width + _COLUMN_GAP)
        shares = [_shares(each["histograms"][kind]) for each in statistics.values()]
        limits = _limits(shares, edges[kind]), max(float(max(share.max() for share in shares)) * 1.12, 0.01)
        for row, (share, each) in enumerate(zip(shares, statistics.values(), strict=True)):
            bottom = height - _TOP - _ROW_HEIGHT - row * (_ROW_HEIGHT + _ROW_GAP)
            box = (left / _WIDTH, bottom / height, width / _WIDTH, _ROW_HEIGHT / height)
            axes = figure.add_axes(box, xlim=limits[0], ylim=(0, limits[1]))
            _draw_axes(axes, kind, is_last=row == rows - 1)
            median = _median(each, kind)
            word = "median " if row == 0 else ""  # once says it for all rows
            _draw_histogram(axes, share, edges[kind], median, word + _median_label(median, kind))
            if row == 0:
                axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=_INK, pad=10)
        axes.set_xlabel(label, color=_FAINT_INK, fontsize=8.5, loc="right", labelpad=3)
    for row, (name, each) in enumerate(statistics.items()):
        _draw_name(figure, name, each, height - _TOP - row * (_ROW_HEIGHT + _ROW_GAP))
    return figure


def _shares(counts: list[int]) -> np.ndarray:
    """Parts of the whole, shape (num_bins,); zeros where there is nothing."""
    values = np.asarray(counts, dtype=np.float64)
    return values / max(values.sum(), 1.0)


def _limits(shares: list[np.ndarray], edges: np.ndarray) -> tuple[float, float]:
    """From the first to the last bin that holds anything worth a look in any row; everything where none does."""
    used = np.flatnonzero(np.max(shares, axis=0) > 1e-4)
    first, last = (int(used[0]), int(used[-1])) if len(used) else (0, len(edges) - 2)
    return float(edges[max(first - 1, 0)]), float(edges[min(last + 2, len(edges) - 1)])


def _median(each: Mapping[str, Any], kind: str) -> float | None:
    if kind == "pitch":
        counts = np.cumsum(each["histograms"]["pitch"])
        return float(np.searchsorted(counts, counts[-1] / 2)) if counts[-1] else None
    return each["notes_per_piece"]["median"] if kind == "note_count" else each["median_duration_sec"]


def _draw_axes(axes: Axes, kind: str, is_last: bool) -> None:
    """Scale, grid and labels; only the last row of a column says what its values are."""
    if kind == "pitch":
        low, high = axes.get_xlim()
        octaves = [pitch for pitch in range(0, 128, 12) if low <= pitch <= high]
        axes.set_xticks(octaves, [f"C{pitch // 12 - 1}" for pitch in octaves])
    else:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
    axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.locator_params(axis="y", nbins=3)
    axes.grid(which="major", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0, labelsize=8, labelcolor=_FAINT_INK, labelbottom=is_last)
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#b9bec7")


def _draw_histogram(axes: Axes, shares: np.ndarray, edges: np.ndarray, median: float | None, label: str) -> None:
    """The shares as an area with steps, and the median as a line with its value."""
    if median is None:
        axes.text(0.5, 0.5, "no notes", transform=axes.transAxes, ha="center", va="center", color=_FAINT_INK)
        return
    axes.stairs(shares, edges, fill=True, color=_BAR, alpha=0.85, linewidth=0)
    axes.axvline(median, color=_MEDIAN, linewidth=1.2)
    is_right = axes.transAxes.inverted().transform(axes.transData.transform((median, 0)))[0] > 0.7
    axes.annotate(
        label,
        (median, 1),
        xycoords=("data", "axes fraction"),
        xytext=(-3 if is_right else 3, -2),
        textcoords="offset points",
        ha="right" if is_right else "left",
        va="top",
        fontsize=8,
        color=_MEDIAN,
    )


def _median_label(median: float | None, kind: str) -> str:
    """The median as text, a pitch by its name."""
    if median is None:
        return ""
    if kind == "pitch":
        return f"{_PITCH_NAMES[int(median) % 12]}{int(median) // 12 - 1}"
    return f"{median:,.0f}" if kind == "note_count" else f"{median:.2g} s"


def _draw_name(figure: Figure, name: str, each: Mapping[str, Any], top: float) -> None:
    """What the row is, at its left; `top` in inches from below."""
    height = figure.get_size_inches()[1]
    printable = "".join(letter if letter.isprintable() else " " for letter in name)
    short = printable if len(printable) <= _NAME_LENGTH else printable[: _NAME_LENGTH - 1] + "…"
    figure.text(
        0.2 / _WIDTH, top / height, short, fontsize=11, fontweight="bold", color=_INK, va="top", parse_math=False
    )
    lines = f"{each['pieces']:,} pieces\n{each['notes']:,} notes\n{each['hours']:,.1f} hours"
    if each["unusable"]:
        lines += f"\n{each['unusable']:,} files unusable"
    figure.text(0.2 / _WIDTH, (top - 0.28) / height, lines, fontsize=8.5, color=_FAINT_INK, va="top", linespacing=1.4)
