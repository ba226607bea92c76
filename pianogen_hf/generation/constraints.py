"""Constraints on what may be generated, as logits processors for `generate()`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import LogitsProcessor

from pianogen_hf.tokenizers.tokenization_notes import NoteTokenizer

MAX_REST = 48  # tokens: generation that has been silent for so long must write a note


class GrammarLogitsProcessor(LogitsProcessor):
    """Leaves only tokens that the tokenizer's grammar allows next, so that whatever is generated decodes.

    Args:
        tokenizer: whose `allowed_next` is asked.
        history: per batch row the tokens that stand before `input_ids` (what a window cut off), or None.
        open_until: per batch row how many tokens, history included, must stand before `<eos>` may be chosen; None where
            it may be chosen as soon as the grammar allows it.
        max_rest: after this many tokens in a row that only let time pass, a note must come; None for no limit.
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
        names = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        self._is_rest = np.array([self._only_rests(name) for name in names])
        self._is_rest[: tokenizer.num_special] = True
        self._goes_on = np.arange(len(tokenizer)) != tokenizer.eos_token_id
        self._only_pad = np.arange(len(tokenizer)) == tokenizer.pad_token_id
        self._rows: list[_Row] = []

    def _only_rests(self, name: str) -> bool:
        """Whether a token only lets time pass; one that byte pair encoding learnt is named after all its events."""
        return all(event.startswith(self.tokenizer.rest_prefixes) for event in name.split("+"))

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> Any:
        """Set the scores of forbidden tokens to minus infinity.

        Args:
            input_ids: shape (rows, length); rows are batch items, or beams of batch items.
            scores: shape (rows, vocab_size); a model may have more outputs than the tokenizer has tokens.
        """
        num_rows, num_ids = len(input_ids), len(self._is_rest)
        if len(self._rows) != num_rows:
            items = [row * len(self.history) // num_rows for row in range(num_rows)]
            is_rest = self._is_rest.tolist()
            self._rows = [_Row(self.tokenizer, is_rest, self.history[item], self.open_until[item]) for item in items]
        forbidden = np.ones(scores.shape, dtype=bool)
        for row, ids in enumerate(input_ids.cpu().numpy()):
            self._rows[row].read(ids)
            forbidden[row, :num_ids] = ~self._allowed(self._rows[row])
        return scores.masked_fill(torch.from_numpy(forbidden).to(scores.device), -torch.inf)

    def _allowed(self, row: _Row) -> np.ndarray:
        # What `tokenizer.allowed_next` does with all the tokens, for tokens of which all but the last were read before.
        allowed = self._only_pad if row.has_ended else self.tokenizer._allowed_events(row.events)
        if row.num_ids < row.open_until:
            allowed = _unless_nothing_is_left(allowed, self._goes_on)
        if self.max_rest is not None and row.num_rests >= self.max_rest:
            allowed = _unless_nothing_is_left(allowed, ~self._is_rest)
        return allowed


def _unless_nothing_is_left(allowed: np.ndarray, wish: np.ndarray) -> np.ndarray:
    both = allowed & wish
    return both if both.any() else allowed


class _Row:
    """What is known of the tokens of one row; reading them again after one more costs next to nothing.

    Attributes:
        num_ids: how many there are, history included.
        num_rests: how many of the latest only let time pass.
        has_ended: whether the last one is `<eos>`.
        events: the events of the latest piece.
    """

    def __init__(self, tokenizer: NoteTokenizer, is_rest: list[bool], history: np.ndarray, open_until: int) -> None:
        self.history, self.open_until, self._is_rest = history, open_until, is_rest
        self._num_special = tokenizer.num_special
        self._bos, self._eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        self._restart()

    def _restart(self) -> None:
        self.num_ids = self.num_rests = self._num_events = 0
        self.has_ended = False
        self._known, self._events = np.zeros((2, 0), dtype=np.int64)
        self._append(self.history)

    @property
    def events(self) -> np.ndarray:
        return self._events[: self._num_events]

    def read(self, ids: np.ndarray) -> None:
        """Take in the tokens after the history; those of the last time are skipped if they are still the same."""
        num_known = len(self._known)
        if len(ids) < num_known or not (ids[:num_known] == self._known).all():  # beams change places
            self._restart()
        self._append(ids[len(self._known) :])
        self._known = ids.copy()

    def _append(self, ids: np.ndarray) -> None:
        self.num_ids += len(ids)
        if self._num_events + len(ids) > len(self._events):
            self._events = np.append(self.events, np.zeros(len(ids) + 1024, dtype=np.int64))
        for index in ids.tolist():  # for the one id of a step this is faster than operators on arrays
            self.num_rests = self.num_rests + 1 if self._is_rest[index] else 0
            self.has_ended = index == self._eos
            if index >= self._num_special:
                self._events[self._num_events] = index
                self._num_events += 1
            elif index in (self._bos, self._eos):
                self._num_events = 0
