"""Varying a passage: some of its notes stay, and the others are written anew in sight of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from pianogen_hf.generation.chords import ChordTrack
from pianogen_hf.generation.filling import Gap, fill_notes
from pianogen_hf.generation.guards import no_crowd
from pianogen_hf.generation.new_notes import Continuation, GenerationError
from pianogen_hf.generation.note_stream import Controls
from pianogen_hf.generation.note_verbs import GUIDANCE_SCALE, Samples, asked, check_takes_given, fill_gap
from pianogen_hf.generation.passages import Span, span_of
from pianogen_hf.generation.rules import pitch_rules
from pianogen_hf.generation.search import search_of
from pianogen_hf.models.note_controls import FEWEST_NOTES
from pianogen_hf.models.objectives import ANY_ORDER, objective_of
from pianogen_hf.tokenizers.feature_extraction_continuous_notes import ContinuousNotesFeatureExtractor
from pianogen_hf.tokenizers.notes import Notes

_BEYOND = 7  # semitones
_FEWEST = 0.6  # share of the notes that have gone: a variation with fewer is written again


def vary_notes(
    model: Any,
    encoder: ContinuousNotesFeatureExtractor,
    notes: Notes,
    start_sec: float | None = None,
    end_sec: float | None = None,
    strength: float = 0.5,
    seed: int | None = None,
    *,
    bars: Sequence[int] | None = None,
    pitches: Sequence[int] | None = None,
    chords: str | ChordTrack | None = None,
    num_samples: int = 1,
    density: float | None = None,
    register: float | None = None,
    loudness: float | None = None,
    key: str | None = None,
    kind: str | None = None,
    guidance_scale: float = GUIDANCE_SCALE,
    on_progress: Callable[[float], None] | None = None,
    on_message: Callable[[str], None] | None = None,
    **generate_kwargs: Any,
) -> list[Continuation]:
    """Write a passage anew, with some of its notes as they are.

    The share `strength` of its notes, drawn by chance, is left out, and new notes are written in sight of those that
    stay and of what stands before and after the passage; below strength 1 hardly more than have gone. Where only a few
    come, and no density is asked, they are written again, up to three times in all. What is not asked
    for is asked to be as in the notes that go: how many a second, how high, how loud.

    Args:
        model: a `NoteTransformerForCausalLM`; for strength 1 also a `PianoEncoderForMaskedLM`.
        encoder: its feature extractor.
        notes: the music.
        start_sec: where the passage begins, in seconds; the beginning by default.
        end_sec: where it ends; the end by default.
        strength: how much is written anew, 0 (nothing) to 1 (everything, as `fill_notes` does).
        seed: makes sampling repeatable.
        bars: first and last bar of the passage instead of seconds, counted from 1.
        pitches: lowest and highest pitch of new notes; by default those of the passage and a fifth beyond them.
        chords: what new notes are written over, from the passage's beginning on: text such as "Cm7 | Fm7 | G7 | Cm",
            a bar between two lines, repeated when it is over, or "prompt" for those of the piece. A pitch that does
            not belong to the chord becomes unlikely.
        num_samples: how many versions; each draws other notes to stay.
        density: see `asked`, also for the others.
        register: see there.
        loudness: see there.
        key: see there.
        kind: see there.
        guidance_scale: see there.
        on_progress: called with the share that is done, 0..1, never falling.
        on_message: called with remarks for the user.
        **generate_kwargs: temperature, top_p and, for V8, all else that `Search` names.

    Returns:
        One `Continuation` per version: the whole piece, the new notes alone, and where the passage begins and ends.

    Raises:
        GenerationError: if the model can't be given notes, if the passage is not within the piece or holds no notes, or
            for a value that means nothing.
    """
    if not 0 <= strength <= 1:
        raise GenerationError(f"strength lies between 0 (nothing is new) and 1 (everything is), not {strength:g}")
    start, end = span_of(notes, start_sec, end_sec, bars)
    controls = asked(density, register, loudness, key, kind, guidance_scale)
    if strength == 1 and objective_of(model) == ANY_ORDER and controls == Controls() and chords is None:
        options: dict[str, Any] = {"num_samples": num_samples, "seed": seed, "pitches": pitches, **generate_kwargs}
        options["guidance_scale"] = guidance_scale
        return fill_notes(model, encoder, notes, start, end, on_progress=on_progress, on_message=on_message, **options)
    check_takes_given(model)
    ticks = notes.sec_to_tick(np.array([start, end]))
    passage = np.flatnonzero((notes["onset_tick"] >= ticks[0]) & (notes["onset_tick"] < ticks[1]))
    if len(passage) == 0:
        raise GenerationError(f"no note begins between {start:g} and {end:g} s: there is nothing to vary")
    if strength == 0:
        nothing = replace(notes, table=notes.table[:0], pedals=notes.pedals[:0], other_pedals=notes.other_pedals[:0])
        return [Continuation(notes, nothing, start, end)] * num_samples
    rules = pitch_rules(notes, start, pitches or _range_of(notes["pitch"][passage]), chords)
    samples = Samples(model, num_samples, seed, on_progress, search_of(model, generate_kwargs))
    results = []
    for _ in range(num_samples):
        going = passage[np.argsort(samples.random(len(passage)))[: max(round(strength * len(passage)), 1)]]
        gap = Gap.without(notes, start, end, np.isin(np.arange(len(notes)), going))
        wished = _as_before(controls, notes.where(np.sort(going)), (start, end))
        onset_sec = notes.onset_sec[np.sort(going)]
        guard = None if strength == 1 else partial(no_crowd, onset_sec=onset_sec)
        fewest = 1 if density is not None else math.ceil(_FEWEST * len(going))
        results.append(
            fill_gap(samples, encoder, notes, gap.base, start, end, wished, rules, gap.is_kept, guard, fewest)
        )
    return [replace(each, gap_end_sec=end) for each in results]


def _range_of(pitch: np.ndarray) -> tuple[int, int]:
    return max(int(pitch.min()) - _BEYOND, 0), min(int(pitch.max()) + _BEYOND, 127)


def _as_before(controls: Controls, going: Notes, span: Span) -> Controls:
    """Controls with what the notes were like that go, where nothing else is asked and they are enough to say."""
    if len(going) < FEWEST_NOTES:
        return controls
    usual: dict[str, Any] = {
        "density": len(going) / (span[1] - span[0]),
        "register": float(going["pitch"].mean()),
        "loudness": float(going["velocity"].mean()),
    }
    return replace(controls, **{name: value for name, value in usual.items() if getattr(controls, name) is None})
