"""Relative positions: an embedding per distance between a query and a key, learned or made of sinusoids.

A logit is that of the content plus that of the distance d, over the square root of the width of a head:

    * learned (Huang et al. 2018, "Music Transformer", https://arxiv.org/abs/1809.04281, section 3.4):
      `q k + q E[d]`, with a table E per head;
    * sinusoidal (Dai et al. 2019, "Transformer-XL", https://arxiv.org/abs/1901.02860, section 3.3):
      `(q + u) k + (q + v) W_r R[d]`, with sinusoids R, one projection W_r and two vectors u and v per head.

The second is the first with `E[d] = W_r R[d]` and two further terms: what a key is worth wherever it is (u), and what a
distance is worth whatever is there (v). Distances that were never met in training have sinusoids, too.

Differs from the authors' code of Transformer-XL in that each layer has its own u and v (their `untie_r`).
"""

import torch
from torch import nn
from transformers.cache_utils import Cache

from .configuration_music_transformer import MusicTransformerConfig
from .relative_attention_dispatch import keys_end_with_queries


def sinusoids(num_distances: int, width: int, device: torch.device | None = None) -> torch.Tensor:
    """Sines of all frequencies, then their cosines, of the distances from 0 on: shape `(num_distances, width)`.

    Frequencies fall from 1 by a factor of 10000 in all, as in "Attention is all you need"; an odd width lacks a cosine.
    """
    frequencies = 10000.0 ** -(torch.arange(0, width, 2, device=device) / width)
    angles = torch.arange(num_distances, device=device)[:, None] * frequencies
    return torch.cat([angles.sin(), angles.cos()], dim=-1)[:, :width]


def skew(distance_logits: torch.Tensor, key_length: int) -> torch.Tensor:
    """Turn logits per (query, distance) into logits per (query, key) without an index (paper, section 3.4.1).

    The paper pads one column on the left, reads the memory with rows one shorter, and drops the first row: each row is
    thereby shifted one further than the row above. Here the padding also repeats the farthest column, which makes all
    distances beyond the last one share it, and there may be more keys than queries.

    Args:
        distance_logits: Shape `(..., query_length, num_distances)` with `num_distances <= key_length`, **farthest
            distance first**: the last column is distance 0.
        key_length: Number of keys; the queries are the last of them.

    Returns:
        Shape `(..., query_length, key_length)`: an entry at distance `d >= 0` holds the logit of its query at distance
        `min(d, num_distances - 1)`; above the diagonal there is an arbitrary finite logit.
    """
    query_length, num_distances = distance_logits.shape[-2:]
    farthest = distance_logits[..., :1].expand(*distance_logits.shape[:-1], key_length + 1 - num_distances)
    padded = torch.cat([farthest, distance_logits], dim=-1)  # (..., query_length, key_length + 1)
    return padded.flatten(-2)[..., query_length:].unflatten(-1, (query_length, key_length))


def clipped_distances(
    query_length: int, past_key_values: Cache | None, max_relative_distance: int, device: torch.device
) -> torch.Tensor | None:
    """Distance from each query to each key slot, clipped to the distances that have an embedding.

    Must be called before any layer updates the cache, since caches count what they hold. Key slots after the query
    (the future, or the unfilled end of a static cache) are clipped to 0 and left to the attention mask.

    Args:
        query_length: Number of new tokens.
        past_key_values: Cache before the update; its layers all hold the same tokens.
        max_relative_distance: Number of distances with an embedding.
        device: Where the result is needed.

    Returns:
        Integers of shape `(query_length, key_length)`, or `None` if the keys end with the queries, so that distances
        follow from the order and `skew` needs no index. Not so in `torch.export`: with a free length, `skew` would
        ask whether it exceeds the distances, and the graph would hold for one answer alone.
    """
    is_exported = torch.compiler.is_exporting()
    key_length, key_offset, query_offset = query_length, 0, 0
    if past_key_values is not None:
        key_length, key_offset = past_key_values.get_mask_sizes(query_length, 0)
        query_offset = past_key_values.get_query_offset(0)  # an int, or a tensor from a static cache
    if not is_exported and keys_end_with_queries(query_length, query_offset, key_length, key_offset):
        return None
    query_positions = torch.arange(query_length, device=device) + query_offset
    key_positions = torch.arange(key_length, device=device) + key_offset
    return (query_positions[:, None] - key_positions[None, :]).clamp(0, max_relative_distance - 1)


