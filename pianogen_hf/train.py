"""Training, from a YAML file to a model folder: arguments -> pieces -> split -> chunks -> Trainer -> save.

Wiring only: every step is a call into one of the stages.
"""

from __future__ import annotations

import inspect
import json
import os
import shlex
import sys
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from datasets import Dataset, DatasetDict
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    EarlyStoppingCallback,
    GenerationMixin,
    PreTrainedModel,
    set_seed,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

import pianogen_hf
from pianogen_hf.data.chunks import build_chunks, notes_of
from pianogen_hf.data.families import join_families
from pianogen_hf.data.sources import DataError, list_pieces, load_pieces, reading_report, usable_pieces
from pianogen_hf.data.splits import assign_sides, limited_sides, split_manifest
from pianogen_hf.evaluation.baselines import grid_baselines
from pianogen_hf.generation.continuation import GenerationError, Length, continue_notes
from pianogen_hf.rendering.piano_roll import save_piano_roll
from pianogen_hf.tokenizers.midi import PIANO_PROGRAMS, MidiError, write_midi, write_whole
from pianogen_hf.tokenizers.tokenization_notes import NoteTokenizer
from pianogen_hf.training.arguments import (
    ArgumentError,
    DataArguments,
    ModelArguments,
    PianoTrainingArguments,
    make_parser,
    parse_arguments,
)
from pianogen_hf.training.callbacks import InterruptCallback, SampleCallback
from pianogen_hf.training.collator import ChunkCollator
from pianogen_hf.training.trainer import PianoTrainer


