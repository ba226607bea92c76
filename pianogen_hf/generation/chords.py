"""Chords: read from text, found in music, and asked of new notes.

Chords are found beat by beat: templates are compared with how long each pitch class sounds, with the bass on the side
of its root, and the Viterbi algorithm weighs that against changing chords too often, above all within a bar. Templates
and Viterbi are how the field does it since Sheh and Ellis 2003, "Chord Segmentation and Recognition using EM-Trained
Hidden Markov Models"; the figures here are set by hand.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pianogen_hf.generation.new_notes import GenerationError
from pianogen_hf.generation.passages import bar_ticks
from pianogen_hf.models.note_controls import PITCH_NAMES
from pianogen_hf.tokenizers.notes import Notes

_SEMITONES = {  # above the root, by what is written behind it
    "": (0, 4, 7),
    "m": (0, 3, 7),
    "7": (0, 4, 7, 10),
    "maj7": (0, 4, 7, 11),
    "m7": (0, 3, 7, 10),
    "mmaj7": (0, 3, 7, 11),
    "6": (0, 4, 7, 9),
    "m6": (0, 3, 7, 9),
    "dim": (0, 3, 6),
    "dim7": (0, 3, 6, 9),
    "m7b5": (0, 3, 6, 10),
    "aug": (0, 4, 8),
    "aug7": (0, 4, 8, 10),
    "sus2": (0, 2, 7),
    "sus4": (0, 5, 7),
    "7sus4": (0, 5, 7, 10),
    "add9": (0, 2, 4, 7),
    "9": (0, 2, 4, 7, 10),
    "maj9": (0, 2, 4, 7, 11),
    "m9": (0, 2, 3, 7, 10),
    "7b9": (0, 1, 4, 7, 10),
    "7#9": (0, 3, 4, 7, 10),
    "11": (0, 2, 4, 5, 7, 10),
    "m11": (0, 2, 3, 5, 7, 10),
    "13": (0, 2, 4, 7, 9, 10),
    "5": (0, 7),
}
_SAME = {  # other ways to write it
    "maj": "",
    "M": "",
    "major": "",
    "min": "m",
    "minor": "m",
    "-": "m",
    "M7": "maj7",
    "Δ": "maj7",
    "Δ7": "maj7",
    "j7": "maj7",
    "min7": "m7",
    "-7": "m7",
    "mM7": "mmaj7",
    "o": "dim",
    "°": "dim",
    "o7": "dim7",
    "°7": "dim7",
    "ø": "m7b5",
    "ø7": "m7b5",
    "-7b5": "m7b5",
    "+": "aug",
    "+7": "aug7",
    "7#5": "aug7",
    "sus": "sus4",
    "M9": "maj9",
}
FOUND = ("", "m", "7", "m7", "maj7", "dim", "aug")  # what is looked for in music
_SILENT = (".", "%", "/")  # the chord before continues
_NO_CHORD = ("N.C.", "NC", "-")

# Of what sounds in a beat: the share that is expected on tones of the chord, and how much a whole beat weighs.
_ON_CHORD, _BEAT_WEIGHT = 0.9, 6.0
_BASS_BONUS = 1.0  # for a root in the bass
_CHANGE, _CHANGE_IN_BAR = 1.5, 3.0  # what a change of chords costs at the beginning of a bar and within one


@dataclass(frozen=True)
class Chord:
    """A chord.

    Attributes:
        root: pitch class, 0 for C.
        quality: "m7" and such, as it is written behind the root.
        bass: pitch class of what lies lowest, if that is not the root.
    """

    root: int
    quality: str = ""
    bass: int | None = None

    def __str__(self) -> str:
        below = "" if self.bass is None else f"/{PITCH_NAMES[self.bass]}"
        return f"{PITCH_NAMES[self.root]}{self.quality}{below}"

    @property
    def pitch_classes(self) -> np.ndarray:
        """Which pitch classes belong to it, bool, shape (12,)."""
        mask = np.zeros(12, dtype=bool)
        mask[[(self.root + each) % 12 for each in _SEMITONES[self.quality]]] = True
        if self.bass is not None:
            mask[self.bass] = True
        return mask


@dataclass(frozen=True)
class ChordTrack:
    """Chords one after the other, which are repeated when they are over.

    Attributes:
        start_quarter: where each begins, in quarters from the beginning of the first, shape (num_chords,).
        chords: the chords, None where there is none.
        num_quarters: how long all of them last.
    """

    start_quarter: np.ndarray
    chords: tuple[Chord | None, ...]
    num_quarters: float

    def at(self, quarter: float) -> Chord | None:
        """The chord that sounds so many quarters after the beginning; None before it, or where there is none."""
        if quarter < -1e-6:
            return None
        place = (quarter + 1e-6) % self.num_quarters
        return self.chords[int(np.searchsorted(self.start_quarter, place, side="right")) - 1]

    def __str__(self) -> str:
        return " ".join("N.C." if chord is None else str(chord) for chord in self.chords)


def chord_named(name: str) -> Chord | None:
    """A chord by its symbol; None for "N.C.".

    Raises:
        GenerationError: if there is no such chord.
    """
    if name in _NO_CHORD:
        return None
    match = re.fullmatch(r"([A-G])([#b♯♭]?)([^/]*)(?:/([A-G])([#b♯♭]?))?", name)
    if match is None or _SAME.get(match[3], match[3]) not in _SEMITONES:
        raise GenerationError(f"{name!r} is no chord: say C, Cm7, F#dim, Bb7, G/B ... or N.C. for none")
    letter, accidental, quality, bass, bass_accidental = match.groups()
    return Chord(
        _pitch_class(letter, accidental),
        _SAME.get(quality, quality),
        None if bass is None else _pitch_class(bass, bass_accidental),
    )


def chords_named(text: str, quarters_per_bar: float = 4.0) -> ChordTrack:
    """Chords of text such as "Cm7 | Fm7 G7 | % | Cm": a bar between bars' lines, which its chords share evenly.

    Args:
        text: the chords; "%" or "." holds the one before, "N.C." is none.
        quarters_per_bar: how long a bar is.

    Raises:
        GenerationError: if one is no chord, or there are none.
    """
    bars = [bar.split() for bar in text.strip().strip("|").split("|")]
    if not any(bars):
        raise GenerationError('there are no chords: say "Cm7 | Fm7 | G7 | Cm", a bar between two lines')
    starts: list[float] = []
    chords: list[Chord | None] = []
    for number, bar in enumerate(bars):
        for index, name in enumerate(bar):
            starts.append((number + index / len(bar)) * quarters_per_bar)
            chords.append((chords[-1] if chords else None) if name in _SILENT else chord_named(name))
    if starts[0] > 0:
        starts.insert(0, 0.0)
        chords.insert(0, None)
    return ChordTrack(np.array(starts), tuple(chords), len(bars) * quarters_per_bar)


def chords_of(notes: Notes) -> ChordTrack:
    """The chords of a piece, a beat being a quarter.

    Raises:
        GenerationError: if it has no notes.
    """
    heard = notes.where(~notes["is_drum"]).with_sustain()
    if not len(heard):
        raise GenerationError("there are no chords in a piece without notes")
    sounding, bass = _beats(heard)
    candidates = [None, *(Chord(root, quality) for quality in FOUND for root in range(12))]
    path = _viterbi(_fit(sounding, bass, candidates), _change_costs(heard, len(sounding)))
    changes = np.flatnonzero(np.diff(path, prepend=-1) != 0)
    return ChordTrack(changes.astype(float), tuple(candidates[index] for index in path[changes]), float(len(path)))


def chord_penalty(track: ChordTrack, to_quarter: Callable[[float], float], weight: float) -> Callable:
    """How much less likely pitches become at a time: a function from seconds to nats, shape (128,).

    Args:
        track: the chords.
        to_quarter: from seconds to quarters after the beginning of the chords.
        weight: nats that a pitch costs which does not belong to the chord.
    """
    classes = np.arange(128) % 12

    def penalty(onset_sec: float) -> np.ndarray:
        chord = track.at(to_quarter(onset_sec))
        if chord is None:
            return np.zeros(128, dtype=np.float32)
        return np.where(chord.pitch_classes[classes], 0.0, weight).astype(np.float32)

    return penalty


# How chords are found ------------------------------------------------------------------------------------------------


def _beats(notes: Notes) -> tuple[np.ndarray, np.ndarray]:
    """How long each pitch class sounds in each beat, as shares of all that sounds, (num_beats, 12); its bass or -1."""
    unit = notes.ticks_per_quarter
    num_beats = -(-notes.end_tick // unit)
    sounding, lowest = np.zeros((num_beats, 12)), np.full(num_beats, 128)
    for onset, offset, pitch in zip(notes["onset_tick"], notes.offset_tick, notes["pitch"], strict=True):
        first, last = int(onset) // unit, min(-(-int(offset) // unit), num_beats)
        beats = np.arange(first, last)
        within = np.minimum(offset, (beats + 1) * unit) - np.maximum(onset, beats * unit)
        sounding[beats, pitch % 12] += within
        long = beats[within * 4 >= unit]
        lowest[long] = np.minimum(lowest[long], pitch)
    totals = sounding.sum(axis=1, keepdims=True)
    return sounding / np.maximum(totals, 1), np.where(lowest < 128, lowest % 12, -1)


def _fit(sounding: np.ndarray, bass: np.ndarray, candidates: list[Chord | None]) -> np.ndarray:
    """How well each candidate fits each beat, in nats, shape (num_beats, num_candidates)."""
    fit = np.zeros((len(sounding), len(candidates)))
    for index, chord in enumerate(candidates):
        if chord is None:  # everything is as likely
            fit[:, index] = _BEAT_WEIGHT * sounding.sum(axis=1) * np.log(1 / 12)
            continue
        inside = chord.pitch_classes
        expected = np.where(inside, _ON_CHORD / inside.sum(), (1 - _ON_CHORD) / (~inside).sum())
        fit[:, index] = _BEAT_WEIGHT * (sounding @ np.log(expected)) + _BASS_BONUS * (bass == chord.root)
    return fit


def _change_costs(notes: Notes, num_beats: int) -> np.ndarray:
    """What it costs to change chords before each beat, shape (num_beats,)."""
    starts = bar_ticks(notes) / notes.ticks_per_quarter
    return np.where(np.isin(np.arange(num_beats), starts), _CHANGE, _CHANGE_IN_BAR)


def _viterbi(fit: np.ndarray, change_costs: np.ndarray) -> np.ndarray:
    """The best sequence, int64, shape (num_beats,), where every change costs the same whatever it is."""
    score = fit[0]
    came_from = np.zeros(fit.shape, dtype=np.int64)
    for beat in range(1, len(fit)):
        best = int(score.argmax())
        changed = score[best] - change_costs[beat]
        came_from[beat] = np.where(score >= changed, np.arange(len(score)), best)
        score = np.maximum(score, changed) + fit[beat]
    path = np.zeros(len(fit), dtype=np.int64)
    path[-1] = score.argmax()
    for beat in range(len(fit) - 1, 0, -1):
        path[beat - 1] = came_from[beat, path[beat]]
    return path


def _pitch_class(letter: str, accidental: str) -> int:
    return (PITCH_NAMES.index(letter) + {"#": 1, "♯": 1, "b": -1, "♭": -1}.get(accidental, 0)) % 12
