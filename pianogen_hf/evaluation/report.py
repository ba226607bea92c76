"""What was measured, as Markdown for a terminal, a file or a card. What is missing is said to be missing."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pianogen_hf.evaluation.music_metrics import METRICS
from pianogen_hf.evaluation.round_trip import RoundTrip
from pianogen_hf.evaluation.tables import table_lines

NOT_MEASURED = "not measured"
_ON_GRID = ("onset", "end", "velocity")  # what the common grid pays for


def markdown_report(name: str, label: str, record: Mapping[str, Any]) -> str:
    """All of one evaluation: `label` names the pieces, `record` has what `pianogen evaluate` writes down."""
    parts = [f"# {name} on {label}"]
    if record.get("likelihood"):
        parts += ["## Likelihood", *likelihood_lines(record["likelihood"])]
    if record.get("statistics"):
        parts += ["## Music statistics", *statistics_lines(record["statistics"])]
    if record.get("copy_audit"):
        parts += ["## Copying", *_audit_lines(record["copy_audit"])]
    if record.get("round_trip"):
        parts += ["## Round trip of the encoding", *_round_trip_lines(record["round_trip"])]
    return "\n".join(parts) + "\n"


def likelihood_lines(likelihood: Mapping[str, Any]) -> list[str]:
    """A table of every way to count, and what has to be known of it."""
    main, is_cells = likelihood["sliding"], likelihood["cells"]
    mark = "upper bound of " if main["bound"] else ""
    unit = "cell" if is_cells else "id"
    header = [
        "",
        "pieces",
        f"{mark}bits per note",
        "± (s.e.)",
        "bits per second",
        f"nats per {unit}",
        "± (s.e.)",
        "accuracy",
    ]
    rows = [_likelihood_row(_windows(main, "that slide by"), main)]
    rows.append(_likelihood_row(_windows(likelihood["separate"], "side by side, by"), likelihood["separate"]))
    clean = likelihood["clean"]
    rows.append(_likelihood_row("sliding, without pieces related to train", clean or {}))
    grid = likelihood["common_grid"]
    for words, found in (("", grid), (", if the finer values were all equally likely", grid["uniform"])):
        cells = [str(main["pieces"]), _fixed(found["bits_per_note"], 3), "", "", "", "", ""]
        rows.append([_grid_words(grid) + words, *cells])
    parts = likelihood["shares"]
    for key, words in (("without_velocity", "without the ids of velocities"), ("pitch_and_onset", "pitch and onset")):
        rows.append([f"share: {words}", str(main["pieces"]), _fixed(parts[key], 3), "", "", "", "", ""])
    return [*table_lines(header, rows), "", *_likelihood_notes(likelihood)]


def _windows(report: Mapping[str, Any], words: str) -> str:
    return f"windows of {report['context']['window']} {words} {report['context']['stride']}"


def _likelihood_row(words: str, report: Mapping[str, Any]) -> list[str]:
    return [
        words,
        str(report.get("pieces", NOT_MEASURED)),
        _fixed(report.get("bits_per_note"), 3),
        _fixed(report.get("standard_error"), 3),
        _fixed(report.get("bits_per_second"), 2),
        _fixed(report.get("nats_per_event"), 4),
        _fixed(report.get("nats_per_event_standard_error"), 4),
        _fixed(report.get("accuracy"), 4),
    ]


def _grid_words(grid: Mapping[str, Any]) -> str:
    common = f"{grid['common_time_step_sec']:g} s, velocity {grid['common_velocity_step']:g}"
    return f"on the common grid ({common})"


def _unpaid(grid: Mapping[str, Any]) -> list[str]:
    return [f"{field} (but on the common grid)" if field in _ON_GRID else field for field in grid["lost"]]


def _likelihood_notes(likelihood: Mapping[str, Any]) -> list[str]:
    main, grid, parts = likelihood["sliding"], likelihood["common_grid"], likelihood["shares"]
    added = ", ".join(f"{_fixed(grid['added'][field], 2)} for the {field}" for field in _ON_GRID)
    most = ", ".join(_fixed(grid["uniform"]["added"][field], 2) for field in _ON_GRID)
    notes = [
        "Bits of all ids, the end included, over the notes of the pieces as read; nats are without the end. Standard "
        "errors are over pieces.",
        f"The common grid adds, per note: {added}, to tell by an adaptive code how far off each note comes back; "
        f"{most} if the finer values were all equally likely. Lost by the encoding, and in no row: "
        f"{', '.join(_unpaid(grid)) or 'nothing'}.",
        "Shares are the cost of those ids given everything before them, no codelength of these fields alone"
        + (f"; what is missing can't be told, because {parts['why_not']}." if parts["why_not"] else "."),
    ]
    if main["bound"]:
        notes.append(
            f"The model fills places in any order: bits are an upper bound, estimated with {main['bound']['orders']} "
            f"random masks per window (seed {main['bound']['seed']}), with what it takes to tell the number of ids."
        )
    return notes


def statistics_lines(statistics: Mapping[str, Any]) -> list[str]:
    """A row per feature: both sets, and how much they overlap beside how much real pieces do."""
    header = ["feature", "generated", "held out", "overlap (real)", "KL (real)", "overlap of distances (real)"]
    rows = []
    for name, words in METRICS.items():
        made, real = statistics["generated"].get(name), statistics["floor"].get(name, {})
        if made is None:
            rows.append([words, *[NOT_MEASURED] * (len(header) - 1)])
            continue
        pairs = [
            f"{_fixed(made.get(key), 2)} ({_fixed(real.get(key), 2)})" for key in ("overlap", "kl", "distance_overlap")
        ]
        sets = [f"{made[f'{of}mean']:.3g} ± {made[f'{of}deviation']:.2g}" for of in ("", "reference_")]
        rows.append([words, *sets, *pairs])
    return [*table_lines(header, rows), "", statistics_words(statistics["settings"])]


def statistics_words(settings: Mapping[str, Any]) -> str:
    """How the figures came about."""
    return (
        "{num_samples} generated pieces, {heldout_pieces} held-out ones, the first {notes} notes of each, as the "
        "encoding keeps them; top_p {top_p}, seeds from {seed} on. Real against real: {floor_pieces} {floor}. What the "
        "encoding does not write is equal by construction."
    ).format_map(settings)


def _audit_lines(audit: Mapping[str, Any]) -> list[str]:
    unit, comparison = audit["generated"]["unit"], audit["comparison"]
    rows = [
        [f"{length} {unit}", f"{row['generated']:.2%}", f"{row['heldout']:.2%}"]
        for length, row in comparison["coverage"].items()
    ]
    runs = comparison["longest_run"]
    verdict = "ALARM: " + "; ".join(comparison["reasons"]) if comparison["alarm"] else "No alarm."
    return [
        *table_lines(["covered by exact train runs of at least", "generated", "held out"], rows),
        "",
        f"Longest run: {runs['generated']} {unit}; in held-out pieces {runs['heldout']}. {verdict}",
    ]


def _round_trip_lines(found: Mapping[str, Any]) -> list[str]:
    columns = {name: found[name] for name in RoundTrip().report()}
    cells = [f"{value:.0f}" if value > 1000 else f"{value:.4g}" for value in columns.values()]
    table = table_lines([name.replace("_", " ") for name in columns], [cells])
    return [*table, "", f"Lost by design: {', '.join(found['lost_by_design'])}."]


def _fixed(value: Any, digits: int) -> str:
    is_measured = isinstance(value, int | float) and math.isfinite(value)
    return f"{value:.{digits}f}" if is_measured else NOT_MEASURED
