"""Chorale transformer: a causal decoder over a grid of voices that knows the beat, the voices and what they hold.

Origin: written for this package; layers are those of the note transformer (V8, `modeling_note_transformer.py`). What
is told to it beside the ids is what relative positions alone can't tell and few data don't teach: the place in the bar,
as in Hadjeres et al. 2017, "DeepBach", arXiv 1612.01010; pitch and time relations as in Huang et al. 2018, "Music
Transformer", arXiv 1809.04281 (the variants on JSB chorales).

A token is a cell of a grid: one voice at one step. All that the model is told are causal functions of the ids, so a
tokenizer's ids are all it takes:

    * the place in the bar, and the voice, of the cell to come;
    * the latest cell of each voice, and for how many steps the voice has held it;
    * positions, rotary over three coordinates: step, voice and pitch.

Logits of the next cell are those of the pitch itself, plus those of its distance to the pitch that the same voice sang
last, plus those of its distance to the pitch of the cell just before.

Place: the token at position 0 is the beginning of a piece, or the last cell before a bar, as `build_chunks` cuts. So a
window has to be cut at a whole bar.
"""

import math
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from transformers import GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .carried_code import CarriesCode
from .configuration_chorale_transformer import ChoraleTransformerConfig
from .modeling_note_transformer import (
    NoteTransformerAttention,
    NoteTransformerDecoderLayer,
    rms_norm,
)

# Wavelengths of rotated pairs. Steps: metrical, so that what is a bar or a beat apart looks alike, and ever longer.
_STEP_WAVES = (4.0, 16.0, 2.0, 64.0, 8.0, 32.0, 256.0, 128.0)
_VOICE_WAVES = (4.0, 2.0, 8.0)
# Pitches: fractions of the octave first, by which pitches of one class look alike.
_PITCH_WAVES = (12.0, 24.0, 6.0, 4.0, 64.0)
_SHARES = (8, 3, 5)  # of the pairs of a head: steps, voices, pitches


@dataclass
class ChoralePlaces:
    """What is known of the grid up to each token.

    Attributes:
        position: Of each token in its piece, or in the window that was cut from it, int64, shape `(batch, length)`.
        recent: Ids of the latest `num_voices` tokens, the token itself first, int64, shape `(batch, length,
            num_voices)`; the pad token where there is none. The last of them is what the voice of the next cell sang.
        held: For how many steps in a row, the present one not counted, each of their voices has had this id, at most
            `max_hold`; shape as `recent`.
    """

    position: torch.Tensor
    recent: torch.Tensor
    held: torch.Tensor

    @classmethod
    def of(cls, history: torch.Tensor, position: torch.Tensor, end: torch.Tensor, config: ChoraleTransformerConfig):
        """Places of tokens whose indices in `history` are `end`.

        Args:
            history: All ids so far, shape `(batch, past + length)` or longer.
            position: Shape `(batch or 1, length)`.
            end: Index of each token in `history`, shape `(length,)`.
            config: Of the model.
        """
        lags = torch.arange((config.max_hold + 1) * config.num_voices, device=history.device)
        index = end[:, None] - lags  # (length, lags)
        ids = history[:, index.clamp(min=0)]  # (batch, length, lags)
        # A piece's own ids only, and only those that there are where a window says that it stands later in a piece
        is_there = lags <= torch.minimum(position, end)[..., None]
        ids = torch.where(is_there, ids, config.pad_token_id or 0)
        rows = ids.unflatten(-1, (-1, config.num_voices))  # (batch, length, max_hold + 1, num_voices)
        is_same = (rows == rows[..., :1, :]) & is_there.unflatten(-1, (-1, config.num_voices))
        held = is_same[..., 1:, :].long().cumprod(-2).sum(-2)
        return cls(position.expand(ids.shape[:2]), rows[..., 0, :], held)


def interval_index(upper: torch.Tensor, lower: torch.Tensor, config: ChoraleTransformerConfig) -> torch.Tensor:
    """Semitones from one id to another, from 0 (the widest downwards); `2 * num_pitches - 1` if one is no pitch."""
    are_pitches = _is_pitch(upper, config) & _is_pitch(lower, config)
    return torch.where(are_pitches, upper - lower + config.num_pitches - 1, 2 * config.num_pitches - 1)


