"""Tests of the note transformer: proper probabilities, positions in musical time, given rows, and controls.

What it promises as every model of rows does stands in `test_row_models.py`.
"""

from __future__ import annotations

import math

import pytest
import torch
from models_and_tokenizers import labels_of, loosened, some_rows, tiny_model
from torch.nn import functional as F

from pianogen_hf.models.configuration_note_transformer import NoteTransformerConfig
from pianogen_hf.models.modeling_note_transformer import (
    DURATION,
    END_CLASS,
    PITCH,
    TIME_SHIFT,
    VELOCITY,
    NotePlaces,
    NoteTransformerForCausalLM,
    apply_rotary,
    squared_relu,
)
from pianogen_hf.models.note_controls import CONTROL_SIZES, CONTROLS, LOUDNESS
from pianogen_hf.models.time_classes import FIRST_OPEN, NUM_TIME_CLASSES

BEGIN, END = 128, 129
ROWS = torch.tensor(  # a written row and given ones in turn, as a gap is filled or a part accompanied
    [
        [0.0, BEGIN, 0, 0],
        [0.5, 60, 64, 0.4],
        [1.0, 72, 64, 0.4],
        [2.0, 74, 50, 0.2],
        [0.25, 62, 64, 0.4],
        [-0.1, 50, 64, 3.0],
        [0.0, 64, 64, 0.4],
        [3.0, 40, 64, 0.4],
    ]
)[None]
ROLES = torch.tensor([[0, 0, 1, 1, 0, 1, 0, 0]])


RECENT = torch.tensor([70.0, 12.0, 200.0, -30.0])  # where the latest rows end, in steps


def make_model(**settings) -> NoteTransformerForCausalLM:
    torch.manual_seed(0)
    shared = 4 if settings.get("is_cascade", True) else 0
    return loosened(tiny_model(NoteTransformerForCausalLM, 130, num_recent_offsets=shared, **settings))


def recent_of(model, *shape: int) -> torch.Tensor:
    return RECENT[: model.config.num_recent_offsets].expand(*shape, -1)


@pytest.fixture(scope="module")
def model() -> NoteTransformerForCausalLM:
    return make_model()


def assert_close(actual, expected):
    torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


# Probabilities that add up --------------------------------------------------------------------------------------------


def note(time_shift=0.1, pitch=60.0, velocity=64.0, duration=0.5) -> torch.Tensor:
    return torch.tensor([time_shift, pitch, velocity, duration])


@torch.no_grad()
def masses(model, notes: torch.Tensor, column: int, written_pitch: int = 50) -> torch.Tensor:
    """Probability of each note's field after each of three hidden states, shape (3, notes)."""
    hidden = torch.randn(3, 1, 32, generator=torch.Generator().manual_seed(3)).expand(-1, len(notes), -1)
    before = torch.full((3, len(notes)), written_pitch)
    nats = model.heads.nats(hidden, notes.expand(3, -1, -1), before, recent_of(model, 3, len(notes)))[0]
    assert nats.dtype == torch.float32
    return torch.exp(-nats[..., column].double())


def assert_sums_to_one(each: torch.Tensor, tail=0.0):
    torch.testing.assert_close(each.sum(-1) + tail, torch.ones(3, dtype=torch.float64), atol=1e-5, rtol=0)


@pytest.mark.parametrize("column", [TIME_SHIFT, DURATION])
def test_masses_of_all_times_and_of_the_end_sum_to_one(model, column):
    notes, first = note().repeat(FIRST_OPEN + 1001, 1), column == DURATION
    notes[:, column] = (torch.arange(len(notes)) + first) / 100
    each = masses(model, notes, column)
    # Beyond the 1,001 steps of the open class that were asked for lies 1 / 1002 of it.
    tail = each[:, FIRST_OPEN] * 2 / 1002
    if column == TIME_SHIFT:
        tail = tail + masses(model, note(pitch=END)[None], TIME_SHIFT)[:, 0]
    assert_sums_to_one(each, tail)


def test_masses_of_all_velocities_sum_to_one(model):
    assert_sums_to_one(masses(model, torch.stack([note(velocity=each) for each in range(1, 128)]), VELOCITY))


@pytest.mark.parametrize("written_pitch", [-1, 0, 60, 126, 127])
@pytest.mark.parametrize("time_shift", [0.0, 0.3])
def test_masses_of_all_pitches_sum_to_one(model, time_shift, written_pitch):
    notes = torch.stack([note(time_shift, each) for each in range(128)])
    each = masses(model, notes, PITCH, written_pitch)
    assert_sums_to_one(each)
    is_chord = time_shift == 0 and written_pitch < 127  # above the highest key there is none
    assert ((each[0] > 0) == (torch.arange(128) > (written_pitch if is_chord else -1))).all()


