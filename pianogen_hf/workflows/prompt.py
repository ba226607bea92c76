"""The piece that a verb works on: read, and its passage found, before anything heavy is loaded."""

from __future__ import annotations

from collections.abc import Sequence

from pianogen_hf.errors import ArgumentError
from pianogen_hf.generation.passages import bar_start_sec, spans_of
from pianogen_hf.tokenizers.midi import PIANO_PROGRAMS, read_midi
from pianogen_hf.tokenizers.notes import Notes


def read_prompt(path: str, programs: str) -> Notes:
    """Notes of a MIDI file.

    Args:
        path: the file.
        programs: instruments to read, "piano" or "all".

    Raises:
        MidiError: if it can't be read. ArgumentError: if it has no notes that can be used.
    """
    notes = read_midi(path, PIANO_PROGRAMS if programs == "piano" else None)
    if len(notes) == 0:
        raise ArgumentError(f"{path} has {_why_empty(notes)}")
    return notes


def check_passage(
    piece: Notes,
    *,
    gaps: Sequence[Sequence[float]] | None = None,
    bars: Sequence[Sequence[int]] | Sequence[int] | None = None,
    from_seconds: float | None = None,
    from_bar: int | None = None,
) -> None:
    """Refuse a passage that is not within a piece.

    Args:
        piece: the music.
        gaps: pairs of seconds.
        bars: first and last bar, counted from 1, or a list of such pairs.
        from_seconds: where a passage begins.
        from_bar: the same by a bar.

    Raises:
        GenerationError: if it is not.
    """
    if gaps or bars:
        spans_of(piece, gaps=gaps, bars=bars)
    if from_bar is not None:
        bar_start_sec(piece, from_bar)
    if from_seconds is not None and not 0 <= from_seconds <= piece.end_sec:
        raise ArgumentError(f"{from_seconds:g} s is not within the prompt's {piece.end_sec:.1f} s")


def _why_empty(notes: Notes) -> str:
    """What a file without usable notes has, and what helps; `--programs all` is no help against drums."""
    others, drums = (notes.remarks.get(name, 0) for name in ("notes of other instruments", "drum notes"))
    if others:
        return f"only other instruments ({others} notes): give a prompt with piano notes, or --programs all"
    why = f"only drums ({drums} notes)" if drums else "no notes"
    return f"{why}: give a prompt with notes of a piano"