def _is_pitch(ids: torch.Tensor, config: ChoraleTransformerConfig) -> torch.Tensor:
    return (ids >= config.first_pitch_id) & (ids < config.first_pitch_id + config.num_pitches)


class ChoraleTransformerRotaryEmbedding(nn.Module):
    """Angles of the rotated pairs of a head: some turn with the step, some with the voice, some with the pitch."""

    def __init__(self, config: ChoraleTransformerConfig):
        super().__init__()
        self.config = config

    def forward(self, position: torch.Tensor, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines, float32, shape `(batch, 1, length, head_dim / 2)`; both arguments `(batch, length)`."""
        step = torch.div(position - 1, self.config.num_voices, rounding_mode="floor")
        voice = (position - 1) % self.config.num_voices
        coordinates = torch.stack([step, voice, ids], dim=-1).float()  # (batch, length, 3)
        angle = (coordinates @ self._frequencies(ids.device))[:, None]
        return angle.cos(), angle.sin()

    def _frequencies(self, device: torch.device) -> torch.Tensor:
        """Radians per unit of each coordinate, shape `(3, head_dim / 2)`: every pair turns with one of them."""
        pairs = self.config.head_dim // 2
        bounds = [round(pairs * sum(_SHARES[:end]) / sum(_SHARES)) for end in range(4)]
        frequencies = torch.zeros(3, pairs)
        for row, waves in enumerate((_STEP_WAVES, _VOICE_WAVES, _PITCH_WAVES)):
            number = bounds[row + 1] - bounds[row]
            chosen = [waves[index % len(waves)] for index in range(number)]
            frequencies[row, bounds[row] : bounds[row + 1]] = 2 * math.pi / torch.tensor(chosen)
        return frequencies.to(device)


class ChoraleTransformerEmbeddings(nn.Module):
    """Adds to the embeddings of ids those of the place, of the latest cells and of how long they have been held."""

    def __init__(self, config: ChoraleTransformerConfig):
        super().__init__()
        self.config = config
        self.embed_beat = nn.Embedding(config.steps_per_bar * config.num_voices, config.hidden_size)
        self.embed_recent = nn.Embedding(config.num_voices * config.vocab_size, config.hidden_size)
        self.embed_held = nn.Embedding(config.num_voices * (config.max_hold + 1), config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, inputs_embeds: torch.Tensor, places: ChoralePlaces) -> torch.Tensor:
        """Embeddings, shape `(batch, length, hidden_size)`."""
        beat = places.position % self.embed_beat.num_embeddings
        voices = torch.arange(self.config.num_voices, device=beat.device)
        embeds = inputs_embeds + self.embed_beat(beat)
        num_ids = self.embed_recent.num_embeddings // self.config.num_voices  # ids that came later share the last one
        embeds = embeds + self.embed_recent(places.recent.clamp(max=num_ids - 1) + voices * num_ids).sum(-2)
        embeds = embeds + self.embed_held(places.held + voices * (self.config.max_hold + 1)).sum(-2)
        return self.dropout(rms_norm(embeds, self.config.rms_norm_eps))


class ChoraleTransformerIntervalHead(nn.Module):
    """Logits of pitches by their distance in semitones to the cell just before and to the voice's own last one."""

    def __init__(self, config: ChoraleTransformerConfig):
        super().__init__()
        self.config = config
        # Per cell: the row in the middle is that of the same pitch again, the last that of no interval
        self.weight = nn.Parameter(torch.empty(2, 2 * config.num_pitches, config.hidden_size))

    def forward(self, hidden_states: torch.Tensor, recent: torch.Tensor, vocab_size: int) -> torch.Tensor:
        """Logits of all ids, shape `(batch, length, vocab_size)`.

        Args:
            hidden_states: Shape `(batch, length, hidden_size)`.
            recent: See [`ChoralePlaces`].
            vocab_size: Number of ids.
        """
        by_interval = F.linear(hidden_states, self.weight.flatten(0, 1)).unflatten(-1, self.weight.shape[:2])
        ids = torch.arange(vocab_size, device=recent.device)
        known = torch.stack([recent[..., 0], recent[..., -1]], dim=-1)
        interval = interval_index(ids, known[..., None], self.config)  # (batch, length, 2, vocab_size)
        return by_interval.gather(-1, interval).sum(-2)


class ChoraleTransformerPreTrainedModel(CarriesCode, PreTrainedModel):
    """What the models have in common: configuration, initialisation, and what the attention can and cannot do."""

    config: ChoraleTransformerConfig  # the Auto classes read this as a class: postponed annotations would break them
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["NoteTransformerDecoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_sdpa = True
    _can_record_outputs = {
        "hidden_states": NoteTransformerDecoderLayer,
        "attentions": NoteTransformerAttention,
    }

    def get_correct_attn_implementation(self, requested_attention: str | None, is_init_check: bool = False) -> str:
        """Plain operators by default: in windows as short as these they train faster on a CPU than fused kernels do."""
        return super().get_correct_attn_implementation(requested_attention or "eager", is_init_check)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Linear):
            # Uniform with the variance of 1 / inputs: what enters is normalised, and so is what leaves.
            bound = (3 / module.in_features) ** 0.5
            init.uniform_(module.weight, -bound, bound)
        # Branches add nothing at first, and all distances are equally likely.
        if getattr(module, "begins_at_zero", False) or isinstance(module, ChoraleTransformerIntervalHead):
            init.zeros_(module.weight)  # type: ignore[arg-type]
        elif isinstance(module, ChoraleTransformerForCausalLM):
            init.normal_(module.lm_head.weight, std=self.config.initializer_range)


class ChoraleTransformerModel(ChoraleTransformerPreTrainedModel):
    """The decoder without the heads."""

    def __init__(self, config: ChoraleTransformerConfig):
        super().__init__(config)
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size

        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.embeddings = ChoraleTransformerEmbeddings(config)
        self.rotary_emb = ChoraleTransformerRotaryEmbedding(config)
        self.layers = nn.ModuleList(
            [NoteTransformerDecoderLayer(config, layer_idx) for layer_idx in range(config.num_hidden_layers)]  # type: ignore[arg-type]
        )
        self.gradient_checkpointing = False

        # Initialize weights and apply final processing
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(  # type: ignore[misc]
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        places: ChoralePlaces | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPast:
        """Run the decoder.

        Args:
            input_ids: Token ids, shape `(batch, length)`. Give either these or `inputs_embeds`.
            attention_mask: 1 for tokens and 0 for padding, shape `(batch, past_length + length)`; or a prepared mask
                of four dimensions.
            position_ids: Place of each token in its piece, shape `(batch or 1, length)`; by default counted from the
                first that the mask lets through. Packed pieces each begin at 0.
            past_key_values: Keys and values of the tokens before; it also keeps their ids.
            inputs_embeds: Shape `(batch, length, hidden_size)`: embeddings of ids, which are read back from them.
            places: What [`places_of`] gives, if it was called before.
            use_cache: Whether to return `past_key_values`.
            **kwargs: `output_hidden_states`, `output_attentions` and what the attention function takes.

        Returns:
            The last hidden state, shape `(batch, length, hidden_size)`, and the cache.

        Raises:
            ValueError: If neither or both of `input_ids` and `inputs_embeds` are given.
        """
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        if places is None:
            places = self.places_of(input_ids, attention_mask, position_ids, past_key_values, inputs_embeds)
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)
        causal_mask = create_causal_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        position_embeddings = self.rotary_emb(places.position, places.recent[..., 0])

        hidden_states = self.embeddings(inputs_embeds, places)
        for decoder_layer in self.layers:
            hidden_states = decoder_layer(
                hidden_states,
                position_embeddings=position_embeddings,
                attention_mask=causal_mask,
                past_key_values=past_key_values,
                use_cache=use_cache,
                **kwargs,
            )

        hidden_states = rms_norm(hidden_states, self.config.rms_norm_eps)
        return BaseModelOutputWithPast(last_hidden_state=hidden_states, past_key_values=past_key_values)

    def places_of(
        self,
        input_ids: torch.Tensor | None,
        attention_mask: torch.Tensor | None,
        position_ids: torch.Tensor | None,
        past_key_values: Cache | None,
        inputs_embeds: torch.Tensor | None,
    ) -> ChoralePlaces:
        """Places of new tokens; for the arguments see [`forward`]. Puts their ids into the cache, once.

        Raises:
            ValueError: See [`forward`].
        """
        if (input_ids is None) ^ (inputs_embeds is not None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
        ids = input_ids if inputs_embeds is None else self._ids_of(inputs_embeds)
        assert ids is not None
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        end = torch.arange(ids.shape[1], device=ids.device) + past
        if position_ids is None:
            position_ids = _positions(attention_mask, end)
        history = ids if past_key_values is None else remember(past_key_values, ids, self.config.num_hidden_layers)
        return ChoralePlaces.of(history, position_ids, end, self.config)

    @torch.no_grad()
    def _ids_of(self, inputs_embeds: torch.Tensor) -> torch.Tensor:
        """The ids whose embeddings are nearest, shape `(batch, length)`."""
        return torch.cdist(inputs_embeds.float(), self.embed_tokens.weight.float()[None]).argmin(-1)


def _positions(attention_mask: torch.Tensor | None, end: torch.Tensor) -> torch.Tensor:
    """Places counted from the first token that is no padding, shape `(batch or 1, length)`."""
    if attention_mask is None or attention_mask.dim() != 2:
        return end[None]
    return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -len(end) :]


def remember(cache: Cache, ids: torch.Tensor, layer_idx: int) -> torch.Tensor:
    """Keep ids in a layer of the cache of their own, so that they follow beams, crops and copies as the keys do.

    Args:
        cache: Before the tokens are put into it.
        ids: Shape `(batch, length)`.
        layer_idx: The number of layers of the model, hence the index of this one.

    Returns:
        All ids so far, shape `(batch, past + length)`, or as long as the cache where its size is fixed.
    """
    if len(cache.layers) == layer_idx:
        first = cache.layers[0]
        sizes = {"max_cache_len": first.max_cache_len} if hasattr(first, "max_cache_len") else {}
        cache.layers.append(type(first)(**sizes))
    states = ids[:, None, :, None].float()  # exact: ids are small
    return cache.update(states, states, layer_idx)[0][:, 0, :, 0].long()


class ChoraleTransformerForCausalLM(ChoraleTransformerPreTrainedModel, GenerationMixin):
    """The decoder with its heads: the model that is trained and that generates."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: ChoraleTransformerConfig):
        super().__init__(config)
        self.model = ChoraleTransformerModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.interval_head = ChoraleTransformerIntervalHead(config)

        # Initialize weights and apply final processing
        self.post_init()

    @can_return_tuple
    def forward(  # type: ignore[misc]
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CausalLMOutputWithPast:
        """Predict each next token.

        Args:
            input_ids: See [`ChoraleTransformerModel.forward`], as for the arguments that are not explained here.
            attention_mask: See there.
            position_ids: See there.
            past_key_values: See there.
            inputs_embeds: See there.
            labels: Token ids, shape `(batch, length)`, unshifted; -100 is ignored.
            use_cache: See there.
            logits_to_keep: Compute only the last so many logits (0: all), or those at these positions.
            **kwargs: `num_items_in_batch` divides the summed loss (gradient accumulation); others see there.

        Returns:
            The loss in nats per label, if there are labels, and the logits, shape `(batch, kept, vocab_size)`.
        """
        if (self.config.use_cache if use_cache is None else use_cache) and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        places = self.model.places_of(input_ids, attention_mask, position_ids, past_key_values, inputs_embeds)
        outputs: BaseModelOutputWithPast = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            places=places,
            use_cache=use_cache,
            **kwargs,
        )

        hidden_states = slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep)  # type: ignore[arg-type]
        recent = slice_logits_to_keep(places.recent, logits_to_keep)
        logits = self.lm_head(hidden_states)
        logits = logits + self.interval_head(hidden_states, recent, logits.shape[-1])

        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)

        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


__all__ = ["ChoraleTransformerForCausalLM", "ChoraleTransformerModel", "ChoraleTransformerPreTrainedModel"]
