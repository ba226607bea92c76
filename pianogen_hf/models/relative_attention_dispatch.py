"""The relative attention as an `attn_implementation` of transformers, which chooses how to compute by the call.

Blocks for training and prompts on a CPU, a lookup for the single queries of decoding, FlexAttention on a GPU, and a
dense bias for short sequences, and where keys do not end with the queries or operators are traced.
"""

from typing import Any

import torch
from torch import nn
from torch.nn.attention.flex_attention import BlockMask, create_block_mask
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.flex_attention import compile_friendly_flex_attention
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import (
    add_offsets_to_mask_function,
    and_masks,
    padding_mask_function,
    prepare_padding_mask,
    sdpa_mask,
)

from .relative_attention import Settings, blockwise_relative_attention

RELATIVE_ATTENTION = "relative"
# Up to this many keys the dense bias is faster (at 129 by 1.8 times, at 257 no more), and small in any case.
MAX_DENSE_KEYS = 192


def keys_end_with_queries(query_length: int, query_offset: Any, key_length: int, key_offset: int) -> bool:
    """Whether the last key is that of the last query, so that distances follow from the order alone.

    Not so in a static cache, which has room after the queries and counts its tokens in a tensor.
    """
    return isinstance(query_offset, int) and query_offset + query_length == key_offset + key_length


def is_traced() -> bool:
    """Whether operators are being recorded: then loops over blocks and decisions by the data are out of place."""
    return torch.compiler.is_compiling() or torch.jit.is_tracing()


def flex_relative_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    embedding: torch.Tensor,
    block_mask: BlockMask,
    scaling: float,
    position_query: torch.Tensor,
) -> torch.Tensor:
    """The definition of `blockwise_relative_attention` for FlexAttention; order, window and padding are in the mask.

    It keeps the products of all queries and embeddings, which are linear in the length for a bounded distance.

    Args:
        query: Shape `(batch, num_heads, num_queries, head_dim)`; the queries are the last of the tokens.
        key: Shape `(batch, num_heads, num_keys, head_dim)`.
        value: Shape as `key`.
        embedding: Shape `(num_heads, max_relative_distance, head_dim)`, distance 0 first.
        block_mask: From `relative_attention_mask`.
        scaling: Factor of the queries.
        position_query: What embeddings are multiplied with, shape as `query`.

    Returns:
        Shape `(batch, num_heads, num_queries, head_dim)`.
    """
    past, farthest = key.shape[2] - query.shape[2], embedding.shape[1] - 1
    bias = torch.einsum("bhqd,hmd->bhqm", position_query * scaling, embedding.to(query.dtype))

    def add_bias(score, batch, head, query_index, key_index):
        return score + bias[batch, head, query_index, (query_index + past - key_index).clamp(0, farthest)]

    output = compile_friendly_flex_attention(
        query, key, value, score_mod=add_bias, block_mask=block_mask, scale=scaling
    )
    assert isinstance(output, torch.Tensor)  # a tuple only if the log of the denominator is asked for
    return output


def flex_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int,
    kv_offset: int,
    mask_function: Any,
    padding: torch.Tensor | None,
    device: torch.device | str,
) -> BlockMask:
    """Mask for `flex_relative_attention`; arguments as `relative_attention_mask`."""
    if padding is not None:
        mask_function = and_masks(mask_function, padding_mask_function(padding))
    shifted = add_offsets_to_mask_function(mask_function, q_offset, kv_offset)
    return create_block_mask(shifted, batch_size, None, q_length, kv_length, device=str(device))


