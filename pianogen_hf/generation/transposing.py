"""Working in C major or A minor, for models that know no other keys, and undoing it afterwards."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from pianogen_hf.generation.new_notes import Continuation
from pianogen_hf.models.key_finding import key_of
from pianogen_hf.tokenizers.notes import Notes

_C, _A = 0, 9  # tonics, major and minor


def semitones_to_c(notes: Notes) -> int:
    """How far a piece moves to be in C major or A minor, -5 to +6; 0 where a note would leave 0..127, or of nothing."""
    pitched = notes.where(~notes["is_drum"])
    if not len(pitched):
        return 0
    tonic, is_minor = key_of(pitched["pitch"], np.maximum(pitched["duration_tick"], 1))
    semitones = ((_A if is_minor else _C) - tonic + 5) % 12 - 5
    within = int(notes["pitch"].min()) + semitones >= 0 and int(notes["pitch"].max()) + semitones <= 127
    return semitones if within else 0


def in_c(verb: Callable[[Notes], list[Continuation]], notes: Notes) -> list[Continuation]:
    """What a verb gives of a piece that was moved to C major or A minor, moved back.

    Args:
        verb: called with the moved piece, such as `lambda moved: continue_notes(model, tokenizer, prompt=moved)`.
        notes: the piece.

    Returns:
        The verb's results in the key of the piece. New notes that would leave 0..127 are left out.
    """
    semitones = semitones_to_c(notes)
    return [_moved(result, -semitones) for result in verb(notes.transposed(semitones))]


def _moved(result: Continuation, semitones: int) -> Continuation:
    kept, new = result.kept.transposed(semitones), result.new
    pitch = new["pitch"] + semitones
    new = new.where((pitch >= 0) & (pitch <= 127)).transposed(semitones)
    notes = replace(result.notes, table=np.concatenate([kept.table, new.table]))
    return replace(result, notes=notes, new=new)
