"""Training of continuous notes (V5): a `PianoTrainer` whose loss and scores are those of whole rows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from transformers import EvalPrediction

from pianogen_hf.training.collator import IGNORED
from pianogen_hf.training.trainer import PianoTrainer

_NUM_PITCHES = 128  # labels from here on are events, which have no pitch to predict


class ContinuousNotesTrainer(PianoTrainer):
    """A `PianoTrainer` for `ContinuousNotesForCausalLM`.

    Differs from its parent in that the model's own loss is used, and in what a token is: a row, that is a note with all
    its fields, or the end of the piece. `nats_per_token` and `bits_per_note` are of probabilities on the model's grid
    (times in steps, velocities in cells), whatever likelihood it is trained with, so that they compare with those of
    tokenizers on the same grid. `accuracy` is that of the pitch, given the time shift, over the notes.

    Args:
        **kwargs: as for `PianoTrainer`.

    Raises:
        ValueError: with label smoothing, which is for labels that are all there is to predict.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if self.args.label_smoothing_factor:
            raise ValueError("label_smoothing_factor is for models of tokens")
        self.compute_loss_func = None
        self.preprocess_logits_for_metrics = row_scores  # type: ignore[assignment]

    def _metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        nats, is_right = prediction.predictions  # type: ignore[misc]
        labels = np.asarray(prediction.label_ids)[:, 1:]
        counted, is_note = labels != IGNORED, (labels >= 0) & (labels < _NUM_PITCHES)
        total_nats = float(np.where(counted, nats, 0).sum(dtype=np.float64))
        nats_per_row = total_nats / max(int(counted.sum()), 1)
        return {
            "loss": nats_per_row,
            "nats_per_token": nats_per_row,
            "accuracy": float(np.where(is_note, is_right, 0).sum()) / max(int(is_note.sum()), 1),
            "bits_per_note": total_nats / math.log(2) / max(self.eval_notes, 1),
        }


def row_scores(outputs: Any, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Per predicted row its nats and whether the likeliest pitch is right.

    Args:
        outputs: a tuple that begins with logits of the pitch, shape (batch, length - 1, 128), and nats of the fields,
            shape (batch, length - 1, 4), 0 where nothing is predicted.
        labels: shape (batch, length).

    Returns:
        Two float32 tensors of shape (batch, length - 1).
    """
    logits, nats = outputs[:2]
    return nats.float().sum(-1), (logits.argmax(-1) == labels[:, 1:]).float()
