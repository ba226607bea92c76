"""Generation of events, rows of ids, constrained by a grammar: for SkyTNT's midi-model and for its fast engine."""

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from transformers import TopKLogitsWarper, TopPLogitsWarper

from .configuration_midi_event import MidiEventConfig
from .row_generation import check_sampling


class EventReader(Protocol):
    """Reads events as they become more."""

    def last_hidden_state(self, rows: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Hidden state of the last of all rows so far, shape `(batch, hidden_size)`."""


class IdReader(Protocol):
    """Reads the ids of an event as they are written."""

    def logits(self, ids: torch.Tensor | None) -> torch.Tensor:
        """Logits of the next id, shape `(batch, vocab_size)`, given the one before it; None for the first."""


class GeneratesEvents:
    """Mixin, to stand before what says how likely events are and has `config`, `device` and a mode of training."""

    config: MidiEventConfig
    device: Any
    training: bool
    train: Any

    def event_reader(self) -> EventReader:
        """What reads the events of some pieces, from the first on."""
        raise TypeError(f"{type(self).__name__} can't read events")

    def id_reader(self, hidden_states: torch.Tensor) -> IdReader:
        """What reads the ids of an event after each hidden state, shape `(batch, hidden_size)`."""
        raise TypeError(f"{type(self).__name__} can't read ids")

    @torch.no_grad()
    def generate(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        *,
        max_new_tokens: int = 256,
        min_new_tokens: int = 0,
        do_sample: bool = True,
        temperature: float = 1.0,
        top_p: float = 0.98,
        top_k: int | None = 20,
        forbidden_ids: Sequence[int] = (),
        num_return_sequences: int = 1,
        seed: int | None = None,
    ) -> torch.Tensor:
        """Continue pieces, or begin new ones.

        Where prompt and new events outgrow `max_position_embeddings`, generation continues from the latest half of it.

        Args:
            input_ids: Prompts, shape `(batch, length, ids_per_row)`; the beginning of a piece by default.
            attention_mask: 0 for rows of padding, which must stand on the left, shape `(batch, length)`.
            max_new_tokens: Most new events.
            min_new_tokens: No piece ends before so many new events.
            do_sample: Whether to draw; False takes the likeliest id that is allowed.
            temperature: Below 1 safer, above 1 wilder; 0 takes the likeliest.
            top_p: Ids are drawn among the likeliest of this total probability, of those that are allowed.
            top_k: Ids are drawn among so many at most; None or 0 for all.
            forbidden_ids: Ids that are never written, unless nothing else may stand there: of event types, channels ...
            num_return_sequences: Continuations per prompt; those of one prompt stand together.
            seed: Makes the result repeatable, whatever else draws random numbers.

        Returns:
            Prompts and new events, shape `(batch * num_return_sequences, length + new, ids_per_row)`; after a piece has
            ended, rows of padding.

        Raises:
            ValueError: If padding stands on the right, or a setting is out of range.
        """
        check_sampling(attention_mask, max_new_tokens, temperature, top_p)
        was_training = self.training
        self.train(False)
        if input_ids is None:
            input_ids = torch.full((1, 1, self.config.ids_per_row), self._pad)
            input_ids[..., 0] = self.config.bos_token_id  # type: ignore[assignment]
        rows = input_ids.to(self.device).repeat_interleave(num_return_sequences, dim=0)
        mask = torch.ones_like(rows[..., 0])
        if attention_mask is not None:
            mask = attention_mask.to(mask).repeat_interleave(num_return_sequences, dim=0)
        generator = None if seed is None else torch.Generator(self.device).manual_seed(seed)
        draw = IdDraw(temperature if do_sample else 0.0, top_p, top_k, generator)
        grammar = EventGrammar(self.config, forbidden_ids, self.device)

        has_ended: torch.Tensor = rows[:, -1, 0].eq(self.config.eos_token_id)  # type: ignore[arg-type]
        reader = self.event_reader()
        for count in range(max_new_tokens):
            if has_ended.all():
                break
            new = self._draw_row(reader.last_hidden_state(rows, mask), grammar, draw, count >= min_new_tokens)
            new = new.masked_fill(has_ended[:, None], self._pad)
            has_ended = has_ended | new[:, 0].eq(self.config.eos_token_id)  # type: ignore[arg-type]
            rows = torch.cat([rows, new[:, None]], dim=1)
            mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
        self.train(was_training)
        return rows

    @property
    def _pad(self) -> int:
        return int(self.config.pad_token_id or 0)

    def _draw_row(
        self, hidden_states: torch.Tensor, grammar: "EventGrammar", draw: "IdDraw", allow_end: bool
    ) -> torch.Tensor:
        """The ids of one event after each hidden state, shape `(batch, ids_per_row)`."""
        row = torch.full((len(hidden_states), self.config.ids_per_row), self._pad, device=hidden_states.device)
        reader, ids = self.id_reader(hidden_states), None
        for place in range(self.config.ids_per_row):
            allowed = grammar.allowed(row, place, allow_end)
            if place and grammar.only_padding(allowed):
                break
            ids = draw(reader.logits(ids).masked_fill(~allowed, -torch.inf))
            row[:, place] = ids
        return row


class EventGrammar:
    """Which ids may stand where in a row."""

    def __init__(self, config: MidiEventConfig, forbidden_ids: Sequence[int], device: torch.device) -> None:
        self.pad, self.end, self.is_free = (
            int(config.pad_token_id or 0),
            config.eos_token_id,
            config.event_blocks is None,
        )
        self.ids = torch.arange(config.vocab_size, device=device)
        self.is_forbidden = torch.isin(self.ids, torch.tensor(list(forbidden_ids), dtype=torch.long, device=device))
        blocks = config.event_blocks or []
        self.is_type = torch.isin(self.ids, torch.tensor([each[0] for each in blocks], dtype=torch.long, device=device))
        # First id and id after the last by the first id of a row and the place in it; padding where there is no block.
        self.first = torch.full((config.vocab_size, config.ids_per_row), self.pad, device=device)
        self.stop = self.first + 1
        for index, *numbers in blocks:
            for place, (start, size) in enumerate(zip(numbers[::2], numbers[1::2], strict=True), 1):
                self.first[index, place], self.stop[index, place] = start, start + size

    def allowed(self, row: torch.Tensor, place: int, allow_end: bool) -> torch.Tensor:
        """Bool of shape `(batch, vocab_size)`, for a place of rows that are written up to there."""
        if not place:
            allowed = torch.ones_like(self.is_type) if self.is_free else self.is_type | (self.ids == self.end)
            allowed = allowed & (self.ids != self.pad)
            if not allow_end:
                allowed = allowed & (self.ids != self.end)
            allowed = allowed.expand(len(row), -1)
        elif self.is_free:
            allowed = (row[:, :1] != self.end) | (self.ids == self.pad)
        else:
            first, stop = self.first[row[:, 0], place], self.stop[row[:, 0], place]
            allowed = (self.ids >= first[:, None]) & (self.ids < stop[:, None])
        rest = allowed & ~self.is_forbidden
        return torch.where(rest.any(-1, keepdim=True), rest, allowed)

    def only_padding(self, allowed: torch.Tensor) -> bool:
        """Whether nothing but padding may follow in any row."""
        return bool((allowed == (self.ids == self.pad)).all())


class IdDraw:
    """Draws ids of logits of shape `(batch, vocab_size)`, minus infinity where an id is not allowed."""

    def __init__(self, temperature: float, top_p: float, top_k: int | None, generator: torch.Generator | None) -> None:
        self.temperature, self.generator = temperature, generator
        self.warpers: list[Any] = [TopPLogitsWarper(top_p)] if top_p < 1 else []
        self.warpers += [TopKLogitsWarper(top_k)] if top_k else []

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """Ids, shape `(batch,)`."""
        if not self.temperature:
            return logits.argmax(-1)
        scores = logits / self.temperature
        for warper in self.warpers:
            scores = warper(None, scores)
        return torch.multinomial(scores.softmax(-1), 1, generator=self.generator).squeeze(-1)


__all__ = ["EventGrammar", "EventReader", "GeneratesEvents", "IdDraw", "IdReader"]
