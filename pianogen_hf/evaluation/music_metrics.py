"""What a piece is like, in a few numbers, for telling generated music from written music.

Sources, where a definition is not this package's own:
    * Wu and Yang 2020, "The Jazz Transformer on the Front Line" (https://arxiv.org/abs/2008.01307), section 4:
      pitch-class entropy over 1 and 4 bars, grooving similarity.
    * Mogren 2016, "C-RNN-GAN" (https://arxiv.org/abs/1611.09904), section 4: scale consistency.
    * Dong et al. 2018, "MuseGAN" (https://arxiv.org/abs/1709.06298), section "Objective metrics": empty bars.
    * Dong et al. 2020, "MusPy" (https://arxiv.org/abs/2008.01951): polyphony, the exact form of scale consistency.
    * Yang and Lerch 2020 (online 2018), "On the evaluation of generative models in music", Neural Computing and
      Applications 32, section 3: pitch range, number of pitch classes, inter-onset intervals.

Drums are left out; the pedal is folded in by the caller if it is to count. Bars are those of the time signatures, of
four quarters where there are none: in a recording without a beat they are stretches of equal length, no more.
"""

from __future__ import annotations

import math

import numpy as np

from pianogen_hf.evaluation.corpus_statistics import DURATION_EDGES_SEC
from pianogen_hf.tokenizers.notes import Notes

GROOVE_POSITIONS = 64  # of a bar, as in the paper's sections of 4/4
MAX_BARS = 100_000  # a broken file may have its last note at the end of time
_MAJOR = np.array([1, 0, 1, 0, 1, 1, 0, 1, 0, 1, 0, 1], dtype=bool)
_SCALES = np.stack([np.roll(_MAJOR, root) for root in range(12)])  # natural minor scales have the same pitch classes

METRICS = {  # name: what it says, for tables and pictures
    "pitch_class_entropy_1": "pitch-class entropy, 1 bar (bits)",
    "pitch_class_entropy_4": "pitch-class entropy, 4 bars (bits)",
    "grooving_similarity": "grooving similarity, all bar pairs",
    "pitch_range": "pitch range (semitones)",
    "num_pitch_classes": "pitch classes",
    "polyphony": "polyphony (pitches at a time)",
    "scale_consistency": "scale consistency",
    "empty_bar_rate": "empty bars (share)",
    "note_density": "notes a second",
    "inter_onset_mean": "inter-onset interval, mean (s)",
    "inter_onset_variance": "inter-onset interval, variance (s²)",
    "velocity_mean": "velocity, mean",
    "velocity_variance": "velocity, variance",
    "duration_entropy": "duration entropy (bits)",
}


def piece_metrics(notes: Notes) -> dict[str, float]:
    """All metrics of one piece, by the names of `METRICS`; NaN where a piece is too short for one."""
    notes = notes.where(~notes["is_drum"])
    if not len(notes):
        return dict.fromkeys(METRICS, math.nan)
    bars = _Bars(notes)
    onsets = np.unique(notes.onset_sec)
    intervals = np.diff(onsets)
    velocity = notes["velocity"].astype(np.float64)
    seconds = notes.end_sec - float(onsets[0])
    return {
        "pitch_class_entropy_1": pitch_class_entropy(notes, 1),
        "pitch_class_entropy_4": pitch_class_entropy(notes, 4),
        "grooving_similarity": grooving_similarity(notes),
        "pitch_range": float(notes["pitch"].max() - notes["pitch"].min()),
        "num_pitch_classes": float(len(np.unique(notes["pitch"] % 12))),
        "polyphony": polyphony(notes),
        "scale_consistency": scale_consistency(notes),
        "empty_bar_rate": bars.empty_rate(),
        "note_density": len(notes) / seconds if seconds > 0 else math.nan,
        "inter_onset_mean": float(intervals.mean()) if len(intervals) else math.nan,
        "inter_onset_variance": float(intervals.var()) if len(intervals) else math.nan,
        "velocity_mean": float(velocity.mean()),
        "velocity_variance": float(velocity.var()),
        "duration_entropy": duration_entropy(notes),
    }


def pitch_class_entropy(notes: Notes, num_bars: int) -> float:
    """Entropy of the pitch classes that begin within some bars, in bits (Wu and Yang 2020, section 4.1).

    The mean over all windows of `num_bars` bars that hold a note, sliding by a bar; a shorter piece is one window. NaN
    without notes.

    Args:
        notes: the piece.
        num_bars: 1 for H1, 4 for H4.
    """
    bars = _Bars(notes)
    if bars.count == 0 or bars.count > MAX_BARS:
        return math.nan
    counts = np.zeros((bars.count + 1, 12))
    np.add.at(counts, (bars.of_onset + 1, notes["pitch"] % 12), 1)
    counts = np.cumsum(counts, axis=0)
    width = min(num_bars, bars.count)
    windows = counts[width:] - counts[:-width]
    return float(np.mean([_entropy(window) for window in windows if window.any()]))


