"""Looking up the tokens nearest to a query in a store, and what of them is added to the attention of a layer.

Paper: Wu et al. 2022, "Memorizing Transformers", https://arxiv.org/abs/2203.08913, section 3.

Queries and keys are of length 1 in every head (Henry et al. 2020, https://arxiv.org/abs/2010.04245), so that keys of
earlier weights stay comparable; a learned scale per head takes the place of their lengths. The search is exact.
"""

import torch
from torch import nn

from .configuration_music_transformer import MusicTransformerConfig

# Of logits: the likeliest of two keys, one along and one across the query, gets e^10 times the weight of the other.
FIRST_SCALE = 10.0
# Products of queries and keys that are worked on at a time, in each head of each sequence.
MOST_PRODUCTS = 2**20


class MusicTransformerRetrieval(nn.Module):
    """Attention to the nearest keys of a store, mixed with the local one by a gate per head."""

    def __init__(self, config: MusicTransformerConfig):
        super().__init__()
        self.num_neighbours = config.knn_neighbours
        self.qk_norm = nn.Parameter(torch.full((config.num_attention_heads,), FIRST_SCALE))
        self.gate_bias = nn.Parameter(torch.zeros(config.num_attention_heads))  # 0 for half and half

    def normalized(self, query: torch.Tensor, key: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Queries whose length in each head is its scale, and keys of length 1.

        Args:
            query: Shape `(batch, num_heads, query_length, head_dim)`.
            key: Shape `(batch, num_heads, key_length, head_dim)`.

        Returns:
            Both, in their shapes and types.
        """
        scale = self.qk_norm[:, None, None].to(query.dtype)
        return nn.functional.normalize(query, dim=-1) * scale, nn.functional.normalize(key, dim=-1)

    def forward(self, local: torch.Tensor, found: torch.Tensor, is_stored: torch.Tensor) -> torch.Tensor:
        """Mix what the layer attends to with what its queries have found.

        Args:
            local: Output of the attention, shape `(batch, query_length, num_heads, head_dim)`.
            found: Result of `search`.
            is_stored: Places of the store that hold a token of the sequence, shape `(batch, stored)`.

        Returns:
            Shape as `local`, which sequences without any stored token get back.
        """
        gate = self.gate_bias.sigmoid()[:, None].to(local.dtype)
        mixed = torch.lerp(local, found, gate.expand_as(local))
        return torch.where(is_stored.any(1)[:, None, None, None], mixed, local)

    def search(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, is_stored: torch.Tensor
    ) -> torch.Tensor:
        """Attention to the nearest keys of a store.

        Args:
            query: From `normalized`, shape `(batch, num_heads, query_length, head_dim)`.
            keys: Shape `(batch, num_heads, stored, head_dim)`.
            values: Shape as `keys`.
            is_stored: Places that hold a token of the sequence, shape `(batch, stored)`.

        Returns:
            Shape `(batch, query_length, num_heads, head_dim)`; meaningless where nothing is stored.
        """
        size = max(1, MOST_PRODUCTS // keys.shape[2])
        parts = [self._search(part, keys, values, is_stored) for part in query.split(size, dim=2)]
        return torch.cat(parts, dim=2).transpose(1, 2)

    def _search(
        self, query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, is_stored: torch.Tensor
    ) -> torch.Tensor:
        logits = torch.matmul(query, keys.transpose(2, 3))
        # Finite, for the sequences that have nothing stored, and so small that no weight is left beside a real one.
        logits = logits.masked_fill(~is_stored[:, None, None], torch.finfo(logits.dtype).min / 2)
        nearest, places = logits.topk(min(self.num_neighbours, keys.shape[2]), dim=-1)  # (..., query_length, nearest)
        weights = nearest.softmax(-1)
        wide = places.flatten(2)[..., None].expand(-1, -1, -1, values.shape[3])
        chosen = values.gather(2, wide).unflatten(2, places.shape[2:])  # (batch, heads, queries, nearest, head_dim)
        return torch.matmul(weights[..., None, :], chosen).squeeze(-2)
