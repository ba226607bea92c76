"""Multitrack Music Transformer: a causal decoder that takes a note of any instrument, with all its fields, as one step.

Dong et al. 2023, "Multitrack Music Transformer" (arXiv 2207.06983), https://github.com/salu133445/mmt; its decoder is
that of x-transformers 0.25.9. Published checkpoints become one of ours by `pianogen convert mmt`.

A row has six codes: type, beat, position, pitch, duration, instrument; 0 stands for "none". The embeddings of its codes
are summed to one step, and six heads predict the codes of the next row, each from the same hidden state: given the rows
before it, the fields of a row are independent of one another.

What is different here:
    * ids: the model also reads the line of ids that the tokenizer writes, of which a row is one to six. The ids of a
      row are then predicted one by one, among those of their field alone: codes that no such row can have ("none" in a
      note, the beginning of a piece within one) have no id, and so no probability. So the model trains, is scored and
      writes as every causal model of transformers does;
    * padding is no row: it is neither seen nor part of the loss;
    * a cache of keys and values in generation.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from transformers import GenerationMixin, LogitsProcessor, LogitsProcessorList, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, slice_logits_to_keep
from transformers.models.llama.modeling_llama import eager_attention_forward
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .carried_code import CarriesCode
from .configuration_multitrack_music import NUM_SPECIAL, MultitrackMusicConfig

TYPE, BEAT, POSITION, PITCH, DURATION, INSTRUMENT = range(6)
NUM_FIELDS = 6
START_OF_SONG, ANNOUNCED, START_OF_NOTES, NOTE, END_OF_SONG = range(5)  # codes of types
_LEAST_ROTATED = 32  # dimensions of a head


class MultitrackMusicRotaryEmbedding(nn.Module):
    """Turns the first dimensions of heads by angles that grow with the number of a row."""

    def __init__(self, config: MultitrackMusicConfig):
        super().__init__()
        self.num_rotated = min(max(config.head_dim // 2, _LEAST_ROTATED), config.head_dim)
        self.theta = float(config.rope_theta)

    def forward(self, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cosines and sines, float32, both of shape `(batch, 1, length, num_rotated)`."""
        exponents = torch.arange(0, self.num_rotated, 2, device=position_ids.device).float() / self.num_rotated
        angles = position_ids.float()[:, None, :, None] * self.theta**-exponents
        angles = torch.cat([angles, angles], dim=-1)
        return angles.cos(), angles.sin()


