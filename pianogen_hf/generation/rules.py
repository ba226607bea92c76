"""Rules for pitches: a range, a scale, chords; for notes (V8) and for tokens."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from transformers import LogitsProcessor

from pianogen_hf.generation.chords import ChordTrack, chord_penalty, chords_named, chords_of
from pianogen_hf.generation.new_notes import GenerationError
from pianogen_hf.generation.note_stream import Processor
from pianogen_hf.generation.processors import pitches_within
from pianogen_hf.generation.search import widened
from pianogen_hf.models.modeling_note_transformer import PITCH
from pianogen_hf.models.note_controls import CONTROL_SIZES, KEY, key_of_class
from pianogen_hf.tokenizers.notes import Notes
from pianogen_hf.tokenizers.tokenization_notes import NoteTokenizer

OF_THE_PROMPT = "prompt"  # for chords: those that are found in it
CHORD_WEIGHT = 4.0  # nats that a pitch costs which does not belong to the chord
_MAJOR = (0, 2, 4, 5, 7, 9, 11)
_MINOR = (0, 2, 3, 5, 7, 8, 9, 10, 11)  # with the sixth and the seventh of either kind
_OCTAVE = 12
_PITCH_OF_TOKEN = re.compile(r"(?:NOTE_ON_|NoteOn_|[Pp]itch_|^P)(\d+)")


def checked_pitches(pitches: Sequence[int] | None) -> tuple[int, int]:
    """The lowest and the highest pitch; all of them by default.

    Raises:
        GenerationError: if they are none.
    """
    if pitches is None:
        return 0, 127
    if len(pitches) != 2 or not 0 <= pitches[0] <= pitches[1] <= 127:
        raise GenerationError(f"pitches are a lowest and a highest one, 0 to 127, not {', '.join(map(str, pitches))}")
    return int(pitches[0]), int(pitches[1])


def pitch_rules(
    piece: Notes,
    start_sec: float,
    pitches: Sequence[int] | None = None,
    chords: str | ChordTrack | None = None,
) -> tuple[Processor, ...]:
    """Rules for the pitches of new notes, for a `NoteStream`.

    Args:
        piece: whose axis tells the beat.
        start_sec: where the chords begin.
        pitches: lowest and highest.
        chords: text as for `chords_named`, or "prompt" for those of the piece itself, at their own places.

    Raises:
        GenerationError: if one means nothing.
    """
    rules = []
    if pitches is not None:
        rules.append(pitches_within(*checked_pitches(pitches)))
    if chords is not None:
        penalty = penalty_of(piece, start_sec, chords)

        def process(column: int, scores: np.ndarray, onset: float) -> np.ndarray:
            return scores - penalty(onset) if column == PITCH else scores

        rules.append(process)
    return tuple(rules)


def penalty_of(piece: Notes, start_sec: float, chords: str | ChordTrack) -> Callable[[float], np.ndarray]:
    """What pitches cost at a time, in nats, shape (128,); arguments as for `pitch_rules`."""
    start_quarter = float(piece.sec_to_tick(np.array(start_sec))) / piece.ticks_per_quarter
    if chords == OF_THE_PROMPT:
        track, start_quarter = chords_of(piece), 0.0
    elif isinstance(chords, str):
        track = chords_named(chords, quarters_per_bar(piece, start_sec))
    else:
        track = chords

    def to_quarter(seconds: float) -> float:
        return float(piece.sec_to_tick(np.array(seconds))) / piece.ticks_per_quarter - start_quarter

    return chord_penalty(track, to_quarter, CHORD_WEIGHT)


def quarters_per_bar(piece: Notes, at_sec: float) -> float:
    """How long a bar is at a time, in quarters; 4 where no signature says otherwise."""
    tick = int(piece.sec_to_tick(np.array(at_sec)))
    signatures = piece.time_signatures[piece.time_signatures["tick"] <= tick]
    if not len(signatures):
        return 4.0
    return float(signatures["numerator"][-1] * 4 / signatures["denominator"][-1])


def scale_of(key: int) -> np.ndarray:
    """Pitches that belong to a key, bool, shape (128,); a minor key has its sixth and seventh of either kind.

    Args:
        key: its class, see `key_class`.
    """
    assert 0 < key < CONTROL_SIZES[KEY]
    tonic, is_minor = key_of_class(key)
    return np.isin((np.arange(128) - tonic) % 12, _MINOR if is_minor else _MAJOR)


class PitchesLogitsProcessor(LogitsProcessor):
    """Only tokens whose pitches are allowed, unless nothing else would be left.

    Args:
        tokenizer: whose tokens name pitches.
        allowed: bool, shape (128,).

    Raises:
        GenerationError: if no token names one.
    """

    def __init__(self, tokenizer: NoteTokenizer, allowed: np.ndarray) -> None:
        names = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
        pitches = [[int(each) for each in _PITCH_OF_TOKEN.findall(name)] for name in names]
        if not any(pitches):
            raise GenerationError(f"{type(tokenizer).__name__} has no tokens of pitches: leave out key and register")
        self.is_wrong = torch.tensor([any(not allowed[min(each, 127)] for each in found) for found in pitches])

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> Any:
        """Scores, shape (rows, num_ids)."""
        left = scores.masked_fill(widened(self.is_wrong, scores), -torch.inf)
        return torch.where(left.isfinite().any(-1, keepdim=True), left, scores)


def token_rules(
    tokenizer: NoteTokenizer,
    key: int | None = None,
    register: float | None = None,
    pitches: Sequence[int] | None = None,
) -> list[LogitsProcessor]:
    """Rules for a model of tokens, of what a note transformer (V8) is asked for.

    Args:
        tokenizer: of the model.
        key: class of a key: only its scale is written.
        register: a pitch: only what lies within an octave of it is written.
        pitches: lowest and highest.

    Raises:
        GenerationError: if the tokens name no pitches.
    """
    low, high = checked_pitches(pitches)
    allowed = (np.arange(128) >= low) & (np.arange(128) <= high)
    if key is not None:
        allowed &= scale_of(key)
    if register is not None:
        allowed &= np.abs(np.arange(128) - register) <= _OCTAVE
    if allowed.all():
        return []
    lowest, highest = tokenizer.pitch_range
    if not allowed[lowest : highest + 1].any():
        raise GenerationError(
            f"no pitch is left of those that can be written ({lowest}..{highest}): ask for a wider range"
        )
    return [PitchesLogitsProcessor(tokenizer, allowed)]
