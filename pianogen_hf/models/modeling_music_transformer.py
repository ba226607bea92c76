"""Music Transformer (V7): a causal decoder whose only notion of position is an embedding per distance.

Paper: Huang et al. 2018, "Music Transformer: Generating Music with Long-Term Structure", https://arxiv.org/abs/1809.04281
(relative attention after Shaw et al. 2018; the memory-saving "skewing" is the paper's section 3.4.1).

With `position_embedding_type` and `memory_length` it is a Transformer-XL (Dai et al. 2019,
https://arxiv.org/abs/1901.02860), with `knn_layer` a Memorizing Transformer (Wu et al. 2022,
https://arxiv.org/abs/2203.08913); `relative_positions.py`, `segment_memory.py` and `retrieval.py` have what is theirs.

Origin: written for this package in the order and words of transformers' Llama.

Changes from the paper:
    * No absolute (sinusoidal) positions: distances alone carry the position, so that left padding changes nothing, a
      prompt may be cut anywhere, and length is not bounded by a table.
    * Layer normalisation before each branch, and once at the end: such a model trains without a long warm-up, because
      gradients at initialisation do not grow with depth (Xiong et al. 2020, https://arxiv.org/abs/2002.04745).
    * Input embedding and output projection are tied by default.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from transformers import GenerationMixin, MaxLengthCriteria, PreTrainedModel, StoppingCriteriaList
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, slice_logits_to_keep
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .carried_code import CarriesCode
from .configuration_music_transformer import MusicTransformerConfig
from .fast_decoding import let_grow, packed_weight
from .relative_attention_dispatch import RELATIVE_ATTENTION
from .relative_positions import MusicTransformerRelativeEmbedding, clipped_distances
from .retrieval import FIRST_SCALE, MusicTransformerRetrieval
from .segment_memory import SegmentMemory


def additive_mask(attention_mask: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    """Turn a boolean mask into one that is added to the logits, once per forward.

    Given a boolean mask, `sdpa` selects between bias and mask in every layer, which costs two more tensors of the size
    of the logits in the backward pass than an addition.

    Args:
        attention_mask: True where a query may see a key; other masks are returned as they are.
        dtype: Floating point type of the result.

    Returns:
        Zero where a query may see a key and a large negative number elsewhere, in the shape of `attention_mask`.
    """
    if attention_mask is None or attention_mask.dtype != torch.bool:
        return attention_mask
    # Half of the range: the sum with a bias stays finite, so a row of nothing but padding does not become NaN.
    hidden = torch.finfo(dtype).min / 2
    return torch.zeros_like(attention_mask, dtype=dtype).masked_fill(~attention_mask, hidden)


class MusicTransformerMLP(nn.Module):
    """Position-wise feed-forward network."""

    def __init__(self, config: MusicTransformerConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.act_fn = ACT2FN[config.hidden_act]
        self.packed_fc1: torch.Tensor | None = None  # while tokens are decoded one by one

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        if self.packed_fc1 is None:
            hidden_states = self.fc1(hidden_states)
        else:
            hidden_states = nn.functional.linear(hidden_states, self.packed_fc1, self.fc1.bias)
        return self.fc2(self.act_fn(hidden_states))


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    position_bias: torch.Tensor | None = None,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention in plain operators; like `sdpa`, it adds `position_bias` after scaling.

    Args:
        module: The calling attention layer.
        query: Shape `(batch, num_heads, query_length, head_dim)`.
        key: Shape `(batch, num_heads, key_length, head_dim)`.
        value: Shape as `key`.
        attention_mask: Additive mask, shape `(batch, 1, query_length, key_length)`.
        scaling: Factor of the products of queries and keys.
        dropout: Dropout probability of the attention weights.
        position_bias: Shape `(batch, num_heads, query_length, key_length)`.
        **kwargs: Unused; part of the attention interface.

    Returns:
        The output, shape `(batch, query_length, num_heads, head_dim)`, and the attention weights.
    """
    attn_weights = torch.matmul(query * scaling, key.transpose(2, 3))
    if position_bias is not None:
        attn_weights = attn_weights + position_bias
    if attention_mask is not None:
        attn_weights = attn_weights + attention_mask
    attn_weights = nn.functional.softmax(attn_weights, dim=-1, dtype=torch.float32).to(query.dtype)
    attn_weights = nn.functional.dropout(attn_weights, p=dropout, training=module.training)
    attn_output = torch.matmul(attn_weights, value)
    return attn_output.transpose(1, 2).contiguous(), attn_weights


