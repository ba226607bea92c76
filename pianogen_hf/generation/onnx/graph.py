"""The Music Transformer as an ONNX graph that takes some tokens and a cache, for ONNX Runtime on a CPU.

One graph serves prompts and single tokens. Its attention is ONNX Runtime's GroupQueryAttention, which writes keys and
values into the cache where it lies (bind the same memory to `past_*` and `present_*`) and, with `attention_window`,
keeps no more than that. The relative positions enter as its bias: the logit of each distance, from one product of the
queries with the table of embeddings, is laid out over the keys by what `fill_placement` fills in. With 8 bits, weights
are integers with a scale per block of inputs, what they are multiplied with is made integers on the way (MatMulNBits),
and keys and values are integers with a fixed scale per channel.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from pianogen_hf.generation.onnx.builder import CONTRIB, ExportError, GraphBuilder, Shape
from pianogen_hf.models.configuration_music_transformer import MusicTransformerConfig

CACHE_SLACK = 64  # keys that a windowed cache holds beyond the window, so that it is compacted only now and then
_ACTIVATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "relu": ("Relu", {}),
    "gelu": ("Gelu", {}),
    "gelu_new": ("Gelu", {"approximate": "tanh"}),
}

Scales = list[tuple[np.ndarray, np.ndarray]]


def build_graph(
    weights: Mapping[str, np.ndarray], config: MusicTransformerConfig, cache_scales: Scales | None = None
) -> onnx.ModelProto:
    """Build the graph of a causal Music Transformer.

    Inputs: `input_ids` (batch, length); `total_length` (scalar, int32) and `last_key` (batch, int32), the number of
    tokens so far, these included, and one less; what `fill_placement` fills in; `past_key.N` and `past_value.N` (batch,
    num_heads, capacity, head_dim). Either batch or length must be 1.
    Outputs: `logits` (batch, length, vocab_size), `present_key.N` and `present_value.N`.

    Args:
        weights: The float32 state dict of `MusicTransformerForCausalLM`.
        config: Its configuration.
        cache_scales: For 8 bits: per layer the scales of keys and values, shape `(num_heads, head_dim)`; None for
            float32.

    Returns:
        The graph with its weights.

    Raises:
        ExportError: If the activation is none of those that the graph knows, or it knows other positions or a memory.
    """
    if config.position_embedding_type != "learned" or config.memory_length is not None:
        raise ExportError("a model with sinusoidal positions or a memory can't be exported: generate with torch")
    if config.hidden_act not in _ACTIVATIONS:
        raise ExportError(f"hidden_act {config.hidden_act!r} can't be exported: {', '.join(_ACTIVATIONS)} can")
    return _MusicTransformerBuilder(weights, config, cache_scales).build()


def placement() -> dict[str, np.ndarray]:
    """`distance_pads`, `distance_skip` and `bias_sizes`, int64, for `fill_placement`."""
    sizes = {"distance_pads": 6, "distance_skip": 1, "bias_sizes": 4}
    return {name: np.zeros(size, np.int64) for name, size in sizes.items()}


def fill_placement(
    values: dict[str, np.ndarray], num_rows: int, length: int, total_length: int, num_distances: int
) -> None:
    """Fill the inputs that lay the logits of distances out over keys.

    Rows of distances become as long as needed: cropped, or filled with the clipped ones. With several queries they are
    one longer still, so that, read with rows of the right length, each is shifted one further than the row above (the
    "skewing" of the Music Transformer's paper, section 3.4.1).

    Args:
        values: What `placement` gives.
        num_rows: Size of the batch; 1 where `length` is more than 1.
        length: Number of queries.
        total_length: Number of tokens, the queries included.
        num_distances: `max_relative_distance`.
    """
    shift = length if length > 1 else 0
    values["distance_pads"][2] = total_length + (shift > 0) - num_distances
    values["distance_skip"][0] = shift
    values["bias_sizes"][:] = num_rows, -1, length, total_length


class _MusicTransformerBuilder(GraphBuilder):
    """Builds the graph."""

    def __init__(
        self, weights: Mapping[str, np.ndarray], config: MusicTransformerConfig, cache_scales: Scales | None
    ) -> None:
        super().__init__(is_int8=cache_scales is not None)
        self.weights, self.config, self.cache_scales = weights, config, cache_scales
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // self.num_heads
        self.cache_type = TensorProto.FLOAT if cache_scales is None else TensorProto.INT8

    def build(self) -> onnx.ModelProto:
        self._input("input_ids", TensorProto.INT64, ["batch", "length"])
        self._input("total_length", TensorProto.INT32, [])
        self._input("last_key", TensorProto.INT32, ["batch"])
        for name, value in placement().items():
            self._input(name, TensorProto.INT64, list(value.shape))
        self._output("logits", TensorProto.FLOAT, ["batch", "length", self.config.vocab_size])
        embedding = self._constant("embedding", self.weights["model.embed_tokens.weight"])
        hidden = self._op("Gather", [embedding, "input_ids"])
        norm = self._norm_weights("model.layers.0.input_layernorm")
        normed = self._op("LayerNormalization", [hidden, *norm], epsilon=self.config.layer_norm_eps)
        for layer in range(self.config.num_hidden_layers):
            hidden, normed = self._layer(layer, hidden, normed)
        self._linear(normed, "lm_head", self.weights["lm_head.weight"], output="logits")
        return self.model("music_transformer")

    def _layer(self, layer: int, hidden: str, normed: str) -> tuple[str, str]:
        """One decoder layer.

        Returns:
            The residual stream after it, and the same normalised for what follows.
        """
        prefix = f"model.layers.{layer}."
        attended = self._attention(layer, normed)
        attended = self._linear(attended, f"{prefix}o", self.weights[f"{prefix}self_attn.o_proj.weight"])
        hidden, normed = self._add_and_norm(hidden, attended, f"{prefix}post_attention_layernorm")
        name, attributes = _ACTIVATIONS[self.config.hidden_act]
        inner = self._linear(normed, f"{prefix}fc1", *self._linear_weights(f"{prefix}mlp.fc1"))
        inner = self._op(name, [inner], **attributes)
        weight, bias = self._linear_weights(f"{prefix}mlp.fc2")
        added = self._linear(inner, f"{prefix}fc2", weight)
        is_last = layer == self.config.num_hidden_layers - 1
        next_norm = "model.norm" if is_last else f"model.layers.{layer + 1}.input_layernorm"
        return self._add_and_norm(hidden, added, next_norm, self._constant(f"{prefix}fc2.bias", bias))

    def _attention(self, layer: int, normed: str) -> str:
        prefix = f"model.layers.{layer}.self_attn."
        projections = [self.weights[f"{prefix}{name}_proj.weight"] for name in "qkv"]
        packed = self._linear(normed, f"{prefix}qkv", np.concatenate(projections))
        shape: Shape = ["batch", self.num_heads, "capacity", self.head_dim]
        names = self._cache(layer, self.cache_type, shape)
        inputs = [
            packed,
            "",
            "",
            *names[:2],
            "last_key",
            "total_length",
            "",
            "",
            "",
            self._relative_bias(layer, packed),
        ]
        attributes: dict = {"num_heads": self.num_heads, "kv_num_heads": self.num_heads, "scale": self.head_dim**-0.5}
        if self.config.attention_window is not None:
            attributes |= {"local_window_size": self.config.attention_window, "sliding_window_cache": 1}
        if self.cache_scales is not None:
            scales = zip("kv", self.cache_scales[layer], strict=True)
            inputs += ["", *(self._constant(f"{prefix}{name}_scale", each[None, :, None]) for name, each in scales)]
            attributes |= {"k_quant_type": "PER_CHANNEL", "v_quant_type": "PER_CHANNEL", "kv_cache_bit_width": 8}
        output = f"{prefix}output"
        self._op("GroupQueryAttention", inputs, [output, *names[2:]], CONTRIB, **attributes)
        return output

    def _relative_bias(self, layer: int, packed: str) -> str:
        """Bias of the attention logits, (batch, num_heads, length, total_length)."""
        table = self.weights[f"model.layers.{layer}.self_attn.relative_embedding.weight"]
        # Softmax ignores a shift of a row, so clipped distances may count as 0: they need no product.
        table = (table - table[:, -1:])[:, ::-1] * self.head_dim**-0.5  # farthest distance first
        by_head = self._one_product if self.cache_scales is None else self._products_by_head
        logits = self._op("Pad", [by_head(layer, packed, table), "distance_pads"])
        rows = self._op("Reshape", [logits, self._constant("flat", np.array([self.num_heads, -1]))])
        end, axis = (self._constant(f"number_{number}", np.array([number])) for number in (2**62, 1))
        rows = self._op("Slice", [rows, "distance_skip", end, axis])  # nothing, where there are several rows
        return self._op("Reshape", [rows, "bias_sizes"])

    def _one_product(self, layer: int, packed: str, table: np.ndarray) -> str:
        """Logits of distances, (batch, num_heads * length, distances): in 32 bits threads share all heads at once."""
        size, num_distances = self.config.hidden_size, table.shape[1]
        query, _ = self._ops("Split", [packed, self._constant("query_size", np.array([size, 2 * size]))], 2, axis=2)
        heads = self._constant("heads", np.array([0, 0, self.num_heads, self.head_dim]))
        query = self._op("Transpose", [self._op("Reshape", [query, heads])], perm=[0, 2, 1, 3])
        logits = self._op("MatMul", [query, self._constant(f"relative.{layer}", table.transpose(0, 2, 1))])
        return self._op("Reshape", [logits, self._constant("distances", np.array([0, -1, num_distances]))])

    def _products_by_head(self, layer: int, packed: str, table: np.ndarray) -> str:
        """The same, in 8 bits: products like those of linear layers have the fastest kernels."""
        heads, size = self.num_heads, self.config.hidden_size
        sizes = self._constant("query_sizes", np.array([self.head_dim] * heads + [2 * size]))
        *queries, _ = self._ops("Split", [packed, sizes], heads + 1, axis=2)
        products = [self._linear(query, f"relative.{layer}.{head}", table[head]) for head, query in enumerate(queries)]
        return self._op("Concat", products, axis=1)  # length or batch is 1, so the order is the same

    def _add_and_norm(self, hidden: str, added: str, norm: str, bias: str | None = None) -> tuple[str, str]:
        inputs = [hidden, added, *self._norm_weights(norm), *([bias] if bias else [])]
        outputs = [f"{norm}.normed", "", "", f"{norm}.sum"]
        self._op("SkipLayerNormalization", inputs, outputs, CONTRIB, epsilon=self.config.layer_norm_eps)
        return outputs[3], outputs[0]

    def _norm_weights(self, name: str) -> list[str]:
        return [self._constant(f"{name}.{part}", self.weights[f"{name}.{part}"]) for part in ("weight", "bias")]

    def _linear_weights(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        return self.weights[f"{name}.weight"], self.weights[f"{name}.bias"]
