"""Loading checkpoints, from a folder or the Hub, with one-line errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoFeatureExtractor,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import FEATURE_EXTRACTOR_NAME

import pianogen_hf  # noqa: F401  makes its parts known to the Auto classes
from pianogen_hf.errors import ArgumentError, one_line
from pianogen_hf.hub.models import model_folder, refuse_pickle
from pianogen_hf.tokenizers.notes_encoder import NotesEncoder
from pianogen_hf.tokenizers.tokenization_notes import NoteTokenizer


def load_model(
    name: str | Path, revision: str | None = None, trust_remote_code: bool = False
) -> tuple[PreTrainedModel, NotesEncoder]:
    """A model in float32 and its tokenizer or feature extractor, ready to generate on the fastest device there is.

    Args:
        name: folder or Hub id.
        revision: branch, tag or commit on the Hub.
        trust_remote_code: run code that the model carries, where its architecture is not known here.

    Raises:
        ArgumentError: if it can't be loaded whole, or its tokenizer is none of this package's.
    """
    if Path(name).is_dir() and not Path(name, "config.json").is_file():
        raise ArgumentError(f"{name} holds no model (no config.json)")
    folder = model_folder(name, revision)  # once: the Hub is asked, and may say something else the next time
    encoder = _encoder(folder, str(name), trust_remote_code)
    auto_class = auto_class_of(_opened(AutoConfig, folder, str(name), trust_remote_code))
    options: dict[str, Any] = {"use_safetensors": True, "dtype": torch.float32, "output_loading_info": True}
    try:
        model, info = _opened(auto_class, folder, str(name), trust_remote_code, **options)
    except RuntimeError as error:
        raise ArgumentError(f"{name} can't be opened as a model: its weights do not fit its config.json") from error
    if info["missing_keys"]:  # they would be random numbers
        raise ArgumentError(f"{name} lacks weights, for example {min(info['missing_keys'])}")
    fault = encoder.model_fault(model)
    if fault is not None:
        raise ArgumentError(f"{name} has {fault}")
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    return model.to(device).eval(), encoder


def load_engine(name: str | Path, engine: str, revision: str | None = None) -> tuple[Any, NotesEncoder]:
    """What `pianogen export` wrote of a model, as an engine that generates on the CPU, and its encoder of notes.

    Args:
        name: folder or Hub id.
        engine: "onnx", or "int8" for weights of 8 bits.
        revision: branch, tag or commit on the Hub.

    Raises:
        ArgumentError: if it can't be loaded, or its tokenizer is none of this package's.
    """
    # These need the onnx extra.
    from pianogen_hf.generation.onnx.engine import OnnxEngine
    from pianogen_hf.generation.onnx.event_engine import OnnxEventEngine
    from pianogen_hf.generation.onnx.note_engine import OnnxNoteEngine
    from pianogen_hf.generation.onnx.session import FOLDER, EngineError

    kind = load_pretrained(AutoConfig, str(name), revision).model_type
    engines: dict[str, Any] = {
        "midi_event": OnnxEventEngine,
        "music_transformer": OnnxEngine,
        "note_transformer": OnnxNoteEngine,
    }
    if kind not in engines:
        raise ArgumentError(f"{name} is a {kind}: the fast engines run only {', '.join(engines)}")
    folder = model_folder(name, revision, FOLDER)
    encoder = _encoder(folder, str(name), trust_remote_code=False)
    try:
        return engines[kind].from_pretrained(folder, "int8" if engine == "int8" else "float32"), encoder
    except EngineError as error:
        raise ArgumentError(str(error).replace(str(folder), str(name))) from error


def auto_class_of(config: PreTrainedConfig) -> Any:
    """The class with the head that a model of this config is for.

    Next steps, unless it looks both ways, or reads one part to write another.
    """
    if getattr(config, "is_encoder_decoder", False):
        return AutoModelForSeq2SeqLM
    return AutoModelForCausalLM if getattr(config, "is_causal", True) else AutoModelForMaskedLM


def load_encoder(name: str, revision: str | None = None, trust_remote_code: bool = False) -> NotesEncoder:
    """The tokenizer of a checkpoint, or its feature extractor if that is what lies there.

    Raises:
        ArgumentError: if it can't be loaded, or is none of this package's.
    """
    return _encoder(model_folder(name, revision), name, trust_remote_code)


def _encoder(folder: Path, name: str, trust_remote_code: bool) -> NotesEncoder:
    if not (folder / FEATURE_EXTRACTOR_NAME).is_file():
        return _tokenizer(folder, name, trust_remote_code)
    extractor = _opened(AutoFeatureExtractor, folder, name, trust_remote_code)
    if not isinstance(extractor, NotesEncoder):
        raise ArgumentError(f"{name} has no feature extractor of music but a {type(extractor).__name__}")
    return extractor


def _tokenizer(folder: Path, name: str, trust_remote_code: bool = False) -> NoteTokenizer:
    tokenizer = _opened(AutoTokenizer, folder, name, trust_remote_code)
    if not isinstance(tokenizer, NoteTokenizer):
        raise ArgumentError(f"{name} has no tokenizer of music but a {type(tokenizer).__name__}")
    return tokenizer


def load_pretrained(
    auto_class: Any, name: str, revision: str | None = None, trust_remote_code: bool = False, **kwargs: Any
) -> Any:
    """`auto_class.from_pretrained` with one-line errors; where it loads weights, never from pickle.

    Raises:
        ArgumentError: if there is no such folder or model, or it can't be opened.
    """
    return _opened(auto_class, model_folder(name, revision), name, trust_remote_code, **kwargs)


def _opened(auto_class: Any, folder: Path, name: str, trust_remote_code: bool, **kwargs: Any) -> Any:
    """What lies in a folder, which in errors is called as the user did."""
    if kwargs.get("use_safetensors"):
        refuse_pickle(folder, name)
    try:
        return auto_class.from_pretrained(str(folder), trust_remote_code=trust_remote_code, **kwargs)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        if "trust_remote_code" in str(error):
            raise ArgumentError(
                f"{name} can't be opened as a model: neither this package nor transformers knows its kind, and code "
                "that comes with a model is not run here without --trust_remote_code: read its .py files first"
            ) from error
        message = one_line(error).replace(str(folder), name)
        raise ArgumentError(f"{name} can't be opened as a model: {message}") from error
