"""Rejecting samples: what has a fault is drawn again, a bounded number of times."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from pianogen_hf.generation.guards import CopyIndex
from pianogen_hf.generation.new_notes import Continuation, GenerationError
from pianogen_hf.tokenizers.notes import Notes

Faults = Callable[[Continuation], list[str]]
_OTHER_SEED = 0x9E3779B1  # between the seeds of one try and the next: nobody counts seeds in such steps


def redrawn(
    verb: Callable[..., list[Continuation]],
    *arguments: Any,
    faults: Faults,
    max_tries: int = 5,
    num_samples: int = 1,
    seed: int | None = None,
    **options: Any,
) -> tuple[list[Continuation], list[list[str]]]:
    """What a verb gives, with samples drawn again that have faults.

    Args:
        verb: `continue_notes`, `fill_notes` ...
        *arguments: of the verb.
        faults: what is wrong with a result, in a few words each; an empty list if nothing is.
        max_tries: how often each sample is drawn at most.
        num_samples: how many are wanted.
        seed: of the first try; others follow from it.
        **options: of the verb.

    Returns:
        The samples, and what is wrong with each of them: after the last try a sample stays as it is.

    Raises:
        GenerationError: if `max_tries` is less than 1, or the verb raises it.
    """
    if max_tries < 1:
        raise GenerationError(f"max_tries must be at least 1, got {max_tries}")
    results = verb(*arguments, num_samples=num_samples, seed=seed, **options)
    found = [faults(each) for each in results]
    for number in range(1, max_tries):
        wrong = [index for index, each in enumerate(found) if each]
        if not wrong:
            break
        other = None if seed is None else (seed + number * _OTHER_SEED) % 2**63
        for index, result in zip(wrong, verb(*arguments, num_samples=len(wrong), seed=other, **options), strict=True):
            results[index], found[index] = result, faults(result)
    return results, found


def alone(result: Continuation) -> Notes:
    """The new notes of a result, counted from where they begin."""
    onset = np.maximum(result.new.onset_sec - result.prompt_end_sec, 0.0)
    return Notes.from_seconds(onset, result.new.duration_sec, result.new["pitch"], result.new["velocity"])


def copies(index: CopyIndex, max_run: int) -> Faults:
    """Faults of results that have more than `max_run` notes in a row, in any key, from the pieces of an index.

    Args:
        index: of the pieces that are not to be copied.
        max_run: notes in a row that are no copy yet.
    """

    def faults(result: Continuation) -> list[str]:
        audit = index.audit(result.new)
        if audit.longest_run <= max_run:
            return []
        return [f"{audit.longest_run} notes in a row from {audit.train_piece}"]

    return faults
