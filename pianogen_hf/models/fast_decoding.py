"""What a step of one token saves on a CPU: copies of the cache, and slow ways through the weights.

Such a step is bound by memory: it does little more than read all weights, keys and values once.
"""

from typing import Any

import torch
from torch import nn
from transformers.cache_utils import Cache, DynamicCache, DynamicLayer

# Room of a new buffer, in tokens beyond those that it gets; half as many as those, if that is more.
LEAST_ROOM = 256
# Weights of a layer that is worth packing: smaller ones stay in a processor's caches, where order matters little.
LEAST_PACKED = 2**18


class GrowingLayer(DynamicLayer):
    """Keys and values that are the beginning of larger buffers, into which new ones are written.

    Differs from `DynamicLayer`, which concatenates: each step then reads and writes all there is once more. The rest is
    inherited, and may put other tensors into the place of `keys` and `values` (beams do): the next step copies those.
    """

    def __init__(self) -> None:
        super().__init__()
        self._buffers: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}  # each with what of it is filled

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append tokens; arguments and result as for `DynamicLayer`, shape `(batch, num_heads, length, head_dim)`."""
        # Gradients need what was there before, and traced operators would copy all of a buffer.
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing():
            return super().update(key_states, value_states, *args, **kwargs)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.keys = keys = self._append("keys", self.keys, key_states)
        self.values = values = self._append("values", self.values, value_states)
        return keys, values

    def _append(self, name: str, past: Any, new: torch.Tensor) -> torch.Tensor:
        past_length = past.shape[-2] if past.numel() else 0  # what is not filled yet has one dimension
        length = past_length + new.shape[-2]
        buffer, filled = self._buffers.get(name, (new[:, :, :0], None))
        # What was made in inference mode can't be written to outside it.
        if filled is not past or length > buffer.shape[2] or buffer.is_inference() > torch.is_inference_mode_enabled():
            buffer = new.new_empty(*new.shape[:2], length + max(LEAST_ROOM, length // 2), new.shape[-1])
            if past_length:
                buffer[:, :, :past_length] = past
        buffer.narrow(2, past_length, new.shape[-2]).copy_(new)
        filled = buffer.narrow(2, 0, length)
        self._buffers[name] = buffer, filled
        return filled

    def reset(self) -> None:
        """Forget all tokens and free their memory."""
        super().reset()
        self._buffers = {}


def let_grow(cache: Cache | None) -> None:
    """Give growing layers to a `DynamicCache` that is still empty, in the place of those that keep all tokens."""
    if type(cache) is DynamicCache and not cache.offloading and cache.get_seq_length() == 0:
        cache.layers = [GrowingLayer() if type(layer) is DynamicLayer else layer for layer in cache.layers]


def packed_weight(*layers: nn.Module) -> torch.Tensor | None:
    """The weights of linear layers with one input as one, in the order in which the product with one row is fastest.

    One row times a matrix runs at the speed of memory only if the rows of the matrix in memory are long: for layers
    wider than their input, that is the transpose of how linear layers keep it. Measured: 20 instead of 10 GB/s for
    512 x 2,048.

    Args:
        *layers: Linear layers whose outputs are wanted side by side.

    Returns:
        Shape `(outputs, inputs)`, a copy; None if any is something else (an adapter, a quantised weight), has hooks,
        is small, or is not in float32 on a CPU.
    """
    if not all(_is_plain(layer) for layer in layers):
        return None
    # Transposed in parts that fit into a processor's cache, which takes half the time.
    parts = [part.t().contiguous() for layer in layers for part in layer.get_parameter("weight").detach().split(64)]
    return torch.cat(parts, dim=1).t()


def _is_plain(layer: nn.Module) -> bool:
    if type(layer) is not nn.Linear or layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer):
        return False
    weight = layer.weight
    is_usual = type(weight) is nn.Parameter and weight.dtype == torch.float32 and weight.device.type == "cpu"
    return is_usual and weight.numel() >= LEAST_PACKED
