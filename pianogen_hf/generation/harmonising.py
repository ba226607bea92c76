"""Harmonising a melody: three voices below it by a chorale model, or chords by a note transformer (V8)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from pianogen_hf.generation.chords import ChordTrack
from pianogen_hf.generation.new_notes import Continuation, GenerationError
from pianogen_hf.generation.note_beam import Until
from pianogen_hf.generation.note_stream import ONSET, Controls, Processor
from pianogen_hf.generation.note_verbs import (
    GUIDANCE_SCALE,
    Samples,
    added_to,
    asked,
    held_keys,
    new_track,
    placed,
    takes_given,
    translated,
    with_track_name,
)
from pianogen_hf.generation.processors import at_onsets, beside
from pianogen_hf.generation.rules import penalty_of, pitch_rules
from pianogen_hf.generation.search import search_of
from pianogen_hf.generation.voice_writer import FREE, VoiceWriter
from pianogen_hf.generation.writer import sampling_options
from pianogen_hf.models.objectives import NEXT_TOKEN, PART_FROM_PART, objective_of
from pianogen_hf.tokenizers.feature_extraction_continuous_notes import DURATION, ContinuousNotesFeatureExtractor
from pianogen_hf.tokenizers.notes import DRUM_CHANNEL, NOTE_DTYPE, Notes
from pianogen_hf.tokenizers.notes_encoder import NotesEncoder
from pianogen_hf.tokenizers.tokenization_jsb import REST, STEPS_PER_QUARTER, VOICES, JSBTokenizer

_SOPRANO_PITCH = 70  # about the mean pitch of a soprano in a chorale


def harmonise_notes(
    model: Any,
    encoder: NotesEncoder,
    melody: Notes,
    seed: int | None = None,
    *,
    num_samples: int = 1,
    num_particles: int = 8,
    chords: str | ChordTrack | None = None,
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
    """Write what sounds below a melody.

    A chorale model (over the tokens of a `JSBTokenizer`) writes the voices that are missing. Where tracks are named
    after voices ("Soprano", "Bass" ...) these are given; of any other music the highest notes are the soprano. It
    writes step by step and hears nothing of what is to come, so several attempts are made side by side, and those in
    which the given voices are the least surprising live on (`VoiceWriter`). Held notes of the melody are heard as held.

    A note transformer (V8), which hears the whole melody, writes chords: notes below it that begin where notes of the
    melody do.

    An encoder-decoder (`configs/musicautobot-seq2seq.yaml`) writes what goes below it, as `accompany_notes` does.

    Args:
        model: a causal model of chorales, a `NoteTransformerForCausalLM` or an encoder-decoder.
        encoder: its tokenizer or feature extractor.
        melody: what is given; its notes stay as they are.
        seed: makes sampling repeatable.
        num_samples: how many versions.
        num_particles: how many attempts of a chorale model are made side by side; 1 for a plain draw.
        chords: what is written below the melody: text such as "Cm7 | Fm7 | G7 | Cm", a bar between two lines, repeated
            when it is over, or "prompt" for those that the melody itself suggests. Other pitches become unlikely.
        density: asked of a note transformer alone, as the next four; see `asked`.
        register: see there.
        loudness: see there.
        key: see there.
        kind: see there.
        guidance_scale: see there.
        on_progress: called with the share that is done, 0..1, never falling.
        on_message: called with remarks for the user.
        **generate_kwargs: temperature, top_p and, for V8, all else that `Search` names.

    Returns:
        One `Continuation` per version: everything together, the new notes alone, and 0 for where they begin.

    Raises:
        GenerationError: if the model is neither, for a melody without notes or one that does not fit the voice, or a
            value that means nothing.
    """
    if not len(melody.where(~melody["is_drum"])):
        raise GenerationError("there is nothing to harmonise: give a melody with notes")
    controls = asked(density, register, loudness, key, kind, guidance_scale)
    if takes_given(model):
        assert isinstance(encoder, ContinuousNotesFeatureExtractor)
        samples = Samples(model, num_samples, seed, on_progress, search_of(model, generate_kwargs))
        return _with_chords(samples, encoder, melody, controls, pitch_rules(melody, 0.0, chords=chords))
    if objective_of(model) == PART_FROM_PART:
        if chords is not None:
            raise GenerationError(f"{type(model).__name__} finds its own chords: leave them out")
        samples = Samples(model, num_samples, seed, on_progress)
        return translated(samples, encoder, melody, "below", controls, None, generate_kwargs)
    if not isinstance(encoder, JSBTokenizer) or objective_of(model) != NEXT_TOKEN:
        raise GenerationError(
            f"{type(model).__name__} with {type(encoder).__name__} can't be given a melody: this takes a chorale "
            "model, such as pianogen_hf.BACH_MODEL, or a note transformer (V8)"
        )
    if controls != asked() or guidance_scale != GUIDANCE_SCALE:
        raise GenerationError(
            "density, register, loudness, key, kind and guidance_scale are for a note transformer (V8) alone"
        )
    options = sampling_options(model, generate_kwargs)
    penalty = None if chords is None else penalty_of(melody, 0.0, chords)
    samples = Samples(model, num_samples, seed, on_progress)
    return _with_voices(samples, encoder, melody, num_particles, penalty, options)


# Chords --------------------------------------------------------------------------------------------------------------


def _with_chords(
    samples: Samples,
    encoder: ContinuousNotesFeatureExtractor,
    melody: Notes,
    controls: Controls,
    rules: tuple[Processor, ...],
) -> list[Continuation]:
    given, keys = placed(encoder, melody), held_keys(melody)
    onsets = np.unique(keys[:, ONSET])
    end_sec = float((given[:, ONSET] + given[:, DURATION]).max())
    processors = (at_onsets(onsets, encoder.sampling_rate), beside(keys, "below"), *rules)
    stream: dict[str, Any] = {"past": given[:0], "given": given, "controls": controls}
    rows = samples.write(Until(0.0, end_sec), processors=processors, **stream)
    track = new_track(melody)
    base = with_track_name(melody, track, "chords")
    results = []
    for each in rows:
        for row in each:  # long waits are drawn in steps coarser than notes lie
            row[ONSET] = onsets[np.abs(onsets - row[ONSET]).argmin()]
        results.append(added_to(base, each, 0.0, end_sec, track))
    return results


# Voices --------------------------------------------------------------------------------------------------------------


def _with_voices(
    samples: Samples,
    encoder: JSBTokenizer,
    melody: Notes,
    num_particles: int,
    penalty: Callable[[float], np.ndarray] | None,
    options: dict[str, Any],
) -> list[Continuation]:
    if num_particles < 1:
        raise GenerationError("num_particles must be at least 1")
    grid, octaves = given_voices(encoder, melody)
    costs = None if penalty is None else _costs(melody, len(grid), penalty)
    writer = VoiceWriter(samples.model, encoder, num_particles, **options)
    results = []
    for _ in range(samples.number):
        written = writer.write(grid, samples.generator, samples.progress, costs)
        results.append(_with_grid(encoder, melody, np.where(grid == FREE, written, REST), octaves))
        samples.finish()
    return results


def _costs(melody: Notes, num_steps: int, penalty: Callable[[float], np.ndarray]) -> np.ndarray:
    """What the pitches of a grid cost at each step, in nats, shape (num_steps, 128)."""
    ticks = np.arange(num_steps) * melody.ticks_per_quarter / STEPS_PER_QUARTER
    return np.stack([penalty(second) for second in melody.tick_to_sec(ticks).tolist()])


def given_voices(encoder: JSBTokenizer, melody: Notes) -> tuple[np.ndarray, int]:
    """What is given of four voices, and how far it was moved to fit them.

    Returns:
        Grid, int64, shape (num_steps, 4), `FREE` where a voice is to be written; semitones, whole octaves.

    Raises:
        GenerationError: if all voices are given, or a note lies outside of what they sing.
    """
    pitched = melody.where(~melody["is_drum"])
    names = [melody.track_names[track] if track < len(melody.track_names) else "" for track in set(pitched["track"])]
    named = [VOICES.index(name.strip().capitalize()) for name in names if name.strip().capitalize() in VOICES]
    low, high = encoder.pitch_range
    octaves = 0
    if len(named) != len(names) or len(set(named)) != len(named):
        named = [0]
        octaves = 12 * round((_SOPRANO_PITCH - float(pitched["pitch"].mean())) / 12)
        table = pitched.table.copy()
        table["track"] = 0
        table["pitch"] = np.clip(table["pitch"] + octaves, 0, 127)
        pitched = replace(pitched, table=table, track_names=("Soprano",))
    if len(named) == len(VOICES):
        raise GenerationError("all four voices are given: leave one of them out")
    if int(pitched["pitch"].min()) < low or int(pitched["pitch"].max()) > high:
        raise GenerationError(
            f"the melody spans more than the voices do (pitches {low}..{high}): give a part of it, or use V8"
        )
    grid = np.full((len(encoder.notes_to_grid(pitched)), len(VOICES)), FREE, dtype=np.int64)
    grid[:, named] = encoder.notes_to_grid(pitched)[:, named]
    return grid, octaves


def _with_grid(encoder: JSBTokenizer, melody: Notes, grid: np.ndarray, octaves: int) -> Continuation:
    """The melody with the voices of a grid, each on a track of its own."""
    voices = encoder.grid_to_notes(grid)
    ticks_per_step = melody.ticks_per_quarter / STEPS_PER_QUARTER
    scale = ticks_per_step / (voices.ticks_per_quarter / STEPS_PER_QUARTER)
    onset = np.rint(voices["onset_tick"] * scale).astype(np.int64)
    table = np.zeros(len(voices), NOTE_DTYPE)
    table["onset_tick"] = onset
    table["duration_tick"] = np.maximum(np.rint(voices.offset_tick * scale).astype(np.int64) - onset, 1)
    table["pitch"] = voices["pitch"] - octaves
    pitched = melody.table[~melody["is_drum"]]
    table["velocity"] = max(round(float(pitched["velocity"].mean())), 1)
    table["program"] = pitched["program"][0]
    taken = set(melody["channel"].tolist()) | set(melody.pedals["channel"].tolist()) | {DRUM_CHANNEL}
    free = [channel for channel in range(16) if channel not in taken]
    base = melody
    for voice in np.unique(voices["track"]).tolist():
        track, chosen = new_track(base, len(base.track_names)), voices["track"] == voice
        base = with_track_name(base, track, VOICES[voice])
        table["track"][chosen] = track
        table["channel"][chosen] = free.pop(0) if free else 0
    new = replace(base, table=table, pedals=base.pedals[:0], other_pedals=base.other_pedals[:0])
    return Continuation(replace(base, table=np.concatenate([base.table, new.table])), new, 0.0)
