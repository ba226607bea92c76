"""Writing continuous notes (V5): rows of real numbers, by the model's own `generate`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pianogen_hf.generation.writer import Writer, sampling_options
from pianogen_hf.tokenizers.feature_extraction_continuous_notes import END, PITCH

_CHECK_EVERY = 32  # rows between two looks at how long the music has become


class RowWriter(Writer):
    """The writer for `ContinuousNotesForCausalLM`. Every row is a note, so there is no grammar to hold it to.

    Raises:
        GenerationError: for options that the model does not take.
    """

    unit = "notes"
    max_steps_per_sec = 100
    min_piece = 16

    def _taken(self, options: dict[str, Any]) -> dict[str, Any]:
        return sampling_options(self.model, options)

    def _generate(self, rows: Sequence[np.ndarray], samples: list[int]) -> list[np.ndarray]:
        windows = np.stack([self._window(row) for row in rows])
        held_open = max(self._open_until(row) - len(row) for row in rows)
        output = self.model.generate(
            torch.from_numpy(windows),
            max_new_tokens=max(min(_CHECK_EVERY, self.context - windows.shape[1]), 1),
            min_new_tokens=max(held_open, 0),
            num_return_sequences=len(samples) // len(rows),
            **self.options,
        )
        written = output[:, windows.shape[1] :].cpu().numpy()
        return [
            np.concatenate([rows[index * len(rows) // len(written)], self._going_on(new)])
            for index, new in enumerate(written)
        ]

    def _going_on(self, new: np.ndarray) -> np.ndarray:
        """New rows, with the beginning of another piece in place of the end."""
        ends = np.flatnonzero(self._is_end(new))
        return np.concatenate([new[: ends[0]], self.encoder.beginning]) if len(ends) else new

    def _is_end(self, rows: np.ndarray) -> np.ndarray:
        """Which rows end a piece, bool, shape (length,)."""
        return rows[:, PITCH] == END
