"""Filling a gap: the music between two points of a piece is written anew by a model that sees both sides of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from pianogen_hf.generation.new_notes import Continuation, GenerationError, Length, NewNotes
from pianogen_hf.generation.note_stream import Controls
from pianogen_hf.generation.note_verbs import Samples, asked, check_takes_given, fill_gap, takes_given
from pianogen_hf.generation.processors import warped
from pianogen_hf.generation.refill_writer import RefillWriter
from pianogen_hf.generation.writer import sampling_options
from pianogen_hf.models.objectives import ANY_ORDER, objective_of
from pianogen_hf.tokenizers.feature_extraction_continuous_notes import ContinuousNotesFeatureExtractor
from pianogen_hf.tokenizers.notes import PEDAL_DOWN, PEDAL_DTYPE, Notes
from pianogen_hf.tokenizers.notes_encoder import NotesEncoder
from pianogen_hf.tokenizers.tokenization_notes import NoteTokenizer


def fill_notes(
    model: Any,
    tokenizer: NotesEncoder,
    piece: Notes,
    start_sec: float,
    end_sec: float,
    *,
    num_samples: int = 1,
    seed: int | None = None,
    density: float | None = None,
    register: float | None = None,
    loudness: float | None = None,
    key: str | None = None,
    kind: str | None = None,
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
        num_samples: how many versions.
        seed: makes sampling repeatable.
        density: notes per second. It and the next four are asked of a note transformer (V8) alone; see `asked`.
        register: mean pitch.
        loudness: mean velocity.
        key: such as "C minor".
        kind: "classical", "jazz" or "score".
        on_progress: called with the share that is done, 0..1, never falling.
        on_message: called with remarks for the user.
        **generate_kwargs: temperature, top_p.

    Returns:
        One `Continuation` per version, none of them without a new note: the whole piece, the new notes alone, and where
        the gap begins and ends.

    Raises:
        GenerationError: if the model does not see both sides, if the gap lies outside the piece, if the piece can't be
            tokenized, or if the model stands still.
    """
    controls = asked(density, register, loudness, key, kind)
    if objective_of(model) != ANY_ORDER or controls != Controls():
        check_takes_given(model)
    if not 0 <= start_sec < min(end_sec, piece.end_sec):
        raise GenerationError(
            f"a gap from {start_sec:g} to {end_sec:g} s is not within the prompt's {piece.end_sec:.1f} s: give a start "
            "and a later end"
        )
    end_sec = min(end_sec, piece.end_sec)
    start_tick, end_tick = piece.sec_to_tick(np.array([start_sec, end_sec])).tolist()
    is_kept = (piece["onset_tick"] < start_tick) | (piece["onset_tick"] >= end_tick)
    base = replace(piece.where(is_kept), pedals=_pedals_outside(piece.pedals, start_tick, end_tick))
    if takes_given(model):
        assert isinstance(tokenizer, ContinuousNotesFeatureExtractor)
        samples = Samples(model, num_samples, seed, on_progress)
        processors = (warped(**sampling_options(model, generate_kwargs)),)
        results = fill_gap(samples, tokenizer, piece, base, start_sec, end_sec, controls, processors)
        return [replace(each, gap_end_sec=end_sec) for each in results]
    assert isinstance(tokenizer, NoteTokenizer)
    before, after, gap_size = _sides(tokenizer, piece, start_tick, end_tick)
    if seed is not None:
        torch.manual_seed(seed)
    length = Length(seconds=float(np.diff(piece.tick_to_sec(np.array([start_tick, max(end_tick, start_tick + 1)])))[0]))
    music = _GapNotes(tokenizer, base, start_tick, before, length)
    writer = RefillWriter(model, music, on_progress, on_message, generate_kwargs, after=after, gap_size=gap_size)
    return [replace(music.result(ids), gap_end_sec=end_sec) for ids in writer.write(num_samples)]


class _GapNotes(NewNotes):
    """What ids add to the music before a gap.

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
    """Ids before the gap, ids after it, and how many stand between them.

    What stands after it is what the whole piece's ids have that those of the music up to there have not.
    """
    heard = piece if "pedal" in tokenizer.lost_fields else piece.with_sustain()
    table = heard.table.copy()
    in_gap = (table["onset_tick"] >= start_tick) & (table["onset_tick"] < end_tick)
    # What stood in the gap would otherwise be heard after it, where it rang on.
    table["duration_tick"][in_gap] = np.minimum(table["duration_tick"], end_tick - table["onset_tick"])[in_gap]
    heard = replace(heard, table=table)
    try:
        whole = np.array(tokenizer.encode_piece(heard), dtype=np.int64)
        before, until = (tokenizer.encode_prompt(_cut(heard, tick)) for tick in (start_tick, end_tick))
    except ValueError as error:
        raise GenerationError(f"the prompt can't be tokenized: {error}") from error
    shortest = min(len(whole), len(until))
    differs = np.flatnonzero(whole[:shortest] != np.array(until[:shortest]))
    common = int(differs[0]) if len(differs) else shortest
    common = max(common - 1, 0) // tokenizer.tokens_per_step * tokenizer.tokens_per_step + 1
    return before, whole[common:], max(common - len(before), 0)


def _cut(notes: Notes, tick: int) -> Notes:
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
