"""The note transformer (V8) with ONNX Runtime: reads rows as the torch model does, faster; a `NoteModel`.

The decoder is the graph of `note_graph.py`; the heads are in numpy, with their weights in a file beside the graph. What
is drawn with the same random numbers is the same as from the torch model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from pianogen_hf.generation.onnx.note_heads import CLASS_OF_STEPS, NoteHeads
from pianogen_hf.generation.onnx.session import bind, exported_file, open_session, opening
from pianogen_hf.models.configuration_note_transformer import NoteTransformerConfig
from pianogen_hf.models.modeling_note_transformer import (
    DURATION,
    MIDDLE_PITCH,
    NUM_PITCHES,
    NUM_VELOCITIES,
    PITCH,
    TIME_SHIFT,
    VELOCITY,
    NoteTransformerRotaryEmbedding,
)
from pianogen_hf.models.time_classes import FIRST_OPEN, NUM_TIME_CLASSES

_CHUNK = 128  # rows of a window at a time: more would compute much of the future, which is masked
_INPUTS = ("class_ids", "cosines", "sines", "total_length", "last_key")


class OnnxNoteEngine:
    """A note transformer whose decoder is an ONNX graph.

    Args:
        graph: What `build_note_graph` built, or a path to it.
        heads: The float32 state dict of `NoteTransformerHeads`.
        config: The model's configuration.
        num_threads: Threads within an operator; None for as many as torch has.

    Raises:
        EngineError: If another version has exported the graph.

    Attributes:
        config: As given.
    """

    def __init__(
        self,
        graph: str | Path | bytes,
        heads: Mapping[str, np.ndarray],
        config: NoteTransformerConfig,
        *,
        num_threads: int | None = None,
    ) -> None:
        self.session = open_session(graph, _INPUTS, num_threads)
        self.config = config
        self.heads = NoteHeads(heads, config)
        frequencies = NoteTransformerRotaryEmbedding(config).frequencies
        self._frequencies = np.array(sum(frequencies, []), np.float32)
        self._coordinates = np.repeat(np.arange(3), [len(each) for each in frequencies])
        sizes = (NUM_TIME_CLASSES, config.vocab_size, NUM_VELOCITIES, NUM_TIME_CLASSES, 3, *config.control_sizes[:-1])
        self._first_ids = np.cumsum([0, *sizes])

    @classmethod
    def from_pretrained(cls, name: str | Path, precision: str = "float32", **kwargs: Any) -> OnnxNoteEngine:
        """Open what `pianogen export` wrote.

        Args:
            name: Model folder or Hub id.
            precision: "float32" or "int8".
            **kwargs: As for the class.

        Raises:
            EngineError: If there is no such model, or it was not exported with this precision.
        """
        path = exported_file(name, precision)
        with opening(path):
            config = NoteTransformerConfig.from_pretrained(str(name))
            return cls(path, load_file(heads_file(path)), config, **kwargs)

    def new_cache(self, capacity: int | None = None) -> NoteCache:
        """Room for a window, as wide as the model's context or for so many rows."""
        return NoteCache(self, capacity or self.config.max_position_embeddings)

    def read(self, cache: NoteCache, rows: np.ndarray, is_given: np.ndarray, control_ids: np.ndarray) -> np.ndarray:
        """Read rows that follow those in a cache; see `NoteModel`. The next call may overwrite what is given back."""
        return self.hidden_states(cache, rows, is_given, control_ids)[-1:]

    def joined(self, hidden_states: list[np.ndarray]) -> np.ndarray:
        """What `read` gave for some caches, one under the other; see `NoteModel`."""
        return np.concatenate(hidden_states)

    def rewind(self, cache: NoteCache, rows: np.ndarray, is_given: np.ndarray) -> None:
        """Let a cache forget all that it took up after its first rows; see `NoteModel`."""
        shift = np.rint(rows[:, TIME_SHIFT].astype(np.float32) * np.float32(self.config.sampling_rate))
        cache.length, cache.num_written = len(rows), int(np.count_nonzero(~is_given))
        cache.clock = np.where(is_given, np.float32(0), shift).sum(dtype=np.float32)

    def draw_note(
        self,
        hidden_states: np.ndarray,
        written_pitch: int,
        recent_offsets: np.ndarray,
        draw_class: Callable[[int, np.ndarray], int],
    ) -> np.ndarray:
        """Draw one note, or the end; see `NoteModel`."""
        return self.heads.draw_note(hidden_states, written_pitch, recent_offsets, draw_class)

    def hidden_states(
        self, cache: NoteCache, rows: np.ndarray, is_given: np.ndarray, control_ids: np.ndarray
    ) -> np.ndarray:
        """The last hidden state of all rows, shape (length, hidden_size): memory that the next call may overwrite.

        Args:
            cache: What came before.
            rows: Shape (length, 4).
            is_given: Roles, bool, shape (length,).
            control_ids: Shape (length, num_controls).

        Raises:
            ValueError: If the cache has no room for so many rows.
        """
        rows = rows.astype(np.float32)
        cache.append(self._angles(cache, rows, is_given))
        ids = self._class_ids(rows, is_given, control_ids)[None]
        return cache.run(ids)[0]

    def _class_ids(self, rows: np.ndarray, is_given: np.ndarray, control_ids: np.ndarray) -> np.ndarray:
        """Places of all fields in the table of embeddings, int64, shape (length, 5 + num_controls)."""
        ids = np.empty((len(rows), len(self._first_ids)), np.int64)
        steps = np.rint(np.abs(rows) * np.float32(self.config.sampling_rate)).astype(np.int64)
        ids[:, TIME_SHIFT] = CLASS_OF_STEPS[np.minimum(steps[:, TIME_SHIFT], FIRST_OPEN)]
        ids[:, PITCH] = rows[:, PITCH]
        ids[:, VELOCITY] = np.clip(rows[:, VELOCITY], 0, NUM_VELOCITIES - 1)
        ids[:, DURATION] = CLASS_OF_STEPS[np.clip(steps[:, DURATION] - 1, 0, FIRST_OPEN)]
        ids[:, 4] = is_given * (1 + (rows[:, TIME_SHIFT] < 0))
        ids[:, 5:] = control_ids
        return ids + self._first_ids

    def _angles(self, cache: NoteCache, rows: np.ndarray, is_given: np.ndarray) -> np.ndarray:
        """Angles of the rotated pairs, float32, shape (length, head_dim / 2); the cache keeps count."""
        shift = np.rint(rows[:, TIME_SHIFT] * np.float32(self.config.sampling_rate))
        clock = cache.clock + np.cumsum(np.where(is_given, 0, shift))
        cache.clock = clock[-1]
        places = np.empty((len(rows), 3), np.float32)
        places[:, 0] = cache.num_written + np.cumsum(~is_given) - 1
        cache.num_written += int(np.count_nonzero(~is_given))
        places[:, 1] = clock + np.where(is_given, shift, 0)
        places[:, 2] = np.where(rows[:, PITCH] < NUM_PITCHES, rows[:, PITCH], MIDDLE_PITCH)
        return places[:, self._coordinates] * self._frequencies


