"""What the notes of a gap cost a note transformer (V8): given the past alone, and in sight of both sides.

Real gaps are cut out of held-out pieces. Given the past, a note costs what it costs in any continuation. In sight of
both sides the event that closes the gap is charged, too, since the model has to say where the gap is full.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from pianogen_hf.models.modeling_note_transformer import END_ROW, GIVEN, PITCH, TIME_SHIFT, WRITTEN
from pianogen_hf.models.note_controls import CONTROLS, GAP_LEFT, seconds_left_class
from pianogen_hf.models.note_rows import time_shifts, written_onsets
from pianogen_hf.tokenizers.notes import Notes

_IGNORED = -100


@dataclass(frozen=True)
class Gap:
    """A window of a piece with a gap in it.

    Attributes:
        rows: notes by onset, shape (length, 4), with onsets in seconds in the first column.
        start: index of the first note of the gap.
        stop: index after its last note.
        end_sec: where it ends.
    """

    rows: np.ndarray
    start: int
    stop: int
    end_sec: float


def draw_gaps(
    model: Any,
    encoder: Any,
    pieces: Iterable[Notes],
    gaps_per_piece: int = 8,
    seconds: tuple[float, float] = (4.0, 8.0),
    seed: int = 0,
) -> list[Gap]:
    """Gaps at random places of pieces, with as much music on both sides as the model's window holds.

    Args:
        model: a `NoteTransformerForCausalLM`, for its window: two fifths of it are past, at most as much the gap.
        encoder: its feature extractor.
        pieces: the music.
        gaps_per_piece: gaps that are looked for in each.
        seconds: shortest and longest.
        seed: of the places.
    """
    generator, window = np.random.default_rng(seed), int(model.config.max_position_embeddings) - 2
    gaps = []
    for notes in pieces:
        rows = encoder.encode_notes(notes).astype(np.float64)
        rows[:, TIME_SHIFT] = onset = np.cumsum(rows[:, TIME_SHIFT])
        for _ in range(gaps_per_piece):
            length = generator.uniform(*seconds)
            begin = generator.uniform(onset[0], max(onset[-1] - length, onset[0]))
            start, stop = np.searchsorted(onset, [begin, begin + length])
            first = max(start - 2 * window // 5, 0)
            if start - first < 2 or stop - start < 2 or len(rows) - stop < 2 or stop - first > 4 * window // 5:
                continue
            gaps.append(Gap(rows[first : first + window], start - first, stop - first, begin + length))
    return gaps


def gap_bits(model: Any, gaps: list[Gap]) -> dict[str, float]:
    """Bits per note of the notes of gaps.

    Returns:
        `past` alone; `both` sides; `both_and_end`, where it is also told when the gap ends; `gain`, the difference of
        the first two; and the number of `notes` and `gaps`.
    """
    totals = dict.fromkeys(("past", "both", "both_and_end"), 0.0)
    for gap in gaps:
        totals["past"] += _bits(model, gap, sees_future=False, knows_end=False)
        totals["both"] += _bits(model, gap, sees_future=True, knows_end=False)
        totals["both_and_end"] += _bits(model, gap, sees_future=True, knows_end=True)
    notes = int(sum(gap.stop - gap.start for gap in gaps))
    per_note = {name: bits / notes for name, bits in totals.items()}
    return {**per_note, "gain": per_note["past"] - per_note["both"], "notes": notes, "gaps": len(gaps)}


@torch.inference_mode()
def _bits(model: Any, gap: Gap, sees_future: bool, knows_end: bool) -> float:
    past, inside, future = gap.rows[: gap.start], gap.rows[gap.start : gap.stop], gap.rows[gap.stop :]
    # The last note of the past predicts the first of the gap: what follows is met before it.
    future = future if sees_future else future[:0]
    rows = np.concatenate([past[:-1], future, past[-1:], inside])
    is_given = np.zeros(len(rows), dtype=bool)
    is_given[len(past) - 1 : len(past) - 1 + len(future)] = True
    begin = len(past) + len(future)
    if sees_future:
        rows = np.concatenate([rows, [[rows[-1, TIME_SHIFT], *END_ROW[1:]]]])
        is_given = np.append(is_given, False)
    onset = rows[:, TIME_SHIFT].copy()
    rows[:, TIME_SHIFT] = time_shifts(onset, is_given)
    controls = np.zeros((len(rows), len(CONTROLS)), dtype=np.int64)
    if knows_end:
        left = gap.end_sec - written_onsets(onset, is_given)[begin - 1 :]
        controls[begin - 1 :, GAP_LEFT] = seconds_left_class(torch.from_numpy(left)).numpy()
    is_target = ~is_given & (np.arange(len(rows)) >= begin)
    labels = np.where(is_target, rows[:, PITCH], _IGNORED).astype(np.int64)
    batch = {
        "input_values": torch.from_numpy(rows.astype(np.float32)),
        "token_type_ids": torch.from_numpy(np.where(is_given, GIVEN, WRITTEN)),
        "control_ids": torch.from_numpy(controls),
        "labels": torch.from_numpy(labels),
    }
    outputs = model(**{name: each[None].to(model.device) for name, each in batch.items()}, use_cache=False)
    return float(outputs.nats.double().sum()) / math.log(2)
