"""SkyTNT's midi-model with ONNX Runtime: events as the torch model writes them, faster.

The loop over events and the ids of each, the grammar and the drawing are the torch model's own (`GeneratesEvents`); the
two nets are graphs of `event_graph.py`, or the pair that the original publishes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from pianogen_hf.generation.onnx.session import exported_file, open_session, opening
from pianogen_hf.models.configuration_midi_event import MidiEventConfig
from pianogen_hf.models.event_generation import GeneratesEvents
from pianogen_hf.models.row_generation import window_start

STEMS = ("model_base", "model_token")  # of the two files, which are called as the original's


class OnnxEventEngine(GeneratesEvents):
    """A midi-model whose nets are ONNX graphs.

    Args:
        base: The graph of the net over events, or a path to it.
        token: That of the net over ids.
        config: The model's configuration.
        num_threads: Threads within an operator; None for as many as torch has.

    Raises:
        EngineError: If they are not such graphs.

    Attributes:
        config: As given.
        device: Always the CPU.
    """

    device = torch.device("cpu")
    training = False

    def __init__(
        self,
        base: str | Path | bytes,
        token: str | Path | bytes,
        config: MidiEventConfig,
        *,
        num_threads: int | None = None,
    ) -> None:
        self.base = open_session(base, ("x",), num_threads)
        self.token = open_session(token, ("hidden", "x"), num_threads)
        self.config = config

    @classmethod
    def from_pretrained(cls, name: str | Path, precision: str = "float32", **kwargs: Any) -> OnnxEventEngine:
        """Open what `pianogen export` wrote.

        Args:
            name: Model folder or Hub id.
            precision: "float32" or "int8".
            **kwargs: As for the class.

        Raises:
            EngineError: If there is no such model, or it was not exported with this precision.
        """
        base, token = (exported_file(name, precision, stem) for stem in STEMS)
        with opening(base.parent):
            return cls(base, token, MidiEventConfig.from_pretrained(str(name)), **kwargs)

    def train(self, mode: bool = True) -> None:
        """Nothing: what was exported does not learn."""

    def event_reader(self) -> _Events:
        """See [`GeneratesEvents`]."""
        return _Events(self)

    def id_reader(self, hidden_states: torch.Tensor) -> _Ids:
        """See [`GeneratesEvents`]."""
        return _Ids(self, hidden_states)

    def hidden_states(self, rows: np.ndarray) -> np.ndarray:
        """Hidden states of events, without sampling.

        Args:
            rows: Int64, shape (batch, length, ids_per_row).

        Returns:
            Shape (batch, length, hidden_size), float32.
        """
        return _Cache(self.base, len(rows)).run(x=rows)

    def row_logits(self, hidden_states: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Logits of the ids of rows.

        Args:
            hidden_states: Of the event before each, shape (num_rows, hidden_size).
            rows: Shape (num_rows, ids_per_row); the last id of each is not read.

        Returns:
            Shape (num_rows, ids_per_row, vocab_size).
        """
        return _Cache(self.token, len(rows)).run(hidden=hidden_states[:, None], x=rows[:, :-1])


class _Cache:
    """A session with the keys and values of what it has read."""

    def __init__(self, session: Any, batch_size: int) -> None:
        self.session = session
        self.names = [each.name for each in session.get_outputs()]
        empty = {
            each.name: np.zeros((batch_size, each.shape[1], 0, each.shape[3]), np.float32)
            for each in session.get_inputs()
            if each.name.startswith("past_key_values")
        }
        self.past = empty

    def run(self, **inputs: np.ndarray) -> np.ndarray:
        """Read what follows; what the graph says of it."""
        outputs = dict(zip(self.names, self.session.run(None, {**inputs, **self.past}), strict=True))
        self.past = {name: outputs[name.replace("past_key_values", "present")] for name in self.past}
        return outputs[self.names[0]]


class _Events:
    """The net over events as rows become more, within the length that it was trained on."""

    def __init__(self, engine: OnnxEventEngine) -> None:
        self.engine, self.context = engine, engine.config.max_position_embeddings
        self.start = 0  # of the window that the cache holds
        self.cache: _Cache | None = None

    def last_hidden_state(self, rows: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """See [`EventReader`].

        Raises:
            ValueError: If prompts are padded, which the graphs have no mask for.
        """
        if not attention_mask.all():
            raise ValueError("the engine takes no padding: give prompts of one length")
        length, fed = rows.shape[1], rows[:, -1:]
        if self.cache is None or length - self.start > self.context:
            self.start = window_start(length, self.context)
            self.cache, fed = _Cache(self.engine.base, len(rows)), rows[:, self.start :]
        return torch.from_numpy(self.cache.run(x=fed.numpy())[:, -1])


class _Ids:
    """The net over ids, for one event of each piece."""

    def __init__(self, engine: OnnxEventEngine, hidden_states: torch.Tensor) -> None:
        self.cache = _Cache(engine.token, len(hidden_states))
        self.hidden_states = hidden_states[:, None].numpy()

    def logits(self, ids: torch.Tensor | None) -> torch.Tensor:
        """See [`IdReader`]."""
        if ids is None:
            none = np.zeros((len(self.hidden_states), 0), np.int64)
            return torch.from_numpy(self.cache.run(hidden=self.hidden_states, x=none)[:, -1])
        return torch.from_numpy(self.cache.run(hidden=self.hidden_states[:, :0], x=ids[:, None].numpy())[:, -1])
