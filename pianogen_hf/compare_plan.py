"""The plan of a comparison: every recipe at one size, with one batch in notes, within one budget. Wiring only.

A recipe becomes a `Job`: a YAML file for `train.py` in which sizes, batch and steps are those of the comparison and all
else is the recipe's. What a small budget would make absurd (a warm-up of 1,000 steps, an evaluation every 1,000) keeps
its share of the steps.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from datasets import Dataset
from transformers import PreTrainedConfig, PreTrainedModel

import pianogen_hf
from pianogen_hf.data.caching import fingerprint_of
from pianogen_hf.data.chunks import notes_of
from pianogen_hf.data.manifest import read_manifest, split_manifest, write_manifest
from pianogen_hf.data.sources import DataError
from pianogen_hf.prepare import load_split, make_chunks, make_tokenizer, split_parameters, write_json
from pianogen_hf.tokenizers.midi import write_whole
from pianogen_hf.tokenizers.notes_encoder import NotesEncoder
from pianogen_hf.train import make_model
from pianogen_hf.training.arguments import (
    ArgumentError,
    JsonMap,
    ModelArguments,
    PianoTrainingArguments,
    parse_arguments,
)
from pianogen_hf.training.matching import SizeError, match_parameters, meta_model, parameters_of, sizes_of
from pianogen_hf.training.recipe import as_options, read_yaml

# What decides the pieces and their sides: one value for all, the command line's or the default, never a recipe's.
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
_SAMPLED_PIECES = 64  # train pieces whose ids per note are counted
_LOGS = 60  # points of a loss curve
_WIDEST_RATE = 10.0  # the learning rate is raised so much at most for a narrower model
_JOB_VERSION = 1  # raised when the same job would be trained otherwise


@dataclass(frozen=True)
class Budget:
    """What every model gets: seconds of training, or tokens (ids that are predicted)."""

    seconds: float | None = None
    tokens: int | None = None

    def steps(self, seconds_per_step: float | None, tokens_per_step: float) -> int:
        """Optimizer steps that it buys."""
        if self.tokens is not None:
            return max(1, round(self.tokens / tokens_per_step))
        assert self.seconds is not None and seconds_per_step is not None
        return max(1, int(self.seconds / seconds_per_step))

    def part(self, share: float) -> Budget:
        """A share of it."""
        return Budget(
            None if self.seconds is None else self.seconds * share,
            None if self.tokens is None else round(self.tokens * share),
        )

    def words(self) -> str:
        """For people."""
        if self.tokens is not None:
            return f"{self.tokens:,} tokens"
        minutes = (self.seconds or 0) / 60
        return f"{minutes:g} minute{'' if minutes == 1 else 's'} of training"


@dataclass(frozen=True)
class Matching:
    """What all models of a comparison share."""

    parameters: int
    notes_per_step: int
    layers: int | None = None
    heads: int | None = None
    evaluations: int = 4


@dataclass(frozen=True)
class Phase:
    """One stage of a job's training; a recipe without stages has one.

    Attributes:
        settings: what differs from the job's settings.
        own_steps: steps in the recipe. own_warmup: those of them that warm up, or, below 1, their share.
        examples: train examples in an epoch. tokens_per_example: ids to predict in one, on average.
        batch: examples per step.
    """

    settings: dict[str, Any]
    own_steps: int
    own_warmup: float
    examples: int
    tokens_per_example: float
    batch: int

    @property
    def tokens_per_step(self) -> float:
        """Ids that are predicted in a step."""
        return self.batch * self.tokens_per_example

    def of_steps(self, steps: int, evaluations: int) -> dict[str, Any]:
        """Its settings for so many steps: all that counts steps keeps its share of them."""
        warmup = self.own_warmup if self.own_warmup < 1 else max(1, round(self.own_warmup * steps / self.own_steps))
        every = max(1, math.ceil(steps / max(evaluations, 1)))
        return {
            **self.settings,
            "max_steps": steps,
            "warmup_steps": min(warmup, steps),
            "logging_steps": max(1, steps // _LOGS),
            "save_steps": every,
            "eval_steps": every,
        }


@dataclass(frozen=True)
class Job:
    """One model of the comparison.

    Attributes:
        name: of the recipe's file. recipe: its path.
        places: options of train.py that say where the data lie. extra: further ones; both are given to all alike.
        settings: the YAML of training, without what depends on the number of steps. phases: its stages.
        sizes, own_sizes: of the model, and of the recipe as it stands. parameters: see `training/matching.py`.
        encoder: class of the tokenizer. vocab_size: its ids. tokens_per_note: ids that a note of a train piece takes.
        train_notes: in the train pieces, as read.
        budget: see `Budget`. evaluations: of the validation side during training.
        split: hash of split.json.
    """

    name: str
    recipe: str
    places: list[str]
    extra: list[str]
    settings: dict[str, Any]
    phases: list[Phase]
    sizes: dict[str, int]
    own_sizes: dict[str, int]
    parameters: dict[str, int]
    encoder: str
    vocab_size: int
    tokens_per_note: float
    train_notes: int
    budget: dict[str, Any]
    evaluations: int
    split: str

    @property
    def options(self) -> list[str]:
        """All options of train.py that it gets beside its YAML file."""
        return [*self.places, *self.extra]

    def hash(self) -> str:
        """Names all that the trained model depends on; not where its recipe and its data lie."""
        what = {key: value for key, value in asdict(self).items() if key not in ("recipe", "places")}
        return fingerprint_of([_JOB_VERSION, pianogen_hf.__version__, what])

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        write_json(path, {**asdict(self), "hash": self.hash()})

    @classmethod
    def load(cls, path: Path) -> Job:
        """What `save` wrote."""
        values = json.loads(path.read_text(encoding="utf-8"))
        values["phases"] = [Phase(**phase) for phase in values["phases"]]
        return cls(**{each.name: values[each.name] for each in fields(cls)})

    def steps(self, seconds_per_step: float | None) -> list[int]:
        """Steps of every phase: the budget is divided as the recipe divides its own steps."""
        total, own = Budget(**self.budget), sum(phase.own_steps for phase in self.phases)
        parts = [total.part(phase.own_steps / own) for phase in self.phases]
        return [
            part.steps(seconds_per_step, phase.tokens_per_step) for part, phase in zip(parts, self.phases, strict=True)
        ]

    def training(self, steps: list[int], output_dir: Path) -> dict[str, Any]:
        """The YAML of `train.py` for so many steps in each phase."""
        common: dict[str, Any] = {
            "output_dir": str(output_dir),
            "save_strategy": "steps",
            "save_total_limit": 2,
            "eval_strategy": "steps" if self.evaluations else "no",
            "load_best_model_at_end": bool(self.evaluations),
            "metric_for_best_model": "bits_per_note",
            "greater_is_better": False,
        }
        phases = [phase.of_steps(each, self.evaluations) for phase, each in zip(self.phases, steps, strict=True)]
        return {**self.settings, **common, **(phases[0] if len(phases) == 1 else {"stages": phases})}


def common_split(options: list[str], folder: Path, is_dry: bool) -> tuple[Dataset, list[str], dict[str, Any]]:
    """Pieces, sides and manifest of the comparison; the first call writes split.json, later ones are held to it.

    Raises:
        ArgumentError, DataError: if the options or the sources can't be used.
    """
    _, data_args, _ = parse_arguments(options)
    written = folder / "split.json"
    if written.exists():
        data_args.split_from = [str(written)]
    pieces, sides, _ = load_split(data_args)
    manifest = split_manifest(pieces, sides, split_parameters(data_args))
    if not written.exists():
        if not is_dry:
            write_manifest(written, manifest)
    elif (before := read_manifest(written)["hash"]) != manifest["hash"]:
        raise DataError(
            f"{written} holds another split ({before[:12]}, not {manifest['hash'][:12]}): the sources or their options "
            "have changed; choose another --output"
        )
    return pieces, sides, manifest


def plan_job(
    path: str,
    places: list[str],
    extra: list[str],
    split: tuple[Dataset, list[str], dict[str, Any]],
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
    pieces, sides, manifest = split
    recipe, stages = _stages_of(path)
    parsed = [parse_arguments([*as_options({**recipe, **stage}), *places, *extra]) for stage in stages]
    model_args, data_args, _ = parsed[0]
    if model_args.model_name_or_path:
        raise ArgumentError(f"{path} goes on from a model, whose size can't be matched: take it out")
    encoder = make_tokenizer(model_args, pieces, sides)
    settings, own, matched = _matched(path, model_args, encoder, data_args.chunk_length, matching)
    tokens_per_note = _tokens_per_note(encoder, pieces, sides)
    rate = 1.0 if _gives(extra, "learning_rate") else _rate_factor(own, matched.config)
    phases = []
    for stage, (_, stage_data, training) in zip(stages, parsed, strict=True):
        examples = make_chunks(stage_data, pieces, sides, encoder)["train"]
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
        train_notes=manifest["notes"]["train"],
        budget=asdict(budget),
        evaluations=matching.evaluations,
        split=manifest["hash"],
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


def write_recipe(path: Path, job: Job, steps: list[int], output_dir: Path) -> list[str]:
    """The job's YAML for `train.py`, and the command line that trains it."""
    text = f"# {job.name} as `pianogen compare` trains it; all that is not named here is the default of train.py.\n"
    write_whole(path, (text + yaml.safe_dump(job.training(steps, output_dir), sort_keys=False)).encode())
    return [str(path), *job.options]


def _gives(options: list[str], name: str) -> bool:
    return any(option.split("=", 1)[0] == f"--{name}" for option in options)


def _spread(total: int, most: int) -> list[int]:
    """At most so many indices, evenly over all."""
    return np.unique(np.linspace(0, total - 1, min(total, most)).astype(int)).tolist()


def _tokens_per_example(dataset: Any, input_name: str) -> float:
    """Ids, or rows, that a train example has to predict, on average."""
    rows = (dataset[row] for row in _spread(len(dataset), _SAMPLED_ROWS))
    return float(np.mean([len(row[input_name]) - row["first_label"] for row in rows]))


def _tokens_per_note(tokenizer: NotesEncoder, pieces: Dataset, sides: list[str]) -> float:
    """Ids that a note of a train piece takes, the end of the piece included."""
    train = [row for row, side in enumerate(sides) if side == "train"]
    chosen = [train[index] for index in _spread(len(train), _SAMPLED_PIECES)]
    notes = list(notes_of(pieces.select(chosen), ["train"] * len(chosen), "train"))
    ids = sum(len(tokenizer.piece_steps(each)) - 1 for each in notes)
    return ids / max(sum(len(each) for each in notes), 1)
