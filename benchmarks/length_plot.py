"""Cost and memory of a training step against the length: `OMP_NUM_THREADS=2 python benchmarks/length_plot.py`.

Writes `benchmarks/length.png` and prints its figures as Markdown. The models are those of `training_speed.py` and, in
the same size, transformers' Llama with `sdpa` (its feed-forward layers are narrower, for there are three matrices
instead of two) and the causal piano encoder. One sequence a step: forward, loss and backward without an optimizer.

Each point is measured in a process of its own, which does one short step first: time is the median of some steps, of
fewer the longer they are, and memory their peak less what was resident once libraries and model were there.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import sys
import time
from pathlib import Path

import torch
import transformers
from training_speed import FORMS, VOCAB, build, current_megabytes, make_step, peak_megabytes
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from pianogen_hf.models.configuration_piano_encoder import PianoEncoderConfig
from pianogen_hf.models.modeling_piano_encoder import PianoEncoderForCausalLM

# What a row is called in the plot: row of `build_row` -> name.
ROWS = {
    "gpt2": "GPT-2",
    "llama": "Llama",
    "exact global": "V7, all distances",
    "clipped at 512": "V7, 512 distances",
    "window 512": "V7, window of 512",
    "piano encoder": "Piano encoder, causal",
}
LENGTHS = [512, 1024, 2048, 4096, 8192]
WARM_UP_LENGTH = 256  # long enough for the attention in blocks


def build_row(row: str, length: int) -> PreTrainedModel:
    """The model of a row without dropout, ready to train on sequences of `length`."""
    if row == "gpt2" or row in FORMS:
        return build(row, length, 0.0)
    torch.manual_seed(0)
    if row == "llama":
        config = LlamaConfig(
            vocab_size=VOCAB,
            hidden_size=512,
            intermediate_size=1376,
            num_hidden_layers=6,
            num_attention_heads=8,
            max_position_embeddings=length,
            tie_word_embeddings=True,
            attn_implementation="sdpa",
        )
        return LlamaForCausalLM(config).train()
    encoder = PianoEncoderConfig(
        vocab_size=VOCAB, max_position_embeddings=length, hidden_dropout=0.0, attention_dropout=0.0
    )
    return PianoEncoderForCausalLM(encoder).train()


def measure(row: str, length: int, bf16: bool, clock_name: str, threads: int, answer) -> None:
    """In a process of its own: send the seconds of a step and the megabytes of its peak."""
    torch.set_num_threads(threads)
    clock = time.perf_counter if clock_name == "wall" else time.process_time
    model = build_row(row, length)
    resident = current_megabytes()
    make_step(model, 1, min(WARM_UP_LENGTH, length), bf16)()
    step, seconds = make_step(model, 1, length, bf16), []
    for _ in range(max(1, min(3, 4096 // length))):
        start = clock()
        step()
        seconds.append(clock() - start)
    answer.send((statistics.median(seconds), peak_megabytes() - resident))


def measure_all(options: argparse.Namespace) -> dict[str, list[tuple[float, float]]]:
    """For each row, seconds and megabytes at each length."""
    # Forked before any operator has run: libraries need not be imported again, and there are no threads yet.
    context = multiprocessing.get_context("fork")
    results: dict[str, list[tuple[float, float]]] = {row: [] for row in options.rows}
    for length in options.lengths:
        for row in options.rows:
            print(f"{row} at {length:,} ...", end=" ", file=sys.stderr, flush=True)
            receiver, sender = context.Pipe(duplex=False)
            arguments = (row, length, options.precision == "bf16", options.clock, options.threads, sender)
            process = context.Process(target=measure, args=arguments)
            process.start()
            sender.close()
            try:
                seconds, megabytes = receiver.recv()
            except EOFError:
                sys.exit(f"the process that measured {row} at {length:,} ended early: perhaps the memory is too small")
            process.join()
            results[row].append((seconds, megabytes))
            print(f"{seconds:.2f} s, {megabytes:,.0f} MB", file=sys.stderr, flush=True)
    return results


def print_table(results: dict[str, list[tuple[float, float]]], lengths: list[int]) -> None:
    """Seconds per 1,000 tokens and, in brackets, megabytes."""
    print("| s per 1,000 tokens (peak MB) |" + "".join(f" {length:,} |" for length in lengths))
    print("|---|" + "---|" * len(lengths))
    for row, points in results.items():
        cells = [f" {s / n * 1000:.2f} ({mb:,.0f}) |" for n, (s, mb) in zip(lengths, points, strict=True)]
        print(f"| {ROWS[row]} |" + "".join(cells))


def plot(results: dict[str, list[tuple[float, float]]], options: argparse.Namespace) -> None:
    """Draw time from 0, where linear cost is level, and memory on a logarithmic axis, side by side."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, LogLocator, NullLocator, StrMethodFormatter

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    by_time, by_memory = figure.subplots(1, 2)
    for number, (row, points) in enumerate(results.items()):
        style = {"marker": "osD^vP"[number % 6], "markersize": 5, "linewidth": 1.6}
        seconds = [1000 * s / n for n, (s, _) in zip(options.lengths, points, strict=True)]
        by_time.plot(options.lengths, seconds, label=ROWS[row], **style)
        by_memory.plot(options.lengths, [megabytes for _, megabytes in points], **style)
    threads = f"{options.threads} thread" + "s" * (options.threads != 1)
    by_time.set_title(f"Time per 1,000 tokens ({options.precision}, {threads}, s)", fontsize=11)
    by_memory.set_title("Peak memory less model (MB)", fontsize=11)
    for axes in (by_time, by_memory):
        axes.set_xscale("log", base=2)
        axes.set_xlabel("Length of the sequence, in tokens")
        axes.xaxis.set_major_locator(FixedLocator(options.lengths))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.grid(alpha=0.3)
    by_time.set_ylim(bottom=0)
    by_memory.set_yscale("log", base=2)
    by_memory.yaxis.set_major_locator(LogLocator(base=2, subs=(1.0, 1.5)))
    by_memory.yaxis.set_minor_locator(NullLocator())
    by_memory.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    by_time.legend(fontsize=9, frameon=False)
    figure.savefig(options.output, dpi=90)


def main() -> None:
    """Read the options, measure and draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", nargs="+", default=list(ROWS), choices=list(ROWS))
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--precision", default="bf16", choices=["float32", "bf16"])
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="cpu where the machine is not quiet")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("length.png"))
    options = parser.parse_args()
    options.threads = int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads()))
    options.lengths.sort()
    transformers.logging.set_verbosity_error()
    results = measure_all(options)
    print_table(results, options.lengths)
    plot(results, options)
    print(f"wrote {options.output}", file=sys.stderr)


if __name__ == "__main__":
    main()
