"""Training, from a YAML file to a model folder: arguments -> pieces -> split -> chunks -> Trainer -> save.

Wiring only: every step is a call into one of the stages.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import datasets
import transformers
from accelerate.utils import broadcast_object_list
from transformers import EarlyStoppingCallback, PreTrainedModel, TrainerCallback, set_seed

from pianogen_hf.data.manifest import write_manifest
from pianogen_hf.data.pieces import unusable_line
from pianogen_hf.data.provenance import Provenance, refusal
from pianogen_hf.data.sources.walking import passed_over_lines
from pianogen_hf.errors import ArgumentError, FileError, one_line
from pianogen_hf.evaluation.round_trip import RoundTrip, round_trip
from pianogen_hf.folders import FolderLock, moved_aside
from pianogen_hf.generation.continuation import GenerationError, Length, continue_notes
from pianogen_hf.records import change_in_words, recorded, without_place, write_json
from pianogen_hf.rendering.piano_roll import save_piano_roll
from pianogen_hf.tokenizers.midi import write_midi
from pianogen_hf.tokenizers.notes_encoder import NotesEncoder
from pianogen_hf.training.arguments import DataArguments, ModelArguments, PianoTrainingArguments, without_token
from pianogen_hf.training.budget import PaceCallback
from pianogen_hf.training.callbacks import DurationCallback, InterruptCallback, SampleCallback
from pianogen_hf.training.mixing import MixtureSampler
from pianogen_hf.training.run_record import RunRecord, read_run_record, run_record
from pianogen_hf.training.stages import Stage, earlier_stages, plan_stages, resume_point
from pianogen_hf.training.trainer import PianoTrainer
from pianogen_hf.training.ways import way_of_training
from pianogen_hf.workflows.examples import kinds_of, make_chunks, make_tokenizer, owners_of
from pianogen_hf.workflows.model_to_train import check_resumed, make_model, try_model
from pianogen_hf.workflows.pace import within_minutes
from pianogen_hf.workflows.split import Split, load_split, provenance_of
from pianogen_hf.workflows.train_end import context_of, finish, publisher, push

# By which an encoding is judged. Chorales repeat every eighth note, which a grid of voices writes as held on purpose.
_TRIED_PIECES, _MUCH_LOST_PERCENT, _MUCH_MERGED_PERCENT = 8, 10, 25


def train(argv: list[str], callbacks: Sequence[TrainerCallback] = ()) -> int:
    """Train all stages of a recipe; one without stages is one.

    Args:
        argv: the command line.
        callbacks: further ones for the Trainer, called after its own.

    Returns:
        The exit code: 0, or 130 if it was interrupted and can be resumed.

    Raises:
        PianogenError: for what a user can mend.
    """
    for stage in plan_stages(argv):
        code = _train_stage(within_minutes(stage, _train_stage), callbacks)
        if code:
            return code
    return 0


@dataclass(frozen=True)
class _Run:
    """What a stage is asked to do.

    Attributes:
        stage: of the recipe.
        argv: the command line, as it is recorded.
        model_args, data_args, args: its arguments, of the model, the data and the Trainer.
        resume: the checkpoint that it is resumed from; None for a new run.
        card_text: the hand-written part of the card.
        record: of what it is asked for, and what that was before it was resumed.
    """

    stage: Stage
    argv: list[str]
    model_args: ModelArguments
    data_args: DataArguments
    args: PianoTrainingArguments
    resume: str | None
    card_text: str | None
    record: RunRecord

    @property
    def is_main(self) -> bool:
        """Whether this is the process that prints and writes."""
        return self.args.process_index == 0


@dataclass(frozen=True)
class _Data:
    """What it is trained on.

    Attributes:
        split: the pieces.
        provenance: all that the model will have been trained on.
        tokenizer: or feature extractor.
        chunks: examples of each split.
        earlier: what the stages before this one measured.
        record: of the run.
    """

    split: Split
    provenance: Provenance
    tokenizer: NotesEncoder
    chunks: dict[str, Any]
    earlier: list[dict[str, Any]]
    record: RunRecord

    def write_beside(self, folder: Path) -> None:
        """What every checkpoint tells of its data and its run."""
        write_manifest(folder / "split.json", self.split.manifest)
        self.record.save(folder)
        self.provenance.save(folder)


def _train_stage(stage: Stage, callbacks: Sequence[TrainerCallback]) -> int:
    run = _begin(stage)
    with _held(run) as lock:
        return _train(run, lock, callbacks)


@contextmanager
def _held(run: _Run) -> Iterator[FolderLock | None]:
    """Hold the folder of the run against others: the main process does, and all give up together where it can't."""
    lock, refusal = FolderLock(run.stage.run_folder / ".lock", run.stage.run_folder, "--output_dir"), [""]
    with ExitStack() as stack:
        if run.is_main:
            try:
                stack.enter_context(lock)
            except FileError as error:
                refusal = [str(error)]
        broadcast_object_list(refusal)
        if refusal[0]:
            raise FileError(refusal[0])
        yield lock if run.is_main else None


