"""Arguments of a training run: a YAML file, overridden by the command line."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import sys
from argparse import ArgumentTypeError
from dataclasses import dataclass, field, fields
from typing import Any, NoReturn

import torch
from transformers import HfArgumentParser, TrainingArguments
from transformers.trainer_utils import HubStrategy
from transformers.training_args import OptimizerNames

from pianogen_hf.errors import ArgumentError
from pianogen_hf.models.note_controls import KINDS
from pianogen_hf.training.muon import has_fast_bf16
from pianogen_hf.training.recipe import options_of_stages, read_yaml, suggestion

__all__ = [
    "DataArguments",
    "JsonMap",
    "ModelArguments",
    "PianoTrainingArguments",
    "make_parser",
    "parse_arguments",
    "parse_stages",
    "read_yaml",
]


MUON = "muon"
PIECE, CONTIGUOUS, SEQUENCE = "piece", "contiguous", "sequence"  # see `batching`
BATCHINGS = (PIECE, CONTIGUOUS, SEQUENCE)
WITH_DRUMS = "all+drums"  # of `programs`


class JsonMap(dict[str, Any]):
    """A map that the command line gives as JSON text."""

    def __init__(self, value: str = "{}") -> None:
        try:
            parsed = json.loads(value)
        except json.JSONDecodeError as error:
            raise ArgumentTypeError(
                f"{value!r} is no JSON map such as '{{\"hidden_size\": 128}}': {error.msg}"
            ) from error
        if not isinstance(parsed, dict):
            raise ArgumentTypeError(f"{value!r} is no JSON map such as '{{\"hidden_size\": 128}}'")
        super().__init__(parsed)


@dataclass
class ModelArguments:
    """What is trained."""

    model_type: str = field(
        default="music_transformer", metadata={"help": "Any model type that AutoModelForCausalLM knows, e.g. gpt2."}
    )
    model_config: JsonMap = field(
        default_factory=JsonMap,
        metadata={"help": "Sizes of the model, as its config class names them (JSON or YAML map)."},
    )
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "Fine-tune this checkpoint (folder or Hub id) instead of starting afresh."}
    )
    model_revision: str | None = field(
        default=None, metadata={"help": "Branch, tag or commit of that checkpoint on the Hub."}
    )
    trust_remote_code: bool = field(
        default=False, metadata={"help": "Run code that the checkpoint carries, if its architecture is not known here."}
    )
    tokenizer: str = field(
        default="PerformanceTokenizer",
        metadata={
            "help": "Tokenizer class, such as PerformanceTokenizer, RemiTokenizer, CrayKHTokenizer or JSBTokenizer (an "
            "unknown name gets you the whole list); for model type continuous_notes ContinuousNotesFeatureExtractor."
        },
    )
    tokenizer_config: JsonMap = field(
        default_factory=JsonMap, metadata={"help": "Settings of the tokenizer class (JSON or YAML map)."}
    )
    bpe_vocab_size: int | None = field(
        default=None, metadata={"help": "Fit BPE of this size on the train pieces (RemiTokenizer only)."}
    )
    action_vocab_size: int | None = field(
        default=None,
        metadata={
            "help": "Give the most frequent time steps of the train pieces tokens of their own, up to a vocabulary of "
            "this size (NoteDurationTokenizer only)."
        },
    )


@dataclass
class DataArguments:
    """What it is trained on."""

    source: list[str] = field(
        default_factory=lambda: ["bach"],
        metadata={
            "help": "One or more of: bach (built in), folder=PATH (your MIDI files), maestro=PATH, lakh=PATH (a .tar, "
            ".tar.gz or folder of multitrack files), dataset=PATH (what `pianogen data build` wrote), "
            "hub=USER/NAME[@REVISION] (a data set on the Hub, published with `pianogen data push` or by anybody)."
        },
    )
    source_weights: list[float] | None = field(
        default=None,
        metadata={
            "help": "One number per source: its share of the train examples. With 1 3 the second gives three of four. "
            "An epoch has as many examples as there are chunks; of a source with a greater share some come twice, of "
            "one with a smaller share the rest comes in the next epoch. Validation stays as it is."
        },
    )
    source_kinds: list[str] | None = field(
        default=None,
        metadata={
            "help": "What kind of music each source is, for models that can be asked for one: classical, jazz, score "
            "(played as it stands), or none."
        },
    )
    data_path: str | None = field(default=None, metadata={"help": "PATH of the source, where there is only one."})
    max_pieces: int | None = field(default=None, metadata={"help": "Use only this many pieces of each split."})
    programs: str = field(
        default="piano",
        metadata={
            "help": "Instruments to keep from multitrack files: piano (programs 0-7), all, or all+drums, for "
            "MidiEventTokenizer. What is left out is counted."
        },
    )
    validation_fraction: float = field(
        default=0.1, metadata={"help": "Share of the pieces without an official split, as near as families allow."}
    )
    test_fraction: float = field(default=0.1, metadata={"help": "Share kept for a test that training never sees."})
    split_seed: int = field(default=0, metadata={"help": "Names the split."})
    split_from: list[str] | None = field(
        default=None,
        metadata={
            "help": "A model, a data set or a split.json: pieces that it knows keep the split they have there. Of "
            "several the first that knows a piece decides."
        },
    )
    allow_contamination: bool = field(
        default=False,
        metadata={"help": "Start from a model that was trained on evaluation pieces; the model is marked for ever."},
    )
    chunk_length: int = field(default=1025, metadata={"help": "Ids (of continuous notes: notes) per training example."})
    packing: bool = field(default=False, metadata={"help": "Let training chunks run over the ends of pieces."})
    batching: str = field(
        default=PIECE,
        metadata={
            "help": "For models with a memory_length. piece: every chunk alone, in random order; contiguous: each row "
            "of a batch walks through a piece, and remembers it to its end; sequence: all pieces are one, of which "
            "each row walks through a part, and nothing is forgotten."
        },
    )
    augmentation: str = field(
        default="prebuilt",
        metadata={"help": "prebuilt: every transposition on disk; lazy: drawn anew each time a piece is used."},
    )
    transpose: list[int] = field(
        default_factory=lambda: [0, 0], metadata={"help": "Augment train pieces from this to that many semitones."}
    )
    velocity: list[int] = field(
        default_factory=lambda: [0, 0], metadata={"help": "Play train pieces softer and louder, from this to that."}
    )
    stretch: list[float] = field(
        default_factory=lambda: [1.0, 1.0],
        metadata={"help": "Play train pieces from this to that times as long, e.g. 0.95 1.05."},
    )
    normalize_key: bool = field(default=False, metadata={"help": "Bring every piece to C major or A minor first."})
    cache_dir: str = field(
        default="~/.cache/pianogen_hf", metadata={"help": "Where read pieces and chunks are kept for the next run."}
    )
    num_proc: int | None = field(default=None, metadata={"help": "Processes that prepare the data."})
    stage: int | None = field(
        default=None,
        metadata={"help": "Of a recipe in stages this one alone (1 for the first), as a recipe of its own."},
    )


@dataclass
class PianoTrainingArguments(TrainingArguments):
    """`transformers.TrainingArguments` with the defaults of this package and what it adds."""

    output_dir: str = field(default="runs/model", metadata={"help": "Where checkpoints, samples and the model go."})
    # The Trainer would drop the columns that `forward` does not take; the collator wants `first_label`.
    remove_unused_columns: bool = field(default=False, metadata={"help": "Leave this False: see the collator."})
    # Pinned memory serves transfers to a GPU; without one it only warns.
    dataloader_pin_memory: bool = field(default=torch.cuda.is_available(), metadata={"help": "Pin host memory."})
    # The Trainer's default looks for unused parameters at every step; in a causal model there are none.
    ddp_find_unused_parameters: bool | None = field(default=False, metadata={"help": "See DistributedDataParallel."})
    bf16: bool | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "bfloat16 training; by default wherever the hardware is fast at it."}
    )
    optim: str = field(
        default=OptimizerNames.ADAMW_TORCH.value,
        metadata={"help": "muon (matrices by Muon, the rest by AdamW), or what transformers knows: adamw_torch ..."},
    )
    report_to: str | None = field(default="tensorboard", metadata={"help": "tensorboard, none, or another tracker."})
    card_text: str | None = field(
        default=None, metadata={"help": "Markdown file with what the model's card says of purpose, licences, limits."}
    )
    sample_steps: int | None = field(
        default=None, metadata={"help": "Write a generated sample (.mid and .png) every so many steps."}
    )
    sample_notes: int = field(default=120, metadata={"help": "Notes in such a sample."})
    early_stopping_patience: int | None = field(
        default=None, metadata={"help": "Stop after so many evaluations without better bits per note; keeps the best."}
    )
    minutes: float | None = field(
        default=None,
        metadata={
            "help": "Train for about so long: the first steps are timed, and max_steps follows. Evaluations, "
            "checkpoints and what comes before and after training are not counted."
        },
    )
    mask_kinds: list[str] | None = field(
        default=None,
        metadata={
            "help": "For a masked model: in nine of ten examples hide all tokens of one of these kinds, Pitch or "
            "Duration, say, so that it learns to write pitches to a rhythm, or a rhythm to pitches."
        },
    )
    adam_learning_rate: float | None = field(
        default=None,
        metadata={
            "help": "With --optim muon, whose learning rate is --learning_rate (0.02, say): that of AdamW, which takes "
            "embeddings and output layers. A fifth of the other by default."
        },
    )
    decay_share: float | None = field(
        default=None,
        metadata={
            "help": "Hold the learning rate after the warm-up and let it fall to 0 over this last share of the steps."
        },
    )

    def __post_init__(self) -> None:
        """Fill in what depends on the hardware and on other arguments."""
        if self.bf16 is None:
            self.bf16 = has_fast_bf16("cuda" if torch.cuda.is_available() else "cpu")
        if not torch.accelerator.is_available():
            self.use_cpu = True  # without it `TrainingArguments` takes bf16 for the wish for a GPU
        if self.early_stopping_patience is not None:
            _check_early_stopping(self)
            self.load_best_model_at_end = True
            self.metric_for_best_model, self.greater_is_better = "bits_per_note", False
        known = [MUON, *(each.value for each in OptimizerNames)]
        if self.optim not in known:
            raise ArgumentError(f"unknown optim {self.optim!r}{suggestion(str(self.optim), known)}")
        is_muon = self.optim == MUON
        if is_muon:  # `TrainingArguments` knows the names of its own optimizers only
            self.optim = OptimizerNames.ADAMW_TORCH.value
        if self.torch_compile and self.use_cpu and cpp_compiler() is None:
            print("torch_compile needs a C++ compiler, but there is none: training runs without it", file=sys.stderr)
            self.torch_compile = False
        if self.torch_compile and self.use_cpu:
            # Drawn by compiled code, the masks of dropout take as long as the rest of a small model's forward pass.
            torch._inductor.config.fallback_random = True
        super().__post_init__()
        if is_muon:
            self.optim = MUON
        # Several GPUs are for `accelerate launch`: DataParallel would multiply the gradient by their number, because
        # the Trainer takes a loss that is summed over all of them for the loss of one.
        self._n_gpu = min(self._n_gpu, 1)


def _check_early_stopping(args: PianoTrainingArguments) -> None:
    """Early stopping goes back to the best checkpoint, so every evaluation that may be the best must be saved."""
    evaluates, saves = str(args.eval_strategy), str(args.save_strategy)
    if evaluates == "no":
        raise ArgumentError("early_stopping_patience needs evaluations: add --eval_strategy steps, or epoch")
    if saves not in (evaluates, "best"):
        raise ArgumentError(
            f"early_stopping_patience keeps the best checkpoint: with --eval_strategy {evaluates} "
            f"save_strategy must be {evaluates} or best, not {saves}"
        )


def cpp_compiler() -> str | None:
    """The C++ compiler with which `torch.compile` would build kernels for a CPU."""
    return next(
        (path for name in (os.environ.get("CXX"), "g++", "clang++") if name and (path := shutil.which(name))), None
    )


def without_token(argv: list[str]) -> list[str]:
    """A command line as it may be recorded and published: nobody's access token in it."""
    hidden = [re.sub(r"^(--(hub|push_to_hub)_token)=.*", r"\1=***", each) for each in argv]
    after = [index + 1 for index, each in enumerate(hidden[:-1]) if re.fullmatch(r"--(hub|push_to_hub)_token", each)]
    return ["***" if index in after else each for index, each in enumerate(hidden)]