class MusicTransformerAttention(nn.Module):
    """Multi-head attention with relative positions: `softmax((q k + q Er[distance]) / sqrt(head_dim)) v`.

    Differs from `LlamaAttention`: the position enters as a bias on the logits, not as a rotation of queries and keys.
    One layer may also look up what left the memory; its queries and keys are normalised, and bring their own scale.
    """

    def __init__(self, config: MusicTransformerConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.is_causal = True

        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
        self.relative_embedding = MusicTransformerRelativeEmbedding(config)
        self.retrieval = None
        if layer_idx == config.knn_layer:
            self.scaling, self.retrieval = 1.0, MusicTransformerRetrieval(config)
        self.sliding_window = config.attention_window
        self.packed_qkv: torch.Tensor | None = None  # while tokens are decoded one by one

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        relative_distance: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        input_shape = hidden_states.shape[:-1]
        hidden_shape = (*input_shape, -1, self.head_dim)

        if self.packed_qkv is None:
            projected: tuple[torch.Tensor, ...] = (
                self.q_proj(hidden_states),
                self.k_proj(hidden_states),
                self.v_proj(hidden_states),
            )
        else:
            projected = nn.functional.linear(hidden_states, self.packed_qkv).chunk(3, dim=-1)
        # (batch, num_heads, query_length, head_dim)
        query_states, key_states, value_states = (states.view(hidden_shape).transpose(1, 2) for states in projected)

        found: tuple[torch.Tensor, torch.Tensor] | None = None
        if self.retrieval is not None:
            query_states, key_states = self.retrieval.normalized(query_states, key_states)
            stored = past_key_values.searchable(self.layer_idx) if isinstance(past_key_values, SegmentMemory) else None
            if stored is not None:  # to be searched before this segment moves more there
                found = self.retrieval.search(query_states, *stored), stored[2].clone()
        if past_key_values is not None:
            key_states, value_states = past_key_values.update(key_states, value_states, self.layer_idx)

        content_query, position_query = self.relative_embedding.queries(query_states)
        implementation = self.config._attn_implementation
        positions: dict = {
            "relative_embedding": self.relative_embedding,
            "position_query": position_query,
            "relative_distance": relative_distance,
        }
        if implementation != RELATIVE_ATTENTION:
            # Other functions add the bias after scaling the products of queries and keys, hence the scaled queries.
            scaled = position_query * self.scaling
            bias = self.relative_embedding(scaled, relative_distance, key_states.shape[2])
            positions = {"position_bias": bias}

        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(implementation, eager_attention_forward)
        attn_output, attn_weights = attention_interface(
            self,
            content_query,
            key_states,
            value_states,
            attention_mask,
            dropout=0.0 if not self.training else self.attention_dropout,
            scaling=self.scaling,
            sliding_window=self.sliding_window,
            **positions,
            **kwargs,
        )

        if self.retrieval is not None and found is not None:
            attn_output = self.retrieval(attn_output, *found)
        attn_output = attn_output.reshape(*input_shape, -1)
        return self.o_proj(attn_output), attn_weights


class MusicTransformerDecoderLayer(GradientCheckpointingLayer):
    """Attention and feed-forward network, each normalised on entry and added to the residual stream."""

    def __init__(self, config: MusicTransformerConfig, layer_idx: int):
        super().__init__()
        self.self_attn = MusicTransformerAttention(config=config, layer_idx=layer_idx)
        self.mlp = MusicTransformerMLP(config)
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        relative_distance: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        residual = hidden_states
        hidden_states = self.input_layernorm(hidden_states)
        hidden_states, _ = self.self_attn(
            hidden_states=hidden_states,
            attention_mask=attention_mask,
            relative_distance=relative_distance,
            past_key_values=past_key_values,
            **kwargs,
        )
        hidden_states = residual + self.dropout(hidden_states)

        residual = hidden_states
        hidden_states = self.post_attention_layernorm(hidden_states)
        hidden_states = self.mlp(hidden_states)
        return residual + self.dropout(hidden_states)


class MusicTransformerPreTrainedModel(CarriesCode, PreTrainedModel):
    """What the models have in common: configuration, initialisation, and what the attention can and cannot do."""

    config: MusicTransformerConfig  # the Auto classes read this as a class: postponed annotations would break them
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["MusicTransformerDecoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    # Flash kernels take no bias. Flex takes one, but it has no backward on CPU and refuses attention dropout: the
    # default uses it where it can.
    _supports_flash_attn = False
    _supports_flex_attn = False
    _supports_sdpa = True
    # Paged and other backends put several sequences into one row, where the index in the row is no position.
    _supports_attention_backend = False
    _can_compile_fullgraph = True
    _can_record_outputs = {
        "hidden_states": MusicTransformerDecoderLayer,
        "attentions": MusicTransformerAttention,
    }

    def get_correct_attn_implementation(self, requested_attention: str | None, is_init_check: bool = False) -> str:
        """Let the relative attention, which chooses by device and call, be the default instead of `sdpa`."""
        return super().get_correct_attn_implementation(requested_attention or RELATIVE_ATTENTION, is_init_check)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, MusicTransformerRelativeEmbedding):
            # Embeddings as large as normalised keys: with `initializer_range` the order of the tokens would be almost
            # invisible at first. The same scale as in the authors' Tensor2Tensor code.
            if module.is_learned:
                init.normal_(module.weight, mean=0.0, std=module.weight.shape[-1] ** -0.5)
            else:
                for bias in (module.content_bias, module.position_bias):
                    init.normal_(bias, mean=0.0, std=self.config.initializer_range)
        if isinstance(module, MusicTransformerRetrieval):
            init.constant_(module.qk_norm, FIRST_SCALE)
            init.zeros_(module.gate_bias)


class MusicTransformerModel(MusicTransformerPreTrainedModel):
    """The decoder without the output projection."""

    def __init__(self, config: MusicTransformerConfig):
        super().__init__(config)
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size

        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.layers = nn.ModuleList(
            [MusicTransformerDecoderLayer(config, layer_idx) for layer_idx in range(config.num_hidden_layers)]
        )
        self.norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
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
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPast:
        """Run the decoder.

        Args:
            input_ids: Token ids, shape `(batch, length)`. Give either these or `inputs_embeds`.
            attention_mask: 1 for tokens and 0 for padding, shape `(batch, past_length + length)`; or a prepared mask
                of four dimensions.
            position_ids: Shape `(batch, length)`. Only tells where packed sequences restart: positions are otherwise
                relative and come from the order of the tokens.
            past_key_values: Keys and values of the tokens before; with `memory_length` a [`SegmentMemory`].
            inputs_embeds: Shape `(batch, length, hidden_size)`.
            use_cache: Whether to return `past_key_values`.
            **kwargs: `output_hidden_states`, `output_attentions` and what the attention function takes.

        Returns:
            The last hidden state, shape `(batch, length, hidden_size)`, and the cache.

        Raises:
            ValueError: If neither or both of `input_ids` and `inputs_embeds` are given.
        """
        if (input_ids is None) ^ (inputs_embeds is not None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds")

        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)

        if use_cache and past_key_values is None:
            remembers = self.config.memory_length is not None
            past_key_values = SegmentMemory(self.config) if remembers else DynamicCache(config=self.config)
        if isinstance(past_key_values, SegmentMemory):
            past_key_values.observe(attention_mask, inputs_embeds.shape[1])

        create_mask = create_causal_mask if self.config.attention_window is None else create_sliding_window_causal_mask
        causal_mask = create_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
            # With a bias, sdpa cannot use its causal flag and would rebuild the causal mask in every layer.
            allow_is_causal_skip=self.config._attn_implementation == RELATIVE_ATTENTION,
        )
        if self.config._attn_implementation != RELATIVE_ATTENTION:
            causal_mask = additive_mask(causal_mask, inputs_embeds.dtype)  # type: ignore[arg-type]
        relative_distance = clipped_distances(
            inputs_embeds.shape[1], past_key_values, self.config.max_relative_distance, inputs_embeds.device
        )

        # No position is added here: the attention layers know distances.
        hidden_states = self.dropout(inputs_embeds)
        for decoder_layer in self.layers[: self.config.num_hidden_layers]:
            hidden_states = decoder_layer(
                hidden_states,
                attention_mask=causal_mask,
                relative_distance=relative_distance,
                past_key_values=past_key_values,
                use_cache=use_cache,
                **kwargs,
            )

        hidden_states = self.norm(hidden_states)
        return BaseModelOutputWithPast(last_hidden_state=hidden_states, past_key_values=past_key_values)


