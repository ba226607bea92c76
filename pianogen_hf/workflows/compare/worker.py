"""One task for one model of a comparison, in a process of its own.

`python -m pianogen_hf.workflows.compare.worker TASK FOLDER`, where TASK is one of

measure   a few steps of training, timed                  -> pace.json
train     train.py, for as many steps as the budget buys  -> model/, recipe.yaml, training_log.jsonl, training.json
evaluate  what `pianogen evaluate` measures               -> evaluation/, samples/, evaluation.json

FOLDER holds `job.json` and, for evaluate, `settings.json`. What is done is not done again.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch
import transformers

from pianogen_hf.data.manifest import read_manifest
from pianogen_hf.errors import one_line, reports_errors
from pianogen_hf.evaluation.samples import sample_faults
from pianogen_hf.generation.continuation import Length, continue_notes
from pianogen_hf.records import read_json, write_json
from pianogen_hf.tokenizers.midi import write_midi
from pianogen_hf.training.arguments import parse_arguments
from pianogen_hf.training.budget import BudgetCallback, Measured, PaceCallback, read_log
from pianogen_hf.workflows.compare.job import Job, write_recipe
from pianogen_hf.workflows.heldout import own_split
from pianogen_hf.workflows.loading import load_model
from pianogen_hf.workflows.measure import TOP_P, Evaluation, Settings, weights_hash
from pianogen_hf.workflows.split import Places
from pianogen_hf.workflows.train import train

_ENDLESS = 1_000_000  # steps of a run that is there to be timed
_HARD_STOP = 1.15  # times the budget: a machine that has become slower since it was measured
_TIMED_NOTES = 100  # whose generation is timed


@reports_errors()
def main(argv: list[str] | None = None) -> int:
    """Do one task; returns the exit code, that of train.py where it ran."""
    task, folder = sys.argv[1:] if argv is None else argv
    transformers.logging.set_verbosity_error()
    return {"measure": _measure, "train": _train, "evaluate": _evaluate}[task](Path(folder))


# Training -------------------------------------------------------------------------------------------------------------


def _measure(folder: Path) -> int:
    job = Job.load(folder / "job.json")
    seconds = min(max(0.05 * job.budget["seconds"], 2.0), 20.0)
    trial = folder / "trial"
    argv = write_recipe(folder / "trial.yaml", job, [_ENDLESS] * len(job.phases), trial)
    code = 1
    try:
        code = train(argv, [PaceCallback(seconds)])
    except Measured as measured:
        write_json(
            folder / "pace.json",
            {"job": job.hash(), "seconds_per_step": measured.seconds_per_step, "steps": measured.steps},
        )
        code = 0
    finally:
        shutil.rmtree(trial, ignore_errors=True)
        (folder / "trial.yaml").unlink(missing_ok=True)
    return code


def _train(folder: Path) -> int:
    job = Job.load(folder / "job.json")
    pace = None if job.budget["seconds"] is None else read_json(folder / "pace.json")["seconds_per_step"]
    steps, model, log = job.steps(pace), folder / "model", folder / "training_log.jsonl"
    argv = write_recipe(folder / "recipe.yaml", job, steps, model)
    if any(model.rglob("checkpoint-[0-9]*/trainer_state.json")) or any(model.glob("stage-*/metrics.json")):
        argv += ["--resume_from_checkpoint", "true"]
    else:
        shutil.rmtree(model, ignore_errors=True)
        log.unlink(missing_ok=True)
    clock = BudgetCallback(log, _limits(job, steps))
    code = train(argv, [clock])
    if code == 0:
        if read_manifest(model / "split.json")["hash"] != job.split:
            print(f"error: {model} was trained in another split than the comparison's: has a source changed?")
            return 2
        write_json(folder / "training.json", _training_record(job, folder, steps, clock.has_run_out))
        for checkpoint in [*model.rglob("checkpoint-[0-9]*")]:
            shutil.rmtree(checkpoint)
    return code


def _limits(job: Job, steps: list[int]) -> list[float] | None:
    """Seconds from the beginning at which each phase is stopped, however far it is."""
    if job.budget["seconds"] is None:
        return None
    return [_HARD_STOP * job.budget["seconds"] * sum(steps[: number + 1]) / sum(steps) for number in range(len(steps))]


def _training_record(job: Job, folder: Path, steps: list[int], has_run_out: bool) -> dict[str, Any]:
    """What the training was: steps, tokens, notes, time, memory, machine."""
    log = read_log(folder / "training_log.jsonl")
    last = log[-1]
    done = list({line["stage"]: line["step"] for line in log}.values())
    tokens = sum(each * phase.tokens_per_step for each, phase in zip(done, job.phases, strict=True))
    notes = tokens / job.tokens_per_note
    return {
        "job": job.hash(),
        "steps": sum(done),
        "max_steps": sum(steps),
        "was_stopped": has_run_out,
        "seconds": last["seconds"],
        "cpu_seconds": last["cpu_seconds"],
        "peak_memory_bytes": max((line["peak_memory_bytes"] or 0 for line in log), default=0) or None,
        "tokens_seen": round(tokens),
        "notes_seen": round(notes),
        "passes": notes / job.train_notes,
        "tokens_per_second": tokens / max(last["seconds"], 1e-9),
        "notes_per_second": notes / max(last["seconds"], 1e-9),
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "system": platform.platform(),
            "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "load": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        },
    }


# Evaluation -----------------------------------------------------------------------------------------------------------


def _evaluate(folder: Path) -> int:
    job, settings = Job.load(folder / "job.json"), read_json(folder / "settings.json")
    evaluation = _evaluation(folder, job, settings)
    samples = _samples(evaluation, folder / "samples")
    has_music = samples["why_none"] is None
    results = {
        "job": job.hash(),
        "settings": settings,
        "likelihood": evaluation.likelihood(),
        "round_trip": evaluation.roundtrip(),
        "samples": samples,
        "statistics": evaluation.statistics() if has_music else None,
        "audit": evaluation.audit() if has_music else None,
        "speed": _speed(evaluation) if has_music else None,
        "seconds": evaluation.seconds,
    }
    write_json(folder / "evaluation.json", results)
    return 0


def _evaluation(folder: Path, job: Job, settings: dict[str, Any]) -> Evaluation:
    """What `pianogen evaluate` measures, of this model on the common pieces."""
    _, data_args, _ = parse_arguments(job.options)
    model_folder, split_name = folder / "model", settings["side"]
    model, encoder = load_model(model_folder)
    heldout = own_split(model_folder, split_name, Places(data_args.source, data_args.data_path, data_args.cache_dir))
    window = read_json(model_folder / "metrics.json")["context"]["window"]
    measured = Settings(
        window,
        orders=settings["orders"],
        num_samples=settings["samples"],
        notes=settings["sample_notes"],
        seed=settings["seed"],
    )
    return Evaluation(model, encoder, weights_hash(model_folder), heldout, folder / "evaluation" / split_name, measured)


def _samples(evaluation: Evaluation, folder: Path) -> dict[str, Any]:
    """Pieces from nothing, as MIDI files, with what is wrong with each; or why there are none."""
    shutil.rmtree(folder, ignore_errors=True)
    try:
        generated = evaluation.generated()
    except Exception as error:  # whatever a model can't do, its likelihood is still worth a row in the report
        return {"pieces": [], "why_none": f"{type(error).__name__}: {one_line(error)}"}
    pieces = []
    for seed, notes in enumerate(generated, evaluation.settings.seed):
        path = folder / f"seed-{seed:05d}.mid"
        write_midi(notes, path)
        pieces.append({"seed": seed, "file": f"{folder.name}/{path.name}", "faults": sample_faults(notes)})
    return {"pieces": pieces, "why_none": None}


def _speed(evaluation: Evaluation) -> dict[str, float]:
    """Notes a second of one piece at a time."""
    began = time.monotonic()
    made = continue_notes(
        evaluation.model, evaluation.encoder, Length(notes=_TIMED_NOTES), seed=0, do_sample=True, top_p=TOP_P
    )
    seconds = time.monotonic() - began
    return {"notes": len(made[0].new), "seconds": seconds, "notes_per_second": len(made[0].new) / seconds}


if __name__ == "__main__":
    raise SystemExit(main())
