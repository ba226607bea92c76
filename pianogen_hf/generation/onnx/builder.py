"""What the graphs of all models are made of: nodes, weights in float32 or 8 bits, inputs and outputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from pianogen_hf.errors import PianogenError

CONTRIB = "com.microsoft"
_OPSET, _IR_VERSION = 20, 10
_LARGEST_BLOCK = 128  # weights that share a scale: 256 are not faster, 32 much slower
_INTEGERS = 4  # the accuracy_level of MatMulNBits that multiplies integers, not floats

Shape = list[str | int | None]


class ExportError(PianogenError):
    """A model that can't be exported; the message is one line."""


class GraphBuilder:
    """Collects nodes and weights; the methods return the names of what they compute.

    Args:
        is_int8: whether weights become integers with a scale per block of inputs; what they are multiplied with is then
            made integers on the way (MatMulNBits).
    """

    def __init__(self, is_int8: bool) -> None:
        self.is_int8 = is_int8
        self.nodes: list[onnx.NodeProto] = []
        self.constants: dict[str, onnx.TensorProto] = {}
        self.inputs: list[onnx.ValueInfoProto] = []
        self.outputs: list[onnx.ValueInfoProto] = []

    def model(self, name: str) -> onnx.ModelProto:
        """The graph of all that was collected."""
        graph = helper.make_graph(self.nodes, name, self.inputs, self.outputs, list(self.constants.values()))
        opsets = [helper.make_opsetid("", _OPSET), helper.make_opsetid(CONTRIB, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=_IR_VERSION, producer_name="pianogen_hf")

    def _linear(
        self, hidden: str, name: str, weight: np.ndarray, bias: np.ndarray | None = None, output: str | None = None
    ) -> str:
        """`hidden @ weight.T + bias`; weight has shape (outputs, inputs)."""
        outputs = [output] if output else None
        biases = [] if bias is None else [self._constant(f"{name}.bias", bias)]
        if not self.is_int8:
            product = self._op("MatMul", [hidden, self._constant(name, weight.T)], outputs)
            return self._op("Add", [product, *biases]) if biases else product
        integers, scales = quantized(weight)
        inputs = [hidden, self._constant(name, integers), self._constant(f"{name}.scales", scales), "", "", *biases]
        sizes = {"N": len(weight), "K": weight.shape[1], "block_size": integers.shape[2]}
        return self._op("MatMulNBits", inputs, outputs, CONTRIB, bits=8, accuracy_level=_INTEGERS, **sizes)

    def _cache(self, layer: int, kind: int, shape: Shape) -> list[str]:
        """Inputs and outputs for keys and values of a layer: `past_key.N`, `past_value.N`, `present_key.N` ..."""
        past = [f"past_key.{layer}", f"past_value.{layer}"]
        present = [f"present_key.{layer}", f"present_value.{layer}"]
        for name in past:
            self._input(name, kind, shape)
        for name in present:
            self._output(name, kind, shape)
        return past + present

    def _input(self, name: str, kind: int, shape: Shape) -> None:
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))

    def _output(self, name: str, kind: int, shape: Shape) -> None:
        self.outputs.append(helper.make_tensor_value_info(name, kind, shape))

    def _constant(self, name: str, value: np.ndarray) -> str:
        self.constants[name] = numpy_helper.from_array(np.ascontiguousarray(value), name)
        return name

    def _op(
        self, kind: str, inputs: list[str], outputs: list[str] | None = None, domain: str = "", **attributes: Any
    ) -> str:
        outputs = outputs or [f"{kind}_{len(self.nodes)}"]
        node = helper.make_node(kind, inputs, outputs, name=f"{kind}_{len(self.nodes)}", domain=domain, **attributes)
        self.nodes.append(node)
        return outputs[0]

    def _ops(self, kind: str, inputs: list[str], count: int, **attributes: Any) -> list[str]:
        outputs = [f"{kind}_{len(self.nodes)}_{index}" for index in range(count)]
        self._op(kind, inputs, outputs, **attributes)
        return outputs


def quantized(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A weight (outputs, inputs) as MatMulNBits takes it: (outputs, blocks, block) around 128, and scales of blocks."""
    block = min(_LARGEST_BLOCK, max(16, 2 ** (weight.shape[1] - 1).bit_length()))
    blocks = np.pad(weight, [(0, 0), (0, -weight.shape[1] % block)]).reshape(len(weight), -1, block)
    largest = np.abs(blocks).max(-1)
    scales = np.where(largest > 0, largest, 1).astype(np.float32) / 127  # what is all zero stays so with any scale
    return (np.round(blocks / scales[..., None]) + 128).astype(np.uint8), scales
