"""The model that is trained: made or loaded, checked against the data and against a run that is resumed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from pianogen_hf.data.manifest import read_manifest
from pianogen_hf.errors import ArgumentError, one_line
from pianogen_hf.tokenizers.notes_encoder import NotesEncoder
from pianogen_hf.training.arguments import ModelArguments, PianoTrainingArguments
from pianogen_hf.workflows.loading import auto_class_of, load_pretrained


def make_model(args: ModelArguments, tokenizer: NotesEncoder, chunk_length: int) -> PreTrainedModel:
    """The checkpoint when fine-tuning; otherwise a new model of the sizes in `model_config`.

    Raises:
        ArgumentError: if the checkpoint can't be loaded, or the sizes fit neither its class nor the data.
    """
    name = args.model_name_or_path
    if name is not None:
        place: dict[str, Any] = {"revision": args.model_revision, "trust_remote_code": args.trust_remote_code}
        auto_class = auto_class_of(load_pretrained(AutoConfig, name, **place))
        model = load_pretrained(auto_class, name, **place, use_safetensors=True, dtype=torch.float32)
    else:
        model = _new_model(args, tokenizer, chunk_length)
    fault = tokenizer.model_fault(model)
    if fault is not None:
        raise ArgumentError(f"the model has {fault}")
    context = getattr(model.config, "max_position_embeddings", None)
    if context is not None and context < chunk_length:
        raise ArgumentError(f"chunk_length {chunk_length} is more than the {context} tokens that the model is made for")
    return model


def _new_model(args: ModelArguments, tokenizer: NotesEncoder, chunk_length: int) -> PreTrainedModel:
    if args.model_type not in CONFIG_MAPPING:
        raise ArgumentError(f"unknown model_type {args.model_type!r}: music_transformer, gpt2, llama, ...")
    defaults = CONFIG_MAPPING[args.model_type]()
    for name in args.model_config:
        if name not in defaults.to_dict() and name not in defaults.attribute_map:
            raise ArgumentError(f"unknown key {name!r} in model_config of {args.model_type}")
    settings = {"max_position_embeddings": chunk_length, **tokenizer.config_settings()}
    try:
        config = AutoConfig.for_model(args.model_type, **{**settings, **args.model_config})
        return auto_class_of(config).from_config(config)
    except (TypeError, ValueError, StrictDataclassError) as error:
        raise ArgumentError(f"model_config: {one_line(error)}") from error


def try_model(model: PreTrainedModel, tokenizer: NotesEncoder) -> None:
    """Let one step go through a new model: some sizes that don't fit one another show only then.

    Raises:
        ArgumentError: if it fails.
    """
    step = torch.from_numpy(tokenizer.beginning)[None]
    try:
        with torch.no_grad():
            model.eval()(**{tokenizer.input_name: step})
    except (IndexError, RuntimeError, TypeError, ValueError) as error:
        raise ArgumentError(f"model_config: a model of these sizes can't compute: {one_line(error)}") from error
    model.train()


def check_resumed(
    args: PianoTrainingArguments,
    manifest: dict[str, Any],
    model: PreTrainedModel,
    checkpoint: str,
    begins_data_anew: bool,
) -> None:
    """A resumed run continues with the model it began with, and best with the data, too.

    Every process looks for itself: if only one of them gave up, the others would wait for it.

    Args:
        args: of the Trainer; told here where the data are to begin anew.
        manifest: of the split.
        model: made as the run now asks.
        checkpoint: that it resumes from.
        begins_data_anew: whether the run asks for other examples than it began with.

    Raises:
        ArgumentError: if the model has other sizes.
    """
    before = load_pretrained(AutoConfig, checkpoint).to_dict()
    for name, value in model.config.to_dict().items():
        if type(value) is int and before.get(name) != value:  # sizes: with another one the weights would not fit
            raise ArgumentError(f"{checkpoint} has {name} {before.get(name)}, the run now asks for {value}")
    written = Path(checkpoint, "split.json")
    if begins_data_anew or (written.exists() and read_manifest(written)["hash"] != manifest["hash"]):
        args.ignore_data_skip = True  # there is no place in these data that the run had reached
        if args.process_index == 0:
            print(f"the data are not those of {checkpoint}: weights, optimizer and step continue, the data begin anew")
