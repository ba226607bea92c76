"""Times as classes: each has exactly one, and the probabilities of all times sum to 1."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pianogen_hf.models.time_classes import (
    EXACT,
    FIRST_OPEN,
    NUM_TIME_CLASSES,
    OPEN,
    first_step,
    num_steps,
    residual_nats,
    time_class,
)

ALL_STEPS = torch.arange(FIRST_OPEN + 200)


def test_classes_rise_with_time_and_leave_none_out():
    classes = time_class(ALL_STEPS)
    assert classes[0] == 0 and classes[-1] == OPEN == NUM_TIME_CLASSES - 1
    assert set(classes.diff().tolist()) == {0, 1}
    assert torch.equal(classes[:EXACT], torch.arange(EXACT))
    assert (classes[FIRST_OPEN:] == OPEN).all() and classes[FIRST_OPEN - 1] == OPEN - 1


def test_a_class_holds_the_steps_from_its_first_on():
    classes = torch.arange(OPEN)
    counts = torch.bincount(time_class(ALL_STEPS), minlength=NUM_TIME_CLASSES)
    assert torch.equal(num_steps(classes), counts[:OPEN])
    assert torch.equal(time_class(first_step(classes)), classes)
    assert torch.equal(first_step(classes[1:]), first_step(classes[:-1]) + num_steps(classes[:-1]))
    assert first_step(torch.tensor(OPEN)) == FIRST_OPEN


@given(st.integers(0, 2**40))
def test_any_time_has_a_class_and_a_finite_cost(steps):
    time = torch.tensor([steps])
    found = time_class(time)
    assert 0 <= found <= OPEN and first_step(found) <= time
    assert residual_nats(time).isfinite() and residual_nats(time) >= 0


def test_within_a_class_all_probabilities_sum_to_one():
    share = torch.exp(-residual_nats(ALL_STEPS).double())
    total = torch.zeros(NUM_TIME_CLASSES, dtype=torch.float64).index_add(0, time_class(ALL_STEPS), share)
    torch.testing.assert_close(total[:OPEN], torch.ones(OPEN, dtype=torch.float64), atol=1e-5, rtol=0)
    # 1 / ((k + 1) (k + 2)) of the first 200 steps sum to 200 / 201, and of all to 1.
    assert total[OPEN].item() == pytest.approx(200 / 201, abs=1e-5)


def test_buckets_are_no_wider_than_a_thirty_second_of_their_time():
    buckets = torch.arange(EXACT, OPEN)
    assert (num_steps(buckets) / first_step(buckets)).max() <= 1 / 32
    assert residual_nats(torch.tensor(63)) == 0
    assert residual_nats(torch.tensor(64)).item() == pytest.approx(math.log(2))
