"""The copy audit of a model or of one MIDI file: how much of it stands in the train pieces, run for run."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from tqdm import tqdm

import pianogen_hf
from pianogen_hf.data.chunks import notes_of
from pianogen_hf.errors import ArgumentError
from pianogen_hf.evaluation.copy_report import copy_report, report_of
from pianogen_hf.evaluation.memorization import RunIndex
from pianogen_hf.generation.continuation import Length, continue_notes
from pianogen_hf.hub.models import model_folder
from pianogen_hf.publishing.model_card import write_card
from pianogen_hf.records import write_json
from pianogen_hf.tokenizers.midi import read_midi
from pianogen_hf.tokenizers.notes import Notes
from pianogen_hf.tokenizers.notes_encoder import NotesEncoder
from pianogen_hf.training.arguments import DataArguments
from pianogen_hf.workflows.loading import load_model
from pianogen_hf.workflows.split import load_split, pieces_of_model


def audit(args: argparse.Namespace) -> dict[str, Any]:
    """What `pianogen audit` found, as its options say.

    Raises:
        ArgumentError, DataError, GenerationError, MidiError: for what a user can mend.
    """
    if args.midi and args.source and not args.model:
        return _audit_file(args)
    args.model = args.model or pianogen_hf.BACH_MODEL
    model, tokenizer = load_model(args.model, args.revision, args.trust_remote_code)
    train, heldout = _sides(args)
    audited = [read_midi(args.midi)] if args.midi else _generated(model, tokenizer, args)
    settings = {} if args.midi else {name: getattr(args, name) for name in ("num_samples", "notes", "seed")}
    return copy_report(tokenizer, train, heldout.values(), audited) | {"settings": settings}


def _audit_file(args: argparse.Namespace) -> dict[str, Any]:
    """One file against all pieces of a data set; how much any piece has in common with others, its own split tells."""
    pieces, sides, _ = load_split(DataArguments(source=args.source, data_path=args.data_path, cache_dir=args.cache_dir))
    everything = list(notes_of(pieces, ["all"] * len(sides), "all"))
    train, heldout = (
        [notes for notes, own in zip(everything, sides, strict=True) if own == side] for side in ("train", "validation")
    )
    names = pieces["piece_id"][:]
    base_rate = RunIndex().fit([str(row) for row in range(len(train))], train).audit_set(heldout)
    generated = RunIndex().fit(names, everything).audit_set([read_midi(args.midi)])
    return report_of(generated, base_rate, len(names)) | {"settings": {}}


def _sides(args: argparse.Namespace) -> tuple[dict[str, Notes], dict[str, Notes]]:
    """Train and validation pieces by name, as the model's own split.json tells them apart."""
    pieces, sides, manifest = pieces_of_model(
        str(model_folder(args.model, args.revision)), args.source, args.data_path, args.cache_dir
    )
    found = []
    for side in ("train", "validation"):
        names = [name for name, each in zip(pieces["piece_id"], sides, strict=True) if each == side]
        wanted = manifest["counts"].get(side, 0)
        if len(names) < wanted:
            raise ArgumentError(
                f"{wanted - len(names)} of {wanted} {side} pieces are missing: give the --source they came from"
            )
        found.append(dict(zip(names, notes_of(pieces, sides, side), strict=True)))
    return found[0], found[1]


def _generated(model: Any, tokenizer: NotesEncoder, args: argparse.Namespace) -> list[Notes]:
    length = Length(notes=args.notes)
    seeds = tqdm(range(args.seed, args.seed + args.num_samples), desc="Generating", unit="piece")
    return [continue_notes(model, tokenizer, length, seed=seed, do_sample=True, top_p=0.95)[0].new for seed in seeds]


def record(model: Path, report: dict[str, Any]) -> None:
    """Keep the figures where the card finds them.

    Raises:
        CardError: if one of the model's files can't be read. FileError: if its folder can't be written to.
    """
    path = model / "metrics.json"
    metrics = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    metrics["copy_audit"] = report
    write_json(path, metrics)
    write_card(model)


def table(report: dict[str, Any]) -> str:
    """The figures as lines for the terminal."""
    comparison, unit = report["comparison"], report["generated"]["unit"]
    lines = [f"{'covered by exact train runs of at least':42s} audited   held out"]
    for length, row in comparison["coverage"].items():
        lines.append(f"  {length + ' ' + unit:40s} {row['generated']:7.2%}   {row['heldout']:7.2%}")
    runs, source = comparison["longest_run"], report["generated"]["train_piece"] or "no train piece"
    lines.append(f"longest run: {runs['generated']} {unit}, of {source}; in held-out pieces {runs['heldout']}")
    lines.append("ALARM: " + "; ".join(comparison["reasons"]) if comparison["alarm"] else "no alarm")
    return "\n".join(lines)
