"""What a memory is worth beside context of the same cost, on the built-in chorales at a tiny size.

    python benchmarks/memory.py train OUTPUT [--cpu_seconds 60] [--seed 0] [--only NAME ...]
    python benchmarks/memory.py bundled

`train`: every model gets the same CPU time of one thread for its steps, and as many tokens a step; reported are
bits per note on the validation split, as each model was trained and without its memory.
`bundled`: the chorale model that comes with the package, which has never had a memory, is given one.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

import pianogen_hf as pg
from pianogen_hf.commands import main as pianogen
from pianogen_hf.evaluation.likelihood import piece_likelihood
from pianogen_hf.records import read_json
from pianogen_hf.workflows.heldout import own_split
from pianogen_hf.workflows.loading import load_model
from pianogen_hf.workflows.split import Places
from pianogen_hf.workflows.train import train

SIZES = {"hidden_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 256}
SIZES |= {"hidden_dropout": 0.1, "attention_dropout": 0.0, "max_relative_distance": 256}
TOKENS_A_STEP = 2048
SINUSOIDS = {"position_embedding_type": "sinusoidal"}
MEMORY = {"memory_length": 128}
KNN = {"knn_layer": 1, "knn_memory_size": 1024, "knn_neighbours": 16}
# Tokens of a segment, settings of the model, batching. 128 tokens are two bars of four voices.
RUNS: dict[str, tuple[int, dict[str, Any], str]] = {
    "context 128": (128, {}, "piece"),
    "context 256": (256, {}, "piece"),
    "128 + memory 128": (128, MEMORY, "contiguous"),
    "128 + memory 128, kNN": (128, {**MEMORY, **KNN}, "contiguous"),
    "128 + memory 128, one sequence": (128, MEMORY, "sequence"),
    "128 + memory 128, each chunk alone": (128, MEMORY, "piece"),
    "128 + memory 128, sinusoids": (128, {**MEMORY, **SINUSOIDS}, "contiguous"),
}


class CpuTime(TrainerCallback):
    """Ends training once its steps have taken so much CPU time; evaluation and preparation do not count."""

    def __init__(self, seconds: float) -> None:
        self.left = seconds

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """Look at the clock."""
        self.began = time.process_time()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take off what the step took."""
        self.left -= time.process_time() - self.began
        control.should_training_stop = self.left <= 0


def run(name: str, folder: Path, cpu_seconds: float, seed: int) -> dict[str, Any]:
    """Train and evaluate one model; one that has a record is left as it is."""
    record = folder / "record.json"
    if record.exists():
        return read_json(record)
    segment, settings, batching = RUNS[name]
    rows = TOKENS_A_STEP // segment
    options = {
        "source": "bach",
        "tokenizer": "JSBTokenizer",
        "model_config": json.dumps({**SIZES, **settings}),
        "chunk_length": segment + 1,
        "batching": batching,
        "output_dir": folder,
        "max_steps": 100_000,
        "per_device_train_batch_size": rows,
        "per_device_eval_batch_size": rows,
        "learning_rate": 2e-3,
        "lr_scheduler_type": "constant_with_warmup",
        "warmup_steps": 20,
        "weight_decay": 0.05,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": "true",
        "seed": seed,
    }
    train([f"--{key}={value}" for key, value in options.items()], [CpuTime(cpu_seconds)])
    pianogen(["evaluate", "--model", str(folder), "--output", str(folder), "--only", "likelihood"])
    metrics = read_json(folder / "metrics.json")
    bits = metrics["evaluation"]["validation"]["likelihood"]
    measured = {
        "steps": metrics["steps"],
        "parameters": metrics["num_parameters"],
        "bits_per_note": bits["sliding"]["bits_per_note"],
        "standard_error": bits["sliding"]["standard_error"],
        "bits_per_note_separate": bits["separate"]["bits_per_note"],
    }
    record.write_text(json.dumps(measured))
    return measured


def bundled() -> None:
    """Bits per note of the bundled model with windows alone, windows that slide and memories of several lengths."""
    folder = Path(pg.BACH_MODEL)
    pieces = own_split(folder, "validation", Places(), None).pieces.items()
    model, encoder = load_model(pg.BACH_MODEL)
    print("| tokens at a time | before them | bits per note | seconds of CPU |\n|---|---|---|---|")
    ways = [(size, None, size) for size in (64, 128, 256)] + [(size, None, size // 2) for size in (128, 256)]
    ways += [(size, memory, size) for size in (64, 128) for memory in (64, 128, 256, 512)]
    for size, memory, stride in ways:
        model.config.memory_length, began = memory, time.process_time()
        found = piece_likelihood(model, encoder, pieces, size + 1, stride, with_memory=memory is not None)
        before = (
            "nothing" if memory is None and stride == size else f"{stride}, by sliding" if memory is None else memory
        )
        seconds = time.process_time() - began
        print(f"| {size} | {before} | {found.bits_per_note:.3f} | {seconds:.1f} |", flush=True)


def trained(output: Path, names: list[str], cpu_seconds: float, seed: int) -> None:
    """Train and evaluate models, and print what they cost."""
    print("| model | parameters | steps | bits per note | windows alone |\n|---|---|---|---|---|", flush=True)
    for name in names:
        found = run(name, output / name.replace(" ", "_"), cpu_seconds, seed)
        bits = f"{found['bits_per_note']:.3f} ± {found['standard_error']:.3f}"
        alone = f"{found['bits_per_note_separate']:.3f}"
        print(f"| {name} | {found['parameters']:,} | {found['steps']} | {bits} | {alone} |", flush=True)


def main() -> None:
    """Measure what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("bundled")
    train_parser = commands.add_parser("train")
    train_parser.add_argument("output", type=Path)
    train_parser.add_argument("--cpu_seconds", type=float, default=60.0)
    train_parser.add_argument("--seed", type=int, default=0)
    train_parser.add_argument("--only", nargs="+", default=list(RUNS), choices=list(RUNS))
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.command == "bundled":
        bundled()
    else:
        trained(args.output, args.only, args.cpu_seconds, args.seed)


if __name__ == "__main__":
    main()
