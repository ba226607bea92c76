"""Bars of a piece beside the tokens or rows that a model sees of them: in a terminal, and as a picture."""

from __future__ import annotations

import io
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pianogen_hf.rendering.piano_roll import draw_notes, draw_stripes, pitch_limits
from pianogen_hf.tokenizers.files import write_whole
from pianogen_hf.tokenizers.notes import Notes

_COLUMNS = 32  # of a bar in a terminal
_NAMES = ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")
_MAX_BARS = 16  # of a picture
_WIDTH, _TEXT_LEFT, _MIN_HEIGHT, _LINE_HEIGHT, _GAP = 14.0, 6.2, 1.3, 0.145, 0.42  # inches
_CHARACTERS = 110  # of a line of tokens


@dataclass(frozen=True)
class ExplainedBar:
    """A bar, and what a model sees of it.

    Attributes:
        number: counted from 1.
        start_sec: where it begins.
        end_sec: where it ends.
        notes: the notes that begin in it.
        sounding: the notes that sound in it.
        steps: its tokens or rows, in words.
    """

    number: int
    start_sec: float
    end_sec: float
    notes: Notes
    sounding: Notes
    steps: list[str]


def roll_lines(bar: ExplainedBar) -> list[str]:
    """A bar as a piano roll of characters: # where a note begins, = where it sounds on; only keys that sound."""
    lines = []
    edges = np.linspace(bar.start_sec, bar.end_sec, _COLUMNS + 1)
    onset, offset = bar.sounding.onset_sec, bar.sounding.offset_sec
    for pitch in sorted(set(bar.sounding["pitch"].tolist()), reverse=True):
        cells = ["·"] * _COLUMNS
        for index in np.flatnonzero(bar.sounding["pitch"] == pitch):
            first = int(np.searchsorted(edges, onset[index] + 1e-6, side="right")) - 1
            last = int(np.searchsorted(edges, offset[index] - 1e-6, side="left"))
            for column in range(max(first, 0), min(max(last, first + 1), _COLUMNS)):
                cells[column] = "="
            if 0 <= first < _COLUMNS:
                cells[first] = "#"
        lines.append(f"{_NAMES[pitch % 12] + str(pitch // 12 - 1):>4} |{''.join(cells)}|")
    return lines or ["     |" + "·" * _COLUMNS + "|"]


def save_explained(bars: Sequence[ExplainedBar], path: str | os.PathLike, title: str) -> Path:
    """Draw bars, each with its tokens beside it, and write them as PNG.

    Args:
        bars: at least one; of more than 16 the first ones are drawn, and the title says so.
        path: the file to write, whole or not at all.
        title: a heading.

    Returns:
        The path written to.

    Raises:
        FileError: if the file can't be written.
    """
    if len(bars) > _MAX_BARS:
        title = f"{title} (the first {_MAX_BARS} of {len(bars)} bars)"
    shown = bars[:_MAX_BARS]
    texts = [wrapped(bar.steps, _CHARACTERS) for bar in shown]
    heights = [max(_MIN_HEIGHT, _LINE_HEIGHT * (len(lines) + 1)) for lines in texts]
    total = 0.6 + sum(heights) + _GAP * len(shown)
    figure = Figure(figsize=(_WIDTH, total), dpi=100, facecolor="white")
    figure.text(0.05, 1 - 0.15 / total, title, fontsize=12, fontweight="bold", va="top", parse_math=False)
    top = total - 0.6
    low, high = pitch_limits(np.concatenate([bar.sounding["pitch"] for bar in shown]))
    for bar, lines, height in zip(shown, texts, heights, strict=True):
        box = (0.6 / _WIDTH, (top - height) / total, (_TEXT_LEFT - 1.0) / _WIDTH, height / total)
        axes = figure.add_axes(box, xlim=(bar.start_sec, bar.end_sec), ylim=(low, high))
        draw_stripes(axes)
        draw_notes(axes, bar.sounding, (bar.end_sec - bar.start_sec) / 200)
        axes.set_xticks([bar.start_sec, bar.end_sec], [f"{bar.start_sec:.2f}", f"{bar.end_sec:.2f} s"])
        axes.set_title(f"bar {bar.number}", fontsize=8, loc="left", pad=2)
        place = _TEXT_LEFT / _WIDTH, top / total
        figure.text(*place, "\n".join(lines), fontsize=7.5, family="monospace", va="top", parse_math=False)
        top -= height + _GAP
    picture = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        FigureCanvasAgg(figure).print_png(picture, metadata={"Software": None})
    write_whole(path, picture.getvalue())
    return Path(path)


def wrapped(words: Sequence[str], width: int) -> list[str]:
    """Words in lines of at most so many characters."""
    lines, line = [], ""
    for word in words:
        shown = {" ": "␣", "\n": "⏎"}.get(word, word)  # of CrayKH
        if line and len(line) + 1 + len(shown) > width:
            lines.append(line)
            line = ""
        line = f"{line} {shown}" if line else shown
    return [*lines, line] if line else lines
