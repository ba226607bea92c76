"""Normalisation of keys: every piece in C major or A minor.

The key is that of the Krumhansl-Schmuckler method (Krumhansl 1990, "Cognitive Foundations of Musical Pitch"): the key
whose profile correlates best with how long each pitch class sounds; here with the profiles of Temperley (from Kostka
and Payne's corpus), as music21 (Cuthbert and Ariza 2010) has it, too. Of the 335 chorales of Bach whose signature and
last bass note agree on a key they bring 97 % to C major or A minor, Krumhansl's own profiles 82 %; to take a relative
key for the other does no harm here.

This happens after families are hashed: `content`, `fingerprint` and `family_id` stay those of the original.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from pianogen_hf.data.caching import cached_map, fingerprint_of
from pianogen_hf.data.pieces import stored_notes
from pianogen_hf.models.key_finding import key_of
from pianogen_hf.tokenizers.midi import notes_to_midi_bytes
from pianogen_hf.tokenizers.notes import Notes

_TONICS = {"major": 0, "minor": 9}  # C and A
_CACHE_VERSION = 2  # raised when what a normalised piece is changes


def to_c_major(notes: Notes) -> Notes:
    """The piece in C major or A minor.

    It moves by -5 to +6 semitones; by an octave more or less where a note would leave 0..127, and not at all where it
    would both ways. A piece without notes stays as it is, and drums in any.
    """
    pitch = notes["pitch"][~notes["is_drum"]]
    if len(pitch) == 0:
        return notes
    tonic, mode = find_key(notes)
    semitones = (_TONICS[mode] - tonic + 5) % 12 - 5
    for each in (semitones, semitones - 12 if semitones > 0 else semitones + 12):
        if int(pitch.min()) + each >= 0 and int(pitch.max()) + each <= 127:
            return notes.transposed(each)
    return notes


def find_key(notes: Notes) -> tuple[int, str]:
    """The key of at least one note that is no drum: pitch class of its tonic, 0 (C) to 11, and "major" or "minor"."""
    pitched = notes.where(~notes["is_drum"])
    tonic, is_minor = key_of(pitched["pitch"], np.maximum(pitched["duration_tick"], 1))
    return tonic, "minor" if is_minor else "major"


def normalized_keys(pieces: Dataset, cache_dir: str | os.PathLike, num_proc: int | None = None) -> Dataset:
    """The pieces with the music in `midi` in C major or A minor, and all other columns as they are; cached on disk.

    Args:
        pieces: usable pieces (see `pieces.py`).
        cache_dir: where the result lies afterwards.
        num_proc: processes to work with.
    """
    return cached_map(
        pieces,
        _normalized,
        Path(cache_dir) / f"c-major-{fingerprint_of([_CACHE_VERSION, pieces._fingerprint])}",
        features=pieces.features,
        num_proc=num_proc,
        desc="Finding keys",
    )


def _normalized(row: dict[str, Any]) -> dict[str, bytes]:
    return {"midi": notes_to_midi_bytes(to_c_major(stored_notes(row["midi"])))}
