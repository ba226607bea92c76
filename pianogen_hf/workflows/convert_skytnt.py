"""From a published checkpoint of SkyTNT's midi-model to a model folder of this package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from pianogen_hf.errors import ArgumentError, one_line
from pianogen_hf.models.configuration_midi_event import MidiEventConfig
from pianogen_hf.models.modeling_midi_event import MidiEventForCausalLM
from pianogen_hf.records import read_map
from pianogen_hf.tokenizers.tokenization_midi_event import MidiEventTokenizer
from pianogen_hf.workflows.foreign_weights import load_weights

_CONFIG, _WEIGHTS = "config.json", "model.safetensors"
_ADAPTER = "default"  # its name, while it is apart
_RECOMPUTED = "rotary_emb.inv_freq"  # what old checkpoints store besides


def convert_skytnt(source: Path, output: Path, lora: Path | None = None) -> None:
    """Write model and tokenizer; no code of the checkpoint is run and no weight is renamed.

    The tokenizer writes rows as the original does (`legacy`), which the checkpoint was trained on.

    Args:
        source: folder with config.json and weights: model.safetensors, or another file of weights, which is told by its
            path where there are several; a checkpoint of Lightning (.ckpt) will do.
        output: folder for the model.
        lora: folder of an adapter of it, as peft or the original's train.py writes it, to be merged into the weights.

    Raises:
        ArgumentError: if what lies there is no such checkpoint, or no adapter of it.
    """
    path = _weights_file(source)
    source = path.parent
    config = _config(source)
    tokenizer = _tokenizer(source, config)
    settings = {name: config[name] for name in ("net_config", "net_token_config")}
    try:
        model_config = MidiEventConfig(**settings, **tokenizer.config_settings())
    except (KeyError, TypeError, ValueError) as error:
        raise ArgumentError(f"{source / _CONFIG} describes no model of midi-model: {error}") from error
    if model_config.vocab_size != len(tokenizer):
        sizes = f"{model_config.vocab_size} tokens, and version {tokenizer.version} has {len(tokenizer)}"
        raise ArgumentError(f"{source / _CONFIG} says {sizes}")
    weights = load_weights(path)
    dtype = next(iter(weights.values())).dtype
    model = MidiEventForCausalLM(model_config)
    model.to(dtype=dtype)  # type: ignore[call-arg]
    _fill(model, weights, path)
    if lora is not None:
        model = _merged(model, lora).to(dtype=dtype)  # type: ignore[call-arg]
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    size = f"{model.num_parameters():,} parameters, {str(dtype).removeprefix('torch.')}"
    size += "" if lora is None else f", with the adapter {lora}"
    print(f"{output}: midi-model {tokenizer.version}{' with optimise_midi' * tokenizer.optimise_midi}, {size}")


def _config(source: Path) -> dict[str, Any]:
    path = source / _CONFIG
    if not path.is_file():
        raise ArgumentError(f"{source} has no {_CONFIG}, which holds the sizes of a midi-model")
    config = read_map(path)
    if not {"net_config", "net_token_config", "tokenizer"} <= config.keys():
        raise ArgumentError(f"{path} describes no midi-model: it has no net_config, net_token_config and tokenizer")
    return config


def _tokenizer(source: Path, config: dict[str, Any]) -> MidiEventTokenizer:
    settings = config["tokenizer"]
    try:
        return MidiEventTokenizer(settings["version"], bool(settings.get("optimise_midi", False)), legacy=True)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ArgumentError(f"{source / _CONFIG} names no version of the tokenizer that is known: {error}") from error


def _weights_file(source: Path) -> Path:
    """The file itself, or the only one in its folder; safetensors before others."""
    if source.is_file():
        return source
    for pattern in (_WEIGHTS, "*.safetensors", "*.ckpt", "*.bin"):
        found = sorted(source.glob(pattern))
        if len(found) > 1:
            raise ArgumentError(f"{source} holds {len(found)} files {pattern}: give the path of one")
        if found:
            return found[0]
    raise ArgumentError(f"{source} holds no weights ({_WEIGHTS}, or a .ckpt)")


def _fill(model: MidiEventForCausalLM, weights: dict[str, torch.Tensor], path: Path) -> None:
    """Put the weights into the model, all of them and nothing else."""
    weights = {name: value for name, value in weights.items() if not name.endswith(_RECOMPUTED)}
    try:
        missing, unexpected = model.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise ArgumentError(f"{path} does not fit the sizes of its {_CONFIG}") from error
    if missing or unexpected:
        what = f"lack {min(missing)}" if missing else f"hold {min(unexpected)}, which no midi-model has"
        raise ArgumentError(f"the weights in {path} {what}")


def _merged(model: MidiEventForCausalLM, folder: Path) -> MidiEventForCausalLM:
    """The model with an adapter's products added to its weights, in float32."""
    try:
        from peft import LoraModel, PeftConfig, set_peft_model_state_dict
    except ImportError as error:
        raise ArgumentError('adapters need a package that is not installed: pip install "pianogen_hf[lora]"') from error
    try:
        config = PeftConfig.from_pretrained(str(folder))
        adapted = LoraModel(model.float(), config, _ADAPTER)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ArgumentError(f"{folder} holds no adapter of a midi-model: {one_line(error)}") from error
    found = load_weights(folder / "adapter_model.safetensors")
    # peft names weights within its own wrapper, the original's train.py within the model.
    weights = {name.removeprefix("base_model.model."): value for name, value in found.items()}
    wanted = {name.replace(f".{_ADAPTER}.", ".") for name, _ in model.named_parameters() if ".lora_" in name}
    if wanted != weights.keys():
        differing = min(wanted ^ weights.keys())
        raise ArgumentError(f"the adapter in {folder} does not fit its adapter_config.json, see {differing}")
    try:
        set_peft_model_state_dict(model, weights, _ADAPTER)
    except RuntimeError as error:
        raise ArgumentError(f"the adapter in {folder} does not fit the sizes of the model") from error
    merged: Any = adapted.merge_and_unload()  # peft's types don't say of which class
    return merged
