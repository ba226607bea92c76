"""Piano-roll pictures: time to the right, pitch upwards, the louder the darker.

A short piece is one row whose width follows its length; a longer one is broken into rows below one another, as lines of
a score are, so that a second keeps about the same width. Uses matplotlib's objects without pyplot, so nothing global is
touched and no display is needed.
"""

from __future__ import annotations

import io
import math
import os
import warnings
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import PolyCollection
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from pianogen_hf.tokenizers.files import write_whole
from pianogen_hf.tokenizers.notes import Notes

_DPI = 100
# Lengths in inches.
_MIN_WIDTH, _MAX_WIDTH = 7.0, 16.0
_LEFT, _RIGHT, _BOTTOM = 0.6, 0.25, 0.52
_TITLE_HEIGHT, _CAPTION_HEIGHT, _ROW_GAP = 0.3, 0.44, 0.44
_INCHES_PER_SEMITONE = 0.055
_INCHES_PER_SEC = 0.5
_MAX_SEC_PER_ROW = 30.0
_MAX_ROWS = 12  # beyond 6 minutes the rows hold more seconds rather than becoming more
_PLAIN_SEC = 120  # a longer piece is labelled in minutes and seconds
_MIN_SEMITONES = 24
_MIN_NOTE_WIDTH = 0.02  # inches; a grace note or a note of no length stays visible

_BLACK_KEYS = (1, 3, 6, 8, 10)
_INK, _FAINT_INK = "#2b2f36", "#7a808a"
_BLACK_KEY_STRIPE, _PAPER, _PROMPT = "#f1f2f5", "#ffffff", "#f2b233"
# Hues that stay apart for colour-blind readers; the first one serves where tracks are not told apart.
_TRACK_COLOURS = ("#1f5fb4", "#d2521c", "#12875a", "#9040a8", "#bf9a10", "#c2256b")
_SOFT, _LOUD = 20, 110  # velocities at which the colour is at its palest and its deepest
_TICK_STEPS_SEC = (0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600)


def save_piano_roll(
    notes: Notes,
    path: str | os.PathLike,
    title: str | None = None,
    prompt_end_sec: float | None = None,
    gap_end_sec: float = math.inf,
    around_sec: float = math.inf,
) -> Path:
    """Draw the notes as a piano roll and write it as PNG; equal input gives equal bytes.

    Two to six tracks get a colour each and a legend. Without notes the picture says so.

    Args:
        notes: what to draw; lengths as written, without the sustain pedal.
        path: the file to write, whole or not at all.
        title: a heading, any text.
        prompt_end_sec: where a prompt ends and its continuation begins, in seconds; the prompt's ground is tinted.
        gap_end_sec: where the prompt continues after a gap that was filled.
        around_sec: how much of the prompt before and after what is new is shown.

    Returns:
        The path written to.

    Raises:
        FileError: if the file can't be written.
    """
    new = None if prompt_end_sec is None else (prompt_end_sec, gap_end_sec)
    span = (0.0, notes.end_sec)
    if new is not None:
        start = math.floor(max(new[0] - around_sec, 0.0))
        span = (start if start < notes.end_sec else 0.0, min(new[1] + around_sec, notes.end_sec))
    figure = _figure(notes, _printable(title or ""), new, span)
    picture = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # a box stands for it, that will do
        # Without the version of matplotlib inside; a lower compression takes half the time and few more bytes.
        FigureCanvasAgg(figure).print_png(picture, metadata={"Software": None}, pil_kwargs={"compress_level": 3})
    write_whole(path, picture.getvalue())
    return Path(path)


def _printable(text: str, longest: int = 110) -> str:
    """The text on one line, without characters that no font can draw."""
    line = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return line if len(line) <= longest else line[: longest - 1] + "…"


