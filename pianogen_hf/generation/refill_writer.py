"""Writing with a model that sees both sides (masked V1 and V2): masked tokens after the music so far, or in a gap."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from pianogen_hf.generation.constraints import MAX_REST, GrammarLogitsProcessor
from pianogen_hf.generation.new_notes import NewNotes
from pianogen_hf.generation.writer import Writer, sampling_options
from pianogen_hf.tokenizers.tokenization_notes import NoteTokenizer

_IDS_PER_PASS = 4  # tokens that one forward pass of the draft writes on average
_FULL = 0.8  # of a gap, up to its last onset: what stood there may have had no later one either
_TOP_UP = 16  # tokens that are added at a time to a gap that turned out longer than what stood there


class RefillWriter(Writer):
    """The writer for `PianoEncoderForMaskedLM`: fills the whole context at a time, since it was trained on full ones.

    It never writes the end of a piece; where a gap is filled, what follows the gap is seen as soon as it adjoins.

    Args:
        model: see `Writer`, as for the arguments that are not explained here.
        music: see there.
        on_progress: see there.
        on_message: see there.
        options: see there.
        after: tokens that follow the gap, shape (length,); None to continue without end.
        gap_size: tokens that are likely to fill the gap.

    Raises:
        GenerationError: for options that the model does not take.
    """

    encoder: NoteTokenizer

    def __init__(
        self,
        model: Any,
        music: NewNotes,
        on_progress: Callable[[float], None] | None,
        on_message: Callable[[str], None] | None,
        options: dict[str, Any],
        *,
        after: np.ndarray | None = None,
        gap_size: int = 0,
    ) -> None:
        self.after, self.gap_size = after, gap_size
        if after is not None:  # a quarter of the context for either side of the gap, half of it for the gap
            self.heard_share = 0.25
        super().__init__(model, music, on_progress, on_message, options)

    def _taken(self, options: dict[str, Any]) -> dict[str, Any]:
        return sampling_options(self.model, options)

    def _generate(self, rows: Sequence[np.ndarray], samples: list[int]) -> list[np.ndarray]:
        rows = [rows[index * len(rows) // len(samples)] for index in range(len(samples))]
        windows = np.stack([self._window(row) for row in rows])
        size, after = self._plan(len(rows[0]), windows.shape[1])
        holes = np.zeros((len(rows), size), dtype=np.int64)
        ids = np.concatenate([windows, holes, np.tile(after, (len(rows), 1))], axis=1)
        mask = torch.zeros(ids.shape, dtype=torch.bool)
        mask[:, windows.shape[1] : windows.shape[1] + size] = True
        histories = [row[: len(row) - windows.shape[1]] for row in rows]
        filled = self.model.refill(
            torch.from_numpy(ids).to(self.model.device),
            mask.to(self.model.device),
            steps=max(size // _IDS_PER_PASS, 1),
            logits_processor=GrammarLogitsProcessor(self.encoder, histories, max_rest=MAX_REST),
            **self.options,
        )
        written = filled[:, windows.shape[1] : windows.shape[1] + size].cpu().numpy()
        return [np.append(row, new) for row, new in zip(rows, written, strict=True)]

    def _is_done(self, sample: int, steps: np.ndarray) -> bool:
        is_done = super()._is_done(sample, steps)
        written = len(steps) - len(self.music.prompt_steps)
        is_full = self.after is not None and written >= self.gap_size and self._shares[sample] >= _FULL
        return is_done or bool(is_full)

    def _plan(self, num_ids: int, num_heard: int) -> tuple[int, np.ndarray]:
        """How many tokens to write next, and what to show after them."""
        step = self.encoder.tokens_per_step
        room = max((self.context - num_heard) // step * step, step)
        nothing = np.zeros(0, dtype=np.int64)
        if self.after is None:
            return room, nothing
        missing = self.gap_size - (num_ids - len(self.music.prompt_steps))
        most = max((self.context // 2) // step * step, step)
        size = min(-(-(missing if missing > 0 else _TOP_UP) // step) * step, room, most)
        return size, self.after[: room - size] if size >= missing else nothing