def _train(run: _Run, lock: FolderLock | None, callbacks: Sequence[TrainerCallback]) -> int:
    with run.args.main_process_first(desc="preparing the data"):
        data = _prepare(run)
    mixture = _mixture(run, data)
    model = _make_model(run, data)
    kinds = kinds_of(run.data_args, data.split.pieces)
    batching = run.data_args.batching
    way = way_of_training(run.args, model, data.tokenizer, run.data_args.chunk_length, kinds, batching)
    publish = publisher(run.args) if run.args.push_to_hub else None
    # Only now, when all that a user can get wrong is behind us, is anything written.
    if lock is not None:
        _write_folder(run, data, lock)
    trainer, interrupt = _make_trainer(run, data, model, mixture, way, publish)
    is_timed = any(isinstance(each, PaceCallback) for each in callbacks)
    for callback in [*([] if is_timed else _callbacks(run.args, data)), *callbacks]:
        trainer.add_callback(callback)
    began = time.monotonic()
    trainer.train(resume_from_checkpoint=run.resume)
    if interrupt.has_stopped:
        if run.is_main:
            command = shlex.join([*run.argv, "--resume_from_checkpoint", "true"])
            print(f"Interrupted at step {trainer.state.global_step}. To resume: train.py {command}")
        return 130
    seconds = None if run.resume else time.monotonic() - began  # of a run without a break only
    finish(
        trainer,
        data.tokenizer,
        data.split,
        run.record,
        context_of(data.tokenizer, run.data_args, model.config),
        run.card_text,
        seconds,
        data.earlier,
    )
    return push(trainer) if run.args.push_to_hub else 0


def _begin(stage: Stage) -> _Run:
    """Read its arguments, and set up this process as they say."""
    model_args, data_args, args = stage.arguments()
    transformers.logging.set_verbosity(args.get_process_log_level())
    if args.disable_tqdm:
        datasets.disable_progress_bars()
        transformers.logging.disable_progress_bar()
    set_seed(args.seed)
    resume, card_text, argv = resume_point(args), _card_text(args.card_text), without_token(stage.argv)
    record = run_record((model_args, data_args, args), recorded("train.py", argv))
    before = read_run_record(Path(resume)) if resume else None
    if before is not None:
        record = record.resumed(before, Path(str(resume)))
    run = _Run(stage, argv, model_args, data_args, args, resume, card_text, record)
    if run.is_main and stage.total > 1:
        print(f"{stage.name}, in {stage.folder}")
    if run.is_main and before is not None and record.changes != before.changes:
        print(f"from step {record.changes[-1]['step']} on: {change_in_words(record.changes[-1])}")
    return run


def _prepare(run: _Run) -> _Data:
    """Read, split, refuse what the model may not see, and cut into examples."""
    earlier = earlier_stages(run.stage)  # not before: another process may just be writing what the last one measured
    split = load_split(run.data_args)
    if run.is_main:
        _say_what_was_read(split)
    provenance = _provenance(run, split)
    tokenizer = make_tokenizer(run.model_args, split)
    if run.is_main:
        _say_what_is_lost(tokenizer, split)
    return _Data(split, provenance, tokenizer, make_chunks(run.data_args, split, tokenizer), earlier, run.record)


def _make_model(run: _Run, data: _Data) -> PreTrainedModel:
    model = make_model(run.model_args, data.tokenizer, run.data_args.chunk_length)
    if run.model_args.model_name_or_path is None:
        try_model(model, data.tokenizer)
    if run.resume is not None:
        check_resumed(run.args, data.split.manifest, model, run.resume, run.record.begins_data_anew)
    return model


