"""Tasks out of music: which notes of a window are given, which are to be written, and what is asked of them.

A note transformer (V8) learns to continue, to fill a gap, to accompany and to vary from one kind of window. What a
window becomes is drawn anew in every epoch:

    continue    all notes are written, each given those before it
    fill        a span is written in sight of what precedes and follows it, and of some of its own notes
    accompany   from some point on a part of the texture is given: a register, the top or the bottom line, or notes at
                random; the rest is written

Given notes are seen some time before their own onset: long before (the whole part is known), a little, or not at all,
as when somebody plays. Controls are computed from the very notes that are to be written, and asked for now and then.

Of what is asked, the notes before tell nearly all: a loud passage follows a loud one. So where something is asked, the
music often changes in it from some note on (louder, faster, higher, in another key), and what the notes after it are
like follows from what is asked alone. Windows of which nothing is asked stay as they were played.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from pianogen_hf.models.modeling_note_transformer import END_ROW, NUM_PITCHES, NUM_VELOCITIES
from pianogen_hf.models.note_controls import (
    CONTROLS,
    DENSITY,
    FEWEST_NOTES,
    GAP_LEFT,
    KEY,
    KIND,
    LOUDNESS,
    REGISTER,
    SECONDS_LEFT,
    control_values,
    seconds_left_class,
)
from pianogen_hf.models.note_rows import met_order, time_shifts, written_onsets
from pianogen_hf.tokenizers.feature_extraction_continuous_notes import DURATION, PITCH, TIME_SHIFT, VELOCITY

_FILL, _ACCOMPANY = 0.25, 0.25  # shares of windows; the others are continued
_GAP_SEC = (2.0, 20.0)
_LOOKAHEAD_SEC = 5.0
_PARTLY_GIVEN = 0.3  # share of gaps of which some notes are given
_GAP_IS_TOLD = 0.8  # how often it is said where a gap ends
_WITHOUT_CONTROLS, _CONTROL = 0.35, 0.6  # share of windows without any, and chance of each control in the others
_CHANGED = 0.5  # share of windows with controls in which the music changes
_LOUDER, _FASTER, _OCTAVE = 20.0, 0.4, 12  # deviation of velocities, of the logarithm of tempos; semitones
_KEYS = (21, 108)  # of a piano
_IS_TIME = np.isin(np.arange(len(CONTROLS)), (SECONDS_LEFT, GAP_LEFT))
_END_ROW = np.array([END_ROW], dtype=np.float32)


@dataclass
class Arrangement:
    """Rows in the order in which a model meets them.

    Attributes:
        rows: shape (length, 4), float32.
        is_given: roles, bool, shape (length,).
        is_target: rows that are to be predicted, bool, shape (length,).
        control_ids: int64, shape (length, num_controls): what is asked of the notes after each row.
    """

    rows: np.ndarray
    is_given: np.ndarray
    is_target: np.ndarray
    control_ids: np.ndarray


@dataclass
class _Task:
    """A window in the order of a task.

    Attributes:
        order: indices of the window's rows in the order in which they are met, without those left out.
        is_given: roles of these, bool.
        begin: place in `order` of the first row that is predicted with the help of given ones; targets change their
            character there.
        gap_end: onset, in seconds, at which a gap ends; None where none is filled.
    """

    order: np.ndarray
    is_given: np.ndarray
    begin: int
    gap_end: float | None = None


def arrange(
    rows: np.ndarray,
    first_label: int,
    generator: np.random.Generator,
    kind: int = 0,
    seconds_left: float | None = None,
    sampling_rate: int = 100,
) -> Arrangement:
    """Draw a task and arrange a window for it.

    Args:
        rows: a window of a piece, shape (length, 4), in time order.
        first_label: index of the first row that may be predicted, at least 1.
        generator: where chance comes from.
        kind: class of the kind of music, 0 if it is unknown.
        seconds_left: from the last onset of the window until the piece has died away, if it is known.
        sampling_rate: steps a second of the grid on which times lie.

    Returns:
        At most as many rows as the window has.
    """
    asked, is_changed = _asked(generator), generator.random() < _CHANGED
    change = int(generator.integers(first_label, len(rows))) if is_changed else len(rows)
    rows = _changed(rows, change, asked, sampling_rate, generator)
    onset = np.cumsum(rows[:, TIME_SHIFT], dtype=np.float64)
    draw = generator.random()
    task = None
    if draw < _FILL:
        task = _fill(rows, onset, first_label, generator)
    elif draw < _FILL + _ACCOMPANY:
        task = _accompany(rows, onset, first_label, generator)
    if task is None:
        task = _Task(np.arange(len(rows)), np.zeros(len(rows), dtype=bool), len(rows))
    chosen, chosen_onset = rows[task.order].copy(), onset[task.order]
    is_target = ~task.is_given & (task.order >= first_label)
    if task.gap_end is not None:  # the event after the last note that is to be written
        chosen = np.concatenate([chosen, _END_ROW])
        chosen_onset = np.append(chosen_onset, chosen_onset[~task.is_given][-1])
        task.is_given, is_target = np.append(task.is_given, False), np.append(is_target, True)
    first_shift = chosen[0, TIME_SHIFT]
    chosen[:, TIME_SHIFT] = time_shifts(chosen_onset, task.is_given)
    if not task.is_given[0]:  # a window from the middle of a piece knows how long its first note was waited for
        chosen[0, TIME_SHIFT] = first_shift
    arranged = Arrangement(chosen, task.is_given, is_target, np.zeros((len(chosen), len(CONTROLS)), dtype=np.int64))
    end = None if seconds_left is None else onset[-1] + seconds_left
    borders = [task.begin, int(np.count_nonzero(task.order[:-1] < change))]
    _ask(arranged, task, chosen_onset, kind, end, asked, borders, generator)
    return arranged


def _asked(generator: np.random.Generator) -> np.ndarray:
    """Which controls are asked for, bool, shape (num_controls,)."""
    asked = generator.random(len(CONTROLS)) < _CONTROL
    return asked & (generator.random() >= _WITHOUT_CONTROLS)


def _changed(
    rows: np.ndarray, change: int, asked: np.ndarray, sampling_rate: int, generator: np.random.Generator
) -> np.ndarray:
    """Rows that from `change` on are louder or softer, faster or slower, higher or lower, in what is asked."""
    louder, faster = generator.normal(0, _LOUDER), generator.normal(0, _FASTER)
    semitones = int(generator.integers(-6, 6)) * asked[KEY] + int(generator.integers(-1, 2)) * _OCTAVE * asked[REGISTER]
    rows, is_note = rows.copy(), rows[:, PITCH] < NUM_PITCHES
    later = is_note & (np.arange(len(rows)) >= change)
    if not later.any():
        return rows
    if asked[LOUDNESS]:
        rows[later, VELOCITY] = np.clip(np.rint(rows[later, VELOCITY] + louder), 1, NUM_VELOCITIES - 1)
    pitch = rows[later, PITCH] + semitones
    if pitch.min() >= _KEYS[0] and pitch.max() <= _KEYS[1]:
        rows[later, PITCH] = pitch
    if asked[DENSITY]:
        _stretch(rows, is_note, change, np.exp(-faster), sampling_rate)
    return rows


def _stretch(rows: np.ndarray, is_note: np.ndarray, change: int, factor: float, sampling_rate: int) -> None:
    """Stretch rows from `change` on, in place: what ended together still does, and no two onsets fall together."""
    steps = np.rint(rows[:, TIME_SHIFT].astype(np.float64) * sampling_rate)
    onset, scaled = np.cumsum(steps), steps.copy()
    scaled[change:] = np.maximum(np.rint(steps[change:] * factor), np.minimum(steps[change:], 1))
    new_onset, offset = np.cumsum(scaled), onset + np.rint(rows[:, DURATION] * sampling_rate)
    far = max(float(offset.max()), onset[-1] + 1)
    new_offset = np.interp(offset, [*onset, far], [*new_onset, new_onset[-1] + (far - onset[-1]) * factor])
    duration = np.maximum(np.rint(new_offset) - new_onset, 1)
    rows[:, TIME_SHIFT] = scaled / sampling_rate
    rows[is_note, DURATION] = duration[is_note] / sampling_rate


def _fill(rows: np.ndarray, onset: np.ndarray, first_label: int, generator: np.random.Generator) -> _Task | None:
    """Past, given future (and given notes of the gap), then the rest of the gap; None where there is no room for it."""
    length = generator.uniform(*_GAP_SEC)
    last_start = onset[-1] - min(length, 0.8 * (onset[-1] - onset[first_label - 1]))
    start = generator.uniform(onset[first_label - 1], max(last_start, onset[first_label - 1]))
    in_gap = (onset >= start) & (onset < start + length) & (np.arange(len(rows)) >= first_label)
    is_note = rows[:, PITCH] < NUM_PITCHES
    past, future = np.flatnonzero((onset < start) | (np.arange(len(rows)) < first_label)), (onset >= start + length)
    future = np.flatnonzero(future & is_note & ~in_gap)
    if np.count_nonzero(in_gap & is_note) < 2 or len(future) == 0:
        return None
    if generator.random() < 0.5:  # not always all of it
        future = future[: generator.integers(1, len(future) + 1)]
    gap = np.flatnonzero(in_gap & is_note)
    share = generator.random() if generator.random() < _PARTLY_GIVEN else 0.0
    is_given = generator.random(len(gap)) < share
    if is_given.all():
        is_given[generator.integers(len(gap))] = False
    if len(past) + len(gap) + len(future) == len(rows):  # there must be room for the end
        future = future[:-1]
    given = np.concatenate([gap[is_given], future])
    order = np.concatenate([past[:-1], given, past[-1:], gap[~is_given]])  # the last of the past predicts the gap
    begin = len(past) + len(given)
    roles = (np.arange(len(order)) >= len(past) - 1) & (np.arange(len(order)) < begin - 1)
    return _Task(order, roles, begin, float(start + length))


def _accompany(rows: np.ndarray, onset: np.ndarray, first_label: int, generator: np.random.Generator) -> _Task | None:
    """A part of the texture is given from some row on, seen some time ahead."""
    index = np.arange(len(rows))
    begin = first_label if generator.random() < 0.5 else int(generator.integers(first_label, len(rows)))
    is_given = _part(rows, onset, generator) & (rows[:, PITCH] < NUM_PITCHES) & (index >= begin)
    if not is_given.any() or not (~is_given & (index >= begin)).any():
        return None
    draw = generator.random()
    lookahead = np.inf if draw < 0.5 else 0.0 if draw < 0.7 else generator.uniform(0, _LOOKAHEAD_SEC)
    order = met_order(onset, is_given, begin, lookahead)
    return _Task(order, is_given[order], int(np.flatnonzero(order == begin - 1)[0]) + 1)


def _part(rows: np.ndarray, onset: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Which notes are given: above or below a pitch, the top or the bottom line, or any by chance."""
    pitch, draw = rows[:, PITCH], generator.random()
    if draw < 0.4:
        border = np.quantile(pitch, generator.uniform(0.25, 0.75))
        return pitch > border if generator.random() < 0.5 else pitch < border
    if draw < 0.7:
        side = 1 if generator.random() < 0.5 else -1
        sounds = (onset <= onset[:, None]) & (onset + rows[:, DURATION] > onset[:, None])  # (at, note)
        return side * pitch >= np.where(sounds, side * pitch, -np.inf).max(1)
    return generator.random(len(rows)) < generator.uniform(0.2, 0.8)


