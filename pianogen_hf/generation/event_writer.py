"""Writing events, rows of ids, by the model's own `generate`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pianogen_hf.generation.writer import Writer, sampling_options
from pianogen_hf.tokenizers.tokenization_midi_event import MidiEventTokenizer

_CHECK_EVERY = 32  # events between two looks at how long the music has become


class EventWriter(Writer):
    """The writer for `MidiEventForCausalLM`, which holds itself to its grammar; notes that nobody hears are forbidden.

    Raises:
        GenerationError: for options that the model does not take.
    """

    encoder: MidiEventTokenizer
    unit = "events"
    max_steps_per_sec = 200
    min_piece = 16

    def _taken(self, options: dict[str, Any]) -> dict[str, Any]:
        return sampling_options(self.model, options, ("temperature", "top_p", "top_k", "do_sample"))

    def _generate(self, rows: Sequence[np.ndarray], samples: list[int]) -> list[np.ndarray]:
        windows = np.stack([self._window(row) for row in rows])
        held_open = max(self._open_until(row) - len(row) for row in rows)
        output = self.model.generate(
            torch.from_numpy(windows),
            max_new_tokens=max(min(_CHECK_EVERY, self.context - windows.shape[1]), 1),
            min_new_tokens=max(held_open, 0),
            num_return_sequences=len(samples) // len(rows),
            forbidden_ids=self.encoder.silent_ids,
            **self.options,
        )
        written = output[:, windows.shape[1] :].cpu().numpy()
        return [
            np.concatenate([rows[index * len(rows) // len(written)], self._going_on(new)])
            for index, new in enumerate(written)
        ]

    def _going_on(self, new: np.ndarray) -> np.ndarray:
        """New events, with the beginning of another piece in place of the end."""
        ends = np.flatnonzero(new[:, 0] == self.encoder.eos_token_id)
        return np.concatenate([new[: ends[0]], self.encoder.beginning]) if len(ends) else new
