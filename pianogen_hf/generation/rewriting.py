"""Writing the pitches of a passage anew in its rhythm, or its durations anew with its pitches.

The masked tasks of musicautobot (Andrew Shaw, 2019), with a model that sees both sides of what is masked.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from transformers import LogitsProcessor

from pianogen_hf.generation.new_notes import GenerationError
from pianogen_hf.generation.search import widened
from pianogen_hf.models.objectives import ANY_ORDER, objective_of
from pianogen_hf.tokenizers.notes import Notes
from pianogen_hf.tokenizers.tokenization_note_duration import NoteDurationTokenizer

_IDS_PER_PASS = 4  # that a forward pass writes on average


def rewrite_notes(
    model: Any,
    tokenizer: NoteDurationTokenizer,
    notes: Notes,
    kind: str,
    begin_beat: float = 0,
    end_beat: float = np.inf,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int | None = None,
) -> Notes:
    """The piece with pitches, or durations, written anew in a stretch of beats.

    Everything goes through the tokenizer's grid, where velocities, parts and tempo are lost. Durations are those of
    waits, too: what follows them moves. A piece longer than the model's context is gone through in windows, of which
    each sees half of the one before it.

    Args:
        model: a masked model, such as `configs/musicautobot-masked.yaml` trains.
        tokenizer: its tokenizer, with the vocabulary of musicautobot.
        notes: the piece.
        kind: "pitch" or "duration".
        begin_beat: first quarter that is written anew.
        end_beat: first quarter that is not.
        temperature: below 1 safer, above 1 wilder.
        top_p: draw from the likeliest tokens that together have this probability.
        seed: makes the result repeatable.

    Raises:
        GenerationError: if the model is not a masked one, or nothing lies in the stretch.
        ValueError: for another kind or vocabulary, or a setting out of range.
    """
    if objective_of(model) != ANY_ORDER:
        name = type(model).__name__
        raise GenerationError(f"{name} sees one side only: configs/musicautobot-masked.yaml trains one that sees both")
    given = np.asarray(tokenizer.encode_prompt(notes), dtype=np.int64)
    masked = np.array(tokenizer.masked(given, kind, begin_beat, end_beat)) != given
    if not masked.any():
        raise GenerationError(f"no {kind} begins between beats {begin_beat:g} and {end_beat:g}")
    ids, is_masked = torch.from_numpy(given).to(model.device), torch.from_numpy(masked).to(model.device)
    generator = None if seed is None else torch.Generator(model.device).manual_seed(seed)
    options = {"temperature": temperature, "top_p": top_p, "generator": generator}
    only = _OneKind(tokenizer, kind)
    size = model.config.max_position_embeddings
    for begin in range(0, len(ids), max(size // 2, 1)):
        window = slice(begin, begin + size)
        if is_masked[window].any():
            steps = max(int(is_masked[window].sum()) // _IDS_PER_PASS, 1)
            row, mask = ids[None, window], is_masked[None, window]
            ids[window] = model.refill(row, mask, steps, logits_processor=only, **options)[0]
            is_masked[window] = False
    return tokenizer.decode_notes(ids.cpu().numpy())


class _OneKind(LogitsProcessor):
    """Leaves pitches, or durations of at least a step."""

    def __init__(self, tokenizer: NoteDurationTokenizer, kind: str) -> None:
        ids = torch.arange(len(tokenizer))
        first, count = (
            (tokenizer.first_pitch_id, 128)
            if kind == "pitch"
            else (tokenizer.first_duration_id + 1, tokenizer.max_duration)
        )
        self.is_of_kind = (ids >= first) & (ids < first + count)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Scores, shape (batch, vocab_size), minus infinity for all others."""
        return scores.masked_fill(~widened(self.is_of_kind, scores), -torch.inf)  # type: ignore[return-value]
