"""What a note transformer (V8) does with a piece: continue it, fill a gap in it, write a second part to it."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from pianogen_hf.generation.chords import ChordTrack
from pianogen_hf.generation.guards import Guard
from pianogen_hf.generation.new_notes import Continuation, GenerationError, Length
from pianogen_hf.generation.note_beam import Until, beam_search
from pianogen_hf.generation.note_stream import ONSET, Controls, NoteStream, Processor, written_until
from pianogen_hf.generation.part_writer import ACCOMPANIMENT, MELODY, PartWriter
from pianogen_hf.generation.passages import span_of
from pianogen_hf.generation.processors import beside, not_sounding
from pianogen_hf.generation.rules import pitch_rules, token_rules
from pianogen_hf.generation.search import Search, field_processors, guards, search_of
from pianogen_hf.models.note_controls import KEY, KINDS, PITCH_NAMES, control_values, key_class
from pianogen_hf.models.objectives import NOTE_AMONG_GIVEN, PART_FROM_PART, objective_of
from pianogen_hf.tokenizers.feature_extraction_continuous_notes import (
    DURATION,
    PITCH,
    VELOCITY,
    ContinuousNotesFeatureExtractor,
)
from pianogen_hf.tokenizers.notes import DRUM_CHANNEL, NOTE_DTYPE, Notes
from pianogen_hf.tokenizers.tokenization_note_duration import NoteDurationTokenizer

GUIDANCE_SCALE = 2.0  # 1 is too weak, 2.5 overshoots: benchmarks/note_transformer.md
_FOREVER_SEC = 1e7  # more than any file can hold, and few enough for ticks
# Notes a second below or above middle C, from those on the other side of it: factor and exponent, fitted to pieces of
# MAESTRO and POP909: benchmarks/LOG.md.
USUAL_DENSITY = {"below": (1.35, 0.37), "above": (3.15, 0.33)}
_TRIES = 3  # of a sample that stays too short
_END_SLACK = 0.15  # share of a wished length by which a piece may be longer or shorter when it ends by itself


def asked(
    density: float | None = None,
    register: float | None = None,
    loudness: float | None = None,
    key: str | None = None,
    kind: str | None = None,
    guidance_scale: float = GUIDANCE_SCALE,
) -> Controls:
    """Controls as a musician names them.

    Args:
        density: notes per second.
        register: mean pitch, 0..127.
        loudness: mean velocity, 1..127.
        key: such as "C minor", "Bb major", "f#" (minor) or "G" (major).
        kind: one of `KINDS`.
        guidance_scale: how much is made of them, 0 to 10; 1 for what the model makes of them by itself, which is little
            where much was heard before.

    Raises:
        GenerationError: for a value that means nothing.
    """
    for name, value, low, high in (
        ("density", density, 0.1, 50),
        ("register", register, 0, 127),
        ("loudness", loudness, 1, 127),
        ("guidance_scale", guidance_scale, 0, 10),
    ):
        if value is not None and not low <= value <= high:
            raise GenerationError(f"{name} must lie between {low} and {high}, got {value:g}")
    if kind is not None and kind not in KINDS:
        raise GenerationError(f"kind is one of {', '.join(KINDS)}, not {kind!r}")
    return Controls(
        density,
        register,
        loudness,
        None if key is None else key_named(key),
        None if kind is None else 1 + KINDS.index(kind),
        guidance_scale=guidance_scale,
    )


def key_named(name: str) -> int:
    """Class of a key by its name.

    Raises:
        GenerationError: if there is no such key.
    """
    match = re.fullmatch(r"\s*([A-Ga-g])\s*(#|b|♯|♭)?\s*((?i:major|minor|maj|min)|m)?\s*", name)
    if match is None:
        raise GenerationError(f"{name!r} is no key: say C minor, Bb major, F# minor ...")
    letter, accidental, mode = match.groups()
    tonic = PITCH_NAMES.index(letter.upper()) + {None: 0, "#": 1, "♯": 1, "b": -1, "♭": -1}[accidental]
    is_minor = letter.islower() if mode is None else mode == "m" or mode.lower().startswith("min")
    return key_class(tonic, is_minor)


def placed(encoder: ContinuousNotesFeatureExtractor, notes: Notes) -> np.ndarray:
    """Notes as a stream takes them: float64 rows (onset, pitch, velocity, duration), in seconds, pedal folded in."""
    rows = encoder.encode_notes(notes).astype(np.float64)
    rows[:, ONSET] = np.rint(np.cumsum(rows[:, ONSET]) * encoder.sampling_rate) / encoder.sampling_rate
    return rows


def held_keys(notes: Notes) -> np.ndarray:
    """Notes as fingers hold them, without pedal, in the same form."""
    columns = (notes.onset_sec, notes["pitch"], notes["velocity"], notes.offset_sec - notes.onset_sec)
    return np.stack([np.asarray(column, dtype=np.float64) for column in columns], axis=-1)


def added_to(
    base: Notes, new: Iterable[np.ndarray], start_sec: float, end_sec: float, track: int | None = None
) -> Continuation:
    """A piece with new notes.

    A new note ends where a note of the same key begins, and at `end_sec` at the latest. Of strikes of one key in one
    tick one is left.

    Args:
        base: the piece; its notes stay as they are.
        new: rows as `placed` gives them.
        start_sec: where new music begins.
        end_sec: where it ends.
        track: of the new notes, which then have a pedal of their own, too; None for the one of the piece's first note.
    """
    rows = np.array(list(new)).reshape(-1, 4)
    start_tick, end_tick = base.sec_to_tick(np.array([start_sec, min(end_sec, _FOREVER_SEC)])).tolist()
    onset = np.clip(base.sec_to_tick(rows[:, ONSET]), start_tick, max(end_tick - 1, start_tick))
    pitch = rows[:, PITCH].astype(np.int64)
    kept = _first_strikes(base, onset, pitch)
    rows, onset, pitch = rows[kept], onset[kept], pitch[kept]
    offset = np.maximum(base.sec_to_tick(np.minimum(rows[:, ONSET] + rows[:, DURATION], end_sec)), onset + 1)
    table = np.zeros(len(rows), NOTE_DTYPE)
    for name, value in _player(base, track).items():
        table[name] = value
    table["onset_tick"], table["pitch"], table["velocity"] = onset, pitch, rows[:, VELOCITY]
    table["duration_tick"] = _next_strikes(base, onset, offset, pitch) - onset
    new_notes = replace(base, table=table, pedals=base.pedals[:0], other_pedals=base.other_pedals[:0])
    return Continuation(replace(base, table=np.concatenate([base.table, new_notes.table])), new_notes, start_sec)


def _player(base: Notes, track: int | None) -> dict[str, int]:
    """Program, track and channel of new notes: those of the first note that is no drum, or a track of their own."""
    pitched = base.table[~base["is_drum"]]
    program = int(pitched["program"][0]) if len(pitched) else 0
    if track is None and len(pitched):
        return {"program": program, "track": int(pitched["track"][0]), "channel": int(pitched["channel"][0])}
    taken = set(base["channel"].tolist()) | set(base.pedals["channel"].tolist()) | {DRUM_CHANNEL}
    channel = next((each for each in range(16) if each not in taken), 0)
    return {"program": program, "track": new_track(base) if track is None else track, "channel": channel}


def new_track(base: Notes, least: int = 0) -> int:
    """The number of a track that a piece has not, and that is not below `least`."""
    return max(int(base["track"].max()) + 1 if len(base) else 0, least)


def with_track_name(base: Notes, track: int, name: str) -> Notes:
    """The piece with a name for a new track."""
    names = [*base.track_names, *([""] * (track - len(base.track_names)))][:track]
    return replace(base, track_names=(*names, name))


def _first_strikes(base: Notes, onset: np.ndarray, pitch: np.ndarray) -> np.ndarray:
    """Indices of new notes, in their order, without those whose key is struck in the same tick by one before them."""
    struck = set(zip(base["onset_tick"].tolist(), base["pitch"].tolist(), strict=True))
    kept = []
    for index, strike in enumerate(zip(onset.tolist(), pitch.tolist(), strict=True)):
        if strike not in struck:
            struck.add(strike)
            kept.append(index)
    return np.array(kept, dtype=np.int64)


def _next_strikes(base: Notes, onset: np.ndarray, offset: np.ndarray, pitch: np.ndarray) -> np.ndarray:
    """Offsets, in ticks, of new notes, cut where their key is struck again by any note."""
    all_onsets = np.concatenate([base["onset_tick"].astype(np.int64), onset])
    all_pitches = np.concatenate([base["pitch"].astype(np.int64), pitch])
    order = np.lexsort([all_onsets, all_pitches])
    keys = (all_pitches[order] << 32) + all_onsets[order]
    following = np.searchsorted(keys, (pitch << 32) + onset, side="right")
    is_same = (following < len(keys)) & (keys[np.minimum(following, len(keys) - 1)] >> 32 == pitch)
    next_onset = np.where(is_same, keys[np.minimum(following, len(keys) - 1)] & (2**32 - 1), 2**31)
    return np.maximum(np.minimum(offset, next_onset), onset + 1)


class Samples:
    """What the verbs have in common: a seeded stream per sample, progress over all of them, no empty result.

    Args:
        model: a `NoteTransformerForCausalLM`.
        number: how many samples.
        seed: makes them repeatable.
        on_progress: called with the share that is done of all of them, 0..1, never falling.
        search: how notes are chosen.
    """

    def __init__(
        self,
        model: Any,
        number: int,
        seed: int | None,
        on_progress: Callable[[float], None] | None = None,
        search: Search | None = None,
    ) -> None:
        self.model, self.number, self.on_progress = model, number, on_progress
        self.search = search or Search()
        self.generator = torch.Generator()
        if seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(seed)
        self._finished, self._shown = 0, 0.0

    def write(
        self,
        until: Until,
        number: int | None = None,
        processors: tuple[Processor, ...] = (),
        guard: Guard | None = None,
        fewest: int = 1,
        **stream: Any,
    ) -> list[list[np.ndarray]]:
        """The new notes of every sample.

        Args:
            until: when a stream has written enough.
            number: how many samples to write; by default all that are still to come.
            processors: what may be drawn at all.
            guard: the same because of what a stream has written; beams go without it.
            fewest: a sample with fewer notes is written again, up to three times in all, and the longest one counts.
            **stream: what each stream is made of besides.

        Raises:
            GenerationError: if one stays empty.
        """
        number = self.number - self._finished if number is None else number
        num_rules = len(processors)  # guards come after them, and before anything that leaves the likeliest alone
        processors = (*processors, *field_processors(self.search))

        def fresh() -> NoteStream:
            return NoteStream(self.model, processors=processors, generator=self.generator, **stream)

        def on_note(notes: NoteStream) -> None:
            self.progress(until.share(notes))

        results: list[list[np.ndarray]] = []
        num_beams = self.search.num_beams or 1
        if num_beams > 1:
            results = beam_search(fresh(), until, num_beams, self.search.length_penalty, number, on_note)
            self.finish(number)
        else:
            for _ in range(number):
                written: list[np.ndarray] = []
                for _try in range(_TRIES):
                    notes = fresh()
                    watching = (*([] if guard is None else [guard(notes)]), *guards(self.search, notes))
                    notes.processors = (*processors[:num_rules], *watching, *processors[num_rules:])
                    for _note in written_until(notes, until.end_sec, until.may_end_sec, until.num_notes):
                        on_note(notes)
                    written = max(written, notes.written, key=len)
                    if len(written) >= fewest:
                        break
                results.append(written)
                self.finish()
        if len(results) < number or not all(results):
            raise GenerationError("no new note is possible here: give more room, or leave something out")
        return results

    def finish(self, number: int = 1) -> None:
        """Count samples."""
        self._finished += number
        self.progress(0.0)

    def random(self, size: int) -> np.ndarray:
        """Numbers in [0, 1), shape (size,), from the seed."""
        return torch.rand(size, generator=self.generator).numpy()

    def progress(self, share: float) -> None:
        """Tell how much of this sample is done, 0..1."""
        if self.on_progress is not None:  # a sample that is written again doesn't go back
            self._shown = max(self._shown, (self._finished + min(max(share, 0.0), 1.0)) / self.number)
            self.on_progress(self._shown)


def continue_piece(
    samples: Samples,
    encoder: ContinuousNotesFeatureExtractor,
    length: Length,
    base: Notes,
    start_tick: int,
    end: bool,
    controls: Controls,
    processors: tuple[Processor, ...],
) -> list[Continuation]:
    """New notes after a piece, or from nothing.

    Args:
        samples: what is to come of it.
        encoder: the feature extractor of the model.
        length: how much is wanted.
        base: the piece, or no notes.
        start_tick: where new music begins.
        end: whether the music comes to its end at the wanted length. It may then be a little shorter or longer.
        controls: what is asked of it.
        processors: see [`NoteStream`].

    Raises:
        GenerationError: if an end is wanted after a number of notes, or a sample stays empty.
    """
    start_sec, end_tick = float(base.tick_to_sec(np.array(start_tick))), length.end_tick(base, start_tick)
    end_sec = float(base.tick_to_sec(np.array(end_tick))) if np.isfinite(end_tick) else np.inf
    if end and not np.isfinite(end_sec):
        raise GenerationError("an end is planned in time: give seconds or bars, not notes")
    slack = _END_SLACK * (end_sec - start_sec) if end else 0.0
    num_notes = np.inf if length.notes is None else length.notes
    past = placed(encoder, base)
    rows = samples.write(
        Until(start_sec, end_sec + slack, end_sec - slack if end else np.inf, num_notes),
        past=past,
        given=past[:0],
        begin_sec=start_sec,
        controls=replace(controls, end_sec=end_sec if end else None),
        processors=processors,
    )
    return [added_to(base, each, start_sec, end_sec + slack) for each in rows]


def fill_gap(
    samples: Samples,
    encoder: ContinuousNotesFeatureExtractor,
    piece: Notes,
    base: Notes,
    start_sec: float,
    end_sec: float,
    controls: Controls,
    processors: tuple[Processor, ...],
    is_kept: np.ndarray | None = None,
    guard: Guard | None = None,
    fewest: int = 1,
) -> Continuation:
    """New notes between two points of a piece, in sight of both sides.

    Args:
        samples: what is to come of it.
        encoder: the feature extractor of the model.
        piece: the music with what stands in the gap.
        base: the music that stays.
        start_sec: where the gap begins.
        end_sec: where it ends.
        controls: what is asked of the new notes.
        processors: see [`NoteStream`].
        is_kept: which notes of `piece` are heard, bool, shape (num_notes,); by default all that begin outside the gap.
        guard: see `Samples.write`.
        fewest: see there.

    Raises:
        GenerationError: if it stays empty.
    """
    # As they sound in the piece, that is with its pedal; and divided where the piece is, before times are rounded.
    heard = piece.with_sustain()
    start_tick, end_tick = piece.sec_to_tick(np.array([start_sec, end_sec])).tolist()
    is_later = heard["onset_tick"] >= (end_tick if is_kept is None else start_tick)
    rows = samples.write(
        Until(start_sec, end_sec, (start_sec + end_sec) / 2),  # a gap may end in a rest, but not be one
        number=1,
        past=placed(encoder, heard.where(heard["onset_tick"] < start_tick)),
        given=placed(encoder, heard.where(is_later if is_kept is None else is_later & is_kept)),
        begin_sec=start_sec,
        controls=replace(controls, gap_end_sec=end_sec),
        processors=(not_sounding(held_keys(base)), *processors),
        guard=guard,
        fewest=fewest,
    )
    return added_to(base, rows[0], start_sec, end_sec)


def accompany_notes(
    model: Any,
    encoder: ContinuousNotesFeatureExtractor | NoteDurationTokenizer,
    part: Notes,
    side: str = "below",
    *,
    start_sec: float | None = None,
    end_sec: float | None = None,
    bars: Sequence[int] | None = None,
    pitches: Sequence[int] | None = None,
    chords: str | ChordTrack | None = None,
    num_samples: int = 1,
    seed: int | None = None,
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
    """Write a second part to a part that is given: a left hand to a melody, a melody to a left hand.

    An encoder-decoder (`configs/musicautobot-seq2seq.yaml`) hears the part on a grid of sixteenths, takes it for the
    melody where it writes below, and for all but the melody where it writes above.

    Args:
        model: a `NoteTransformerForCausalLM`, or an encoder-decoder.
        encoder: its feature extractor or tokenizer.
        part: what is given; its notes stay as they are.
        side: where the new notes lie, "below" or "above".
        start_sec: where the new part begins, in seconds; the beginning by default.
        end_sec: where it ends; the end by default.
        bars: first and last bar of it instead of seconds, counted from 1.
        pitches: lowest and highest pitch of new notes.
        chords: what new notes are written over, from its beginning on: text such as "Cm7 | Fm7 | G7 | Cm",
            a bar between two lines, repeated when it is over, or "prompt" for those of the given part. A pitch that
            does not belong to the chord becomes unlikely.
        num_samples: how many versions.
        seed: makes sampling repeatable.
        density: notes a second of the new part; by default what is usual beside as many as the given part has.
        register: see `asked`, also for the others; they are asked of the new notes.
        loudness: see there.
        key: see there; by default that of the given part, unless there are chords.
        kind: see there.
        guidance_scale: see there.
        on_progress: called with the share that is done, 0..1, never falling.
        on_message: called with remarks for the user.
        **generate_kwargs: temperature, top_p and all else that `Search` names.

    Returns:
        One `Continuation` per version: both parts, the new one alone on a track of its own, and where it begins.

    Raises:
        GenerationError: if the model can't be given notes, for a part without notes, for a passage outside of it, or a
            value that means nothing.
    """
    translates = objective_of(model) == PART_FROM_PART
    if not translates:
        check_takes_given(model)
    if side not in ("below", "above"):
        raise GenerationError(f"an accompaniment lies below or above, not {side!r}")
    if len(part) == 0:
        raise GenerationError("there is nothing to accompany: give a part with notes")
    wishes = asked(density, register, loudness, key, kind, guidance_scale)
    if translates:
        if not (start_sec is end_sec is bars is chords is None):
            raise GenerationError(f"{type(model).__name__} writes to all of a part: leave out the passage and chords")
        samples = Samples(model, num_samples, seed, on_progress)
        return translated(samples, encoder, part, side, wishes, pitches, generate_kwargs)
    assert isinstance(encoder, ContinuousNotesFeatureExtractor)
    given = placed(encoder, part)
    start, end = span_of(part, start_sec, end_sec, bars)
    is_passage = not (start_sec is end_sec is bars is None)
    if end_sec is None and bars is None:
        end = max(float((given[:, ONSET] + given[:, DURATION]).max()), end)
    keys = held_keys(part)
    is_heard = (given[:, ONSET] >= start) & (given[:, ONSET] < end)
    controls = _as_usual_beside(given[is_heard], side, end - start, has_chords=chords is not None)
    controls = replace(wishes, density=density or controls.density, key=wishes.key or controls.key)
    samples = Samples(model, num_samples, seed, on_progress, search_of(model, generate_kwargs))
    stream: dict[str, Any] = {"past": given[:0], "given": given, "begin_sec": start, "controls": controls}
    rows = samples.write(
        Until(start, end), processors=(beside(keys, side), *pitch_rules(part, start, pitches, chords)), **stream
    )
    track = new_track(part)
    base = with_track_name(part, track, "accompaniment")
    results = [added_to(base, each, start, end, track) for each in rows]
    return [replace(each, gap_end_sec=end if is_passage else math.inf) for each in results]


def _as_usual_beside(given: np.ndarray, side: str, seconds: float, has_chords: bool) -> Controls:
    """What a part is like beside another: how dense, and in which key unless chords say that.

    Args:
        given: notes of the other part in the passage, shape (num, 4).
        side: where the part lies, "below" or "above".
        seconds: length of the passage.
        has_chords: whether chords are asked for.
    """
    if len(given) == 0:
        return Controls()
    factor, exponent = USUAL_DENSITY[side]
    density = float(np.clip(factor * (len(given) / seconds) ** exponent, 0.5, 20.0))
    key = 0 if has_chords else int(control_values(given, given[:, ONSET])[KEY])
    return Controls(density=density, key=key or None)


def translated(
    samples: Samples,
    encoder: Any,
    part: Notes,
    side: str,
    controls: Controls,
    pitches: Sequence[int] | None,
    options: dict[str, Any],
) -> list[Continuation]:
    """A part with the other one that an encoder-decoder writes to it, on the tokenizer's grid.

    Args:
        samples: how many, by which model.
        encoder: its `NoteDurationTokenizer`.
        part: what is given: the melody, or all that goes with one.
        side: where the new part lies: "below" a melody, or "above" an accompaniment.
        controls: of which key and register can be asked.
        pitches: lowest and highest pitch of new notes.
        options: temperature, top_p and all else that `Search` names.

    Raises:
        GenerationError: if something else is asked, or a part stays empty.
    """
    assert isinstance(encoder, NoteDurationTokenizer)
    if replace(controls, key=None, register=None) != Controls():
        check_takes_given(samples.model)
    rules = token_rules(encoder, controls.key, controls.register, pitches)
    kind, name = (ACCOMPANIMENT, "accompaniment") if side == "below" else (MELODY, "melody")
    writer = PartWriter(samples.model, encoder, kind, rules, options)
    pitched, track = part.where(~part["is_drum"]), new_track(part)
    base, velocity = with_track_name(part, track, name), max(float(np.median(pitched["velocity"])), 1.0)
    ticks_per_step = part.ticks_per_quarter * encoder.time_step_sec / 0.5
    results = []
    for _ in range(samples.number):
        seed = int(torch.randint(2**62, (), generator=samples.generator))
        written = writer.write(pitched, seed, samples.progress)
        if not len(written):
            raise GenerationError("no new note is possible here: try another seed, or leave something out")
        onset, offset = (
            base.tick_to_sec(steps * ticks_per_step) for steps in (written[:, 0], written[:, [0, 2]].sum(1))
        )
        rows = np.stack([onset, written[:, 1], np.full(len(written), velocity), offset - onset], axis=1)
        results.append(added_to(base, rows, 0.0, part.end_sec, track))
        samples.finish()
    return results


def check_takes_given(model: Any) -> None:
    """Refuse models that hear nothing but what comes before.

    Raises:
        GenerationError: unless the model is a note transformer.
    """
    if objective_of(model) == PART_FROM_PART:
        raise GenerationError(
            f"{type(model).__name__} writes one part to another: it harmonises and accompanies, and can be asked "
            "for a key, a register and pitches; all else takes a note transformer (V8)"
        )
    if not takes_given(model):
        raise GenerationError(
            f"{type(model).__name__} hears only what comes before: this takes a note transformer (V8), such as the "
            "model that comes with the package; a gap can also be filled by a masked model (is_causal false)"
        )


def takes_given(model: Any) -> bool:
    """Whether a model writes notes among notes that are given."""
    return objective_of(model) == NOTE_AMONG_GIVEN