def main(argv: list[str] | None = None) -> int:
    """Train as the command line says; returns the exit code. Errors that a user can mend are one line."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] in ("-h", "--help"):
        make_parser().print_help()
        return 0 if argv else 2
    try:
        return _train(argv)
    except (ArgumentError, DataError, GenerationError, MidiError) as error:
        if os.environ.get("RANK", "0") == "0":  # under a launcher all processes meet the same error: one says so
            print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:  # outside training, or a second time within it: at other times a callback takes care
        print(
            "interrupted: --resume_from_checkpoint true goes on from the last checkpoint, if there is one",
            file=sys.stderr,
        )
        return 130


def _train(argv: list[str]) -> int:
    model_args, data_args, training_args = parse_arguments(argv)
    transformers.logging.set_verbosity(training_args.get_process_log_level())
    if training_args.disable_tqdm:
        datasets.disable_progress_bars()
        transformers.logging.disable_progress_bar()
    set_seed(training_args.seed)
    resume = _resume_point(training_args)
    is_main = training_args.process_index == 0
    with training_args.main_process_first(desc="preparing the data"):
        pieces, sides, report = _load_split(data_args)
        manifest = split_manifest(pieces, sides, _split_parameters(data_args))
        if is_main:
            _say_what_was_read(report, manifest)
        tokenizer = _make_tokenizer(model_args, pieces, sides)
        chunks = _make_chunks(data_args, pieces, sides, tokenizer)
    model = _make_model(model_args, tokenizer, data_args.chunk_length)
    # Only now, when all that a user can get wrong is behind us, is anything written.
    if resume is not None:
        _check_resumed(training_args, manifest, model, resume)
    elif is_main:
        _move_earlier_run_aside(Path(training_args.output_dir))
    if is_main:
        _write_json(Path(training_args.output_dir, "split.json"), manifest)
        _write_json(Path(training_args.output_dir, "reading_report.json"), report)
    trainer, interrupt = _make_trainer(training_args, model, tokenizer, chunks, manifest["notes"]["validation"])
    trainer.train(resume_from_checkpoint=resume)
    if interrupt.has_stopped:
        if is_main:
            command = shlex.join([*argv, "--resume_from_checkpoint", "true"])
            print(f"Interrupted at step {trainer.state.global_step}. To go on: train.py {command}")
        return 130
    _finish(trainer, model, tokenizer, pieces, sides, argv, data_args)
    return 0


def _resume_point(args: PianoTrainingArguments) -> str | None:
    """The checkpoint to go on from, or None for a new run."""
    wanted = args.resume_from_checkpoint
    if wanted is None or str(wanted).lower() in ("false", "none", ""):
        return None
    if str(wanted).lower() != "true":
        if not Path(wanted, "trainer_state.json").exists():
            raise ArgumentError(f"{wanted} is no checkpoint of an interrupted run (it holds no trainer_state.json)")
        return wanted
    # The state is written last: without it the run was killed while it saved, and an earlier checkpoint is the last.
    complete = [path.parent for path in Path(args.output_dir).glob("checkpoint-[0-9]*/trainer_state.json")]
    if not complete:
        raise ArgumentError(f"{args.output_dir} holds no checkpoint to go on from: leave out --resume_from_checkpoint")
    return str(max(complete, key=lambda path: int(path.name.split("-")[1])))


def _load_split(args: DataArguments) -> tuple[Dataset, list[str], dict[str, Any]]:
    """Usable pieces, the side of each, and the report of what was read."""
    programs = tuple(PIANO_PROGRAMS) if args.programs == "piano" else None
    cache_dir = Path(args.cache_dir).expanduser()
    read = load_pieces(list_pieces(args.source, args.data_path), cache_dir, programs, args.num_proc)
    pieces = join_families(usable_pieces(read))
    sides = assign_sides(pieces, args.validation_fraction, args.test_fraction, args.split_seed)
    if args.max_pieces is not None:
        rows, sides = limited_sides(sides, args.max_pieces)
        pieces = pieces.select(rows)
    for side in ("train", "validation"):
        if side not in sides:
            raise DataError(f"no piece is left for {side}: change validation_fraction or test_fraction, or add files")
    return pieces, sides, reading_report(read)


def _split_parameters(args: DataArguments) -> dict[str, Any]:
    names = ("source", "validation_fraction", "test_fraction", "split_seed", "max_pieces", "programs")
    return {name: getattr(args, name) for name in names}


def _say_what_was_read(report: dict[str, Any], manifest: dict[str, Any]) -> None:
    print(f"{report['usable']} of {report['files']} files, {report['notes']} notes, {report['hours']} hours")
    if report["unusable"]:
        example, reason = next(iter(report["unusable"].items()))
        print(f"{len(report['unusable'])} files left out, all named in reading_report.json; e.g. {example}: {reason}")
    print("pieces per side: " + ", ".join(f"{side} {count}" for side, count in manifest["counts"].items()))


def _check_resumed(
    args: PianoTrainingArguments, manifest: dict[str, Any], model: PreTrainedModel, checkpoint: str
) -> None:
    """A resumed run must have the split it began with, or pieces that it was trained on could now be evaluated.

    Every process looks for itself: if only one of them gave up, the others would wait for it.
    """
    written = Path(args.output_dir, "split.json")
    if written.exists() and json.loads(written.read_text(encoding="utf-8")) != manifest:
        raise ArgumentError(f"the pieces or their split changed since {checkpoint} was written: start a new run")
    before = AutoConfig.from_pretrained(checkpoint).to_dict()
    for name, value in model.config.to_dict().items():
        if type(value) is int and before.get(name) != value:  # sizes: with another one the weights would not fit
            raise ArgumentError(f"{checkpoint} has {name} {before.get(name)}, the run now asks for {value}")


def _move_earlier_run_aside(folder: Path) -> None:
    """An earlier run in the same folder is kept, and never mixed with this one."""
    if not (folder / "split.json").exists():
        return
    if folder.resolve() in (Path.cwd(), *Path.cwd().parents):
        raise ArgumentError(f"output_dir {folder} holds an earlier run and can't be moved aside from within it")
    number = next(n for n in range(1, 10_000) if not folder.with_name(f"{folder.name}.old{n}").exists())
    aside = folder.rename(folder.with_name(f"{folder.name}.old{number}"))
    print(f"{folder} held an earlier run: moved to {aside} (--resume_from_checkpoint true would have gone on)")


def _make_tokenizer(args: ModelArguments, pieces: Dataset, sides: list[str]) -> NoteTokenizer:
    """The checkpoint's tokenizer when fine-tuning; otherwise a new one, fitted on train pieces where it is to be."""
    if args.model_name_or_path is not None:
        tokenizer = load_pretrained(AutoTokenizer, args.model_name_or_path)
        if not isinstance(tokenizer, NoteTokenizer):
            raise ArgumentError(f"{args.model_name_or_path} has no tokenizer of music but a {type(tokenizer).__name__}")
        return tokenizer
    tokenizer = _new_tokenizer(args)
    if args.bpe_vocab_size is not None:
        if not isinstance(tokenizer, pianogen_hf.RemiTokenizer):
            raise ArgumentError("bpe_vocab_size needs --tokenizer RemiTokenizer")
        try:
            tokenizer.train_bpe(notes_of(pieces, sides, "train"), args.bpe_vocab_size)
        except ValueError as error:
            raise ArgumentError(f"bpe_vocab_size: {_one_line(error)}") from error
    return tokenizer


