"""Exporting a model for the fast engine: build the graph, hold it against the model, write it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.utils import logging

from pianogen_hf.errors import DataError
from pianogen_hf.generation.onnx.builder import ExportError
from pianogen_hf.generation.onnx.exporters import EXPORTERS, Exporter, Graphs
from pianogen_hf.generation.onnx.session import FOLDER, file_name
from pianogen_hf.hub.models import model_folder
from pianogen_hf.publishing.added_code import add_code
from pianogen_hf.tokenizers.files import write_whole
from pianogen_hf.tokenizers.notes import Notes
from pianogen_hf.tokenizers.notes_encoder import NotesEncoder
from pianogen_hf.workflows.loading import load_model
from pianogen_hf.workflows.split import Places, split_of_model

_MAX_LOSS = 0.01  # share of the cross-entropy that 8 bits may cost
_MAX_HELDOUT = 100  # pieces


def export(name: str, output: Path, *, revision: str | None, int8: bool, places: Places) -> None:
    """Write graphs, once each was held against the torch model.

    Args:
        name: folder or Hub id of the model.
        output: where the folder of graphs is to lie.
        revision: branch, tag or commit of a model on the Hub.
        int8: whether also to write a version with weights, keys and values of 8 bits.
        places: where its held-out pieces lie, on which that one is measured.

    Raises:
        ArgumentError, DataError, EngineError, ExportError: for what a user can mend. OSError: if the folder can't be
            written to.
    """
    logging.disable_progress_bar()  # of loading weights
    model, encoder = load_model(name, revision)
    if model.config.model_type not in EXPORTERS:
        kinds = ", ".join(EXPORTERS)
        raise ExportError(f"{name} is a {model.config.model_type}: only {kinds} can be exported")
    exporter = EXPORTERS[model.config.model_type](model.cpu())
    print("float32: building and checking ...", flush=True)
    graphs = exporter.graphs()
    engine = exporter.open(graphs)
    torch.manual_seed(0)
    samples = exporter.samples(engine)
    print(f"float32: {exporter.check(engine, samples)}")
    _write_beside(output, name, model, encoder)
    _write(output, "float32", graphs, exporter)
    if not int8:
        return
    print("int8: building and checking ...", flush=True)
    graphs = exporter.int8_graphs(engine, samples)
    pieces = _heldout(model_folder(name, revision), places)
    print(f"int8: {_check_loss(exporter, engine, exporter.open(graphs), samples, encoder, pieces)}")
    _write(output, "int8", graphs, exporter)


def _write(folder: Path, precision: str, graphs: Graphs, exporter: Exporter) -> None:
    (folder / FOLDER).mkdir(parents=True, exist_ok=True)
    for stem, graph in graphs.items():
        path = folder / FOLDER / file_name(stem, precision)
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
    pieces: list[Notes],
) -> str:
    """Hold cross-entropies against each other, on held-out pieces if there are any.

    Raises:
        ExportError: if 8 bits cost too much.
    """
    if pieces:
        rows = [encoder.piece_steps(notes) for notes in pieces]
        unit, count = "bits per note of held-out pieces", sum(map(len, pieces)) * math.log(2)
    else:
        rows, unit = samples, f"nats per {exporter.step} of the model's own samples (no held-out pieces at hand)"
        count = sum(len(row) - 1 for row in rows)
    before, after = (exporter.nats(each, rows) / count for each in (engine, small))
    found = f"{unit} {before:.4f} -> {after:.4f} ({after / before - 1:+.2%})"
    if after > before * (1 + _MAX_LOSS):
        raise ExportError(f"8 bits cost too much: {found}; it was not written")
    return found


def _heldout(folder: Path, places: Places) -> list[Notes]:
    """Validation pieces as the model's own split.json tells them apart; none if they are not at hand."""
    if not (folder / "split.json").exists():
        return []
    try:
        split = split_of_model(folder, places)
    except DataError:
        if places.source:
            raise
        return []
    return list(split.notes("validation"))[:_MAX_HELDOUT]