def rotate(states: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Turn the first dimensions of queries, keys or values, shape `(batch, num_heads, length, head_dim)`."""
    turned, rest = states.split([cos.shape[-1], states.shape[-1] - cos.shape[-1]], dim=-1)
    first, second = turned.chunk(2, dim=-1)
    turned = turned * cos + torch.cat([-second, first], dim=-1) * sin
    return torch.cat([turned.to(states.dtype), rest], dim=-1)


class MultitrackMusicMLP(nn.Module):
    """Feed-forward layer with GELU."""

    def __init__(self, config: MultitrackMusicConfig):
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.dropout(F.gelu(self.up_proj(hidden_states))))


class MultitrackMusicAttention(nn.Module):
    """Multi-head attention. Differs from Llama's in that values may be rotated, and in the bias of the output."""

    def __init__(self, config: MultitrackMusicConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.head_dim
        self.num_key_value_groups = 1
        self.scaling = config.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.is_causal = True
        width = config.num_attention_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, width, bias=False)
        self.o_proj = nn.Linear(width, config.hidden_size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        input_shape = hidden_states.shape[:-1]
        hidden_shape = (*input_shape, -1, self.head_dim)
        query_states, key_states, value_states = (
            proj(hidden_states).view(hidden_shape).transpose(1, 2) for proj in (self.q_proj, self.k_proj, self.v_proj)
        )  # (batch, num_heads, length, head_dim)
        if position_embeddings is not None:
            query_states, key_states = (rotate(each, *position_embeddings) for each in (query_states, key_states))
            if self.config.rotate_values:
                value_states = rotate(value_states, *position_embeddings)
        if past_key_values is not None:
            key_states, value_states = past_key_values.update(key_states, value_states, self.layer_idx)
        attention_interface = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        attn_output, attn_weights = attention_interface(
            self,
            query_states,
            key_states,
            value_states,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return self.o_proj(attn_output.reshape(*input_shape, -1).contiguous()), attn_weights


class MultitrackMusicDecoderLayer(GradientCheckpointingLayer):
    """Attention and feed-forward layer, each after a normalisation."""

    def __init__(self, config: MultitrackMusicConfig, layer_idx: int):
        super().__init__()
        self.self_attn = MultitrackMusicAttention(config, layer_idx)
        self.mlp = MultitrackMusicMLP(config)
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        attended, _ = self.self_attn(self.input_layernorm(hidden_states), **kwargs)
        hidden_states = hidden_states + self.dropout(attended)
        return hidden_states + self.dropout(self.mlp(self.post_attention_layernorm(hidden_states)))


class MultitrackMusicPreTrainedModel(CarriesCode, PreTrainedModel):
    """Base of the models: how weights begin, and what the library may do with them."""

    config_class = MultitrackMusicConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["MultitrackMusicDecoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _can_record_outputs = {
        "hidden_states": MultitrackMusicDecoderLayer,
        "attentions": MultitrackMusicAttention,
    }

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, MultitrackMusicModel):
            for embedding in module.embed_fields:
                init.normal_(embedding.weight, std=(2 / self.config.hidden_size) ** 0.5)  # type: ignore[arg-type]


class MultitrackMusicModel(MultitrackMusicPreTrainedModel):
    """The decoder without the heads, over rows."""

    def __init__(self, config: MultitrackMusicConfig):
        super().__init__(config)
        self.embed_fields = nn.ModuleList([nn.Embedding(size, config.hidden_size) for size in config.field_sizes])
        if config.position_embedding_type == "learned":
            self.embed_positions = nn.Embedding(config.max_rows, config.hidden_size)
        self.rotary_emb = MultitrackMusicRotaryEmbedding(config)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.layers = nn.ModuleList(
            [MultitrackMusicDecoderLayer(config, layer_idx) for layer_idx in range(config.num_hidden_layers)]
        )
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.gradient_checkpointing = False

        # Initialize weights and apply final processing
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Embeddings of pitches: of the six, those that most notes differ by."""
        return self.embed_fields[PITCH]

    @merge_with_config_defaults
    @capture_outputs
    def forward(  # type: ignore[misc]
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPast:
        """Run the decoder.

        Args:
            input_ids: Rows of codes, shape `(batch, num_rows, 6)`.
            attention_mask: 1 for rows and 0 for padding, shape `(batch, past_rows + num_rows)`.
            position_ids: Number of each row in its piece, shape `(batch or 1, num_rows)`; by default counted from the
                first that the mask lets through.
            past_key_values: Keys and values of the rows before.
            use_cache: Whether to return `past_key_values`.
            **kwargs: `output_hidden_states`, `output_attentions` and what the attention function takes.

        Returns:
            The last hidden state, shape `(batch, num_rows, hidden_size)`, and the cache.

        Raises:
            ValueError: If `input_ids` are no rows.
        """
        if input_ids is None or input_ids.dim() != 3 or input_ids.shape[-1] != NUM_FIELDS:
            raise ValueError(f"rows of {NUM_FIELDS} codes are wanted, of shape (batch, num_rows, {NUM_FIELDS})")
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        past = 0 if past_key_values is None else past_key_values.get_seq_length()
        length = input_ids.shape[1]
        if position_ids is None:
            places = (torch.arange(length, device=input_ids.device) + past)[None]
            if attention_mask is not None and attention_mask.dim() == 2:
                first = attention_mask.long().argmax(-1, keepdim=True)
                places = (places - first).clamp(min=0)
            position_ids = places
        embeds = torch.stack([embed(input_ids[..., field]) for field, embed in enumerate(self.embed_fields)]).sum(0)
        position_embeddings = None
        if self.config.position_embedding_type == "learned":
            within = position_ids.clamp(max=self.config.max_rows - 1)
            embeds = embeds + self.embed_positions(within) * self.config.hidden_size**-0.5
        elif self.config.position_embedding_type == "rotary":
            position_embeddings = self.rotary_emb(position_ids)
        if attention_mask is not None and attention_mask.dim() == 2 and not attention_mask.all():
            causal_mask: Any = padded_mask(attention_mask, length, embeds.dtype)
        else:
            causal_mask = create_causal_mask(
                config=self.config, inputs_embeds=embeds, attention_mask=attention_mask, past_key_values=past_key_values
            )
        hidden_states = self.dropout(embeds)
        for decoder_layer in self.layers:
            hidden_states = decoder_layer(
                hidden_states,
                position_embeddings=position_embeddings,
                attention_mask=causal_mask,
                past_key_values=past_key_values,
                **kwargs,
            )
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden_states), past_key_values=past_key_values)


def padded_mask(attention_mask: torch.Tensor, length: int, dtype: torch.dtype) -> torch.Tensor:
    """What is added to scores: rows see rows up to themselves, and padding sees everything alike, as in the original.

    Args:
        attention_mask: 1 for rows and 0 for padding, shape `(batch, past_rows + length)`.
        length: Number of rows that look.
        dtype: Of the scores.

    Returns:
        Shape `(batch, 1, length, past_rows + length)`.
    """
    is_row = attention_mask.bool()
    size = is_row.shape[1]
    sees = torch.ones(length, size, dtype=torch.bool, device=is_row.device).tril(size - length)
    sees = sees & is_row[:, None, None, :] & is_row[:, None, -length:, None]
    # Not minus infinity: where all scores are the least number, all weights are equal.
    return torch.zeros(sees.shape, dtype=dtype, device=sees.device).masked_fill(~sees, torch.finfo(dtype).min)


class RowCache(DynamicCache):
    """Keys and values of rows, and what is known of the row that ids are just telling.

    Attributes:
        state: tensors whose first dimension is the batch, or nothing before the first ids: `codes` of the row so far,
            `has_begun`, `num_rows` before it, `hidden` state of the last of them, and the `mask` of all cached rows.
    """

    def __init__(self, config: MultitrackMusicConfig):
        super().__init__(config=config)
        self.state: dict[str, torch.Tensor] = {}

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """As for every cache."""
        super().reorder_cache(beam_idx)
        self.state = {name: each.index_select(0, beam_idx.to(each.device)) for name, each in self.state.items()}

    def batch_repeat_interleave(self, repeats: int) -> None:
        """As for every cache."""
        super().batch_repeat_interleave(repeats)
        self.state = {name: each.repeat_interleave(repeats, dim=0) for name, each in self.state.items()}

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """As for every cache."""
        super().batch_select_indices(indices)
        self.state = {name: each[indices] for name, each in self.state.items()}


class IdLayout:
    """What ids mean: tables over the vocabulary, each of shape `(vocab_size,)`.

    Attributes:
        field: of each id; -1 for padding.
        code: of each id in its field.
        begins: whether an id begins a row.
        completes: whether a row is whole with it.
        next_field: the field of the id after it.
    """

    def __init__(self, config: MultitrackMusicConfig, device: torch.device):
        sizes = config.numbers_of_ids
        num_others = config.vocab_size - NUM_SPECIAL - sum(sizes)  # tokens that were added
        numbers = torch.tensor([NUM_SPECIAL, *sizes, num_others])
        field = torch.repeat_interleave(torch.tensor([-1, *range(NUM_FIELDS), -1]), numbers)
        code = torch.arange(config.vocab_size) - torch.repeat_interleave(numbers.cumsum(0) - numbers, numbers) + 1
        ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
        for special, kind in [(config.bos_token_id, START_OF_SONG), *((end, END_OF_SONG) for end in ends)]:
            if special is not None:
                field[special], code[special] = TYPE, kind
        is_type = field == TYPE
        whole_type = (code == START_OF_SONG) | (code == START_OF_NOTES) | (code == END_OF_SONG)
        self.field, self.code = field.to(device), code.to(device)
        self.begins = is_type.to(device)
        self.completes = (is_type & whole_type | (field == INSTRUMENT)).to(device)
        following = torch.where(is_type, torch.where(code == NOTE, BEAT, INSTRUMENT), (field + 1) % NUM_FIELDS)
        self.next_field = torch.where(self.completes.cpu() | (field < 0), TYPE, following).to(device)

    def predictable(self) -> torch.Tensor:
        """Whether an id can be predicted: those that have a code, but for the beginning of a piece."""
        return (self.field >= 0) & ~(self.begins & (self.code == START_OF_SONG))


class MultitrackMusicForCausalLM(MultitrackMusicPreTrainedModel, GenerationMixin):
    """The decoder with its heads: the model that is trained and that generates, over rows or over ids."""

    def __init__(self, config: MultitrackMusicConfig):
        super().__init__(config)
        self.model = MultitrackMusicModel(config)
        self.vocab_size = config.vocab_size
        self.heads = nn.ModuleList([nn.Linear(config.hidden_size, size) for size in config.field_sizes])
        self._layouts: dict[torch.device, IdLayout] = {}

        # Initialize weights and apply final processing
        self.post_init()

    def get_output_embeddings(self) -> Any:
        """There is none: each field has a head of its own."""
        return None

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Unpack[TransformersKwargs],
    ) -> CausalLMOutputWithPast:
        """Predict the next row of each row, or the next id of each id.

        Args:
            input_ids: Rows of codes, shape `(batch, num_rows, 6)`, or ids of the tokenizer, shape `(batch, length)`.
            attention_mask: 1 for rows or ids and 0 for padding, shape `(batch, past + num_rows)` or `(batch, past +
                length)`.
            past_key_values: Of what stands before. With ids it is a [`RowCache`].
            labels: As `input_ids`, unshifted; -100 is ignored, and so are rows that the mask leaves out.
            use_cache: Whether to return `past_key_values`.
            logits_to_keep: With ids: compute only the last so many logits (0: all), or those at these positions.
            **kwargs: `num_items_in_batch` divides the summed loss of ids (gradient accumulation); others see
                [`MultitrackMusicModel.forward`].

        Returns:
            With rows, logits are six tensors, one for each field, of shape `(batch, num_rows, codes)`, and the loss is
            the sum of the fields' mean cross-entropies. With ids, logits have shape `(batch, kept, vocab_size)`, the
            least number for ids of another field than the next, and the loss is the mean over ids.

        Raises:
            ValueError: If `input_ids` are neither.
        """
        if input_ids is None or input_ids.dim() not in (2, 3):
            raise ValueError("You must specify input_ids: ids or rows")
        if input_ids.dim() == 3:
            return self._forward_rows(input_ids, attention_mask, past_key_values, labels, use_cache, **kwargs)
        if (self.config.use_cache if use_cache is None else use_cache) and past_key_values is None and labels is None:
            past_key_values = RowCache(self.config)
        hidden_states, outputs = self._run_ids(input_ids, attention_mask, past_key_values, **kwargs)
        kept_ids = slice_logits_to_keep(input_ids[..., None], logits_to_keep)[..., 0]
        logits = self._id_logits(slice_logits_to_keep(hidden_states, logits_to_keep), kept_ids)
        loss = None
        if labels is not None:
            loss = self.loss_function(logits=logits, labels=labels, vocab_size=self.config.vocab_size, **kwargs)
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=past_key_values,
            hidden_states=outputs.hidden_states if outputs is not None else None,
            attentions=outputs.attentions if outputs is not None else None,
        )

    def _forward_rows(
        self,
        rows: torch.Tensor,
        attention_mask: torch.Tensor | None,
        past_key_values: Cache | None,
        labels: torch.Tensor | None,
        use_cache: bool | None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        outputs = self.model(rows, attention_mask, past_key_values=past_key_values, use_cache=use_cache, **kwargs)
        logits = tuple(head(outputs.last_hidden_state) for head in self.heads)
        loss = None
        if labels is not None:
            targets = labels[:, 1:]
            if attention_mask is not None:
                is_row = attention_mask[:, -labels.shape[1] :][:, 1:, None].bool()
                targets = targets.masked_fill(~is_row, -100)
            losses = [
                F.cross_entropy(each[:, :-1].flatten(0, 1).float(), targets[..., field].flatten())
                for field, each in enumerate(logits)
            ]
            loss = torch.stack(losses).sum()
        return CausalLMOutputWithPast(
            loss=loss,
            logits=logits,  # type: ignore[arg-type]
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    # Ids -------------------------------------------------------------------------------------------------------------

    @property
    def layout(self) -> IdLayout:
        """What ids mean, on the device of the model."""
        if self.device not in self._layouts:
            self._layouts[self.device] = IdLayout(self.config, self.device)
        return self._layouts[self.device]

    def _run_ids(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        cache: Cache | None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, BaseModelOutputWithPast | None]:
        """The hidden state that predicts what follows each id: of the last whole row, `(batch, length, hidden_size)`.

        A row is given to the decoder when its last id has come, or another row begins.
        """
        batch, length = input_ids.shape
        layout, device = self.layout, input_ids.device
        state = cache.state if isinstance(cache, RowCache) and cache.state else self._first_state(batch)
        field = layout.field[input_ids]
        if attention_mask is not None:
            field = field.masked_fill(attention_mask[:, -length:] == 0, -1)
        tells = field >= 0
        begins = layout.begins[input_ids] & tells
        row = begins.long().cumsum(1)  # 0 is the row that has begun before
        num_rows = int(row.max()) + 1
        codes, exists = self._row_codes(input_ids, field, row, num_rows, state)
        completes = layout.completes[input_ids] & tells
        is_fed = exists & (torch.arange(num_rows, device=device) < row[:, -1:])
        whole = torch.zeros_like(is_fed).scatter_reduce_(1, row, completes, "amax")
        is_fed |= exists & whole

        outputs = None
        known = state["hidden"][:, None]  # (batch, 1, hidden_size)
        mask = torch.cat([state["mask"], is_fed.to(state["mask"].dtype)], dim=1)
        if is_fed.any():
            position_ids = (state["num_rows"][:, None] + is_fed.long().cumsum(1) - 1).clamp(min=0)
            outputs = self.model(
                codes, mask, position_ids=position_ids, past_key_values=cache, use_cache=cache is not None, **kwargs
            )
            known = torch.cat([known, outputs.last_hidden_state], dim=1)
        places = torch.where(is_fed, torch.arange(1, num_rows + 1, device=device), 0)
        latest = F.pad(places.cummax(1).values, (1, 0))  # (batch, 1 + num_rows): before each row, and at the end
        last_whole = latest.gather(1, row + completes)
        hidden_states = known.gather(1, last_whole[..., None].expand(-1, -1, known.shape[-1]))
        if isinstance(cache, RowCache):
            final, item = row[:, -1], torch.arange(batch, device=device)
            is_open = exists[item, final] & ~is_fed[item, final]
            cache.state = {
                "codes": torch.where(is_open[:, None], codes[item, final], 0),
                "has_begun": is_open,
                "num_rows": state["num_rows"] + is_fed.sum(1),
                "hidden": known[item, latest[:, -1]],
                "mask": mask if outputs is not None else state["mask"],
            }
        return hidden_states, outputs

    def _first_state(self, batch: int) -> dict[str, torch.Tensor]:
        zeros = torch.zeros(batch, dtype=torch.long, device=self.device)
        return {
            "codes": zeros[:, None].expand(-1, NUM_FIELDS),
            "has_begun": zeros.bool(),
            "num_rows": zeros,
            "hidden": torch.zeros(batch, self.config.hidden_size, dtype=self.dtype, device=self.device),
            "mask": zeros[:, None][:, :0],
        }

    def _row_codes(
        self, input_ids: torch.Tensor, field: torch.Tensor, row: torch.Tensor, num_rows: int, state: dict[str, Any]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Codes of the rows that ids tell, `(batch, num_rows, 6)`, and whether there is a row, `(batch, num_rows)`."""
        tells = field >= 0
        codes = input_ids.new_zeros(len(input_ids), num_rows, NUM_FIELDS + 1)  # the last column is for padding
        codes[:, 0, :NUM_FIELDS] = state["codes"]
        place = row * (NUM_FIELDS + 1) + torch.where(tells, field, NUM_FIELDS)
        codes = codes.flatten(1).scatter(1, place, self.layout.code[input_ids]).view(codes.shape)[..., :NUM_FIELDS]
        exists = torch.zeros(codes.shape[:2], dtype=torch.bool, device=codes.device)
        exists[:, 0] = state["has_begun"]
        return codes, exists.scatter_reduce(1, row, tells, "amax")

    def _id_logits(self, hidden_states: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Logits of the ids that may follow, shape `(batch, length, vocab_size)`."""
        layout = self.layout
        chosen = torch.nonzero(layout.predictable())[:, 0]
        field, code = layout.field[chosen], layout.code[chosen]
        first = torch.tensor([0, *self.config.field_sizes[:-1]], device=chosen.device).cumsum(0)
        rows = first[field] + code
        heads = [head for head in self.heads if isinstance(head, nn.Linear)]
        weight, bias = torch.cat([head.weight for head in heads])[rows], torch.cat([head.bias for head in heads])[rows]
        scores = F.linear(hidden_states, weight, bias)
        least = torch.finfo(scores.dtype).min
        scores = scores.masked_fill(layout.next_field[ids][..., None] != field, least)
        logits = scores.new_full((*scores.shape[:-1], self.config.vocab_size), least)
        return logits.index_copy(-1, chosen, scores)

    # Generation ------------------------------------------------------------------------------------------------------

    def _prepare_cache_for_generation(
        self, generation_config: Any, model_kwargs: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Any:
        """Give `generate` the cache that counts rows."""
        if generation_config.use_cache is not False and model_kwargs.get("past_key_values") is None:
            model_kwargs["past_key_values"] = RowCache(self.config)

    @torch.no_grad()
    def generate_rows(
        self,
        rows: torch.Tensor | Sequence[Any] | None = None,
        max_new_rows: int = 512,
        legacy: bool = False,
        **kwargs: Any,
    ) -> list[torch.Tensor]:
        """Go on from rows: from the first alone, from instruments, or from the beginning of a piece.

        Types and beats never fall, and unless `legacy`, only announced instruments play. For prompts see
        `MultitrackMusicTokenizer.prompt_rows`.

        Args:
            rows: Prompts, which may differ in length: one of shape `(num_rows, 6)`, a batch, or a list of prompts;
                the row that begins a piece by default.
            max_new_rows: Rows after the prompt, at most.
            legacy: Whether any instrument may play, as with the original.
            **kwargs: As for `generate`: `do_sample`, `temperature`, `top_k`, `top_p`, ...

        Returns:
            For each prompt its rows and the new ones, shape `(num_rows, 6)`, with that of the end if it came.

        Raises:
            ValueError: If a model with learned positions has none for so many rows. (`continue_notes` starts anew from
                the latest of them.)
        """
        prompts = [[[0] * NUM_FIELDS]] if rows is None else [torch.as_tensor(each).tolist() for each in rows]
        if prompts and not isinstance(prompts[0][0], list):
            prompts = [prompts]
        most = max(map(len, prompts)) + max_new_rows
        if self.config.position_embedding_type == "learned" and most > self.config.max_rows:
            raise ValueError(
                f"prompt and new rows are {most}, and the model has positions for {self.config.max_rows}: ask for fewer"
            )
        ids = [self._ids_of_rows(torch.tensor(prompt)) for prompt in prompts]
        width = max(map(len, ids))
        batch = torch.full((len(ids), width), self.config.pad_token_id or 0, device=self.device)
        mask = torch.zeros_like(batch)
        for index, each in enumerate(ids):
            batch[index, width - len(each) :], mask[index, width - len(each) :] = each.to(self.device), 1
        processors = LogitsProcessorList([RisingRows(self.layout, only_announced=not legacy)])
        written = self.generate(  # type: ignore[misc]
            batch,
            attention_mask=mask,
            max_new_tokens=max_new_rows * NUM_FIELDS,
            logits_processor=processors,
            pad_token_id=self.config.pad_token_id,
            eos_token_id=self.config.eos_token_id,
            **kwargs,
        )
        per_prompt = len(written) // len(prompts)
        limits = [len(prompt) + max_new_rows for prompt in prompts for _ in range(per_prompt)]
        return [self._rows_of_ids(each)[:limit] for each, limit in zip(written, limits, strict=True)]

    def _ids_of_rows(self, rows: torch.Tensor) -> torch.Tensor:
        """The ids that tell rows, shape `(length,)`."""
        first = torch.tensor([NUM_SPECIAL, *self.config.numbers_of_ids[:-1]]).cumsum(0)
        ids = torch.where(rows > 0, rows + first - 1, -1)
        eos = self.config.eos_token_id
        ends = {START_OF_SONG: self.config.bos_token_id, END_OF_SONG: eos[0] if isinstance(eos, list) else eos}
        for kind, special in ends.items():
            ids[rows[:, TYPE] == kind] = -1
            ids[rows[:, TYPE] == kind, TYPE] = -1 if special is None else special
        return ids[ids >= 0]

    def _rows_of_ids(self, ids: torch.Tensor) -> torch.Tensor:
        """The whole rows that ids tell, shape `(num_rows, 6)`."""
        ids = ids[self.layout.field[ids] >= 0]
        field, code = self.layout.field[ids], self.layout.code[ids]
        row = self.layout.begins[ids].long().cumsum(0) - 1
        rows = ids.new_zeros(int(row.max()) + 1, NUM_FIELDS)
        rows[row, field] = code
        return rows if self.layout.completes[ids[-1]] else rows[:-1]


class RisingRows(LogitsProcessor):
    """Types and beats that never fall; for each item of a batch.

    Args:
        layout: of the ids.
        only_announced: whether only instruments may play that the piece has announced, if it has announced any.
    """

    def __init__(self, layout: IdLayout, only_announced: bool = True):
        self.layout, self.only_announced = layout, only_announced

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Forbid ids, whose scores become minus infinity; shapes `(batch, length)` and `(batch, vocab_size)`."""
        layout = self.layout
        field, code = layout.field[input_ids], layout.code[input_ids]
        highest = [torch.where(field == each, code, 0).amax(1, keepdim=True) for each in (TYPE, BEAT)]
        forbidden = (layout.field == TYPE) & (layout.code < highest[0])
        forbidden = forbidden | ((layout.field == BEAT) & (layout.code < highest[1]))
        if self.only_announced:
            is_header = F.pad(field == TYPE, (1, 0))[:, :-1] & F.pad(code == ANNOUNCED, (1, 0))[:, :-1]
            announced = torch.zeros_like(forbidden).scatter_reduce_(
                1, input_ids, is_header & (field == INSTRUMENT), "amax"
            )
            plays = (highest[0] == NOTE) & announced.any(1, keepdim=True)
            forbidden = forbidden | (plays & (layout.field == INSTRUMENT) & ~announced)
        return scores.masked_fill(forbidden, -torch.inf)  # type: ignore[return-value]


__all__ = [
    "MultitrackMusicForCausalLM",
    "MultitrackMusicModel",
    "MultitrackMusicPreTrainedModel",
]