class _Parser(HfArgumentParser):
    """A parser whose errors are one line and an exception, not a page of usage."""

    def error(self, message: str) -> NoReturn:
        raise ArgumentError(message)


def make_parser() -> HfArgumentParser:
    """The parser behind `train.py`: our own options first, then those of `TrainingArguments`."""
    parser = _Parser(
        [ModelArguments, DataArguments, PianoTrainingArguments],  # type: ignore[list-item]
        prog="train.py",
        usage="train.py CONFIG.yaml [--OPTION VALUE ...]",
        description="Train a model on piano music. Every option can stand in the YAML file or on the command line; "
        "the command line wins.",
        epilog="Examples: train.py configs/quickstart.yaml --learning_rate 3.0e-4 ; train.py configs/v7.yaml "
        "--source folder --data_path ~/midi ; accelerate launch train.py configs/quickstart.yaml ; resume an "
        "interrupted run: the same command and --resume_from_checkpoint true",
        allow_abbrev=False,
    )
    return parser


Arguments = tuple[ModelArguments, DataArguments, PianoTrainingArguments]


def parse_arguments(argv: list[str]) -> Arguments:
    """Read `[CONFIG.yaml] [--option value ...]`; of a recipe in stages, the one that `--stage` names.

    Raises:
        ArgumentError: for a file that can't be read, for unknown or unusable options, by name, and for several stages.
    """
    stages = parse_stages(argv)
    if len(stages) > 1:
        raise ArgumentError(f"{argv[0]} has {len(stages)} stages: choose one with --stage, 1 to {len(stages)}")
    return stages[0]