def grooving_similarity(notes: Notes) -> float:
    """How alike the rhythms of two bars are, 0..1, the mean over all pairs of bars (Wu and Yang 2020, section 4.2).

    The rhythm of a bar is which of its 64 positions have an onset; two bars are alike in the positions in which both or
    neither have one. Bars before the first onset are left out, empty ones within the piece are not. NaN with fewer than
    two bars.
    """
    bars = _Bars(notes)
    if bars.count < 2:
        return math.nan
    places = np.unique(bars.of_onset * GROOVE_POSITIONS + bars.position(GROOVE_POSITIONS)) % GROOVE_POSITIONS
    with_onset = np.bincount(places, minlength=GROOVE_POSITIONS).astype(np.float64)  # bars, per position
    unlike = float((with_onset * (bars.count - with_onset)).sum())
    return 1 - unlike / (GROOVE_POSITIONS * bars.count * (bars.count - 1) / 2)


def polyphony(notes: Notes) -> float:
    """Pitches that sound at a time, the mean over the time in which any does (Dong et al. 2020). NaN in silence."""
    onset, offset = notes["onset_tick"].astype(np.int64), notes.offset_tick
    sounding = _covered(onset, offset)
    by_pitch = sum(_covered(onset[own], offset[own]) for own in (notes["pitch"] == each for each in range(128)))
    return by_pitch / sounding if sounding else math.nan


def scale_consistency(notes: Notes) -> float:
    """Largest share of the notes that one major or natural minor scale holds (Mogren 2016; Dong et al. 2020)."""
    counts = np.bincount(notes["pitch"] % 12, minlength=12)
    return float((_SCALES @ counts).max() / counts.sum()) if counts.sum() else math.nan


def duration_entropy(notes: Notes) -> float:
    """Entropy of the durations in seconds, in bits, over `DURATION_EDGES_SEC`: 12 bins to a factor of 10."""
    durations = np.clip(notes.duration_sec, DURATION_EDGES_SEC[0], DURATION_EDGES_SEC[-1])
    # A nudge, so that rounding does not spread notes of one length over two bins where they stand on an edge.
    return _entropy(np.histogram(durations * (1 + 1e-9), DURATION_EDGES_SEC)[0]) if len(notes) else math.nan


def _entropy(counts: np.ndarray) -> float:
    shares = counts[counts > 0] / counts.sum()
    return float(-(shares * np.log2(shares)).sum()) + 0.0  # no minus zero


def _covered(start: np.ndarray, end: np.ndarray) -> int:
    """Length of the union of intervals."""
    if not len(start):
        return 0
    order = np.argsort(start, kind="stable")
    start, end = start[order], np.maximum.accumulate(end[order])
    reached = np.concatenate([[start[0]], end[:-1]])
    return int(np.maximum(end - np.maximum(start, reached), 0).sum())


class _Bars:
    """Bars from the one of the first onset to the one in which the last note ends.

    Attributes:
        count: how many. of_onset: the bar of every onset, int64 (num_notes,), from 0.
    """

    def __init__(self, notes: Notes) -> None:
        self._notes = notes
        signatures = notes.time_signatures
        if not len(signatures) or signatures["tick"][0] > 0:  # four quarters are understood
            first = np.array([(0, 4, 4)], dtype=signatures.dtype)
            signatures = np.concatenate([first, signatures])
        self._start = signatures["tick"].astype(np.float64)
        quarters = 4 * signatures["numerator"].astype(np.float64) / np.maximum(signatures["denominator"], 1)
        self._length = np.maximum(quarters * notes.ticks_per_quarter, 1.0)
        # A signature begins a bar, wherever it stands.
        self._first = np.concatenate([[0], np.cumsum(np.ceil(np.diff(self._start) / self._length[:-1]))])
        onset = notes["onset_tick"].astype(np.int64)
        self.of_onset, self.count = np.zeros(0, dtype=np.int64), 0
        if len(notes):
            bar = self._bar(onset)
            self._last = self._bar(np.maximum(notes.offset_tick - 1, onset)) - bar.min()
            self.of_onset, self.count = bar - bar.min(), int(self._last.max()) + 1

    def _row(self, ticks: np.ndarray) -> np.ndarray:
        return np.searchsorted(self._start, ticks, side="right") - 1

    def _bar(self, ticks: np.ndarray) -> np.ndarray:
        row = self._row(ticks)
        return (self._first[row] + (ticks - self._start[row]) // self._length[row]).astype(np.int64)

    def position(self, parts: int) -> np.ndarray:
        """In which of equal parts of its bar each onset lies, int64 (num_notes,)."""
        ticks = self._notes["onset_tick"].astype(np.int64)
        row = self._row(ticks)
        return ((ticks - self._start[row]) % self._length[row] * parts // self._length[row]).astype(np.int64)

    def empty_rate(self) -> float:
        """Share of bars in which nothing sounds (Dong et al. 2018)."""
        return 1 - _covered(self.of_onset, self._last + 1) / self.count if self.count else math.nan
