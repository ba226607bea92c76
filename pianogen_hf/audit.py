"""The copy audit of a model or of one MIDI file: how much of it stands in the train pieces, run for run."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import pianogen_hf
from pianogen_hf.data.chunks import notes_of
from pianogen_hf.data.sources import DataError, list_pieces, load_pieces, usable_pieces
from pianogen_hf.evaluation.memorization import RunIndex, compare_with_base_rate
from pianogen_hf.generate import OneLineParser, load_model
from pianogen_hf.generation.continuation import GenerationError, Length, continue_notes
from pianogen_hf.tokenizers.midi import PIANO_PROGRAMS, MidiError, read_midi, write_whole
from pianogen_hf.tokenizers.notes import Notes
from pianogen_hf.tokenizers.tokenization_notes import NoteTokenizer
from pianogen_hf.training.arguments import ArgumentError


def make_parser() -> argparse.ArgumentParser:
    """The options of `pianogen audit`."""
    parser = OneLineParser(
        prog="pianogen audit",
        description="Generate pieces and measure how much of them is exact runs of train pieces, in any key, against "
        "the share that held-out pieces have. Ends with exit code 1 if the model copies more than chance.",
        epilog="Examples: pianogen audit ; pianogen audit --model runs/mine --data_path ~/midi ; "
        "pianogen audit --midi out.mid",
    )
    add = parser.add_argument
    add(
        "--model", default=pianogen_hf.BUNDLED_MODEL, help="model folder with its split.json (default: the bundled one)"
    )
    add("--data_path", help="folder of the pieces it was trained on, for sources folder and maestro")
    add("--midi", metavar="FILE.mid", help="audit this file instead of what the model generates")
    add("--num_samples", type=int, default=24, help="pieces to generate (default: 24)")
    add("--notes", type=int, default=220, help="notes in each (default: 220)")
    add("--seed", type=int, default=0, help="the same seed gives the same pieces (default: 0)")
    add("--cache_dir", default="~/.cache/pianogen_hf", help="where train.py keeps what it read")
    add("--output", metavar="AUDIT.json", help="also write all figures to this file")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Audit as the command line says; returns 0, 1 if the alarm rings, or 2 after an error that a user can mend."""
    try:
        args = make_parser().parse_args(argv)
        report = _audit(args)
        if args.output:
            write_whole(args.output, (json.dumps(report, indent=1) + "\n").encode())
    except (ArgumentError, DataError, GenerationError, MidiError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(_table(report))
    return int(report["comparison"]["alarm"])


def _audit(args: argparse.Namespace) -> dict[str, Any]:
    model, tokenizer = load_model(args.model)
    train, heldout = _sides(args)
    as_grid = isinstance(tokenizer, pianogen_hf.JSBTokenizer)

    def form(notes: Notes) -> Notes | np.ndarray:
        return tokenizer.notes_to_grid(notes) if as_grid else notes

    index = RunIndex().fit(list(train), [form(notes) for notes in train.values()])
    audited = [read_midi(args.midi)] if args.midi else _generated(model, tokenizer, args)
    generated = index.audit_set(form(notes) for notes in audited)
    base_rate = index.audit_set(form(notes) for notes in heldout.values())
    comparison = compare_with_base_rate(generated, base_rate)
    return {"generated": generated, "heldout": base_rate, "comparison": comparison, "train_pieces": len(train)}


def _sides(args: argparse.Namespace) -> tuple[dict[str, Notes], dict[str, Notes]]:
    """Train and validation pieces by name, as the model's own split.json tells them apart."""
    try:
        manifest = json.loads(Path(args.model, "split.json").read_text(encoding="utf-8"))
    except OSError as error:
        raise ArgumentError(f"{args.model} has no split.json: what it was trained on is unknown") from error
    parameters = manifest["parameters"]
    programs = tuple(PIANO_PROGRAMS) if parameters["programs"] == "piano" else None
    files = list_pieces(parameters["source"], args.data_path)
    pieces = usable_pieces(load_pieces(files, Path(args.cache_dir).expanduser(), programs))
    sides = [manifest["pieces"].get(name, {}).get("side", "") for name in pieces["piece_id"]]
    found = []
    for side in ("train", "validation"):
        names = [name for name, each in zip(pieces["piece_id"], sides, strict=True) if each == side]
        wanted = manifest["counts"].get(side, 0)
        if len(names) < wanted:
            raise ArgumentError(f"{wanted - len(names)} of {wanted} {side} pieces are missing: give the --data_path")
        found.append(dict(zip(names, notes_of(pieces, sides, side), strict=True)))
    return found[0], found[1]


def _generated(model: Any, tokenizer: NoteTokenizer, args: argparse.Namespace) -> list[Notes]:
    length = Length(notes=args.notes)
    seeds = tqdm(range(args.seed, args.seed + args.num_samples), desc="Generating", unit="piece")
    return [continue_notes(model, tokenizer, length, seed=seed, do_sample=True, top_p=0.95)[0].new for seed in seeds]


def _table(report: dict[str, Any]) -> str:
    comparison, unit = report["comparison"], report["generated"]["unit"]
    lines = [f"{'covered by exact train runs of at least':42s} audited   held out"]
    for length, row in comparison["coverage"].items():
        lines.append(f"  {length + ' ' + unit:40s} {row['generated']:7.2%}   {row['heldout']:7.2%}")
    runs, source = comparison["longest_run"], report["generated"]["train_piece"] or "no train piece"
    lines.append(f"longest run: {runs['generated']} {unit}, of {source}; in held-out pieces {runs['heldout']}")
    lines.append("ALARM: " + "; ".join(comparison["reasons"]) if comparison["alarm"] else "no alarm")
    return "\n".join(lines)
