"""What `pianogen evaluate` measured, as rows and sentences for the card."""

from __future__ import annotations

from typing import Any

from pianogen_hf.publishing.words import NOT_MEASURED, code, digits, fixed

_LIKELIHOOD = {  # name in a report: heading, digits after the point
    "bits_per_note": ("bits per note", 3),
    "standard_error": ("standard error", 3),
    "bits_per_second": ("bits per second", 2),
    "nats_per_event": ("nats per id or cell, without the end", 4),
    "accuracy": ("next-token accuracy", 4),
}


def evaluation_facts(label: str, record: dict[str, Any]) -> dict[str, Any]:
    """One evaluation.

    Args:
        label: "validation", "test", or the name of other data.
        record: what the command wrote of it.
    """
    likelihood, statistics = record.get("likelihood", {}), record.get("statistics", {})
    return {
        "label": label,
        "measured": _measured(record),
        "likelihood": _likelihood_rows(likelihood) if likelihood else [],
        "likelihood_headings": [heading for heading, _ in _LIKELIHOOD.values()],
        "notes": _likelihood_notes(likelihood) if likelihood else [],
        "statistics": _statistics_rows(statistics) if statistics else [],
        "statistics_settings": _settings(statistics["settings"]) if statistics else NOT_MEASURED,
        "round_trip": _round_trip(record["round_trip"]) if "round_trip" in record else NOT_MEASURED,
    }


def _measured(record: dict[str, Any]) -> str:
    measured = record.get("measured", {})
    days = ", ".join(record.get("looked_at", ())) or "on a day that was not recorded"
    return f"measured {days} with {code(measured.get('command', 'pianogen evaluate'))}, {measured.get('device', '')}"


def _likelihood_rows(likelihood: dict[str, Any]) -> list[tuple[str, ...]]:
    rows = {
        _windows(likelihood["sliding"], "that slide by"): likelihood["sliding"],
        _windows(likelihood["separate"], "side by side, by"): likelihood["separate"],
        "sliding, without pieces that share music with train": likelihood.get("clean") or {},
        "sliding, on the common grid": {
            "pieces": likelihood["sliding"]["pieces"],
            "bits_per_note": likelihood["common_grid"]["bits_per_note"],
        },
    }
    return [
        (words, digits(row.get("pieces")), *(fixed(row.get(name), places) for name, (_, places) in _LIKELIHOOD.items()))
        for words, row in rows.items()
    ]


def _windows(report: dict[str, Any], words: str) -> str:
    return f"windows of {report['context']['window']} ids {words} {report['context']['stride']}"


def _likelihood_notes(likelihood: dict[str, Any]) -> list[str]:
    grid, bound = likelihood["common_grid"], likelihood["sliding"]["bound"]
    fields = [field for field in ("onset", "end", "velocity") if field in grid["added"]]
    added = ", ".join(f"{fixed(grid['added'][field], 2)} for the {field}" for field in fields)
    unpaid = [f"{field} (but on the common grid)" if field in fields else field for field in grid["lost"]]
    notes = [
        f"The common grid ({grid['common_time_step_sec']} s, velocities in steps of {grid['common_velocity_step']:g}) "
        f"adds bits per note: {added}, to tell how far off each note comes back. "
        f"Not in the figures, because the encoding does not write it: {', '.join(unpaid) or 'nothing'}."
    ]
    if bound:
        notes.append(f"Bits are an upper bound: {bound['orders']} random masks per window, seed {bound['seed']}.")
    return notes


def _statistics_rows(statistics: dict[str, Any]) -> list[tuple[str, ...]]:
    rows = []
    for name, words in statistics["titles"]:
        made, real = statistics["generated"].get(name, {}), statistics["floor"].get(name, {})
        sets = [_mean(made, of) for of in ("", "reference_")]
        pairs = [f"{fixed(made.get(key), 2)} ({fixed(real.get(key), 2)})" for key in ("overlap", "kl")]
        rows.append((words, *sets, *pairs) if made else (words, *[NOT_MEASURED] * 4))
    return rows


def _mean(row: dict[str, Any], of: str) -> str:
    return f"{fixed(row.get(f'{of}mean'), 3)} ± {fixed(row.get(f'{of}deviation'), 3)}"


def _settings(settings: dict[str, Any]) -> str:
    return (
        "{num_samples} generated pieces against {heldout_pieces} held-out ones, the first {notes} notes of each, as "
        "the encoding keeps them; top_p {top_p}, seeds from {seed} on. In brackets, real pieces against the same: "
        "{floor_pieces} {floor}. What the encoding does not write is equal by construction."
    ).format_map(settings)


def _round_trip(found: dict[str, Any]) -> str:
    names = {
        "onset_f1": "by onset",
        "onset_offset_f1": "and offset",
        "onset_offset_velocity_f1": "and velocity",
    }
    parts = [f"{fixed(found.get(name), 4)} {words}" for name, words in names.items()]
    dropped = fixed(found.get("dropped_or_merged_percent"), 2)
    return f"{', '.join(parts)}; {dropped} per cent of the notes are dropped or merged"
