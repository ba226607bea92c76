"""Pictures of an evaluation: how features of generated and real pieces are distributed, and what pieces cost.

Uses matplotlib's objects without pyplot, so nothing global is touched and no display is needed.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pianogen_hf.tokenizers.files import write_whole

_DPI = 110
_COLUMNS, _WIDTH, _ROW_HEIGHT = 4, 13.0, 2.1  # inches
_INK, _FAINT_INK, _MADE, _REAL, _BOTH = "#2b2f36", "#7a808a", "#d2521c", "#1f5fb4", "#c9bfd6"


@dataclass(frozen=True)
class FeaturePlot:
    """One feature of two sets of pieces.

    Attributes:
        title: its name. note: said in the corner.
        made: values of the generated pieces. real: of the held-out ones.
        grid: where the densities stand. made_density: of the generated pieces. real_density: of the held-out ones.
    """

    title: str
    made: np.ndarray
    real: np.ndarray
    grid: np.ndarray
    made_density: np.ndarray
    real_density: np.ndarray
    note: str


def save_features_plot(features: Sequence[FeaturePlot], title: str, path: str | os.PathLike) -> Path:
    """Draw both densities of every feature, what they share filled in; equal input gives equal bytes.

    Args:
        features: one panel each.
        title: above all of them.
        path: the PNG to write, whole or not at all.

    Raises:
        ValueError: without any feature. FileError: if the file can't be written.
    """
    if not features:
        raise ValueError("there is no feature to draw")
    rows = -(-len(features) // _COLUMNS)
    figure = Figure(figsize=(_WIDTH, rows * _ROW_HEIGHT + 0.8), dpi=_DPI, facecolor="white", layout="constrained")
    panels = figure.subplots(rows, _COLUMNS, squeeze=False)
    for axes, feature in zip(panels.ravel(), features, strict=False):
        _draw_feature(axes, feature)
    for axes in panels.ravel()[len(features) :]:
        axes.set_axis_off()
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold", color=_INK)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper right", ncols=3, frameon=False, fontsize=9)
    return _save(figure, path)


def _draw_feature(axes: Axes, feature: FeaturePlot) -> None:
    shared = np.minimum(feature.made_density, feature.real_density)
    axes.fill_between(feature.grid, shared, color=_BOTH, linewidth=0, label="shared by both")
    axes.plot(feature.grid, feature.made_density, color=_MADE, linewidth=1.6, label="generated")
    axes.plot(feature.grid, feature.real_density, color=_REAL, linewidth=1.6, label="held out")
    top = 1.25 * max(float(feature.made_density.max()), float(feature.real_density.max()))
    axes.set_ylim(-0.12 * top, top)
    for values, color, height in ((feature.made, _MADE, -0.04), (feature.real, _REAL, -0.09)):
        axes.plot(values, np.full(len(values), height * top), "|", color=color, markersize=5, alpha=0.6)
    axes.set_title(feature.title, loc="left", fontsize=9, color=_INK)
    axes.text(0.98, 0.95, feature.note, transform=axes.transAxes, ha="right", va="top", fontsize=8, color=_FAINT_INK)
    _tidy(axes)


def save_bits_plot(bits_per_note: Mapping[str, np.ndarray], title: str, path: str | os.PathLike) -> Path:
    """Draw how many pieces cost how much, as stacked histograms; equal input gives equal bytes.

    Args:
        bits_per_note: by the name of a group of pieces, one number per piece.
        title: above.
        path: the PNG to write, whole or not at all.

    Raises:
        ValueError: without any piece. FileError: if the file can't be written.
    """
    groups = {name: np.asarray(values, dtype=np.float64) for name, values in bits_per_note.items() if len(values)}
    if not groups:
        raise ValueError("there is no piece to draw")
    figure = Figure(figsize=(7.5, 3.4), dpi=_DPI, facecolor="white", layout="constrained")
    axes = figure.subplots()
    everything = np.concatenate(list(groups.values()))
    edges = np.histogram_bin_edges(everything, bins=min(max(len(everything) // 3, 8), 40))
    labels = [f"{name} ({len(values)})" for name, values in groups.items()]
    axes.hist(
        list(groups.values()),
        edges.tolist(),
        stacked=True,
        label=labels,
        color=[_REAL, _MADE, _FAINT_INK][: len(groups)],
    )
    median = float(np.median(everything))
    axes.axvline(median, color=_INK, linewidth=1, linestyle=":", label=f"median {median:.2f}")
    axes.set_xlabel("bits per note of a piece", color=_FAINT_INK, fontsize=9)
    axes.set_ylabel("pieces", color=_FAINT_INK, fontsize=9)
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=_INK)
    axes.legend(frameon=False, fontsize=8)
    _tidy(axes, has_heights=True)
    return _save(figure, path)


def _tidy(axes: Axes, has_heights: bool = False) -> None:
    for side in ("top", "right") if has_heights else ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    if not has_heights:
        axes.set_yticks([])
    axes.tick_params(colors=_FAINT_INK, labelsize=8)


def _save(figure: Figure, path: str | os.PathLike) -> Path:
    picture = io.BytesIO()
    FigureCanvasAgg(figure).print_png(picture, metadata={"Software": None})
    write_whole(path, picture.getvalue())
    return Path(path)
