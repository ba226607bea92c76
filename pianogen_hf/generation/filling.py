"""Filling a gap: the music between two points of a piece is written anew by a model that sees both sides of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from pianogen_hf.generation.chords import ChordTrack, chords_of
from pianogen_hf.generation.new_notes import Continuation, GenerationError, Length, NewNotes
from pianogen_hf.generation.note_stream import Controls
from pianogen_hf.generation.note_verbs import (
    GUIDANCE_SCALE,
    Samples,
    asked,
    check_takes_given,
    fill_gap,
    takes_given,
)
from pianogen_hf.generation.passages import spans_of
from pianogen_hf.generation.refill_writer import RefillWriter
from pianogen_hf.generation.rules import OF_THE_PROMPT, checked_pitches, pitch_rules
from pianogen_hf.generation.search import search_of
from pianogen_hf.models.objectives import ANY_ORDER, objective_of
from pianogen_hf.tokenizers.feature_extraction_continuous_notes import ContinuousNotesFeatureExtractor
from pianogen_hf.tokenizers.notes import PEDAL_DOWN, PEDAL_DTYPE, Notes
from pianogen_hf.tokenizers.notes_encoder import NotesEncoder
from pianogen_hf.tokenizers.tokenization_notes import NoteTokenizer


def fill_notes(
    model: Any,
    tokenizer: NotesEncoder,
    piece: Notes,
    start_sec: float | None = None,
    end_sec: float | None = None,
    *,
    bars: Sequence | None = None,
    gaps: Sequence[Sequence[float]] | None = None,
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
    """Write anew what begins between two points of a piece.

    Every note that begins before or after stays as it is; one that reaches into the gap rings on. New notes end with
    the gap. Pedal events within the gap go with the notes that they held.

    Args:
        model: a `NoteTransformerForCausalLM` or a `PianoEncoderForMaskedLM`.
        tokenizer: its feature extractor or tokenizer.
        piece: the music.
        start_sec: where the gap begins, in seconds.
        end_sec: where it ends; the end of the piece, if that comes first.
        bars: the gap in bars instead, the first and the last one, counted from 1; or a list of such pairs.
        gaps: several gaps instead, as pairs of seconds. What stood in any of them is not heard.
        pitches: lowest and highest pitch of what is written anew; other notes of the gap stay, and so does its pedal
            (V8 alone).
        chords: what the gap is written over (V8): text such as "Cm7 | Fm7 | G7 | Cm", a bar between two lines, from
            where each gap begins; or "prompt" for those of the piece as it was.
        num_samples: how many versions.
        seed: makes sampling repeatable.
        density: notes per second. It and the next four are asked of a note transformer (V8) alone; see `asked`.
        register: mean pitch.
        loudness: mean velocity.
        key: such as "C minor".
        kind: "classical", "jazz" or "score".
        guidance_scale: how much is made of what is asked (V8); see `asked`.
        on_progress: called with the share that is done, 0..1, never falling.
        on_message: called with remarks for the user.
        **generate_kwargs: temperature, top_p and, for V8, all else that `Search` names.

    Returns:
        One `Continuation` per version, none of them without a new note: the whole piece, the new notes alone, and where
        the first gap begins and the last one ends.

    Raises:
        GenerationError: if the model does not see both sides, if a gap lies outside the piece or over another one, if
            the piece can't be tokenized, or if the model stands still.
    """
    controls = asked(density, register, loudness, key, kind, guidance_scale)
    is_asked = controls != Controls() or guidance_scale != GUIDANCE_SCALE
    if objective_of(model) != ANY_ORDER or is_asked or pitches is not None or chords is not None:
        check_takes_given(model)
    spans = spans_of(piece, start_sec, end_sec, bars, gaps)
    low, high = checked_pitches(pitches)
    write: Callable[[Notes, Gap, int], list[Continuation]]
    if takes_given(model):
        assert isinstance(tokenizer, ContinuousNotesFeatureExtractor)
        search, total = search_of(model, generate_kwargs), num_samples * len(spans)
        extractor, samples = tokenizer, Samples(model, total, seed, on_progress, search)
        changes = chords_of(piece) if chords == OF_THE_PROMPT else chords

        def write(music: Notes, gap: Gap, number: int) -> list[Continuation]:
            begin_sec = 0.0 if chords == OF_THE_PROMPT else gap.start_sec
            rules = pitch_rules(piece, begin_sec, (low, high), changes)
            arguments = (music, gap.base, gap.start_sec, gap.end_sec, controls, rules, gap.is_kept)
            return [fill_gap(samples, extractor, *arguments) for _ in range(number)]
    else:
        assert isinstance(tokenizer, NoteTokenizer)
        if seed is not None:
            torch.manual_seed(seed)
        refill = _Refill(model, tokenizer, num_samples * len(spans), on_progress, on_message, generate_kwargs)
        write = refill.write
    if len(spans) == 1:
        results = write(piece, Gap.of(piece, *spans[0], low, high), num_samples)
    else:
        results = [_filled(piece, [(*span, low, high) for span in spans], write) for _ in range(num_samples)]
    return [replace(each, gap_end_sec=spans[-1][1]) for each in results]


@dataclass(frozen=True)
class Gap:
    """What of a piece stays.

    Attributes:
        start_sec: where the gap begins.
        end_sec: where it ends.
        is_kept: which notes of the piece stay, bool, shape (num_notes,).
        base: the piece without the others.
    """

    start_sec: float
    end_sec: float
    is_kept: np.ndarray
    base: Notes

    @classmethod
    def of(cls, piece: Notes, start_sec: float, end_sec: float, low: int = 0, high: int = 127) -> Gap:
        """A gap in which all notes from `low` to `high` are written anew."""
        start_tick, end_tick = piece.sec_to_tick(np.array([start_sec, end_sec])).tolist()
        in_gap = (piece["onset_tick"] >= start_tick) & (piece["onset_tick"] < end_tick)
        return cls.without(piece, start_sec, end_sec, in_gap & (piece["pitch"] >= low) & (piece["pitch"] <= high))

    @classmethod
    def without(cls, piece: Notes, start_sec: float, end_sec: float, is_new: np.ndarray) -> Gap:
        """A gap in which some notes are written anew; where others stay in it, its pedal does, too."""
        start_tick, end_tick = piece.sec_to_tick(np.array([start_sec, end_sec])).tolist()
        in_gap = (piece["onset_tick"] >= start_tick) & (piece["onset_tick"] < end_tick)
        stays = bool((in_gap & ~is_new).any())
        pedals = piece.pedals if stays else _pedals_outside(piece.pedals, start_tick, end_tick)
        return cls(start_sec, end_sec, ~is_new, replace(piece.where(~is_new), pedals=pedals))


def _filled(
    piece: Notes,
    spans: Sequence[tuple[float, float, int, int]],
    write: Callable[[Notes, Gap, int], list[Continuation]],
) -> Continuation:
    """One version of several gaps, one after the other; what stood in those to come is not heard."""
    gaps = [Gap.of(piece, *span) for span in spans]
    music, new = piece.where(np.logical_and.reduce([gap.is_kept for gap in gaps])), []
    for span, gap in zip(spans, gaps, strict=True):
        # How much stood in this gap tells a masked model how much to write.
        whole = replace(music, table=np.concatenate([music.table, piece.table[~gap.is_kept]]))
        result = write(whole, Gap.of(whole, *span), 1)[0]
        music = result.notes
        new.append(result.new.table)
    return Continuation(
        music,
        replace(music, table=np.concatenate(new), pedals=music.pedals[:0], other_pedals=music.other_pedals[:0]),
        spans[0][0],
    )


class _Refill:
    """Writes gaps with a masked model.

    Args:
        model: a `PianoEncoderForMaskedLM`.
        tokenizer: its tokenizer.
        total: samples and gaps together, for the progress.
        on_progress: see `fill_notes`.
        on_message: see there.
        options: see there.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: NoteTokenizer,
        total: int,
        on_progress: Callable[[float], None] | None,
        on_message: Callable[[str], None] | None,
        options: dict[str, Any],
    ) -> None:
        self.model, self.tokenizer, self.total = model, tokenizer, total
        self.on_progress, self.on_message, self.options = on_progress, on_message, options
        self._done = 0

    def write(self, piece: Notes, gap: Gap, number: int) -> list[Continuation]:
        """That many versions of one gap."""
        start_tick, end_tick = piece.sec_to_tick(np.array([gap.start_sec, gap.end_sec])).tolist()
        before, after, gap_size = _sides(self.tokenizer, piece, start_tick, end_tick)
        ticks = np.array([start_tick, max(end_tick, start_tick + 1)])
        length = Length(seconds=float(np.diff(piece.tick_to_sec(ticks))[0]))
        music = _GapNotes(self.tokenizer, gap.base, start_tick, before, length)
        arguments = (self.model, music, self._progress(number), self.on_message, self.options)
        writer = RefillWriter(*arguments, after=after, gap_size=gap_size)
        results = [music.result(ids) for ids in writer.write(number)]
        self._done += number
        if self.on_progress is not None:  # a gap may be full before its last second
            self.on_progress(self._done / self.total)
        return results

    def _progress(self, number: int) -> Callable[[float], None] | None:
        if self.on_progress is None:
            return None
        on_progress, done = self.on_progress, self._done
        return lambda share: on_progress((done + share * number) / self.total)


