"""Whether an exported midi-model does what the model itself does."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from pianogen_hf.generation.onnx.builder import ExportError
from pianogen_hf.generation.onnx.event_engine import OnnxEventEngine
from pianogen_hf.models.event_generation import EventGrammar
from pianogen_hf.models.modeling_midi_event import MidiEventForCausalLM

_CHECKED = 200  # events that must be the same
_NEAR = 1e-3  # difference of two logits that rounding may turn over
_NUM_SAMPLES = 4

# Logits of the ids of rows 1, 2, ..., of shape (length - 1, ids_per_row, vocab_size), given rows 0, 1, ...
LogitsOf = Callable[[np.ndarray], torch.Tensor]


def likely_events(engine: OnnxEventEngine) -> list[np.ndarray]:
    """Rows that the model finds likely, shape (length, ids_per_row), none of which ends a piece."""
    length = min(engine.config.max_position_embeddings, _CHECKED) - 1
    rows = engine.generate(
        max_new_tokens=length, min_new_tokens=length, top_p=1.0, top_k=None, num_return_sequences=_NUM_SAMPLES
    )
    return list(rows.numpy())


def check_greedy_events(engine: OnnxEventEngine, model: MidiEventForCausalLM, prompt: np.ndarray) -> str:
    """Let the engine continue a prompt greedily and ask the torch model for each choice.

    Args:
        engine: the exported model.
        model: the model itself.
        prompt: rows, of which the first quarter is the prompt.

    Returns:
        What was found.

    Raises:
        ExportError: if torch chooses another id, and not for a tie.
    """
    given = torch.from_numpy(prompt[None, : max(len(prompt) // 4, 1)])
    number = min(_CHECKED, model.config.max_position_embeddings - given.shape[1])
    rows = engine.generate(given, max_new_tokens=number, min_new_tokens=number, do_sample=False)[0]
    with torch.inference_mode():
        logits = model(rows[None], use_cache=False).logits[0, given.shape[1] - 1 :].float()
    written, grammar = rows[given.shape[1] :], EventGrammar(model.config, (), rows.device)
    behind = torch.zeros(written.shape)
    for place in range(written.shape[1]):
        likely = logits[:, place].masked_fill(~grammar.allowed(written, place, allow_end=False), -torch.inf)
        behind[:, place] = likely.amax(-1) - likely.gather(-1, written[:, place, None])[:, 0]
    differs = (behind > _NEAR).any(-1)
    if bool(differs.any()):
        place = int(differs.nonzero()[0])
        raise ExportError(f"greedy events differ from torch's from event {place + 1} on: nothing was written")
    equal = int((behind == 0).all(-1).sum())
    return f"{equal:,} of {number:,} greedy events equal torch's" + (", the others are ties" * (equal < number))


def engine_logits(engine: OnnxEventEngine, rows: np.ndarray) -> torch.Tensor:
    """What `LogitsOf` says, by the engine."""
    hidden_states = engine.hidden_states(rows[None, :-1])[0]
    return torch.from_numpy(engine.row_logits(hidden_states, rows[1:]))


def torch_logits(model: MidiEventForCausalLM, rows: np.ndarray) -> torch.Tensor:
    """What `LogitsOf` says, by the model itself."""
    with torch.inference_mode():
        return model(torch.from_numpy(rows)[None], use_cache=False).logits[0].float()


def total_event_nats(logits_of: LogitsOf, context: int, pieces: list[np.ndarray]) -> float:
    """Cost of rows, the first of each piece given, in windows of the model's context.

    Args:
        logits_of: says how likely ids are.
        context: rows that the model reads at a time.
        pieces: rows, each of shape (length, ids_per_row), filled up with 0.
    """
    total, size = 0.0, context - 1
    for rows in tqdm(pieces, desc="Measuring", unit="piece", leave=False, disable=None):
        for begin in range(0, len(rows) - 1, size):
            window = rows[begin : begin + size + 1].astype(np.int64)
            targets = torch.from_numpy(window[1:]).flatten()
            nats = F.cross_entropy(logits_of(window).flatten(0, 1), targets, ignore_index=0, reduction="sum")
            total += float(nats)
    return total
