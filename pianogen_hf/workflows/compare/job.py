"""A model of a comparison as data: what it is, what it gets, and the YAML by which `train.py` makes it. Wiring only."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

import pianogen_hf
from pianogen_hf.data.caching import fingerprint_of
from pianogen_hf.records import read_json, write_json
from pianogen_hf.tokenizers.files import write_whole

_LOGS = 60  # points of a loss curve
_JOB_VERSION = 1  # raised when the same job would be trained otherwise


@dataclass(frozen=True)
class Budget:
    """What every model gets: seconds of training, or predicted tokens."""

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
        examples: train examples in an epoch. tokens_per_example: tokens to predict in one, on average.
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
        encoder: class of the tokenizer. vocab_size: its tokens. tokens_per_note: what a note of a train piece takes.
        train_notes: in the train pieces, as read.
        budget: see `Budget`. evaluations: of the validation split during training.
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
        values = read_json(path)
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


def write_recipe(path: Path, job: Job, steps: list[int], output_dir: Path) -> list[str]:
    """The job's YAML for `train.py`, and the command line that trains it."""
    text = f"# {job.name} as `pianogen compare` trains it; all that is not named here is the default of train.py.\n"
    write_whole(path, (text + yaml.safe_dump(job.training(steps, output_dir), sort_keys=False)).encode())
    return [str(path), *job.options]
