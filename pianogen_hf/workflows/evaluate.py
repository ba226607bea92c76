"""What `pianogen evaluate` does once its options are read: measure, record, draw. Wiring only."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers.utils import logging

import pianogen_hf
from pianogen_hf.data.pieces import unusable_line
from pianogen_hf.errors import UsageError
from pianogen_hf.evaluation.distributions import densities
from pianogen_hf.evaluation.music_metrics import METRICS
from pianogen_hf.evaluation.report import markdown_report
from pianogen_hf.hub.models import model_folder
from pianogen_hf.publishing.model_card import write_card
from pianogen_hf.records import read_json, recorded, write_json
from pianogen_hf.rendering.evaluation_plot import FeaturePlot, save_bits_plot, save_features_plot
from pianogen_hf.tokenizers.files import write_whole
from pianogen_hf.workflows.heldout import HeldOut, any_folder, benchmark_file, own_split
from pianogen_hf.workflows.loading import load_model
from pianogen_hf.workflows.measure import Evaluation, Settings, weights_hash
from pianogen_hf.workflows.split import Places

UNUSABLE = "unusable.json"  # names the files that were left out, beside the figures of the others


def evaluate(
    model: str | None,
    *,
    revision: str | None,
    trust_remote_code: bool,
    device: str | None,
    split_name: str,
    data: str | None,
    places: Places,
    max_pieces: int | None,
    only: list[str],
    window: int | None,
    output: Path,
    argv: list[str],
    **settings: Any,
) -> None:
    """Measure a model, write it down, and print the table.

    Args:
        model: folder or Hub id; None for the bundled one.
        revision: branch, tag or commit of a model on the Hub.
        trust_remote_code: whether to run code that the model carries.
        device: cpu, cuda ...; None for the fastest there is.
        split_name: "validation" or "test".
        data: a folder or file of other music; None for the model's own split.
        places: where its own pieces lie.
        max_pieces: look at so many at most; None for all.
        only: sections to measure.
        window: tokens in a window; None for as many as in training.
        output: where to write.
        argv: the command line, which is recorded.
        **settings: the others of [`Settings`].

    Raises:
        PianogenError: for what a user can mend.
    """
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    name = model or pianogen_hf.BACH_MODEL
    folder = model_folder(name, revision)
    loaded, encoder = load_model(name, revision, trust_remote_code)
    if device:
        loaded = _moved(loaded, device)
    before = read_json(output / "metrics.json", default={}) or read_json(folder / "metrics.json", default={})
    measured = Settings(window or _window(before, loaded), **settings)
    heldout = _held_out(folder, split_name, data, places, max_pieces)
    place = output / "evaluation" / heldout.label
    _say_what_was_seen(heldout, before, place / UNUSABLE)
    evaluation = Evaluation(loaded, encoder, weights_hash(folder), heldout, place, measured)
    record = _measure(evaluation, only)
    record["measured"] = _circumstances(evaluation, argv)
    _record(output, before, heldout, record)
    table = markdown_report(model or "the bundled model", heldout.label, record)
    write_whole(place / "report.md", table.encode())
    _draw(record, heldout, place)
    print(table)
    print(f"written to {place}, and figures to {output / 'metrics.json'}")


def _held_out(folder: Path, split_name: str, data: str | None, places: Places, max_pieces: int | None) -> HeldOut:
    if data is None:
        return own_split(folder, split_name, places, max_pieces)
    if data.endswith(".json"):
        return benchmark_file(folder, data, split_name, max_pieces)
    return any_folder(folder, data, places.cache_dir, max_pieces)


def _moved(model: Any, device: str) -> Any:
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {device} can't be used: {str(error).splitlines()[0]}") from error


def _window(metrics: dict[str, Any], model: Any) -> int:
    """Ids that the model was trained on at a time: it need not know what to do with more."""
    window = metrics.get("context", {}).get("window") or getattr(model.config, "max_position_embeddings", None)
    if window is None:
        raise UsageError("nothing tells how many tokens the model was trained on at a time: give --window")
    return int(window)


def _say_what_was_seen(heldout: HeldOut, before: dict[str, Any], unusable: Path) -> None:
    unusable.unlink(missing_ok=True)
    if line := unusable_line(heldout.unusable, str(unusable)):
        write_json(unusable, heldout.unusable)
        print(line)
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
    figures = {name: _without_pieces(result) for name, result in record.items()}
    metrics["evaluation"][heldout.label] = {
        **earlier,
        **figures,
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
