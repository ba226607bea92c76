"""Constraints on what may be generated, as logits processors for `generate()`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import LogitsProcessor

from pianogen_hf.tokenizers.tokenization_notes import NoteTokenizer


class GrammarLogitsProcessor(LogitsProcessor):
    """Leaves only ids that the tokenizer's grammar allows next, so that whatever is generated decodes.

    Args:
        tokenizer: whose `allowed_next` is asked.
        history: per batch row the ids that stand before `input_ids` (what a window cut off), or None.
        open_until: per batch row how many ids, history included, must stand before `<eos>` may be chosen; None where it
            may be chosen as soon as the grammar allows it.
        max_rest: after this many ids in a row that only let time pass, a note must come; None for no limit.
    """

    def __init__(
        self,
        tokenizer: NoteTokenizer,
        history: Sequence[Sequence[int] | np.ndarray] | None = None,
        *,
        open_until: Sequence[int] | None = None,
        max_rest: int | None = None,
    ) -> None:
        self.tokenizer, self.max_rest = tokenizer, max_rest
        self.history = [np.asarray(ids, dtype=np.int64) for ids in history or [[]]]
        self.open_until = open_until or [0] * len(self.history)
        self._is_rest = np.array(
            [self._only_rests(name) for name in tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))]
        )
        self._is_rest[: tokenizer.num_special] = True

    def _only_rests(self, name: str) -> bool:
        """Whether an id only lets time pass; one that byte pair encoding learnt is named after all its events."""
        return all(event.startswith(self.tokenizer.rest_prefixes) for event in name.split("+"))

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> Any:
        """Set the scores of forbidden ids to minus infinity.

        Args:
            input_ids: shape (rows, length); rows are batch items, or beams of batch items.
            scores: shape (rows, vocab_size); a model may have more outputs than the tokenizer has ids.
        """
        allowed = np.zeros(scores.shape, dtype=bool)
        for row, ids in enumerate(input_ids.cpu().numpy()):
            item = row * len(self.history) // len(input_ids)
            ids = np.concatenate([self.history[item], ids])
            allowed[row, : len(self.tokenizer)] = self._allowed(ids, may_end=len(ids) >= self.open_until[item])
        return scores.masked_fill(~torch.from_numpy(allowed).to(scores.device), -torch.inf)

    def _allowed(self, ids: np.ndarray, may_end: bool) -> np.ndarray:
        allowed = self.tokenizer.allowed_next(ids)
        wishes = []
        if not may_end:
            wishes.append(np.arange(len(allowed)) != self.tokenizer.eos_token_id)
        if self._rests_too_long(ids):
            wishes.append(~self._is_rest)
        for wish in wishes:  # dropped where the grammar leaves nothing else
            if (allowed & wish).any():
                allowed = allowed & wish
        return allowed

    def _rests_too_long(self, ids: np.ndarray) -> bool:
        if self.max_rest is None or len(ids) < self.max_rest:
            return False
        return bool(self._is_rest[ids[-self.max_rest :]].all())
