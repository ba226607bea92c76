"""What `pianogen evaluate` does once its options are read: measure, record, draw. Wiring only."""

from __future__ import annotations

import argparse
import datetime
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers.utils import logging

import pianogen_hf
from pianogen_hf.errors import ArgumentError, UsageError
from pianogen_hf.evaluation.distributions import densities
from pianogen_hf.evaluation.music_metrics import METRICS
from pianogen_hf.evaluation.report import markdown_report
from pianogen_hf.hub.models import model_folder
from pianogen_hf.publishing.model_card import write_card
from pianogen_hf.records import recorded, write_json
from pianogen_hf.rendering.evaluation_plot import FeaturePlot, save_bits_plot, save_features_plot
from pianogen_hf.tokenizers.files import write_whole
from pianogen_hf.workflows.heldout import HeldOut, any_folder, benchmark_file, own_side
from pianogen_hf.workflows.loading import load_model
from pianogen_hf.workflows.measure import Evaluation, weights_hash


def evaluate(args: argparse.Namespace, argv: list[str]) -> None:
    """Measure what the options ask for, write it down, and print the table.

    Args:
        args: of `commands/evaluate.py`, checked.
        argv: the command line, which is recorded.

    Raises:
        PianogenError: for what a user can mend.
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    name = args.model or pianogen_hf.BUNDLED_MODEL
    folder = model_folder(name, args.revision)
    output = args.output
    model, encoder = load_model(name, args.revision, args.trust_remote_code)
    if args.device:
        model = _moved(model, args.device)
    before = _read_metrics(output) or _read_metrics(folder)
    args.window = args.window or _window(before, model)
    heldout = _held_out(args, folder)
    _say_what_was_seen(heldout, before)
    place = output / "evaluation" / heldout.label
    evaluation = Evaluation(model, encoder, weights_hash(folder), heldout, place, args)
    record = _measure(evaluation, args.only)
    record["measured"] = _circumstances(evaluation, argv)
    _record(output, before, heldout, record)
    table = markdown_report(args.model or "the bundled model", heldout.label, record)
    write_whole(place / "report.md", table.encode())
    _draw(record, heldout, place)
    print(table)
    print(f"written to {place}, and figures to {output / 'metrics.json'}")


def _held_out(args: argparse.Namespace, folder: Path) -> HeldOut:
    if args.data and args.data.endswith(".json"):
        return benchmark_file(folder, args.data, args.side, args.max_pieces)
    if args.data:
        return any_folder(folder, args.data, args.cache_dir, args.max_pieces)
    return own_side(folder, args.side, args.source, args.data_path, args.cache_dir, args.max_pieces)


def _moved(model: Any, device: str) -> Any:
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {device} can't be used: {str(error).splitlines()[0]}") from error


def _read_metrics(folder: Path) -> dict[str, Any]:
    path = folder / "metrics.json"
    try:
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise ArgumentError(f"{path} can't be read: {error}") from error


def _window(metrics: dict[str, Any], model: Any) -> int:
    """Ids that the model was trained on at a time: it need not know what to do with more."""
    window = metrics.get("context", {}).get("window") or getattr(model.config, "max_position_embeddings", None)
    if window is None:
        raise UsageError("nothing tells how many ids the model was trained on at a time: give --window")
    return int(window)


def _say_what_was_seen(heldout: HeldOut, before: dict[str, Any]) -> None:
    print(f"{len(heldout.pieces)} {heldout.label} pieces of {heldout.source}", end="")
    known = "unknown how many" if heldout.related is None else len(heldout.related)
    print(f"; {known} share music with what the model was trained on")
    looks = before.get("evaluation", {}).get(heldout.label, {}).get("looked_at", [])
    if heldout.label.endswith("test") and looks:
        print(f"test was looked at before, on {', '.join(looks)}: what is chosen by it is no test any more")


def _measure(evaluation: Evaluation, only: list[str]) -> dict[str, Any]:
    names = {"likelihood": "likelihood", "statistics": "statistics", "audit": "copy_audit", "roundtrip": "round_trip"}
    record = {names[section]: getattr(evaluation, section)() for section in names if section in only}
    if "audit" in only and record["copy_audit"] is None:
        print("copying was not measured: it needs the model's own pieces (leave out --data)")
    return {name: result for name, result in record.items() if result is not None}


def _circumstances(evaluation: Evaluation, argv: list[str]) -> dict[str, Any]:
    device = evaluation.model.device
    return {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "command": recorded("pianogen", ["evaluate", *argv]),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "seconds": evaluation.seconds,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "pianogen_hf": pianogen_hf.__version__,
    }


def _record(output: Path, before: dict[str, Any], heldout: HeldOut, record: dict[str, Any]) -> None:
    """Put the figures where the card finds them; what an earlier run measured and this one did not is kept."""
    metrics = {**before, "evaluation": {**before.get("evaluation", {})}}
    earlier = metrics["evaluation"].get(heldout.label, {})
    looks = [*earlier.get("looked_at", []), record["measured"]["date"]]
    slim = {name: _without_pieces(result) for name, result in record.items()}
    metrics["evaluation"][heldout.label] = {
        **earlier,
        **slim,
        "source": heldout.source,
        "is_whole": heldout.is_whole,
        "looked_at": list(dict.fromkeys(looks)),
    }
    if heldout.label == "validation" and "copy_audit" in record:
        metrics["copy_audit"] = record["copy_audit"]  # where `pianogen audit --record` puts it
    is_new = heldout.label == "test" or (heldout.label == "validation" and "validation" not in metrics)
    if is_new and heldout.is_whole and "likelihood" in record:
        scores = record["likelihood"]["sliding"]
        metrics[heldout.label] = {name: scores[name] for name in ("bits_per_note", "nats_per_token", "accuracy")}
        metrics.setdefault("context", scores["context"])
    write_json(output / "metrics.json", metrics)
    if (output / "config.json").exists():
        write_card(output)


def _without_pieces(result: dict[str, Any]) -> dict[str, Any]:
    """Without what there is one of per piece: the figures alone go to metrics.json."""
    return {
        name: _without_pieces(value) if isinstance(value, dict) else value
        for name, value in result.items()
        if name != "per_piece"
    }


# Pictures -------------------------------------------------------------------------------------------------------------


def _draw(record: dict[str, Any], heldout: HeldOut, place: Path) -> None:
    if "likelihood" in record:
        pieces = record["likelihood"]["per_piece"]["sliding"]
        cost = np.array(pieces["bits"]) / np.maximum(pieces["notes"], 1)
        related = np.array([name in (heldout.related or ()) for name in pieces["names"]], dtype=bool)
        groups = {"held-out pieces": cost[~related], "those that share music with train": cost[related]}
        save_bits_plot(groups, f"What {heldout.label} pieces cost", place / "bits.png")
    if "statistics" in record:
        statistics = record["statistics"]
        features = [_feature(name, statistics) for name in METRICS if name in statistics["generated"]]
        words = "{num_samples} generated and {heldout_pieces} held-out pieces".format_map(statistics["settings"])
        save_features_plot(features, f"Music statistics: {words}", place / "statistics.png")


def _feature(name: str, statistics: dict[str, Any]) -> FeaturePlot:
    made, real = (
        np.array([piece[name] for piece in statistics["per_piece"][of] if piece[name] is not None], dtype=np.float64)
        for of in ("generated", "heldout")
    )
    floor = statistics["floor"].get(name, {}).get("overlap")
    note = f"overlap {statistics['generated'][name]['overlap']:.2f}"
    note += f"\nreal {floor:.2f}" if floor is not None else ""
    return FeaturePlot(METRICS[name], made, real, *densities(made, real), note=note)