class _GapNotes(NewNotes):
    """What tokens add to the music before a gap.

    Differs from its parent: the prompt's last notes may reach into the gap or end before it, so its onsets tell where
    decoded music lies in time; and nothing prolongs a note, since all that were there ring on as they are.
    """

    prolongs = False

    def _decoded_shift(self) -> float:
        onset = self.base["onset_tick"][self.base["onset_tick"] < self.start_tick]
        if len(onset) == 0 or len(self._prompt_onsets) == 0:
            return self._start if "leading silence" in self.encoder.lost_fields else 0.0
        last = self._in_units(int(onset.max()))
        shift = last - float(self._prompt_onsets.max())
        return 0.0 if abs(shift) <= self._slack else shift

    def _earliest(self) -> float:
        return self._start - self._shift - 1e-6


def _sides(tokenizer: NoteTokenizer, piece: Notes, start_tick: int, end_tick: int) -> tuple[list[int], np.ndarray, int]:
    """Tokens before the gap, tokens after it, and how many stand between them.

    What stands after it is what the whole piece's tokens have that those of the music up to there have not.
    """
    heard = piece if "pedal" in tokenizer.lost_fields else piece.with_sustain()
    table = heard.table.copy()
    in_gap = (table["onset_tick"] >= start_tick) & (table["onset_tick"] < end_tick)
    # What stood in the gap would otherwise be heard after it, where it rang on.
    table["duration_tick"][in_gap] = np.minimum(table["duration_tick"], end_tick - table["onset_tick"])[in_gap]
    heard = replace(heard, table=table)
    try:
        whole = np.array(tokenizer.encode_piece(heard), dtype=np.int64)
        before, until = (tokenizer.encode_prompt(cut_notes(heard, tick)) for tick in (start_tick, end_tick))
    except ValueError as error:
        raise GenerationError(f"the prompt can't be tokenized: {error}") from error
    shortest = min(len(whole), len(until))
    differs = np.flatnonzero(whole[:shortest] != np.array(until[:shortest]))
    common = int(differs[0]) if len(differs) else shortest
    common = max(common - 1, 0) // tokenizer.tokens_per_step * tokenizer.tokens_per_step + 1
    return before, whole[common:], max(common - len(before), 0)


def cut_notes(notes: Notes, tick: int) -> Notes:
    """What begins before a tick, ending there at the latest; without pedal."""
    table = notes.table[notes["onset_tick"] < tick].copy()
    table["duration_tick"] = np.minimum(table["duration_tick"], tick - table["onset_tick"])
    return replace(notes, table=table, pedals=notes.pedals[:0])


def _pedals_outside(pedals: np.ndarray, start_tick: int, end_tick: int) -> np.ndarray:
    """Pedal events outside the gap; it is up within, and as it was at the gap's end from there on."""
    outside = (pedals["tick"] < start_tick) | (pedals["tick"] >= end_tick)
    added = []
    for channel in np.unique(pedals["channel"]).tolist():
        own = pedals[pedals["channel"] == channel]
        for tick, limit in ((start_tick, start_tick), (end_tick, end_tick)):
            values = own["value"][own["tick"] < limit]
            if len(values) and values[-1] >= PEDAL_DOWN:
                added.append((tick, 0 if tick == start_tick else int(values[-1]), channel))
    return np.concatenate([np.array(added, dtype=PEDAL_DTYPE), pedals[outside]])
