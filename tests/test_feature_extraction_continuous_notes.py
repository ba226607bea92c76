"""Tests of the rows of real numbers: what they keep, on which grid, and how batches of them look."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pianogen_hf.models.configuration_continuous_notes import ContinuousNotesConfig
from pianogen_hf.models.modeling_continuous_notes import ContinuousNotesForCausalLM
from pianogen_hf.tokenizers.feature_extraction_continuous_notes import (
    BEGIN,
    DURATION,
    END,
    PITCH,
    TIME_SHIFT,
    VELOCITY,
    ContinuousNotesFeatureExtractor,
)
from pianogen_hf.tokenizers.midi import MidiError, notes_to_midi_bytes, read_midi, write_midi
from pianogen_hf.tokenizers.notes import MAX_WAIT_SEC, PEDAL_DTYPE, Notes
from pianogen_hf.tokenizers.tokenization_performance import PerformanceTokenizer

CHORD_AND_NOTE = Notes.from_seconds([0.5, 0.5, 1.25], [0.2, 0.3, 0.1], [60, 64, 67], [50, 60, 70])


@st.composite
def any_notes(draw) -> Notes:
    """Notes at any millisecond, overlapping and doubled as they come."""
    row = st.tuples(st.integers(0, 3000), st.integers(0, 1500), st.integers(21, 108), st.integers(1, 127))
    rows = np.array(draw(st.lists(row, max_size=30)), dtype=np.int64).reshape(-1, 4)
    onset, duration, pitch, velocity = rows.T
    return Notes.from_columns(500, onset_tick=onset, duration_tick=duration, pitch=pitch, velocity=velocity)


def test_rows_are_the_piece_between_its_ends():
    rows = ContinuousNotesFeatureExtractor().encode_piece(CHORD_AND_NOTE)
    expected = [
        [0, BEGIN, 0, 0],
        [0.5, 60, 50, 0.2],
        [0, 64, 60, 0.3],
        [0.75, 67, 70, 0.1],
        [0, END, 0, 0],
    ]
    assert rows.dtype == np.float32
    assert np.allclose(rows, expected)


def test_events_are_those_of_the_model():
    config = ContinuousNotesConfig()
    assert (config.bos_token_id, config.eos_token_id) == (BEGIN, END)
    assert config.sampling_rate == ContinuousNotesFeatureExtractor().sampling_rate


@given(any_notes())
def test_rows_hold_the_same_music_as_performance_events(notes):
    """So that bits per note of the two compare; velocities apart, which the events bin."""
    extractor, tokenizer = ContinuousNotesFeatureExtractor(), PerformanceTokenizer()
    ours = extractor.decode_notes(extractor.encode_piece(notes))
    theirs = tokenizer.decode_notes(tokenizer.encode_notes(notes))
    for name in ("onset_tick", "duration_tick", "pitch"):
        assert np.array_equal(ours[name], theirs[name])
    assert np.array_equal(ours["velocity"] // 4, theirs["velocity"] // 4)


@given(any_notes(), st.sampled_from([10, 100, 1000]))
def test_decoded_notes_encode_to_the_same_rows(notes, sampling_rate):
    extractor = ContinuousNotesFeatureExtractor(sampling_rate)
    rows = extractor.encode_piece(notes)
    assert np.array_equal(extractor.encode_piece(extractor.decode_notes(rows)), rows)


@given(any_notes())
def test_rows_are_in_order_and_positive(notes):
    rows = ContinuousNotesFeatureExtractor().encode_notes(notes)
    assert (rows[:, TIME_SHIFT] >= 0).all() and (rows[:, DURATION] >= np.float32(0.01)).all()
    chord = rows[1:, TIME_SHIFT] == 0
    assert (np.diff(rows[:, PITCH])[chord] > 0).all()


def test_errors_of_the_grid_do_not_add_up():
    onset = np.arange(1000) * 0.0149
    notes = Notes.from_seconds(onset, np.full(1000, 0.01), np.arange(1000) % 88 + 21)
    rows = ContinuousNotesFeatureExtractor().encode_notes(notes)
    assert np.abs(np.cumsum(rows[:, TIME_SHIFT].astype(float)) - notes.onset_sec).max() <= 0.0051


def test_a_finer_grid_keeps_milliseconds():
    notes = Notes.from_seconds([0.003, 0.011], [0.123, 0.007], [60, 61])
    rows = ContinuousNotesFeatureExtractor(1000).encode_notes(notes)
    assert np.allclose(rows[:, [TIME_SHIFT, DURATION]], [[0.003, 0.123], [0.008, 0.007]])


def test_the_pedal_lengthens_notes():
    notes = Notes.from_seconds([0.0, 2.0], [0.1, 0.1], [60, 62])
    pedals = np.array([(50, 127, 0), (1500, 0, 0)], PEDAL_DTYPE)
    held = Notes(notes.table, notes.ticks_per_quarter, notes.tempos, pedals=pedals)
    assert ContinuousNotesFeatureExtractor().encode_notes(held)[0, DURATION] == pytest.approx(1.5)


def test_a_key_struck_again_ends_and_doubles_are_one_note():
    notes = Notes.from_seconds([0.0, 0.001, 0.5], [1.0, 2.0, 0.1], [60, 60, 60])
    rows = ContinuousNotesFeatureExtractor().encode_notes(notes)
    assert rows[:, DURATION].tolist() == pytest.approx([0.5, 0.1])


def test_no_music_is_two_ends():
    extractor = ContinuousNotesFeatureExtractor()
    rows = extractor.encode_piece(Notes.from_seconds([], [], []))
    assert rows[:, PITCH].tolist() == [BEGIN, END]
    assert len(extractor.decode_notes(rows)) == 0


def test_a_batch_is_padded_and_masked(tmp_path):
    path = tmp_path / "piece.mid"
    write_midi(CHORD_AND_NOTE, path)
    short = Notes.from_seconds([0.0], [1.0], [72])
    batch = ContinuousNotesFeatureExtractor()([path, short, path.read_bytes(), str(path)], return_tensors="pt")
    assert batch["input_values"].shape == (4, 5, 4) and batch["input_values"].dtype == torch.float32
    assert batch["attention_mask"].tolist() == [[1] * 5, [1, 1, 1, 0, 0], [1] * 5, [1] * 5]
    assert (batch["input_values"][1, 3:] == 0).all()
    assert torch.equal(batch["input_values"][0], batch["input_values"][2])


def test_prompts_have_no_end_and_can_be_padded_on_the_left():
    extractor = ContinuousNotesFeatureExtractor(padding_side="left")
    short = Notes.from_seconds([0.0], [1.0], [72])
    batch = extractor([CHORD_AND_NOTE, short], is_prompt=True, return_tensors="np")
    assert batch["attention_mask"].tolist() == [[1, 1, 1, 1], [0, 0, 1, 1]]
    assert not (batch["input_values"][..., PITCH] == END).any()
    assert batch["input_values"][1, 2, PITCH] == BEGIN


def test_settings_survive_saving(tmp_path):
    extractor = ContinuousNotesFeatureExtractor(250, padding_side="left")
    extractor.save_pretrained(tmp_path)
    loaded = ContinuousNotesFeatureExtractor.from_pretrained(tmp_path)
    assert loaded.to_dict() == extractor.to_dict()
    assert loaded.sampling_rate == 250 and loaded.padding_side == "left"


def test_what_a_model_writes_survives_a_midi_file():
    """Notes with times off any grid: only keys struck while they sound, and the grid, may change them."""
    torch.manual_seed(0)
    config = ContinuousNotesConfig(hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2)
    rows = ContinuousNotesForCausalLM(config).generate(max_new_tokens=60, min_new_tokens=60, seed=0)[0]
    extractor = ContinuousNotesFeatureExtractor(1000)
    notes = extractor.decode_notes(rows)
    read = read_midi(notes_to_midi_bytes(notes))
    for name in ("onset_tick", "duration_tick", "pitch", "velocity"):
        assert np.array_equal(read[name], notes[name])
    assert 40 < len(notes) <= 60
    again = extractor.encode_piece(read)
    assert np.array_equal(extractor.encode_piece(extractor.decode_notes(again)), again)
    assert np.abs(notes.onset_sec[-1] - rows[:, TIME_SHIFT].double().sum().item()) < 0.002
    assert set(again[1:-1, VELOCITY]) <= set(rows[:, VELOCITY].tolist())


@pytest.mark.parametrize(
    "rows",
    [
        np.zeros((3, 3)),
        np.zeros(4),
        np.array([[-0.1, 60, 64, 0.5]]),
        np.array([[np.nan, 60, 64, 0.5]]),
        np.array([[0.1, 60, 64, -0.5]]),
        np.array([[0.1, 140, 64, 0.5]]),
        np.array([[0.1, 60, 0, 0.5]]),
    ],
)
def test_decoding_refuses_what_is_no_note(rows):
    with pytest.raises(ValueError):
        ContinuousNotesFeatureExtractor().decode_notes(rows)


def test_unusable_inputs_are_named(tmp_path):
    with pytest.raises(TypeError, match="int"):
        ContinuousNotesFeatureExtractor()(3)
    with pytest.raises(MidiError, match="not a MIDI file"):
        ContinuousNotesFeatureExtractor()(b"nothing of the kind")
    with pytest.raises(ValueError, match="sampling_rate"):
        ContinuousNotesFeatureExtractor(0)


def test_a_wait_without_end_is_shortened():
    notes = Notes.from_seconds([0, 2_000_000], [1_900_000, 1], [60, 62])
    rows = ContinuousNotesFeatureExtractor().encode_notes(notes)
    assert rows[:, 0].tolist() == [0, MAX_WAIT_SEC] and rows[:, 3].tolist() == [MAX_WAIT_SEC, 1]
