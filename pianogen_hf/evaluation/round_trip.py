"""What an encoding loses: notes before and after tokenizing, compared."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np

from pianogen_hf.tokenizers.notes import Notes
from pianogen_hf.tokenizers.tokenization_notes import NoteTokenizer

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
        offset: of these, with their offset too. velocity: with onset, offset and velocity. tokens: ids written.
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


def round_trip(tokenizer: NoteTokenizer, notes: Notes) -> RoundTrip:
    """Encode and decode a piece and count what came back.

    The sustain pedal is folded into the reference where the scheme does so. Where the scheme does not keep leading
    silence, both sides begin with the first note that it can write. Schemes that count beats are compared at 120
    quarters a minute, whatever the tempo. A note that comes back at another onset counts as dropped and as added.

    Args:
        tokenizer: the scheme.
        notes: the piece.
    """
    ids = tokenizer.encode_notes(notes)
    decoded = tokenizer.decode_notes(ids)
    reference = notes if "pedal" in tokenizer.lost_fields else notes.with_sustain()
    before, after = _rows(tokenizer, reference), _rows(tokenizer, decoded)
    if not _keeps_start(tokenizer):
        writable = (before[:, 2] >= tokenizer.pitch_range[0]) & (before[:, 2] <= tokenizer.pitch_range[1])
        before[:, :2] -= before[writable, 0].min() if writable.any() else 0.0
        after[:, :2] -= after[:, 0].min() if len(after) else 0.0
    onset, offset, velocity = _matches(before, after)
    return RoundTrip(len(before), len(after), onset, offset, velocity, len(ids))


def _keeps_start(tokenizer: NoteTokenizer) -> bool:
    return "leading silence" not in tokenizer.lost_fields


def _rows(tokenizer: NoteTokenizer, notes: Notes) -> np.ndarray:
    """Onset and offset in seconds, pitch, velocity; float64 (num_notes, 4), by pitch and onset."""
    if tokenizer.time_unit == "beat":
        scale = _SECONDS_PER_QUARTER / notes.ticks_per_quarter
        onset, offset = notes["onset_tick"] * scale, notes.offset_tick * scale
    else:
        onset, offset = notes.onset_sec, notes.offset_sec
    rows = np.stack([onset, offset, notes["pitch"], notes["velocity"]], axis=1).astype(np.float64)
    return rows[np.lexsort([rows[:, 0], rows[:, 2]])]


def _matches(before: np.ndarray, after: np.ndarray) -> tuple[int, int, int]:
    """Notes found again, in order within each pitch: by onset; and offset; and velocity."""
    onset = offset = velocity = 0
    left = right = 0
    while left < len(before) and right < len(after):
        a, b = before[left], after[right]
        if a[2] != b[2] or abs(a[0] - b[0]) > ONSET_TOLERANCE_SEC + _ROUNDING_SEC:
            a_first = (a[2], a[0]) < (b[2], b[0])
            left, right = left + a_first, right + (not a_first)
            continue
        onset += 1
        offset_tolerance = max(OFFSET_TOLERANCE_SEC, OFFSET_TOLERANCE_SHARE * (a[1] - a[0])) + _ROUNDING_SEC
        if abs(a[1] - b[1]) <= offset_tolerance:
            offset += 1
            velocity += abs(a[3] - b[3]) <= VELOCITY_TOLERANCE
        left, right = left + 1, right + 1
    return onset, offset, int(velocity)
