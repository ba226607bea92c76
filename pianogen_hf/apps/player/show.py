"""The page of `pianogen show`: a piece as a roll, and beside it the tokens or rows that a model reads."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from pianogen_hf.apps.player.server import Gate, make_app, note_rows
from pianogen_hf.tokenizers.feature_extraction_continuous_notes import (
    DURATION,
    PITCH,
    TIME_SHIFT,
    VELOCITY,
    ContinuousNotesFeatureExtractor,
)
from pianogen_hf.tokenizers.notes import Notes
from pianogen_hf.tokenizers.notes_encoder import NotesEncoder
from pianogen_hf.tokenizers.tokenization_notes import NoteTokenizer

_PREFIXES = 1000  # of a piece that are decoded to see when their tokens are heard


def timed_tokens(encoder: NotesEncoder, notes: Notes) -> list[tuple[str, float]]:
    """Tokens, or rows of a feature extractor, as text, and when each is heard: at the onset of its note.

    The times of long pieces are found for some tokens; those of the others lie between.

    Raises:
        ValueError: if the scheme can't write the piece.
    """
    if isinstance(encoder, ContinuousNotesFeatureExtractor):
        return _timed_rows(encoder, notes)
    assert isinstance(encoder, NoteTokenizer)
    ids = np.asarray(encoder.encode_notes(notes))
    if not len(ids):
        return []
    places = np.unique(np.linspace(0, len(ids), min(len(ids), _PREFIXES) + 1).astype(int))[1:]
    prefixes = [encoder.decode_notes(ids[:place]) for place in places]
    # A token belongs to the note that the next tokens complete.
    sizes = np.array([len(each) for each in prefixes])
    completed = np.minimum(np.searchsorted(sizes, np.append(0, sizes)[:-1], side="right"), len(sizes) - 1)
    onsets = np.array([float(each.onset_sec.max()) if len(each) else 0.0 for each in prefixes])
    shift = _shift(encoder, ids, notes)
    seconds = np.interp(np.arange(1, len(ids) + 1), places, np.maximum.accumulate(onsets[completed]))
    names = encoder.convert_ids_to_tokens(ids.tolist())
    return [(str(name), round(float(second) + shift, 3)) for name, second in zip(names, seconds, strict=True)]


def _shift(encoder: NoteTokenizer, ids: np.ndarray, notes: Notes) -> float:
    """How much later the piece begins than what its tokens say, where a scheme drops the silence before it."""
    decoded = encoder.decode_notes(ids)
    if not len(decoded) or not len(notes) or "leading silence" not in encoder.lost_fields:
        return 0.0
    return float(notes.onset_sec.min() - decoded.onset_sec.min())


def _timed_rows(encoder: ContinuousNotesFeatureExtractor, notes: Notes) -> list[tuple[str, float]]:
    rows = encoder.encode_notes(notes)
    onset = np.cumsum(rows[:, TIME_SHIFT], dtype=np.float64)
    digits = max(math.ceil(math.log10(encoder.sampling_rate)), 0)
    return [
        (
            f"+{row[TIME_SHIFT]:.{digits}f} p{int(row[PITCH])} v{int(row[VELOCITY])} {row[DURATION]:.{digits}f}s",
            round(float(second), 3),
        )
        for row, second in zip(rows, onset, strict=True)
    ]


def show_app(gate: Gate, name: str, notes: Notes, encoder: NotesEncoder, host: str = "127.0.0.1") -> Starlette:
    """An application that shows a piece.

    Args:
        gate: who may come in.
        name: of the piece.
        notes: the piece.
        encoder: whose tokens stand beside it.
        host: where it is served.

    Raises:
        ValueError: if the scheme can't write the piece.
    """
    tokens = timed_tokens(encoder, notes)
    heard = notes if "pedal" in encoder.lost_fields else notes.with_sustain()
    what = "rows" if isinstance(encoder, ContinuousNotesFeatureExtractor) else "tokens"
    piece: dict[str, Any] = {
        "name": name,
        "facts": f"{type(encoder).__name__}: {len(tokens):,} {what} for {len(notes):,} notes",
        "notes": note_rows(heard),
        "tokens": tokens,
    }

    async def give(request: Request) -> Response:
        return JSONResponse(piece)

    return make_app(gate, "show.html", [Route("/piece.json", gate.guarded(give))], host)