def test_without_a_cascade_all_fields_are_drawn_alike():
    model = make_model(is_cascade=False)
    plain, other = masses(model, note()[None], DURATION), masses(model, note(0.7, 90.0, 3.0)[None], DURATION)
    assert torch.equal(plain, other)
    assert_sums_to_one(masses(model, torch.stack([note(0.0, each) for each in range(128)]), PITCH))


@torch.no_grad()
def test_the_cascade_is_what_a_computation_by_hand_gives(model):
    hidden, heads = torch.randn(32, generator=torch.Generator().manual_seed(1)), model.heads
    row, before = note(0.7, 67.0, 90.0, 1.5), 64

    def logits(head, state):
        return head.fc2(F.relu(head.fc1(state)) ** 2)

    # 0.7 s are 70 steps, in the fourth bucket of two above 64; 1.5 s are 150, counted from 1: the sixth of four.
    shift, duration = 64 + 3, 64 + 32 + (149 - 128) // 4
    nats = [-logits(heads.time_shift_head, hidden).log_softmax(-1)[shift] + math.log(2)]
    hidden = hidden + heads.embed_time_shift.weight[shift]
    raw = logits(heads.pitch_head, hidden)
    pitch = torch.stack([raw[each] + raw[128 + 127 + each - before] for each in range(128)])
    nats.append(-pitch.log_softmax(-1)[67])
    hidden = hidden + heads.embed_pitch.weight[67]
    nats.append(-logits(heads.velocity_head, hidden).log_softmax(-1)[90 - 1])
    hidden = hidden + heads.embed_velocity.weight[90]
    # The rows that end 220 and 300 steps after the last onset may end together with this one, the others are over.
    by_class, shared = logits(heads.duration_head, hidden), logits(heads.offset_head, hidden)
    first, third = shared[0] + shared[4 + duration], shared[2] + shared[4 + 64 + 32 + (229 - 128) // 4]
    log_probs = torch.cat([by_class, torch.stack([first, third])]).log_softmax(-1)
    nats.append(-torch.logaddexp(log_probs[duration] - math.log(4), log_probs[-2]))
    hidden = torch.randn(32, generator=torch.Generator().manual_seed(1))
    recent = torch.tensor([[220.0, 40.0, 300.0, 70.0]])
    found, found_logits = heads.nats(hidden[None], row[None], torch.tensor([64]), recent)
    torch.testing.assert_close(found[0], torch.stack(nats))
    torch.testing.assert_close(found_logits[0], pitch)


@torch.no_grad()
def test_samples_follow_the_likelihood(model):
    rows = some_rows(1, 9)[:, :-1]
    hidden = model(rows).last_hidden_state[:, -1].expand(4000, -1)
    new = model.sample(hidden, rows.expand(4000, -1, -1), 1.0, 1.0, True, torch.Generator().manual_seed(0))
    notes = new[new[:, PITCH] < BEGIN]
    before = rows[0, -1, PITCH].long()
    recent = NotePlaces.of(rows, None, model.config).recent_offsets[:, -1]
    nats, _ = model.heads.nats(hidden[: len(notes)], notes, before.expand(len(notes)), recent.expand(len(notes), -1))
    assert nats.isfinite().all()
    share = (new[:, PITCH] == END).float().mean().item()
    end = model.heads.time_shift_head(hidden[:1]).softmax(-1)[0, END_CLASS].item()
    assert share == pytest.approx(end, abs=4 * (end / 4000) ** 0.5 + 1e-3)
    low = new[:, VELOCITY] < 40
    expected = [masses_of_low_velocity(model, hidden[:1], row, before) for row in notes[:200]]
    assert low[new[:, PITCH] < BEGIN].float().mean().item() == pytest.approx(sum(expected) / 200, abs=0.05)


def masses_of_low_velocity(model, hidden, row, before) -> float:
    rows = row.repeat(39, 1)
    rows[:, VELOCITY] = torch.arange(1.0, 40.0)
    nats, _ = model.heads.nats(hidden.expand(39, -1), rows, before.expand(39), recent_of(model, 39))
    return torch.exp(-nats[:, VELOCITY]).sum().item()


@pytest.mark.parametrize(
    "row",
    [
        note(0.0, 127.0),
        note(0.0, 127.0, 1.0, 0.01),
        note(40.95),
        note(40.96, duration=40.97),
        note(100000.0, duration=100000.0),
        note(0.01, 0.0, 127.0, 0.01),
        torch.tensor([0.0, END, 0.0, 0.0]),
    ],
)
def test_every_legal_row_has_a_finite_cost_and_gradient(row):
    model = make_model()
    rows = torch.cat([some_rows(1, 5)[:, :-1], row[None, None], note(1.0)[None, None], torch.zeros(1, 2, 4)], dim=1)
    rows[0, 3, PITCH] = 126
    labels = labels_of(rows)
    labels[:, -2:] = -100
    mask = (torch.arange(8) < 6)[None].long()
    output = model(rows, attention_mask=mask, labels=labels)
    assert output.nats.isfinite().all() and output.loss.isfinite()
    output.loss.backward()
    assert all(each.grad.isfinite().all() for each in model.parameters())


def test_a_chord_is_paid_for_without_the_keys_below(model):
    """Two notes at once cost less than the same two would if any order were possible."""
    rows = torch.tensor([[0, BEGIN, 0, 0], [0.5, 60, 64, 0.4], [0, 120, 64, 0.4]], dtype=torch.float32)[None]
    nats = model(rows, labels=labels_of(rows)).nats[0, 1]
    probabilities = model(rows, labels=labels_of(rows)).logits[0, 1].softmax(-1)
    assert (probabilities[:61] == 0).all() and nats[PITCH].item() == pytest.approx(-probabilities[120].log().item())


def test_a_window_from_the_middle_of_a_piece_is_scored_like_any_other(model):
    window = some_rows(1, 20)[:, 5:15]
    output = model(window, labels=labels_of(window))
    assert output.nats.isfinite().all()
    first = window.clone()
    first[0, 0, TIME_SHIFT] = 12.0  # from when on the window counts is no matter but to its first row
    other = NotePlaces.of(first, None, model.config)
    assert torch.equal(
        other.onset - other.onset[:, :1], NotePlaces.of(window, None, model.config).onset - 100 * window[:, :1, 0]
    )


# Where notes lie ------------------------------------------------------------------------------------------------------


def test_places_of_given_rows_are_told_from_the_last_written_one():
    places = NotePlaces.of(ROWS, ROLES, NoteTransformerConfig(num_recent_offsets=3))
    assert places.onset.tolist() == [[0, 50, 150, 250, 75, 65, 75, 375]]
    assert places.written_onset.tolist() == [[0, 50, 50, 50, 75, 75, 75, 375]]
    assert places.written_pitch.tolist() == [[-1, 60, 60, 60, 62, 62, 64, 40]]
    assert places.index.tolist() == [[0, 1, 1, 1, 2, 2, 3, 4]]
    offsets = (places.recent_offsets + places.written_onset[..., None])[0]
    ends = (places.onset[0] + 100 * ROWS[0, :, DURATION]).round()
    assert offsets.tolist() == [[*ends[: row + 1].flip(0)[:3].tolist(), 0, 0][:3] for row in range(8)]


def test_offsets_are_remembered_from_call_to_call(model):
    rows = some_rows(2, 9)
    whole = NotePlaces.of(rows, None, model.config)
    first = NotePlaces.of(rows[:, :4], None, model.config)
    second = NotePlaces.of(rows[:, 4:], None, model.config, first)
    assert torch.equal(second.recent_offsets, whole.recent_offsets[:, 4:])


@torch.no_grad()
def test_a_note_ends_with_the_others_that_a_pedal_holds(model):
    """Once sharing an offset is likely, a chord under one pedal costs less, and what is drawn ends together."""
    rows = torch.tensor([[0, BEGIN, 0, 0], [0.5, 60, 64, 1.37], [0.25, 64, 64, 1.12], [0.25, 67, 64, 0.87]])[None]
    alone = rows.clone()
    alone[0, :, DURATION] += torch.tensor([0, 0, 0.03, 0.07])
    shares = make_model()
    shares.heads.offset_head.fc2.bias += 9
    shares.heads.time_shift_head.fc2.bias[10] += 20
    together, apart = (shares(each, labels=labels_of(each)).nats[0, 1:, DURATION] for each in (rows, alone))
    assert (together < 2).all() and (apart > 7).all()
    new = shares.sample(shares(rows).last_hidden_state[:, -1], rows, 0.0, 1.0, False, None)[0]
    assert new[TIME_SHIFT] == pytest.approx(0.1)
    assert 1.0 + new[TIME_SHIFT] + new[DURATION] == pytest.approx(0.5 + 1.37, abs=1e-4)


def test_without_roles_all_rows_are_written():
    rows = some_rows(2, 9)
    config, roles = NoteTransformerConfig(), torch.zeros(2, 9, dtype=torch.long)
    none, zeros = NotePlaces.of(rows, None, config), NotePlaces.of(rows, roles, config)
    assert torch.equal(none.onset, zeros.onset) and torch.equal(none.onset, (100 * rows[..., 0]).round().cumsum(1))
    assert torch.equal(none.written_pitch, zeros.written_pitch) and torch.equal(none.index, zeros.index)


@torch.no_grad()
def test_only_distances_count_of_index_onset_and_pitch(model):
    rotary, generator = model.model.rotary_emb, torch.Generator().manual_seed(0)
    query, key = torch.randn(2, 1, 2, 9, 16, generator=generator)
    index, onset, pitch = torch.arange(9)[None], torch.arange(9.0)[None] * 37, torch.randint(20, 90, (1, 9))
    scores = []
    for shift in (0, 11):
        turn = rotary(index + shift, onset + 100 * shift, pitch + shift)
        scores.append(apply_rotary(query, *turn) @ apply_rotary(key, *turn).transpose(-1, -2))
    torch.testing.assert_close(scores[1], scores[0], atol=1e-3, rtol=1e-3)
    moved = rotary(index, onset.flip(1), pitch)
    assert (apply_rotary(query, *moved) @ apply_rotary(key, *moved).transpose(-1, -2) - scores[0]).abs().max() > 0.1


@torch.no_grad()
@pytest.mark.parametrize(("shares", "moves"), [((1, 0, 0), False), ((0, 1, 0), True), ((3, 3, 2), True)])
def test_a_share_of_nothing_leaves_a_coordinate_out(shares, moves):
    rotary = make_model(rotary_shares=shares).model.rotary_emb
    index, pitch = torch.arange(9)[None], torch.full((1, 9), 60)
    one, other = (rotary(index, torch.arange(9.0)[None] * step, pitch) for step in (5, 50))
    assert one[0].shape == (1, 1, 9, 8)
    assert (not torch.equal(one[0], other[0])) == moves


@torch.no_grad()
def test_what_is_given_is_heard_and_its_onset_counts(model):
    def end(rows, roles=ROLES):
        return model(rows, token_type_ids=roles).last_hidden_state[0, -1]

    plain = end(ROWS)
    for column, value in ((TIME_SHIFT, 2.5), (PITCH, 76), (VELOCITY, 90), (DURATION, 1.0)):
        changed = ROWS.clone()
        changed[0, 3, column] = value
        assert not torch.allclose(end(changed), plain, atol=1e-3)
    assert not torch.allclose(end(ROWS, torch.zeros_like(ROLES)), plain, atol=1e-3)


@pytest.mark.parametrize("sizes", [[8], [1] * 8, [3, 5], [2, 1, 3, 2], [4, 1, 1, 2]])
@torch.no_grad()
def test_with_given_rows_cached_equals_uncached(model, sizes):
    controls = torch.randint(0, 3, (1, 8, len(CONTROLS)), generator=torch.Generator().manual_seed(0))
    expected = model(ROWS, token_type_ids=ROLES, control_ids=controls).last_hidden_state
    past, states, start = None, [], 0
    for size in sizes:
        part = slice(start, start + size)
        output = model(
            ROWS[:, part],
            token_type_ids=ROLES[:, part],
            control_ids=controls[:, part],
            past_key_values=past,
            use_cache=True,
        )
        past, start = output.past_key_values, start + size
        states.append(output.last_hidden_state)
    assert_close(torch.cat(states, dim=1), expected)


@torch.no_grad()
def test_labels_after_a_cache_cost_what_they_cost_without(model):
    labels = torch.where(ROLES == 0, labels_of(ROWS), -100)
    expected = model(ROWS, token_type_ids=ROLES, labels=labels).nats
    past = model(ROWS[:, :5], token_type_ids=ROLES[:, :5], use_cache=True).past_key_values
    rest = model(ROWS[:, 5:], token_type_ids=ROLES[:, 5:], labels=labels[:, 5:], past_key_values=past).nats
    is_predicted_here = (ROLES[:, 5:-1] == 0).cumsum(1) > 0  # not by a row in the cache, whose state is gone
    assert is_predicted_here.any() and not is_predicted_here.all()
    assert_close(rest, expected[:, 5:] * is_predicted_here[..., None])


@torch.no_grad()
def test_a_batch_with_padding_on_the_left_holds_the_same_places(model):
    padded = torch.cat([torch.zeros(1, 3, 4), ROWS], dim=1)
    roles, mask = F.pad(ROLES, (3, 0)), (torch.arange(11) >= 3)[None].long()
    expected = model(ROWS, token_type_ids=ROLES).last_hidden_state
    assert_close(model(padded, mask, token_type_ids=roles).last_hidden_state[:, 3:], expected)


@torch.no_grad()
def test_indices_can_be_told(model):
    rows = some_rows(2, 9)
    told = model(rows, position_ids=torch.arange(9)[None] + 40).last_hidden_state
    assert_close(told, model(rows).last_hidden_state)


# Controls -------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def test_no_controls_are_controls_that_ask_for_nothing(model):
    """Training always tells what is asked, so what is learnt of 0 belongs to plain continuation, too."""
    rows = some_rows(2, 9)
    nothing = torch.zeros(2, 9, len(CONTROLS), dtype=torch.long)
    assert torch.equal(model(rows, control_ids=nothing).last_hidden_state, model(rows).last_hidden_state)


@torch.no_grad()
def test_every_value_of_every_control_says_something_else(model):
    rows, seen = some_rows(1, 3), set()
    for control, size in enumerate(CONTROL_SIZES):
        for value in range(1, size):
            controls = torch.zeros(1, 3, len(CONTROLS), dtype=torch.long)
            controls[..., control] = value
            embeds = model.model.embeddings(rows, None, controls)
            seen.add(tuple(embeds[0, 0].tolist()))
    assert len(seen) == sum(CONTROL_SIZES) - len(CONTROLS)


@torch.no_grad()
def test_what_is_asked_reaches_the_heads_without_the_layers():
    """One asked value moves the hidden states by its bias, and by nothing else where the embeddings know none."""
    model, rows = make_model(), some_rows(1, 9)
    model.model.embeddings.embed_controls.weight.zero_()
    asked = torch.zeros(1, 9, len(CONTROLS), dtype=torch.long)
    asked[..., LOUDNESS] = 3
    moved = model(rows, control_ids=asked).last_hidden_state - model(rows).last_hidden_state
    first, bias = sum(CONTROL_SIZES[:LOUDNESS]), model.model.control_bias.weight
    assert_close(moved, (bias[first + 3] - bias[first]).expand_as(moved))


# As it begins ---------------------------------------------------------------------------------------------------------


def test_before_training_all_outcomes_are_equally_likely():
    torch.manual_seed(0)
    model, rows = tiny_model(NoteTransformerForCausalLM, 130), some_rows(1, 9)
    rows[0, 1:-1, TIME_SHIFT], rows[0, 1:-1, DURATION] = 0.1, 0.2
    nats = model(rows, labels=labels_of(rows)).nats[0, :-1]
    expected = [math.log(NUM_TIME_CLASSES + 1), math.log(128), math.log(127), math.log(NUM_TIME_CLASSES)]
    assert_close(nats, torch.tensor(expected).expand(len(nats), -1))


def test_squared_relu_is_the_square_of_a_relu():
    values = torch.linspace(-2, 2, 9)
    torch.testing.assert_close(squared_relu(values), F.relu(values) ** 2)


def test_outputs_stand_in_their_declared_order(model):
    """Evaluation loops take them by place: loss, then what the metrics want."""
    rows = some_rows(2, 9)
    output = model(rows, labels=labels_of(rows))
    assert list(output)[:3] == ["loss", "logits", "nats"]
    assert [tuple(value.shape) for value in output.to_tuple()[:3]] == [(), (2, 8, 128), (2, 8, 4)]
    torch.testing.assert_close(output.loss, output.nats.sum() / 16)


@pytest.mark.parametrize(
    "wrong",
    [
        {"hidden_size": 0},
        {"num_attention_heads": 5},
        {"num_attention_heads": 32},
        {"sampling_rate": 0},
        {"rotary_shares": [1, 1]},
        {"rotary_shares": [0, 0, 0]},
        {"rotary_shares": [1, -1, 1]},
        {"hidden_dropout": 1.0},
        {"attention_dropout": -0.1},
        {"num_recent_offsets": -1},
        {"num_recent_offsets": 4, "is_cascade": False},
    ],
)
def test_config_refuses_what_makes_no_model(wrong):
    with pytest.raises(ValueError):
        NoteTransformerConfig(**{"hidden_size": 32, **wrong})


def test_the_model_wants_rows(model):
    with pytest.raises(ValueError, match="input_values"):
        model()
    with pytest.raises(ValueError, match="input_values"):
        model.model()
