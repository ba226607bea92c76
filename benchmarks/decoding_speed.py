"""Decoding against GPT-2: `OMP_NUM_THREADS=1 python benchmarks/decoding_speed.py` prints Markdown tables.

All models have 6 layers of width 512 with 8 heads, feed-forward layers of 2,048 and 400 ids, random weights, a prompt
of 256 ids and 512 new ones, drawn with temperature 1 and top_p 0.95. V7 has the default 1,024 distances, and is held
to the performance grammar, except where a row says otherwise. GPT-2 is what transformers has. Runs of all rows
alternate, so that a busy machine slows all of them; medians are compared. `--clock cpu` counts the time of the process
and not of the wall: for one thread on a machine that is not quiet.

"No cache, naive skew" stands for the public PyTorch Music Transformers, which are on no package index: for each id it
computes the whole sequence again, with a bias of length x length per head. It is asked for `--slow_tokens` ids from a
prompt as long as the middle of the others' runs, and its rate is that of these.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import onnxruntime
import torch
import transformers
from transformers import GPT2Config, GPT2LMHeadModel, LogitsProcessor, LogitsProcessorList

import pianogen_hf
from pianogen_hf.generation.constraints import GrammarLogitsProcessor
from pianogen_hf.generation.drawing import draw
from pianogen_hf.generation.onnx.engine import Decoder, OnnxEngine, cache_scales
from pianogen_hf.generation.onnx.graph import build_graph
from pianogen_hf.models.configuration_music_transformer import MusicTransformerConfig
from pianogen_hf.models.modeling_music_transformer import MusicTransformerForCausalLM
from pianogen_hf.tokenizers.tokenization_performance import PerformanceTokenizer
from pianogen_hf.workflows.loading import load_model

VOCAB, PROMPT, NEW = 400, 256, 512
ROWS = ["gpt2", "v7 torch", "v7 torch, no grammar", "v7 onnx", "v7 int8", "v7 no cache, naive skew"]
TOKENIZER = PerformanceTokenizer()


class KeepGoing(LogitsProcessor):
    """Forbids the ids that would end a piece, so that all rows write equally many."""

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Forbid them."""
        scores[:, :3] = -torch.inf
        return scores


def v7() -> MusicTransformerForCausalLM:
    """The model of all V7 rows."""
    torch.manual_seed(0)
    return MusicTransformerForCausalLM(MusicTransformerConfig(vocab_size=VOCAB)).eval()


def gpt2() -> GPT2LMHeadModel:
    """GPT-2 of the same size."""
    sizes: dict[str, Any] = {"n_positions": 1024, "n_embd": 512, "n_layer": 6, "n_head": 8, "n_inner": 2048}
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCAB, bos_token_id=1, eos_token_id=2, **sizes)).eval()


def engines_of(model: Any) -> dict[str, OnnxEngine]:
    """The exported model in both precisions, as `pianogen export` makes them."""
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    exact = OnnxEngine(build_graph(weights, model.config).SerializeToString(), model.config)
    samples = exact.generate(torch.tensor([[1]]), max_new_tokens=256, do_sample=True, top_k=0, eos_token_id=[]).numpy()
    small = build_graph(weights, model.config, cache_scales(exact, samples)).SerializeToString()
    return {"onnx": exact, "int8": OnnxEngine(small, model.config)}


def generate(model: Any, prompt: torch.Tensor, num_new: int, processor: LogitsProcessor) -> None:
    """One run."""
    ids = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=num_new,
        do_sample=True,
        top_k=0,
        top_p=0.95,
        pad_token_id=0,
        logits_processor=LogitsProcessorList([processor]),
    )
    assert ids.shape[1] == prompt.shape[1] + num_new