def _new_tokenizer(args: ModelArguments) -> NoteTokenizer:
    tokenizer_class = getattr(pianogen_hf, args.tokenizer, None)
    if not (isinstance(tokenizer_class, type) and issubclass(tokenizer_class, NoteTokenizer)):
        raise ArgumentError(f"unknown tokenizer {args.tokenizer!r}; see train.py --help")
    for name in args.tokenizer_config:  # tokenizers of transformers take any key and ignore the unknown ones
        if name not in inspect.signature(tokenizer_class).parameters:
            raise ArgumentError(f"unknown key {name!r} in tokenizer_config of {args.tokenizer}")
    try:
        return tokenizer_class(**args.tokenizer_config)
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"tokenizer_config: {_one_line(error)}") from error


def _make_chunks(args: DataArguments, pieces: Dataset, sides: list[str], tokenizer: NoteTokenizer) -> DatasetDict:
    return build_chunks(
        pieces,
        sides,
        tokenizer,
        args.chunk_length,
        Path(args.cache_dir).expanduser(),
        transpose=(args.transpose[0], args.transpose[1]),
        packing=args.packing,
        num_proc=args.num_proc,
    )


def load_pretrained(auto_class: Any, name: str, **kwargs: Any) -> Any:
    """`auto_class.from_pretrained` with one-line errors.

    Raises:
        ArgumentError: if there is no such folder or model, or it can't be opened.
    """
    try:
        return auto_class.from_pretrained(name, **kwargs)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        if Path(name).is_dir():
            raise ArgumentError(f"{name} can't be opened as a model: {_one_line(error)}") from error
        raise ArgumentError(
            f"no model {name!r}: it is no folder here, and the Hub does not have it or can't be reached"
        ) from error


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _make_model(args: ModelArguments, tokenizer: NoteTokenizer, chunk_length: int) -> PreTrainedModel:
    """The checkpoint when fine-tuning; otherwise a new model of the sizes in `model_config`."""
    name = args.model_name_or_path
    if name is not None:
        model = load_pretrained(AutoModelForCausalLM, name, use_safetensors=True, dtype=torch.float32)
    else:
        model = _new_model(args, tokenizer, chunk_length)
    if model.config.vocab_size < len(tokenizer):
        raise ArgumentError(f"the model knows {model.config.vocab_size} ids, its tokenizer writes {len(tokenizer)}")
    context = getattr(model.config, "max_position_embeddings", None)
    if context is not None and context < chunk_length:
        raise ArgumentError(f"chunk_length {chunk_length} is more than the {context} ids that the model is made for")
    return model


