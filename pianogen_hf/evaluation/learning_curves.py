"""What a training log says, in units that do not depend on the encoding."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any


def loss_curve(job: Mapping[str, Any], log: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """What a training log says, as bits per note over the notes seen and the seconds of training.

    Args:
        job: of the model: its `phases` with `batch` and `tokens_per_example`, and `tokens_per_note`.
        log: lines with `stage`, `step`, `seconds`, and `loss` (nats per token) or `eval_bits_per_note`.

    Returns:
        `train` and `validation`, each with `notes`, `seconds` and `bits`.
    """
    curves: dict[str, dict[str, list[float]]] = {
        name: {"notes": [], "seconds": [], "bits": []} for name in ("train", "validation")
    }
    stages = list(dict.fromkeys(line["stage"] for line in log))
    per_step = [phase["batch"] * phase["tokens_per_example"] / job["tokens_per_note"] for phase in job["phases"]]
    last_step = {line["stage"]: line["step"] for line in log}
    for line in _without_kept(log):
        number_of_stage = stages.index(line["stage"])
        before = sum(last_step[stage] * notes for stage, notes in zip(stages[:number_of_stage], per_step, strict=False))
        for name, key, factor in (
            ("train", "loss", job["tokens_per_note"] / math.log(2)),
            ("validation", "eval_bits_per_note", 1.0),
        ):
            if line.get(key) is not None:
                curves[name]["notes"].append(before + line["step"] * per_step[number_of_stage])
                curves[name]["seconds"].append(line["seconds"])
                curves[name]["bits"].append(line[key] * factor)
    return curves


def _without_kept(log: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Without the evaluation that ends a stage, which is of the best weights and not of those of the last step."""
    evaluated: dict[str, list[int]] = {}
    for place, line in enumerate(log):
        if line.get("eval_bits_per_note") is not None:
            evaluated.setdefault(line["stage"], []).append(place)
    kept = {places[-1] for places in evaluated.values() if len(places) > 1}
    return [line for place, line in enumerate(log) if place not in kept]
