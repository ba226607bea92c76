"""What can be asked of a note transformer (V8), as classes for `control_ids`: 0 is always "not asked".

density       notes per second, three classes an octave
register      mean pitch, a class for three semitones
loudness      mean velocity, a class for five velocities
key           24 of them, major from C on, then minor
kind          a classical performance, jazz, or a score played as it stands
seconds_left  until the last note of the piece has died away, four classes an octave
gap_left      seconds until the end of the gap that is filled, likewise
"""

import math

import numpy as np
import torch

from .key_finding import key_of

CONTROLS = ("density", "register", "loudness", "key", "kind", "seconds_left", "gap_left")
DENSITY, REGISTER, LOUDNESS, KEY, KIND, SECONDS_LEFT, GAP_LEFT = range(len(CONTROLS))
CONTROL_SIZES = (20, 18, 27, 25, 4, 48, 48)
KINDS = ("classical", "jazz", "score")
PITCH_NAMES = ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")
FEWEST_NOTES = 8  # that say something of density, register or loudness; a key takes twice as many
_PITCH, _VELOCITY, _DURATION = 1, 2, 3  # columns of rows
_SLOWEST, _LOWEST, _SHORTEST = 0.5, 36.0, 0.125  # notes per second, pitch, seconds


def density_class(notes_per_second: float) -> int:
    """Class of a density."""
    return _bounded(3 * math.log2(max(notes_per_second, 1e-3) / _SLOWEST), DENSITY)


def register_class(mean_pitch: float) -> int:
    """Class of a mean pitch."""
    return _bounded((mean_pitch - _LOWEST) / 3, REGISTER)


def loudness_class(mean_velocity: float) -> int:
    """Class of a mean velocity."""
    return _bounded(mean_velocity / 5, LOUDNESS)


def key_class(tonic: int, is_minor: bool) -> int:
    """Class of a key, by the pitch class of its tonic."""
    return 1 + tonic % 12 + 12 * is_minor


def key_of_class(key: int) -> tuple[int, bool]:
    """Pitch class of the tonic, and whether it is minor, of a class that is not 0 (no key)."""
    is_minor, tonic = divmod(key - 1, 12)
    return tonic, bool(is_minor)


def seconds_left_class(seconds: torch.Tensor) -> torch.Tensor:
    """Classes, int64, of times that are left, of any shape; 0 where they are not a number."""
    octaves = torch.log2(seconds.clamp(min=_SHORTEST) / _SHORTEST)
    classes = 1 + torch.round(4 * octaves).clamp(max=CONTROL_SIZES[SECONDS_LEFT] - 2)
    return torch.where(seconds.isnan(), 0, classes).long()


def control_values(rows: np.ndarray, onset: np.ndarray) -> np.ndarray:
    """What notes are like, as classes; 0 where they are too few to say, and of what they can't say themselves.

    Args:
        rows: shape (num_notes, 4).
        onset: in seconds, shape (num_notes,), not falling.

    Returns:
        Classes, int64, shape (num_controls,).
    """
    values = np.zeros(len(CONTROLS), dtype=np.int64)
    if len(rows) < FEWEST_NOTES:
        return values
    seconds = float(onset[-1] - onset[0])
    if seconds > 1:
        values[DENSITY] = density_class((len(rows) - 1) / seconds)
    values[REGISTER] = register_class(float(rows[:, _PITCH].mean()))
    values[LOUDNESS] = loudness_class(float(rows[:, _VELOCITY].mean()))
    if len(rows) >= 2 * FEWEST_NOTES:
        values[KEY] = key_class(*key_of(rows[:, _PITCH], rows[:, _DURATION]))
    return values


def _bounded(place: float, control: int) -> int:
    return 1 + min(max(round(place), 0), CONTROL_SIZES[control] - 2)
