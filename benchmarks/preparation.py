"""How long a MAESTRO release takes from MIDI files to chunks on disk, and what reading batches costs in training.

    OMP_NUM_THREADS=1 python benchmarks/preparation.py MAESTRO_FOLDER

The train files are read, their families found, and the pieces cut into the chunks of configs/v7.yaml (performance
events, 2,049 ids): with one process, with two, and once more from the cache. Every run is a process of its own, whose
imports are not counted; its workers are its children. Beside the seconds of the wall stands processor time, of the main
process and of the workers. On a busy machine look at "quiet": main + workers / their number, what the wall would show
if nobody else computed and the work were shared evenly. Memory is the peak of the largest process; compare it with that
of `--files 240`.

    OMP_NUM_THREADS=1 python benchmarks/preparation.py MAESTRO_FOLDER --batches

Processor time of a batch of 8 of these chunks from the DataLoader, with the collator, without and with lazy
augmentation, and that of a training step of the recipe's model on such a batch.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

CHUNK_LENGTH, BATCH_SIZE, BATCHES, STEPS = 2049, 8, 100, 3  # the first two are those of configs/v7.yaml


class Stage(NamedTuple):
    """Seconds that one part of the work took."""

    name: str
    wall: float
    main: float  # processor time
    workers: float  # processor time of all of them


def cpu_seconds() -> tuple[float, float]:
    """Processor time so far of this process, and of its children that have ended."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    own, children = (usage.ru_utime + usage.ru_stime for usage in usages)
    return own, children


def prepare(folder: str, cache: str, num_files: int | None, num_proc: int) -> tuple[list[Stage], int, str]:
    """The stages; peak memory in MB; how much music it was."""
    from datasets import disable_progress_bars

    from pianogen_hf.data.chunks import build_chunks
    from pianogen_hf.data.families import join_families
    from pianogen_hf.data.pieces import load_pieces, usable_pieces
    from pianogen_hf.data.sources.listing import list_sources
    from pianogen_hf.tokenizers.tokenization_performance import PerformanceTokenizer

    disable_progress_bars()
    tokenizer, stages = PerformanceTokenizer(), []

    def timed(name: str, function: Callable[[], Any]) -> Any:
        began, (main, workers) = time.perf_counter(), cpu_seconds()
        result = function()
        now = cpu_seconds()
        stages.append(Stage(name, time.perf_counter() - began, now[0] - main, now[1] - workers))
        return result

    files = timed("list", lambda: list_sources([f"maestro={folder}"]))
    files = [file for file in files if file.official_split == "train"][:num_files]
    read = timed("read", lambda: load_pieces(files, cache, num_proc=num_proc))
    pieces = timed("families", lambda: join_families(usable_pieces(read), cache))
    sides = ["train"] * len(pieces)
    chunks = timed("chunk", lambda: build_chunks(pieces, sides, tokenizer, CHUNK_LENGTH, cache, num_proc=num_proc))
    peak = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) // 1024
    return stages, peak, f"{len(pieces)} pieces, {sum(pieces['num_notes']):,} notes, {len(chunks['train']):,} chunks"


def show(name: str, stages: list[Stage], num_proc: int, peak: int) -> None:
    """One row of the table: the sums, and the wall of each stage."""
    wall, main, workers = (sum(stage[column] for stage in stages) for column in (1, 2, 3))
    parts = ", ".join(f"{stage.name} {stage.wall:.1f}" for stage in stages)
    print(f"| {name} | {wall:.1f} ({parts}) | {main:.1f} | {workers:.1f} | {main + workers / num_proc:.1f} | {peak} |")


def runs(folder: str, num_files: int | None) -> None:
    """The table of all runs."""
    print("| run | wall s (of it) | main CPU s | workers CPU s | quiet s | peak MB |\n|---|---|---|---|---|---|")
    for num_proc in (1, 2):
        with tempfile.TemporaryDirectory() as cache:
            for name in (f"{num_proc} process{'es' * (num_proc > 1)}", "the same from the cache"):
                stages, peak, size = alone(prepare, folder, cache, num_files, num_proc)
                show(name, stages, num_proc, peak)
    print(size)


def alone(function: Callable[..., Any], *args: Any) -> Any:
    """What the function gives in a new process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *args).result()


def batches(folder: str, num_files: int | None) -> Iterator[tuple[str, float]]:
    """What was measured, and its median in milliseconds of processor time."""
    import torch
    from datasets import disable_progress_bars
    from torch.utils.data import DataLoader

    from pianogen_hf.data.augment import Augmentation
    from pianogen_hf.data.chunks import build_chunks
    from pianogen_hf.data.lazy import LazyChunks
    from pianogen_hf.data.pieces import load_pieces, usable_pieces
    from pianogen_hf.data.sources.listing import list_sources
    from pianogen_hf.models.configuration_music_transformer import MusicTransformerConfig
    from pianogen_hf.models.modeling_music_transformer import MusicTransformerForCausalLM
    from pianogen_hf.tokenizers.tokenization_performance import PerformanceTokenizer
    from pianogen_hf.training.collator import ChunkCollator

    disable_progress_bars()
    tokenizer = PerformanceTokenizer()
    with tempfile.TemporaryDirectory() as cache:
        files = [file for file in list_sources([f"maestro={folder}"]) if file.official_split == "train"][:num_files]
        pieces = usable_pieces(load_pieces(files, cache))
        sides, lazily = ["train"] * len(pieces), Augmentation((-3, 3), stretch=(0.95, 1.05))
        examples = {
            "a batch of chunks on disk": build_chunks(pieces, sides, tokenizer, CHUNK_LENGTH, cache)["train"],
            "a batch augmented lazily": LazyChunks(
                pieces, range(len(pieces)), tokenizer, CHUNK_LENGTH, lazily, cache_dir=cache
            ),
        }
        for name, dataset in examples.items():
            collator = ChunkCollator(tokenizer.pad_token_id)
            loader = iter(DataLoader(dataset, BATCH_SIZE, shuffle=True, collate_fn=collator))
            batch = next(loader)
            yield name, median_milliseconds(lambda loader=loader: next(loader), min(BATCHES, len(loader) - 1))
    # The model of configs/v7.yaml.
    torch.manual_seed(0)
    config = MusicTransformerConfig(
        vocab_size=len(tokenizer),
        hidden_size=512,
        num_hidden_layers=6,
        num_attention_heads=8,
        intermediate_size=2048,
        max_relative_distance=1024,
    )
    model = MusicTransformerForCausalLM(config).train()
    yield "a training step", median_milliseconds(lambda: model(**batch).loss.backward(), STEPS)


def median_milliseconds(function: Callable[[], Any], count: int) -> float:
    """Of processor time, of `count` calls."""
    times = []
    for _ in range(count):
        began = time.process_time()
        function()
        times.append(time.process_time() - began)
    return 1000 * statistics.median(times)


def main() -> None:
    """Print the table of runs, or the cost of batches."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", metavar="MAESTRO_FOLDER", type=lambda path: str(Path(path).resolve()))
    parser.add_argument("--files", type=int, help="take the first of them only")
    parser.add_argument("--batches", action="store_true", help="measure batches instead")
    arguments = parser.parse_args()
    if not arguments.batches:
        runs(arguments.folder, arguments.files)
        return
    for name, milliseconds in batches(arguments.folder, arguments.files):
        print(f"{name}: {milliseconds:,.1f} ms")


if __name__ == "__main__":
    main()
