"""`pianogen export`: write a model as ONNX for the fast engine, once it has been held against the torch model."""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pianogen_hf.command_line import OneLineParser, UsageError

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedModel

    from pianogen_hf.generation.engine import OnnxEngine
    from pianogen_hf.tokenizers.notes_encoder import NotesEncoder

_CHECKED = 1000  # tokens that must be the same
_NEAR = 1e-3  # difference of two logits that rounding may turn over
_MAX_LOSS = 0.01  # share of the cross-entropy that 8 bits may cost
_NUM_SAMPLES = 4  # of the model itself, to learn how large keys and values become
_MAX_HELDOUT = 100  # pieces


def make_parser() -> argparse.ArgumentParser:
    """The options of `pianogen export`."""
    parser = OneLineParser(
        prog="pianogen export",
        description="Export a Music Transformer for the fast engine (generate.py --engine onnx or int8). What was "
        "written has been checked: float32 chooses the tokens that torch chooses, and 8 bits cost no more than 1 %% of "
        "the cross-entropy, on held-out pieces where they are at hand.",
        epilog="Example: pianogen export --model runs/mine --int8 --output runs/mine",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("--model", required=True, help="model folder or Hub id")
    add("--revision", help="branch, tag or commit of a model on the Hub")
    add("--output", required=True, metavar="FOLDER", help="where onnx/ is to lie; may be the model's own folder")
    add("--format", choices=("onnx",), default="onnx", help="the format (default: onnx)")
    add("--int8", action="store_true", help="also write a version with weights, keys and values of 8 bits")
    add("--source", nargs="+", help="where its held-out pieces lie, as for train.py; by default as it was trained")
    add("--data_path", help="the PATH, where there is only one source")
    add("--cache_dir", default="~/.cache/pianogen_hf", help="where train.py keeps what it read")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Export as the command line says; returns the exit code. Errors that a user can mend are one line."""
    try:
        args = make_parser().parse_args(argv)
        if any(find_spec(name) is None for name in ("onnx", "onnxruntime")):
            raise UsageError('export needs packages that are not installed: pip install "pianogen_hf[onnx]"')
        if Path(args.output).exists() and not Path(args.output).is_dir():
            raise UsageError(f"--output {args.output} is a file: give a folder")
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    # Only now what brings in torch: --help and a mistake should not wait for it.
    from pianogen_hf.data.sources import DataError
    from pianogen_hf.generation.engine import EngineError
    from pianogen_hf.generation.onnx_graph import ExportError
    from pianogen_hf.training.arguments import ArgumentError

    try:
        _export(args)
    except (ArgumentError, DataError, EngineError, ExportError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted: what was not announced was not written", file=sys.stderr)
        return 130
    return 0


def _export(args: argparse.Namespace) -> None:
    import torch
    from transformers.utils import logging

    from pianogen_hf.generation.engine import OnnxEngine, cache_scales
    from pianogen_hf.generation.onnx_graph import ExportError, build_graph
    from pianogen_hf.loading import load_model
    from pianogen_hf.models.configuration_music_transformer import MusicTransformerConfig

    logging.disable_progress_bar()  # of loading weights
    model, tokenizer = load_model(args.model, args.revision)
    config = model.config
    if not isinstance(config, MusicTransformerConfig):
        raise ExportError(f"{args.model} is a {config.model_type}: only music_transformer can be exported")
    model = model.cpu()
    weights = {name: each.numpy() for name, each in model.state_dict().items()}
    print("float32: building and checking ...", flush=True)
    graph = build_graph(weights, config).SerializeToString()
    engine = OnnxEngine(graph, config, model.generation_config)
    torch.manual_seed(0)
    samples = _samples(engine)
    print(f"float32: {check_greedy(engine, model, samples[0])}")
    folder = Path(args.output)
    _write_beside(folder, args.model, model, tokenizer)
    _write(folder, "float32", graph)
    if not args.int8:
        return
    print("int8: building and checking ...", flush=True)
    graph = build_graph(weights, config, cache_scales(engine, samples)).SerializeToString()
    small = OnnxEngine(graph, config, model.generation_config)
    print(f"int8: {_check_loss(engine, small, samples, tokenizer, args)}")
    _write(folder, "int8", graph)


def _write(folder: Path, precision: str, graph: bytes) -> None:
    from pianogen_hf.generation.engine import FILES, FOLDER
    from pianogen_hf.tokenizers.midi import write_whole

    path = folder / FOLDER / FILES[precision]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, graph)
    print(f"written: {path} ({len(graph) / 2**20:.1f} MB)")


def _write_beside(folder: Path, name: str, model: PreTrainedModel, tokenizer: NotesEncoder) -> None:
    """What the engine and its users need besides the graph, unless it is there already."""
    from pianogen_hf.publishing.added_code import add_code

    if Path(name).is_dir() and folder.exists() and folder.samefile(name):
        return
    for each in (model.config, model.generation_config, tokenizer):
        each.save_pretrained(folder)
    add_code(folder)  # of the configuration, which a model would have brought


def _samples(engine: OnnxEngine) -> list[np.ndarray]:
    """Token ids that the model finds likely, each of its context's length."""
    import torch

    first = engine.config.bos_token_id or 0
    length = min(engine.config.max_position_embeddings, 1024)
    settings: dict[str, Any] = {"do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0}
    settings["num_return_sequences"] = _NUM_SAMPLES
    # No id ends a sample: after its end a model goes on with something, and all samples have one length.
    ids = engine.generate(torch.tensor([[first]]), max_new_tokens=max(length - 1, 1), eos_token_id=[], **settings)
    return list(ids.numpy())


def check_greedy(engine: OnnxEngine, model: PreTrainedModel, prompt: np.ndarray) -> str:
    """Let the engine continue a prompt greedily and ask the torch model for each choice.

    Args:
        engine: The exported model.
        model: The model itself.
        prompt: Token ids, of which the first quarter is the prompt.

    Returns:
        What was found.

    Raises:
        ExportError: If torch chooses another token, and not for a tie.
    """
    import torch

    from pianogen_hf.generation.onnx_graph import ExportError

    given = torch.from_numpy(prompt[None, : max(len(prompt) // 4, 1)])
    ids = engine.generate(given, max_new_tokens=_CHECKED, do_sample=False, eos_token_id=[])
    with torch.inference_mode():
        logits = model(input_ids=ids, use_cache=False).logits[0, given.shape[1] - 1 : -1]
    chosen = logits.gather(1, ids[0, given.shape[1] :, None])[:, 0]
    behind = logits.amax(1) - chosen
    if bool((behind > _NEAR).any()):
        place = int((behind > _NEAR).nonzero()[0])
        raise ExportError(f"greedy tokens differ from torch's from token {place + 1} on: nothing was written")
    equal = int((logits.argmax(1) == ids[0, given.shape[1] :]).sum())
    return f"{equal:,} of {_CHECKED:,} greedy tokens equal torch's" + (", the others are ties" * (equal < _CHECKED))


def _check_loss(
    engine: OnnxEngine, small: OnnxEngine, samples: list[np.ndarray], tokenizer: NotesEncoder, args: argparse.Namespace
) -> str:
    """Hold cross-entropies against each other, on held-out pieces if there are any.

    Raises:
        ExportError: If 8 bits cost too much.
    """
    import math

    from pianogen_hf.generation.onnx_graph import ExportError

    pieces = _heldout(args)
    if pieces:
        rows = [tokenizer.piece_steps(notes) for notes in pieces]
        unit, count = "bits per note of held-out pieces", sum(map(len, pieces)) * math.log(2)
    else:
        rows, unit = samples, "nats per token of the model's own samples (no held-out pieces at hand)"
        count = sum(len(row) - 1 for row in rows)
    before, after = (total_nats(each, rows) / count for each in (engine, small))
    found = f"{unit} {before:.4f} -> {after:.4f} ({after / before - 1:+.2%})"
    if after > before * (1 + _MAX_LOSS):
        raise ExportError(f"8 bits cost too much: {found}; model_int8.onnx was not written")
    return found


def total_nats(engine: OnnxEngine, rows: list[np.ndarray]) -> float:
    """Cross-entropy of token ids, the first of each row given, in windows of the model's context."""
    import numpy as np
    from tqdm import tqdm

    total, size = 0.0, engine.config.max_position_embeddings - 1
    for ids in tqdm(rows, desc="Measuring", unit="piece", leave=False, disable=None):
        for begin in range(0, len(ids) - 1, size):
            window = ids[begin : begin + size + 1]
            logits = engine.logits(window[:-1]).astype(np.float64)
            shifted = logits - logits.max(1, keepdims=True)
            chosen = np.take_along_axis(shifted, window[1:, None], 1)[:, 0]
            total += float((np.log(np.exp(shifted).sum(1)) - chosen).sum())
    return total


def _heldout(args: argparse.Namespace) -> list[Any]:
    """Validation pieces as the model's own split.json tells them apart; none if they are not at hand."""
    from pianogen_hf.data.chunks import notes_of
    from pianogen_hf.data.sources import DataError
    from pianogen_hf.hub_models import model_folder
    from pianogen_hf.prepare import pieces_of_model

    folder = model_folder(args.model, args.revision)
    if not Path(folder, "split.json").exists():
        return []
    try:
        pieces, sides, _ = pieces_of_model(str(folder), args.source, args.data_path, args.cache_dir)
    except DataError:
        if args.source:
            raise
        return []
    return list(notes_of(pieces, sides, "validation"))[:_MAX_HELDOUT]


if __name__ == "__main__":
    raise SystemExit(main())
