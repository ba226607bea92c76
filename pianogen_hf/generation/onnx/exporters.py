"""What exporting asks of each kind of model: its graph in both precisions, and whether it does what the model does."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import torch
from safetensors.numpy import save

from pianogen_hf.generation.onnx.builder import ExportError
from pianogen_hf.generation.onnx.checks import check_greedy, likely_samples, total_nats
from pianogen_hf.generation.onnx.engine import OnnxEngine, cache_scales
from pianogen_hf.generation.onnx.event_checks import (
    LogitsOf,
    check_greedy_events,
    engine_logits,
    likely_events,
    torch_logits,
    total_event_nats,
)
from pianogen_hf.generation.onnx.event_engine import STEMS, OnnxEventEngine
from pianogen_hf.generation.onnx.event_graph import build_event_graph, build_id_graph
from pianogen_hf.generation.onnx.graph import build_graph
from pianogen_hf.generation.onnx.note_checks import check_greedy_notes, engine_states, likely_notes, total_note_nats
from pianogen_hf.generation.onnx.note_engine import OnnxNoteEngine
from pianogen_hf.generation.onnx.note_graph import build_note_graph
from pianogen_hf.generation.onnx.session import STEM

_MOST_APART = 1e-4  # share of the cross-entropy that float32 may differ from torch's

Graphs = dict[str, bytes]  # by the names of their files, without an ending


class Exporter(Protocol):
    """Exports one model.

    Args:
        model: in float32, on the CPU.

    Attributes:
        step: what the model writes at a time.
    """

    step: str

    def __init__(self, model: Any) -> None: ...

    def graphs(self) -> Graphs:
        """The graphs in float32."""

    def int8_graphs(self, engine: Any, samples: list[np.ndarray]) -> Graphs:
        """The graphs with 8 bits, given the engine in float32 and samples from it."""

    def open(self, graphs: Graphs) -> Any:
        """The engine that runs the graphs."""

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

    def graphs(self) -> Graphs:
        """See [`Exporter`], like the rest."""
        return {STEM: build_graph(self.weights, self.model.config).SerializeToString()}

    def int8_graphs(self, engine: OnnxEngine, samples: list[np.ndarray]) -> Graphs:
        """Keys and values get scales that cover those of the samples."""
        return {STEM: build_graph(self.weights, self.model.config, cache_scales(engine, samples)).SerializeToString()}

    def open(self, graphs: Graphs) -> OnnxEngine:
        """See there."""
        return OnnxEngine(graphs[STEM], self.model.config, self.model.generation_config)

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

    def graphs(self) -> Graphs:
        """See [`Exporter`], like the rest."""
        return {STEM: build_note_graph(self.weights, self.model.config).SerializeToString()}

    def int8_graphs(self, engine: OnnxNoteEngine, samples: list[np.ndarray]) -> Graphs:
        """Only weights are of 8 bits, which asks for no samples."""
        return {STEM: build_note_graph(self.weights, self.model.config, is_int8=True).SerializeToString()}

    def open(self, graphs: Graphs) -> OnnxNoteEngine:
        """See there."""
        return OnnxNoteEngine(graphs[STEM], self.heads, self.model.config)

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
        return f"{found}; {_likelihood_apart(self.nats(engine, samples), torch_nats)}"

    def nats(self, engine: OnnxNoteEngine, pieces: list[np.ndarray]) -> float:
        """See there."""
        return total_note_nats(lambda rows: engine_states(engine, rows), self.model, pieces)

    def _torch_states(self, rows: np.ndarray) -> torch.Tensor:
        return self.model.model(torch.from_numpy(rows)[None], use_cache=False).last_hidden_state[0]


class EventExporter:
    """For the two-level model of events (SkyTNT's midi-model), whose graphs are a pair."""

    step = "event"

    def __init__(self, model: Any) -> None:
        self.model, self.weights = model, {name: each.numpy() for name, each in model.state_dict().items()}

    def graphs(self) -> Graphs:
        """See [`Exporter`], like the rest."""
        return self._built(is_int8=False)

    def int8_graphs(self, engine: OnnxEventEngine, samples: list[np.ndarray]) -> Graphs:
        """Only weights are of 8 bits, which asks for no samples."""
        return self._built(is_int8=True)

    def _built(self, is_int8: bool) -> Graphs:
        built = (build(self.weights, self.model.config, is_int8) for build in (build_event_graph, build_id_graph))
        return {stem: each.SerializeToString() for stem, each in zip(STEMS, built, strict=True)}

    def open(self, graphs: Graphs) -> OnnxEventEngine:
        """See there."""
        base, token = (graphs[stem] for stem in STEMS)
        return OnnxEventEngine(base, token, self.model.config)

    def file_beside(self) -> None:
        """Nothing."""

    def samples(self, engine: OnnxEventEngine) -> list[np.ndarray]:
        """Rows."""
        return likely_events(engine)

    def check(self, engine: OnnxEventEngine, samples: list[np.ndarray]) -> str:
        """Greedy events, and the likelihood of samples."""
        found = check_greedy_events(engine, self.model, samples[0])
        torch_nats = self._nats(lambda rows: torch_logits(self.model, rows), samples)
        return f"{found}; {_likelihood_apart(self.nats(engine, samples), torch_nats)}"

    def nats(self, engine: OnnxEventEngine, pieces: list[np.ndarray]) -> float:
        """See there."""
        return self._nats(lambda rows: engine_logits(engine, rows), pieces)

    def _nats(self, logits_of: LogitsOf, pieces: list[np.ndarray]) -> float:
        return total_event_nats(logits_of, self.model.config.max_position_embeddings, pieces)


def _likelihood_apart(nats: float, torch_nats: float) -> str:
    """How far the engine's likelihood is from torch's. ExportError: if it is too far."""
    apart = nats / torch_nats - 1
    if abs(apart) > _MOST_APART:
        raise ExportError(f"the likelihood differs from torch's by {apart:+.2%}: nothing was written")
    return f"nats of samples differ by {apart:+.1e} of torch's"


EXPORTERS: dict[str, type[Exporter]] = {  # by model_type
    "midi_event": EventExporter,
    "music_transformer": TokenExporter,
    "note_transformer": NoteExporter,
}
