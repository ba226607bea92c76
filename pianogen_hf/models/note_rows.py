"""Rows of a note transformer (V8) from notes with onsets: the order in which they are met, and their time shifts.

A written row is predicted from the written row before it. So that a given row is of use for a prediction, it is met
before the row that makes it.
"""

import numpy as np

TIME_SHIFT = 0  # column of rows


def met_order(onset: np.ndarray, is_given: np.ndarray, begin: int, lookahead: float) -> np.ndarray:
    """The order in which a model meets rows.

    Written rows keep their order. A given row is met just before the written row that predicts the first one whose
    onset is not more than `lookahead` earlier than its own; with an infinite lookahead, before the row that predicts
    the first of all.

    Args:
        onset: shape (length,), not falling.
        is_given: roles, bool, shape (length,).
        begin: number of rows, all written, at the beginning that are predicted without given rows; at least 1.
        lookahead: in the unit of the onsets, at least 0.

    Returns:
        Indices, shape (length,).
    """
    index = np.arange(len(onset))
    place = np.cumsum(~is_given) - 1  # of written rows among themselves
    helped = np.searchsorted(onset[~is_given], onset - lookahead)  # the written row that is predicted with its help
    place = np.where(is_given, np.clip(helped, begin, place[-1]) - 1, place)
    return np.lexsort([index, ~is_given, place])


def written_onsets(onset: np.ndarray, is_given: np.ndarray) -> np.ndarray:
    """Onset of the last written row so far, at each row in the order of `met_order`; before the first one, its own."""
    last = np.maximum.accumulate(np.where(is_given, -1, np.arange(len(onset))))
    return onset[np.where(last < 0, np.argmin(is_given), last)]


def time_shifts(onset: np.ndarray, is_given: np.ndarray) -> np.ndarray:
    """Time shift of each row: from the last written onset before it, in seconds, rounded to 1 ms; of the first, 0."""
    clock = written_onsets(onset, is_given)
    return np.rint((onset - np.concatenate([clock[:1], clock[:-1]])) * 1000) / 1000