def naive_skew_logits(model: MusicTransformerForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    """Logits of the last id, computed as the public implementations do: everything, with a dense skewed bias."""
    hidden, length = model.model.embed_tokens(ids), ids.shape[1]
    future = torch.full((length, length), -torch.inf).triu(1)
    for layer in model.model.layers:
        attention, normed = layer.self_attn, layer.input_layernorm(hidden)
        query, key, value = (
            projection(normed).unflatten(-1, (-1, attention.head_dim)).transpose(1, 2)
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
        )
        embeddings = attention.relative_embedding.weight[:, :length].flip(1)  # farthest distance first
        padded = torch.nn.functional.pad(query @ embeddings.transpose(1, 2), (1, 0))
        skewed = padded.reshape(*padded.shape[:2], length + 1, length)[:, :, 1:]
        weights = ((query @ key.transpose(2, 3) + skewed) * attention.scaling + future).softmax(-1)
        hidden = hidden + attention.o_proj((weights @ value).transpose(1, 2).flatten(2))
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
    return model.lm_head(model.model.norm(hidden))[:, -1]


@torch.inference_mode()
def generate_naively(model: MusicTransformerForCausalLM, ids: torch.Tensor, num_new: int) -> None:
    """As the public implementations do."""
    for _ in range(num_new):
        drawn = torch.multinomial(naive_skew_logits(model, ids).softmax(-1), 1)
        ids = torch.cat([ids, drawn], 1)


def speeds(rows: list[str], batch: int, repeats: int, slow_tokens: int) -> None:
    """Print the table of alternating runs."""
    model, reference = v7(), gpt2()
    engines = engines_of(model)
    prompt = torch.from_numpy(piece_ids(PROMPT))[None].expand(batch, -1).contiguous()
    middle = torch.from_numpy(piece_ids(PROMPT + NEW // 2))[None]
    with torch.inference_mode():  # the slow way is slow, not wrong
        logits = model(middle, use_cache=False).logits[:, -1]
        torch.testing.assert_close(naive_skew_logits(model, middle), logits, atol=1e-3, rtol=0)

    def seconds(row: str) -> float:
        """Of one run, per id and row of the batch."""
        if row == "v7 no cache, naive skew":
            start = clock()
            generate_naively(model, middle, slow_tokens)
            return (clock() - start) / slow_tokens
        runner: Any = {"gpt2": reference, "v7 onnx": engines["onnx"], "v7 int8": engines["int8"]}.get(row, model)
        is_free = row == "gpt2" or row.endswith("no grammar")
        processor = KeepGoing() if is_free else GrammarLogitsProcessor(TOKENIZER, [[]], open_until=[10**9])
        start = clock()
        generate(runner, prompt, NEW, processor)
        return (clock() - start) / NEW / batch

    rows = [row for row in rows if batch == 1 or not row.endswith("skew")]
    found: dict[str, list[float]] = {row: [] for row in rows}
    for repeat in range(repeats + 1):  # the first is for warming up
        for row in rows:
            torch.manual_seed(repeat)
            each = seconds(row)
            if repeat:
                found[row].append(each)
    print(f"\n| batch {batch}, prompt {PROMPT}, {NEW} new ids | ids/s | over GPT-2 | ms per id (min-max) |")
    print("|---|---|---|---|")
    for row, times in found.items():
        median, ratios = statistics.median(times), zip(found["gpt2"], times, strict=True)
        ratio = statistics.median(gpt2_time / time for gpt2_time, time in ratios)
        spread = f"{median * 1e3:.2f} ({min(times) * 1e3:.2f}-{max(times) * 1e3:.2f})"
        print(f"| {row} | {1 / median:,.1f} | {ratio:.3g} | {spread} |", flush=True)


def piece_ids(length: int) -> np.ndarray:
    """Ids that the grammar allows, drawn at random: what a prompt is like."""
    rng, ids = np.random.default_rng(0), [TOKENIZER.bos_token_id]
    while len(ids) < length:
        allowed = np.flatnonzero(TOKENIZER.allowed_next(ids))
        ids.append(int(rng.choice(allowed[allowed != TOKENIZER.eos_token_id])))
    return np.array(ids)


def latencies(name: str, num_notes: int) -> None:
    """Print what a player would wait for: the first id after a long prompt, and then each note.

    A performance note is a velocity or a shift, its beginning and its end; a step of the chorale grid is four voices.
    """
    torch.set_num_threads(1)
    model, tokenizer = load_model(name)
    print("\n| one thread | first id after 1,000, ms | note p50 | p95 | p99, ms | ids a note |")
    print("|---|---|---|---|---|---|")
    models = {"large": (v7(), TOKENIZER, 3.0), "bundled": (model, tokenizer, 4.0)}
    for size, (each, its_tokenizer, ids_a_note) in models.items():
        for precision, engine in engines_of(each).items():
            first, steps = latency(engine, its_tokenizer, num_notes)
            notes = np.add.reduceat(steps, np.arange(0, len(steps), round(ids_a_note))) * 1e3
            cells = " | ".join(f"{np.percentile(notes, q):.2f}" for q in (50, 95, 99))
            print(f"| {size}, {precision} | {first * 1e3:.0f} | {cells} | {ids_a_note:g} |", flush=True)


def latency(engine: OnnxEngine, tokenizer: Any, num_ids: int) -> tuple[float, np.ndarray]:
    """Seconds from a prompt of 1,000 ids to the first new one, median of five, and of each id after it.

    Sampling and grammar are part of an id.
    """
    grammar = GrammarLogitsProcessor(tokenizer, [[]], open_until=[10**9])
    prompt = piece_ids(1000) if tokenizer is TOKENIZER else np.random.default_rng(0).integers(4, 40, 1000)

    def next_id(ids: np.ndarray, logits: np.ndarray) -> int:
        scores = grammar(torch.from_numpy(ids)[None], torch.from_numpy(logits))  # type: ignore[arg-type]
        return int(draw(scores.numpy())[0])

    firsts = []
    for _ in range(5):
        start, decoder = clock(), Decoder(engine, 1, 1000 + num_ids)
        ids = np.append(prompt, next_id(prompt, decoder.read_prompts(prompt[None])))
        firsts.append(clock() - start)
    steps = np.zeros(num_ids - 1)
    for place in range(num_ids - 1):
        start = clock()
        ids = np.append(ids, next_id(ids, decoder.step(ids[-1:])))
        steps[place] = clock() - start
    return statistics.median(firsts), steps


def main() -> None:
    """Read the options and print the tables."""
    global clock
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tables", nargs="*", default=["1", "8", "latency"], choices=["1", "8", "latency"])
    parser.add_argument("--rows", nargs="*", default=ROWS, choices=ROWS, help="gpt2 must be among them")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--slow_tokens", type=int, default=4)
    parser.add_argument("--model", default=pianogen_hf.BACH_MODEL, help="the model of the second latency rows")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    clock = time.perf_counter if options.clock == "wall" else time.process_time
    versions = (
        f"torch {torch.__version__}, transformers {transformers.__version__}, onnxruntime {onnxruntime.__version__}"
    )
    print(f"{versions}, {torch.get_num_threads()} threads, {options.clock} clock")
    for batch in ("1", "8"):
        if batch in options.tables:
            speeds(options.rows, int(batch), options.repeats, options.slow_tokens)
            gc.collect()
    if "latency" in options.tables:
        latencies(options.model, 600)


clock: Callable[[], float] = time.perf_counter

if __name__ == "__main__":
    main()
