"""Opening exported graphs with ONNX Runtime, and binding memory to what they read and write."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from transformers.utils import cached_file

from pianogen_hf.errors import PianogenError

FOLDER = "onnx"  # inside a model's folder, where the Hub expects such files
STEM = "model"  # of the file of a model that is one graph
_ENDINGS = {"float32": ".onnx", "int8": "_int8.onnx"}


class EngineError(PianogenError):
    """A model that the engine can't open; the message is one line."""


def open_session(
    graph: str | Path | bytes, inputs: Iterable[str], num_threads: int | None = None
) -> onnxruntime.InferenceSession:
    """A session on the CPU.

    Args:
        graph: a graph, or a path to it.
        inputs: names of inputs that it must have.
        num_threads: threads within an operator; None for as many as torch has.

    Raises:
        EngineError: if another version has exported the graph.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads or torch.get_num_threads()
    options.log_severity_level = 3
    options.enable_mem_pattern = False  # of no use to shapes that change with each step, and kept for each of them
    graph = graph if isinstance(graph, bytes) else str(graph)
    session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
    if not set(inputs) <= {each.name for each in session.get_inputs()}:
        raise EngineError("another version of pianogen_hf exported it: export it again")
    return session


def file_name(stem: str, precision: str) -> str:
    """The name of a graph's file: model.onnx, model_int8.onnx ..."""
    return stem + _ENDINGS[precision]


def exported_file(name: str | Path, precision: str, stem: str = STEM) -> Path:
    """The graph that `pianogen export` wrote of a model.

    Args:
        name: Model folder or Hub id.
        precision: "float32" or "int8".
        stem: Of the file's name, where a model is several graphs.

    Raises:
        EngineError: if there is no such model, or it was not exported with this precision.
    """
    try:
        return Path(str(cached_file(str(name), file_name(stem, precision), subfolder=FOLDER)))
    except OSError as error:
        flag = " --int8" if precision == "int8" else ""
        raise EngineError(
            f"{name} has no {FOLDER}/{file_name(stem, precision)}: pianogen export --model {name}{flag} --output {name}"
        ) from error


@contextmanager
def opening(path: Path) -> Iterator[None]:
    """Says in one line that an exported model can't be opened.

    Raises:
        EngineError: for any error.
    """
    try:
        yield
    except Exception as error:  # onnxruntime's have no other common base
        raise EngineError(f"{path} can't be opened: {' '.join(str(error).split())[:200]}") from error


def bind(bind_one: Any, name: str, array: np.ndarray) -> None:
    """Bind memory in place; the caller keeps it alive."""
    bind_one(name, "cpu", 0, array.dtype.type, array.shape, array.ctypes.data)