def _new_model(args: ModelArguments, tokenizer: NoteTokenizer, chunk_length: int) -> PreTrainedModel:
    if args.model_type not in CONFIG_MAPPING:
        raise ArgumentError(f"unknown model_type {args.model_type!r}: music_transformer, gpt2, llama, ...")
    defaults = CONFIG_MAPPING[args.model_type]()
    for name in args.model_config:
        if name not in defaults.to_dict() and name not in defaults.attribute_map:
            raise ArgumentError(f"unknown key {name!r} in model_config of {args.model_type}")
    settings = {
        "vocab_size": len(tokenizer),
        "max_position_embeddings": chunk_length,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    try:
        config = AutoConfig.for_model(args.model_type, **{**settings, **args.model_config})
        return AutoModelForCausalLM.from_config(config)
    except (TypeError, ValueError, StrictDataclassError) as error:
        raise ArgumentError(f"model_config: {_one_line(error)}") from error


def _make_trainer(
    args: PianoTrainingArguments, model: PreTrainedModel, tokenizer: NoteTokenizer, chunks: DatasetDict, eval_notes: int
) -> tuple[PianoTrainer, InterruptCallback]:
    interrupt = InterruptCallback()
    callbacks: list[Any] = [interrupt]
    if args.early_stopping_patience is not None:
        callbacks.append(EarlyStoppingCallback(args.early_stopping_patience))
    if args.sample_steps is not None:

        def write_sample(model: GenerationMixin, path: Path) -> None:
            _write_sample(model, tokenizer, path, args.sample_notes, args.seed)

        callbacks.append(SampleCallback(write_sample, args.sample_steps))
    trainer = PianoTrainer(
        eval_notes=eval_notes,
        model=model,
        args=args,
        train_dataset=chunks["train"],
        eval_dataset=chunks["validation"],
        data_collator=ChunkCollator(tokenizer.pad_token_id),
        processing_class=tokenizer,
        callbacks=callbacks,
    )
    return trainer, interrupt


def _write_sample(model: GenerationMixin, tokenizer: NoteTokenizer, path: Path, num_notes: int, seed: int) -> None:
    """One piece from nothing as `path`.mid and `path`.png; a model that is still silent is no reason to stop."""
    try:
        sample = continue_notes(model, tokenizer, Length(notes=num_notes), seed=seed, do_sample=True, top_p=0.95)[0]
    except GenerationError as error:
        print(f"no sample at {path.name}: {error}")
        return
    write_midi(sample.notes, path.with_suffix(".mid"))
    save_piano_roll(sample.notes, path.with_suffix(".png"), title=path.name)


def _finish(
    trainer: PianoTrainer,
    model: PreTrainedModel,
    tokenizer: NoteTokenizer,
    pieces: Dataset,
    sides: list[str],
    argv: list[str],
    data_args: DataArguments,
) -> None:
    """Save the model, evaluate it on validation, and write and print what was measured."""
    trainer.save_model()
    scores = trainer.evaluate()
    folder = Path(str(trainer.args.output_dir))
    if not trainer.is_world_process_zero():
        return
    metrics: dict[str, Any] = {
        "command": shlex.join(["train.py", *argv]),
        "seed": trainer.args.seed,
        "steps": trainer.state.global_step,
        "world_size": trainer.args.world_size,
        "num_parameters": model.num_parameters(),
        "tokenizer": type(tokenizer).__name__,
        "source": data_args.source,
        "transformers": transformers.__version__,
        "pianogen_hf": pianogen_hf.__version__,
        "validation": {name: scores[f"eval_{name}"] for name in ("bits_per_note", "nats_per_token", "accuracy")},
    }
    if isinstance(tokenizer, pianogen_hf.JSBTokenizer):
        grids = {
            side: [tokenizer.notes_to_grid(notes) for notes in notes_of(pieces, sides, side)]
            for side in ("train", "validation")
        }
        metrics["baselines"] = grid_baselines(grids["train"], grids["validation"], trainer.eval_notes)
    _write_json(folder / "metrics.json", metrics)
    print(scores_table(folder))


def scores_table(folder: Path) -> str:
    """What a finished run measured, beside its baselines, as lines for the terminal.

    Raises:
        ArgumentError: if the folder holds no finished run.
    """
    try:
        metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise ArgumentError(f"{folder} holds no finished run (no metrics.json)") from error
    rows = {
        **metrics.get("baselines", {}),
        f"{folder} ({metrics['num_parameters']:,} parameters)": metrics["validation"],
    }
    lines = [f"{'validation pieces of ' + metrics['source']:44s} bits per note (lower is better)"]
    return "\n".join(lines + [f"  {name:42s} {values['bits_per_note']:.3f}" for name, values in rows.items()])


def _write_json(path: Path, value: Any) -> None:
    write_whole(path, (json.dumps(value, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode())