def relative_attention_mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: Any = 0,
    kv_offset: int = 0,
    mask_function: Any = None,
    attention_mask: torch.Tensor | None = None,
    allow_is_causal_skip: bool = True,
    config: Any = None,
    device: torch.device | str = "cpu",
    **kwargs,
) -> torch.Tensor | BlockMask | None:
    """Mask for `relative_attention_forward`; arguments as for the other mask functions of transformers.

    Returns:
        Where blocks are used: `None` or the padding, of shape `(batch, 1, 1, kv_length)`, since order and window need
        no mask; a full one only for packed sequences. On a GPU a `BlockMask` for FlexAttention, unless there may be
        attention dropout, which it refuses. Elsewhere the boolean mask of `sdpa`.
    """
    if q_length > 1 and not is_traced() and keys_end_with_queries(q_length, q_offset, kv_length, kv_offset):
        padding = prepare_padding_mask(attention_mask, kv_length, kv_offset)
        if torch.device(device).type == "cuda" and not config.attention_dropout:
            return flex_mask(batch_size, q_length, kv_length, q_offset, kv_offset, mask_function, padding, device)
        # transformers allows the skip unless something besides order, window and padding hides keys: packing.
        if allow_is_causal_skip and kv_length > MAX_DENSE_KEYS:
            if padding is None or padding.all():
                return None
            return padding[:, None, None, kv_offset : kv_offset + kv_length]
    # With a bias, sdpa cannot use its causal flag: no skip but for single queries, which see all there is.
    skip = allow_is_causal_skip and q_length == 1
    arguments = {"mask_function": mask_function, "attention_mask": attention_mask, "device": device, **kwargs}
    return sdpa_mask(batch_size, q_length, kv_length, q_offset, kv_offset, allow_is_causal_skip=skip, **arguments)


def with_shifts(
    query: torch.Tensor, key: torch.Tensor, table: torch.Tensor, relative_embedding: Any
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One query for keys and distances where each has a vector of its own added: `q k + (q + w) E` with w = v - u.

    What the distances get more, `w E`, is one number per distance: a further column, which a query has 1 for.

    Args:
        query: Shape `(batch, num_heads, query_length, head_dim)`, with the vector of the keys (u).
        key: Shape `(batch, num_heads, key_length, head_dim)`.
        table: Shape `(num_heads, num_distances, head_dim)`.
        relative_embedding: With both vectors.

    Returns:
        All three with one more column.
    """
    difference = relative_embedding.position_bias - relative_embedding.content_bias
    shifts = torch.matmul(table, difference[:, :, None].to(table.dtype))  # (num_heads, num_distances, 1)
    pad = torch.nn.functional.pad
    return pad(query, (0, 1), value=1.0), pad(key, (0, 1)), torch.cat([table, shifts], dim=-1)


def relative_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | BlockMask | None,
    scaling: float,
    relative_embedding: Any,
    position_query: torch.Tensor,
    dropout: float = 0.0,
    relative_distance: torch.Tensor | None = None,
    sliding_window: int | None = None,
    **kwargs,
) -> tuple[torch.Tensor, None]:
    """Attention function for transformers: blocks, FlexAttention or a dense bias, whichever suits the call.

    Args:
        module: The calling layer.
        query: Shape `(batch, num_heads, query_length, head_dim)`.
        key: Shape `(batch, num_heads, key_length, head_dim)`.
        value: Shape as `key`.
        attention_mask: From `relative_attention_mask`, or a mask of four dimensions.
        scaling: Factor of the products of queries and keys.
        relative_embedding: Module whose `table` gives the embeddings and which, when called, gives the dense bias.
        position_query: What embeddings are multiplied with, shape as `query`: `query` itself where they are learned.
        dropout: Dropout probability of the attention weights.
        relative_distance: Distances, where they do not follow from the order; see `keys_end_with_queries`.
        sliding_window: How many keys a query sees at most.
        **kwargs: Unused; part of the attention interface.

    Returns:
        The output, shape `(batch, query_length, num_heads, head_dim)`, and no attention weights.
    """
    inputs = (query, key, value)
    if isinstance(attention_mask, BlockMask):
        table = relative_embedding.table(key.shape[2])
        output = flex_relative_attention(*inputs, table, attention_mask, scaling, position_query)
    elif relative_distance is None and not is_traced() and min(query.shape[2] - 1, key.shape[2] - MAX_DENSE_KEYS) > 0:
        settings = Settings(scaling, sliding_window, dropout)
        table = relative_embedding.table(key.shape[2])
        if position_query is not query:
            query, key, table = with_shifts(query, key, table, relative_embedding)
        output = blockwise_relative_attention(query, key, value, table, attention_mask, settings)
    else:
        bias = relative_embedding(position_query * scaling, relative_distance, key.shape[2])
        return sdpa_attention_forward(module, *inputs, attention_mask, dropout, scaling, position_bias=bias, **kwargs)
    return output.transpose(1, 2), None


AttentionInterface.register(RELATIVE_ATTENTION, relative_attention_forward)
AttentionMaskInterface.register(RELATIVE_ATTENTION, relative_attention_mask)
