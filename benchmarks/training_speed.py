"""Training steps of V7 against GPT-2: `OMP_NUM_THREADS=2 python benchmarks/training_speed.py` prints Markdown tables.

Both models have 6 layers of width 512 with 8 heads, 2,048 wide feed-forward layers and 400 ids; a step is forward, loss
and backward. GPT-2 (transformers, fused `sdpa` kernel) runs in the same precision, dropout and shape. Steps of all
models of a table alternate, so that a busy machine slows all of them; medians are compared. `--clock cpu` counts the
time of the process and not of the wall, for one thread on a machine that is not quiet.

Memory is measured in a process of its own each: the peak of the resident set during two steps, less what was resident
once libraries and model were there; the figure in brackets is the whole peak, libraries included.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
import transformers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from pianogen_hf.models.configuration_music_transformer import MusicTransformerConfig
from pianogen_hf.models.modeling_music_transformer import MusicTransformerForCausalLM

VOCAB = 400
# Of V7: what the row is called -> max_relative_distance (None: the length), attention_window, attn_implementation.
FORMS: dict[str, tuple[int | None, int | None, str]] = {
    "exact global": (None, None, "relative"),
    "clipped at 512": (512, None, "relative"),
    "window 512": (512, 512, "relative"),
    "dense bias": (None, None, "sdpa"),
}
SPEED_ROWS = ["gpt2", "exact global", "clipped at 512", "window 512"]


def build(row: str, length: int, dropout: float) -> PreTrainedModel:
    """The model of a row, ready to train."""
    torch.manual_seed(0)
    if row == "gpt2":
        config = GPT2Config(
            vocab_size=VOCAB,
            n_positions=length,
            n_embd=512,
            n_layer=6,
            n_head=8,
            n_inner=2048,
            bos_token_id=1,
            eos_token_id=2,
            resid_pdrop=dropout,
            embd_pdrop=dropout,
            attn_pdrop=dropout,
            attn_implementation="sdpa",
        )
        return GPT2LMHeadModel(config).train()
    distance, window, implementation = FORMS[row]
    config = MusicTransformerConfig(
        vocab_size=VOCAB,
        max_relative_distance=distance or length,
        attention_window=window,
        hidden_dropout=dropout,
        attention_dropout=dropout,
        attn_implementation=implementation,
    )
    return MusicTransformerForCausalLM(config).train()


def make_step(model: PreTrainedModel, batch: int, length: int, bf16: bool) -> Callable[[], None]:
    """One training step without the optimizer, which is the same for all."""
    ids = torch.randint(3, VOCAB, (batch, length), generator=torch.Generator().manual_seed(1))

    def step() -> None:
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = model(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()

    return step


def speeds(rows: list[str], batch: int, length: int, bf16: bool, dropout: float, repeats: int, clock) -> None:
    """Print a table of alternating steps."""
    steps = {row: make_step(build(row, length, dropout), batch, length, bf16) for row in rows}
    seconds: dict[str, list[float]] = {row: [] for row in rows}
    for repeat in range(repeats + 1):  # the first is for warming up
        for row, step in steps.items():
            start = clock()
            step()
            if repeat:
                seconds[row].append(clock() - start)
    precision = "bf16 autocast" if bf16 else "float32"
    print(f"\n| {batch} x {length:,}, {precision}, dropout {dropout:g} | tokens/s | over GPT-2 | s (min-max) |")
    print("|---|---|---|---|")
    reference = statistics.median(seconds[rows[0]])
    for row, times in seconds.items():
        median = statistics.median(times)
        spread = f"{median:.2f} ({min(times):.2f}-{max(times):.2f})"
        print(f"| {row} | {batch * length / median:,.0f} | {reference / median:.2f} | {spread} |", flush=True)


def current_megabytes() -> float:
    """What is resident now."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


def peak_megabytes() -> float:
    """The most that was ever resident."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def measure_memory(row: str, length: int, bf16: bool, dropout: float) -> None:
    """In a process of its own: print the peak of two steps less what libraries and model need, and the whole peak."""
    step = make_step(build(row, length, dropout), 1, length, bf16)
    resident = current_megabytes()
    step()
    step()
    print(peak_megabytes() - resident, peak_megabytes())


def memory(rows: list[str], lengths: list[int], bf16: bool, dropout: float) -> None:
    """Print a table of peaks at batch 1."""
    precision = "bf16 autocast" if bf16 else "float32"
    print(
        f"\n| MB at batch 1, {precision}, dropout {dropout:g} |" + "".join(f" {n:,} |" for n in lengths),
        "last / first |",
    )
    print("|---|" + "---|" * (len(lengths) + 1))
    for row in rows:
        cells = []
        for length in lengths:
            command = [sys.executable, __file__, "--measure-memory", row, "--lengths", str(length)]
            command += ["--dropout", str(dropout)] + (["--precision", "bf16"] if bf16 else [])
            result = subprocess.run(command, capture_output=True, text=True, check=True)
            cells.append(tuple(float(number) for number in result.stdout.split()))
        shown = "".join(f" {step:,.0f} ({whole:,.0f}) |" for step, whole in cells)
        print(f"| {row} |{shown} {cells[-1][0] / cells[0][0]:.2f} |", flush=True)


def main() -> None:
    """Read the options and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="*", default=["short", "long", "memory"], choices=["short", "long", "memory"])
    parser.add_argument("--rows", nargs="*", default=SPEED_ROWS, choices=["gpt2", *FORMS])
    parser.add_argument("--precision", nargs="*", default=["float32", "bf16"], choices=["float32", "bf16"])
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--lengths", type=int, nargs="*", default=[8192, 16384], help="of the table of memory")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--measure-memory", metavar="ROW", choices=["gpt2", *FORMS], help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", torch.get_num_threads())))
    transformers.logging.set_verbosity_error()
    if options.measure_memory:
        measure_memory(options.measure_memory, options.lengths[0], options.precision == ["bf16"], options.dropout)
        return
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, {torch.get_num_threads()} threads")
    clock = time.perf_counter if options.clock == "wall" else time.process_time
    for precision in options.precision:
        bf16 = precision == "bf16"
        for table, batch, length in (("short", 2, 2048), ("long", 1, 8192)):
            if table in options.tables:
                speeds(options.rows, batch, length, bf16, options.dropout, options.repeats, clock)
        if "memory" in options.tables:
            memory(options.rows, options.lengths, bf16, options.dropout)


if __name__ == "__main__":
    main()
