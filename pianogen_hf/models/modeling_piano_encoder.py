"""Piano encoder (V1 and V2): an encoder-only transformer over token ids, trained in one of two honest ways.

Papers: Vaswani et al. 2017, "Attention Is All You Need", https://arxiv.org/abs/1706.03762 (the encoder);
Hoogeboom et al. 2021, "Autoregressive Diffusion Models", https://arxiv.org/abs/2110.02037 (masked tokens in any order,
and what their loss bounds); Chang et al. 2022, "MaskGIT", https://arxiv.org/abs/2202.04200 (refilling many at once).

Origin: written for this package in the order and words of transformers' Llama.

Changes from the first V1, which trained an encoder on the next token *without* a causal mask: it read the answer one
place to the right and its loss fell to 0.01. Here a model either sees no later token (`PianoEncoderForCausalLM`) or
sees both sides and is asked only for tokens that are masked (`PianoEncoderForMaskedLM`). Each head refuses the
attention of the other. Also: layer normalisation before each branch (Xiong et al. 2020) and tied embeddings.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from transformers import GenerationMixin, LogitsProcessor, LogitsProcessorList, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.cache_utils import Cache, DynamicCache
from transformers.masking_utils import create_causal_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast, MaskedLMOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, slice_logits_to_keep
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .carried_code import CarriesCode
from .configuration_piano_encoder import PianoEncoderConfig
from .order_agnostic import IGNORED, draw_mask, label_nats, label_weights
from .refilling import Drawing, draft, repair


def learned_positions(
    attention_mask: torch.Tensor | None, past_length: int | torch.Tensor, length: int, device: torch.device
) -> torch.Tensor:
    """Number the tokens of each row from its first one that is no padding, so that padding on the left changes nothing.

    Args:
        attention_mask: 1 for tokens and 0 for padding, shape `(batch, past_length + length)`; masks of another number
            of dimensions don't tell where padding is, and tokens are then numbered by their place.
        past_length: Number of tokens in the cache.
        length: Number of new tokens.
        device: Where the result is needed.

    Returns:
        Integers of shape `(batch or 1, length)`.
    """
    if attention_mask is not None and attention_mask.dim() == 2:
        return (attention_mask.long().cumsum(-1) - 1).clamp(min=0)[:, -length:]
    return (torch.arange(length, device=device) + past_length)[None]


class PianoEncoderMLP(nn.Module):
    """Position-wise feed-forward network."""

    def __init__(self, config: PianoEncoderConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)
        self.act_fn = ACT2FN[config.hidden_act]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.fc2(self.act_fn(self.fc1(hidden_states)))


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention in plain operators; tensors as for `sdpa`, and a mask that is added to the logits."""
    attn_weights = torch.matmul(query * scaling, key.transpose(2, 3))
    if attention_mask is not None:
        attn_weights = attn_weights + attention_mask
    attn_weights = nn.functional.softmax(attn_weights, dim=-1, dtype=torch.float32).to(query.dtype)
    attn_weights = nn.functional.dropout(attn_weights, p=dropout, training=module.training)
    return torch.matmul(attn_weights, value).transpose(1, 2).contiguous(), attn_weights


class PianoEncoderAttention(nn.Module):
    """Multi-headed self-attention, causal or not."""

    def __init__(self, config: PianoEncoderConfig, layer_idx: int):
        super().__init__()
        self.config = config
        self.layer_idx = layer_idx
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_dropout
        self.is_causal = config.is_causal

        self.q_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.k_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.v_proj = nn.Linear(config.hidden_size, config.hidden_size)
        self.o_proj = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        input_shape = hidden_states.shape[:-1]
        hidden_shape = (*input_shape, -1, self.head_dim)
        query_states = self.q_proj(hidden_states).view(hidden_shape).transpose(1, 2)  # (batch, heads, length, head_dim)
        key_states = self.k_proj(hidden_states).view(hidden_shape).transpose(1, 2)
        value_states = self.v_proj(hidden_states).view(hidden_shape).transpose(1, 2)
        if past_key_values is not None:
            key_states, value_states = past_key_values.update(key_states, value_states, self.layer_idx)

        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        attn_output, attn_weights = attention_interface(
            self,
            query_states,
            key_states,
            value_states,
            attention_mask,
            dropout=0.0 if not self.training else self.attention_dropout,
            scaling=self.scaling,
            **kwargs,
        )
        return self.o_proj(attn_output.reshape(*input_shape, -1)), attn_weights


