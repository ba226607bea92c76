"""`pianogen data stats`: what a data set or its sources are like, as a table, a picture and figures. Wiring only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, Features, List, Value

from pianogen_hf.data.built import is_built, read_pieces
from pianogen_hf.data.caching import cached_map, fingerprint_of
from pianogen_hf.data.sources import DataError, list_sources, load_pieces, reading_report, usable_pieces
from pianogen_hf.data_build import own_options, say_unusable
from pianogen_hf.evaluation.corpus_statistics import (
    DURATION_EDGES_SEC,
    NOTE_COUNT_EDGES,
    corpus_statistics,
    markdown_table,
    piece_histograms,
)
from pianogen_hf.prepare import pin_sources, programs_of
from pianogen_hf.rendering.statistics_plot import save_statistics_plot
from pianogen_hf.tokenizers.midi import read_midi, write_whole
from pianogen_hf.training.arguments import ArgumentError, DataArguments, parse_arguments

_HISTOGRAM_FEATURES = Features({"pitch": List(Value("int64")), "duration_sec": List(Value("int64"))})
_STATISTICS_VERSION = 1  # raised when what is cached changes


def stats(argv: list[str]) -> int:
    """Run `pianogen data stats`; returns the exit code."""
    output, rest = own_options(
        argv,
        "stats",
        "Pieces, notes and hours of each source as a table, and histograms of note counts, pitches and durations as a "
        "picture; all figures go to a .json file beside it. Takes the sources, or the folder of a built data set.",
        {"default": "stats.png", "metavar": "PICTURE.png", "help": "where to draw (default: stats.png)"},
    )
    picture = Path(output).expanduser()
    if picture.suffix.lower() != ".png":
        raise ArgumentError(f"--output must end in .png, got {output}")
    folder = rest.pop(0) if rest and not rest[0].startswith("-") and is_built(rest[0]) else None
    _, data_args, _ = parse_arguments(rest)
    pieces, unusable = _built_pieces(Path(folder)) if folder else _source_pieces(data_args)
    statistics = _statistics(pieces, unusable, data_args)
    edges = {"note_count": NOTE_COUNT_EDGES, "duration_sec": DURATION_EDGES_SEC}
    save_statistics_plot(statistics, edges, picture)
    figures = {
        "sources": statistics,
        "edges": {name: [round(float(edge), 6) for edge in each] for name, each in edges.items()},
        "unusable": unusable,
    }
    beside = picture.with_suffix(".json")
    write_whole(beside, (json.dumps(figures, indent=1, ensure_ascii=False) + "\n").encode())
    print(markdown_table(statistics))
    say_unusable(unusable, str(beside))
    print(f"written: {picture}, {beside}")
    return 0


def _source_pieces(args: DataArguments) -> tuple[Dataset, dict[str, str]]:
    pin_sources(args)
    files = list_sources(args.source, args.data_path, args.cache_dir)
    read = load_pieces(files, Path(args.cache_dir).expanduser(), programs_of(args.programs), args.num_proc)
    return usable_pieces(read), reading_report(read)["unusable"]


def _built_pieces(folder: Path) -> tuple[Dataset, dict[str, str]]:
    try:
        report = json.loads((folder / "reading_report.json").read_text(encoding="utf-8"))
        return read_pieces(folder)[0], report["unusable"]
    except (OSError, ValueError, KeyError) as error:
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
    pitch, duration_sec = piece_histograms(read_midi(row["midi"], None))
    return {"pitch": pitch, "duration_sec": duration_sec}
