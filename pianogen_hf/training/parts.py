"""The encoder-decoder way of training: one part of the music is read, the other one is written; both ways in one model.

The translations of musicautobot's multitask model (Shaw 2019), melody to chords and back, with a stock encoder-decoder
of transformers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn import functional as F
from transformers import EvalPrediction

from pianogen_hf.models.part_batches import parts_batch
from pianogen_hf.tokenizers.tokenization_note_duration import NoteDurationTokenizer
from pianogen_hf.training.collator import IGNORED
from pianogen_hf.training.trainer import PianoTrainer, token_scores


class PartsCollator:
    """Makes two examples of every chunk: its accompaniment to its melody, and its melody to its accompaniment.

    Both parts are cut from the same stretch of the same version of a piece, so a transposition moves both.

    Args:
        tokenizer: of the chunks.
    """

    def __init__(self, tokenizer: NoteDurationTokenizer) -> None:
        self.tokenizer = tokenizer

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Make one batch.

        Args:
            rows: each with `input_ids`, and `first_label`, the index of the first one that is to be predicted.

        Returns:
            See `parts_batch`: two rows for each one.
        """
        tasks = [task for row in rows for task in self.tokenizer.translations(row["input_ids"], row["first_label"])]
        return parts_batch(tasks, int(self.tokenizer.pad_token_id))


class PartsTrainer(PianoTrainer):
    """A `PianoTrainer` for encoder-decoders.

    Differs from its parent in that labels stand where they are predicted, as transformers has it for encoder-decoders,
    and not one further. In evaluation every note is written once, in its own part, given all of the other part within
    the window: `bits_per_note` are the bits of both parts over all notes. That is no code for the piece (one of the
    parts would have to come first), and compares with nothing but the same measure of another such model.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.preprocess_logits_for_metrics = parts_scores  # type: ignore[assignment]

    def _next_token_loss(self, outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None) -> torch.Tensor:
        return super()._next_token_loss(outputs, one_later(labels), num_items_in_batch)

    def _metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        labels = np.pad(np.asarray(prediction.label_ids), ((0, 0), (1, 0)), constant_values=IGNORED)
        return super()._metrics(EvalPrediction(prediction.predictions, labels))


def parts_scores(logits: Any, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What `token_scores` gives, for labels that stand where they are predicted; both of the labels' shape."""
    return token_scores(logits, one_later(labels))


def one_later(labels: torch.Tensor) -> torch.Tensor:
    """Labels as causal models have them, one place after the token that they are predicted from."""
    return F.pad(labels, (1, 0), value=IGNORED)
