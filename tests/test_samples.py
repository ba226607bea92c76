"""Generated pieces that are no music are told, and real ones are not."""

import numpy as np
import pytest
from models_and_tokenizers import some_notes

import pianogen_hf
from pianogen_hf.evaluation.samples import sample_faults


def notes_of(onset_sec, pitch, duration_sec=0.4):
    return pianogen_hf.Notes.from_columns(
        480,
        onset_tick=np.rint(np.asarray(onset_sec) * 960).astype(int),
        duration_tick=np.full(len(pitch), round(duration_sec * 960)),
        pitch=pitch,
        velocity=np.full(len(pitch), 64),
    )


@pytest.mark.parametrize("seed", range(4))
def test_music_has_no_fault(seed):
    assert sample_faults(some_notes(seed)) == []


@pytest.mark.parametrize(
    ("notes", "fault"),
    [
        (notes_of([], []), "0 notes"),
        (notes_of(np.arange(20), [60, 64] * 10), "only 2 pitches"),
        (notes_of(np.arange(20), [60] * 15 + [61, 62, 63, 64, 65]), "one pitch is 75% of the notes"),
        (notes_of([*range(10), *range(40, 50)], list(range(60, 80))), "31 s of silence"),
        (notes_of(np.arange(20) + 30, list(range(60, 80))), "30 s of silence"),
        (notes_of([0] * 60, list(range(30, 90))), "60 notes at once"),
        (notes_of(np.arange(60) / 50, list(range(30, 90))), "38 notes a second"),
        (notes_of(np.arange(40) / 4, list(range(40, 80)), duration_sec=9), "20 notes sounding at a time"),
        (notes_of(np.arange(20), list(range(60, 80)), duration_sec=0), "most notes have no length"),
    ],
)
def test_what_is_wrong_is_said(notes, fault):
    assert fault in sample_faults(notes)


def test_a_long_note_is_no_silence():
    notes = some_notes(num_notes=30)
    held = notes_of([0, *range(30, 45)], list(range(60, 76)), duration_sec=31)
    assert sample_faults(notes) == [] and not any("silence" in fault for fault in sample_faults(held))