def _figure(notes: Notes, title: str, new: tuple[float, float] | None, span: tuple[float, float]) -> Figure:
    """The picture of a span, in seconds; `new` is where what is new begins and ends."""
    row_starts, sec_per_row = _rows_sec(*span)
    low, high = pitch_limits(notes["pitch"][(notes.offset_sec >= span[0]) & (notes.onset_sec <= span[1])])
    width = min(max(_LEFT + _RIGHT + sec_per_row * _INCHES_PER_SEC, _MIN_WIDTH), _MAX_WIDTH)
    row_height = (high - low) * _INCHES_PER_SEMITONE
    header = _CAPTION_HEIGHT + _TITLE_HEIGHT * bool(title)
    height = header + len(row_starts) * (row_height + _ROW_GAP) - _ROW_GAP + _BOTTOM
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor=_PAPER)
    _draw_header(figure, notes, title, span)
    for row, start in enumerate(row_starts):
        bottom = height - header - (row + 1) * row_height - row * _ROW_GAP
        box = (_LEFT / width, bottom / height, (width - _LEFT - _RIGHT) / width, row_height / height)
        axes = figure.add_axes(box, xlim=(start, start + sec_per_row), ylim=(low, high))
        draw_stripes(axes)
        _draw_time(axes, notes.end_sec)
        if new is not None:
            _draw_prompt(axes, *new)
        draw_notes(axes, notes, sec_per_row * _MIN_NOTE_WIDTH / (width - _LEFT - _RIGHT))
    unit = "seconds" if notes.end_sec <= _PLAIN_SEC else "minutes:seconds"
    axes.set_xlabel(unit, color=_FAINT_INK, fontsize=8, loc="right", labelpad=2)
    if not len(notes):
        axes.text(0.5, 0.5, "no notes", transform=axes.transAxes, ha="center", va="center", fontsize=16, color=_INK)
    return figure


def _rows_sec(start_sec: float, end_sec: float) -> tuple[np.ndarray, float]:
    """Where each row begins, shape (num_rows,), and how long all rows are, in seconds."""
    length = end_sec - start_sec
    if length <= _MAX_SEC_PER_ROW:
        return np.full(1, start_sec), max(length * 1.01, 1.0)
    rows = min(math.ceil(length / _MAX_SEC_PER_ROW), _MAX_ROWS)
    sec_per_row = math.ceil(length / rows)
    return np.arange(start_sec, end_sec, sec_per_row, dtype=np.float64), float(sec_per_row)


def pitch_limits(pitch: np.ndarray) -> tuple[float, float]:
    """Lower and upper edge of the picture: the pitches with two keys of air, and never less than two octaves."""
    low, high = (int(pitch.min()) - 2, int(pitch.max()) + 2) if len(pitch) else (48, 72)
    missing = max(_MIN_SEMITONES - (high - low), 0)
    return low - missing // 2 - 0.5, high + (missing + 1) // 2 + 0.5


def _draw_header(figure: Figure, notes: Notes, title: str, span: tuple[float, float]) -> None:
    width, height = figure.get_size_inches()
    left = _LEFT / width
    if title:
        figure.text(
            left, 1 - 0.1 / height, title, fontsize=13, fontweight="bold", color=_INK, va="top", parse_math=False
        )
    middle = 1 - (_TITLE_HEIGHT * bool(title) + 0.42 * _CAPTION_HEIGHT) / height
    length = _clock(notes.end_sec, notes.end_sec) + " s" * (notes.end_sec <= _PLAIN_SEC)
    if len(notes):
        caption = f"{len(notes):,} notes · {length} · darker is louder"
        if span != (0.0, notes.end_sec):
            shown = [_clock(each, notes.end_sec) for each in span]
            caption += f" · shown: {shown[0]} to {shown[1]}"
        figure.text(left, middle, caption, fontsize=8, color=_FAINT_INK, va="center")
    names = [(_colour(notes, track), _track_name(notes, track)) for track in _told_apart(notes)]
    if names:
        # Names are set afterwards: the legend would drop one that begins with an underscore, and read $ as formulas.
        legend = figure.legend(
            handles=[Patch(facecolor=colour, label=str(i)) for i, (colour, _) in enumerate(names)],
            loc="center right",
            bbox_to_anchor=(1 - _RIGHT / width, middle),
            ncols=len(names),
            frameon=False,
            fontsize=8,
            handlelength=1.0,
            handleheight=0.8,
            handletextpad=0.4,
            columnspacing=1.2,
            borderaxespad=0,
            borderpad=0,
        )
        for text, (_, name) in zip(legend.get_texts(), names, strict=True):
            text.set(text=name, parse_math=False, color=_INK)


def _told_apart(notes: Notes) -> list[int]:
    """The tracks that get a colour of their own: all that have notes, if they are two to six."""
    tracks = np.unique(notes["track"]).tolist()
    return tracks if 2 <= len(tracks) <= len(_TRACK_COLOURS) else []


def _colour(notes: Notes, track: int) -> str:
    tracks = _told_apart(notes)
    return _TRACK_COLOURS[tracks.index(track) if tracks else 0]


def _track_name(notes: Notes, track: int) -> str:
    name = _printable(notes.track_names[track], longest=14) if track < len(notes.track_names) else ""
    return name or f"track {track + 1}"


