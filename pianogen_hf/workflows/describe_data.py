"""What a data set or its sources are like, as a table, a picture and figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, List, Value

from pianogen_hf.data.built import read_pieces
from pianogen_hf.data.caching import cached_map, fingerprint_of
from pianogen_hf.data.pieces import load_pieces, reading_report, stored_notes, usable_pieces
from pianogen_hf.data.sources.listing import list_sources
from pianogen_hf.errors import DataError, FileError
from pianogen_hf.evaluation.corpus_statistics import (
    DURATION_EDGES_SEC,
    NOTE_COUNT_EDGES,
    corpus_statistics,
    piece_histograms,
)
from pianogen_hf.records import read_json, write_json
from pianogen_hf.rendering.statistics_plot import save_statistics_plot
from pianogen_hf.training.arguments import DataArguments
from pianogen_hf.workflows.split import instruments_of, pin_sources

_HISTOGRAM_FEATURES = Features({"pitch": List(Value("int64")), "duration_sec": List(Value("int64"))})
_STATISTICS_VERSION = 1  # raised when what is cached changes


def describe_data(
    folder: Path | None, data_args: DataArguments, picture: Path
) -> tuple[dict[str, dict[str, Any]], dict[str, str], Path]:
    """Count what a data set or its sources hold, and write it as a picture and, beside it, as JSON.

    Args:
        folder: a built data set; None for the sources of `data_args`.
        data_args: the sources, and where the cache lies.
        picture: a .png to write.

    Returns:
        What `corpus_statistics` says of each source, the reason by name for unusable files, and the JSON file.

    Raises:
        DataError: if the data can't be read. FileError: if the picture can't be written.
    """
    pieces, unusable = _built_pieces(folder) if folder else _source_pieces(data_args)
    statistics = _statistics(pieces, unusable, data_args)
    edges = {"note_count": NOTE_COUNT_EDGES, "duration_sec": DURATION_EDGES_SEC}
    save_statistics_plot(statistics, edges, picture)
    figures = {
        "sources": statistics,
        "edges": {name: [round(float(edge), 6) for edge in each] for name, each in edges.items()},
        "unusable": unusable,
    }
    beside = picture.with_suffix(".json")
    write_json(beside, figures)
    return statistics, unusable, beside


def _source_pieces(args: DataArguments) -> tuple[Dataset, dict[str, str]]:
    pin_sources(args)
    files = list_sources(args.source, args.data_path, args.cache_dir)
    read = load_pieces(
        files, Path(args.cache_dir).expanduser(), num_proc=args.num_proc, **instruments_of(args.programs)
    )
    return usable_pieces(read), reading_report(read)["unusable"]


def _built_pieces(folder: Path) -> tuple[Dataset, dict[str, str]]:
    try:
        report = read_json(folder / "reading_report.json")
        return read_pieces(folder)[0], report["unusable"]
    except (FileError, KeyError) as error:
        raise DataError(f"{folder} has no whole reading_report.json: build it anew") from error


def _statistics(pieces: Dataset, unusable: dict[str, str], args: DataArguments) -> dict[str, dict[str, Any]]:
    """What `corpus_statistics` says of each source, by name; unusable pieces belong to the source they are named by."""
    key = fingerprint_of([_STATISTICS_VERSION, pieces._fingerprint])
    histograms = cached_map(
        pieces.select_columns(["midi"]),
        _histograms,
        Path(args.cache_dir).expanduser() / f"statistics-{key}",
        features=_HISTOGRAM_FEATURES,
        remove_columns=["midi"],
        num_proc=args.num_proc,
        desc="Counting notes",
    ).with_format("numpy")
    columns = {name: np.asarray(pieces[name][:]) for name in ("source", "num_notes", "seconds", "excluded_notes")}
    failed = [name.split("/", 1)[0] for name in unusable]
    statistics = {}
    for source in dict.fromkeys([*columns["source"].tolist(), *failed]):
        rows = np.flatnonzero(columns["source"] == source)
        found = ((row["pitch"], row["duration_sec"]) for row in histograms.select(rows))
        statistics[source] = corpus_statistics(
            found,
            columns["num_notes"][rows],
            columns["seconds"][rows],
            int(columns["excluded_notes"][rows].sum()),
            failed.count(source),
        )
    return statistics


def _histograms(row: dict[str, Any]) -> dict[str, Any]:
    pitch, duration_sec = piece_histograms(stored_notes(row["midi"]))
    return {"pitch": pitch, "duration_sec": duration_sec}