def parse_stages(argv: list[str]) -> list[Arguments]:
    """Read `[CONFIG.yaml] [--option value ...]` of a recipe that may have stages; without them it is one.

    The arguments of `TrainingArguments` set up devices and precision for the whole process, which then are those of
    the last stage: parse one stage anew (`--stage`) before it is trained.

    Raises:
        ArgumentError: for a file that can't be read, and for unknown or unusable options, by name.
    """
    config: dict[str, Any] = {}
    if argv and not argv[0].startswith("-"):
        config, argv = read_yaml(argv[0]), argv[1:]
    parser = make_parser()
    known = {each.name for dataclass_type in parser.dataclass_types for each in fields(dataclass_type) if each.init}
    stages = options_of_stages(config, argv, known)
    chosen = _stage_of(argv)
    if chosen is not None:
        if not 1 <= chosen <= len(stages):
            raise ArgumentError(f"--stage {chosen}: this recipe has {len(stages)} stage(s), counted from 1")
        stages = stages[chosen - 1 : chosen]
    return [_parse(parser, options, known) for options in stages]


def _stage_of(argv: list[str]) -> int | None:
    """The stage that a command line asks for: it decides what else is to be parsed."""
    parser = _Parser(prog="train.py", add_help=False, allow_abbrev=False)
    parser.add_argument("--stage", type=int)
    return parser.parse_known_args(argv)[0].stage


