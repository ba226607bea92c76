"""Graphs for a download: weights in 16 bits where that loses nothing, made 32 again when the graph is opened.

Models are saved in bfloat16, the upper half of a float32. So in a graph of such a model the lower halves are zeros, and
a page that fetches it needs not fetch them. ONNX Runtime computes a `Cast` of a constant once, when it opens the graph:
what runs is the graph in float32.
"""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

_FEWEST = 1024  # numbers of a constant that are worth a node


def halved(graph: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph, with every large float32 constant in bfloat16 whose numbers bfloat16 has."""
    result = onnx.ModelProto()
    result.CopyFrom(graph)
    casts = []
    for constant in result.graph.initializer:
        if constant.data_type != TensorProto.FLOAT or np.prod(constant.dims) < _FEWEST:
            continue
        halves = upper_halves(numpy_helper.to_array(constant))
        if halves is None:
            continue
        name = constant.name
        constant.name, constant.data_type, constant.raw_data = f"{name}.half", TensorProto.BFLOAT16, halves.tobytes()
        casts.append(helper.make_node("Cast", [constant.name], [name], name=f"{name}.cast", to=TensorProto.FLOAT))
    nodes = [*casts, *graph.graph.node]
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    return result


def upper_halves(values: np.ndarray) -> np.ndarray | None:
    """The bits of numbers as bfloat16, uint16; None if some of them have more.

    Args:
        values: float32, of any shape.
    """
    bits = np.ascontiguousarray(values, "<f4").view("<u4")
    return None if (bits & 0xFFFF).any() else (bits >> 16).astype("<u2")