def _ask(
    arranged: Arrangement,
    task: _Task,
    onset: np.ndarray,
    kind: int,
    end: float | None,
    asked: np.ndarray,
    borders: list[int],
    generator: np.random.Generator,
) -> None:
    """Fill in controls, computed from stretches of the notes that are to be written; some end at the borders."""
    gap_asked = generator.random() < _GAP_IS_TOLD
    targets = np.flatnonzero(arranged.is_target & (arranged.rows[:, PITCH] < NUM_PITCHES))
    control_ids, clock = arranged.control_ids, written_onsets(onset, task.is_given)
    if task.gap_end is not None and gap_asked:
        left = torch.from_numpy(task.gap_end - clock[task.begin - 1 :])
        control_ids[task.begin - 1 :, GAP_LEFT] = seconds_left_class(left).numpy()
    if not asked.any():
        return
    cuts = np.unique([0, *_cuts(len(targets), generator), *np.searchsorted(targets, borders), len(targets)])
    for first, last in zip(cuts[:-1], cuts[1:], strict=True):
        stretch = targets[first:last]
        begin = targets[first - 1] if first else 0
        until = targets[last - 1] if last < len(targets) else len(control_ids)
        values = control_values(arranged.rows[stretch], onset[stretch])
        values[KIND] = kind
        control_ids[begin:until, asked] = np.where(_IS_TIME, control_ids[begin:until], values)[:, asked]
    if end is not None and asked[SECONDS_LEFT]:
        control_ids[:, SECONDS_LEFT] = seconds_left_class(torch.from_numpy(end - clock)).numpy()


def _cuts(num_notes: int, generator: np.random.Generator) -> np.ndarray:
    """Where what is asked changes. Stretches are of any order of length from a few notes to all.

    Hundreds of notes that were heard say nearly all about hundreds that follow; what the next few are like they do not
    say, and from these a model learns to listen to what is asked.
    """
    length = FEWEST_NOTES * max(num_notes / FEWEST_NOTES, 1) ** generator.random()
    return np.arange(generator.uniform(0, length), num_notes, length).astype(int)
