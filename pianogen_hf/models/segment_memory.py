"""Memory of what was before a segment: the keys and values of each layer, and further back a store to search in.

A long piece is read, trained on and generated in segments. Each sees the last `memory_length` tokens before it, without
a gradient (Dai et al. 2019, "Transformer-XL", https://arxiv.org/abs/1901.02860, section 3.2); of layer to layer, that
reaches further. Tokens that leave this memory go, in one layer, into a store of the last `knn_memory_size`, in which
each query looks up those nearest to it (Wu et al. 2022, "Memorizing Transformers", https://arxiv.org/abs/2203.08913).

Differs from Transformer-XL in that keys and values are kept, and not the hidden states that they are made of. Outputs
are the same while weights are; in training, a memory is one step older than the weights, and no step of generation
makes keys anew. What is not there is hidden, and no vector of zeros that is attended to.
"""

from collections.abc import Iterator
from typing import Any

import torch
from transformers.cache_utils import Cache, DynamicSlidingWindowLayer

from .configuration_music_transformer import MusicTransformerConfig

# Room of a new store, in tokens; it is doubled up to `knn_memory_size`.
LEAST_ROOM = 256


class MemoryLayer(DynamicSlidingWindowLayer):
    """Keys and values of the last `memory_length` tokens, without a gradient.

    Differs from its parent in the detached states, and in that each segment sees all of itself, however long.
    """

    def __init__(self, memory_length: int):
        super().__init__(sliding_window=memory_length + 1)  # as many tokens and the query's own
        self.memory_length = memory_length

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append a segment.

        Args:
            key_states: Shape `(batch, num_heads, length, head_dim)`.
            value_states: Shape as `key_states`.
            *args: Unused; part of the interface of caches.
            **kwargs: Unused.

        Returns:
            Keys and values of memory and segment, shape `(batch, num_heads, kept + length, head_dim)`.
        """
        keys, values = super().update(key_states, value_states)
        assert self.keys is not None and self.values is not None
        self.keys, self.values = self.keys.detach(), self.values.detach()
        return keys, values

    @property
    def kept(self) -> int:
        """How many tokens it holds."""
        return self.keys.shape[-2] if self.keys is not None and self.keys.numel() else 0

    def begin_segment(self, begins: torch.Tensor | None) -> None:
        """Count from here on only what is kept, so that a mask is as long as memory and segment together.

        Args:
            begins: As in `SegmentMemory.begin_segment`.
        """
        self.cumulative_length = self.kept

    def tensors(self) -> Iterator[str]:
        """Names of the attributes that hold its state, the batch first in each."""
        yield from ("keys", "values") if self.kept else ()

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these sequences only, in this order."""
        for name in self.tensors():
            setattr(self, name, getattr(self, name)[indices])

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each sequence."""
        for name in self.tensors():
            setattr(self, name, getattr(self, name).repeat_interleave(repeats, dim=0))

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        """Follow the beams."""
        self.batch_select_indices(beam_idx)


class KnnMemoryLayer(MemoryLayer):
    """A memory whose oldest tokens go to a store instead of being forgotten.

    The store is a ring: full, it loses the oldest for the newest, whose order the search does not need.

    Attributes:
        seen: Which tokens of memory and segment are no padding, shape `(batch, kept + length)`; `None` for all. To be
            set before each `update`.
        store_keys: Shape `(batch, num_heads, room, head_dim)`. store_values: The same of the values.
        is_stored: Which places of the store hold a token of the sequence, shape `(batch, room)`.
        num_stored: How many tokens ever came into the store, padding included.
    """

    is_croppable = False  # what has gone to the store doesn't come back

    def __init__(self, memory_length: int, store_size: int):
        super().__init__(memory_length)
        self.store_size, self.num_stored = store_size, 0
        self.seen: torch.Tensor | None = None
        self.store_keys = self.store_values = self.is_stored = torch.empty(0)

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append a segment, and store what leaves the memory by it; see `MemoryLayer.update`."""
        keys, values = super().update(key_states, value_states)
        if (leaving := keys.shape[2] - self.memory_length) > 0:
            seen = keys.new_ones(len(keys), leaving, dtype=torch.bool)
            if self.seen is not None:
                seen = self.seen[:, :leaving]
            self._store(keys[:, :, :leaving].detach(), values[:, :, :leaving].detach(), seen)
        return keys, values

    @property
    def searchable(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
        """Keys, values and `is_stored` of the part of the store that is in use; `None` if it is empty."""
        if not self.num_stored:
            return None
        filled = min(self.num_stored, self.store_size)
        return self.store_keys[:, :, :filled], self.store_values[:, :, :filled], self.is_stored[:, :filled]

    def _store(self, keys: torch.Tensor, values: torch.Tensor, seen: torch.Tensor) -> None:
        length = min(keys.shape[2], self.store_size)
        self.num_stored += keys.shape[2] - length  # those that later ones of the same segment would overwrite
        self._make_room(keys, self.num_stored + length)
        places = (self.num_stored + torch.arange(length, device=keys.device)) % self.store_size
        if torch.is_grad_enabled() or (self.store_keys.is_inference() and not torch.is_inference_mode_enabled()):
            # The backward pass still needs what was searched, and tensors of inference mode can't be written to.
            self.store_keys, self.store_values = self.store_keys.clone(), self.store_values.clone()
            self.is_stored = self.is_stored.clone()
        self.store_keys[:, :, places] = keys[:, :, -length:]
        self.store_values[:, :, places] = values[:, :, -length:]
        self.is_stored[:, places] = seen[:, -length:]
        self.num_stored += length

    def _make_room(self, keys: torch.Tensor, wanted: int) -> None:
        room = self.store_keys.shape[2] if self.store_keys.numel() else 0
        if room >= min(wanted, self.store_size):
            return
        new_room = min(max(wanted, 2 * room, LEAST_ROOM), self.store_size)
        batch, num_heads, _, head_dim = keys.shape
        new_keys, new_values = (keys.new_zeros(batch, num_heads, new_room, head_dim) for _ in range(2))
        is_stored = keys.new_zeros(batch, new_room, dtype=torch.bool)
        if room:
            new_keys[:, :, :room], new_values[:, :, :room] = self.store_keys, self.store_values
            is_stored[:, :room] = self.is_stored
        self.store_keys, self.store_values, self.is_stored = new_keys, new_values, is_stored

    def begin_segment(self, begins: torch.Tensor | None) -> None:
        """As its parent; the store of a piece goes with the piece."""
        super().begin_segment(begins)
        if begins is not None and self.num_stored:
            self.is_stored = self.is_stored & ~begins[:, None]

    def tensors(self) -> Iterator[str]:
        """See there."""
        yield from super().tensors()
        yield from ("store_keys", "store_values", "is_stored") if self.num_stored else ()

    def reset(self) -> None:
        """Forget everything."""
        super().reset()
        self.num_stored, self.seen = 0, None
        self.store_keys = self.store_values = self.is_stored = torch.empty(0)


class SegmentMemory(Cache):
    """The memory of all layers, as a cache of transformers: give it to each forward pass as `past_key_values`.

    In generation nothing else is needed. Where the sequences of a batch begin other pieces at other times, segment by
    segment:

        >>> memory = SegmentMemory(model.config)
        >>> for segment in segments:  # (batch, length), each where the last one ended
        ...     mask = memory.begin_segment(segment["attention_mask"], segment["begins"])
        ...     output = model(segment["input_ids"], attention_mask=mask, past_key_values=memory)

    Args:
        config: With `memory_length`; `knn_layer` has a store.
    """

    layers: list[Any]  # each a `MemoryLayer`

    def __init__(self, config: MusicTransformerConfig):
        length = config.memory_length
        assert length is not None
        layers: list[Any] = [MemoryLayer(length) for _ in range(config.num_hidden_layers)]
        if config.knn_layer is not None:
            layers[config.knn_layer] = KnnMemoryLayer(length, config.knn_memory_size)
        super().__init__(layers=layers)
        self._seen: torch.Tensor | None = None  # (batch, kept) or more on the left

    @property
    def kept(self) -> int:
        """How many tokens the memory holds, the stores not counted."""
        return self.layers[0].kept

    def searchable(self, layer_idx: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
        """Keys, values and `is_stored` of a layer's store; `None` if there is nothing in it."""
        layer = self.layers[layer_idx]
        return layer.searchable if isinstance(layer, KnnMemoryLayer) else None

    def observe(self, attention_mask: torch.Tensor | None, length: int) -> None:
        """Note what of a segment is padding; the model does this before its layers.

        Args:
            attention_mask: Shape `(batch, past_length + length)`; others are taken to hide nothing.
            length: Of the segment.
        """
        is_usual = attention_mask is not None and attention_mask.ndim == 2
        self._seen = attention_mask[:, -(self.kept + length) :].bool() if is_usual else None  # type: ignore[index]
        for layer in self.layers:
            if isinstance(layer, KnnMemoryLayer):
                layer.seen = self._seen

    def begin_segment(self, attention_mask: torch.Tensor, begins: torch.Tensor | None = None) -> torch.Tensor:
        """The mask of memory and segment, to be used for the next forward pass.

        Args:
            attention_mask: 1 for tokens of the segment and 0 for padding on their right, shape `(batch, length)`.
            begins: Sequences that forget what was before, bool, shape `(batch,)`.

        Returns:
            Shape `(batch, kept + length)`, of the type of `attention_mask`.
        """
        for layer in self.layers:
            layer.begin_segment(begins)
        past = attention_mask.new_ones(len(attention_mask), self.kept)
        if self._seen is not None and self.kept:
            past = self._seen[:, -self.kept :].to(attention_mask.dtype)
        if begins is not None:
            past = past.masked_fill(begins[:, None], 0)
        return torch.cat([past, attention_mask], dim=1)

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep these sequences only, in this order."""
        super().batch_select_indices(indices)
        self._seen = None if self._seen is None else self._seen[indices]

    def state_dict(self) -> dict[str, torch.Tensor]:
        """All it holds, for a checkpoint; what `load_state_dict` takes."""
        state = {f"{index}.{name}": getattr(layer, name) for index, layer, name in self._tensors()}
        for index, layer in enumerate(self.layers):
            if isinstance(layer, KnnMemoryLayer):
                state[f"{index}.num_stored"] = torch.tensor(layer.num_stored)
        if self._seen is not None and self.kept:
            state["seen"] = self._seen[:, -self.kept :]
        return {name: each.contiguous() for name, each in state.items()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Take the place of another memory, whose state this is, at the beginning of a segment."""
        for index, layer in enumerate(self.layers):
            own = {name.split(".")[1]: each for name, each in state.items() if name.startswith(f"{index}.")}
            if "num_stored" in own:
                layer.num_stored = int(own.pop("num_stored"))
            if "keys" in own:
                layer.lazy_initialization(own["keys"], own["values"])
            for name, each in own.items():
                setattr(layer, name, each)
            layer.begin_segment(None)
        self._seen = state.get("seen")

    def _tensors(self) -> Iterator[tuple[int, Any, str]]:
        for index, layer in enumerate(self.layers):
            for name in layer.tensors():
                yield index, layer, name
