"""What a model sees of a piece: its bars and notes, and the tokens or rows that they become."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from pianogen_hf import BUNDLED_MODEL
from pianogen_hf.errors import ArgumentError
from pianogen_hf.generation.filling import cut_notes
from pianogen_hf.generation.passages import bar_ticks, bars_sec
from pianogen_hf.rendering.explained import ExplainedBar, roll_lines, save_explained, wrapped
from pianogen_hf.tokenizers.feature_extraction_continuous_notes import (
    DURATION,
    PITCH,
    TIME_SHIFT,
    VELOCITY,
    ContinuousNotesFeatureExtractor,
)
from pianogen_hf.tokenizers.midi import PIANO_PROGRAMS, read_midi
from pianogen_hf.tokenizers.notes import Notes
from pianogen_hf.tokenizers.notes_encoder import NotesEncoder
from pianogen_hf.tokenizers.tokenization_notes import NoteTokenizer
from pianogen_hf.workflows.loading import load_encoder

_USUAL_BARS = 4
_LINE = 100  # characters of a line of tokens
_NAMES = ("C", "C#", "D", "Eb", "E", "F", "F#", "G", "Ab", "A", "Bb", "B")


def explain(
    path: str,
    bars: Sequence[int] | None = None,
    picture: Path | None = None,
    *,
    model: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    programs: str = "piano",
) -> None:
    """Print bars of a piece as a model sees them, and draw them.

    Args:
        path: a MIDI file.
        bars: first and last bar, counted from 1; the first four by default.
        picture: PNG to write, too.
        model: folder or Hub id; None for the bundled one.
        revision: branch, tag or commit of a model on the Hub.
        trust_remote_code: whether to run code that the model carries.
        programs: instruments of the file to read, "piano" or "all".

    Raises:
        ArgumentError, GenerationError, MidiError: for what a user can mend.
    """
    notes = read_midi(path, PIANO_PROGRAMS if programs == "piano" else None)
    if not len(notes):
        raise ArgumentError(f"{path} has no notes to explain: give a file with piano notes, or --programs all")
    encoder = load_encoder(model or BUNDLED_MODEL, revision, trust_remote_code)
    num_bars = len(bar_ticks(notes)) - 1
    first, last = bars or (1, min(_USUAL_BARS, num_bars))
    bars_sec(notes, first, last)  # refuses what is not there
    explained = explained_bars(encoder, notes, first, last)
    steps = encoder.encode_prompt(notes)
    word = "tokens" if isinstance(encoder, NoteTokenizer) else "rows"
    print(
        f"{path}: {len(notes)} notes, {num_bars} bars, {notes.end_sec:.1f} s. {type(encoder).__name__} makes "
        f"{len(steps):,} {word} of it, {len(steps) / len(notes):.1f} a note"
    )
    for bar in explained:
        print(f"\nbar {bar.number} · {bar.start_sec:.2f} to {bar.end_sec:.2f} s · {len(bar.notes)} notes begin")
        print("\n".join(roll_lines(bar)))
        print("\n".join(wrapped(bar.steps, _LINE)))
    if picture is not None:
        print(f"\n{save_explained(explained, picture, f'{Path(path).stem} as {type(encoder).__name__} has it')}")


def explained_bars(encoder: NotesEncoder, notes: Notes, first: int, last: int) -> list[ExplainedBar]:
    """Bars with what they become.

    Tokens of a bar are those that the music up to its end has more than that up to its beginning.

    Args:
        encoder: of the model.
        notes: the whole piece.
        first: number of the first bar, from 1.
        last: number of the last one.

    Raises:
        ArgumentError: if the piece can't be encoded.
    """
    ticks = bar_ticks(notes)
    seconds = notes.tick_to_sec(ticks)
    words = _words_until(encoder, notes, ticks[first - 1 : last + 1])
    heard = notes if "pedal" in encoder.lost_fields else notes.with_sustain()
    explained = []
    for number in range(first, last + 1):
        begin, end = ticks[number - 1], ticks[number]
        sounding = heard.where((heard["onset_tick"] < end) & (heard.offset_tick > begin))
        starting = notes.where((notes["onset_tick"] >= begin) & (notes["onset_tick"] < end))
        span = float(seconds[number - 1]), float(seconds[number])
        explained.append(ExplainedBar(number, *span, starting, sounding, words[number - first]))
    return explained


def _words_until(encoder: NotesEncoder, notes: Notes, ticks: np.ndarray) -> list[list[str]]:
    """Tokens or rows, in words, between each two of these ticks."""
    if isinstance(encoder, ContinuousNotesFeatureExtractor):
        rows = encoder.encode_notes(notes)
        half_step = 0.5 / encoder.sampling_rate + 1e-6  # onsets were rounded
        onset = notes.sec_to_tick(np.cumsum(rows[:, TIME_SHIFT], dtype=np.float64) + half_step)
        places = np.searchsorted(onset, ticks)
        return [[_row(row) for row in rows[start:end]] for start, end in pairwise(places)]
    assert isinstance(encoder, NoteTokenizer)
    heard = notes if "pedal" in encoder.lost_fields else notes.with_sustain()
    try:
        whole = encoder.encode_prompt(heard)
        parts = [encoder.encode_prompt(cut_notes(heard, int(tick))) for tick in ticks]
    except ValueError as error:
        raise ArgumentError(f"the piece can't be tokenized: {error}") from error
    shared = [_common(whole, part) for part in parts]
    shared[0] = 0 if ticks[0] == 0 else shared[0]  # the beginning of a piece is shown with its first bar
    shared[-1] = len(whole) if ticks[-1] >= heard.end_tick else shared[-1]
    names = encoder.convert_ids_to_tokens(list(whole))
    return [names[start:end] for start, end in pairwise(shared)]


def _common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens two beginnings share."""
    return next(
        (index for index, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


def _row(row: np.ndarray) -> str:
    pitch = int(row[PITCH])
    name = f"{_NAMES[pitch % 12]}{pitch // 12 - 1}"
    return f"+{row[TIME_SHIFT]:.2f}s {name} v{int(row[VELOCITY])} {row[DURATION]:.2f}s;"
