"""Which part of a piece is meant: bars or seconds as a musician says them, as seconds from the beginning."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pianogen_hf.generation.new_notes import GenerationError
from pianogen_hf.tokenizers.notes import Notes

Span = tuple[float, float]


def bar_ticks(piece: Notes, until_tick: int | None = None) -> np.ndarray:
    """Where bars begin, int64, shape (num_bars + 1,): the last one is where the last bar ends.

    A bar lasts as its time signature says; 4/4 where none is given. A new signature begins a new bar.

    Args:
        piece: the music.
        until_tick: the last bar ends here or later; the end of the music by default.
    """
    until = max(piece.end_tick if until_tick is None else until_tick, 1)
    signatures = piece.time_signatures.tolist()
    if not signatures or signatures[0][0] > 0:
        signatures = [(0, 4, 4), *signatures]
    begins = [tick for tick, _, _ in signatures if tick < until]
    starts = []
    for (tick, numerator, denominator), stop in zip(signatures, [*begins[1:], until], strict=False):
        length = max(round(numerator * 4 / denominator * piece.ticks_per_quarter), 1)
        starts.append(np.arange(tick, stop, length, dtype=np.int64))
    ticks = np.concatenate(starts)
    return np.append(ticks, ticks[-1] + length)


def bars_sec(piece: Notes, first: int, last: int) -> Span:
    """From the beginning of one bar to the end of another, in seconds; bars are counted from 1.

    Raises:
        GenerationError: if the piece has not these bars.
    """
    ticks = bar_ticks(piece)
    num_bars = len(ticks) - 1
    if not 1 <= first <= last <= num_bars:
        raise GenerationError(
            f"bars {first} to {last} are not within the piece, which has {num_bars}: give the first and the last bar, "
            "counted from 1"
        )
    start, end = piece.tick_to_sec(ticks[[first - 1, last]]).tolist()
    return start, end


def bar_start_sec(piece: Notes, bar: int) -> float:
    """Where a bar begins, in seconds; also that of the bar after the last one."""
    ticks = bar_ticks(piece)
    if not 1 <= bar <= len(ticks):
        raise GenerationError(f"bar {bar} is not within the piece, which has {len(ticks) - 1}: bars are counted from 1")
    return float(piece.tick_to_sec(ticks[bar - 1]))


def span_of(
    piece: Notes, start_sec: float | None = None, end_sec: float | None = None, bars: Sequence[int] | None = None
) -> Span:
    """The passage that is meant: bars, or seconds, of which the beginning and the end of the piece are the defaults.

    Raises:
        GenerationError: if both are given, or the passage is not within the piece.
    """
    if bars is not None:
        if start_sec is not None or end_sec is not None:
            raise GenerationError("say a passage by seconds or by bars, not by both")
        start, end = bars_sec(piece, *_pair(bars, "bars", "9, 12"))
        return start, min(end, piece.end_sec)
    start = 0.0 if start_sec is None else start_sec
    end = piece.end_sec if end_sec is None else min(end_sec, piece.end_sec)
    if not 0 <= start < end:
        raise GenerationError(
            f"a gap from {start:g} to {end if end_sec is None else end_sec:g} s is not within the prompt's "
            f"{piece.end_sec:.1f} s: give a start and a later end"
        )
    return start, end


def spans_of(
    piece: Notes,
    start_sec: float | None = None,
    end_sec: float | None = None,
    bars: Sequence | None = None,
    gaps: Sequence[Sequence[float]] | None = None,
) -> list[Span]:
    """All passages that are meant, by time.

    Args:
        piece: the music.
        start_sec: of the only one, in seconds.
        end_sec: its end.
        bars: first and last bar, counted from 1, or a list of such pairs.
        gaps: pairs of seconds.

    Raises:
        GenerationError: as `span_of`, if two of them overlap, or if none is given.
    """
    if gaps is not None and start_sec is None and end_sec is None:
        spans = [span_of(piece, *_pair(gap, "gaps", "20.0, 28.0")) for gap in gaps]
    elif gaps is not None:
        raise GenerationError("say gaps by start and end, or as a list, not both")
    else:
        spans = []
    if bars is not None and len(bars) and not isinstance(bars[0], (int, np.integer)):
        spans += [span_of(piece, start_sec, end_sec, each) for each in bars]
    elif bars is not None or not spans:
        if start_sec is None and end_sec is None and bars is None:
            raise GenerationError("say what is to be written anew: seconds or bars")
        spans.append(span_of(piece, start_sec, end_sec, bars))
    spans.sort()
    for (_, end), (start, _) in zip(spans, spans[1:], strict=False):
        if start < end:
            raise GenerationError(f"two gaps overlap between {start:g} and {end:g} s: make one of them")
    return spans


def _pair(values: Sequence, name: str, example: str) -> tuple:
    if len(values) != 2:
        raise GenerationError(f"{name} are a first and a last one, such as ({example})")
    return tuple(values)