def _parse(parser: HfArgumentParser, options: list[str], known: set[str]) -> Arguments:
    try:
        parsed = parser.parse_args_into_dataclasses(options, return_remaining_strings=True, look_for_args_file=False)
    except (TypeError, ValueError) as error:
        raise ArgumentError(" ".join(str(error).split())) from error
    model, data, training, remaining = parsed
    if remaining:
        name = remaining[0].lstrip("-").split("=")[0]
        raise ArgumentError(f"unknown option {remaining[0]!r}{suggestion(name, known)}")
    _check(model, data, training)
    return model, data, training


# Smallest values, where a smaller one would fail only later, and not by name.
_MINIMA = {
    "chunk_length": 2,
    "max_pieces": 1,
    "num_proc": 1,
    "split_seed": 0,
    "bpe_vocab_size": 1,
    "action_vocab_size": 1,
    "per_device_train_batch_size": 1,
    "per_device_eval_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "sample_steps": 1,
    "sample_notes": 1,
    "early_stopping_patience": 1,
    "minutes": 0.01,
}
# Values of `TrainingArguments` that our collator and metrics can't work with.
_FORBIDDEN = {
    "remove_unused_columns": True,
    "prediction_loss_only": True,
    "batch_eval_metrics": True,
    "eval_do_concat_batches": False,
}


