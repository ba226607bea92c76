"""The key of music, from how long each pitch class sounds.

The method of Krumhansl and Schmuckler (Krumhansl 1990, "Cognitive Foundations of Musical Pitch"): the key whose profile
correlates best with the histogram of pitch classes; here with the profiles of Temperley, from Kostka and Payne's corpus
(Temperley 2007, "Music and Probability").
"""

from __future__ import annotations

from functools import cache

import numpy as np

_MAJOR = (0.748, 0.060, 0.488, 0.082, 0.670, 0.460, 0.096, 0.715, 0.104, 0.366, 0.057, 0.400)
_MINOR = (0.712, 0.084, 0.474, 0.618, 0.049, 0.460, 0.105, 0.747, 0.404, 0.067, 0.133, 0.330)


def _standardised(profile: tuple[float, ...]) -> np.ndarray:
    """The profile of each tonic, shape (12, 12), with mean 0 and norm 1."""
    centred = np.array(profile) - np.mean(profile)
    return np.stack([np.roll(centred / np.linalg.norm(centred), tonic) for tonic in range(12)])


_PROFILES = np.concatenate([_standardised(_MAJOR), _standardised(_MINOR)])  # (24, 12)


def key_of(pitch: np.ndarray, duration: np.ndarray) -> tuple[int, bool]:
    """The key of at least one note.

    Args:
        pitch: MIDI pitches, shape (num_notes,).
        duration: how long each sounds, in any unit, shape (num_notes,).

    Returns:
        Pitch class of the tonic, 0 (C) to 11, and whether the key is minor.
    """
    sounding = np.bincount(np.asarray(pitch, dtype=np.int64) % 12, duration, 12)
    is_minor, tonic = divmod(int(np.argmax(_PROFILES @ sounding)), 12)
    return tonic, bool(is_minor)


@cache
def log_profile(tonic: int, is_minor: bool) -> np.ndarray:
    """How much rarer each pitch class is in a key than the one that is heard most often, log of the ratio, shape (12,).

    Args:
        tonic: its pitch class, 0 (C) to 11.
        is_minor: as `key_of` gives it.
    """
    heard = np.log(_MINOR if is_minor else _MAJOR)
    return np.roll(heard - heard.max(), tonic)
