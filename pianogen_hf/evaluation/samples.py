"""Whether a generated piece is music at all: what no listener would need to hear to know that something is wrong."""

from __future__ import annotations

import numpy as np

from pianogen_hf.tokenizers.notes import Notes

MIN_NOTES = 8
MIN_PITCHES = 4
MAX_SHARE_OF_ONE = 0.5  # of the notes, that are one and the same pitch
MAX_REST_SEC = 10.0  # without any note sounding
MAX_AT_ONCE = 40  # notes that begin within a moment; two hands have ten fingers
# Of 783 pieces of MAESTRO, ASAP, POP909 and others none had more than 24 notes a second or 9 sounding on average.
MAX_NOTES_PER_SEC = 30
MAX_SOUNDING = 16
_MOMENT_SEC = 0.02


def sample_faults(notes: Notes) -> list[str]:
    """What is wrong with a generated piece, in a few words each; an empty list if nothing is.

    Checked are: too few notes; too few different pitches; one pitch in most of the notes; long silence, also before the
    first note; a chord that no hands can play; too many notes a second, or sounding at a time; notes of no length;
    times that run backwards.
    """
    if len(notes) < MIN_NOTES:
        return [f"{len(notes)} notes"]
    faults = []
    _, counts = np.unique(notes["pitch"], return_counts=True)
    if len(counts) < MIN_PITCHES:
        faults.append(f"only {len(counts)} pitches")
    if counts.max() > MAX_SHARE_OF_ONE * len(notes):
        faults.append(f"one pitch is {counts.max() / len(notes):.0%} of the notes")
    onset, offset = notes.onset_sec, notes.offset_sec
    if onset.min() < 0 or (offset < onset).any():
        faults.append("negative times")
    if (offset <= onset).mean() > MAX_SHARE_OF_ONE:
        faults.append("most notes have no length")
    rests = np.append(onset, offset.max()) - np.maximum.accumulate(np.concatenate([[0.0], offset]))
    if rests.max() > MAX_REST_SEC:
        faults.append(f"{rests.max():.0f} s of silence")
    together = np.searchsorted(onset, onset + _MOMENT_SEC, side="right") - np.arange(len(onset))
    if together.max() > MAX_AT_ONCE:
        faults.append(f"{together.max()} notes at once")
    per_sec = len(notes) / max(offset.max() - onset.min(), _MOMENT_SEC)
    if per_sec > MAX_NOTES_PER_SEC:
        faults.append(f"{per_sec:.0f} notes a second")
    sounding = np.arange(1, len(onset) + 1) - np.searchsorted(np.sort(offset), onset, side="right")
    if sounding.mean() > MAX_SOUNDING:
        faults.append(f"{sounding.mean():.0f} notes sounding at a time")
    return faults
