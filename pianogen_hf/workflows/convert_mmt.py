"""Checkpoints of the Multitrack Music Transformer (https://github.com/salu133445/mmt) as models of this package."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from pianogen_hf.errors import ArgumentError, one_line
from pianogen_hf.models.configuration_multitrack_music import NUM_SPECIAL, MultitrackMusicConfig
from pianogen_hf.models.modeling_multitrack_music import MultitrackMusicForCausalLM
from pianogen_hf.tokenizers.tokenization_multitrack_music import MultitrackMusicTokenizer
from pianogen_hf.workflows.foreign_weights import load_weights

_SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".safetensors")
_BEST = "best_model.pt"
_PREFIX = "decoder.net."
_HEAD_DIM = 64  # fixed in the library that the system uses
# Layers stand in turn: attention, then feed-forward; what the names of each become.
_ATTENTION = {
    "0.0.weight": "input_layernorm.weight",
    "0.0.bias": "input_layernorm.bias",
    "1.to_q.weight": "self_attn.q_proj.weight",
    "1.to_k.weight": "self_attn.k_proj.weight",
    "1.to_v.weight": "self_attn.v_proj.weight",
    "1.to_out.weight": "self_attn.o_proj.weight",
    "1.to_out.bias": "self_attn.o_proj.bias",
}
_FEED_FORWARD = {
    "0.0.weight": "post_attention_layernorm.weight",
    "0.0.bias": "post_attention_layernorm.bias",
    "1.net.0.0.weight": "mlp.up_proj.weight",
    "1.net.0.0.bias": "mlp.up_proj.bias",
    "1.net.3.weight": "mlp.down_proj.weight",
    "1.net.3.bias": "mlp.down_proj.bias",
}
_LAYER = re.compile(r"attn_layers\.layers\.(\d+)\.(.+)")
_ROTARY = "attn_layers.rotary_pos_emb.inv_freq"


def convert_mmt(source: Path, output: Path) -> None:
    """Write the model and its tokenizer.

    Args:
        source: a checkpoint, or a folder with one: `best_model.pt`, or the only file of weights in it or in its folder
            `checkpoints`. Sizes are read from the weights.
        output: folder for the model.

    Raises:
        ArgumentError: if there is no such checkpoint.
    """
    path = _weights_file(source)
    weights = {name.removeprefix(_PREFIX): value for name, value in load_weights(path).items()}
    try:
        config = _config(weights)
        renamed = {_name(name): value.float() for name, value in weights.items() if name != _ROTARY}
    except KeyError as error:
        raise ArgumentError(f"{path} is no checkpoint of the Multitrack Music Transformer: {error.args[0]}") from error
    model = MultitrackMusicForCausalLM(config)
    try:
        model.load_state_dict(renamed)
    except RuntimeError as error:
        raise ArgumentError(f"{path} does not fit the sizes that it states: {one_line(error)}") from error
    tokenizer = MultitrackMusicTokenizer(num_beats=config.num_beats, legacy=True)
    model.save_pretrained(output)
    tokenizer.save_pretrained(output)
    print(
        f"{output}: {config.num_hidden_layers} layers of width {config.hidden_size}, "
        f"{config.position_embedding_type} positions, {config.num_beats} beats, "
        f"{model.num_parameters():,} parameters from {path}"
    )


def _weights_file(source: Path) -> Path:
    if source.is_file():
        return source
    if not source.is_dir():
        raise ArgumentError(f"{source} does not exist: give a checkpoint or its folder")
    for folder in (source, source / "checkpoints"):
        if (folder / _BEST).is_file():
            return folder / _BEST
    found = sorted(path for folder in (source, source / "checkpoints") for path in folder.glob("*") if _holds(path))
    if len(found) != 1:
        seen = ", ".join(path.name for path in found) or "no file of weights"
        raise ArgumentError(f"{source} has {seen}: give the path of one checkpoint ({_BEST})")
    return found[0]


def _holds(path: Path) -> bool:
    return path.suffix in _SUFFIXES and path.is_file()


def _config(weights: dict[str, torch.Tensor]) -> MultitrackMusicConfig:
    """The sizes of a checkpoint.

    Raises:
        KeyError: if it lacks a weight that tells them.
    """
    num_beats = len(weights["token_emb.1.emb.weight"]) - 1
    hidden_size = weights["norm.weight"].shape[0]
    indices = [int(match[1]) for match in map(_LAYER.fullmatch, weights) if match]
    is_learned, is_rotary = "pos_emb.emb.weight" in weights, _ROTARY in weights
    settings: dict[str, Any] = {"position_embedding_type": "rotary" if is_rotary else "none"}
    if is_learned:
        max_rows = len(weights["pos_emb.emb.weight"])
        settings = {"position_embedding_type": "learned", "max_position_embeddings": 6 * max_rows}
    probe = MultitrackMusicConfig(num_beats=num_beats, vocab_size=NUM_SPECIAL + 239 + num_beats)
    return MultitrackMusicConfig(
        vocab_size=NUM_SPECIAL + sum(probe.numbers_of_ids),
        num_beats=num_beats,
        hidden_size=hidden_size,
        intermediate_size=len(weights["attn_layers.layers.1.1.net.0.0.weight"]),
        num_hidden_layers=(max(indices) + 1) // 2,
        num_attention_heads=len(weights["attn_layers.layers.0.1.to_q.weight"]) // _HEAD_DIM,
        head_dim=_HEAD_DIM,
        rotate_values=is_rotary,
        **settings,
    )


def _name(name: str) -> str:
    """The name that a weight has here.

    Raises:
        KeyError: if it is none of theirs.
    """
    layer = _LAYER.fullmatch(name)
    if layer:
        index, rest = int(layer[1]), layer[2]
        return f"model.layers.{index // 2}.{(_FEED_FORWARD if index % 2 else _ATTENTION)[rest]}"
    field = re.fullmatch(r"token_emb\.(\d)\.emb\.weight", name)
    if field:
        return f"model.embed_fields.{field[1]}.weight"
    head = re.fullmatch(r"to_logits\.(\d)\.(weight|bias)", name)
    if head:
        return f"heads.{head[1]}.{head[2]}"
    others = {"pos_emb.emb.weight": "model.embed_positions.weight"}
    others |= {f"norm.{kind}": f"model.norm.{kind}" for kind in ("weight", "bias")}
    return others[name]
