"""What an encoding loses: notes before and after tokenizing, compared."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, fields

import numpy as np

from pianogen_hf.evaluation.quantisation import COMMON_TIME_SEC, COMMON_VELOCITY
from pianogen_hf.tokenizers.notes import Notes
from pianogen_hf.tokenizers.notes_encoder import NotesEncoder

# The usual tolerances of transcription scores (Bay et al. 2009; mir_eval's defaults).
ONSET_TOLERANCE_SEC = 0.05
OFFSET_TOLERANCE_SEC = 0.05
OFFSET_TOLERANCE_SHARE = 0.2  # of the note's duration, where that is more
VELOCITY_TOLERANCE = 8
_ROUNDING_SEC = 1e-6  # so that a difference of exactly the tolerance is within it
_SECONDS_PER_QUARTER = 0.5  # schemes that count beats are compared at 120 quarters a minute: their tempo is lost


@dataclass(frozen=True)
class RoundTrip:
    """Counts of one or several round trips; they add up with `+`.

    Attributes:
        reference: notes before. decoded: notes after. onset: notes found again with their pitch and onset.
        offset: of these, with their offset too. velocity: with onset, offset and velocity. tokens: tokens written.
    """

    reference: int = 0
    decoded: int = 0
    onset: int = 0
    offset: int = 0
    velocity: int = 0
    tokens: int = 0

    def __add__(self, other: RoundTrip) -> RoundTrip:
        return RoundTrip(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))

    def report(self) -> dict[str, float]:
        """F1 per criterion, shares of dropped and of added notes in per cent, and tokens per note."""
        total = max(self.reference + self.decoded, 1)
        return {
            "notes": self.reference,
            "onset_f1": 2 * self.onset / total,
            "onset_offset_f1": 2 * self.offset / total,
            "onset_offset_velocity_f1": 2 * self.velocity / total,
            "dropped_or_merged_percent": 100 * (self.reference - self.onset) / max(self.reference, 1),
            "added_percent": 100 * (self.decoded - self.onset) / max(self.reference, 1),
            "tokens_per_note": self.tokens / max(self.reference, 1),
        }


def round_trip(tokenizer: NotesEncoder, notes: Notes) -> RoundTrip:
    """Encode and decode a piece and count what came back.

    The sustain pedal is folded into the reference where the scheme does so. Where the scheme does not keep leading
    silence, both sides begin with the first note that it can write. Schemes that count beats are compared at 120
    quarters a minute, whatever the tempo. A note that comes back at another onset counts as dropped and as added.

    Args:
        tokenizer: the scheme.
        notes: the piece.
    """
    before, after, found, num_ids = _aligned(tokenizer, notes)
    difference = np.abs(before[found[:, 0]] - after[found[:, 1]])
    length = before[found[:, 0], 1] - before[found[:, 0], 0]
    offset = difference[:, 1] <= np.maximum(OFFSET_TOLERANCE_SEC, OFFSET_TOLERANCE_SHARE * length) + _ROUNDING_SEC
    velocity = offset & (difference[:, 3] <= VELOCITY_TOLERANCE)
    return RoundTrip(len(before), len(after), len(found), int(offset.sum()), int(velocity.sum()), num_ids)


def residuals(tokenizer: NotesEncoder, notes: Notes) -> dict[str, Counter[int | None]]:
    """How far from their place the notes of a piece come back, in steps of the grid on which encodings are compared.

    Args:
        tokenizer: the scheme.
        notes: the piece.

    Returns:
        For onset, end and velocity the number of notes by difference; None stands for notes that are not found again.
        Of velocities that the scheme throws away, the difference to 0 of every note.
    """
    before, after, found, _ = _aligned(tokenizer, notes)
    steps = {"onset": COMMON_TIME_SEC, "end": COMMON_TIME_SEC, "velocity": COMMON_VELOCITY}
    counts: dict[str, Counter[int | None]] = {}
    for (field, step), column in zip(steps.items(), (0, 1, 3), strict=True):
        difference = after[found[:, 1], column] - before[found[:, 0], column]
        counts[field] = Counter(np.rint(difference / step).astype(int).tolist())
        counts[field][None] += len(before) - len(found)
    if "velocity" in tokenizer.lost_fields:
        counts["velocity"] = Counter(before[:, 3].astype(int).tolist())
    return counts


def _aligned(tokenizer: NotesEncoder, notes: Notes) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Rows before and after, the pairs of `_matches`, and how many tokens stood between."""
    ids = tokenizer.encode_notes(notes)
    decoded = tokenizer.decode_notes(ids)
    reference = notes if "pedal" in tokenizer.lost_fields else notes.with_sustain()
    before, after = _rows(tokenizer, reference), _rows(tokenizer, decoded)
    if not _keeps_start(tokenizer):
        writable = (before[:, 2] >= tokenizer.pitch_range[0]) & (before[:, 2] <= tokenizer.pitch_range[1])
        before[:, :2] -= before[writable, 0].min() if writable.any() else 0.0
        after[:, :2] -= after[:, 0].min() if len(after) else 0.0
    return before, after, _matches(before, after), len(ids)


def _keeps_start(tokenizer: NotesEncoder) -> bool:
    return "leading silence" not in tokenizer.lost_fields


def _rows(tokenizer: NotesEncoder, notes: Notes) -> np.ndarray:
    """Onset and offset in seconds, pitch, velocity; float64 (num_notes, 4), by pitch and onset."""
    if tokenizer.time_unit == "beat":
        scale = _SECONDS_PER_QUARTER / notes.ticks_per_quarter
        onset, offset = notes["onset_tick"] * scale, notes.offset_tick * scale
    else:
        onset, offset = notes.onset_sec, notes.offset_sec
    rows = np.stack([onset, offset, notes["pitch"], notes["velocity"]], axis=1).astype(np.float64)
    return rows[np.lexsort([rows[:, 0], rows[:, 2]])]


def _matches(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Rows of notes found again by pitch and onset, in order within each pitch: int64 (num_found, 2)."""
    found = []
    left = right = 0
    while left < len(before) and right < len(after):
        a, b = before[left], after[right]
        if a[2] == b[2] and abs(a[0] - b[0]) <= ONSET_TOLERANCE_SEC + _ROUNDING_SEC:
            found.append((left, right))
            left, right = left + 1, right + 1
        else:
            a_first = (a[2], a[0]) < (b[2], b[0])
            left, right = left + a_first, right + (not a_first)
    return np.array(found, dtype=np.int64).reshape(-1, 2)
