"""What a written note costs: `OMP_NUM_THREADS=1 python benchmarks/note_speed.py MODEL` prints a Markdown table.

A note transformer (V8) goes on after 1,000 notes of context, one thread, batch 1, with temperature 1, top_p 0.95 and a
wished density. A note is everything: the step of the decoder, the heads, drawing, and the loop around them. Now and
then a full window is read anew from its latest half, which is in the last column and in the notes a second. Runs of
torch and of both engines, exported here, alternate, so that a busy machine slows all of them.

`--clock cpu` counts the time of the process and not of the wall: for a machine that is not quiet. There the fastest
notes (p5) tell most: the others found the processor's caches full of other programs' data.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import onnxruntime
import torch
import transformers

from pianogen_hf.generation.note_stream import Controls, NoteModel, NoteStream
from pianogen_hf.generation.onnx.exporters import NoteExporter
from pianogen_hf.generation.processors import warped
from pianogen_hf.workflows.loading import load_model

CONTEXT = 1000


def context() -> np.ndarray:
    """Notes as a stream takes them, drawn at random, by onset."""
    rng = np.random.default_rng(0)
    onset = np.cumsum(rng.integers(0, 20, CONTEXT)) / 100
    fields = [rng.integers(low, high, CONTEXT) for low, high in ((40, 80), (30, 90), (5, 80))]
    notes = np.stack([onset, fields[0], fields[1], fields[2] / 100], axis=-1)
    return notes[np.lexsort([notes[:, 1], notes[:, 0]])]


def seconds_of_notes(model: NoteModel, number: int, seed: int, clock: Callable[[], float]) -> np.ndarray:
    """Seconds of each of so many notes after the first, before which the context is read."""
    past = context()
    stream = NoteStream(
        model,
        past,
        past[:0],
        begin_sec=float(past[-1, 0]),
        controls=Controls(density=4),
        processors=(warped(1.0, 0.95),),
        generator=torch.Generator().manual_seed(seed),
    )
    stream.write(may_end=False)
    times = [clock()]
    for _ in range(number):
        stream.write(may_end=False)
        times.append(clock())
    return np.diff(times)


def main() -> None:
    """Read the options and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="folder or Hub id of a note transformer")
    parser.add_argument("--notes", type=int, default=300, help="of each run")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.disable_progress_bar()
    model, _ = load_model(options.model)
    exporter = NoteExporter(model.cpu())
    exact = exporter.open(exporter.graphs())
    models: dict[str, NoteModel] = {
        "torch": exporter.model,
        "ONNX engine": exact,
        "ONNX engine, 8 bits": exporter.open(exporter.int8_graphs(exact, [])),
    }
    clock = time.perf_counter if options.clock == "wall" else time.process_time
    found: dict[str, list[np.ndarray]] = {name: [] for name in models}
    for repeat in range(options.repeats):
        for name, each in models.items():
            found[name].append(seconds_of_notes(each, options.notes, repeat, clock) * 1e3)
    print(f"torch {torch.__version__}, onnxruntime {onnxruntime.__version__}, {options.clock} clock")
    print("\n| one thread, after 1,000 notes | note p5 | p50 | p95 | max, ms | notes/s |\n|---|---|---|---|---|---|")
    for name, runs in found.items():
        times = np.concatenate(runs)
        cells = " | ".join(f"{np.percentile(times, share):.2f}" for share in (5, 50, 95, 100))
        print(f"| {name} | {cells} | {1e3 / times.mean():,.0f} |", flush=True)


if __name__ == "__main__":
    main()
