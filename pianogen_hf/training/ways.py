"""How models are trained: a Trainer and a collator for each training objective."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from pianogen_hf.errors import ArgumentError
from pianogen_hf.models.objectives import (
    ANY_ORDER,
    NEXT_EVENT,
    NEXT_NOTE,
    NEXT_TOKEN,
    NOTE_AMONG_GIVEN,
    PART_FROM_PART,
    objective_of,
)
from pianogen_hf.tokenizers.notes_encoder import NotesEncoder
from pianogen_hf.tokenizers.tokenization_note_duration import NoteDurationTokenizer
from pianogen_hf.training.arguments import PIECE, PianoTrainingArguments
from pianogen_hf.training.batching import SegmentCollator
from pianogen_hf.training.collator import ChunkCollator, EventCollator, RowCollator
from pianogen_hf.training.continuous import ContinuousNotesTrainer
from pianogen_hf.training.events import EventTrainer
from pianogen_hf.training.masking import MaskedPianoTrainer, MaskingCollator
from pianogen_hf.training.memory import MemoryTrainer
from pianogen_hf.training.note_transformer import ArrangingCollator, NoteTransformerTrainer
from pianogen_hf.training.parts import PartsCollator, PartsTrainer
from pianogen_hf.training.trainer import PianoTrainer

TRAINERS: dict[str, type[PianoTrainer]] = {
    NEXT_TOKEN: PianoTrainer,
    ANY_ORDER: MaskedPianoTrainer,
    NEXT_EVENT: EventTrainer,
    NEXT_NOTE: ContinuousNotesTrainer,
    PART_FROM_PART: PartsTrainer,
    NOTE_AMONG_GIVEN: NoteTransformerTrainer,
}


@dataclass(frozen=True)
class Batches:
    """What collators may need to know.

    Attributes:
        config: of the model.
        encoder: the tokenizer or feature extractor.
        pad_token_id: of the tokenizer; None of a feature extractor.
        length: steps of a training example.
        kinds: class of the kind of music of each piece that has one, by `piece_id`.
        seed: of what is drawn.
        mask_kinds: of each kind of tokens that a masked model is to fill in, which ids are of it.
    """

    config: PreTrainedConfig
    encoder: Any
    pad_token_id: Any
    length: int
    kinds: Mapping[str, int]
    seed: int
    mask_kinds: Sequence[torch.Tensor] = ()


COLLATORS: dict[str, Callable[[Batches], Any]] = {
    NEXT_TOKEN: lambda batches: ChunkCollator(batches.pad_token_id),
    ANY_ORDER: lambda batches: MaskingCollator(
        batches.pad_token_id, batches.config.mask_token_id, batches.seed, batches.mask_kinds
    ),
    NEXT_EVENT: lambda batches: EventCollator(batches.pad_token_id),
    NEXT_NOTE: lambda batches: RowCollator(),
    PART_FROM_PART: lambda batches: PartsCollator(batches.encoder),
    NOTE_AMONG_GIVEN: lambda batches: ArrangingCollator(
        batches.length, batches.kinds, batches.seed, batches.config.sampling_rate
    ),
}


def way_of_training(
    args: PianoTrainingArguments,
    model: PreTrainedModel,
    tokenizer: NotesEncoder,
    chunk_length: int,
    kinds: Mapping[str, int],
    batching: str = PIECE,
) -> tuple[Callable[..., PianoTrainer], Any]:
    """The Trainer class and the collator that suit a model.

    Args:
        args: of the run.
        model: what is trained.
        tokenizer: its tokenizer or feature extractor.
        chunk_length: steps of a training example.
        kinds: class of the kind of music of each piece that has one, by `piece_id`.
        batching: one of `BATCHINGS`.

    Raises:
        ArgumentError: for what a model that does not predict next tokens, or one with or without a memory, can't do.
    """
    objective = objective_of(model)
    if args.label_smoothing_factor and objective != NEXT_TOKEN:
        raise ArgumentError("label_smoothing_factor is for models that predict the next token: leave it out")
    if args.mask_kinds and objective != ANY_ORDER:
        raise ArgumentError("mask_kinds is for masked models: say is_causal: false in a piano_encoder's model_config")
    pad_token_id = tokenizer.config_settings().get("pad_token_id")
    if batching != PIECE:
        if getattr(model.config, "memory_length", None) is None:
            raise ArgumentError(f"batching {batching} is for models with a memory: set memory_length in model_config")
        if args.gradient_checkpointing:
            raise ArgumentError("gradient_checkpointing would read a memory that has moved on: leave it out")
        assert pad_token_id is not None  # what has a memory reads tokens
        return partial(MemoryTrainer, batching=batching), SegmentCollator(pad_token_id)
    mask_kinds = [_ids_of_kind(tokenizer, each) for each in args.mask_kinds or ()]
    if objective == PART_FROM_PART:
        _check_parts(tokenizer)
    batches = Batches(model.config, tokenizer, pad_token_id, chunk_length, kinds, args.seed, mask_kinds)
    return TRAINERS[objective], COLLATORS[objective](batches)


def _check_parts(tokenizer: NotesEncoder) -> None:
    """Refuse tokenizers that can't tell two parts apart.

    Raises:
        ArgumentError: unless it is musicautobot's, without action tokens.
    """
    if not isinstance(tokenizer, NoteDurationTokenizer):
        raise ArgumentError(
            "an encoder-decoder translates between parts of music: say --tokenizer NoteDurationTokenizer"
        )
    try:
        tokenizer.translations(tokenizer.beginning)
    except ValueError as error:
        raise ArgumentError(f"an encoder-decoder translates between parts of music: {error}") from error


def _ids_of_kind(tokenizer: Any, kind: str) -> torch.Tensor:
    """Which ids are of a kind, by what stands before the last underscore of a token, bool of shape (vocab_size,)."""
    kinds = [str(each).rpartition("_")[0] for each in tokenizer.convert_ids_to_tokens(range(len(tokenizer)))]
    if kind not in kinds:
        known = ", ".join(sorted({each for each in kinds if each}))
        raise ArgumentError(f"mask_kinds: {type(tokenizer).__name__} has no tokens of kind {kind!r}, but {known}")
    return torch.tensor([each == kind for each in kinds])
