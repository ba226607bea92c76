"""Training of note transformers (V8): batches of drawn tasks, and a Trainer that evaluates plain continuation."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from pianogen_hf.models.note_controls import CONTROLS
from pianogen_hf.tokenizers.feature_extraction_continuous_notes import PITCH
from pianogen_hf.training.arrangement import arrange
from pianogen_hf.training.collator import IGNORED, RowCollator
from pianogen_hf.training.continuous import ContinuousNotesTrainer


class ArrangingCollator:
    """Draws a task for each window (see `arrangement.py`) and pads on the right to one length.

    The task follows from the seed, the epoch, and the window's name (`piece_id`, `start`), and from nothing else, so
    that a resumed run sees the tasks that the unbroken one would have seen.

    Args:
        length: rows of every example of a batch, so that a compiled model meets one shape.
        kinds: class of the kind of music of each piece that has one, by `piece_id`.
        seed: of the tasks.
        sampling_rate: steps a second of the grid on which times lie.
    """

    def __init__(
        self, length: int, kinds: Mapping[str, int] | None = None, seed: int = 0, sampling_rate: int = 100
    ) -> None:
        self.length, self.kinds, self.seed, self.sampling_rate = length, kinds or {}, seed, sampling_rate
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()  # workers see it change

    def set_epoch(self, epoch: int) -> None:
        """Turn to the tasks of another epoch, in this process and in workers; between batches, not within one."""
        self._epoch.fill_(epoch)

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Make one batch.

        Args:
            rows: each with `input_values`, `first_label`, `piece_id`, `start` and perhaps `seconds_left`.

        Returns:
            `input_values`, float32 of shape (batch, length, 4), 0 where padded; `attention_mask`, `token_type_ids` and
            `labels`, int64 of shape (batch, length); `control_ids`, int64 of shape (batch, length, num_controls).
        """
        shape = (len(rows), self.length)
        batch = {
            "input_values": torch.zeros(*shape, 4),
            "attention_mask": torch.zeros(shape, dtype=torch.int64),
            "token_type_ids": torch.zeros(shape, dtype=torch.int64),
            "control_ids": torch.zeros(*shape, len(CONTROLS), dtype=torch.int64),
            "labels": torch.full(shape, IGNORED),
        }
        for index, row in enumerate(rows):
            arranged = arrange(
                np.asarray(row["input_values"], dtype=np.float32),
                row["first_label"],
                self._generator(row),
                self.kinds.get(row["piece_id"], 0),
                row.get("seconds_left"),
                self.sampling_rate,
            )
            size = len(arranged.rows)
            batch["input_values"][index, :size] = torch.from_numpy(arranged.rows)
            batch["attention_mask"][index, :size] = 1
            batch["token_type_ids"][index, :size] = torch.from_numpy(arranged.is_given)
            batch["control_ids"][index, :size] = torch.from_numpy(arranged.control_ids)
            events = np.where(arranged.is_target, arranged.rows[:, PITCH], IGNORED)
            batch["labels"][index, :size] = torch.from_numpy(events).long()
        return batch

    def _generator(self, row: dict[str, Any]) -> np.random.Generator:
        name = f"{self.seed}/{int(self._epoch)}/{row['start']}/{row['piece_id']}"
        return np.random.default_rng(list(hashlib.sha256(name.encode()).digest()))


def additive_causal_mask(attention_mask: torch.Tensor) -> torch.Tensor:
    """0 where a row may see another, itself and those before it that are no padding, and a huge negative number else.

    Args:
        attention_mask: 1 for rows, 0 for padding, shape `(batch, length)`.

    Returns:
        float32, shape `(batch, 1, length, length)`.
    """
    length = attention_mask.shape[1]
    is_seen = torch.ones(length, length, dtype=torch.bool, device=attention_mask.device).tril()
    is_seen = is_seen & attention_mask[:, None, None].bool()
    return torch.zeros(is_seen.shape, device=attention_mask.device).masked_fill(
        ~is_seen, torch.finfo(torch.float32).min
    )


class NoteTransformerTrainer(ContinuousNotesTrainer):
    """A `ContinuousNotesTrainer` for `NoteTransformerForCausalLM`.

    Differs from its parent in that training draws tasks, while evaluation is of plain continuation, as of all other
    models. On a CPU, what `torch_compile` makes of plain operators is faster than the fused kernel of `sdpa`.

    Args:
        data_collator: draws the tasks of training.
        **kwargs: as for `PianoTrainer`.
    """

    data_collator: ArrangingCollator

    def __init__(self, *, data_collator: ArrangingCollator, **kwargs: Any) -> None:
        super().__init__(data_collator=data_collator, **kwargs)
        self._is_fused = self.args.torch_compile and self.args.device.type == "cpu"
        if self._is_fused:
            self.model.set_attn_implementation("eager")  # type: ignore[union-attr, operator]

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """The parent's; a compiled model is given its whole mask, which it would otherwise make anew in every layer."""
        inputs = super()._prepare_inputs(inputs)
        if self._is_fused:
            inputs["attention_mask"] = additive_causal_mask(inputs["attention_mask"])
        return inputs

    def _eval_collator(self) -> RowCollator:
        """Windows without tasks."""
        return RowCollator()
