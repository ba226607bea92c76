"""Training, from a YAML file to a model folder: arguments -> pieces -> split -> chunks -> Trainer -> save.

Wiring only: every step is a call into one of the stages.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import transformers
from datasets import Dataset
from transformers import EarlyStoppingCallback, PreTrainedModel, TrainerCallback, set_seed

from pianogen_hf.data.lazy import LazyChunks
from pianogen_hf.data.manifest import split_manifest, write_manifest
from pianogen_hf.data.provenance import Provenance, refusal
from pianogen_hf.errors import ArgumentError, one_line
from pianogen_hf.generation.continuation import GenerationError, Length, continue_notes
from pianogen_hf.records import recorded, without_place, write_json
from pianogen_hf.rendering.piano_roll import save_piano_roll
from pianogen_hf.tokenizers.midi import write_midi
from pianogen_hf.tokenizers.notes_encoder import NotesEncoder
from pianogen_hf.training.arguments import DataArguments, PianoTrainingArguments, without_token
from pianogen_hf.training.callbacks import DurationCallback, EpochCallback, InterruptCallback, SampleCallback
from pianogen_hf.training.mixing import MixtureSampler
from pianogen_hf.training.stages import Stage, earlier_stages, plan_stages
from pianogen_hf.training.trainer import PianoTrainer
from pianogen_hf.training.ways import way_of_training
from pianogen_hf.workflows.examples import kinds_of, make_chunks, make_tokenizer, owners_of
from pianogen_hf.workflows.model_to_train import check_resumed, make_model, try_model
from pianogen_hf.workflows.pace import within_minutes
from pianogen_hf.workflows.split import load_split, provenance_of, split_parameters
from pianogen_hf.workflows.train_end import finish, publisher, push


def train(argv: list[str], callbacks: Sequence[TrainerCallback] = ()) -> int:
    """Train all stages of a recipe; one without stages is one.

    Args:
        argv: the command line.
        callbacks: further ones for the Trainer, called after its own.

    Returns:
        The exit code: 0, or 130 if it was interrupted and can go on.

    Raises:
        PianogenError: for what a user can mend.
    """
    for stage in plan_stages(argv):
        code = _train_stage(within_minutes(stage, _train_stage), callbacks)
        if code:
            return code
    return 0


def _train_stage(stage: Stage, callbacks: Sequence[TrainerCallback]) -> int:
    argv = without_token(stage.argv)  # what is recorded
    model_args, data_args, training_args = stage.arguments()
    transformers.logging.set_verbosity(training_args.get_process_log_level())
    if training_args.disable_tqdm:
        datasets.disable_progress_bars()
        transformers.logging.disable_progress_bar()
    set_seed(training_args.seed)
    resume = _resume_point(training_args)
    card_text = _card_text(training_args.card_text)
    is_main = training_args.process_index == 0
    if is_main and stage.total > 1:
        print(f"{stage.name}, in {stage.folder}")
    with training_args.main_process_first(desc="preparing the data"):
        earlier = earlier_stages(stage)  # not before: another process may just be writing what the last one measured
        pieces, sides, report = load_split(data_args)
        manifest = split_manifest(pieces, sides, split_parameters(data_args))
        if is_main:
            _say_what_was_read(report, manifest)
        started_from = resume or model_args.model_name_or_path
        provenance = _provenance(
            started_from,
            None if resume else model_args.model_revision,
            resume is not None,
            pieces,
            sides,
            manifest,
            argv,
            data_args.allow_contamination,
        )
        tokenizer = make_tokenizer(model_args, pieces, sides)
        chunks = make_chunks(data_args, pieces, sides, tokenizer)
    mixture = _mixture(data_args, pieces, chunks["train"], training_args.seed, is_main)
    model = make_model(model_args, tokenizer, data_args.chunk_length)
    if model_args.model_name_or_path is None:
        try_model(model, tokenizer)
    kinds = kinds_of(data_args, pieces)
    way = way_of_training(training_args, model, tokenizer, data_args.chunk_length, kinds)
    if resume is not None:
        check_resumed(training_args, manifest, model, resume)
    publish = publisher(training_args) if training_args.push_to_hub else None
    # Only now, when all that a user can get wrong is behind us, is anything written.
    if resume is None and is_main and stage.is_new_run:
        _move_earlier_run_aside(stage.run_folder)

    def write_beside(folder: Path) -> None:
        """What every checkpoint tells of its data."""
        write_manifest(folder / "split.json", manifest)
        provenance.save(folder)

    if is_main:
        Path(training_args.output_dir).mkdir(parents=True, exist_ok=True)
        write_beside(Path(training_args.output_dir))
        write_json(Path(training_args.output_dir, "reading_report.json"), report)
    trainer, interrupt = _make_trainer(
        training_args, model, tokenizer, chunks, manifest["notes"]["validation"], write_beside, mixture, way, publish
    )
    for callback in callbacks:
        trainer.add_callback(callback)
    began = time.monotonic()
    trainer.train(resume_from_checkpoint=resume)
    if interrupt.has_stopped:
        if is_main:
            command = shlex.join([*argv, "--resume_from_checkpoint", "true"])
            print(f"Interrupted at step {trainer.state.global_step}. To go on: train.py {command}")
        return 130
    train_seconds = None if resume else time.monotonic() - began  # of a run without a break only
    finish(trainer, tokenizer, pieces, sides, argv, data_args.chunk_length, card_text, train_seconds, earlier)
    return push(trainer) if training_args.push_to_hub else 0


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


def _card_text(path: str | None) -> str | None:
    """The hand-written part of the card, read before the hours of training that it will describe."""
    try:
        return None if path is None else Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ArgumentError(f"card_text {path} can't be read: {one_line(error)}") from error


def _say_what_was_read(report: dict[str, Any], manifest: dict[str, Any]) -> None:
    print(f"{report['usable']} of {report['files']} files, {report['notes']} notes, {report['hours']} hours")
    if report["without_chosen_programs"]:
        print(f"{report['without_chosen_programs']} of the others hold no notes of the chosen programs")
    if report["unusable"]:
        example, reason = next(iter(report["unusable"].items()))
        print(f"{len(report['unusable'])} files left out, all named in reading_report.json; e.g. {example}: {reason}")
    if report["between_sides"]:
        print(
            f"{len(report['between_sides'])} pieces left out, because they share music with pieces on different sides; "
            "all named in reading_report.json"
        )
    print("pieces per side: " + ", ".join(f"{side} {count}" for side, count in manifest["counts"].items()))


def _provenance(
    started_from: str | None,
    revision: str | None,
    is_resumed: bool,
    pieces: Dataset,
    sides: list[str],
    manifest: dict[str, Any],
    argv: list[str],
    allow_contamination: bool,
) -> Provenance:
    """What the model will have been trained on: refused where that takes in what it is to be evaluated on."""
    before = provenance_of(started_from, revision) if started_from else Provenance.new()
    if is_resumed and before.runs and before.runs[-1]["split"] == manifest["hash"]:
        return before  # the same run goes on
    overlaps = before.overlap(pieces, sides)
    if overlaps and not allow_contamination:
        raise ArgumentError(refusal(overlaps, str(started_from)))
    origin = without_place(started_from) if started_from else None
    return before.extended(manifest, pieces, sides, overlaps, recorded("train.py", argv), origin)


def _move_earlier_run_aside(folder: Path) -> None:
    """An earlier run in the same folder is kept, and never mixed with this one."""
    if not (folder / "split.json").exists() and not any(folder.glob("stage-*/split.json")):
        return
    if folder.resolve() in (Path.cwd(), *Path.cwd().parents):
        raise ArgumentError(f"output_dir {folder} holds an earlier run and can't be moved aside from within it")
    number = next(n for n in range(1, 10_000) if not folder.with_name(f"{folder.name}.old{n}").exists())
    aside = folder.rename(folder.with_name(f"{folder.name}.old{number}"))
    print(f"{folder} held an earlier run: moved to {aside} (--resume_from_checkpoint true would have gone on)")


def _make_trainer(
    args: PianoTrainingArguments,
    model: PreTrainedModel,
    tokenizer: NotesEncoder,
    chunks: dict[str, Any],
    eval_notes: int,
    write_beside: Callable[[Path], None],
    mixture: MixtureSampler | None,
    way: tuple[type[PianoTrainer], Any],
    publish: Callable[[Path, str], None] | None,
) -> tuple[PianoTrainer, InterruptCallback]:
    interrupt = InterruptCallback()
    callbacks: list[Any] = [interrupt, DurationCallback()]
    if isinstance(chunks["train"], LazyChunks):
        callbacks.append(EpochCallback(chunks["train"].set_epoch))
    if args.early_stopping_patience is not None:
        callbacks.append(EarlyStoppingCallback(args.early_stopping_patience))
    trainer_class, collator = way
    if args.sample_steps is not None:

        def write_sample(model: Any, path: Path) -> None:
            _write_sample(model, tokenizer, path, args.sample_notes, args.seed)

        callbacks.append(SampleCallback(write_sample, args.sample_steps))
    trainer = trainer_class(
        eval_notes=eval_notes,
        write_beside=write_beside,
        mixture=mixture,
        publish=publish,
        model=model,
        args=args,
        train_dataset=chunks["train"],
        eval_dataset=chunks["validation"],
        processing_class=tokenizer,
        callbacks=callbacks,
        data_collator=collator,
    )
    return trainer, interrupt


def _mixture(args: DataArguments, pieces: Dataset, chunks: Any, seed: int, is_main: bool) -> MixtureSampler | None:
    """What draws train examples where the sources have weights."""
    if args.source_weights is None:
        return None
    owners, names = owners_of(args, pieces, chunks)
    mixture = MixtureSampler(owners, dict(zip(names, args.source_weights, strict=True)), seed)
    if mixture.missing and is_main:
        print(f"no train piece of {', '.join(mixture.missing)}: the others share all train examples")
    return mixture


def _write_sample(model: Any, tokenizer: NotesEncoder, path: Path, num_notes: int, seed: int) -> None:
    """One piece from nothing as `path`.mid and `path`.png; a model that is still silent is no reason to stop."""
    try:
        sample = continue_notes(model, tokenizer, Length(notes=num_notes), seed=seed, do_sample=True, top_p=0.95)[0]
    except GenerationError as error:
        print(f"no sample at {path.name}: {error}")
        return
    write_midi(sample.notes, path.with_suffix(".mid"))
    save_piano_roll(sample.notes, path.with_suffix(".png"), title=path.name)
