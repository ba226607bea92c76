"""What `pianogen evaluate` measured, as Markdown for terminal, file and card. What is missing is said to be missing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pianogen_hf.evaluation.round_trip import RoundTrip
from pianogen_hf.evaluation.tables import table_lines
from pianogen_hf.records import NOT_MEASURED, code, digits, fixed

_ON_GRID = ("onset", "end", "velocity")  # what the common grid pays for


def markdown_report(name: str, label: str, record: Mapping[str, Any]) -> str:
    """All of one evaluation, as a document of its own.

    Args:
        name: the model.
        label: the pieces.
        record: what `pianogen evaluate` writes down.
    """
    parts = [f"# {name} on {label}"]
    for heading, lines in evaluation_sections(record).items():
        parts += [f"## {heading}", *lines]
    return "\n".join(parts) + "\n"


def evaluation_sections(record: Mapping[str, Any]) -> dict[str, list[str]]:
    """Lines of Markdown by heading, of what was measured."""
    renderers = {
        "likelihood": ("Likelihood", likelihood_lines),
        "statistics": ("Music statistics", statistics_lines),
        "copy_audit": ("Copying", audit_lines),
        "round_trip": ("Round trip of the encoding", round_trip_lines),
    }
    return {heading: lines(record[name]) for name, (heading, lines) in renderers.items() if record.get(name)}


def likelihood_lines(likelihood: Mapping[str, Any]) -> list[str]:
    """A table of every way to count, and what has to be known of it."""
    main, grid, parts = likelihood["sliding"], likelihood["common_grid"], likelihood["shares"]
    header = [
        "",
        "pieces",
        f"{'upper bound of ' if main['bound'] else ''}bits per note",
        "± (s.e.)",
        "bits per second",
        f"nats per {'cell' if likelihood['cells'] else 'token'}",
        "± (s.e.)",
        "accuracy",
    ]
    on_grid = f"on the common grid ({grid['common_time_step_sec']:g} s, velocity {grid['common_velocity_step']:g})"
    rows = [
        _likelihood_row(_windows(main), main),
        _likelihood_row(_windows(likelihood["separate"]), likelihood["separate"]),
        _likelihood_row("the first, without pieces related to train", likelihood["clean"] or {}),
        _bits_row(on_grid, main, grid["bits_per_note"]),
        _bits_row(f"{on_grid}, if the finer values were all equally likely", main, grid["uniform"]["bits_per_note"]),
        _bits_row("share: without velocity tokens", main, parts["without_velocity"]),
        _bits_row("share: pitch and onset", main, parts["pitch_and_onset"]),
    ]
    return [*table_lines(header, rows), "", *_likelihood_notes(likelihood)]


def _windows(report: Mapping[str, Any]) -> str:
    context = report["context"]
    memory = f", memory {context['memory']}" if context.get("memory") else ""
    return f"windows of {context['window']}, stride {context['stride']}{memory}"


def _likelihood_row(words: str, report: Mapping[str, Any]) -> list[str]:
    return [
        words,
        digits(report.get("pieces")),
        fixed(report.get("bits_per_note"), 3),
        fixed(report.get("standard_error"), 3),
        fixed(report.get("bits_per_second"), 2),
        fixed(report.get("nats_per_event"), 4),
        fixed(report.get("nats_per_event_standard_error"), 4),
        fixed(report.get("accuracy"), 4),
    ]


def _bits_row(words: str, report: Mapping[str, Any], bits_per_note: float | None) -> list[str]:
    return [words, digits(report["pieces"]), fixed(bits_per_note, 3), "", "", "", "", ""]


def _likelihood_notes(likelihood: Mapping[str, Any]) -> list[str]:
    bound, grid, parts = likelihood["sliding"]["bound"], likelihood["common_grid"], likelihood["shares"]
    added = ", ".join(f"{fixed(grid['added'][field], 2)} for the {field}" for field in _ON_GRID)
    most = ", ".join(fixed(grid["uniform"]["added"][field], 2) for field in _ON_GRID)
    lost = [f"{field} (but on the common grid)" if field in _ON_GRID else field for field in grid["lost"]]
    notes = [
        "Bits of all tokens, the end included, over the notes of the pieces as read; nats are without the end. "
        "Standard errors are over pieces.",
        f"The common grid adds, per note: {added}, to encode with an adaptive code how far off each note comes back; "
        f"{most} if the finer values were all equally likely. Lost by the encoding, and in no row: "
        f"{', '.join(lost) or 'nothing'}.",
        "Shares are the cost of those tokens given everything before them, no codelength of these fields alone"
        + (f"; what is missing can't be known, because {parts['why_not']}." if parts["why_not"] else "."),
    ]
    if bound:
        notes.append(
            f"The model fills places in any order: bits are an upper bound, estimated with {bound['orders']} "
            f"random masks per window (seed {bound['seed']}), the length of the piece included."
        )
    return notes


def statistics_lines(statistics: Mapping[str, Any]) -> list[str]:
    """A row per feature: both sets, and how much they overlap beside how much real pieces do."""
    header = ["feature", "generated", "held out", "overlap (real)", "KL, nats (real)", "overlap of distances (real)"]
    rows = []
    for name, words in statistics["titles"]:
        made, real = statistics["generated"].get(name), statistics["floor"].get(name, {})
        if made is None:
            rows.append([words, *[NOT_MEASURED] * (len(header) - 1)])
            continue
        sets = [f"{fixed(made[f'{of}mean'], 3)} ± {fixed(made[f'{of}deviation'], 3)}" for of in ("", "reference_")]
        keys = ("overlap", "kl", "distance_overlap")
        rows.append([words, *sets, *(f"{fixed(made.get(key), 2)} ({fixed(real.get(key), 2)})" for key in keys)])
    return [*table_lines(header, rows), "", _statistics_settings(statistics["settings"])]


def _statistics_settings(settings: Mapping[str, Any]) -> str:
    return (
        "{num_samples} generated pieces, {heldout_pieces} held-out ones, the first {notes} notes of each, as the "
        "encoding keeps them; top_p {top_p}, seeds from {seed} on. In brackets, real pieces against the same: "
        "{floor} ({floor_pieces}). What the encoding does not write is equal by construction."
    ).format_map(settings)


def audit_lines(audit: Mapping[str, Any]) -> list[str]:
    """How much stands in exact runs of train pieces, beside how much of held-out pieces does."""
    generated, comparison = audit["generated"], audit["comparison"]
    unit, runs = generated["unit"], comparison["longest_run"]
    rows = [
        [f"{length} {unit}", f"{row['generated']:.2%}", f"{row['heldout']:.2%}"]
        for length, row in comparison["coverage"].items()
    ]
    of_piece = f", of {code(generated['train_piece'])}" if generated["train_piece"] else ""
    verdict = f"**Alarm**: {'; '.join(comparison['reasons'])}." if comparison["alarm"] else "No alarm."
    return [
        *table_lines(["in exact runs of train pieces, of at least", "generated", "held out"], rows),
        "",
        f"The longest run is {runs['generated']} {unit}{of_piece}; held-out pieces reach {runs['heldout']}. {verdict}",
    ]


def round_trip_lines(found: Mapping[str, Any]) -> list[str]:
    """What the encoding keeps of the notes."""
    values = {name.replace("_", " "): found[name] for name in RoundTrip().report()}
    cells = [f"{value:.0f}" if value > 1000 else f"{value:.4g}" for value in values.values()]
    return [*table_lines(list(values), [cells]), "", f"Lost by design: {', '.join(found['lost_by_design'])}."]
