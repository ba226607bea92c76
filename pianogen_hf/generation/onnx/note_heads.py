"""The heads of the note transformer (V8) in numpy: they are small, and a step of torch's operators costs more."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch

from pianogen_hf.generation.note_stream import MIDDLE_STEPS
from pianogen_hf.models.configuration_note_transformer import NoteTransformerConfig
from pianogen_hf.models.modeling_note_transformer import (
    DURATION,
    END_CLASS,
    END_ROW,
    MIDDLE_PITCH,
    NUM_PITCHES,
    PITCH,
    TIME_SHIFT,
    VELOCITY,
)
from pianogen_hf.models.time_classes import FIRST_OPEN, NUM_TIME_CLASSES, time_class

FIELDS = ("time_shift", "pitch", "velocity", "duration")  # by column
_OFFSET = len(FIELDS)  # place of the head of shared offsets
CLASS_OF_STEPS = time_class(torch.arange(FIRST_OPEN + 1)).numpy()  # what is longer has the class of the last


class NoteHeads:
    """Draws a note's fields one after the other, as `NoteTransformerHeads` does.

    Args:
        weights: the float32 state dict of `NoteTransformerHeads`.
        config: the model's configuration.
    """

    def __init__(self, weights: Mapping[str, np.ndarray], config: NoteTransformerConfig) -> None:
        self._heads = [
            tuple(weights[f"{name}_head.{part}"] for part in ("fc1.weight", "fc2.weight", "fc2.bias"))
            for name in FIELDS
        ]
        # Embeddings of the fields already drawn, for the heads after them.
        self._embeddings = [weights[f"embed_{name}.weight"] for name in FIELDS[:DURATION]]
        self._num_recent_offsets = config.num_recent_offsets
        if self._num_recent_offsets:
            parts = ("fc1.weight", "fc2.weight", "fc2.bias")
            self._heads.append(tuple(weights[f"offset_head.{part}"] for part in parts))
        self._is_cascade, self._rate = config.is_cascade, config.sampling_rate

    def draw_note(
        self,
        hidden_states: np.ndarray,
        written_pitch: int,
        recent_offsets: np.ndarray,
        draw_class: Callable[[int, np.ndarray], int],
    ) -> np.ndarray:
        """Draw one note, or the end; see `NoteModel`.

        Args:
            hidden_states: shape (num_states, hidden_size).
            written_pitch: see there.
            recent_offsets: see there.
            draw_class: see there.
        """
        shift = draw_class(TIME_SHIFT, self._logits(TIME_SHIFT, hidden_states))
        if shift == END_CLASS:
            return np.array(END_ROW, np.float32)
        hidden_states = self._knowing(TIME_SHIFT, hidden_states, shift)
        pitch = draw_class(PITCH, self._pitch_logits(hidden_states, shift, written_pitch))
        hidden_states = self._knowing(PITCH, hidden_states, pitch)
        velocity = draw_class(VELOCITY, self._logits(VELOCITY, hidden_states)) + 1
        hidden_states = self._knowing(VELOCITY, hidden_states, velocity)
        left = recent_offsets.astype(np.int64) - MIDDLE_STEPS[shift]
        duration = draw_class(DURATION, self._duration_logits(hidden_states, left))
        is_shared = duration >= NUM_TIME_CLASSES
        steps = left[duration - NUM_TIME_CLASSES] if is_shared else MIDDLE_STEPS[duration] + 1
        times = np.array([MIDDLE_STEPS[shift], steps], np.float32) / np.float32(self._rate)
        return np.array([times[0], pitch, velocity, times[1]], np.float32)

    def _logits(self, column: int, hidden_states: np.ndarray) -> np.ndarray:
        first, second, bias = self._heads[column]
        inner = np.maximum(hidden_states @ first.T, 0)
        return (inner * inner) @ second.T + bias

    def _duration_logits(self, hidden_states: np.ndarray, left: np.ndarray) -> np.ndarray:
        """Logits of classes, then of ending together with each of the latest notes, minus infinity if it is over."""
        logits = self._logits(DURATION, hidden_states)
        if not self._num_recent_offsets:
            return logits
        shared = self._logits(_OFFSET, hidden_states)
        by_order, by_time = shared[:, : self._num_recent_offsets], shared[:, self._num_recent_offsets :]
        shared = by_order + by_time[:, CLASS_OF_STEPS[np.clip(left - 1, 0, FIRST_OPEN)]]
        return np.concatenate([logits, np.where(left < 1, np.float32(-np.inf), shared)], axis=1)

    def _knowing(self, column: int, hidden_states: np.ndarray, value: int) -> np.ndarray:
        return hidden_states + self._embeddings[column][value] if self._is_cascade else hidden_states

    def _pitch_logits(self, hidden_states: np.ndarray, shift: int, written_pitch: int) -> np.ndarray:
        """Absolute plus relative logits, shape (num_states, 128), minus infinity where a chord would go downwards."""
        logits = self._logits(PITCH, hidden_states)
        before = MIDDLE_PITCH if written_pitch < 0 else written_pitch
        nearest = 2 * NUM_PITCHES - 1 - before  # where the relative logit of pitch 0 lies
        logits = logits[:, :NUM_PITCHES] + logits[:, nearest : nearest + NUM_PITCHES]
        if self._is_cascade and shift == 0 and written_pitch < NUM_PITCHES - 1:
            logits[:, : written_pitch + 1] = -np.inf
        return logits