def _rectangles(left: np.ndarray, right: np.ndarray, low: np.ndarray, high: np.ndarray, **style) -> PolyCollection:
    """Rectangles from their edges, arrays of shape (count,), as one artist: thousands are drawn in a moment."""
    x, y = np.stack([left, right, right, left], axis=1), np.stack([low, low, high, high], axis=1)
    return PolyCollection(np.stack([x, y], axis=2), **style)  # type: ignore[arg-type]  # arrays are its fast way


def draw_stripes(axes: Axes) -> None:
    """Stripes for the black keys, a line under each C and its name."""
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    keys = np.arange(math.ceil(low), math.floor(high) + 1)
    black = keys[np.isin(keys % 12, _BLACK_KEYS)]
    edges = np.full(len(black), left), np.full(len(black), right), black - 0.5, black + 0.5
    axes.add_collection(_rectangles(*edges, facecolors=_BLACK_KEY_STRIPE, linewidths=0, zorder=0))
    octaves = keys[keys % 12 == 0]
    axes.hlines(octaves - 0.5, left, right, colors="#cfd3da", linewidth=0.8, zorder=0.5)
    axes.set_yticks(octaves, [f"C{key // 12 - 1}" for key in octaves])
    axes.tick_params(length=0, labelsize=8, labelcolor=_FAINT_INK, pad=4)
    axes.set_facecolor(_PAPER)
    for side in ("left", "right", "top", "bottom"):
        axes.spines[side].set_color("#cfd3da")


def _clock(seconds: float, end_sec: float) -> str:
    """Seconds as text: plain in a short piece, minutes and seconds in a long one."""
    return f"{seconds:.3g}" if end_sec <= _PLAIN_SEC else f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


def _draw_time(axes: Axes, end_sec: float) -> None:
    """Faint lines at round times, with labels."""
    start, end = axes.get_xlim()
    step = next((step for step in _TICK_STEPS_SEC if (end - start) / step <= 16), (end - start) / 8)
    ticks = np.arange(math.ceil(start / step), math.floor(end / step) + 1) * step
    axes.set_xticks(ticks, [_clock(tick, end_sec) for tick in ticks])
    axes.vlines(ticks, *axes.get_ylim(), colors="#e3e6eb", linewidth=0.7, zorder=0.4)


def _draw_prompt(axes: Axes, new_start_sec: float, new_end_sec: float) -> None:
    """Tint the parts of the row that the prompt fills; a line and two words where what is new begins and ends."""
    start, end = axes.get_xlim()
    for left, right in ((start, min(new_start_sec, end)), (max(new_end_sec, start), end)):
        if left < right:
            axes.axvspan(left, right, color=_PROMPT, alpha=0.16, linewidth=0, zorder=0.6)
    new = "continuation" if math.isinf(new_end_sec) else "new"
    for border, before, after in ((new_start_sec, "prompt ", f" {new}"), (new_end_sec, f"{new} ", " prompt")):
        if not start <= border < end:
            continue
        axes.axvline(border, color="#c27c00", linewidth=1.4, zorder=3)
        place = (border - start) / (end - start)
        for word, side, room in ((before, "right", place), (after, "left", 1 - place)):
            if room > 0.1:
                axes.text(place, 1.01, word, transform=axes.transAxes, ha=side, fontsize=8, color="#9a6200")


def draw_notes(axes: Axes, notes: Notes, shortest_sec: float) -> None:
    """One rectangle per note that sounds within the row; none is narrower than shortest_sec."""
    start, end = axes.get_xlim()
    onset, offset = notes.onset_sec, np.maximum(notes.offset_sec, notes.onset_sec + shortest_sec)
    seen = np.flatnonzero((offset > start) & (onset < end))
    seen = seen[np.argsort(-notes["track"][seen], kind="stable")]  # the first track, mostly the melody, on top
    pitch = notes["pitch"][seen].astype(np.float64)
    colours = _note_colours(notes)[seen]
    style = {"facecolors": colours, "edgecolors": colours * 0.65, "linewidths": 0.6, "zorder": 2}
    axes.add_collection(_rectangles(onset[seen], offset[seen], pitch - 0.44, pitch + 0.44, **style))


def _note_colours(notes: Notes) -> np.ndarray:
    """RGB of each note, shape (num_notes, 3): hue by track, depth by velocity."""
    base = np.zeros((len(notes), 3))
    for track in np.unique(notes["track"]).tolist():
        base[notes["track"] == track] = to_rgb(_colour(notes, track))
    depth = np.clip((notes["velocity"] - _SOFT) / (_LOUD - _SOFT), 0, 1)[:, None]
    pale, deep = 0.4 * base + 0.6, 0.55 * base
    return np.where(depth < 0.5, pale + 2 * depth * (base - pale), base + (2 * depth - 1) * (deep - base))
