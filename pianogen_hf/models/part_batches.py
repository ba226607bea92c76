"""Batches for encoder-decoders that read one part of music and write the other one."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from .order_agnostic import IGNORED


def parts_batch(
    tasks: Sequence[tuple[np.ndarray, np.ndarray, np.ndarray]], pad_token_id: int
) -> dict[str, torch.Tensor]:
    """A batch with the columns of `DataCollatorForSeq2Seq`.

    `decoder_input_ids` are the labels moved on by one, after the token of the part that is written. It stands in the
    place of a `decoder_start_token_id`, which would be the same for all parts.

    Args:
        tasks: ids of a given part; ids of a written part, that token first; and which of the latter are predicted, bool
            of the same shape.
        pad_token_id: what fills short rows.

    Returns:
        `input_ids` and `attention_mask`, int64 of shape (tasks, longest given part); `decoder_input_ids` and `labels`,
        int64 of shape (tasks, longest written part - 1, at least 1), the latter `IGNORED` where nothing is predicted.
    """
    given = [torch.from_numpy(ids) for ids, _, _ in tasks]
    # After a part that has nothing but its token nothing is predicted, and yet there must be something to read.
    written = [torch.from_numpy(ids if len(ids) > 1 else np.append(ids, pad_token_id)) for _, ids, _ in tasks]
    known = [torch.from_numpy(is_label if len(is_label) > 1 else np.zeros(2, dtype=bool)) for _, _, is_label in tasks]
    labels = [ids[1:].masked_fill(~is_label[1:], IGNORED) for ids, is_label in zip(written, known, strict=True)]
    return {
        "input_ids": pad_sequence(given, batch_first=True, padding_value=pad_token_id),
        "attention_mask": pad_sequence([torch.ones_like(ids) for ids in given], batch_first=True),
        "decoder_input_ids": pad_sequence([ids[:-1] for ids in written], batch_first=True, padding_value=pad_token_id),
        "labels": pad_sequence(labels, batch_first=True, padding_value=IGNORED),
    }


__all__ = ["parts_batch"]
