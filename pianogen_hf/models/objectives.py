"""What models predict: one name for each training objective, which is all that tells one kind of model from another.

Each stage keeps a table of its own by these names: how such a model is trained (`training/ways.py`), scored
(`evaluation/scorers.py`), made to write (`generation/continuation.py`, `filling.py`) and described
(`publishing/usage.py`). A new kind of model is a line here and one in each table; tests name a table that lacks it.
"""

from collections.abc import Iterable
from typing import Any

NEXT_TOKEN = "next_token"  # the token after those before it: any causal model of transformers
ANY_ORDER = "any_order"  # masked tokens, in random order (V1, V2)
NEXT_EVENT = "next_event"  # the event after those before it, as a row of tokens (SkyTNT's midi-model)
NEXT_NOTE = "next_note"  # the note after those before it, as a row of real numbers (V5)
PART_FROM_PART = "part_from_part"  # the tokens of one part, given all of the other (an encoder-decoder)
NOTE_AMONG_GIVEN = "note_among_given"  # the next note, among others that are given (V8)

_OBJECTIVES = {
    "PianoEncoderForMaskedLM": ANY_ORDER,
    "MidiEventForCausalLM": NEXT_EVENT,
    "ContinuousNotesForCausalLM": NEXT_NOTE,
    "BartForConditionalGeneration": PART_FROM_PART,
    "NoteTransformerForCausalLM": NOTE_AMONG_GIVEN,
    "OnnxEventEngine": NEXT_EVENT,  # what runs its exported graphs
    "OnnxNoteEngine": NOTE_AMONG_GIVEN,
}
OBJECTIVES = (NEXT_TOKEN, *_OBJECTIVES.values())


def objective_of(model: Any) -> str:
    """What a model predicts, by its class or one that it derives from."""
    return objective_of_classes(each.__name__ for each in type(model).__mro__)


def objective_of_classes(names: Iterable[str]) -> str:
    """The same by names of classes, such as `architectures` in config.json has."""
    return next((_OBJECTIVES[name] for name in names if name in _OBJECTIVES), NEXT_TOKEN)


__all__ = [
    "ANY_ORDER",
    "NEXT_EVENT",
    "NEXT_NOTE",
    "NEXT_TOKEN",
    "NOTE_AMONG_GIVEN",
    "OBJECTIVES",
    "PART_FROM_PART",
    "objective_of",
    "objective_of_classes",
]
