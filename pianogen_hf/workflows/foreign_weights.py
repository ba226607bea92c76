"""Weights of other systems, read without running code that may lie in them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from pianogen_hf.errors import ArgumentError, one_line


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a file by name; no code in it is run.

    Args:
        path: safetensors, or what `torch.save` wrote: the weights, or a map that holds them as "state_dict" or "model".

    Raises:
        ArgumentError: if the file is neither.
    """
    try:
        found: Any = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except (OSError, ValueError, RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        raise ArgumentError(f"{path} can't be read as weights: {one_line(error)}") from error
    for key in ("state_dict", "model"):
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
    if not isinstance(found, dict) or not all(isinstance(value, torch.Tensor) for value in found.values()):
        raise ArgumentError(f"{path} holds no weights by name")
    return found
