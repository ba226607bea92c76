"""The end of a training run: the model is saved, measured, told of on a card, and pushed where that was asked for."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate.utils import broadcast_object_list

import pianogen_hf
from pianogen_hf.data.chunks import chunk_overlap, chunk_size
from pianogen_hf.errors import ArgumentError, PianogenError
from pianogen_hf.evaluation.baselines import grid_baselines
from pianogen_hf.hub.destination import Destination
from pianogen_hf.hub.errors import HubError, limit_waiting
from pianogen_hf.publishing.card_facts import hub_datasets
from pianogen_hf.publishing.model_card import write_card
from pianogen_hf.publishing.model_files import is_part, select_files
from pianogen_hf.publishing.push import push_command
from pianogen_hf.records import read_json, write_json
from pianogen_hf.tokenizers.notes_encoder import NotesEncoder
from pianogen_hf.training.arguments import PIECE, DataArguments, PianoTrainingArguments
from pianogen_hf.training.run_record import RunRecord
from pianogen_hf.training.stages import stage_record
from pianogen_hf.training.trainer import PianoTrainer
from pianogen_hf.workflows.split import Split

_HUB_SECONDS = 60.0  # how long the Hub may take to answer


def finish(
    trainer: PianoTrainer,
    tokenizer: NotesEncoder,
    split: Split,
    record: RunRecord,
    context: dict[str, int],
    card_text: str | None,
    train_seconds: float | None,
    earlier: list[dict[str, Any]],
) -> None:
    """Save the model, evaluate it on validation, and write and print what was measured."""
    trainer.save_model(_internal_call=True)  # and no push: the figures and the card are still to come
    scores = trainer.evaluate()
    folder = Path(str(trainer.args.output_dir))
    if not trainer.is_world_process_zero():
        return
    metrics = {
        **_circumstances(trainer, tokenizer, record, train_seconds),
        "source": ", ".join(sorted(set(split.pieces["source"]))),
        "hub_datasets": hub_datasets(split.manifest),
        "context": context,
        "validation": {name: scores[f"eval_{name}"] for name in ("bits_per_note", "nats_per_token", "accuracy")},
    }
    if isinstance(tokenizer, pianogen_hf.JSBTokenizer):
        grids = {
            split_name: [tokenizer.notes_to_grid(notes) for notes in split.notes(split_name)]
            for split_name in ("train", "validation")
        }
        metrics["baselines"] = grid_baselines(grids["train"], grids["validation"], trainer.eval_notes)
    if earlier:
        metrics["stages"] = [*earlier, stage_record(metrics)]
    write_json(folder / "metrics.json", metrics)
    write_card(folder, card_text)
    print(scores_table(folder))


def context_of(tokenizer: NotesEncoder, args: DataArguments, config: Any) -> dict[str, int]:
    """What a token is predicted from in evaluation: windows that slide, or those of a memory, which do not overlap."""
    size = chunk_size(tokenizer, args.chunk_length)
    if args.batching != PIECE:
        return {"window": size + 1, "stride": size, "memory": config.memory_length}
    return {"window": size + 1, "stride": size - chunk_overlap(tokenizer, args.chunk_length)}


def _circumstances(
    trainer: PianoTrainer, tokenizer: NotesEncoder, record: RunRecord, train_seconds: float | None
) -> dict[str, Any]:
    """How the figures came about; the time only of a run without a break."""
    device = trainer.args.device
    weights = {} if trainer.mixture is None else {"source_weights": trainer.mixture.weights}
    return {
        **weights,
        "command": record.command,
        **({"changes": record.changes} if record.changes else {}),
        "seed": trainer.args.seed,
        "steps": trainer.state.global_step,
        "world_size": trainer.args.world_size,
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "precision": "bfloat16" if trainer.args.bf16 else "float16" if trainer.args.fp16 else "float32",
        "batch_size": trainer.args.train_batch_size
        * trainer.args.gradient_accumulation_steps
        * trainer.args.world_size,
        "train_seconds": train_seconds if train_seconds is None else round(train_seconds, 1),
        "num_parameters": trainer.accelerator.unwrap_model(trainer.model).num_parameters(),
        "tokenizer": type(tokenizer).__name__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "pianogen_hf": pianogen_hf.__version__,
    }


def scores_table(folder: Path) -> str:
    """What a finished run measured, beside its baselines, as lines for the terminal.

    Raises:
        ArgumentError: if the folder holds no finished run.
    """
    metrics = read_json(folder / "metrics.json", default=None)
    if metrics is None:
        raise ArgumentError(f"{folder} holds no finished run (no metrics.json)")
    rows = {
        **metrics.get("baselines", {}),
        f"{folder} ({metrics['num_parameters']:,} parameters)": metrics["validation"],
    }
    lines = [f"{'validation pieces of ' + metrics['source']:44s} bits per note (lower is better)"]
    return "\n".join(lines + [f"  {name:42s} {values['bits_per_note']:.3f}" for name, values in rows.items()])


def publisher(args: PianoTrainingArguments) -> Callable[[Path, str], None]:
    """What sends a model folder to the Hub, for the main process to call.

    The repository is made now, so that a run of hours does not end in vain.

    Raises:
        HubError: in all processes, if that is refused or the Hub can't be reached.
    """
    limit_waiting(_HUB_SECONDS)
    name, made = args.hub_model_id or Path(args.output_dir).absolute().name, []
    outcome = [""]
    if args.process_index == 0:
        options: dict[str, Any] = {
            "private": args.hub_private_repo,
            "revision": args.hub_revision,
            "token": args.hub_token,
        }
        try:
            made.append(Destination(name, **options))
            args.hub_model_id = made[0].repo_id
            print(f"models will be pushed to {made[0].url}")
        except HubError as error:
            outcome = [str(error)]
    broadcast_object_list(outcome)  # if only one of them gave up, the others would wait for it
    if outcome[0]:
        raise HubError(outcome[0])

    def publish(folder: Path, message: str) -> None:
        print(made[0].push(select_files(folder, made[0].repo_id).uploads, message, is_part).summary)

    return publish


def push(trainer: PianoTrainer) -> int:
    """Push what was trained and measured. Whatever becomes of that, the model is safe in its folder."""
    folder, repo_id = str(trainer.args.output_dir), str(trainer.args.hub_model_id)
    options = [f"--revision={trainer.args.hub_revision}"] if trainer.args.hub_revision else []
    again = f"the model is safe in {folder}; to push it: {push_command(folder, repo_id, *options)}"
    try:
        trainer.push_to_hub()
    except PianogenError as error:
        raise ArgumentError(f"{error}; {again}") from error
    except KeyboardInterrupt:
        print(f"\ninterrupted while the model was pushed; {again}", file=sys.stderr)
        return 130
    return 0