def _write_folder(run: _Run, data: _Data, lock: FolderLock) -> None:
    """Make the folder of the run, with what tells of its data."""
    if run.resume is None and run.stage.is_new_run:
        _move_earlier_run_aside(run.stage.run_folder, lock)
    folder = Path(run.args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    data.write_beside(folder)
    write_json(folder / "reading_report.json", data.split.report)


def _card_text(path: str | None) -> str | None:
    """The hand-written part of the card, read before the hours of training that it will describe."""
    try:
        return None if path is None else Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ArgumentError(f"card_text {path} can't be read: {one_line(error)}") from error


def _say_what_was_read(split: Split) -> None:
    report = split.report
    print(f"{report['usable']} of {report['files']} files, {report['notes']} notes, {report['hours']} hours")
    if report["without_chosen_programs"]:
        print(f"{report['without_chosen_programs']} of the others hold no notes of the chosen programs")
    for line in passed_over_lines(report["passed_over"]):
        print(line)
    if unusable := unusable_line(report["unusable"], "reading_report.json"):
        print(unusable)
    if report["remarks"]:
        counts = (f"{each['count']} {name} (in {each['files']} files)" for name, each in report["remarks"].items())
        print(f"left out of the files, or mended: {', '.join(counts)}")
    if report["between_sides"]:
        print(
            f"{len(report['between_sides'])} pieces left out, because they share music with pieces of different "
            "splits; all named in reading_report.json"
        )
    print("pieces: " + ", ".join(f"{split_name} {count}" for split_name, count in split.manifest["counts"].items()))


def _say_what_is_lost(tokenizer: NotesEncoder, split: Split) -> None:
    """A hint where the encoding is not made for this music: some pieces are encoded and decoded."""
    try:
        trips = [round_trip(tokenizer, notes) for notes in islice(split.notes("train"), _TRIED_PIECES)]
    except ValueError:  # a piece beyond what can be encoded: making the chunks will name it
        return
    lost = sum(trips, RoundTrip()).report()["dropped_or_merged_percent"]
    merges = "repeated notes" in tokenizer.lost_fields
    if lost > (_MUCH_MERGED_PERCENT if merges else _MUCH_LOST_PERCENT):
        print(
            f"hint: {type(tokenizer).__name__} loses {lost:.0f} % of the notes (of {len(trips)} train pieces): is it "
            "made for this music? `pianogen roundtrip FOLDER` compares the tokenizers"
        )


def _provenance(run: _Run, split: Split) -> Provenance:
    """What the model will have been trained on: refused where that takes in what it is to be evaluated on."""
    started_from = run.resume or run.model_args.model_name_or_path
    revision = None if run.resume else run.model_args.model_revision
    before = provenance_of(started_from, revision) if started_from else Provenance.new()
    if run.resume and before.runs and before.runs[-1]["split"] == split.manifest["hash"]:
        return before  # the same run is resumed
    overlaps = before.overlap(split.pieces, split.split_names)
    if overlaps and not run.data_args.allow_contamination:
        raise ArgumentError(refusal(overlaps, str(started_from)))
    origin, command = without_place(started_from) if started_from else None, recorded("train.py", run.argv)
    return before.extended(split.manifest, split.pieces, split.split_names, overlaps, command, origin)


def _move_earlier_run_aside(folder: Path, lock: FolderLock) -> None:
    """An earlier run in the same folder is kept, and never mixed with this one."""
    if not (folder / "split.json").exists() and not any(folder.glob("stage-*/split.json")):
        return
    if folder.resolve() in (Path.cwd(), *Path.cwd().parents):
        raise ArgumentError(f"output_dir {folder} holds an earlier run and can't be moved aside from within it")
    with lock.set_aside():
        aside = moved_aside(folder)
    print(f"{folder} held an earlier run: moved to {aside} (--resume_from_checkpoint true would have resumed it)")


def _make_trainer(
    run: _Run,
    data: _Data,
    model: PreTrainedModel,
    mixture: MixtureSampler | None,
    way: tuple[Callable[..., PianoTrainer], Any],
    publish: Callable[[Path, str], None] | None,
) -> tuple[PianoTrainer, InterruptCallback]:
    interrupt = InterruptCallback()
    trainer_class, collator = way
    trainer = trainer_class(
        eval_notes=data.split.manifest["notes"]["validation"],
        write_beside=data.write_beside,
        mixture=mixture,
        publish=publish,
        model=model,
        args=run.args,
        train_dataset=data.chunks["train"],
        eval_dataset=data.chunks["validation"],
        processing_class=data.tokenizer,
        callbacks=[interrupt],
        data_collator=collator,
    )
    return trainer, interrupt


def _callbacks(args: PianoTrainingArguments, data: _Data) -> list[TrainerCallback]:
    """Those of a run that is not only there to be timed."""
    callbacks: list[TrainerCallback] = [DurationCallback()]
    if args.early_stopping_patience is not None:
        callbacks.append(EarlyStoppingCallback(args.early_stopping_patience))
    if args.sample_steps is not None:

        def write_sample(model: Any, path: Path) -> None:
            _write_sample(model, data.tokenizer, path, args.sample_notes, args.seed)

        callbacks.append(SampleCallback(write_sample, args.sample_steps))
    return callbacks


def _mixture(run: _Run, data: _Data) -> MixtureSampler | None:
    """What draws train examples where the sources have weights."""
    weights = run.data_args.source_weights
    if weights is None:
        return None
    owners, names = owners_of(run.data_args, data.split.pieces, data.chunks["train"])
    mixture = MixtureSampler(owners, dict(zip(names, weights, strict=True)), run.args.seed)
    if mixture.missing and run.is_main:
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
