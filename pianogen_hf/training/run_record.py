"""What a run was asked for, kept with every checkpoint: a resumed run is compared with it.

What can change takes effect and is recorded as a change at that step. What the weights or the state of the optimizer
hang on can't, and a place in the data is one in batches of a certain size.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from pianogen_hf.errors import ArgumentError
from pianogen_hf.records import read_json, write_json
from pianogen_hf.training.arguments import Arguments

RUN_RECORD = "run.json"
# A run with another of these is another run.
_FIXED = (
    "model_type",
    "model_name_or_path",
    "tokenizer",
    "tokenizer_config",
    "bpe_vocab_size",
    "action_vocab_size",
    "optim",
    "minutes",
)
# With another of these there is no place in the data that the run has reached.
_OF_DATA: tuple[str, ...] = (
    "chunk_length",
    "packing",
    "batching",
    "augmentation",
    "transpose",
    "velocity",
    "stretch",
    "normalize_key",
    "seed",
)
_OF_DATA += ("split_seed", "source_weights", "data_seed", "dataloader_drop_last", "train_sampling_strategy")
# What training does not hang on: places, what is said and sent where. What the data are, split.json tells.
_LEFT_OUT = {
    *("output_dir", "run_name", "logging_dir", "cache_dir", "data_path", "source", "split_from", "card_text"),
    *("resume_from_checkpoint", "stage", "num_proc", "model_revision", "trust_remote_code", "allow_contamination"),
    *(
        "sample_steps",
        "sample_notes",
        "disable_tqdm",
        "report_to",
        "project",
        "trackio_space_id",
        "log_level",
        "log_level_replica",
        "push_to_hub",
    ),
    *("per_device_train_batch_size", "gradient_accumulation_steps"),  # batch_size is their product
}


@dataclass(frozen=True)
class RunRecord:
    """What a run was asked for.

    Attributes:
        command: that the run began with.
        options: values by name, those of places and messages left out.
        changes: one map for each time that it was resumed with other options: `step`, and by name the values before and
            after.
    """

    command: str
    options: dict[str, Any]
    changes: list[dict[str, Any]] = field(default_factory=list)

    def save(self, folder: Path) -> None:
        """Write it into a folder."""
        write_json(folder / RUN_RECORD, vars(self))

    def resumed(self, before: RunRecord, checkpoint: Path) -> RunRecord:
        """The record of a run that resumes from a checkpoint with the options of this one.

        Raises:
            ArgumentError: for an option that can't change, by name.
        """
        changed = {
            name: [before.options[name], value]
            for name, value in self.options.items()
            if name in before.options and before.options[name] != value
        }
        for name in _FIXED:
            if name in changed:
                old, new = changed[name]
                raise ArgumentError(
                    f"{checkpoint} was trained with {name} {old}, the run now asks for {new}: that can't change; for a "
                    f"new run leave out --resume_from_checkpoint{_INSTEAD.get(name, '')}"
                )
        if "batch_size" in changed:
            old, new = changed["batch_size"]
            raise ArgumentError(
                f"{checkpoint} was trained on batches of {old}, the run now asks for {new}: keep the product of "
                "per_device_train_batch_size, gradient_accumulation_steps and processes, or the place in the data is "
                f"lost; for a new run from these weights write --model_name_or_path {checkpoint}"
            )
        step = int(read_json(checkpoint / "trainer_state.json")["global_step"])
        changes = [*before.changes, {"step": step, **changed}] if changed else before.changes
        return replace(self, command=before.command, changes=changes)

    @property
    def begins_data_anew(self) -> bool:
        """Whether the last change lets the data begin anew."""
        return bool(self.changes) and any(name in self.changes[-1] for name in _OF_DATA)


_INSTEAD = {"minutes": "; for a longer run say --max_steps"}


def run_record(arguments: Arguments, command: str) -> RunRecord:
    """What a new run with these arguments is asked for."""
    model, data, args = arguments
    values = {each.name: getattr(part, each.name) for part in (model, data) for each in fields(type(part))}
    values |= {name: value for name, value in args.to_dict().items() if _tells(name)}
    values["batch_size"] = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
    if values["model_name_or_path"]:  # the same folder may be called otherwise from elsewhere
        values["model_name_or_path"] = Path(values["model_name_or_path"]).name
    kept = {name: value for name, value in values.items() if name not in _LEFT_OUT}
    return RunRecord(command, json.loads(json.dumps(kept)))  # as it will be read


def _tells(name: str) -> bool:
    return not name.startswith(("hub_", "push_to_hub_", "_", "dataloader_num", "dataloader_p", "local_"))


def read_run_record(folder: Path) -> RunRecord | None:
    """The record that lies in a checkpoint, or None in one that has none: of an earlier version, or from elsewhere."""
    written = read_json(folder / RUN_RECORD, default=None)
    return None if written is None else RunRecord(**written)
