"""The plan of a comparison: every recipe at one size, with one batch in notes, within one budget. Wiring only.

A recipe becomes a `Job`: a YAML file for `train.py` in which sizes, batch and steps are those of the comparison and all
else is the recipe's. What a small budget would make absurd (a warm-up of 1,000 steps, an evaluation every 1,000) keeps
its share of the steps.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedConfig, PreTrainedModel

from pianogen_hf.data.chunks import notes_of
from pianogen_hf.data.manifest import read_manifest, write_manifest
from pianogen_hf.errors import ArgumentError, DataError
from pianogen_hf.tokenizers.notes_encoder import NotesEncoder
from pianogen_hf.training.arguments import MUON, JsonMap, ModelArguments, PianoTrainingArguments, parse_arguments
from pianogen_hf.training.matching import SizeError, match_parameters, meta_model, parameters_of, sizes_of
from pianogen_hf.training.recipe import as_options, read_yaml
from pianogen_hf.workflows.compare.job import Budget, Job, Matching, Phase
from pianogen_hf.workflows.examples import make_chunks, make_tokenizer
from pianogen_hf.workflows.model_to_train import make_model
from pianogen_hf.workflows.split import Split, load_split

# What decides the pieces and their splits: one value for all, the command line's or the default, never a recipe's.
SPLIT_OPTIONS = (
    "source",
    "data_path",
    "max_pieces",
    "programs",
    "validation_fraction",
    "test_fraction",
    "split_seed",
    "normalize_key",
)
# What the comparison decides itself.
OWN_OPTIONS = (
    "output_dir",
    "model_config",
    "model_type",
    "model_name_or_path",
    "tokenizer",
    "max_steps",
    "num_train_epochs",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "resume_from_checkpoint",
    "eval_strategy",
    "save_strategy",
    "load_best_model_at_end",
    "normalize_key",
)
_LEFT_OUT = (
    "sample_steps",
    "early_stopping_patience",
    "card_text",
    "resume_from_checkpoint",
    "eval_delay",
    "source_weights",
    "split_from",
)
_SAMPLED_ROWS = 256  # train examples that are looked at for their mean length
_SAMPLED_PIECES = 64  # train pieces whose tokens per note are counted
_WIDEST_RATE = 10.0  # the learning rate is raised so much at most for a narrower model


def common_split(options: list[str], folder: Path, is_dry: bool) -> Split:
    """The split of the comparison; the first call writes split.json, later ones are held to it.

    Raises:
        ArgumentError, DataError: if the options or the sources can't be used.
    """
    _, data_args, _ = parse_arguments(options)
    written = folder / "split.json"
    if written.exists():
        data_args.split_from = [str(written)]
    split = load_split(data_args)
    found = split.manifest["hash"]
    if not written.exists():
        if not is_dry:
            write_manifest(written, split.manifest)
    elif (before := read_manifest(written)["hash"]) != found:
        raise DataError(
            f"{written} holds another split ({before[:12]}, not {found[:12]}): the sources or their options have "
            "changed; choose another --output"
        )
    return split


def plan_job(
    path: str,
    places: list[str],
    extra: list[str],
    split: Split,
    matching: Matching,
    budget: Budget,
) -> Job:
    """The job of one recipe.

    Args:
        path: of the recipe.
        places: options that say where the data lie, of all recipes.
        extra: further options of train.py, of all recipes.
        split: what `common_split` gave.
        matching: what all models share.
        budget: what every model gets.

    Raises:
        ArgumentError, DataError: if the recipe can't be used as it is, in one line.
    """
    recipe, stages = _stages_of(path)
    parsed = [parse_arguments([*as_options({**recipe, **stage}), *places, *extra]) for stage in stages]
    model_args, data_args, _ = parsed[0]
    if model_args.model_name_or_path:
        raise ArgumentError(f"{path} starts from a model, whose size can't be matched: take it out")
    encoder = make_tokenizer(model_args, split)
    settings, own, matched = _matched(path, model_args, encoder, data_args.chunk_length, matching)
    tokens_per_note = _tokens_per_note(encoder, split)
    phases = []
    for stage, (_, stage_data, training) in zip(stages, parsed, strict=True):
        # A step of Muon is as large at any width (Bernstein and Newhouse 2024): its rate holds for all of them.
        is_fixed = training.optim == MUON or _gives(extra, "learning_rate")
        rate = 1.0 if is_fixed else _rate_factor(own, matched.config)
        examples = make_chunks(stage_data, split, encoder)["train"]
        wanted_tokens = matching.notes_per_step * tokens_per_note
        phases.append(_phase(stage, training, examples, encoder.input_name, wanted_tokens, rate))
    return Job(
        name=Path(path).stem,
        recipe=path,
        places=places,
        extra=extra,
        settings={**recipe, "model_config": settings, "report_to": "none"},
        phases=phases,
        sizes=sizes_of(matched.config),
        own_sizes=sizes_of(own),
        parameters=parameters_of(matched),
        encoder=type(encoder).__name__,
        vocab_size=int(matched.config.vocab_size),
        tokens_per_note=tokens_per_note,
        train_notes=split.manifest["notes"]["train"],
        budget=asdict(budget),
        evaluations=matching.evaluations,
        split=split.manifest["hash"],
    )


def _stages_of(path: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A recipe without what the comparison decides, and its stages: one that changes nothing where it has none."""
    recipe = read_yaml(path)
    stages = recipe.pop("stages", None) or [{}]
    if not isinstance(stages, list) or not all(isinstance(stage, dict) for stage in stages):
        raise ArgumentError(f"{path}: stages must be a list of maps")
    common, *rest = (
        {key: value for key, value in each.items() if key not in (*SPLIT_OPTIONS, *_LEFT_OUT)}
        for each in (recipe, *stages)
    )
    return common, rest