class PianoEncoderLayer(GradientCheckpointingLayer):
    """Attention and feed-forward network, each normalised on entry and added to the residual stream."""

    def __init__(self, config: PianoEncoderConfig, layer_idx: int):
        super().__init__()
        self.self_attn = PianoEncoderAttention(config=config, layer_idx=layer_idx)
        self.mlp = PianoEncoderMLP(config)
        self.input_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_attention_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(
        self,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        past_key_values: Cache | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        residual = hidden_states
        hidden_states, _ = self.self_attn(
            hidden_states=self.input_layernorm(hidden_states),
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            **kwargs,
        )
        hidden_states = residual + self.dropout(hidden_states)
        return hidden_states + self.dropout(self.mlp(self.post_attention_layernorm(hidden_states)))


class PianoEncoderPreTrainedModel(CarriesCode, PreTrainedModel):
    """What the models have in common: configuration, initialisation, and what the attention can do."""

    config: PianoEncoderConfig  # the Auto classes read this as a class: postponed annotations would break them
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["PianoEncoderLayer"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_sdpa = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": PianoEncoderLayer, "attentions": PianoEncoderAttention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, PianoEncoderForMaskedLM):
            init.normal_(module.mask_embedding, mean=0.0, std=self.config.initializer_range)


class PianoEncoderModel(PianoEncoderPreTrainedModel):
    """The encoder without the output projection."""

    def __init__(self, config: PianoEncoderConfig):
        super().__init__(config)
        self.padding_idx = config.pad_token_id
        self.vocab_size = config.vocab_size

        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size, self.padding_idx)
        self.embed_positions = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.layers = nn.ModuleList(
            [PianoEncoderLayer(config, layer_idx) for layer_idx in range(config.num_hidden_layers)]
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
        """Run the encoder.

        Args:
            input_ids: Token ids, shape `(batch, length)`. Give either these or `inputs_embeds`.
            attention_mask: 1 for tokens and 0 for padding, shape `(batch, past_length + length)`; or a prepared mask
                of four dimensions.
            position_ids: Shape `(batch, length)`; by default tokens are numbered without the padding on their left.
            past_key_values: Keys and values of the tokens before; causal models only.
            inputs_embeds: Shape `(batch, length, hidden_size)`.
            use_cache: Whether to return `past_key_values`; causal models only.
            **kwargs: `output_hidden_states`, `output_attentions` and what the attention function takes.

        Returns:
            The last hidden state, shape `(batch, length, hidden_size)`, and the cache.

        Raises:
            ValueError: If neither or both of `input_ids` and `inputs_embeds` are given, if there are more tokens than
                learned positions, or if a model that sees both sides is given a cache.
        """
        if (input_ids is None) ^ (inputs_embeds is not None):
            raise ValueError("You must specify exactly one of input_ids or inputs_embeds")
        if inputs_embeds is None:
            inputs_embeds = self.embed_tokens(input_ids)

        is_causal = self.config.is_causal
        if past_key_values is not None and not is_causal:
            raise ValueError("keys and values of the tokens before are of no use to a model that sees both sides")
        if use_cache and is_causal and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        # transformers makes it a mask without causality where `config.is_causal` is False.
        mask = create_causal_mask(
            config=self.config,
            inputs_embeds=inputs_embeds,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
        if position_ids is None:
            position_ids = self._positions(inputs_embeds, attention_mask, past_key_values)  # type: ignore[assignment]
        hidden_states = self.dropout(inputs_embeds + self.embed_positions(position_ids))
        for layer in self.layers[: self.config.num_hidden_layers]:
            hidden_states = layer(hidden_states, attention_mask=mask, past_key_values=past_key_values, **kwargs)
        return BaseModelOutputWithPast(last_hidden_state=self.norm(hidden_states), past_key_values=past_key_values)

    def _positions(
        self, inputs_embeds: torch.Tensor, attention_mask: torch.Tensor | None, past_key_values: Cache | None
    ) -> torch.Tensor:
        length = inputs_embeds.shape[1]
        past_length = past_key_values.get_seq_length() if past_key_values is not None else 0
        if isinstance(past_length, int) and past_length + length > self.config.max_position_embeddings:
            raise ValueError(
                f"{past_length + length} tokens are more than the {self.config.max_position_embeddings} positions "
                "that the model has learned"
            )
        return learned_positions(attention_mask, past_length, length, inputs_embeds.device)


class PianoEncoderForCausalLM(PianoEncoderPreTrainedModel, GenerationMixin):
    """The encoder, causally masked, with a projection to the vocabulary: trained on the next token.

    Raises:
        ValueError: If the configuration lets it see later tokens.
    """

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: PianoEncoderConfig):
        if not config.is_causal:
            raise ValueError(
                "PianoEncoderForCausalLM needs is_causal=True: otherwise it would see what it is asked for. A model "
                "that looks both ways is loaded by AutoModelForMaskedLM, and writes by `refill`"
            )
        super().__init__(config)
        self.model = PianoEncoderModel(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

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
            input_ids: See [`PianoEncoderModel.forward`], as for the arguments that are not explained here.
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
        logits = self.lm_head(slice_logits_to_keep(outputs.last_hidden_state, logits_to_keep))  # type: ignore[arg-type]

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


@dataclass
class PianoEncoderMaskedLMOutput(MaskedLMOutput):
    """What [`PianoEncoderForMaskedLM`] returns.

    Attributes:
        label_weights: With labels: what `label_weights` gives, shape `(batch, length)`.
    """

    label_weights: torch.FloatTensor | None = None


class PianoEncoderForMaskedLM(PianoEncoderPreTrainedModel):
    """The encoder, seeing both sides, with a projection to the vocabulary: trained on tokens that are masked.

    The id `config.mask_token_id` (= `vocab_size`) hides a token; the model can neither see what is behind it nor
    predict a mask. It generates by `refill`, from nothing as well as in a gap of a given piece. No pipeline of
    transformers fits: "fill-mask" wants a mask among the tokenizer's tokens, and fills one place at a time.

    On likelihood. The pseudo-log-likelihood that is often computed with masked models (hide one token at a time, add
    up) is no log-likelihood of anything: every token is predicted from all others, and bits per note made of it can't
    be compared with those of other models. What can: where the number of masked tokens is drawn uniformly, as
    `training/masking.py` does, the loss is an upper bound, in expectation, of the nats per label of the order-agnostic
    model that writes tokens one by one in uniformly random order (Hoogeboom et al. 2021, section 3). That is a
    proper distribution over pieces of a given number of tokens; the number itself has to be paid for apart. `refill`
    with `order="random"` and as many steps as there are tokens draws from it.

    Raises:
        ValueError: If the configuration is causal.
    """

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}

    def __init__(self, config: PianoEncoderConfig):
        if config.is_causal:
            raise ValueError("PianoEncoderForMaskedLM needs is_causal=False: it predicts from both sides")
        super().__init__(config)
        self.model = PianoEncoderModel(config)
        self.vocab_size = config.vocab_size
        # Apart from the embeddings of tokens: so logits are exactly the tokenizer's tokens, and resizing moves none.
        self.mask_embedding = nn.Parameter(torch.empty(config.hidden_size))
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

        # Initialize weights and apply final processing
        self.post_init()

    @can_return_tuple
    def forward(  # type: ignore[misc]
        self,
        input_ids: torch.LongTensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        labels: torch.LongTensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> PianoEncoderMaskedLMOutput:
        """Predict masked tokens.

        Args:
            input_ids: Token ids, shape `(batch, length)`, with `config.mask_token_id` where one is masked.
            attention_mask: 1 for tokens and 0 for padding, shape `(batch, length)`.
            position_ids: See [`PianoEncoderModel.forward`].
            labels: All tokens that are to be predicted some time, masked or not, shape `(batch, length)`; -100 is
                context and padding. Only masked ones are scored: a label that the model sees has no loss.
            num_items_in_batch: Divides the summed loss instead of the number of labels (gradient accumulation).
            **kwargs: See [`PianoEncoderModel.forward`].

        Returns:
            The logits, shape `(batch, length, vocab_size)`; with labels also their weights and the loss: the weighted
            nats per label, which where all labels are masked, or visible ones are -100, is the plain mean.
        """
        is_masked = input_ids == self.config.mask_token_id
        embeds = self.model.embed_tokens(input_ids.masked_fill(is_masked, 0))
        outputs: BaseModelOutputWithPast = self.model(
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=torch.where(is_masked[..., None], self.mask_embedding.to(embeds.dtype), embeds),
            **kwargs,
        )
        logits = self.lm_head(outputs.last_hidden_state)

        loss = weights = None
        if labels is not None:
            weights = label_weights(is_masked, labels)
            total = (label_nats(logits, labels) * weights).sum()
            loss = total / (
                num_items_in_batch if num_items_in_batch is not None else (labels != IGNORED).sum().clamp(min=1)
            )
        return PianoEncoderMaskedLMOutput(
            loss=loss,
            logits=logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            label_weights=weights,  # type: ignore[arg-type]
        )

    @torch.no_grad()
    def order_agnostic_nats(
        self,
        input_ids: torch.LongTensor,
        targets: torch.Tensor,
        num_draws: int = 8,
        attention_mask: torch.Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> torch.Tensor:
        """Estimate the upper bound of each row's negative log-likelihood (see the class).

        The draws of a row take their numbers of masked tokens from equal parts of 1..D, which makes the mean over them
        as unbiased as independent draws, and less noisy.

        Args:
            input_ids: Token ids, shape `(batch, length)`, none of them masked.
            targets: Bool, shape `(batch, length)`: tokens that are scored; others are given.
            num_draws: Forward passes.
            attention_mask: 1 for tokens and 0 for padding, shape `(batch, length)`.
            generator: Of the draws, on the CPU.

        Returns:
            Nats, shape `(batch, num_draws)`; the mean over draws estimates the bound.
        """
        num_targets = targets.sum(-1)
        labels = input_ids.masked_fill(~targets, IGNORED)
        rows = []
        for draw in range(num_draws):
            share = (draw + torch.rand(len(input_ids), generator=generator).to(input_ids.device)) / num_draws
            num_masked = torch.minimum((share * num_targets).long() + 1, num_targets)
            ids = input_ids.masked_fill(draw_mask(targets, num_masked, generator), self.config.mask_token_id)
            outputs = self(ids, attention_mask=attention_mask, labels=labels)
            rows.append((label_nats(outputs.logits, labels) * outputs.label_weights).sum(-1))
        return torch.stack(rows, dim=-1)

    @torch.no_grad()
    def refill(
        self,
        input_ids: torch.LongTensor,
        mask: torch.Tensor,
        steps: int = 16,
        *,
        attention_mask: torch.Tensor | None = None,
        order: str = "confidence",
        temperature: float = 1.0,
        top_p: float = 1.0,
        logits_processor: LogitsProcessor | LogitsProcessorList | None = None,
        generator: torch.Generator | None = None,
    ) -> torch.LongTensor:
        """Write the masked tokens anew, several at a time, each seeing all that is given or was written before.

        In every step tokens are drawn for all that is still masked, and some of them stay: in order "confidence"
        those with the highest probability, with chance mixed in that fades out, few at first (MaskGIT, section 3.2); in
        order "random" any, equally many per step.

        Padding, `<bos>` and `<eos>` are never written: whether and where the piece ends is the caller's to say, by
        tokens outside the mask. From nothing: `ids = [bos, 0, 0, ...]` with all but the first masked.

        A grammar speaks of what may follow a beginning, and a beginning with holes has no grammar. So
        `logits_processor` comes last, in a pass from left to right: where it forbids (scores minus infinity) the id
        that was written, that token is drawn again from both sides and from what the processor leaves. Afterwards every
        written token may follow what stands before it. The given tokens *after* a gap are not changed, so the first of
        them may still not suit the last that was written; tokenizers of this package decode that, too.

        Args:
            input_ids: Shape `(batch, length)`; what stands under the mask is not looked at; what is masked already
                stays so.
            mask: Bool, shape `(batch, length)`: what to write. Padding is left alone.
            steps: Forward passes of the first draft, at most one per masked id.
            attention_mask: 1 for tokens and 0 for padding, shape `(batch, length)`.
            order: "confidence" or "random".
            temperature: Of the drawing; above 0.
            top_p: Draw from the likeliest tokens that together have this probability.
            logits_processor: What forbids tokens, for example a `GrammarLogitsProcessor`; called with the tokens before
                a place, shape `(batch, place)`, and scores of shape `(batch, vocab_size)`.
            generator: Makes the result repeatable; on the model's device.

        Returns:
            The tokens, shape `(batch, length)`, unchanged outside the mask.

        Raises:
            ValueError: For unequal shapes, more tokens than the model has positions, or an unknown order or bad number.
        """
        if mask.shape != input_ids.shape:
            raise ValueError(f"mask has the shape {tuple(mask.shape)}, input_ids {tuple(input_ids.shape)}")
        if order not in ("confidence", "random"):
            raise ValueError(f"order must be confidence or random, got {order!r}")
        if steps < 1 or temperature <= 0 or not 0 < top_p <= 1:
            raise ValueError("steps must be at least 1, temperature above 0 and top_p above 0 and at most 1")
        mask = mask.bool() if attention_mask is None else mask.bool() & attention_mask.bool()
        mask_id = self.config.mask_token_id
        mask = mask | (input_ids == mask_id)
        drawing = Drawing(self.config, temperature, top_p, generator)

        def logits_of(ids: torch.Tensor) -> torch.Tensor:
            return self(ids, attention_mask=attention_mask).logits

        ids = draft(logits_of, input_ids.masked_fill(mask, mask_id), mask_id, steps, order, drawing)
        if logits_processor is not None:
            ids = repair(logits_of, ids, mask, mask_id, logits_processor, drawing)
        return ids  # type: ignore[return-value]


__all__ = [
    "PianoEncoderForCausalLM",
    "PianoEncoderForMaskedLM",
    "PianoEncoderMaskedLMOutput",
    "PianoEncoderModel",
    "PianoEncoderPreTrainedModel",
]
