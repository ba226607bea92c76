"""What a collection of pieces is like: counts, and how piece lengths, pitches and durations are distributed.

All are histograms over fixed bins, so that collections can be laid side by side and added up, whatever their size.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from pianogen_hf.evaluation.tables import table_lines
from pianogen_hf.tokenizers.notes import Notes

NUM_PITCHES = 128
# Edges of the bins. What lies beyond the outermost edges is counted in the outermost bins.
DURATION_EDGES_SEC = np.geomspace(0.01, 10**1.5, 43)  # 12 bins to a factor of 10
NOTE_COUNT_EDGES = np.geomspace(1, 10**6, 49)  # 8 bins to a factor of 10


def piece_histograms(notes: Notes) -> tuple[np.ndarray, np.ndarray]:
    """How often each pitch and each duration occurs in one piece.

    Returns:
        int64 of shape (128,), per pitch; and int64 of shape (42,), per bin of `DURATION_EDGES_SEC`. Durations are as
        written, without the sustain pedal.
    """
    pitches = np.bincount(notes["pitch"], minlength=NUM_PITCHES)
    return pitches, _histogram(notes.duration_sec, DURATION_EDGES_SEC)


def _histogram(values: np.ndarray, edges: np.ndarray) -> np.ndarray:
    return np.histogram(np.clip(values, edges[0], edges[-1]), edges)[0]


def corpus_statistics(
    pieces: Iterable[tuple[np.ndarray, np.ndarray]],
    num_notes: Sequence[int] | np.ndarray,
    seconds: Sequence[float] | np.ndarray,
    excluded_notes: int,
    num_unusable: int,
) -> dict[str, Any]:
    """Figures of one collection.

    Args:
        pieces: what `piece_histograms` gave for each piece that could be used.
        num_notes: notes of each of them.
        seconds: length of each of them.
        excluded_notes: notes of other instruments, which were left out.
        num_unusable: files that could not be used.

    Returns:
        JSON-able: pieces, unusable and its share of all files, notes, hours, notes_per_piece (median, smallest,
        largest), excluded_notes and their share of all notes, pitch_range (lowest, highest), median_duration_sec, and
        three histograms: note_count (pieces, over `NOTE_COUNT_EDGES`), pitch (notes, 128) and duration_sec (notes, over
        `DURATION_EDGES_SEC`). What there is none of is None.
    """
    counts = np.asarray(num_notes, dtype=np.int64)
    pitch, duration = np.zeros(NUM_PITCHES, dtype=np.int64), np.zeros(len(DURATION_EDGES_SEC) - 1, dtype=np.int64)
    for piece_pitch, piece_duration in pieces:
        pitch += piece_pitch
        duration += piece_duration
    used = np.flatnonzero(pitch)
    return {
        "pieces": len(counts),
        "unusable": num_unusable,
        "unusable_share": _share(num_unusable, len(counts) + num_unusable),
        "notes": int(counts.sum()),
        "hours": round(float(np.sum(seconds)) / 3600, 3),
        "notes_per_piece": {
            "median": float(np.median(counts)) if len(counts) else None,
            "smallest": int(counts.min()) if len(counts) else None,
            "largest": int(counts.max()) if len(counts) else None,
        },
        "excluded_notes": excluded_notes,
        "excluded_share": _share(excluded_notes, int(counts.sum()) + excluded_notes),
        "pitch_range": [int(used[0]), int(used[-1])] if len(used) else None,
        "median_duration_sec": _median_of_bins(duration, DURATION_EDGES_SEC),
        "histograms": {
            "note_count": _histogram(counts, NOTE_COUNT_EDGES).tolist(),
            "pitch": pitch.tolist(),
            "duration_sec": duration.tolist(),
        },
    }


def _share(part: int, whole: int) -> float:
    return round(part / whole, 6) if whole else 0.0


def _median_of_bins(counts: np.ndarray, edges: np.ndarray) -> float | None:
    """The median, interpolated within its bin on a logarithmic scale: right to a few per cent; None without values."""
    if not counts.sum():
        return None
    middle = counts.sum() / 2
    index = int(np.searchsorted(np.cumsum(counts), middle))
    inside = (middle - counts[:index].sum()) / counts[index]
    return round(float(edges[index] * (edges[index + 1] / edges[index]) ** inside), 4)


def markdown_table(statistics: dict[str, dict[str, Any]]) -> str:
    """One row for each collection.

    Args:
        statistics: what `corpus_statistics` gave, by name.
    """
    header = ("source", "pieces", "notes", "hours", "notes per piece", "pitches", "duration", "left out", "unusable")
    rows = [
        (
            name,
            f"{row['pieces']:,}",
            f"{row['notes']:,}",
            f"{row['hours']:,.1f}",
            _or_dash("{median:,.0f} ({smallest:,} to {largest:,})", row["notes_per_piece"], row["pieces"]),
            "-" if row["pitch_range"] is None else "{} to {}".format(*row["pitch_range"]),
            "-" if row["median_duration_sec"] is None else f"{row['median_duration_sec']:.3f} s",
            f"{row['excluded_share']:.1%} of notes",
            f"{row['unusable']:,} ({row['unusable_share']:.1%})",
        )
        for name, row in statistics.items()
    ]
    return "\n".join(table_lines(header, rows))


def _or_dash(text: str, values: dict[str, Any], is_there: int) -> str:
    return text.format(**values) if is_there else "-"
