"""Tasks out of music: no note is lost or doubled, all lie where they lay, and controls are what the notes are like."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models_and_tokenizers import some_rows, tiny_model

from pianogen_hf.models.configuration_note_transformer import NoteTransformerConfig
from pianogen_hf.models.key_finding import key_of
from pianogen_hf.models.modeling_note_transformer import NotePlaces, NoteTransformerForCausalLM
from pianogen_hf.models.note_controls import (
    CONTROL_SIZES,
    CONTROLS,
    DENSITY,
    GAP_LEFT,
    KEY,
    KIND,
    LOUDNESS,
    REGISTER,
    SECONDS_LEFT,
    control_values,
    key_class,
    seconds_left_class,
)
from pianogen_hf.models.note_rows import met_order, time_shifts, written_onsets
from pianogen_hf.training import arrangement
from pianogen_hf.training.arrangement import arrange
from pianogen_hf.training.note_transformer import ArrangingCollator, additive_causal_mask

TIME_SHIFT, PITCH, VELOCITY, DURATION = range(4)
BEGIN, END = 128, 129


def window(length: int, seed: int, place: str = "whole") -> np.ndarray:
    """A stretch of a piece whose rows are told from one another by their durations."""
    rows = some_rows(1, length + 2, seed)[0].numpy()
    rows[:, DURATION] = np.arange(1, length + 3) / 100
    rows[[0, -1], DURATION] = 0
    return rows[
        {"beginning": slice(0, length), "middle": slice(1, -1), "end": slice(2, None), "whole": slice(None)}[place]
    ]


def onsets_of(arranged) -> np.ndarray:
    """Where the model takes the rows to lie, in steps."""
    roles = torch.from_numpy(arranged.is_given.astype(np.int64))[None]
    return NotePlaces.of(torch.from_numpy(arranged.rows)[None], roles, NoteTransformerConfig()).onset[0].numpy()


def kind_of(arranged, rows) -> str:
    if not arranged.is_given.any() and len(arranged.rows) == len(rows):
        return "continue"
    return "accompany" if len(arranged.rows) == len(rows) and not is_fill(arranged, rows) else "fill"


def is_fill(arranged, rows) -> bool:
    """The end of a gap has been added, or stands where there was none."""
    order = durations(arranged.rows)
    return (
        order[-1] == 0 and arranged.rows[-1, PITCH] == END and (rows[-1, PITCH] != END or not same_notes(order, rows))
    )


def durations(rows) -> list[int]:
    return np.rint(rows[:, DURATION] * 100).astype(int).tolist()


def same_notes(order, rows) -> bool:
    return sorted(order) == sorted(durations(rows))


ANY = {
    "seed": st.integers(0, 10**6),
    "length": st.integers(2, 90),
    "place": st.sampled_from(["beginning", "middle", "end", "whole"]),
    "first_label": st.integers(1, 5),
}


def drawn(seed, length, place, first_label):
    """A window as it was played, and what becomes of it."""
    rows = window(length, seed, place)
    first_label = min(first_label, len(rows) - 1)
    with patch.object(arrangement, "_CHANGED", 0.0):
        return rows, first_label, arrange(rows, first_label, np.random.default_rng(seed), 2, 4.0)


@settings(max_examples=60)
@given(**ANY)
def test_no_note_is_lost_or_doubled_but_those_after_a_gap(seed, length, place, first_label):
    rows, first_label, arranged = drawn(seed, length, place, first_label)
    assert len(arranged.rows) <= len(rows)
    order = [each for each in durations(arranged.rows) if each]
    assert len(set(order)) == len(order) and set(order) <= set(durations(rows))
    lost = set(durations(rows)) - set(order) - {0}
    if lost:  # of what follows a gap a model need not see all
        written = [each for each, given in zip(durations(arranged.rows), arranged.is_given, strict=True) if not given]
        assert min(lost) > max(written)
        assert arranged.rows[-1, PITCH] == END
    by_duration = {duration: row for duration, row in zip(durations(rows), rows, strict=True) if duration}
    for row, duration in zip(arranged.rows, durations(arranged.rows), strict=True):
        if duration:
            assert np.array_equal(row[1:], by_duration[duration][1:])


@settings(max_examples=60)
@given(**ANY)
def test_every_row_lies_where_it_lay(seed, length, place, first_label):
    rows, _, arranged = drawn(seed, length, place, first_label)
    expected = dict(zip(durations(rows), np.rint(np.cumsum(rows[:, TIME_SHIFT].astype(float)) * 100), strict=True))
    moved = {
        onset - expected[duration]
        for onset, duration in zip(onsets_of(arranged), durations(arranged.rows), strict=True)
        if duration
    }
    assert len(moved) <= 1 and (
        arranged.is_given[0] or moved <= {0.0}
    )  # all by the same, where a given row comes first


@settings(max_examples=60)
@given(**ANY)
def test_written_rows_come_in_time_and_they_alone_are_asked_for(seed, length, place, first_label):
    rows, first_label, arranged = drawn(seed, length, place, first_label)
    onsets = onsets_of(arranged)
    assert (np.diff(onsets[~arranged.is_given]) >= 0).all()
    assert not (arranged.is_target & arranged.is_given).any()
    written = np.flatnonzero(~arranged.is_given)
    assert durations(arranged.rows[written[:first_label]]) == durations(rows[:first_label])
    assert np.array_equal(np.flatnonzero(arranged.is_target), written[first_label:]) and len(written) > first_label
    assert not (arranged.is_given & (arranged.rows[:, PITCH] >= BEGIN)).any()


@settings(max_examples=20)
@given(**ANY)
def test_what_is_asked_for_can_be_scored(seed, length, place, first_label):
    """Chords are still written upwards, whatever is given between their notes."""
    _, _, arranged = drawn(seed, length, place, first_label)
    labels = torch.from_numpy(np.where(arranged.is_target, arranged.rows[:, PITCH], -100)).long()[None]
    output = MODEL(
        torch.from_numpy(arranged.rows)[None],
        token_type_ids=torch.from_numpy(arranged.is_given.astype(np.int64))[None],
        control_ids=torch.from_numpy(arranged.control_ids)[None],
        labels=labels,
    )
    assert output.nats.isfinite().all() and output.loss.isfinite()


MODEL = tiny_model(NoteTransformerForCausalLM, 130, num_recent_offsets=4)


def test_all_tasks_come_up_as_often_as_they_should():
    rows = window(120, 3, "middle")
    tasks = [arrange(rows, 1, np.random.default_rng(seed)) for seed in range(600)]
    kinds = [kind_of(each, rows) for each in tasks]
    shares = {kind: kinds.count(kind) / 600 for kind in set(kinds)}
    assert shares["continue"] == pytest.approx(0.5, abs=0.12)  # and where there is no room for another task
    assert shares["fill"] == pytest.approx(0.25, abs=0.1) and shares["accompany"] == pytest.approx(0.25, abs=0.1)
    ahead = [each for each in tasks if each.is_given.any() and (each.rows[each.is_given, TIME_SHIFT] > 5).any()]
    beside = [each for each in tasks if each.is_given.any() and not (each.rows[each.is_given, TIME_SHIFT] > 5).any()]
    assert len(ahead) > 50 and len(beside) > 5
    assert not any((each.rows[each.is_given, TIME_SHIFT] < 0).any() for each in tasks)


def test_a_gap_is_written_after_all_that_is_given_and_closed():
    rows = window(120, 3, "middle")
    fills = [
        each
        for each in (arrange(rows, 1, np.random.default_rng(seed)) for seed in range(300))
        if kind_of(each, rows) == "fill"
    ]
    assert len(fills) > 40
    for each in fills:
        places = np.flatnonzero(each.is_given)
        if len(places):
            assert np.array_equal(places, np.arange(places[0], places[-1] + 1))
        last = each.rows[-1]
        assert last.tolist() == [0, END, 0, 0] and each.is_target[-1]


# The order in which rows are met --------------------------------------------------------------------------------------


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 20), st.booleans()), min_size=1, max_size=30),
    st.integers(1, 30),
    st.sampled_from([0.0, 1.0, 5.0, np.inf]),
)
def test_a_given_row_helps_to_predict_the_first_written_one_no_more_than_the_lookahead_earlier(rows, begin, lookahead):
    onset = np.sort([0, *(each for each, _ in rows)]).astype(float)
    is_given = np.array([False, *(given for _, given in rows)]) & (np.arange(len(onset)) >= begin)
    order = met_order(onset, is_given, begin, lookahead)
    assert sorted(order) == list(range(len(onset)))
    place, written = np.argsort(order), np.flatnonzero(~is_given)
    assert np.array_equal(order[~is_given[order]], written)
    for row in np.flatnonzero(is_given):
        for number in range(1, len(written)):  # `written[number - 1]` predicts `written[number]`
            helps = number >= begin and onset[written[number]] >= onset[row] - lookahead
            is_met = place[row] < place[written[number - 1]]
            assert is_met == helps or (number == len(written) - 1 and is_met)


def test_shifts_count_from_the_last_written_onset():
    onset, is_given = np.array([3.0, 0.0, 3.0, 2.0, 1.0, 1.5]), np.array([True, False, True, True, False, False])
    assert written_onsets(onset, is_given).tolist() == [0, 0, 0, 0, 1, 1.5]
    assert time_shifts(onset, is_given).tolist() == [3, 0, 3, 2, 1, 0.5]


# Controls -------------------------------------------------------------------------------------------------------------


def test_controls_are_statistics_of_the_notes():
    onset = np.arange(20) * 0.25
    rows = np.stack([np.full(20, 0.25), 60 + np.arange(20) % 2 * 12, np.full(20, 52), np.full(20, 0.2)], axis=1)
    values = control_values(rows, onset)
    assert values[DENSITY] == 1 + 9  # 4 a second: three octaves above a half, of three classes each
    assert values[REGISTER] == 1 + 10 and values[LOUDNESS] == 1 + 10
    assert values[KEY] == key_class(*key_of(rows[:, PITCH], rows[:, DURATION]))
    assert not values[[KIND, SECONDS_LEFT, GAP_LEFT]].any()
    assert not control_values(rows[:7], onset[:7]).any() and control_values(rows[:15], onset[:15])[KEY] == 0
    assert control_values(rows[:8], np.zeros(8))[DENSITY] == 0  # a chord has no density


@given(st.integers(0, 10**6), st.floats(0.001, 1000), st.integers(1, 60))
def test_every_control_has_a_class_within_its_size(seed, tempo, length):
    rows = window(length, seed, "middle")
    values = control_values(rows, np.cumsum(rows[:, TIME_SHIFT]) * tempo)
    assert ((values >= 0) & (values < CONTROL_SIZES)).all()


def test_times_left_have_four_classes_an_octave():
    seconds = torch.tensor([-5.0, 0.0, 0.125, 0.25, 0.5, 1.0, 1e9, float("nan")])
    assert seconds_left_class(seconds).tolist() == [1, 1, 1, 5, 9, 13, CONTROL_SIZES[SECONDS_LEFT] - 1, 0]


@settings(max_examples=40)
@given(**ANY)
def test_controls_are_computed_from_the_very_notes_that_they_are_asked_of(seed, length, place, first_label):
    stretches = []

    def numbered(rows, onset):
        stretches.append(durations(rows))
        return np.full(len(CONTROLS), len(stretches))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(arrangement, "control_values", numbered)
        rows, _, arranged = drawn(seed, length, place, first_label)
    is_note = arranged.rows[:, PITCH] < BEGIN
    targets = np.flatnonzero(arranged.is_target & is_note)
    if stretches:
        assert sum(stretches, []) == [durations(arranged.rows)[target] for target in targets]
    number_of = {note: number for number, notes in enumerate(stretches, start=1) for note in notes}
    for target in targets:
        predicting = np.flatnonzero(~arranged.is_given[:target])[-1]
        asked = arranged.control_ids[predicting]  # what the row says from which the note is drawn
        number = number_of.get(durations(arranged.rows)[target], 0)
        assert set(asked[[DENSITY, REGISTER, LOUDNESS, KEY]].tolist()) <= {0, number}
        assert asked[KIND] in (0, 2)


@settings(max_examples=40)
@given(**ANY)
def test_times_left_are_counted_from_the_last_written_note(seed, length, place, first_label):
    rows, _, arranged = drawn(seed, length, place, first_label)
    clock = written_onsets(onsets_of(arranged) / 100, arranged.is_given)
    end = float(np.cumsum(rows[:, TIME_SHIFT], dtype=np.float64)[-1]) + 4.0
    told = arranged.control_ids[:, SECONDS_LEFT]
    left = seconds_left_class(torch.from_numpy(end - clock)).numpy()
    assert (told == 0).all() or (np.abs(told - left) <= 1).all()  # 1: floating-point numbers at the border of a class
    gap = arranged.control_ids[:, GAP_LEFT]
    if gap.any():
        assert arranged.rows[-1, PITCH] == END
        begin = np.flatnonzero(gap)[0]
        assert gap[begin:].all() and (np.diff(gap[begin:]) <= 0).all()
        if arranged.is_given.any():
            assert begin == np.flatnonzero(arranged.is_given)[-1] + 1  # the row that predicts the first of the gap


# Batches --------------------------------------------------------------------------------------------------------------


def example(number: int, length: int = 40) -> dict:
    rows = window(length, number, "middle")
    return {"input_values": rows, "first_label": 1, "piece_id": f"p{number}", "start": 7 * number, "seconds_left": 3.0}


def test_a_batch_has_one_shape_and_labels_where_something_is_to_be_written():
    batch = ArrangingCollator(64)([example(number, 20 + number) for number in range(6)])
    assert {name: tuple(each.shape) for name, each in batch.items()} == {
        "input_values": (6, 64, 4),
        "attention_mask": (6, 64),
        "token_type_ids": (6, 64),
        "control_ids": (6, 64, len(CONTROLS)),
        "labels": (6, 64),
    }
    assert batch["input_values"].dtype == torch.float32
    assert all(
        batch[name].dtype == torch.int64 for name in ("attention_mask", "token_type_ids", "control_ids", "labels")
    )
    padding, asked = batch["attention_mask"] == 0, batch["labels"] != -100
    assert padding.any() and not (padding & asked).any() and not batch["input_values"][padding].any()
    assert not (asked & (batch["token_type_ids"] == 1)).any() and not asked[:, 0].any()
    assert torch.equal(batch["labels"][asked], batch["input_values"][..., PITCH][asked].long())


def test_a_task_follows_from_seed_epoch_and_name_whatever_stands_beside_it():
    examples, collator = [example(number) for number in range(12)], ArrangingCollator(64, {"p3": 2}, seed=5)
    whole = collator(examples)
    for number in range(12):
        alone = ArrangingCollator(64, {"p3": 2}, seed=5)([examples[number]])
        assert all(torch.equal(whole[name][number], alone[name][0]) for name in whole)
    collator.set_epoch(1)
    later, other = collator(examples), ArrangingCollator(64, {"p3": 2}, seed=6)(examples)
    for changed in (later, other):
        assert sum(not torch.equal(changed["control_ids"][n], whole["control_ids"][n]) for n in range(12)) > 6
    collator.set_epoch(0)
    assert torch.equal(collator(examples)["input_values"], whole["input_values"])


def test_the_kind_of_music_is_that_of_the_piece():
    collator, seen = ArrangingCollator(64, {"p3": 2}), {3: set(), 4: set()}
    for epoch in range(30):
        collator.set_epoch(epoch)
        for number in (3, 4):
            seen[number] |= set(collator([example(number)])["control_ids"][0, :, KIND].tolist())
    assert seen == {3: {0, 2}, 4: {0}}


@torch.no_grad()
def test_a_mask_that_is_written_out_is_the_mask_that_the_model_makes():
    batch = ArrangingCollator(32)([example(number, 12 + number) for number in range(4)])
    labels, mask = batch.pop("labels"), batch.pop("attention_mask")
    model = tiny_model(NoteTransformerForCausalLM, 130, num_recent_offsets=4, attn_implementation="eager")
    plain, written = (model(**batch, labels=labels, attention_mask=each) for each in (mask, additive_causal_mask(mask)))
    torch.testing.assert_close(written.last_hidden_state[mask.bool()], plain.last_hidden_state[mask.bool()])
    torch.testing.assert_close(written.loss, plain.loss)


# Music that changes in what is asked ----------------------------------------------------------------------------------


@settings(max_examples=60)
@given(seed=st.integers(0, 10**6), length=st.integers(4, 90), asked=st.lists(st.booleans(), min_size=7, max_size=7))
def test_a_change_keeps_chords_order_and_what_ends_together(seed, length, asked):
    random = np.random.default_rng(seed)
    rows, change = some_rows(1, length, seed)[0].numpy(), int(random.integers(1, length))
    rows[1:-1:2, DURATION] = 3.0 - np.mod(np.cumsum(rows[:, TIME_SHIFT]), 2.5)[1:-1:2].round(2)
    changed = arrangement._changed(rows, change, np.array(asked), 100, random)

    def steps(table):
        shift, duration = (np.rint(table[:, column].astype(float) * 100) for column in (TIME_SHIFT, DURATION))
        return shift, np.cumsum(shift) + duration

    (shift, offset), (new_shift, new_offset) = steps(rows), steps(changed)
    assert np.array_equal(rows[:change, :3], changed[:change, :3])
    assert np.array_equal(shift == 0, new_shift == 0)
    together = offset[:, None] == offset
    apart = np.abs(new_offset[:, None] - new_offset)[together]
    assert (apart <= 1).all() or (changed[1:-1, DURATION] == np.float32(0.01)).any()  # no note is shorter than a step
    notes = rows[:, PITCH] < 128
    assert ((changed[notes, VELOCITY] >= 1) & (changed[notes, VELOCITY] <= 127)).all()
    assert (changed[notes, DURATION] >= np.float32(0.01)).all()
    assert np.array_equal(rows[~notes], changed[~notes]) or asked[DENSITY]
    assert len(set((changed[change:, PITCH] - rows[change:, PITCH])[notes[change:]].tolist())) <= 1


def test_only_what_is_asked_changes():
    rows, random = some_rows(1, 40)[0].numpy(), np.random.default_rng(3)
    for control, columns in ((LOUDNESS, {VELOCITY}), (DENSITY, {TIME_SHIFT, DURATION}), (REGISTER, {PITCH})):
        asked = np.arange(len(CONTROLS)) == control
        different: set[int] = set()
        for _ in range(20):
            changed = arrangement._changed(rows, 10, asked, 100, random)
            different |= set(np.flatnonzero((changed != rows).any(0)).tolist())
        assert different == columns
    nothing = np.zeros(len(CONTROLS), dtype=bool)
    assert np.array_equal(arrangement._changed(rows, 10, nothing, 100, random), rows)


@pytest.mark.parametrize("without", [1.0, 0.0])
def test_the_music_changes_where_something_is_asked_and_nowhere_else(without):
    changed = 0
    with patch.object(arrangement, "_WITHOUT_CONTROLS", without), patch.object(arrangement, "_CONTROL", 1.0):
        for seed in range(100):
            rows = some_rows(1, 40, seed)[0].numpy()
            arranged = arrange(rows, 1, np.random.default_rng(seed))
            changed += not {tuple(row[1:3]) for row in arranged.rows} <= {tuple(row[1:3]) for row in rows} | {
                (END, 0.0)
            }
    assert (changed == 0) if without else (changed > 30)
