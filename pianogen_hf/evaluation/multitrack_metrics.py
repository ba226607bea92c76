"""The three figures by which the Multitrack Music Transformer is judged, so that papers' numbers can be compared.

Dong et al. 2023 (arXiv 2207.06983), section 4; definitions of muspy (Dong et al. 2020). They look at the first 64 beats
on a grid of 12 steps a beat, take every bar for four beats, and leave out drums. `music_metrics.py` has the package's
own, which know the metre.
"""

from __future__ import annotations

import math

import numpy as np

from pianogen_hf.tokenizers.notes import Notes

_STEPS_PER_BEAT, _STEPS_PER_BAR, _NUM_STEPS = 12, 48, 768
_MAJOR, _MINOR = (0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10)
_SCALES = np.zeros((24, 12), dtype=bool)
for _root in range(12):
    _SCALES[_root, [(_root + step) % 12 for step in _MAJOR]] = True
    _SCALES[12 + _root, [(_root + step) % 12 for step in _MINOR]] = True


def multitrack_metrics(notes: Notes, legacy: bool = False) -> dict[str, float]:
    """Figures of one piece.

    Args:
        notes: of all instruments.
        legacy: whether a piece that ends on a bar line has an empty bar more, as in the original: 16 equal bars then
            have a groove consistency of 0.9948 instead of 1.

    Returns:
        `pitch_class_entropy`, in bits; `scale_consistency`, the largest share of notes within one of the major and
        minor scales; `groove_consistency`, one less the share of steps at which neighbouring bars differ in whether a
        note begins. NaN where there is nothing to measure: no note, or a single bar.
    """
    table = notes.table[~notes["is_drum"]]
    per_tick = _STEPS_PER_BEAT / notes.ticks_per_quarter
    onset = np.rint(table["onset_tick"] * per_tick).astype(np.int64)
    end = np.rint((table["onset_tick"].astype(np.int64) + table["duration_tick"]) * per_tick).astype(np.int64)
    kept = onset < _NUM_STEPS
    onset, end, pitch = onset[kept], np.clip(end[kept], onset[kept] + 1, _NUM_STEPS), table["pitch"][kept]
    if not len(onset):
        return dict.fromkeys(("pitch_class_entropy", "scale_consistency", "groove_consistency"), math.nan)
    shares = np.bincount(pitch % 12, minlength=12) / len(pitch)
    sounding = shares[shares > 0]
    return {
        "pitch_class_entropy": float(-(sounding * np.log2(sounding)).sum()),
        "scale_consistency": float((_SCALES @ shares).max()),
        "groove_consistency": _groove_consistency(onset, int(end.max()), legacy),
    }


def _groove_consistency(onset: np.ndarray, end: int, legacy: bool) -> float:
    num_bars = end // _STEPS_PER_BAR + 1 if legacy else -(-end // _STEPS_PER_BAR)
    if num_bars < 2:
        return math.nan
    begins = np.zeros((num_bars, _STEPS_PER_BAR), dtype=bool)
    begins[onset // _STEPS_PER_BAR, onset % _STEPS_PER_BAR] = True
    return float(1 - np.count_nonzero(begins[1:] != begins[:-1]) / (_STEPS_PER_BAR * (num_bars - 1)))
