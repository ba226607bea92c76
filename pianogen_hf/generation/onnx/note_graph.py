"""The decoder of the note transformer (V8) as an ONNX graph that takes some rows and a cache, for CPUs.

One graph serves windows and single rows. Its attention is ONNX Runtime's GroupQueryAttention, which writes keys and
values into the cache where it lies (bind the same memory to `past_*` and `present_*`) and rotates them by a table of
angles per place in the cache: there each row's own are filled in, of its index, onset and pitch. The heads, which draw
the next note, are no part of it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto

from pianogen_hf.generation.onnx.builder import CONTRIB, GraphBuilder
from pianogen_hf.models.configuration_note_transformer import NoteTransformerConfig

# In the order of the columns of `class_ids`.
_TABLES = ("time_shift", "pitch", "velocity", "duration", "role", "controls")


def build_note_graph(
    weights: Mapping[str, np.ndarray], config: NoteTransformerConfig, is_int8: bool = False
) -> onnx.ModelProto:
    """Build the graph of a note transformer's decoder.

    Inputs: `class_ids` (1, length, 5 + num_controls), the rows' places in the tables of all embeddings, one under the
    other; `cosines` and `sines` (capacity, head_dim / 2) of the angles of all rows so far, these included;
    `total_length` (scalar, int32) and `last_key` (1, int32), the number of rows so far, these included, and one less;
    `past_key.N` and `past_value.N` (1, num_heads, capacity, head_dim).
    Outputs: `hidden_states` (1, length, hidden_size), `present_key.N` and `present_value.N`.

    Args:
        weights: The float32 state dict of `NoteTransformerForCausalLM`.
        config: Its configuration.
        is_int8: Whether the weights of the layers are of 8 bits; embeddings, keys and values stay in float32.

    Returns:
        The graph with its weights.
    """
    return _NoteTransformerBuilder(weights, config, is_int8).build()


def embedding_table(weights: Mapping[str, np.ndarray]) -> np.ndarray:
    """Embeddings of all fields, one under the other, shape (num_classes, hidden_size)."""
    return np.concatenate([weights[f"model.embeddings.embed_{name}.weight"] for name in _TABLES])


class _NoteTransformerBuilder(GraphBuilder):
    """Builds the graph."""

    def __init__(self, weights: Mapping[str, np.ndarray], config: NoteTransformerConfig, is_int8: bool) -> None:
        super().__init__(is_int8)
        self.weights, self.config = weights, config

    def build(self) -> onnx.ModelProto:
        size = self.config.hidden_size
        self._input("class_ids", TensorProto.INT64, [1, "length", 5 + len(self.config.control_sizes)])
        self._input("total_length", TensorProto.INT32, [])
        self._input("last_key", TensorProto.INT32, [1])
        for name in ("cosines", "sines"):
            self._input(name, TensorProto.FLOAT, ["capacity", self.config.head_dim // 2])
        self._output("hidden_states", TensorProto.FLOAT, [1, "length", size])
        embedding = self._constant("embedding", embedding_table(self.weights))
        embeds = self._op("Gather", [embedding, "class_ids"])
        embeds = self._op("ReduceSum", [embeds, self._constant("fields", np.array([2]))], keepdims=0)
        hidden = self._norm(embeds, size)  # (1, length, hidden_size), as all that follows
        normed = self._norm(hidden, size)
        for layer in range(self.config.num_hidden_layers):
            hidden, normed = self._layer(layer, hidden, normed)
        self._op("Add", [normed, self._control_bias()], ["hidden_states"])
        return self.model("note_transformer")

    def _control_bias(self) -> str:
        """What is asked, as it is added at the end, (1, length, hidden_size)."""
        num_others = len(embedding_table(self.weights)) - sum(self.config.control_sizes)
        axis = self._constant("fields", np.array([2]))
        bounds = [self._constant(name, np.array([at])) for name, at in (("first", 5), ("last", 99))]
        places = self._op("Slice", ["class_ids", *bounds, axis])
        places = self._op("Sub", [places, self._constant("others", np.array(num_others))])
        table = self._constant("control_bias", self.weights["model.control_bias.weight"])
        return self._op("ReduceSum", [self._op("Gather", [table, places]), axis], keepdims=0)

    def _layer(self, layer: int, hidden: str, normed: str) -> tuple[str, str]:
        """One decoder layer; returns the residual stream after it, and the same normalised for what follows."""
        prefix = f"model.layers.{layer}."
        attended = self._linear(
            self._attention(layer, normed), f"{prefix}o", self.weights[f"{prefix}self_attn.o_proj.weight"]
        )
        hidden, normed = self._add_and_norm(hidden, attended)
        inner = self._linear(normed, f"{prefix}up", self.weights[f"{prefix}mlp.up_proj.weight"])
        inner = self._op("Relu", [inner])
        inner = self._op("Mul", [inner, inner])
        added = self._linear(inner, f"{prefix}down", self.weights[f"{prefix}mlp.down_proj.weight"])
        return self._add_and_norm(hidden, added)

    def _attention(self, layer: int, normed: str) -> str:
        prefix, size, heads = (
            f"model.layers.{layer}.self_attn.",
            self.config.hidden_size,
            self.config.num_attention_heads,
        )
        projections = [self.weights[f"{prefix}{name}_proj.weight"] for name in "qkv"]
        packed = self._linear(normed, f"{prefix}qkv", np.concatenate(projections))
        sizes = self._constant("sizes", np.array([2 * size, size]))
        query_and_key, value = self._ops("Split", [packed, sizes], 2, axis=2)
        # Queries and keys are normalised head by head, both at once.
        by_head = self._constant("by_head", np.array([0, 0, 2 * heads, self.config.head_dim]))
        query_and_key = self._norm(self._op("Reshape", [query_and_key, by_head]), self.config.head_dim)
        flat = self._constant("flat", np.array([0, 0, 2 * size]))
        halves = self._constant("halves", np.array([size, size]))
        query, key = self._ops("Split", [self._op("Reshape", [query_and_key, flat]), halves], 2, axis=2)
        cache = self._cache(layer, TensorProto.FLOAT, [1, heads, "capacity", self.config.head_dim])
        inputs = [query, key, value, *cache[:2], "last_key", "total_length", "cosines", "sines"]
        output = f"{prefix}output"
        sizes_and_scale = {"num_heads": heads, "kv_num_heads": heads, "scale": self.config.head_dim**-0.5}
        self._op("GroupQueryAttention", inputs, [output, *cache[2:]], CONTRIB, do_rotary=1, **sizes_and_scale)
        return output

    def _norm(self, hidden: str, size: int) -> str:
        inputs = [hidden, self._gains(size)]
        return self._op("SimplifiedLayerNormalization", inputs, axis=-1, epsilon=self.config.rms_norm_eps)

    def _add_and_norm(self, hidden: str, added: str) -> tuple[str, str]:
        outputs = [f"{added}.normed", "", "", f"{added}.sum"]
        inputs = [hidden, added, self._gains(self.config.hidden_size)]
        self._op("SkipSimplifiedLayerNormalization", inputs, outputs, CONTRIB, epsilon=self.config.rms_norm_eps)
        return outputs[3], outputs[0]

    def _gains(self, size: int) -> str:
        """Ones: the model's normalisations have no gains, those of ONNX Runtime want them."""
        return self._constant(f"ones.{size}", np.ones(size, np.float32))
