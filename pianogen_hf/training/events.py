"""Training of models of events, which are rows of tokens: a `PianoTrainer` whose loss is the model's own."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from transformers import EvalPrediction

from pianogen_hf.training.collator import IGNORED
from pianogen_hf.training.trainer import PianoTrainer


class EventTrainer(PianoTrainer):
    """A `PianoTrainer` for `MidiEventForCausalLM`.

    Differs from its parent in that the model's own loss is used: the model says what each id of a row cost.

    Args:
        **kwargs: as for `PianoTrainer`.

    Raises:
        ValueError: with label smoothing, which the model does not know.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if self.args.label_smoothing_factor:
            raise ValueError("label_smoothing_factor is for models of tokens")
        self.compute_loss_func = None
        self.preprocess_logits_for_metrics = event_scores  # type: ignore[assignment]

    def _metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        nats, num_right = prediction.predictions  # type: ignore[misc]
        counted = np.asarray(prediction.label_ids)[:, 1:] != IGNORED
        is_event, num_ids = counted.any(-1), max(int(counted.sum()), 1)
        total_nats = float(np.where(is_event, nats, 0).sum(dtype=np.float64))
        return {
            "loss": total_nats / num_ids,
            "nats_per_token": total_nats / num_ids,
            "accuracy": float(np.where(is_event, num_right, 0).sum()) / num_ids,
            "bits_per_note": total_nats / math.log(2) / max(self.eval_notes, 1),
        }


def event_scores(outputs: Any, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Per predicted event its nats and how many of its tokens were the likeliest.

    Args:
        outputs: a tuple that begins with nats of the tokens and whether each was the likeliest, both of shape
            (batch, length - 1, ids_per_row).
        labels: shape (batch, length, ids_per_row).

    Returns:
        Two float32 tensors of shape (batch, length - 1).
    """
    nats, right = outputs[:2]
    return nats.float().sum(-1), right.float().sum(-1)
