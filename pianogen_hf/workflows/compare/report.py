"""The report of a comparison, from what its folder holds: `report.md`, `loss.png` and `report.html`. Wiring."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

import pianogen_hf
from pianogen_hf.data.chunks import notes_of
from pianogen_hf.errors import FileError
from pianogen_hf.evaluation.compare import comparison_tables, ranked, ranking
from pianogen_hf.evaluation.learning_curves import loss_curve
from pianogen_hf.evaluation.samples import sample_faults
from pianogen_hf.evaluation.tables import markdown
from pianogen_hf.records import read_json
from pianogen_hf.rendering.comparison_page import comparison_page
from pianogen_hf.rendering.loss_curves import save_loss_curves
from pianogen_hf.tokenizers.files import write_whole
from pianogen_hf.tokenizers.midi import read_midi
from pianogen_hf.tokenizers.notes import Notes
from pianogen_hf.training.budget import read_log
from pianogen_hf.workflows.compare.job import Job
from pianogen_hf.workflows.compare.runner import failure_of
from pianogen_hf.workflows.split import Split

SHOWN = 3  # pieces of each model that can be seen and heard
_REAL = "Real music, held out"


def write_report(
    folder: Path,
    jobs: Sequence[Job],
    unusable: dict[str, str],
    split: Split,
    settings: dict[str, Any],
    facts: dict[str, str],
    with_real_music: bool = True,
) -> list[Path]:
    """Write what can be said so far; returns the files.

    Args:
        folder: of the comparison.
        jobs: its models.
        unusable: recipes that could not even be planned, with the reason.
        split: what all of them were trained on.
        settings: of the evaluation.
        facts: what the command knows of how it came about.
        with_real_music: whether the page lets the beginnings of held-out pieces be heard, too.
    """
    models = [_model(folder, job) for job in jobs]
    models += [
        {"name": name, "job": None, "training": None, "evaluation": None, "failed": reason}
        for name, reason in unusable.items()
    ]
    tables = comparison_tables(models)
    curves = {
        job.name: loss_curve(_as_json(folder, job), read_log(folder / job.name / "training_log.jsonl")) for job in jobs
    }
    curves = {name: curve for name, curve in curves.items() if curve["train"]["bits"]}
    facts = {**facts, **_machine(models)}
    split_name = settings["side"]
    title = f"{len(jobs)} recipes compared on {split.manifest['counts'].get(split_name, 0)} {split_name} pieces"
    pictures, png = {}, None
    if curves:
        png = save_loss_curves(curves, folder / "loss.png").read_bytes()
        pictures = {"Loss curves": "loss.png"}
    write_whole(folder / "report.md", markdown(title, facts, tables, pictures).encode())
    groups = [_music(folder, model) for model in ranked(models)]
    if with_real_music:
        groups.insert(0, _real_music(split, settings))
    page = comparison_page(title, facts, ranking(models), tables, png, [group for group in groups if group["pieces"]])
    write_whole(folder / "report.html", page.encode())
    return [folder / "report.md", folder / "report.html"]


def _model(folder: Path, job: Job) -> dict[str, Any]:
    place = folder / job.name
    found = {name: _read(place / f"{name}.json", job) for name in ("training", "evaluation")}
    return {"name": job.name, "job": _as_json(folder, job), "failed": failure_of(place), **found}


def _as_json(folder: Path, job: Job) -> dict[str, Any]:
    return read_json(folder / job.name / "job.json")


def _read(path: Path, job: Job) -> dict[str, Any] | None:
    """What a task wrote; None if it is not done, or was of another plan."""
    try:
        found = read_json(path)
    except FileError:
        return None
    return found if found["job"] == job.hash() else None


def _machine(models: Sequence[dict[str, Any]]) -> dict[str, str]:
    machines = [model["training"]["machine"] for model in models if model["training"]]
    if machines:
        first = machines[0]
        cores = f"{first['cores']} cores, {first['threads']} thread{'' if first['threads'] == 1 else 's'} used"
        words = f"{first['device']}, {first['processor']}, {cores}"
    else:
        words = platform.machine()
    return {
        "machine": words,
        "versions": f"pianogen_hf {pianogen_hf.__version__}, torch {torch.__version__}, transformers "
        f"{transformers.__version__}, Python {platform.python_version()}",
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
    }


# Music ----------------------------------------------------------------------------------------------------------------


def _real_music(split: Split, settings: dict[str, Any]) -> dict[str, Any]:
    """The beginnings of some held-out pieces, evenly over all of them, as long as the generated ones."""
    pieces, rows = split.pieces, split.rows(settings["side"])
    chosen = [rows[place] for place in np.unique(np.linspace(0, len(rows) - 1, min(SHOWN, len(rows))).astype(int))]
    music = notes_of(pieces.select(chosen), ["real"] * len(chosen), "real")
    shown = [
        _piece(name, _beginning(notes, settings["sample_notes"]))
        for name, notes in zip(pieces.select(chosen)["piece_id"][:], music, strict=True)
    ]
    return {"name": _REAL, "text": "None of the models was trained on it.", "pieces": shown}


def _music(folder: Path, model: Mapping[str, Any]) -> dict[str, Any]:
    samples = model["evaluation"]["samples"]
    shown = [
        _piece(f"seed {each['seed']}", read_midi(folder / model["name"] / each["file"], None), each["faults"])
        for each in samples["pieces"][:SHOWN]
    ]
    bits = ranking([model])[0]["words"]
    sizes = f"{model['job']['encoder']}, {model['job']['parameters']['total']:,} parameters"
    return {"name": model["name"], "text": f"{sizes}; {bits} bits per note.", "pieces": shown}


def _piece(title: str, notes: Notes, faults: list[str] | None = None) -> dict[str, Any]:
    return {"title": title, "notes": notes, "faults": sample_faults(notes) if faults is None else faults}


def _beginning(notes: Notes, count: int) -> Notes:
    return notes.where(np.arange(len(notes)) < count)
