"""Rows of a note transformer (V8) from notes with onsets: the order in which they are met, and their time shifts."""

import numpy as np

TIME_SHIFT = 0  # column of rows


def met_order(onset: np.ndarray, is_given: np.ndarray, begin: int, lookahead: float) -> np.ndarray:
    """The order in which a model meets rows.

    Written rows keep their order. From row `begin` on a given row is met before the first written one whose onset is
    not more than `lookahead` earlier than its own; with an infinite lookahead, before all of them.

    Args:
        onset: shape (length,), not falling.
        is_given: roles, bool, shape (length,); the first row is written.
        begin: from where on rows may be given.
        lookahead: in the unit of the onsets, at least 0.

    Returns:
        Indices, shape (length,).
    """
    index = np.arange(len(onset))
    met = np.where(is_given, onset - lookahead, onset)
    return np.lexsort([index, ~is_given, met, index >= begin])


def written_onsets(onset: np.ndarray, is_given: np.ndarray) -> np.ndarray:
    """Onset of the last written row so far, at each row in the order of `met_order`; the first row is written."""
    return onset[np.maximum.accumulate(np.where(is_given, 0, np.arange(len(onset))))]


def time_shifts(onset: np.ndarray, is_given: np.ndarray) -> np.ndarray:
    """Time shift of each row after the first: from the last written onset before it, in seconds, rounded to 1 ms."""
    return np.rint((onset[1:] - written_onsets(onset, is_given)[:-1]) * 1000) / 1000