class MusicTransformerForCausalLM(MusicTransformerPreTrainedModel, GenerationMixin):
    """The decoder with a projection to the vocabulary: the model that is trained and that generates."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: MusicTransformerConfig):
        super().__init__(config)
        self.model = MusicTransformerModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.is_worth_packing = True

        # Initialize weights and apply final processing
        self.post_init()

    def _prepare_cache_for_generation(self, generation_config: Any, model_kwargs: dict, *args: Any, **kwargs: Any):
        """Let the default cache of `generate` grow in place; one that the user gives stays as it is."""
        is_given = model_kwargs.get("past_key_values") is not None
        is_usual = generation_config.cache_implementation in (None, "dynamic")
        is_usual = is_usual and generation_config.use_cache is not False
        if self.config.memory_length is not None and is_usual and not is_given:
            generation_config.cache_implementation = None  # which asks for nothing besides a cache that is given
            model_kwargs["past_key_values"] = SegmentMemory(self.config)
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)  # type: ignore[misc]
        if not is_given:
            let_grow(model_kwargs.get("past_key_values"))
        self.is_worth_packing = not generation_config.is_assistant  # which is asked for a few tokens, again and again

    def _get_stopping_criteria(self, *args: Any, **kwargs: Any) -> StoppingCriteriaList:
        """The parent's, which warns of what is longer than training: with a memory that is what is meant."""
        criteria = super()._get_stopping_criteria(*args, **kwargs)  # type: ignore[misc]
        for each in criteria:
            if isinstance(each, MaxLengthCriteria) and self.config.memory_length is not None:
                each.max_position_embeddings = None
        return criteria

    @contextmanager
    def _optimize_model_for_decode(self) -> Iterator[None]:
        """Pack weights for the steps of `generate` after the prompt, which takes as long as three or four of them."""
        layers = [(layer.self_attn, layer.mlp) for layer in self.model.layers if self.is_worth_packing]
        positions = [attention.relative_embedding for attention, _ in layers]
        positions = [each for each in positions if not each.is_learned]
        with super()._optimize_model_for_decode():  # type: ignore[misc]
            try:
                for attention, mlp in layers:
                    attention.packed_qkv = packed_weight(attention.q_proj, attention.k_proj, attention.v_proj)
                    mlp.packed_fc1 = packed_weight(mlp.fc1)
                for position in positions:
                    position.packed_table = position.table(position.num_distances).detach()
                yield
            finally:
                for attention, mlp in layers:
                    attention.packed_qkv = mlp.packed_fc1 = None
                for position in positions:
                    position.packed_table = None

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
            input_ids: See [`MusicTransformerModel.forward`], as for the arguments that are not explained here.
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
        outputs: BaseModelOutputWithPast = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )

        hidden_states = slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep)  # type: ignore[arg-type]
        logits = self.lm_head(hidden_states)

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


__all__ = ["MusicTransformerForCausalLM", "MusicTransformerModel", "MusicTransformerPreTrainedModel"]
