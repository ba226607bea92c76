"""The masked way of training (V1 and V2): batches with masked tokens, and a Trainer that bounds the bits per note.

Scheme: Hoogeboom et al. 2021, "Autoregressive Diffusion Models", https://arxiv.org/abs/2110.02037, section 3: the
number of masked tokens is drawn uniformly from 1 to all, so that the loss bounds the likelihood of the order-agnostic
model.

With `mask_kinds` most examples hide all tokens of one kind instead, as for the multitask model of musicautobot (Shaw
2019), which is asked for all pitches to given durations, or for all durations to given pitches.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import EvalPrediction

from pianogen_hf.models.order_agnostic import draw_named_mask, label_nats, named_generator
from pianogen_hf.training.collator import IGNORED, ChunkCollator
from pianogen_hf.training.trainer import PianoTrainer

_SHARE_OF_KINDS = 0.9  # of examples that hide one kind of tokens, where that is asked for; musicautobot's
_EVALUATION_SEED = 0  # one for all runs: models are compared under the same masks


class MaskingCollator:
    """Pads chunks as `ChunkCollator` does, and hides a random part of the tokens that are to be predicted.

    The mask of a chunk follows from the seed, the epoch, and the chunk's name (`piece_id`, `start`), and from nothing
    else: not from its tokens, which would tell of what is masked, nor from the batch it is in or from what was drawn
    before, so that a resumed run sees the masks that the unbroken one would have seen. In another epoch it is another.

    Args:
        pad_token_id: what fills short rows of `input_ids`.
        mask_token_id: what stands where a token is masked, `config.mask_token_id`.
        seed: of the masks.
        kinds: of each kind of tokens of which all are hidden in turn, bool by id, shape (vocab_size,).
    """

    def __init__(
        self, pad_token_id: int, mask_token_id: int, seed: int = 0, kinds: Sequence[torch.Tensor] = ()
    ) -> None:
        self.pad_token_id, self.mask_token_id, self.seed, self.kinds = pad_token_id, mask_token_id, seed, kinds
        self._pad = ChunkCollator(pad_token_id)
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()  # workers see it change

    def set_epoch(self, epoch: int) -> None:
        """Turn to the masks of another epoch, in this process and in workers; between batches, not within one."""
        self._epoch.fill_(epoch)

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Make one batch.

        Args:
            rows: each with `input_ids`, `first_label`, `piece_id` and `start`, as `build_chunks` writes them.

        Returns:
            `input_ids`, `attention_mask`, `labels`: int64, shape (batch, longest row). `labels` are all tokens from
            `first_label` on, masked or not, as `PianoEncoderForMaskedLM` takes them.
        """
        batch = self._pad(rows)
        for index, row in enumerate(rows):
            size = len(row["input_ids"])  # without the padding, on which the draw must not depend
            targets = batch["labels"][index : index + 1, :size] != IGNORED
            name = f"{self.seed}/{int(self._epoch)}/{row['start']}/{row['piece_id']}"
            ids = batch["input_ids"][index, :size]
            ids[self._hidden(ids, targets[0], name)] = self.mask_token_id
        return batch

    def _hidden(self, ids: torch.Tensor, targets: torch.Tensor, name: str) -> torch.Tensor:
        """Which of the targets of one row are masked, shape (size,): k of them, k uniform in 1..all, or one kind."""
        if self.kinds:
            generator = named_generator(f"kind {name}")
            if torch.rand((), generator=generator) < _SHARE_OF_KINDS:
                hidden = targets & self.kinds[int(torch.randint(len(self.kinds), (), generator=generator))][ids]
                if hidden.any():
                    return hidden
        return draw_named_mask(targets[None], name)[0]


class MaskedPianoTrainer(PianoTrainer):
    """A `PianoTrainer` for `PianoEncoderForMaskedLM`.

    Differs from its parent in that the model's own loss is used (there is no next token), that evaluation hides the
    same tokens every time and in every run, and that its `bits_per_note` is an estimate, from one mask per chunk, of an
    upper bound (see the model): what a code would take that tells how many tokens the piece has (`length_bits`) and
    then the tokens in random order, window by window. `nats_per_token` and `accuracy` are, too.

    Args:
        data_collator: draws the masks of training.
        **kwargs: as for `PianoTrainer`.

    Raises:
        ValueError: with label smoothing, which would reward the model for tokens that it sees.
    """

    data_collator: MaskingCollator

    def __init__(self, *, data_collator: MaskingCollator, **kwargs: Any) -> None:
        super().__init__(data_collator=data_collator, **kwargs)
        if self.args.label_smoothing_factor:
            raise ValueError("label_smoothing_factor is for the next-token way of training")
        self.compute_loss_func = None
        self.preprocess_logits_for_metrics = masked_token_scores  # type: ignore[assignment]

    def _eval_collator(self) -> MaskingCollator:
        """Masks that are the same each time."""
        return MaskingCollator(self.data_collator.pad_token_id, self.data_collator.mask_token_id, _EVALUATION_SEED)

    def _metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        nats, is_right = prediction.predictions  # type: ignore[misc]
        counted = np.asarray(prediction.label_ids) != IGNORED
        num_tokens = max(int(counted.sum()), 1)
        total_nats = float(np.where(counted, nats, 0).sum(dtype=np.float64))
        bits = total_nats / math.log(2) + length_bits(self.eval_dataset)
        return {
            "loss": total_nats / num_tokens,
            "nats_per_token": total_nats / num_tokens,
            "accuracy": float(np.where(counted, is_right, 0).sum(dtype=np.float64)) / num_tokens,
            "bits_per_note": bits / max(self.eval_notes, 1),
        }


def masked_token_scores(outputs: Any, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Per label its weighted nats and whether the likeliest id is right, weighted.

    Args:
        outputs: a tuple that begins with the logits, shape (batch, length, vocab), and ends with the label weights,
            shape (batch, length): 0 where the token is not masked.
        labels: shape (batch, length).

    Returns:
        Two float32 tensors of shape (batch, length).
    """
    logits, weights = outputs[0], outputs[-1].float()
    return label_nats(logits, labels) * weights, (logits.argmax(-1) == labels) * weights


def length_bits(chunks: Any) -> float:
    """What it takes to tell how many tokens each piece has, which a model that fills places is told.

    A piece of n tokens is given the probability 1 / (n (n + 1)): these sum to 1, and need no knowledge of other pieces.

    Args:
        chunks: rows with `piece_id`, `input_ids` and `first_label`, each id of a piece a label once.
    """
    sizes: Counter[str] = Counter()
    for row in chunks:
        sizes[row["piece_id"]] += len(row["input_ids"]) - row["first_label"]
    return sum(math.log2(size) + math.log2(size + 1) for size in sizes.values() if size)
