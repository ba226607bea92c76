"""How much of some music stands in train pieces, beside what stands there of held-out pieces."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from pianogen_hf.evaluation.memorization import RunIndex, compare_with_base_rate
from pianogen_hf.tokenizers.notes import Notes
from pianogen_hf.tokenizers.tokenization_jsb import JSBTokenizer


def copy_report(
    tokenizer: Any, train: Mapping[str, Notes], heldout: Iterable[Notes], audited: Iterable[Notes]
) -> dict[str, Any]:
    """How much of some music stands in train pieces, run for run, against the share that held-out pieces have.

    Args:
        tokenizer: of the model; four voices on a grid are compared as such, anything else note by note.
        train: train pieces by name.
        heldout: the pieces that give the base rate.
        audited: the music.
    """

    def form(notes: Notes) -> Notes | np.ndarray:
        return tokenizer.notes_to_grid(notes) if isinstance(tokenizer, JSBTokenizer) else notes

    index = RunIndex().fit(list(train), [form(notes) for notes in train.values()])
    generated = index.audit_set(form(notes) for notes in audited)
    return report_of(generated, index.audit_set(form(notes) for notes in heldout), len(train))


def report_of(generated: dict[str, Any], base_rate: dict[str, Any], num_pieces: int) -> dict[str, Any]:
    """Two audits by one index of `num_pieces` pieces, and what their comparison says."""
    comparison = compare_with_base_rate(generated, base_rate)
    return {"generated": generated, "heldout": base_rate, "comparison": comparison, "train_pieces": num_pieces}
