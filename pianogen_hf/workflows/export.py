"""Exporting a model for the fast engine: build the graph, hold it against the model, write it."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.utils import logging

from pianogen_hf.data.chunks import notes_of
from pianogen_hf.errors import DataError
from pianogen_hf.generation.onnx.builder import ExportError
from pianogen_hf.generation.onnx.exporters import EXPORTERS, Exporter
from pianogen_hf.generation.onnx.session import FILES, FOLDER
from pianogen_hf.hub.models import model_folder
from pianogen_hf.publishing.added_code import add_code
from pianogen_hf.tokenizers.files import write_whole
from pianogen_hf.tokenizers.notes_encoder import NotesEncoder
from pianogen_hf.workflows.loading import load_model
from pianogen_hf.workflows.split import pieces_of_model

_MAX_LOSS = 0.01  # share of the cross-entropy that 8 bits may cost
_MAX_HELDOUT = 100  # pieces


def export(args: argparse.Namespace) -> None:
    """Write graphs, once each was held against the torch model, as the options of `pianogen export` say.

    Raises:
        ArgumentError, DataError, EngineError, ExportError: for what a user can mend. OSError: if the folder can't be
            written to.
    """
    logging.disable_progress_bar()  # of loading weights
    model, encoder = load_model(args.model, args.revision)
    if model.config.model_type not in EXPORTERS:
        kinds = " and ".join(EXPORTERS)
        raise ExportError(f"{args.model} is a {model.config.model_type}: only {kinds} can be exported")
    exporter = EXPORTERS[model.config.model_type](model.cpu())
    print("float32: building and checking ...", flush=True)
    graph = exporter.graph()
    engine = exporter.open(graph)
    torch.manual_seed(0)
    samples = exporter.samples(engine)
    print(f"float32: {exporter.check(engine, samples)}")
    folder = Path(args.output)
    _write_beside(folder, args.model, model, encoder)
    _write(folder, "float32", graph, exporter)
    if not args.int8:
        return
    print("int8: building and checking ...", flush=True)
    graph = exporter.int8_graph(engine, samples)
    print(f"int8: {_check_loss(exporter, engine, exporter.open(graph), samples, encoder, args)}")
    _write(folder, "int8", graph, exporter)


def _write(folder: Path, precision: str, graph: bytes, exporter: Exporter) -> None:
    path = folder / FOLDER / FILES[precision]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, graph)
    print(f"written: {path} ({len(graph) / 2**20:.1f} MB)")
    beside = exporter.file_beside()
    if beside is not None:
        write_whole(path.with_suffix(".safetensors"), beside)


def _write_beside(folder: Path, name: str, model: PreTrainedModel, encoder: NotesEncoder) -> None:
    """What the engine and its users need besides the graph, unless it is there already."""
    if Path(name).is_dir() and folder.exists() and folder.samefile(name):
        return
    for each in (model.config, model.generation_config, encoder):
        each.save_pretrained(folder)
    add_code(folder)  # of the configuration, which a model would have brought


def _check_loss(
    exporter: Exporter,
    engine: Any,
    small: Any,
    samples: list[np.ndarray],
    encoder: NotesEncoder,
    args: argparse.Namespace,
) -> str:
    """Hold cross-entropies against each other, on held-out pieces if there are any.

    Raises:
        ExportError: if 8 bits cost too much.
    """
    pieces = _heldout(args)
    if pieces:
        rows = [encoder.piece_steps(notes) for notes in pieces]
        unit, count = "bits per note of held-out pieces", sum(map(len, pieces)) * math.log(2)
    else:
        rows, unit = samples, f"nats per {exporter.step} of the model's own samples (no held-out pieces at hand)"
        count = sum(len(row) - 1 for row in rows)
    before, after = (exporter.nats(each, rows) / count for each in (engine, small))
    found = f"{unit} {before:.4f} -> {after:.4f} ({after / before - 1:+.2%})"
    if after > before * (1 + _MAX_LOSS):
        raise ExportError(f"8 bits cost too much: {found}; model_int8.onnx was not written")
    return found


def _heldout(args: argparse.Namespace) -> list[Any]:
    """Validation pieces as the model's own split.json tells them apart; none if they are not at hand."""
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
