"""Action tokens: one token for all that happens at a time step, as MIDIGen has them.

Origin: Ryan Palmer, MIDIGen (https://github.com/Ryan-Palmer/MIDIGen). There, too, the most frequent steps of the train
pieces get a token of their own, and a step is written whole as one token or event by event, never in part: byte pairs
that may begin and end anywhere did worse for its author. Here no step is cut by the end of a block.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

Action = tuple[int, ...]  # ids of events: the notes of a step and the wait to the next


def steps_of(ids: np.ndarray, separator_id: int) -> Iterator[np.ndarray]:
    """The steps of a piece, as parts of its ids: notes and the waits after them; at first perhaps a wait alone.

    Args:
        ids: pairs of events, int64 (num_ids,): a note and its duration, or the separator and a number of steps.
        separator_id: of the separator.
    """
    is_wait = ids[::2] == separator_id
    ends = np.flatnonzero(is_wait[:-1] & ~is_wait[1:]) + 1
    yield from np.split(ids, 2 * ends)


def most_frequent(pieces: Iterable[np.ndarray], separator_id: int, number: int) -> list[Action]:
    """The most frequent whole steps, notes first and a wait last, that come at least twice; of equals the lower ids.

    Args:
        pieces: ids as in `steps_of`.
        separator_id: of the separator.
        number: as many at most.
    """
    counts: Counter[Action] = Counter()
    for ids in pieces:
        counts.update(tuple(step.tolist()) for step in steps_of(ids, separator_id) if _is_whole(step, separator_id))
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [action for action, count in ordered[:number] if count > 1]


def with_actions(ids: np.ndarray, separator_id: int, action_ids: dict[Action, int]) -> np.ndarray:
    """The ids of a piece with each step that has a token of its own as that token."""
    steps = (tuple(step.tolist()) for step in steps_of(ids, separator_id))
    return np.array([each for step in steps for each in ([action_ids[step]] if step in action_ids else step)], np.int64)


def without_actions(ids: np.ndarray, first_id: int, actions: Sequence[Action]) -> np.ndarray:
    """The ids with every action as its events; actions have ids from `first_id` on."""
    if not len(ids) or ids.max() < first_id:
        return ids
    return np.array(
        [each for index in ids.tolist() for each in (actions[index - first_id] if index >= first_id else [index])]
    )


def _is_whole(step: np.ndarray, separator_id: int) -> bool:
    return len(step) > 2 and step[0] != separator_id and step[-2] == separator_id