def heads_file(graph: Path) -> Path:
    """Where the weights of the heads lie: beside the graph, so that both are of one model."""
    return graph.with_suffix(".safetensors")


class NoteCache:
    """Keys, values and angles of the rows so far, and what is bound to the session.

    Args:
        engine: Whose graph is run.
        capacity: How many rows there is room for.

    Attributes:
        length: Rows so far.
        num_written: Written ones among them.
        clock: Onset of the last written row, in steps.
    """

    def __init__(self, engine: OnnxNoteEngine, capacity: int) -> None:
        self.session, config = engine.session, engine.config
        self.capacity, self.length, self.num_written, self.clock = capacity, 0, 0, np.float32(0)
        shape = (1, config.num_attention_heads, capacity, config.head_dim)
        names = [f"{kind}.{layer}" for layer in range(config.num_hidden_layers) for kind in ("key", "value")]
        self.buffers = {name: np.zeros(shape, np.float32) for name in names}
        self.cosines, self.sines = np.zeros((2, capacity, config.head_dim // 2), np.float32)
        self.total_length, self.last_key = np.zeros((), np.int32), np.zeros(1, np.int32)
        self.row = np.zeros((1, 1, 5 + len(config.control_sizes)), np.int64)
        self.hidden_state = np.zeros((1, 1, config.hidden_size), np.float32)
        self.binding = self._bound(self.row, self.hidden_state)

    def append(self, angles: np.ndarray) -> None:
        """Make room for rows of these angles, shape (length, head_dim / 2).

        Raises:
            ValueError: If there is none.
        """
        end = self.length + len(angles)
        if end > self.capacity:
            raise ValueError(f"a cache for {self.capacity} rows can't take {end}")
        self.cosines[self.length : end], self.sines[self.length : end] = np.cos(angles), np.sin(angles)

    def run(self, ids: np.ndarray) -> np.ndarray:
        """Read rows.

        Args:
            ids: Shape (1, length, num_fields).

        Returns:
            Shape (1, length, hidden_size): memory that the next call may overwrite.
        """
        if ids.shape[1] == 1:  # by far the most frequent
            self.row[:] = ids
            self._run(self.binding, 1)
            return self.hidden_state
        hidden_states = np.empty((1, ids.shape[1], self.hidden_state.shape[2]), np.float32)
        for begin in range(0, ids.shape[1], _CHUNK):
            chunk = ids[:, begin : begin + _CHUNK]
            self._run(self._bound(chunk, hidden_states[:, begin : begin + _CHUNK]), chunk.shape[1])
        return hidden_states

    def _run(self, binding: Any, length: int) -> None:
        self.length += length
        self.total_length[...], self.last_key[:] = self.length, self.length - 1
        self.session.run_with_iobinding(binding)

    def _bound(self, ids: np.ndarray, hidden_states: np.ndarray) -> Any:
        """Bind all that the graph reads and writes; only the values change from call to call."""
        binding = self.session.io_binding()
        for name, array in zip(_INPUTS, (ids, self.cosines, self.sines, self.total_length, self.last_key), strict=True):
            bind(binding.bind_input, name, array)
        for name, buffer in self.buffers.items():
            bind(binding.bind_input, f"past_{name}", buffer)
            bind(binding.bind_output, f"present_{name}", buffer)
        bind(binding.bind_output, "hidden_states", hidden_states)
        return binding
