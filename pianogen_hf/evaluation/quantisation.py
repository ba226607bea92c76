"""Bits per note on a common grid, and what of them goes to which field.

An encoding that rounds hides what it rounded away, and so a coarse one would always win. A code for the finer music can
be made of it: write the coarse notes, then, of each note and field, which of the finer values within the coarse cell it
was, all equally likely. That costs log2(coarse step / common step) bits per note and field, and these are added here,
to the onset, the end and the velocity of every note. A field that an encoding throws away whole can't be mended so:
it is named instead. Finer steps than the common ones are not credited.

Encodings state their steps as `time_step_sec` (in beats: at 120 quarters a minute) and `velocity_step`; a model of
continuous notes states the cells whose mass it gives, `config.sampling_rate` and `config.velocity_step`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pianogen_hf.evaluation.scorers import SEVERAL

COMMON_TIME_SEC = 0.01
COMMON_VELOCITY = 1.0
# Kinds of ids that say nothing of pitches and onsets, by the first letters of their lower-case names.
_NOT_ONSETS = ("velocity", "duration", "program", "pedal", "tempo")


def on_common_grid(model: Any, encoder: Any, bits_per_note: float) -> dict[str, Any]:
    """The cost of the finer music.

    Args:
        model: gives the steps if its config states them.
        encoder: gives them else.
        bits_per_note: as measured.

    Returns:
        JSON-able: `bits_per_note` with what was added, `added` bits by field, the steps, and `lost` fields.
    """
    rate = getattr(model.config, "sampling_rate", None)
    time_step = 1 / rate if rate else getattr(encoder, "time_step_sec", None)
    velocity_step = getattr(model.config, "velocity_step", getattr(encoder, "velocity_step", None))
    lost = tuple(getattr(encoder, "lost_fields", ()))
    added = {"onset": _bits(time_step, COMMON_TIME_SEC), "end": _bits(time_step, COMMON_TIME_SEC)}
    if "velocity" not in lost:
        added["velocity"] = _bits(velocity_step, COMMON_VELOCITY)
    total = math.fsum(value for value in added.values() if value is not None)
    return {
        "bits_per_note": None if None in added.values() else bits_per_note + total,
        "added": added,
        "time_step_sec": time_step,
        "velocity_step": None if "velocity" in lost else velocity_step,
        "common_time_step_sec": COMMON_TIME_SEC,
        "common_velocity_step": COMMON_VELOCITY,
        "lost": list(lost),
    }


def _bits(step: float | None, common: float) -> float | None:
    return None if step is None else math.log2(max(step / common, 1.0))


def shares(by_kind: Mapping[str, float], is_bound: bool) -> dict[str, Any]:
    """Bits per note without velocities, and of pitches and onsets alone, where ids tell them apart.

    These are shares of the whole cost: the ids of those fields, each given *everything* before it, the velocities and
    durations of earlier notes included. They are no codelength of pitches and onsets alone. That would be the cost
    summed over all velocities and durations, which no model here can give.

    Args:
        by_kind: bits per note by the kind of id.
        is_bound: whether they bound a random order, in which "everything before" means nothing.

    Returns:
        `without_velocity` and `pitch_and_onset`, None where they can't be told; and `why_not` in words.
    """
    kinds = {kind.lower(): bits for kind, bits in by_kind.items()}
    whole = math.fsum(kinds.values())
    if is_bound:
        return _shares(None, None, "a masked model's ids have no order")
    if SEVERAL in kinds:
        return _shares(None, None, "byte pairs join fields in one id")
    without_velocity = whole - _sum(kinds, ("velocity",))
    if not _sum(kinds, ("duration",)):
        return _shares(without_velocity, None, "ids of time tell onsets and ends of notes alike")
    return _shares(without_velocity, whole - _sum(kinds, _NOT_ONSETS), None)


def _shares(without_velocity: float | None, pitch_and_onset: float | None, why_not: str | None) -> dict[str, Any]:
    return {"without_velocity": without_velocity, "pitch_and_onset": pitch_and_onset, "why_not": why_not}


def _sum(kinds: Mapping[str, float], beginnings: tuple[str, ...]) -> float:
    return math.fsum(bits for kind, bits in kinds.items() if kind.startswith(beginnings))
