"""Loss curves of several models in one picture: over the notes they have seen, and over their seconds of training.

Uses matplotlib's objects without pyplot, so nothing global is touched and no display is needed.
"""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

from pianogen_hf.tokenizers.files import write_whole

_DPI = 110
_SIZE = (12.0, 4.6)  # inches
_INK, _FAINT_INK, _GRID = "#2b2f36", "#6a707a", "#e3e6eb"
# Colours that stay apart for colour-blind readers (Okabe and Ito 2008), then again with another dash.
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#2b2f36")
_DASHES = ("-", "--", ":")
_UNITS = {"notes": "notes seen", "seconds": "seconds of training"}

Curve = Mapping[str, Sequence[float]]


def save_loss_curves(curves: Mapping[str, Mapping[str, Curve]], path: str | os.PathLike) -> Path:
    """Draw the curves and write the picture as PNG; equal input gives equal bytes.

    Args:
        curves: by name of the model its `train` and `validation` curve, each with `notes`, `seconds` and `bits` (per
            note), equally long. A validation curve may be empty.
        path: the file to write, whole or not at all.

    Returns:
        The path written to.

    Raises:
        FileError: if the file can't be written.
    """
    figure = Figure(figsize=_SIZE, dpi=_DPI, facecolor="white")
    for number, unit in enumerate(_UNITS):
        axes = figure.add_axes((0.055 + number * 0.415, 0.12, 0.375, 0.78))
        _draw(axes, curves, unit)
        title = f"bits per note, own grid, over {_UNITS[unit]}"
        axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=_INK, pad=8)
    _draw_legend(figure, axes)
    picture = io.BytesIO()
    FigureCanvasAgg(figure).print_png(picture, metadata={"Software": None})
    write_whole(path, picture.getvalue())
    return Path(path)


def _draw(axes: Axes, curves: Mapping[str, Mapping[str, Curve]], unit: str) -> None:
    for number, (name, each) in enumerate(curves.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        dash = _DASHES[number // len(_COLOURS) % len(_DASHES)]
        train, validation = each["train"], each["validation"]
        axes.plot(train[unit], train["bits"], color=colour, linestyle=dash, linewidth=1.1, alpha=0.55)
        axes.plot(
            validation[unit], validation["bits"], color=colour, linestyle=dash, linewidth=1.8, marker="o", markersize=4
        )
        axes.plot([], [], color=colour, linestyle=dash, linewidth=1.8, label=f" {name}")
    axes.set_xscale("symlog", linthresh=_first(curves, unit), linscale=0.2)
    axes.set_yscale("log")
    for axis, limits in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        axis.set_ticks(_ticks(*limits))
        axis.set_major_formatter(FuncFormatter(_short))
        axis.set_minor_formatter(NullFormatter())
    axes.grid(which="major", color=_GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0, labelsize=8.5, labelcolor=_FAINT_INK)
    for side in ("left", "right", "top"):
        axes.spines[side].set_visible(False)
    axes.spines["bottom"].set_color("#b9bec7")


def _first(curves: Mapping[str, Mapping[str, Curve]], unit: str) -> float:
    """The smallest place on the axis above 0."""
    values = [value for each in curves.values() for curve in each.values() for value in curve[unit] if value > 0]
    return min(values, default=1.0)


def _ticks(low: float, high: float) -> list[float]:
    """Round numbers on a logarithmic axis, some six of them."""
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8), tuple(step / 10 for step in range(10, 100, 2))):
        ticks = [step * 10.0**power for power in range(-3, 12) for step in steps]
        ticks = [tick for tick in ticks if low <= tick <= high]
        if len(ticks) >= 5:
            break
    return ticks


def _short(value: float, _: object) -> str:
    if value >= 1e6:
        return f"{value / 1e6:g} M"
    return f"{value / 1e3:g} k" if value >= 1e4 else f"{value:g}"


def _draw_legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="upper left", bbox_to_anchor=(0.868, 0.93), frameon=False, fontsize=9, labelcolor=_INK
    )
    figure.text(
        0.875, 0.12, "thick: validation\nthin: training", fontsize=8.5, color=_FAINT_INK, va="bottom", linespacing=1.5
    )
