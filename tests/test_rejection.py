"""Samples that have faults are drawn again, a bounded number of times."""

from __future__ import annotations

import numpy as np
import pytest

import pianogen_hf as pg
from pianogen_hf.evaluation.memorization import RunIndex
from pianogen_hf.evaluation.samples import sample_faults
from pianogen_hf.generation.new_notes import Continuation, GenerationError
from pianogen_hf.generation.rejection import alone, copies, redrawn


def piece(pitches, start_sec=0.0):
    notes = pg.Notes.from_seconds(start_sec + 0.25 * np.arange(len(pitches)), np.full(len(pitches), 0.25), pitches)
    return Continuation(notes, notes, start_sec)


def verb(calls):
    """Writes a pitch that tells the seed and the sample; of the first seed, sample 0 is one pitch alone."""

    def write(num_samples, seed, **options):
        calls.append((num_samples, seed, options))
        first = [60] * 12 if seed == 7 else list(range(60, 72))
        return [piece(first), *(piece(list(range(48, 60))) for _ in range(num_samples - 1))]

    return write


def faults(result):
    return sample_faults(result.notes)


def test_only_samples_with_faults_are_drawn_again_with_another_seed():
    calls = []
    results, found = redrawn(verb(calls), faults=faults, num_samples=2, seed=7, density=3.0)
    assert [each.notes["pitch"][0] for each in results] == [60, 48] and found == [[], []]
    assert len(set(results[0].notes["pitch"].tolist())) == 12
    assert [each[0] for each in calls] == [2, 1] and calls[0][1] == 7 != calls[1][1]
    assert all(each[2] == {"density": 3.0} for each in calls)


def test_after_the_last_try_it_is_said_what_is_wrong():
    calls = []
    results, found = redrawn(verb(calls), faults=lambda result: ["bad"], max_tries=3, num_samples=2, seed=7)
    assert len(calls) == 3 and found == [["bad"], ["bad"]] and len(results) == 2


def test_one_try_draws_once():
    calls = []
    redrawn(verb(calls), faults=faults, max_tries=1, seed=7)
    assert len(calls) == 1
    with pytest.raises(GenerationError, match="at least 1"):
        redrawn(verb(calls), faults=faults, max_tries=0)


def test_silence_before_new_notes_is_measured_from_where_they_begin():
    result = piece(list(range(60, 72)), start_sec=100.0)
    assert sample_faults(result.new) and sample_faults(alone(result)) == []


def test_a_copy_in_another_key_is_a_fault_from_a_length_on():
    random = np.random.default_rng(0)
    train = piece(random.integers(40, 80, 40)).notes
    index = RunIndex().fit(["train.mid"], [train])
    copied = piece(train["pitch"][5:25] + 3)
    assert copies(index, 20)(copied) == []
    assert copies(index, 19)(copied) == ["20 notes in a row from train.mid"]
    assert copies(index, 19)(piece(random.integers(40, 80, 40))) == []
