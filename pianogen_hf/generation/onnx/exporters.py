"""What exporting asks of each kind of model: its graph in both precisions, and whether it does what the model does."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from safetensors.numpy import save

from pianogen_hf.generation.onnx.builder import ExportError
from pianogen_hf.generation.onnx.checks import check_greedy, likely_samples, total_nats
from pianogen_hf.generation.onnx.engine import OnnxEngine, cache_scales
from pianogen_hf.generation.onnx.graph import build_graph
from pianogen_hf.generation.onnx.note_checks import check_greedy_notes, engine_states, likely_notes, total_note_nats
from pianogen_hf.generation.onnx.note_engine import OnnxNoteEngine
from pianogen_hf.generation.onnx.note_graph import build_note_graph

_MOST_APART = 1e-4  # share of the cross-entropy that float32 may differ from torch's


class Exporter(Protocol):
    """Exports one model.

    Args:
        model: in float32, on the CPU.

    Attributes:
        step: what the model writes at a time.
    """

    step: str

    def __init__(self, model: Any) -> None: ...

    def graph(self) -> bytes:
        """The graph in float32."""

    def int8_graph(self, engine: Any, samples: list[np.ndarray]) -> bytes:
        """The graph with 8 bits, given the engine in float32 and samples from it."""

    def open(self, graph: bytes) -> Any:
        """The engine that runs a graph."""

    def file_beside(self) -> bytes | None:
        """What else the engine needs, for a file of the graph's name that ends in .safetensors."""

    def samples(self, engine: Any) -> list[np.ndarray]:
        """Steps that the model finds likely, drawn with torch's own random numbers."""

    def check(self, engine: Any, samples: list[np.ndarray]) -> str:
        """Hold the engine in float32 against the model; what was found. ExportError: if it differs."""

    def nats(self, engine: Any, pieces: list[np.ndarray]) -> float:
        """Cross-entropy of the steps of pieces, the first of each given."""


class TokenExporter:
    """For the Music Transformer (V7)."""

    step = "token"

    def __init__(self, model: Any) -> None:
        self.model, self.weights = model, {name: each.numpy() for name, each in model.state_dict().items()}

    def graph(self) -> bytes:
        """See [`Exporter`], like the rest."""
        return build_graph(self.weights, self.model.config).SerializeToString()

    def int8_graph(self, engine: OnnxEngine, samples: list[np.ndarray]) -> bytes:
        """Keys and values get scales that cover those of the samples."""
        return build_graph(self.weights, self.model.config, cache_scales(engine, samples)).SerializeToString()

    def open(self, graph: bytes) -> OnnxEngine:
        """See there."""
        return OnnxEngine(graph, self.model.config, self.model.generation_config)

    def file_beside(self) -> None:
        """Nothing."""

    def samples(self, engine: OnnxEngine) -> list[np.ndarray]:
        """Token ids."""
        return likely_samples(engine)

    def check(self, engine: OnnxEngine, samples: list[np.ndarray]) -> str:
        """Greedy tokens."""
        return check_greedy(engine, self.model, samples[0])

    def nats(self, engine: OnnxEngine, pieces: list[np.ndarray]) -> float:
        """See there."""
        return total_nats(engine, pieces)


class NoteExporter:
    """For the note transformer (V8)."""

    step = "note"

    def __init__(self, model: Any) -> None:
        self.model, self.weights = model, {name: each.numpy() for name, each in model.state_dict().items()}
        self.heads = {
            name.removeprefix("heads."): each for name, each in self.weights.items() if name.startswith("heads.")
        }

    def graph(self) -> bytes:
        """See [`Exporter`], like the rest."""
        return build_note_graph(self.weights, self.model.config).SerializeToString()

    def int8_graph(self, engine: OnnxNoteEngine, samples: list[np.ndarray]) -> bytes:
        """Only weights are of 8 bits, which asks for no samples."""
        return build_note_graph(self.weights, self.model.config, is_int8=True).SerializeToString()

    def open(self, graph: bytes) -> OnnxNoteEngine:
        """See there."""
        return OnnxNoteEngine(graph, self.heads, self.model.config)

    def file_beside(self) -> bytes:
        """The weights of the heads."""
        return save(self.heads)

    def samples(self, engine: OnnxNoteEngine) -> list[np.ndarray]:
        """Rows."""
        return likely_notes(engine)

    def check(self, engine: OnnxNoteEngine, samples: list[np.ndarray]) -> str:
        """Greedy notes, and the likelihood of samples."""
        found = check_greedy_notes(engine, self.model, samples[0])
        torch_nats = total_note_nats(self._torch_states, self.model, samples)
        apart = self.nats(engine, samples) / torch_nats - 1
        if abs(apart) > _MOST_APART:
            raise ExportError(f"the likelihood differs from torch's by {apart:+.2%}: nothing was written")
        return f"{found}; nats of samples differ by {apart:+.1e} of torch's"

    def nats(self, engine: OnnxNoteEngine, pieces: list[np.ndarray]) -> float:
        """See there."""
        return total_note_nats(lambda rows: engine_states(engine, rows), self.model, pieces)

    def _torch_states(self, rows: np.ndarray) -> torch.Tensor:
        return self.model.model(torch.from_numpy(rows)[None], use_cache=False).last_hidden_state[0]


EXPORTERS: dict[str, type[Exporter]] = {  # by model_type
    "music_transformer": TokenExporter,
    "note_transformer": NoteExporter,
}
