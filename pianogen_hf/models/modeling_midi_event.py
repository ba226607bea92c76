"""The two-level model of MIDI events: one step per event, and inside it one per id (SkyTNT's midi-model).

Source: https://github.com/SkyTNT/midi-model (`midi_model.py`), whose checkpoints load by their own names. Both nets are
the Llama of transformers (Touvron et al. 2023, https://arxiv.org/abs/2302.13971).

    ids of an event, embedded and summed -> outer net -> hidden state of the event
    [hidden state, id 1, ..., id 7 of the next event] -> inner net -> ids 1 to 8 of the next event

Changes from the original: padding may stand on either side, since it is masked; `generate` continues prompts of unequal
length with a cache in both nets, and draws from probabilities that add up to 1 among the ids that are allowed, where
the original cut the likeliest of them by the probability of all.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import DynamicCache, GenerationMixin, LlamaModel, PreTrainedModel, TopKLogitsWarper, TopPLogitsWarper
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple

from .carried_code import CarriesCode
from .configuration_midi_event import MidiEventConfig
from .row_generation import CachedWindow, check_sampling

IGNORED = -100


@dataclass
class MidiEventOutput(ModelOutput):
    """What [`MidiEventForCausalLM`] returns.

    Attributes:
        loss: Scalar: nats per predicted id. With labels only.
        nats: Negative log-likelihood of the ids of row `i + 1`, shape `(batch, length - 1, ids_per_row)`, 0 where there
            is nothing to predict. With labels only.
        right: Whether the likeliest id was right, bool of the same shape. With labels only.
        logits: Of the ids of row `i + 1`, each given the rows before and the ids before it in the row, shape
            `(batch, length - 1, ids_per_row, vocab_size)`.
        last_hidden_state: Of the outer net, shape `(batch, length, hidden_size)`.
        past_key_values: Cache of the outer net, if asked for.
        hidden_states: Of every layer of the outer net, if asked for.
        attentions: Of every layer of the outer net, if asked for.
    """

    loss: torch.Tensor | None = None
    nats: torch.Tensor | None = None
    right: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None
    past_key_values: Cache | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class MidiEventForCausalLM(CarriesCode, PreTrainedModel, GenerationMixin):  # `generate` takes and gives rows
    """Two Llamas and one output layer, with a sampling loop of its own.

    `generate` is not that of `GenerationMixin`, which stands here for what transformers asks of a model that generates.
    No pipeline of transformers fits.
    """

    config: MidiEventConfig
    config_class = MidiEventConfig
    base_model_prefix = "net"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _no_split_modules = ["LlamaDecoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _keys_to_ignore_on_load_unexpected = [r"rotary_emb\.inv_freq"]

    def __init__(self, config: MidiEventConfig):
        super().__init__(config)
        outer, inner = config.net_config(), config.net_token_config()
        for each in (outer, inner):
            each._attn_implementation = self.config._attn_implementation
        self.net = LlamaModel(outer)
        self.net_token = LlamaModel(inner)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

        # Initialize weights and apply final processing
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """The embedding of the ids of rows; the inner net has another."""
        return self.net.embed_tokens

    def get_output_embeddings(self) -> nn.Module:
        """The output layer, which no embedding is tied to."""
        return self.lm_head

    @can_return_tuple
    def forward(  # type: ignore[misc]
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MidiEventOutput:
        """Encode events, and say how likely the ids of each are after the events before it.

        Args:
            input_ids: Rows, shape `(batch, length, ids_per_row)`.
            attention_mask: 1 for events, 0 for rows of padding, shape `(batch, past + length)`.
            position_ids: Index of each row, shape `(batch, length)`; by default they count the events, from the cache
                on.
            past_key_values: Cache of the rows before.
            labels: Ids to predict, unshifted, shape `(batch, length, ids_per_row)`; -100 and padding are not predicted.
            use_cache: Whether to return a cache.
            num_items_in_batch: Divides the summed loss (gradient accumulation); by default the predicted ids do.
            **kwargs: As for `LlamaModel`.

        Returns:
            See [`MidiEventOutput`].

        Raises:
            ValueError: If there are no rows of `ids_per_row` ids.
        """
        if input_ids is None or input_ids.dim() != 3 or input_ids.shape[-1] != self.config.ids_per_row:
            raise ValueError(f"input_ids must be rows of {self.config.ids_per_row} ids: (batch, length, ids).")
        outputs = self.encode(input_ids, attention_mask, position_ids, past_key_values, use_cache, **kwargs)
        assert outputs.last_hidden_state is not None
        logits = self.row_logits(outputs.last_hidden_state[:, :-1], input_ids[:, 1:])
        loss = nats = right = None
        if labels is not None:
            is_padding = labels[:, 1:].eq(self.config.pad_token_id)  # type: ignore[arg-type]
            targets = labels[:, 1:].masked_fill(is_padding, IGNORED)
            nats = F.cross_entropy(logits.flatten(0, -2).float(), targets.flatten(), reduction="none")
            nats, right = nats.view(targets.shape), logits.argmax(-1) == targets
            total = num_items_in_batch if num_items_in_batch is not None else (targets != IGNORED).sum()
            loss = nats.sum() / total

        return MidiEventOutput(
            loss=loss,
            nats=nats,
            right=right,
            logits=logits,
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def encode(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        """Hidden states of events by the outer net, shape `(batch, length, hidden_size)`; see [`forward`]."""
        if position_ids is None and attention_mask is not None:  # padding on the left takes no place
            position_ids = (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -input_ids.shape[1] :]
        return self.net(
            inputs_embeds=self.net.embed_tokens(input_ids).sum(-2),  # (batch, length, hidden_size)
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )

    def row_logits(self, hidden_states: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
        """Logits of the ids of rows, by the inner net.

        Args:
            hidden_states: Of the event before each, shape `(..., hidden_size)`.
            rows: Shape `(..., ids_per_row)`; the last id of each is not read.

        Returns:
            Shape `(..., ids_per_row, vocab_size)`.
        """
        shape = rows.shape
        if not rows.numel():  # one event, and none after it
            return hidden_states.new_zeros(*shape, self.config.vocab_size)
        known = self.net_token.embed_tokens(rows[..., :-1].reshape(-1, shape[-1] - 1))
        inputs_embeds = torch.cat([hidden_states.reshape(-1, 1, hidden_states.shape[-1]).to(known.dtype), known], dim=1)
        hidden_states = self.net_token(inputs_embeds=inputs_embeds, use_cache=False).last_hidden_state
        return self.lm_head(hidden_states).view(*shape, -1)

    # Generation ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def generate(  # type: ignore[override]
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

        Where prompt and new events outgrow `max_position_embeddings`, generation goes on from the latest half of it.

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
        self.eval()
        if input_ids is None:
            input_ids = torch.full((1, 1, self.config.ids_per_row), self._pad)
            input_ids[..., 0] = self.config.bos_token_id  # type: ignore[assignment]
        rows = input_ids.to(self.device).repeat_interleave(num_return_sequences, dim=0)
        mask = torch.ones_like(rows[..., 0])
        if attention_mask is not None:
            mask = attention_mask.to(mask).repeat_interleave(num_return_sequences, dim=0)
        draw = _Draw(
            0.0 if not do_sample else temperature,
            top_p,
            top_k,
            None if seed is None else torch.Generator(self.device).manual_seed(seed),
        )
        grammar = _Grammar(self.config, forbidden_ids, self.device)

        has_ended: torch.Tensor = rows[:, -1, 0].eq(self.config.eos_token_id)  # type: ignore[arg-type]
        window = CachedWindow(self.encode, self.net.config)
        for count in range(max_new_tokens):
            if has_ended.all():
                break
            new = self._draw_row(window.last_hidden_state(rows, mask), grammar, draw, count >= min_new_tokens)
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
        self, hidden_states: torch.Tensor, grammar: "_Grammar", draw: "_Draw", allow_end: bool
    ) -> torch.Tensor:
        """The ids of one event after each hidden state, shape `(batch, ids_per_row)`."""
        row = hidden_states.new_full((len(hidden_states), self.config.ids_per_row), self._pad, dtype=torch.long)
        cache = DynamicCache(config=self.net_token.config)
        inputs_embeds = hidden_states[:, None]
        for place in range(self.config.ids_per_row):
            allowed = grammar.allowed(row, place, allow_end)
            if place and (grammar.only_padding(allowed)):
                break
            states = self.net_token(inputs_embeds=inputs_embeds, past_key_values=cache, use_cache=True)
            logits = self.lm_head(states.last_hidden_state[:, -1]).float()
            row[:, place] = draw(logits.masked_fill(~allowed, -torch.inf))
            inputs_embeds = self.net_token.embed_tokens(row[:, place : place + 1])
        return row


class _Grammar:
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


class _Draw:
    """Draws ids of logits of shape `(batch, vocab_size)`, minus infinity where an id is not allowed."""

    def __init__(self, temperature: float, top_p: float, top_k: int | None, generator: torch.Generator | None) -> None:
        self.temperature, self.generator = temperature, generator
        self.warpers: list[Any] = [TopPLogitsWarper(top_p)] if top_p < 1 else []
        self.warpers += [TopKLogitsWarper(top_k)] if top_k else []

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        if not self.temperature:
            return logits.argmax(-1)
        scores = logits / self.temperature
        for warper in self.warpers:
            scores = warper(None, scores)
        return torch.multinomial(scores.softmax(-1), 1, generator=self.generator).squeeze(-1)


__all__ = ["MidiEventForCausalLM", "MidiEventOutput"]
