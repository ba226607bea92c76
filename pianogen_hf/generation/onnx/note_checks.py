"""Whether an exported note transformer (V8) does what the model itself does."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from pianogen_hf.generation.drawing import draw
from pianogen_hf.generation.onnx.builder import ExportError
from pianogen_hf.generation.onnx.note_engine import OnnxNoteEngine
from pianogen_hf.models.modeling_note_transformer import (
    END_CLASS,
    NUM_PITCHES,
    PITCH,
    TIME_SHIFT,
    NotePlaces,
    NoteTransformerForCausalLM,
)

_CHECKED = 600  # notes that must be the same
_NEAR = 1e-3  # difference of two logits that rounding may turn over
_NUM_SAMPLES = 4

DrawClass = Callable[[int, np.ndarray], int]


def likely_notes(engine: OnnxNoteEngine) -> list[np.ndarray]:
    """Rows that the model finds likely, shape (length, 4), each of its context's length."""
    number = engine.config.max_position_embeddings - 1
    begin = np.array([[0, engine.config.bos_token_id or NUM_PITCHES, 0, 0]], np.float32)

    def draw_class(column: int, logits: np.ndarray) -> int:
        return int(draw(_without_end(column, logits))[0])

    return [_written(engine, begin, number, draw_class) for _ in range(_NUM_SAMPLES)]


def check_greedy_notes(engine: OnnxNoteEngine, model: NoteTransformerForCausalLM, prompt: np.ndarray) -> str:
    """Let the engine continue a prompt greedily and ask the torch model for each choice.

    Args:
        engine: the exported model.
        model: the model itself.
        prompt: rows, of which the first quarter is the prompt.

    Returns:
        What was found.

    Raises:
        ExportError: if torch chooses another class of some field, and not for a tie.
    """
    given = prompt[: max(len(prompt) // 4, 1)]
    chosen: list[int] = []

    def likeliest(column: int, logits: np.ndarray) -> int:
        chosen.append(int(_without_end(column, logits)[0].argmax()))
        return chosen[-1]

    rows = torch.from_numpy(_written(engine, given, _CHECKED, likeliest))
    classes = torch.tensor(chosen).view(-1, 4)
    behind: list[torch.Tensor] = []  # by how much each choice is less likely than torch's

    def follow(column: int, logits: torch.Tensor) -> torch.Tensor:
        logits = _without_end(column, logits)
        behind.append(logits.amax(-1) - logits.gather(-1, classes[:, column, None])[:, 0])
        return classes[:, column]

    places = NotePlaces.of(rows[None, :-1], None, model.config)
    before, recent = (each[0, len(given) - 1 :] for each in (places.written_pitch, places.recent_offsets))
    with torch.inference_mode():
        hidden_states = model.model(rows[None, :-1], use_cache=False).last_hidden_state[0, len(given) - 1 :]
        drawn = model.heads.sample(hidden_states, before, recent, follow)
    differs = (torch.stack(behind, -1) > _NEAR).any(-1) | (drawn != rows[len(given) :]).any(-1)
    if bool(differs.any()):
        place = int(differs.nonzero()[0])
        raise ExportError(f"greedy notes differ from torch's from note {place + 1} on: nothing was written")
    equal = int((torch.stack(behind, -1) == 0).all(-1).sum())
    return f"{equal:,} of {_CHECKED:,} greedy notes equal torch's" + (", the others are ties" * (equal < _CHECKED))


def total_note_nats(
    hidden_states_of: Callable[[np.ndarray], torch.Tensor], model: NoteTransformerForCausalLM, pieces: list[np.ndarray]
) -> float:
    """Cost of rows, the first of each piece given, in windows of the model's context.

    Args:
        hidden_states_of: gives the hidden states of written rows, shape (length, hidden_size).
        model: whose heads are asked.
        pieces: rows, each of shape (length, 4).
    """
    total, size = 0.0, model.config.max_position_embeddings - 1
    for rows in tqdm(pieces, desc="Measuring", unit="piece", leave=False, disable=None):
        for begin in range(0, len(rows) - 1, size):
            window = rows[begin : begin + size + 1].astype(np.float32)
            targets = torch.from_numpy(window)[None]
            places = NotePlaces.of(targets, None, model.config)
            with torch.inference_mode():
                hidden_states = hidden_states_of(window[:-1])[None]
                nats, _ = model.heads.nats(
                    hidden_states, targets[:, 1:], places.written_pitch[:, :-1], places.recent_offsets[:, :-1]
                )
                nats[targets[:, 1:, PITCH] >= NUM_PITCHES, TIME_SHIFT + 1 :] = 0  # an end has no other field
            total += float(nats.double().sum())
    return total


def engine_states(engine: OnnxNoteEngine, rows: np.ndarray) -> torch.Tensor:
    """Hidden states of written rows of which nothing is asked, shape (length, hidden_size)."""
    is_given, control_ids = _nothing_asked(engine, len(rows))
    return torch.from_numpy(engine.hidden_states(engine.new_cache(len(rows)), rows, is_given, control_ids))


def _written(engine: OnnxNoteEngine, prompt: np.ndarray, number: int, draw_class: DrawClass) -> np.ndarray:
    """A prompt and so many new rows, within one cache."""
    cache, rows = engine.new_cache(len(prompt) + number), list(prompt)
    hidden_states = engine.read(cache, prompt, *_nothing_asked(engine, len(prompt)))
    while True:
        latest = torch.from_numpy(np.stack(rows[-max(engine.config.num_recent_offsets, 1) :]))[None]
        places = NotePlaces.of(latest, None, engine.config)
        before, recent = int(places.written_pitch[0, -1]), places.recent_offsets[0, -1].numpy()
        rows.append(engine.draw_note(hidden_states, before, recent, draw_class))
        if len(rows) == len(prompt) + number:
            return np.stack(rows)
        hidden_states = engine.read(cache, rows[-1][None], *_nothing_asked(engine, 1))


def _nothing_asked(engine: OnnxNoteEngine, length: int) -> tuple[np.ndarray, np.ndarray]:
    """Roles and controls of written rows of which nothing is asked."""
    return np.zeros(length, bool), np.zeros((length, len(engine.config.control_sizes)), np.int64)


def _without_end(column: int, logits: Any) -> Any:
    return logits[:, :END_CLASS] if column == TIME_SHIFT else logits
