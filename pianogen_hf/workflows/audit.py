"""The copy audit of a model or of one MIDI file: how much of it stands in the train pieces, run for run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tqdm import tqdm

import pianogen_hf
from pianogen_hf.data.chunks import notes_of
from pianogen_hf.evaluation.copy_report import copy_report, report_of
from pianogen_hf.evaluation.memorization import RunIndex
from pianogen_hf.generation.continuation import Length, continue_notes
from pianogen_hf.hub.models import model_folder
from pianogen_hf.publishing.model_card import write_card
from pianogen_hf.records import read_json, write_json
from pianogen_hf.tokenizers.midi import read_midi
from pianogen_hf.tokenizers.notes import Notes
from pianogen_hf.tokenizers.notes_encoder import NotesEncoder
from pianogen_hf.training.arguments import DataArguments
from pianogen_hf.workflows.heldout import complete_rows
from pianogen_hf.workflows.loading import load_model
from pianogen_hf.workflows.split import Places, Split, load_split, split_of_model


def audit(
    model: str | None,
    *,
    revision: str | None,
    trust_remote_code: bool,
    places: Places,
    midi: str | None,
    num_samples: int,
    notes: int,
    seed: int,
) -> dict[str, Any]:
    """What `pianogen audit` finds.

    Args:
        model: folder or Hub id; None for the bundled one.
        revision: branch, tag or commit of a model on the Hub.
        trust_remote_code: whether to run code that the model carries.
        places: where the pieces lie that it was trained on.
        midi: a file to audit instead of what the model generates.
        num_samples: pieces to generate.
        notes: notes in each.
        seed: of the first piece.

    Raises:
        ArgumentError, DataError, GenerationError, MidiError: for what a user can mend.
    """
    if midi and places.source and not model:
        return _audit_file(midi, places)
    folder = model_folder(model or pianogen_hf.BACH_MODEL, revision)
    loaded, tokenizer = load_model(model or pianogen_hf.BACH_MODEL, revision, trust_remote_code)
    split = split_of_model(folder, places)
    train, heldout = (_complete_split(split, split_name) for split_name in ("train", "validation"))
    if midi:
        return copy_report(tokenizer, train, heldout.values(), [read_midi(midi)]) | {"settings": {}}
    generated = _generated(loaded, tokenizer, range(seed, seed + num_samples), Length(notes=notes))
    settings = {"num_samples": num_samples, "notes": notes, "seed": seed}
    return copy_report(tokenizer, train, heldout.values(), generated) | {"settings": settings}


def _audit_file(midi: str, places: Places) -> dict[str, Any]:
    """One file against all pieces of a data set; how much any piece has in common with others, its own split tells."""
    source = places.source or []
    split = load_split(DataArguments(source=source, data_path=places.data_path, cache_dir=places.cache_dir))
    everything = list(notes_of(split.pieces, ["all"] * len(split.split_names), "all"))
    train, heldout = ([everything[row] for row in split.rows(split_name)] for split_name in ("train", "validation"))
    names = split.pieces["piece_id"][:]
    base_rate = RunIndex().fit([str(row) for row in range(len(train))], train).audit_set(heldout)
    generated = RunIndex().fit(names, everything).audit_set([read_midi(midi)])
    return report_of(generated, base_rate, len(names)) | {"settings": {}}


def _complete_split(split: Split, split_name: str) -> dict[str, Notes]:
    """All pieces of one split by name."""
    names = split.pieces.select(complete_rows(split, split_name))["piece_id"][:]
    return dict(zip(names, split.notes(split_name), strict=True))


def _generated(model: Any, tokenizer: NotesEncoder, seeds: range, length: Length) -> list[Notes]:
    progress = tqdm(seeds, desc="Generating", unit="piece")
    return [continue_notes(model, tokenizer, length, seed=seed, do_sample=True, top_p=0.95)[0].new for seed in progress]


def record(model: Path, report: dict[str, Any]) -> None:
    """Keep the figures where the card finds them.

    Raises:
        CardError, FileError: if one of the model's files can't be read, or its folder can't be written to.
    """
    path = model / "metrics.json"
    write_json(path, {**read_json(path, default={}), "copy_audit": report})
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
