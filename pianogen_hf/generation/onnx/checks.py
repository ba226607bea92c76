"""Whether an exported model does what the model itself does."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import PreTrainedModel

from pianogen_hf.generation.onnx.builder import ExportError
from pianogen_hf.generation.onnx.engine import OnnxEngine

_CHECKED = 1000  # tokens that must be the same
_NEAR = 1e-3  # difference of two logits that rounding may turn over
_NUM_SAMPLES = 4  # of the model itself, to learn how large keys and values become


def likely_samples(engine: OnnxEngine) -> list[np.ndarray]:
    """Token ids that the model finds likely, each of its context's length."""
    first = engine.config.bos_token_id or 0
    length = min(engine.config.max_position_embeddings, 1024)
    settings: dict[str, Any] = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    settings["num_return_sequences"] = _NUM_SAMPLES
    # No token ends a sample: a model writes something after the end, too, and all samples have one length.
    ids = engine.generate(torch.tensor([[first]]), max_new_tokens=max(length - 1, 1), eos_token_id=[], **settings)
    return list(ids.numpy())


def check_greedy(engine: OnnxEngine, model: PreTrainedModel, prompt: np.ndarray) -> str:
    """Let the engine continue a prompt greedily and ask the torch model for each choice.

    Args:
        engine: the exported model.
        model: the model itself.
        prompt: token ids, of which the first quarter is the prompt.

    Returns:
        What was found.

    Raises:
        ExportError: if torch chooses another token, and not for a tie.
    """
    given = torch.from_numpy(prompt[None, : max(len(prompt) // 4, 1)])
    ids = engine.generate(given, max_new_tokens=_CHECKED, do_sample=False, eos_token_id=[])
    with torch.inference_mode():
        logits = model(input_ids=ids, use_cache=False).logits[0, given.shape[1] - 1 : -1]
    chosen = logits.gather(1, ids[0, given.shape[1] :, None])[:, 0]
    behind = logits.amax(1) - chosen
    if bool((behind > _NEAR).any()):
        place = int((behind > _NEAR).nonzero()[0])
        raise ExportError(f"greedy tokens differ from torch's from token {place + 1} on: nothing was written")
    equal = int((logits.argmax(1) == ids[0, given.shape[1] :]).sum())
    return f"{equal:,} of {_CHECKED:,} greedy tokens equal torch's" + (", the others are ties" * (equal < _CHECKED))


def total_nats(engine: OnnxEngine, rows: list[np.ndarray]) -> float:
    """Cross-entropy of token ids, the first of each row given, in windows of the model's context."""
    total, size = 0.0, engine.config.max_position_embeddings - 1
    for ids in tqdm(rows, desc="Measuring", unit="piece", leave=False, disable=None):
        for begin in range(0, len(ids) - 1, size):
            window = ids[begin : begin + size + 1]
            logits = engine.logits(window[:-1]).astype(np.float64)
            shifted = logits - logits.max(1, keepdims=True)
            chosen = np.take_along_axis(shifted, window[1:, None], 1)[:, 0]
            total += float((np.log(np.exp(shifted).sum(1)) - chosen).sum())
    return total