class MusicTransformerRelativeEmbedding(nn.Module):
    """Embeddings of distances per head, turned into a bias on the attention logits: see the head of the file."""

    def __init__(self, config: MusicTransformerConfig):
        super().__init__()
        self.num_heads = config.num_attention_heads
        self.num_distances = config.max_relative_distance
        head_dim = config.hidden_size // self.num_heads
        self.is_learned = config.position_embedding_type == "learned"
        if self.is_learned:
            # (num_heads, max_relative_distance, head_dim): weight[h, d] is the embedding of distance d in tokens
            self.weight = nn.Parameter(torch.empty(self.num_heads, self.num_distances, head_dim))
        else:
            self.r_proj = nn.Linear(config.hidden_size, config.hidden_size, bias=False)
            self.content_bias = nn.Parameter(torch.empty(self.num_heads, head_dim))  # u
            self.position_bias = nn.Parameter(torch.empty(self.num_heads, head_dim))  # v
        self.packed_table: torch.Tensor | None = None  # while tokens are decoded one by one

    def table(self, key_length: int) -> torch.Tensor:
        """Embeddings of the distances that `key_length` keys have, distance 0 first.

        Returns:
            Shape `(num_heads, num_distances, head_dim)`; the last one also stands for all larger distances.
        """
        if self.is_learned:
            return self.weight[:, :key_length]
        if self.packed_table is not None:
            return self.packed_table[:, :key_length]
        weight = self.r_proj.weight
        distances = sinusoids(min(key_length, self.num_distances), self.r_proj.in_features, weight.device)
        return self.r_proj(distances.to(weight.dtype)).unflatten(-1, (self.num_heads, -1)).transpose(0, 1)

    def queries(self, query_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """What keys, and what embeddings of distances, are multiplied with.

        Args:
            query_states: Shape `(batch, num_heads, query_length, head_dim)`.

        Returns:
            Two tensors of that shape; of learned distances both are the argument itself.
        """
        if self.is_learned:
            return query_states, query_states
        return query_states + self.content_bias[:, None], query_states + self.position_bias[:, None]

    def forward(
        self, query_states: torch.Tensor, relative_distance: torch.Tensor | None, key_length: int
    ) -> torch.Tensor:
        """Dense bias of the relative positions, for attention functions that know no distances.

        Args:
            query_states: Shape `(batch, num_heads, query_length, head_dim)`, the second of `queries`, already scaled.
            relative_distance: Result of `clipped_distances`.
            key_length: Number of keys.

        Returns:
            Shape `(batch, num_heads, query_length, key_length)`; meaningless where a key lies in the future.
        """
        if relative_distance is not None:
            # Unlike matmul, einsum does not copy the table for each sequence of the batch.
            distance_logits = torch.einsum("bhqd,hmd->bhqm", query_states, self.table(self.num_distances))
            return distance_logits.gather(-1, relative_distance.expand(*distance_logits.shape[:2], -1, -1))
        nearest_first = self.table(key_length)
        if query_states.shape[2] == 1:  # one query needs no skew: its distances in the order of the keys
            # (num_heads, batch, distances): a batch in the place of the queries reads the table once.
            distance_logits = torch.bmm(query_states.squeeze(2).transpose(0, 1), nearest_first.transpose(1, 2))
            if (beyond := key_length - nearest_first.shape[1]) > 0:
                distance_logits = torch.cat([distance_logits, distance_logits[..., -1:].expand(-1, -1, beyond)], dim=-1)
            return distance_logits.flip(-1).transpose(0, 1).unsqueeze(2)
        return skew(torch.matmul(query_states, nearest_first.flip(1).transpose(1, 2)), key_length)