def _phase(
    stage: dict[str, Any],
    training: PianoTrainingArguments,
    examples: Any,
    input_name: str,
    wanted_tokens: float,
    rate: float,
) -> Phase:
    """One stage with the common number of notes in a step, in parts none larger than the recipe's own batch."""
    tokens_per_example = _tokens_per_example(examples, input_name)
    at_once, before = training.per_device_train_batch_size, training.gradient_accumulation_steps
    batch = max(1, round(wanted_tokens / tokens_per_example))
    accumulation = math.ceil(batch / at_once)
    batch = round(batch / accumulation) * accumulation
    own_steps = math.ceil(training.num_train_epochs * len(examples) / (at_once * before))
    return Phase(
        settings={
            **stage,
            "per_device_train_batch_size": batch // accumulation,
            "gradient_accumulation_steps": accumulation,
            "learning_rate": float(f"{training.learning_rate * rate:.3g}"),
        },
        own_steps=training.max_steps if training.max_steps > 0 else own_steps,
        own_warmup=float(training.warmup_steps or 0),
        examples=len(examples),
        tokens_per_example=tokens_per_example,
        batch=batch,
    )


def _matched(
    path: str, model_args: ModelArguments, tokenizer: NotesEncoder, chunk_length: int, matching: Matching
) -> tuple[dict[str, Any], PreTrainedConfig, PreTrainedModel]:
    """Settings of the model at the common size, the recipe's own configuration, and the model, without weights."""

    def build(settings: Mapping[str, Any]) -> PreTrainedModel:
        changed = replace(model_args, model_config=JsonMap(json.dumps(dict(settings))))
        return make_model(changed, tokenizer, chunk_length)

    own = meta_model(build, model_args.model_config).config
    try:
        settings = match_parameters(
            build, model_args.model_config, matching.parameters, matching.layers, matching.heads
        )
    except SizeError as error:
        raise ArgumentError(f"{path}: {error}") from error
    return settings, own, meta_model(build, settings)


def _rate_factor(own: PreTrainedConfig, matched: PreTrainedConfig) -> float:
    """By what the recipe's learning rate is multiplied: with Adam it goes with 1 / width (Yang et al. 2021, muP)."""
    return min(max(own.hidden_size / matched.hidden_size, 1 / _WIDEST_RATE), _WIDEST_RATE)


def _gives(options: list[str], name: str) -> bool:
    return any(option.split("=", 1)[0] == f"--{name}" for option in options)


def _spread(total: int, most: int) -> list[int]:
    """At most so many indices, evenly over all."""
    return np.unique(np.linspace(0, total - 1, min(total, most)).astype(int)).tolist()


def _tokens_per_example(dataset: Any, input_name: str) -> float:
    """Ids, or rows, that a train example has to predict, on average."""
    rows = (dataset[row] for row in _spread(len(dataset), _SAMPLED_ROWS))
    return float(np.mean([len(row[input_name]) - row["first_label"] for row in rows]))


def _tokens_per_note(tokenizer: NotesEncoder, split: Split) -> float:
    """Tokens that a note of a train piece takes, the end of the piece included."""
    train = split.rows("train")
    chosen = [train[index] for index in _spread(len(train), _SAMPLED_PIECES)]
    notes = list(notes_of(split.pieces.select(chosen), ["train"] * len(chosen), "train"))
    ids = sum(len(tokenizer.piece_steps(each)) - 1 for each in notes)
    return ids / max(sum(len(each) for each in notes), 1)
