"""Bits per note on a common grid, and what of them goes to which field.

An encoding that rounds hides what it rounded away, and so a coarse one would always win. A code for the finer music
can be made of it: write the coarse notes, then, of each note and field, by how many steps of the common grid what is
read back is off. An adaptive coder that knows nothing beforehand writes these differences (Krichevsky and Trofimov
1981, "The performance of universal encoding"): a score in sixteenths pays next to nothing for an encoding in
sixteenths, and a performance pays log2(coarse step / common step) bits, the cost of finer values that are all equally
likely. That is also what is paid for a note that is not found again, and the most that is added. It is done for the
onset, the end and the velocity of every note; an encoding that throws velocities away rounds them to a single one. What
else an encoding throws away can't be mended so: it is named instead. Finer steps than the common ones are not credited.

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
NUM_VELOCITIES = 127
# Kinds of tokens that say nothing of pitches and onsets, by the first letters of their lower-case names.
_NOT_ONSETS = ("velocity", "duration", "program", "instrument", "pedal", "tempo")


def on_common_grid(
    model: Any, encoder: Any, bits_per_note: float, residuals: Mapping[str, Mapping[int | None, int]]
) -> dict[str, Any]:
    """The cost of the finer music.

    Args:
        model: gives the steps if its config states them.
        encoder: gives them else.
        bits_per_note: as measured.
        residuals: of the same pieces, for onset, end and velocity: numbers of notes by how many common steps they are
            off when read back, None for notes that are not found again (`round_trip.residuals`).

    Returns:
        JSON-able: `bits_per_note` with what was added, `added` bits by field; `uniform`, the same two if the finer
        values were all equally likely; the steps, and `lost` fields.
    """
    rate = getattr(model.config, "sampling_rate", None)
    time_step = 1 / rate if rate else getattr(encoder, "time_step_sec", None)
    velocity_step = getattr(model.config, "velocity_step", getattr(encoder, "velocity_step", None))
    lost = list(getattr(encoder, "lost_fields", ()))
    if "velocity" in lost:
        velocity_step = NUM_VELOCITIES
    uniform = {
        "onset": _bits(time_step, COMMON_TIME_SEC),
        "end": _bits(time_step, COMMON_TIME_SEC),
        "velocity": _bits(velocity_step, COMMON_VELOCITY),
    }
    added = {field: None if most is None else _refined(most, residuals[field]) for field, most in uniform.items()}
    return {
        **_with(bits_per_note, added),
        "uniform": _with(bits_per_note, uniform),
        "time_step_sec": time_step,
        "velocity_step": velocity_step,
        "common_time_step_sec": COMMON_TIME_SEC,
        "common_velocity_step": COMMON_VELOCITY,
        "lost": lost,
    }


def _bits(step: float | None, common: float) -> float | None:
    return None if step is None else math.log2(max(step / common, 1.0))


def _refined(most: float, residuals: Mapping[int | None, int]) -> float:
    """Bits per note of an adaptive code of the differences, of which those beyond a cell are one more value."""
    notes, cell = sum(residuals.values()), math.ceil(2**most)
    within = [count for steps, count in residuals.items() if steps is not None and abs(steps) <= cell]
    beyond = notes - sum(within)
    if not notes or not most:
        return most
    values = 2 * cell + 2
    nats = math.lgamma(notes + values / 2) - math.lgamma(values / 2)
    nats -= math.fsum(math.lgamma(count + 0.5) - math.lgamma(0.5) for count in (*within, beyond))
    return min(most, (nats / math.log(2) + beyond * most) / notes)


def _with(bits_per_note: float, added: Mapping[str, float | None]) -> dict[str, Any]:
    known = [value for value in added.values() if value is not None]
    return {
        "bits_per_note": bits_per_note + math.fsum(known) if len(known) == len(added) else None,
        "added": dict(added),
    }


def shares(by_kind: Mapping[str, float], is_bound: bool) -> dict[str, Any]:
    """Bits per note without velocities, and of pitches and onsets alone, where tokens tell them apart.

    These are shares of the whole cost: the tokens of those fields, each given *everything* before it, the velocities
    and durations of earlier notes included. They are no codelength of pitches and onsets alone. That would be the cost
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
        return _shares(None, None, "a masked model's tokens have no order")
    if SEVERAL in kinds:
        return _shares(None, None, "byte pairs join fields in one token")
    without_velocity = whole - _sum(kinds, ("velocity",))
    if not _sum(kinds, ("duration",)):
        return _shares(without_velocity, None, "time tokens carry onsets and ends of notes alike")
    return _shares(without_velocity, whole - _sum(kinds, _NOT_ONSETS), None)


def _shares(without_velocity: float | None, pitch_and_onset: float | None, why_not: str | None) -> dict[str, Any]:
    return {"without_velocity": without_velocity, "pitch_and_onset": pitch_and_onset, "why_not": why_not}


def _sum(kinds: Mapping[str, float], beginnings: tuple[str, ...]) -> float:
    return math.fsum(bits for kind, bits in kinds.items() if kind.startswith(beginnings))
