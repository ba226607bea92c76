"""SkyTNT's midi-model as a pair of ONNX graphs: the net over events and the net over the ids of an event.

Inputs and outputs are those of the pair that the original publishes (`export.py` of
https://github.com/SkyTNT/midi-model), so that what was written for one runs the other, and all operators but the
normalisation, the 8-bit products apart, are ONNX's own. Keys and values come and go: a step gives back those of all
positions so far, and their number tells the position of the first new one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto
from transformers import LlamaConfig

from pianogen_hf.generation.onnx.builder import GraphBuilder
from pianogen_hf.models.configuration_midi_event import MidiEventConfig

_MASKED = np.array(-3e38, np.float32)


def build_event_graph(
    weights: Mapping[str, np.ndarray], config: MidiEventConfig, is_int8: bool = False
) -> onnx.ModelProto:
    """Build the graph of the net over events.

    Inputs: `x` (batch, mid_seq, token_seq), rows of ids; `past_key_values.N.key` and `.value` (batch, num_heads,
    past_seq, head_dim), of length 0 at first.
    Outputs: `hidden` (batch, mid_seq, hidden_size); `present.N.key` and `.value`, of length past_seq + mid_seq.

    Args:
        weights: The float32 state dict of `MidiEventForCausalLM`.
        config: Its configuration.
        is_int8: Whether the weights of the layers are of 8 bits; embeddings, keys and values stay in float32.

    Returns:
        The graph with its weights.
    """
    builder = _LlamaBuilder(weights, config.net_config(), "net", is_int8)
    builder.rows_to_hidden()
    return _described(builder.model("midi_event"), config)


def build_id_graph(
    weights: Mapping[str, np.ndarray], config: MidiEventConfig, is_int8: bool = False
) -> onnx.ModelProto:
    """Build the graph of the net over ids, with the output layer.

    Inputs: `hidden` (batch, states, hidden_size), the event's hidden state: one for its first id, then none; `x`
    (batch, token_seq), the ids since: at first none; `past_key_values.N.key` and `.value`.
    Outputs: `y` (batch, states + token_seq, vocab_size), logits; `present.N.key` and `.value`.

    Args:
        weights: As for [`build_event_graph`], like the others.
        config: See there.
        is_int8: See there.

    Returns:
        The graph with its weights.
    """
    builder = _LlamaBuilder(weights, config.net_token_config(), "net_token", is_int8)
    builder.ids_to_logits()
    return _described(builder.model("midi_event_token"), config)


def _described(graph: onnx.ModelProto, config: MidiEventConfig) -> onnx.ModelProto:
    graph.metadata_props.add(key="config", value=config.to_json_string())
    return graph


class _LlamaBuilder(GraphBuilder):
    """Builds either graph."""

    def __init__(self, weights: Mapping[str, np.ndarray], config: LlamaConfig, prefix: str, is_int8: bool) -> None:
        super().__init__(is_int8)
        self.weights, self.config, self.prefix = weights, config, prefix
        self.num_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // self.num_heads

    def rows_to_hidden(self) -> None:
        self._input("x", TensorProto.INT64, ["batch", "mid_seq", "token_seq"])
        self._output("hidden", TensorProto.FLOAT, ["batch", "mid_seq", self.config.hidden_size])
        embeds = self._op("ReduceSum", [self._embedded("x"), self._axis(2)], keepdims=0)
        self._op("Identity", [self._layers(embeds)], ["hidden"])

    def ids_to_logits(self) -> None:
        self._input("hidden", TensorProto.FLOAT, ["batch", "states", self.config.hidden_size])
        self._input("x", TensorProto.INT64, ["batch", "token_seq"])
        self._output("y", TensorProto.FLOAT, ["batch", "token_seq1", self.config.vocab_size])
        embeds = self._op("Concat", ["hidden", self._embedded("x")], axis=1)
        self._linear(self._layers(embeds), "lm_head", self.weights["lm_head.weight"], output="y")

    def _embedded(self, ids: str) -> str:
        table = self._constant("embedding", self.weights[f"{self.prefix}.embed_tokens.weight"])
        return self._op("Gather", [table, ids])

    def _layers(self, hidden: str) -> str:
        """The normalised hidden states after all layers, (batch, length, hidden_size) like all between."""
        caches = [
            (f"past_key_values.{layer}.{kind}", f"present.{layer}.{kind}")
            for layer in range(self.config.num_hidden_layers)
            for kind in ("key", "value")
        ]
        for past, present in caches:
            self._input(past, TensorProto.FLOAT, ["batch", self.num_heads, "past_seq", self.head_dim])
            self._output(present, TensorProto.FLOAT, ["batch", self.num_heads, "present_seq", self.head_dim])
        places = self._places(hidden)
        for layer in range(self.config.num_hidden_layers):
            prefix = f"{self.prefix}.layers.{layer}"
            normed = self._norm(hidden, f"{prefix}.input_layernorm.weight")
            hidden = self._op("Add", [hidden, self._attention(layer, normed, *places)])
            normed = self._norm(hidden, f"{prefix}.post_attention_layernorm.weight")
            hidden = self._op("Add", [hidden, self._mlp(f"{prefix}.mlp", normed)])
        return self._norm(hidden, f"{self.prefix}.norm.weight")

    def _places(self, hidden: str) -> tuple[str, str, str]:
        """Cosines and sines of the new positions (length, head_dim), and what hides later ones (length, total)."""
        length = self._op("Shape", [hidden], start=1, end=2)
        past = self._op("Shape", ["past_key_values.0.key"], start=2, end=3)
        first, end = (self._scalar(each) for each in (past, self._op("Add", [past, length])))
        one = self._constant("one", np.array(1))
        queries = self._column(self._op("Range", [first, end, one]))
        keys = self._op("Range", [self._constant("zero", np.array(0)), end, one])
        is_hidden = self._op("Greater", [keys, queries])
        nothing = self._constant("nothing", np.array(0, np.float32))
        mask = self._op("Where", [is_hidden, self._constant("masked", _MASKED), nothing])
        theta: Any = self.config.rope_parameters["rope_theta"]  # type: ignore[index]
        frequencies = 1 / theta ** (np.arange(0, self.head_dim, 2, dtype=np.float32) / np.float32(self.head_dim))
        rates = self._constant("rates", np.tile(frequencies.astype(np.float32), 2))
        angles = self._op("Mul", [self._op("Cast", [queries], to=TensorProto.FLOAT), rates])
        return self._op("Cos", [angles]), self._op("Sin", [angles]), mask

    def _attention(self, layer: int, normed: str, cosines: str, sines: str, mask: str) -> str:
        prefix = f"{self.prefix}.layers.{layer}.self_attn"
        query, key, value = (self._heads(normed, f"{prefix}.{name}_proj.weight") for name in "qkv")
        query, key = (self._rotated(each, cosines, sines) for each in (query, key))
        key, value = (
            self._op("Concat", [f"past_key_values.{layer}.{kind}", new], [f"present.{layer}.{kind}"], axis=2)
            for kind, new in (("key", key), ("value", value))
        )
        scores = self._op("MatMul", [query, self._op("Transpose", [key], perm=[0, 1, 3, 2])])
        scores = self._op("Mul", [scores, self._constant("scale", np.array(self.head_dim**-0.5, np.float32))])
        shares = self._op("Softmax", [self._op("Add", [scores, mask])], axis=-1)
        heard = self._op("Transpose", [self._op("MatMul", [shares, value])], perm=[0, 2, 1, 3])
        flat = self._constant("flat", np.array([0, 0, self.config.hidden_size]))
        heard = self._op("Reshape", [heard, flat])
        return self._linear(heard, f"{prefix}.o_proj", self.weights[f"{prefix}.o_proj.weight"])

    def _heads(self, normed: str, name: str) -> str:
        """A projection, (batch, num_heads, length, head_dim)."""
        by_head = self._constant("by_head", np.array([0, 0, self.num_heads, self.head_dim]))
        projected = self._op("Reshape", [self._linear(normed, name, self.weights[name]), by_head])
        return self._op("Transpose", [projected], perm=[0, 2, 1, 3])

    def _rotated(self, heads: str, cosines: str, sines: str) -> str:
        first, second = self._ops("Split", [heads], 2, axis=-1, num_outputs=2)
        turned = self._op("Concat", [self._op("Neg", [second]), first], axis=-1)
        return self._op("Add", [self._op("Mul", [heads, cosines]), self._op("Mul", [turned, sines])])

    def _mlp(self, prefix: str, normed: str) -> str:
        gate, up = (
            self._linear(normed, f"{prefix}.{name}_proj", self.weights[f"{prefix}.{name}_proj.weight"])
            for name in ("gate", "up")
        )
        gate = self._op("Mul", [gate, self._op("Sigmoid", [gate])])
        inner = self._op("Mul", [gate, up])
        return self._linear(inner, f"{prefix}.down_proj", self.weights[f"{prefix}.down_proj.weight"])

    def _norm(self, hidden: str, name: str) -> str:
        gains = self._constant(name, self.weights[name])
        epsilon = self.config.rms_norm_eps
        return self._op("SimplifiedLayerNormalization", [hidden, gains], axis=-1, epsilon=epsilon)

    def _scalar(self, value: str) -> str:
        return self._op("Squeeze", [value, self._axis(0)])

    def _column(self, values: str) -> str:
        return self._op("Unsqueeze", [values, self._axis(1)])

    def _axis(self, axis: int) -> str:
        return self._constant(f"axis_{axis}", np.array([axis]))