def _check_ranges(data: DataArguments) -> None:
    """Every range of an augmentation is two numbers around the value that changes nothing."""
    examples = {"transpose": (0, "-5 6"), "velocity": (0, "-10 10"), "stretch": (1, "0.95 1.05")}
    for name, (neutral, example) in examples.items():
        values = getattr(data, name)
        if len(values) != 2 or not values[0] <= neutral <= values[1] < 128:
            raise ArgumentError(
                f"{name} takes two numbers, lowest (at most {neutral}) and highest (at least {neutral}), e.g. {example}"
            )
    if not data.stretch[0] >= 0.1:
        raise ArgumentError(f"stretch must be at least 0.1, got {data.stretch[0]}")
    if data.augmentation not in ("prebuilt", "lazy"):
        raise ArgumentError(f"augmentation must be prebuilt or lazy, got {data.augmentation!r}")
    if data.batching not in BATCHINGS:
        raise ArgumentError(f"batching must be one of {', '.join(BATCHINGS)}, got {data.batching!r}")
    if data.batching != PIECE and data.augmentation == "lazy":
        raise ArgumentError(f"batching {data.batching} walks through pieces on disk: choose --augmentation prebuilt")
    if data.batching == CONTIGUOUS and data.packing:
        raise ArgumentError("batching contiguous forgets a piece with its end: leave out packing")
    if data.augmentation == "lazy" and data.packing:
        raise ArgumentError("packing is for prebuilt chunks: leave it out, or choose --augmentation prebuilt")


def _check_weights(data: DataArguments) -> None:
    """One positive number per source, and chunks that are of one source each."""
    weights = data.source_weights
    if weights is None:
        return
    if len(weights) != len(data.source):
        raise ArgumentError(f"source_weights takes one number per source: {len(data.source)}, got {len(weights)}")
    if not all(0 < weight < math.inf for weight in weights):
        raise ArgumentError(f"source_weights must be positive numbers, got {' '.join(map(str, weights))}")
    if data.packing:
        raise ArgumentError("source_weights need chunks of one source each: leave out packing")
    if data.batching != PIECE:
        raise ArgumentError(f"source_weights draw chunks one by one: leave out batching {data.batching}")


def _check_kinds(data: DataArguments) -> None:
    """One known kind of music per source."""
    if data.source_kinds is None:
        return
    if len(data.source_kinds) != len(data.source):
        raise ArgumentError(f"source_kinds takes one kind per source: {len(data.source)}, got {len(data.source_kinds)}")
    unknown = set(data.source_kinds) - {"none", *KINDS}
    if unknown:
        raise ArgumentError(f"source_kinds are {', '.join(KINDS)} or none, not {min(unknown)!r}")


def _check(model: ModelArguments, data: DataArguments, training: PianoTrainingArguments) -> None:
    """Refuse what argparse can't: pairs, ranges, and options that need or exclude one another."""
    _check_ranges(data)
    _check_weights(data)
    _check_kinds(data)
    if data.programs not in ("piano", "all", WITH_DRUMS):
        raise ArgumentError(f"programs must be piano, all or {WITH_DRUMS}, got {data.programs!r}")
    values = {**vars(model), **vars(data), **vars(training)}
    for name, minimum in _MINIMA.items():
        if values[name] is not None and values[name] < minimum:
            raise ArgumentError(f"{name} must be at least {minimum}, got {values[name]}")
    if training.decay_share is not None and not 0 < training.decay_share <= 1:
        raise ArgumentError(f"decay_share must be more than 0 and at most 1, got {training.decay_share:g}")
    for name, value in _FORBIDDEN.items():
        if values[name] is value:
            raise ArgumentError(f"{name} can't be {value} here: the collator and the metrics need it otherwise")
    if training.push_to_hub and training.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
        raise ArgumentError("hub_strategy can't upload checkpoints: optimizer states are pickle; say every_save or end")
    if training.load_best_model_at_end and training.save_total_limit == 1:
        # The Trainer would keep the best checkpoint only, and lose the one that an interrupted run resumes from.
        raise ArgumentError("save_total_limit must be at least 2 where the best checkpoint is kept beside the latest")
    if training.sample_steps is not None and os.environ.get("ACCELERATE_USE_FSDP") == "true":
        training.sample_steps = None
        if os.environ.get("RANK", "0") == "0":
            print("no samples are written during training: with FSDP no process has the whole model", file=sys.stderr)
