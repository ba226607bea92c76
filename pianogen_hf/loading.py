"""Loading checkpoints, from a folder or the Hub, with one-line errors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import FEATURE_EXTRACTOR_NAME, cached_file

import pianogen_hf  # noqa: F401  makes its parts known to the Auto classes
from pianogen_hf.tokenizers.notes_encoder import NotesEncoder
from pianogen_hf.tokenizers.tokenization_notes import NoteTokenizer
from pianogen_hf.training.arguments import ArgumentError

if TYPE_CHECKING:
    from pianogen_hf.generation.engine import OnnxEngine


def load_model(name: str | Path) -> tuple[PreTrainedModel, NotesEncoder]:
    """A model in float32 and its tokenizer or feature extractor, ready to generate on the fastest device there is.

    Raises:
        ArgumentError: if it can't be loaded whole, or its tokenizer is none of this package's.
    """
    if Path(name).is_dir() and not Path(name, "config.json").is_file():
        raise ArgumentError(f"{name} holds no model (no config.json)")
    encoder = load_encoder(str(name))
    auto_class = auto_class_of(load_pretrained(AutoConfig, str(name)))
    options = {"use_safetensors": True, "dtype": torch.float32, "output_loading_info": True}
    try:
        model, info = load_pretrained(auto_class, str(name), **options)
    except RuntimeError as error:
        raise ArgumentError(f"{name} can't be opened as a model: its weights do not fit its config.json") from error
    if info["missing_keys"]:  # they would be random numbers
        raise ArgumentError(f"{name} lacks weights, for example {min(info['missing_keys'])}")
    fault = encoder.model_fault(model)
    if fault is not None:
        raise ArgumentError(f"{name} has {fault}")
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    return model.to(device).eval(), encoder


def load_engine(name: str | Path, engine: str) -> tuple[OnnxEngine, NoteTokenizer]:
    """What `pianogen export` wrote of a model, as an engine that generates on the CPU, and its tokenizer.

    Args:
        name: folder or Hub id.
        engine: "onnx", or "int8" for weights of 8 bits.

    Raises:
        ArgumentError: if it can't be loaded, or its tokenizer is none of this package's.
    """
    from pianogen_hf.generation.engine import EngineError, OnnxEngine  # needs the onnx extra

    tokenizer = load_tokenizer(str(name))
    try:
        return OnnxEngine.from_pretrained(name, "int8" if engine == "int8" else "float32"), tokenizer
    except EngineError as error:
        raise ArgumentError(str(error)) from error


def auto_class_of(config: PreTrainedConfig) -> Any:
    """The class with the head that a model of this config is for: next steps, unless it looks both ways."""
    return AutoModelForCausalLM if getattr(config, "is_causal", True) else AutoModelForMaskedLM


def load_encoder(name: str) -> NotesEncoder:
    """The tokenizer of a checkpoint, or its feature extractor if that is what lies there.

    Raises:
        ArgumentError: if it can't be loaded, or is none of this package's.
    """
    if not _has_feature_extractor(name):
        return load_tokenizer(name)
    extractor = load_pretrained(AutoFeatureExtractor, name)
    if not isinstance(extractor, NotesEncoder):
        raise ArgumentError(f"{name} has no feature extractor of music but a {type(extractor).__name__}")
    return extractor


def _has_feature_extractor(name: str) -> bool:
    silent = {"_raise_exceptions_for_missing_entries": False, "_raise_exceptions_for_connection_errors": False}
    try:
        return cached_file(name, FEATURE_EXTRACTOR_NAME, **silent) is not None
    except (OSError, ValueError):  # no such folder or model: whoever loads the rest says so
        return False


def load_tokenizer(name: str) -> NoteTokenizer:
    """The tokenizer of a checkpoint.

    Raises:
        ArgumentError: if it can't be loaded, or is none of this package's.
    """
    tokenizer = load_pretrained(AutoTokenizer, name)
    if not isinstance(tokenizer, NoteTokenizer):
        raise ArgumentError(f"{name} has no tokenizer of music but a {type(tokenizer).__name__}")
    return tokenizer


def load_pretrained(auto_class: Any, name: str, **kwargs: Any) -> Any:
    """`auto_class.from_pretrained` with one-line errors, which neither runs code of a checkpoint nor asks whether to.

    Raises:
        ArgumentError: if there is no such folder or model, or it can't be opened.
    """
    try:
        return auto_class.from_pretrained(name, trust_remote_code=False, **kwargs)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        if "trust_remote_code" in str(error):
            raise ArgumentError(
                f"{name} can't be opened as a model: neither this package nor transformers knows its kind, and code "
                "that comes with a model is not run here"
            ) from error
        if Path(name).is_dir():
            raise ArgumentError(f"{name} can't be opened as a model: {one_line(error)}") from error
        raise ArgumentError(
            f"no model {name!r}: it is no folder here, and the Hub does not have it or can't be reached"
        ) from error


def one_line(error: Exception) -> str:
    """The message of an error of another library, as one line."""
    return " ".join(str(error).split())[:300]
