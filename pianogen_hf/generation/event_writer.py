"""Writing events, rows of tokens, by the model's own `generate`."""

from __future__ import annotations

from typing import Any

import numpy as np

from pianogen_hf.generation.row_writer import RowWriter
from pianogen_hf.generation.writer import sampling_options
from pianogen_hf.tokenizers.tokenization_midi_event import MidiEventTokenizer


class EventWriter(RowWriter):
    """The writer for `MidiEventForCausalLM`, which holds itself to its grammar; notes that nobody hears are forbidden.

    Raises:
        GenerationError: for options that the model does not take.
    """

    encoder: MidiEventTokenizer
    unit = "events"
    max_steps_per_sec = 200

    def _taken(self, options: dict[str, Any]) -> dict[str, Any]:
        taken = sampling_options(self.model, options, ("temperature", "top_p", "top_k", "do_sample"))
        return {**taken, "forbidden_ids": self.encoder.silent_ids}

    def _is_end(self, rows: np.ndarray) -> np.ndarray:
        return rows[:, 0] == self.encoder.eos_token_id
