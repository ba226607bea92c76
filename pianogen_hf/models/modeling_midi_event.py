"""The two-level model of MIDI events: one step per event, and inside it one per id (SkyTNT's midi-model).

Source: https://github.com/SkyTNT/midi-model (`midi_model.py`), whose checkpoints load by their own names. Both nets are
the Llama of transformers (Touvron et al. 2023, https://arxiv.org/abs/2302.13971).

    ids of an event, embedded and summed -> outer net -> hidden state of the event
    [hidden state, id 1, ..., id 7 of the next event] -> inner net -> ids 1 to 8 of the next event

Changes from the original: padding may stand on either side, since it is masked; `generate` continues prompts of unequal
length with a cache in both nets, and draws from probabilities that add up to 1 among the ids that are allowed, where
the original cut the likeliest of them by the probability of all.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import DynamicCache, GenerationMixin, LlamaModel, PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs, can_return_tuple

from .carried_code import CarriesCode
from .configuration_midi_event import MidiEventConfig
from .event_generation import GeneratesEvents
from .row_generation import CachedWindow

IGNORED = -100


@dataclass
class MidiEventOutput(ModelOutput):
    """What [`MidiEventForCausalLM`] returns.

    Attributes:
        loss: Scalar: nats per predicted id. With labels only.
        nats: Negative log-likelihood of the ids of row `i + 1`, shape `(batch, length - 1, ids_per_row)`, 0 where there
            is nothing to predict. With labels only.
        right: 1 where the likeliest id was right, else 0, int64 of the same shape. With labels only.
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


class MidiEventForCausalLM(CarriesCode, GeneratesEvents, PreTrainedModel, GenerationMixin):  # type: ignore[misc]
    """Two Llamas and one output layer, with a sampling loop of its own.

    `generate` takes and gives rows, and is not that of `GenerationMixin`, which stands here for what transformers asks
    of a model that generates.
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

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Put another in its place."""
        self.net.embed_tokens = value  # type: ignore[assignment]

    def resize_token_embeddings(self, new_num_tokens: int | None = None, *args: Any, **kwargs: Any) -> nn.Embedding:
        """As in transformers, and the embedding of the inner net with it."""
        embedding = super().resize_token_embeddings(new_num_tokens, *args, **kwargs)
        if new_num_tokens is not None:
            self.net_token.resize_token_embeddings(self.config.vocab_size)
        return embedding

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
        inputs_embeds: None = None,
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
            inputs_embeds: None, as which peft and others hand it on: the ids of a row are needed one by one.
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
        if inputs_embeds is not None:
            raise ValueError("give rows of ids, input_ids, in the place of inputs_embeds.")
        outputs = self.encode(input_ids, attention_mask, position_ids, past_key_values, use_cache, **kwargs)
        assert outputs.last_hidden_state is not None
        logits = self.row_logits(outputs.last_hidden_state[:, :-1], input_ids[:, 1:])
        loss = nats = right = None
        if labels is not None:
            is_padding = labels[:, 1:].eq(self.config.pad_token_id)  # type: ignore[arg-type]
            targets = labels[:, 1:].masked_fill(is_padding, IGNORED)
            nats = F.cross_entropy(logits.flatten(0, -2).float(), targets.flatten(), reduction="none")
            nats, right = nats.view(targets.shape), (logits.argmax(-1) == targets).long()
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
        for name in ("output_attentions", "output_hidden_states"):  # the nets have configurations of their own
            if getattr(self.config, name, False):
                kwargs.setdefault(name, True)
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

    def event_reader(self) -> CachedWindow:
        """See [`GeneratesEvents`]."""
        return CachedWindow(self.encode, self.net.config)

    def id_reader(self, hidden_states: torch.Tensor) -> "_IdReader":
        """See [`GeneratesEvents`]."""
        return _IdReader(self, hidden_states)


class _IdReader:
    """The inner net over an event that is being written, with its cache."""

    def __init__(self, model: MidiEventForCausalLM, hidden_states: torch.Tensor) -> None:
        self.model, self.cache = model, DynamicCache(config=model.net_token.config)
        self.inputs_embeds = hidden_states[:, None]

    def logits(self, ids: torch.Tensor | None) -> torch.Tensor:
        """See [`GeneratesEvents.id_reader`]."""
        if ids is not None:
            self.inputs_embeds = self.model.net_token.embed_tokens(ids[:, None])
        states = self.model.net_token(inputs_embeds=self.inputs_embeds, past_key_values=self.cache, use_cache=True)
        return self.model.lm_head(states.last_hidden_state[:, -1]).float()


__all__ = ["MidiEventForCausalLM", "MidiEventOutput"]
